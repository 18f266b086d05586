/* Turns the book's single page into a book: cover, contents, parts, one page to begin each chapter and lab.

   book: { title, subtitle, facts: [html], parts: [{ caption, pages: [{ name, lab }] }] }
   Gives the contents' entries as [{ id, title }]. */
async (book) => {
  const make = (tag, properties, ...children) => {
    const node = Object.assign(document.createElement(tag), properties);
    node.append(...children);
    return node;
  };
  const titleOf = (heading) => {
    const copy = heading.cloneNode(true);
    copy.querySelectorAll(".headerlink").forEach((link) => link.remove());
    return copy.textContent.trim();
  };

  // Pages have anchors of the same name ("sources"): all but the first are renamed, with the links to them.
  const tellApart = (article, pages) => {
    const pageOf = (node) => pages.indexOf(node.closest(".opens-page"));
    const taken = new Set();
    const renamed = pages.map(() => new Map());
    for (const node of article.querySelectorAll("[id]")) {
      if (!taken.has(node.id)) { taken.add(node.id); continue; }
      const name = `page-${pageOf(node)}-${node.id}`;
      renamed[pageOf(node)].set(`#${node.id}`, `#${name}`);
      node.id = name;
      taken.add(name);
    }
    for (const link of article.querySelectorAll("a[href^='#']")) {
      const name = renamed[pageOf(link)].get(link.getAttribute("href"));
      if (name) link.setAttribute("href", name);
    }
  };

  if (window.MathJax?.startup) await window.MathJax.startup.promise;
  document.documentElement.classList.add("on-paper");
  document.documentElement.dataset.theme = document.documentElement.dataset.mode = "light";
  document.querySelectorAll("img[loading=lazy]").forEach((image) => { image.loading = "eager"; });

  const article = document.querySelector("article.bd-article");
  article.querySelectorAll(".prev-next-footer, script, style.sd-animation").forEach((node) => node.remove());

  // Links to files of the site, as around each picture, lead nowhere from a PDF.
  for (const link of article.querySelectorAll("a[href]")) {
    const inside = link.getAttribute("href").startsWith("#");
    if (!inside && link.href.startsWith(location.origin)) link.replaceWith(...link.childNodes);
  }

  // Folds: answers, solutions and results that were to be predicted are printed; the source of a drawing is not.
  for (const fold of article.querySelectorAll("details")) {
    const cell = fold.closest(".cell");
    const hidesSource = cell?.matches(".tag_hide-input, .tag_hide_input");
    const isSolution = /BEGIN SOLUTION/.test(fold.textContent);
    if (hidesSource && !isSolution) { fold.remove(); continue; }
    fold.open = true;
    const name = fold.querySelector("summary .expanded");
    if (!name) continue;
    name.parentElement.querySelector(".collapsed")?.remove();
    name.textContent = isSolution ? "Solution" : hidesSource ? "Source" : "Result";
  }

  // Parts and pages, with what the contents list.
  const entries = [];
  const rules = [];
  const list = make("ol", {});
  const enter = (kind, id, title) => {
    const number = make("span", { className: "number" });
    number.dataset.target = id;
    list.append(make("li", { className: kind }, make("a", { href: `#${id}` }, make("span", {}, title), number)));
    entries.push({ id, title });
  };
  const open = (section, kind, look = kind) => {
    const heading = section.querySelector("h1, h2, h3");
    const name = `sheet-${entries.length}`;
    const title = titleOf(heading);
    section.classList.add(look);
    section.style.page = name;
    heading.classList.add("opening");
    rules.push(`@page ${name} { @top-left { color: #56616a; font: 8.5pt "Source Sans 3", sans-serif;`
      + ` content: ${JSON.stringify(title)} } }`);
    enter(kind, section.id, title);
  };

  const first = article.querySelector("section");
  const sectionOf = ({ name }) => {
    const mark = document.getElementById(`document-${name}`);
    if (!mark) throw new Error(`the single page lacks ${name}`);
    return mark.nextElementSibling;
  };
  const pages = [first, ...book.parts.flatMap((part) => part.pages.map(sectionOf))];
  pages.forEach((section) => section.classList.add("opens-page"));
  tellApart(article, pages);

  const preface = first.querySelector("h1");
  preface.firstChild.textContent = "About this course";
  open(first, "chapter", "preface");
  book.parts.forEach((part, n) => {
    const id = `part-${n + 1}`;
    const divider = make("div", { className: "part-page" }, make("h1", { id }, part.caption));
    part.pages.forEach((page, k) => {
      const section = sectionOf(page);
      if (k === 0) { section.before(divider); enter("part", id, part.caption); }
      open(section, page.lab ? "lab" : "chapter");
      if (page.lab) return;
      for (const inner of section.querySelectorAll(":scope > section > h3")) {
        enter("section", inner.parentElement.id, titleOf(inner));
      }
    });
  });

  const cover = make("div", { className: "cover" },
    make("div", {}, make("p", { className: "title" }, book.title), make("p", { className: "subtitle" }, book.subtitle)),
    make("div", { className: "facts", innerHTML: book.facts.map((fact) => `<p>${fact}</p>`).join("") }));
  const contents = make("nav", { className: "book-contents" }, make("p", { className: "heading" }, "Contents"), list);
  document.body.replaceChildren(cover, contents, make("div", { className: "bd-content" }, article));
  document.head.append(make("style", { textContent: rules.join("\n") }));

  await document.fonts.ready;
  await Promise.all([...document.images].map((image) => image.decode().catch(() => {})));

  // On paper nothing scrolls: formulas and tables that are too wide are made smaller.
  const shrink = (node, width, most) => {
    const share = most / width;
    if (share < 1) node.style.zoom = Math.max(0.5, share * 0.99);
  };
  const column = article.clientWidth;
  article.querySelectorAll("mjx-container[display]").forEach((formula) => {
    shrink(formula, formula.scrollWidth, formula.parentElement.clientWidth);
  });
  article.querySelectorAll("table").forEach((table) => shrink(table, table.offsetWidth, column));

  // Boxes that fit into less than half a page are not broken.
  article.querySelectorAll(".cell_input, .cell_output, details, .admonition, .highlight").forEach((box) => {
    box.classList.toggle("whole", box.offsetHeight < window.innerHeight * 0.45);
  });
  return entries;
}
