/* The calculator of book/scaling-laws/planning.md: reads its form, plans by plan-formulas.js, shows the plan.

   The form, and every law and default in it, is written by book/scaling-laws/planning_calculator.py. First come
   functions that do not touch the page (the tests call them), then those that do. */
(() => {
  "use strict";
  const { PlanError } = scalelabPlan;
  const PARAMETERS = ["E", "A", "B", "alpha", "beta"];
  const ASSUMED = ["peak_flops_per_s", "mfu", "price_per_gpu_hour", "power_watts", "pue", "grid_kg_per_kwh"];
  const PLANS = { // what is given → function here, and in the package
    flops: ["planBudget", "plan_budget"],
    gpu_hours: ["planGpuHours", "plan_gpu_hours"],
    money: ["planMoney", "plan_money"],
    loss: ["planLoss", "plan_loss"],
  };

  // Reading -------------------------------------------------------------------------------------------------

  /* A number as people type it: 1e21, 5.76e23, 0.4; thousands may be set apart, as in 1,000,000. */
  const readNumber = (field, text) => {
    const typed = text.trim().replace(/^[−–]/, "-");
    const wayOut = "write a number such as 1e21, 5.76e23 or 1,000,000";
    if (typed === "") throw new PlanError(field, `is empty: ${wayOut}`);
    const joined = /^[+-]?\d{1,3}([,_\s]\d{3})+(\.\d*)?$/.test(typed) ? typed.replace(/[,_\s]/g, "") : typed;
    if (!/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(joined)) {
      throw new PlanError(field, `"${typed}" is not a number: ${wayOut}`);
    }
    if (!Number.isFinite(Number(joined))) throw new PlanError(field, `${typed} is more than a number here can hold`);
    return Number(joined);
  };

  /* The five parameters in what `scalelab fit --json` printed. */
  const lawFromJson = (text) => {
    let found;
    try {
      found = JSON.parse(text);
    } catch {
      throw new PlanError("pasted", "is not JSON: paste all that scalelab fit --json printed, braces included");
    }
    const lacking = PARAMETERS.filter((name) => typeof found?.[name] !== "number");
    if (lacking.length) {
      const law = found?.law ? `the law "${found.law}"` : "this";
      throw new PlanError(
        "pasted", `${law} has no number ${lacking.join(", ")}: fit with scalelab fit --law chinchilla --json`);
    }
    return Object.fromEntries(PARAMETERS.map((name) => [name, found[name]]));
  };

  // Planning ------------------------------------------------------------------------------------------------

  /* From what stands in the fields to what is shown: columns, each a model with its bill, and Python's lines.

     texts: field → text. known: laws, hardware and defaults of the package. */
  const answer = (texts, known) => {
    const number = (field) => readNumber(field, texts[field]);
    const optional = (field) => (texts[field].trim() === "" ? null : number(field));
    const numbers = (fields) => Object.fromEntries(fields.map((field) => [field, number(field)]));
    const law = scalelabPlan.makeLaw(texts.law === "own" ? numbers(PARAMETERS) : known.laws[texts.law]);
    const assumed = scalelabPlan.assume(numbers(ASSUMED));
    const n_gpus = optional("n_gpus");
    const asked = { ask: texts.ask, law, assumed, n_gpus, fixed: null, served: optional("served_tokens") };
    const model = (name, n_params, n_tokens) =>
      ({ name, ...scalelabPlan.planModel(law, n_params, n_tokens, assumed, n_gpus) });

    const columns = [];
    if (asked.ask === "model") {
      Object.assign(asked, numbers(["n_params", "n_tokens"]));
      columns.push(model("your model", asked.n_params, asked.n_tokens));
      asked.best = scalelabPlan.planLoss(law, columns[0].loss, assumed, n_gpus);
      columns.push({ name: "compute-optimal", ...asked.best, over_least: 1 });
    } else {
      asked.amount = number(asked.ask);
      asked.best = scalelabPlan[PLANS[asked.ask][0]](law, asked.amount, assumed, n_gpus);
      columns.push({ name: "compute-optimal", ...asked.best, over_least: 1 });
      asked.fixed = optional("fixed_n_params");
      if (asked.fixed !== null) {
        const n_tokens = asked.ask === "loss"
          ? scalelabPlan.tokensFor(law, asked.fixed, asked.best.loss)
          : scalelabPlan.tokensOfBudget(asked.best.flops, asked.fixed);
        columns.push(model("with your N", asked.fixed, n_tokens));
      }
    }
    if (asked.served !== null) {
      const { n_params, n_tokens } = scalelabPlan.planServing(law, asked.best.loss, asked.served);
      columns.push(model("cheapest over its life", n_params, n_tokens));
      for (const column of columns) {
        column.serving_flops = scalelabPlan.servingFlops(column.n_params, asked.served);
        column.life_flops = column.flops + column.serving_flops;
      }
      const optimum = columns.find(({ name }) => name === "compute-optimal");
      columns.at(-1).saving = 1 - columns.at(-1).life_flops / optimum.life_flops;
    }
    return { columns, python: python(asked, texts, known) };
  };

  /* A number as Python reads it, to the last digit: 2e20, 1024, 0.385. */
  const exact = (value) =>
    (value >= 1e7 || (value < 1e-4 && value !== 0) ? value.toExponential() : String(value)).replace("e+", "e");

  /* `Assumptions(…)` with what differs from its defaults; "" where nothing does. */
  const assumptions = (assumed, texts, known) => {
    const chosen = known.hardware.find(({ name }) => name === texts.hardware);
    const listed = chosen?.peak_flops[texts.precision] === assumed.peak_flops_per_s;
    const values = { ...assumed, hardware: texts.hardware, precision: texts.precision };
    let why = "", power = chosen?.tdp_watts;
    if (!listed) {
      // The package knows its table's peaks only: the same FLOP/s as a share of one of those.
      const { hardware, precision } = known.defaults;
      const stand = known.hardware.find(({ name }) => name === hardware);
      Object.assign(values, { hardware, precision, mfu: assumed.mfu * assumed.peak_flops_per_s / stand.peak_flops[precision] });
      power = stand.tdp_watts;
      why = `  # ${exact(assumed.mfu)} of ${exact(assumed.peak_flops_per_s)} FLOP/s, as a share of that of ${hardware}`;
      if (values.mfu > 1) return { text: "", why: "faster" };
    }
    const named = Object.entries(known.defaults).filter(([name, value]) => values[name] !== value)
      .map(([name]) => `${name}=${typeof values[name] === "string" ? `"${values[name]}"` : exact(values[name])}`);
    if (assumed.power_watts !== power) named.push(`power_watts=${exact(assumed.power_watts)}`);
    return { text: named.length ? `Assumptions(${named.join(", ")})` : "", why };
  };

  /* The same in Python, from the imports on. */
  const python = ({ ask, law, assumed, n_gpus, amount, n_params, n_tokens, fixed, served }, texts, known) => {
    const { text, why } = assumptions(assumed, texts, known);
    if (why === "faster") {
      return `# No accelerator of scalelab's table is so fast: see scalelab.plan.Assumptions.`;
    }
    const used = [];
    const use = (name) => (used.includes(name) || used.push(name), name);
    const more = [text && ", assumptions", n_gpus === null ? "" : `, n_gpus=${n_gpus}`].join("");
    const lines = [`law = ChinchillaLaw(${PARAMETERS.map((name) => `${name}=${exact(law[name])}`).join(", ")})`];
    if (text) lines.push(`assumptions = ${use("Assumptions") && text}${why}`);
    if (ask === "model") {
      lines.push(
        `n_params, n_tokens = ${exact(n_params)}, ${exact(n_tokens)}`,
        "loss = float(law.loss(n_params, n_tokens))",
        `print(loss, ${use("bill")}(6 * n_params * n_tokens${more}), sep="\\n")`,
        `plan = ${use("plan_loss")}(law, loss${more})  # compute-optimal at its loss`);
    } else {
      lines.push(`plan = ${use(PLANS[ask][1])}(law, ${exact(amount)}${more})`);
    }
    lines.push("print(plan)");
    if (fixed !== null) {
      lines.push(
        `n_params = ${exact(fixed)}`,
        `n_tokens = ${ask === "loss" ? "law.tokens_for(n_params, plan.loss)" : "plan.flops / (6 * n_params)"}`,
        "loss = float(law.loss(n_params, n_tokens))",
        "print(n_tokens, loss, 6 * n_params * n_tokens / law.flops_for(loss))");
    }
    if (served !== null) {
      lines.push(
        `life = ${use("plan_serving")}(law, plan.loss, prompt_tokens=${exact(served)})`,
        "print(life.best, life.saving)");
    }
    return ["from scalelab.laws import ChinchillaLaw", `from scalelab.plan import ${used.sort().join(", ")}`, "", ...lines]
      .join("\n");
  };

  // Writing -------------------------------------------------------------------------------------------------

  const RAISED = "⁰¹²³⁴⁵⁶⁷⁸⁹";
  const scientific = (value) => {
    const [digits, power] = value.toExponential(3).split("e");
    const raised = power.replace(/\d/g, (digit) => RAISED[digit]).replace("-", "⁻").replace("+", "");
    return `${digits}\u00a0·\u00a010${raised}`;
  };
  /* 1,234,567; 12.34; 1.234 · 10¹⁵. */
  const plain = (value) => {
    if (value === 0) return "0";
    if (value >= 1e12 || value < 0.001) return scientific(value);
    return Number(value.toPrecision(value >= 1000 ? 15 : 4))
      .toLocaleString("en-US", { maximumFractionDigits: value >= 1000 ? 0 : 6 });
  };
  /* 20.26 billion. */
  const count = (value) => {
    if (value < 1e6 || value >= 1e15) return value < 1e6 ? plain(value) : scientific(value);
    const [size, word] = [[1e12, "trillion"], [1e9, "billion"], [1e6, "million"]].find(([least]) => value >= least);
    return `${Number((value / size).toPrecision(4))} ${word}`;
  };
  const rows = (currency, n_gpus) => [
    ["n_params", "Parameters N", count],
    ["n_tokens", "Training tokens D", count],
    ["tokens_per_param", "Tokens per parameter", plain],
    ["loss", "Loss, nats per token", (value) => value.toFixed(4)],
    ["flops", "Training, FLOPs", scientific],
    ["over_least", "FLOPs over the fewest for its loss", (value) => `${plain(value)} ×`],
    ["serving_flops", "Serving, FLOPs", scientific],
    ["life_flops", "Training and serving, FLOPs", scientific],
    ["gpu_hours", "Training, GPU-hours", plain],
    ["days", `Days on ${plain(n_gpus ?? 1)} GPU${n_gpus === 1 ? "" : "s"}`, plain],
    ["money", `Money, ${currency}`, plain],
    ["energy_kwh", "Energy, kWh", plain],
    ["co2_kg", "Carbon, kg CO₂e", plain],
  ];

  /* The plan in words, for the line that screen readers announce: the first column in full, the others in short. */
  const summary = ([first, ...others], currency) => {
    const model = ({ name, n_params, n_tokens, loss }) =>
      `${name[0].toUpperCase()}${name.slice(1)}: ${count(n_params)} parameters on ${count(n_tokens)} tokens, loss ${loss.toFixed(3)}`;
    const besides = ({ saving, over_least }) => {
      if (saving !== undefined) return `, which saves ${(100 * saving).toFixed(1)} % of the FLOPs of training and serving`;
      return over_least > 1 ? `, ${plain(over_least)} times the fewest FLOPs for it` : "";
    };
    return [
      `${model(first)}${besides(first)}; ${plain(first.gpu_hours)} GPU-hours, ${plain(first.money)} ${currency}.`,
      ...others.map((other) => `${model(other)}${besides(other)}.`),
    ].join(" ");
  };

  // The page ------------------------------------------------------------------------------------------------

  const element = (tag, text, attributes = {}) => {
    const made = Object.assign(document.createElement(tag), attributes);
    made.textContent = text;
    return made;
  };

  const drawTable = (table, columns, currency) => {
    const shown = rows(currency, columns[0].n_gpus).filter(([field]) =>
      (field === "over_least" ? columns.length > 1 : columns.some((column) => (column[field] ?? null) !== null)));
    const head = element("thead", "");
    head.append(element("tr", ""));
    head.firstChild.append(element("td", ""), ...columns.map(({ name }) => element("th", name, { scope: "col" })));
    const body = element("tbody", "");
    for (const [field, label, write] of shown) {
      const row = element("tr", "");
      row.append(element("th", label, { scope: "row" }), ...columns.map((column) => element("td", write(column[field]))));
      body.append(row);
    }
    table.replaceChildren(head, body);
  };

  const start = (form) => {
    const known = JSON.parse(form.dataset.package);
    const field = (name) => form.elements[name];
    const show = (name, shown) => { field(name).closest(".plan-field").hidden = !shown; };
    const find = (selector) => form.querySelector(selector);
    let columns = null; // of the last plan; null while a field is wrong

    /* The peak and the power of the accelerator chosen; a format that it lacks is replaced by one that it has. */
    const takeHardware = () => {
      const chosen = known.hardware.find(({ name }) => name === field("hardware").value);
      if (!chosen) return;
      const precision = field("precision");
      for (const option of precision.options) option.disabled = !(option.value in chosen.peak_flops);
      if (precision.selectedOptions[0].disabled) {
        precision.value = ["bf16", "fp16"].find((name) => name in chosen.peak_flops);
      }
      field("peak_flops_per_s").value = exact(chosen.peak_flops[precision.value]);
    };
    const takePower = () => {
      const chosen = known.hardware.find(({ name }) => name === field("hardware").value);
      if (chosen) field("power_watts").value = chosen.tdp_watts ?? "";
    };

    /* Another question about the same plan: its amount, carried over. */
    const carryOver = () => {
      if (!columns) return;
      const names = field("ask").value === "model" ? ["n_params", "n_tokens"] : [field("ask").value];
      for (const name of names) field(name).value = exact(Number(columns[0][name].toPrecision(6)));
    };

    const takePasted = () => {
      if (field("pasted").value.trim() === "") return;
      for (const [name, value] of Object.entries(lawFromJson(field("pasted").value))) field(name).value = exact(value);
    };

    const arrange = () => {
      const ask = field("ask").value;
      Object.keys(PLANS).forEach((name) => show(name, name === ask));
      ["n_params", "n_tokens"].forEach((name) => show(name, ask === "model"));
      show("fixed_n_params", ask !== "model");
      show("precision", field("hardware").value !== "other");
      find(".plan-own").hidden = field("law").value !== "own";
    };

    const clear = () => {
      columns = null;
      find(".plan-results").hidden = find(".plan-python").hidden = true;
      find("table").replaceChildren();
      find(".plan-python pre").textContent = "";
      form.querySelectorAll("[aria-invalid]").forEach((input) => input.removeAttribute("aria-invalid"));
      form.querySelectorAll(".plan-error").forEach((line) => { line.hidden = true; line.textContent = ""; });
    };

    /* Say what is wrong at the field that is wrong, or at the one asked for when the fault is of no shown field. */
    const complain = (error) => {
      const ask = field("ask").value;
      const named = error.field === "n_params" && ask !== "model" ? "fixed_n_params" : error.field;
      const isShown = field(named) && !field(named).closest("[hidden]");
      const input = field(isShown ? named : ask === "model" ? "n_params" : ask);
      input.setAttribute("aria-invalid", "true");
      const line = document.getElementById(`${input.id}-error`);
      line.textContent = error.message;
      line.hidden = false;
      if (input.closest("details")) input.closest("details").open = true;
      const label = find(`label[for="${input.id}"]`).firstChild.textContent.trim();
      find(".plan-summary").textContent = `No plan. ${label}: ${error.message}.`;
    };

    const update = (event) => {
      const changed = event?.target.name;
      if (changed === "ask") carryOver();
      if (changed === "hardware") takePower();
      if (changed === "hardware" || changed === "precision") takeHardware();
      if (changed === "peak_flops_per_s") field("hardware").value = "other";
      if (PARAMETERS.includes(changed)) field("pasted").value = ""; // what is typed holds
      arrange();
      clear();
      try {
        if (field("law").value === "own") takePasted();
        const texts = Object.fromEntries([...form.elements].filter(({ name }) => name).map(({ name, value }) => [name, value]));
        const found = answer(texts, known);
        drawTable(find("table"), found.columns, known.currency);
        find(".plan-python pre").textContent = found.python;
        find(".plan-summary").textContent = summary(found.columns, known.currency);
        find(".plan-results").hidden = find(".plan-python").hidden = false;
        columns = found.columns;
      } catch (error) {
        if (!(error instanceof PlanError)) throw error;
        complain(error);
      }
    };

    form.addEventListener("input", update);
    form.addEventListener("submit", (event) => event.preventDefault()); // Enter in a field
    form.addEventListener("reset", () => setTimeout(() => { takeHardware(); update(); }));
    form.hidden = false;
    takeHardware();
    update();
  };

  Object.assign(scalelabPlan, { readNumber, lawFromJson, answer });
  document.querySelectorAll(".plan-calculator form").forEach(start);
})();
