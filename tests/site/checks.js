/* What browser.py asks of an open page: one object, whose functions give lists of sentences. */
({
  /* Unfold everything, and wait for formulas, fonts and whatever moves. */
  async settle() {
    if (window.MathJax?.startup) await window.MathJax.startup.promise;
    document.querySelectorAll("details").forEach((fold) => { fold.open = true; });
    await document.fonts.ready;
    await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
    document.getAnimations().forEach((motion) => { try { motion.finish(); } catch { motion.cancel(); } });
  },

  /* Formulas that MathJax could not read, that name an unknown macro (drawn in red), or that it never drew. */
  formulas() {
    const all = (selector) => [...document.querySelectorAll(selector)];
    return [
      ...all("mjx-merror, [data-mjx-error]").map(
        (node) => `error in a formula: ${node.dataset.mjxError || node.textContent}`),
      ...all("mjx-container mtext[mathcolor=red]").map((node) => `unknown macro ${node.textContent}`),
      ...all(".math").filter((node) => !node.querySelector("mjx-container")).map(
        (node) => `not drawn: ${node.textContent.slice(0, 60)}`),
    ];
  },

  /* The page must not scroll sideways, and nothing may be cut off where it cannot be scrolled to. */
  overflow() {
    const found = [];
    const beyond = document.documentElement.scrollWidth - window.innerWidth;
    if (beyond > 0) found.push(`the page scrolls ${beyond} px sideways`);
    const scrolls = (node) => /auto|scroll/.test(getComputedStyle(node).overflowX);
    const kinds = "p, li, pre, table, img, svg, video, iframe, figure, mjx-container, h1, h2, h3, summary";
    for (const node of document.querySelectorAll(`main :is(${kinds})`)) {
      const box = node.getBoundingClientRect();
      const end = box.right + Math.max(0, node.scrollWidth - node.clientWidth); // of what stands in it
      if (!box.width || !box.height || end <= window.innerWidth + 1) continue;
      let reach = node;
      while (reach && !scrolls(reach)) reach = reach.parentElement;
      if (reach && reach !== document.documentElement && reach !== document.body) continue;
      const words = (node.textContent.trim() || node.getAttribute("alt") || "").slice(0, 60);
      found.push(`<${node.localName}> ends ${Math.round(end - window.innerWidth)} px outside: ${words}`);
    }
    return found;
  },

  /* Pictures that say nothing to who cannot see them: a single word, or a file's name, is nothing. */
  pictures() {
    const words = (node) => (node.getAttribute("alt") ?? node.getAttribute("aria-label")
      ?? node.querySelector("title")?.textContent ?? "").trim();
    return [...document.querySelectorAll("main :is(img, svg[role=img], object, canvas, video)")]
      .filter((node) => !words(node).includes(" ") || words(node).length < 15)
      .map((node) => `<${node.localName} ${(node.getAttribute("src") ?? "").slice(-40)}> says "${words(node)}"`);
  },

  /* One main heading, so that the page has one name. */
  headings() {
    const shown = [...document.querySelectorAll("h1")].filter((node) => node.checkVisibility());
    if (shown.length === 1) return [];
    return [`${shown.length} main headings: ${shown.map((node) => node.textContent.trim()).join(", ")}`];
  },

  /* Stops of the Tab key that look the same with the focus and without, one of each kind. */
  stops() {
    const rest = () => document.getAnimations().forEach(
      (motion) => { try { motion.finish(); } catch { motion.cancel(); } });
    const looks = (node) => {
      rest();
      const now = getComputedStyle(node);
      const ring = now.outlineStyle === "none" ? 0 : parseFloat(now.outlineWidth);
      return JSON.stringify([ring, now.boxShadow, now.backgroundColor, now.color, now.borderColor,
        now.textDecorationLine, now.textDecorationThickness, now.opacity]);
    };
    const seen = new Set();
    const found = [];
    const stop = "a[href], button, input, select, textarea, summary, [tabindex='0']";
    for (const node of document.querySelectorAll(stop)) {
      const kind = [node.localName, node.className, node.parentElement.className, Boolean(node.closest("main"))].join();
      if (node.disabled || seen.has(kind) || !node.checkVisibility({ checkVisibilityCSS: true })) continue;
      seen.add(kind);
      // A sidebar's fold has no height of its own; the arrow in it is what one sees.
      const drawn = node.getBoundingClientRect().height ? node : node.firstElementChild ?? node;
      const plain = looks(drawn);
      node.focus({ preventScroll: true, focusVisible: true });
      const marked = document.activeElement !== node || looks(drawn) !== plain;
      node.blur();
      const name = node.textContent.trim() || node.getAttribute("aria-label") || node.title || node.localName;
      if (!marked) found.push(`<${node.localName} class="${node.className}">: ${name.slice(0, 40)}`);
    }
    return found;
  },

  /* Mark one element of each kind of text: same colour, size and weight, and the same colours behind it. */
  sampleColours() {
    const seen = new Set();
    for (const node of document.body.querySelectorAll("*")) {
      node.removeAttribute("data-sample");
      const own = [...node.childNodes].filter((child) => child.nodeType === Node.TEXT_NODE);
      if (!own.some((text) => text.data.trim())) continue;
      const style = getComputedStyle(node);
      const kind = [style.color, style.fontSize, style.fontWeight, style.textShadow];
      for (let behind = node; behind; behind = behind.parentElement) {
        const ground = getComputedStyle(behind);
        kind.push(ground.backgroundColor, ground.backgroundImage, ground.opacity, ground.filter);
        if (ground.position !== "static") kind.push(ground.position, behind.className);
      }
      if (seen.has(kind.join()) || !node.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })) continue;
      seen.add(kind.join());
      node.setAttribute("data-sample", "");
    }
  },
})
