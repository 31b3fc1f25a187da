"use strict";
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const data = JSON.parse(document.getElementById("data").textContent);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const one = (selector, within = document) => within.querySelector(selector);
  const state = { block: 0, metric: "latency", winner: "latency", breakdown: 0 };
  const current = () => data.comparisons[state.block];
  const words = (metric) => (metric === "flops" ? "FLOPs" : metric.replace("_", " "));
  const shown = {};  // by figure: what is drawn, for downloads

  // Figures are drawn in light colours, which SVG and PNG keep; on the page these become the page's own.
  const COLORS = {
    "#1a1a1a": "--ink", "#5f5f5f": "--grey", "#cfcfcf": "--light", "white": "--paper", "#ffffff": "--paper",
    "#fff": "--paper", "#0072b2": "--c1", "#d55e00": "--c2", "#009e73": "--c3", "#cc79a7": "--c4",
    "#56b4e9": "--c5", "#e69f00": "--c6", "#7f3c8d": "--c7", "#000": "--ink", "black": "--ink",
  };
  const recolour = (plot) => {
    for (const element of all("[fill], [stroke]", plot)) {
      for (const name of ["fill", "stroke"]) {
        const variable = COLORS[element.getAttribute(name)];
        if (variable) element.style.setProperty(name, `var(${variable})`);
      }
    }
  };

  // Holes of a specification: a text "$name", or a list that holds only that. What is put in is not looked into.
  const fill = (part, holes) => {
    if (typeof part === "string") return part[0] === "$" ? holes[part.slice(1)] : part;
    if (Array.isArray(part)) {
      if (part.length === 1 && typeof part[0] === "string" && part[0][0] === "$") {
        const value = holes[part[0].slice(1)];
        return Array.isArray(value) ? value : [value];
      }
      return part.map((each) => fill(each, holes));
    }
    if (part === null || typeof part !== "object") return part;
    return Object.fromEntries(Object.entries(part).map(([key, value]) => [key, fill(value, holes)]));
  };

  const number = (value) => Number(value.toPrecision(4)).toLocaleString("en-US", { maximumSignificantDigits: 4 });
  const tip = document.getElementById("tip");
  const tooltip = (handler, event, item, value) => {
    tip.hidden = !value;
    if (!value) return;
    const lines = Object.entries(value).map(([key, each]) => `${key}: ${typeof each === "number" ? number(each) : each}`);
    tip.textContent = lines.join("\n");
    tip.style.left = `${Math.min(event.pageX + 12, window.scrollX + root.clientWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${event.pageY + 14}px`;
  };
  const nothing = () => Promise.reject(new Error("this page fetches nothing"));
  const options = {
    mode: "vega-lite", ast: true, renderer: "svg", actions: false, defaultStyle: false, tooltip,
    loader: { load: nothing, sanitize: nothing, http: nothing, file: nothing },
  };

  const isNarrow = (plot) => plot.clientWidth < 560;
  const draw = async (figure, specification, holes, { rows, message, name, height }) => {
    const element = document.getElementById(figure);
    if (!element) return;
    element.hidden = !specification;
    if (!specification) return;
    const plot = one(".plot", element);
    const filled = holes ? fill(specification, holes) : structuredClone(specification);
    // A name of the legend takes about seven pixels a letter.
    const longest = Math.max(4, ...((holes && holes.subjects) || []).map((each) => each.length));
    if (holes) filled.config.legend.columns = Math.max(1, Math.floor(plot.clientWidth / (longest * 6.5 + 40)));
    if (height) filled.height = height;
    if (holes) filled.config.axisY = { labelLimit: isNarrow(plot) ? 110 : 320 };
    const result = await vegaEmbed(plot, filled, options);
    recolour(plot);
    // Vega says only that this is one of its drawings.
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", message);
    plot.removeAttribute("aria-roledescription");
    const drawing = one("svg", plot);
    drawing.setAttribute("aria-hidden", "true");
    shown[figure] = { view: result.view, rows, name };
  };

  const drawCost = () => {
    const here = current();
    const costs = here.costs[state.metric];
    const factor = costs.axes.factor;
    const curves = costs.rows.map(([subject, length, , value, low, high]) => ({
      subject: here.subjects[subject], length, value: factor * value, low: factor * low, high: factor * high,
    }));
    const rows = [
      ["subject", "length", "positions", state.metric, "low", "high", "batch_size"],
      ...costs.rows.map(([subject, ...rest]) => [here.subjects[subject], ...rest]),
    ];
    const holes = {
      ...here.axes, ...costs.axes, subjects: here.subjects, colors: here.colors, shapes: here.shapes,
      curves, ends: costs.ends, tips: costs.tips,
    };
    if (isNarrow(one("#cost .plot"))) {
      // There is no room for names; shapes and the legend tell who is who.
      holes.tips = costs.tips.map((each) => ({ ...each, word: each.short }));
      holes.positions = here.axes.positions.filter((_, place) => place % 2 === 0);
    }
    return draw("cost", data.figures.cost, holes, { rows, message: costs.message, name: `cost-${state.metric}` });
  };

  const cells = (found, names) => [names, ...found.cells.map((cell) => names.map((each) => cell[each]))];
  const drawWinner = () => {
    const found = current().winners[state.winner];
    if (!found) return draw("winner", null, {}, {});
    const holes = { cells: found.cells, columns_sort: found.columns, rows_sort: found.rows, x_title: current().x_title };
    const rows = cells(found, ["row", "column", "behind", "mark", "says"]);
    return draw("winner", data.figures.winner, holes, { rows, message: found.message, name: `best-${state.winner}`, height: 26 * found.rows.length });
  };
  const drawBatch = () => {
    const found = data.batches[current().batch];
    if (!found) return draw("batch", null, {}, {});
    const holes = { ...found, columns_sort: found.columns, rows_sort: found.rows };
    const rows = cells(found, ["row", "column", "subject", "level"]);
    return draw("batch", data.figures.batch, holes, { rows, message: found.message, name: "best-by-batch", height: 34 * found.rows.length });
  };
  const drawBreakdown = () => {
    const found = data.breakdowns[state.breakdown];
    if (!found) return Promise.resolve();
    const rows = [["subject", "length", "group", "part", "seconds", "share"], ...found.rows];
    return draw("breakdown", found.specification, null, { rows, message: found.message, name: "breakdown" });
  };

  let drawing = Promise.resolve();
  const redraw = (...tasks) => {
    root.dataset.drawn = "no";
    // One after the other: the first figure is there while the last one is drawn.
    drawing = drawing.then(async () => {
      for (const task of tasks) await task();
      root.dataset.drawn = "yes";
    });
  };

  const choose = (select, values, wanted) => {
    select.replaceChildren(...values.map((value) => new Option(words(value), value)));
    select.value = values.includes(wanted) ? wanted : values[0];
    select.closest("p").hidden = values.length < 2;
    return select.value;
  };
  const showMetric = () => {
    for (const each of all(".numbers")) each.hidden = each.dataset.metric !== state.metric;
  };
  const showBlock = () => {
    const every = document.getElementById("all-settings");
    for (const each of all(".block")) each.hidden = Number(each.dataset.block) !== state.block;
    const several = Boolean(every && every.checked);
    for (const each of all("#tips tbody tr")) each.hidden = !several && Number(each.dataset.block) !== state.block;
    // What all rows have in common stands above the table already.
    for (const each of all("#tips .facet")) each.hidden = !several;
    for (const each of all(".batch-table")) each.hidden = Number(each.dataset.batch) !== current().batch;
    state.metric = choose(document.getElementById("metric"), Object.keys(current().costs), state.metric);
    const winners = Object.keys(current().winners);
    if (winners.length) state.winner = choose(document.getElementById("winner-metric"), winners, state.winner);
    all("[data-baseline]").forEach((each) => { each.textContent = current().baseline; });
    showMetric();
    all("[data-facet]").forEach((select, place) => { select.value = current().facets[place]; });
    const status = document.getElementById("shown");
    if (status) status.textContent = current().where;
  };
  const showBreakdown = () => {
    for (const each of all(".broken-down")) each.hidden = Number(each.dataset.breakdown) !== state.breakdown;
  };

  // The setting that has the choice just made, and most of the other choices.
  const nearest = (place) => {
    const wanted = all("[data-facet]").map((select) => select.value);
    const likeness = (each) =>
      each.facets.reduce((sum, value, at) => sum + (value === wanted[at] ? (at === place ? 1000 : 1) : 0), 0);
    const likes = data.comparisons.map(likeness);
    return likes.indexOf(Math.max(...likes));
  };
  all("[data-facet]").forEach((select, place) => select.addEventListener("change", () => {
    state.block = nearest(place);
    showBlock();
    redraw(drawCost, drawWinner, drawBatch);
  }));
  const on = (id, event, act) => { const element = document.getElementById(id); if (element) element.addEventListener(event, act); };
  on("metric", "change", (event) => { state.metric = event.target.value; showMetric(); redraw(drawCost); });
  on("winner-metric", "change", (event) => { state.winner = event.target.value; redraw(drawWinner); });
  on("breakdown-choice", "change", (event) => {
    state.breakdown = event.target.selectedIndex; showBreakdown(); redraw(drawBreakdown);
  });
  on("all-settings", "change", showBlock);

  const isDark = () => (root.dataset.theme === "auto"
    ? window.matchMedia("(prefers-color-scheme: dark)").matches : root.dataset.theme === "dark");
  const sayTheme = () => document.getElementById("theme").setAttribute("aria-pressed", String(isDark()));
  on("theme", "click", () => { root.dataset.theme = isDark() ? "light" : "dark"; sayTheme(); });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", sayTheme);

  for (const [place, head] of all("#tips thead th").entries()) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const up = head.getAttribute("aria-sort") !== "ascending";
      all("#tips thead th").forEach((each) => each.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      const numeric = "numeric" in head.dataset;
      const key = (row) => (numeric ? row.cells[place].dataset.value : row.cells[place].textContent.trim());
      const body = one("#tips tbody");
      const rows = all("tr", body).sort((first, second) => {
        const [a, b] = [key(first), key(second)];
        if (a === "" || b === "") return (a === "") - (b === "");  // what has no value stands last
        const order = numeric ? Number(a) - Number(b) : a.localeCompare(b, "en", { numeric: true });
        return up ? order : -order;
      });
      body.replaceChildren(...rows);
    });
  }

  // A spreadsheet takes a text that begins so for a formula.
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    let text = String(value);
    if (typeof value !== "number" && /^[=+\-@\t\r\n]/.test(text)) text = `'${text}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const csv = (rows) => rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
  const save = (blob, name) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = name;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  const png = async (view) => {
    const address = await view.toImageURL("png", 3);
    const bytes = Uint8Array.from(atob(address.slice(address.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
    return new Blob([bytes], { type: "image/png" });
  };
  all("[data-download]").forEach((button) => button.addEventListener("click", async () => {
    const { view, rows, name } = shown[button.dataset.figure];
    const kind = button.dataset.download;
    if (kind === "csv") save(new Blob([csv(rows)], { type: "text/csv" }), `${name}.csv`);
    else if (kind === "png") save(await png(view), `${name}.png`);
    else save(new Blob([await view.toSVG()], { type: "image/svg+xml" }), `${name}.svg`);
  }));

  let width = root.clientWidth, waiting = 0;
  window.addEventListener("resize", () => {
    if (root.clientWidth === width) return;
    width = root.clientWidth;
    clearTimeout(waiting);
    waiting = setTimeout(() => redraw(drawCost, drawWinner, drawBatch), 200);
  });

  showBlock();
  showBreakdown();
  sayTheme();
  redraw(drawCost, drawWinner, drawBatch, drawBreakdown);
})();
