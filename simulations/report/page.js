"use strict";
// One file, for the page is one: a browser opens it from a disk, where it may load no other script.
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const byId = (id) => document.getElementById(id);
  const settings = JSON.parse(byId("data").textContent);
  const SHOWN = 6; // curves drawn at first: more are a tangle
  let current = settings[0];
  let drawn = new Set();

  // plotly reads a few HTML tags in every text; names are the user's.
  const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");

  // ---- theme: the system's until the reader chooses
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const remembered = (value) => {
    try {
      if (value) localStorage.setItem("fedhead-theme", value);
      return localStorage.getItem("fedhead-theme");
    } catch {
      return null; // a browser that keeps nothing for files
    }
  };
  if (remembered()) root.dataset.theme = remembered();
  byId("theme").addEventListener("click", () => {
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : dark.matches;
    root.dataset.theme = isDark ? "light" : "dark";
    remembered(root.dataset.theme);
    draw();
  });
  dark.addEventListener("change", () => draw());

  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;
  function colour(name, alpha = 1) {
    probe.style.color = `var(--${name})`;
    const [r, g, b] = getComputedStyle(probe).color.match(/[\d.]+/g);
    return `rgba(${r},${g},${b},${alpha})`;
  }

  // ---- tables
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, index) => {
      head.querySelector("button").addEventListener("click", () => {
        const before = head.ariaSort;
        const rising = before === "none" ? head.dataset.rising === "true" : before !== "ascending";
        for (const other of heads) other.ariaSort = "none";
        head.ariaSort = rising ? "ascending" : "descending";
        const body = table.tBodies[0];
        const value = (row) => row.cells[index].dataset.value;
        const compare = (a, b) => {
          const [x, y] = [value(a), value(b)];
          if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
          const order = isNaN(x) || isNaN(y) ? x.localeCompare(y) : x - y;
          return rising ? order : -order;
        };
        body.append(...[...body.rows].sort(compare));
      });
    });
  }

  for (const button of document.querySelectorAll(".copy")) {
    button.addEventListener("click", async () => {
      const pre = button.nextElementSibling;
      try {
        await navigator.clipboard.writeText(pre.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(pre);
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
  }

  // ---- figures
  const narrow = () => innerWidth < 640;
  // On a touch screen a finger scrolls the page instead of drawing a frame to zoom into.
  const touch = matchMedia("(pointer: coarse)").matches;
  const CONFIG = {
    displaylogo: false,
    displayModeBar: touch ? false : "hover",
    responsive: true,
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "autoScale2d", "resetScale2d"]],
  };

  function layout(extra = {}) {
    const axis = () => ({
      gridcolor: colour("line"),
      linecolor: colour("line"),
      zeroline: false,
      automargin: true,
      ticks: "",
    });
    return {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: colour("muted") },
      hoverlabel: { bgcolor: colour("card"), bordercolor: colour("line"), font: { color: colour("ink") }, align: "left" },
      margin: { l: 8, r: 12, t: touch ? 10 : 30, b: 8 },
      height: 360,
      showlegend: false,
      hovermode: "closest",
      dragmode: touch ? false : "zoom",
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("muted", 0.6), activecolor: colour("accent") },
      ...extra,
      xaxis: { ...axis(), ...extra.xaxis },
      yaxis: { ...axis(), ...extra.yaxis },
    };
  }

  function curves(x, unit) {
    const traces = [];
    for (const entry of current.entries.filter((one) => drawn.has(one.label))) {
      const name = `series-${entry.colour}`;
      const all = x(entry);
      // A log axis has no place for rounds before the first byte.
      const start = all.findIndex((value) => value > 0);
      const [xs, ys] = [all.slice(start), entry.accuracy.slice(start)];
      const [low, high] = [entry.low?.slice(start), entry.high?.slice(start)];
      const single = xs.length === 1;
      if (low && !single) {
        traces.push({
          x: [...xs, ...xs.toReversed()],
          y: [...high, ...low.toReversed()],
          fill: "toself",
          fillcolor: colour(name, 0.13),
          line: { width: 0 },
          mode: "lines",
          hoverinfo: "skip",
        });
      }
      traces.push({
        x: xs,
        y: ys,
        mode: xs.length <= 12 ? "lines+markers" : "lines",
        line: { color: colour(name), width: 2.2, dash: entry.dash },
        marker: { size: 6 },
        error_y: single && low
          ? { type: "data", symmetric: false, array: [high[0] - ys[0]], arrayminus: [ys[0] - low[0]], thickness: 1.5 }
          : undefined,
        text: xs.map(() => plain(entry.label)),
        hovertemplate: `%{text}<br>%{y:.1%} at ${unit}<extra></extra>`,
      });
    }
    return traces;
  }

  function rules() {
    return current.yardsticks.map(({ value, dash }) => ({
      type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, layer: "below",
      line: { color: colour("muted", 0.9), width: 1.2, dash },
    }));
  }

  // Where the curves have settled: what comes before would flatten the differences.
  function settled() {
    const values = current.yardsticks.map(({ value }) => value);
    for (const entry of current.entries.filter((one) => drawn.has(one.label))) {
      const start = Math.floor(entry.accuracy.length / 4);
      values.push(...(entry.low ?? entry.accuracy).slice(start), ...(entry.high ?? []).slice(start));
    }
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const pad = 0.06 * (high - low) + 0.002;
    return [Math.max(0, low - pad), Math.min(1.005, high + pad)];
  }

  function drawCurves() {
    const yaxis = { tickformat: ".0%", range: settled() };
    const rounds = (entry) => entry.accuracy.map((_, i) => i + 1);
    Plotly.react("plot-rounds", curves(rounds, "round %{x}"), layout({ yaxis, xaxis: { title: { text: "round" }, rangemode: "tozero" }, shapes: rules() }), CONFIG);
    Plotly.react("plot-uplink", curves((entry) => entry.uplink, "%{x:.3s}B"), layout({
      yaxis,
      xaxis: { type: "log", title: { text: "bytes from all clients" }, tickformat: "~s", ...(narrow() ? { nticks: 5 } : { dtick: "D2" }) },
      shapes: rules(),
    }), CONFIG);
  }

  function drawMetrics() {
    const section = byId("metrics");
    if (!section) return;
    section.hidden = !current.metrics.length;
    for (const figure of section.querySelectorAll("figure")) {
      const name = figure.dataset.metric;
      const entries = current.entries.filter((one) => drawn.has(one.label) && one.metrics[name]);
      figure.hidden = !entries.length;
      if (!entries.length) continue;
      const traces = entries.map((entry) => ({
        x: entry.metrics[name].rounds,
        y: entry.metrics[name].values,
        mode: entry.metrics[name].rounds.length <= 12 ? "lines+markers" : "lines",
        line: { color: colour(`series-${entry.colour}`), width: 2.2, dash: entry.dash },
        marker: { size: 6 },
        text: entry.metrics[name].rounds.map(() => plain(entry.label)),
        hovertemplate: "%{text}<br>%{y:.4g} at round %{x}<extra></extra>",
      }));
      Plotly.react(`plot-metric-${name}`, traces, layout({ xaxis: { title: { text: "round" }, rangemode: "tozero" } }), CONFIG);
    }
  }

  function drawClients() {
    const rows = current.entries.flatMap((entry) => [
      { entry, box: entry.clients, label: entry.label },
      { entry, box: entry.personal, label: `${entry.label}, personal heads` },
    ]).filter(({ box }) => box);
    const section = byId("plot-clients").parentElement;
    section.hidden = section.previousElementSibling.hidden = !rows.length;
    if (!rows.length) return;
    const y = rows.map((_, i) => i);
    const traces = rows.map(({ entry, box, label }, i) => ({
      type: "box",
      orientation: "h",
      y: [i],
      lowerfence: [box[0]], q1: [box[2]], median: [box[3]], q3: [box[4]], upperfence: [box[5]],
      line: { color: colour(`series-${entry.colour}`), width: 1.6 },
      fillcolor: colour(`series-${entry.colour}`, 0.18),
      hoverinfo: "skip",
      width: 0.55,
    }));
    traces.push({
      x: rows.map(({ box }) => box[1]),
      y,
      mode: "markers",
      marker: { symbol: "diamond", size: 8, color: colour("ink") },
      text: rows.map(({ box, label }) =>
        `${plain(label)}<br>worst ${pct(box[0])}, 10th percentile ${pct(box[1])}<br>` +
        `median ${pct(box[3])}, mean ${pct(box[6])}, best ${pct(box[5])}`),
      hovertemplate: "%{text}<extra></extra>",
    });
    const lowest = Math.min(...rows.map(({ box }) => box[0]));
    // A phone has no room beside the boxes for names: they stand above.
    const above = narrow();
    Plotly.react("plot-clients", traces, layout({
      height: 70 + (above ? 48 : 30) * rows.length,
      xaxis: { tickformat: ".0%", range: [lowest - 0.02, 1.01] },
      yaxis: {
        range: [rows.length - 0.5, above ? -0.9 : -0.5], showgrid: false, tickvals: y,
        ticktext: rows.map(({ label }) => plain(label)), tickfont: { color: colour("ink") }, showticklabels: !above,
      },
      annotations: above ? rows.map(({ label }, i) => ({
        text: plain(label), xref: "paper", x: 0, xanchor: "left", y: i, yshift: 20, showarrow: false,
        font: { size: 11, color: colour("ink") },
      })) : [],
    }), CONFIG);
  }
  const pct = (share) => `${(100 * share).toFixed(1)} %`;

  function heatmap(id, z, { x, y, hover, text, xtitle, ytitle, height, xticks = true }) {
    const names = (values) => ({ tickvals: values.map((_, i) => i), ticktext: values.map(plain) });
    const few = (values) => (values.length <= 24 ? names(values) : {});
    Plotly.react(id, [{
      type: "heatmap", z, text: hover, hovertemplate: "%{text}<extra></extra>", hoverongaps: false,
      colorscale: [[0, colour("series-0", 0)], [1, colour("series-0", 0.75)]], zmin: 0,
      showscale: false, xgap: z[0].length <= 60 ? 1 : 0, ygap: 1,
    }], layout({
      height,
      xaxis: { title: { text: xtitle }, showgrid: false, ...(xticks ? few(x) : { showticklabels: false }), tickangle: x.some((v) => String(v).length > 3) ? -45 : 0 },
      yaxis: { title: { text: ytitle }, showgrid: false, autorange: "reversed", ...few(y) },
      annotations: text ?? [],
    }), CONFIG);
  }

  function drawConfusion() {
    const { confusion, classes } = current;
    byId("plot-confusion").parentElement.hidden = !confusion;
    if (!confusion) return;
    const totals = confusion.map((row) => row.reduce((a, b) => a + b, 0));
    const share = (i, j) => (totals[i] ? confusion[i][j] / totals[i] : 0);
    const each = (f) => confusion.map((row, i) => row.map((n, j) => f(n, i, j)));
    const text = [];
    if (classes.length <= 20) {
      each((n, i, j) => {
        if (!n) return;
        text.push({ x: j, y: i, showarrow: false, text: String(n), font: { size: narrow() ? 9 : 11, color: colour(i === j ? "muted" : "ink") } });
      });
    }
    heatmap("plot-confusion", each((_, i, j) => (i === j ? null : share(i, j))), {
      x: classes, y: classes, xtitle: "taken for", ytitle: "true class", height: 460, text,
      hover: each((n, i, j) => `${plain(classes[i])} taken for ${plain(classes[j])}<br>${n} of ${totals[i]} (${pct(share(i, j))})`),
    });
  }

  function drawPartition() {
    const { partition, classes } = current;
    byId("partition").hidden = !partition;
    if (!partition) return;
    const { ids, counts } = partition;
    const few = ids.length < partition.all ? `${ids.length} of ` : "";
    // Square roots: a few large holdings would leave all others pale.
    heatmap("plot-partition", counts.map((row) => row.map(Math.sqrt)), {
      x: ids, y: classes, xticks: false, height: 460,
      xtitle: `${few}${partition.all} clients`, ytitle: "class",
      hover: counts.map((row, k) => row.map((n, i) => `client ${ids[i]}<br>${n} of class ${plain(classes[k])}`)),
    });
  }

  // ---- what is drawn
  function chips() {
    const box = byId("chips");
    const rows = document.querySelectorAll(`.setting[data-setting="${settings.indexOf(current)}"] tbody th`);
    const swatches = new Map([...rows].map((head) => [head.dataset.value, head.querySelector("svg")]));
    const buttons = current.entries.map((entry) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(swatches.get(entry.label).cloneNode(true), entry.label);
      button.ariaPressed = drawn.has(entry.label);
      button.addEventListener("click", () => {
        if (!drawn.delete(entry.label)) drawn.add(entry.label);
        button.ariaPressed = drawn.has(entry.label);
        drawCurves();
        drawMetrics();
      });
      return button;
    });
    const all = document.createElement("button");
    all.type = "button";
    all.className = "all";
    const some = current.entries.length > drawn.size;
    all.textContent = some ? `all ${current.entries.length}` : `best ${SHOWN}`;
    all.addEventListener("click", () => {
      drawn = new Set(current.entries.slice(0, some ? undefined : SHOWN).map((entry) => entry.label));
      chips();
      drawCurves();
      drawMetrics();
    });
    box.replaceChildren(...buttons, ...(current.entries.length > SHOWN ? [all] : []));
  }

  function draw() {
    if (!window.Plotly) return;
    drawCurves();
    drawMetrics();
    if (byId("plot-clients")) drawClients();
    drawConfusion();
    if (byId("plot-partition")) drawPartition();
  }

  function choose(index) {
    current = settings[index];
    drawn = new Set(current.entries.slice(0, SHOWN).map((entry) => entry.label));
    for (const box of document.querySelectorAll(".setting")) box.hidden = Number(box.dataset.setting) !== index;
    chips();
    draw();
  }

  byId("setting")?.addEventListener("change", (event) => choose(Number(event.target.value)));
  choose(0);

  async function unpack() {
    const packed = Uint8Array.from(atob(byId("plotly").textContent), (c) => c.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    draw();
  }
  unpack().catch((error) => {
    for (const plot of document.querySelectorAll(".plot")) plot.textContent = `This browser cannot draw the figure (${error}).`;
  });
})();
