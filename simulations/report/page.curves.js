// Curves of accuracy and of strategies' own metrics, and how the clients fare. Each function draws
// from plain values; which setting and which strategies are drawn, page.js says.
const curvePlots = (() => {
  const { byId, colour, draw, narrow, pct, plain } = plots;

  // Round 1 is where a curve begins, so the axis and its numbers do, too.
  function roundAxis(last) {
    const raw = last / (narrow() ? 4 : 8);
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = Math.max(1, [1, 2, 5, 10].find((factor) => factor * power >= raw) * power);
    const tickvals = [1];
    for (let tick = step; tick <= last; tick += step) if (tick - 1 >= 0.6 * step) tickvals.push(tick);
    const pad = last > 1 ? 0.02 * (last - 1) : 0.5;
    return { title: { text: "round" }, range: [1 - pad, last + pad], tickvals };
  }

  // 1, 2, 5, 10, ... or fewer: a log axis writes its numbers over each other otherwise.
  function byteTicks(entries) {
    const sent = entries.flatMap(({ uplink }) => uplink.filter((bytes) => bytes > 0));
    if (!sent.length) return [];
    const [first, last] = [Math.min(...sent), Math.max(...sent)];
    const room = byId("plot-uplink").clientWidth / 60;
    for (const steps of [[1, 2, 5], [1, 3], [1]]) {
      const ticks = [];
      for (let power = 10 ** Math.floor(Math.log10(first)); power <= last; power *= 10)
        ticks.push(...steps.map((step) => step * power).filter((tick) => tick >= 0.7 * first && tick <= 1.4 * last));
      // In logarithms: two ticks may be near while the axis is long.
      const nearest = steps.length === 1 ? 1 : steps.length === 2 ? Math.log10(3) : Math.log10(2);
      if (Math.log10(last / first) / nearest < room - 1 || steps.length === 1) return ticks;
    }
  }

  function curveTraces(entries, x, unit) {
    const traces = [];
    for (const entry of entries) {
      const name = `series-${entry.colour}`;
      const all = x(entry);
      // A log axis has no place for rounds before the first byte.
      const start = all.findIndex((value) => value > 0);
      const [xs, ys] = [all.slice(start), entry.accuracy.slice(start)];
      const [low, high] = [entry.low.slice(start), entry.high.slice(start)];
      const single = xs.length === 1;
      if (!single) {
        traces.push({
          x: [...xs, ...xs.toReversed()],
          y: [...high, ...low.toReversed()],
          fill: "toself",
          fillcolor: colour(name, entries.length === 1 ? 0.22 : 0.13),
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
        error_y: single
          ? { type: "data", symmetric: false, array: [high[0] - ys[0]], arrayminus: [ys[0] - low[0]], thickness: 1.5 }
          : undefined,
        text: xs.map(() => plain(entry.label)),
        customdata: xs.map((_, i) => `${pct(low[i])} to ${pct(high[i])}`),
        hovertemplate: `%{text}<br>%{y:.1%} (%{customdata}) at ${unit}<extra></extra>`,
      });
    }
    return traces;
  }

  function curves(setting, entries) {
    const rules = setting.yardsticks.map(({ value, dash }) => ({
      type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, layer: "below",
      line: { color: colour("muted", 0.9), width: 1.2, dash },
    }));
    const values = setting.yardsticks.map(({ value }) => value);
    for (const { low, high } of entries) values.push(...low, ...high);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const pad = 0.04 * (high - low) + 0.002;
    const yaxis = { tickformat: high - low < 0.05 ? ".1%" : ".0%", range: [Math.max(-0.005, low - pad), Math.min(1.005, high + pad)] };
    const says = entries.map(({ label, accuracy }) =>
      `${label}: ${pct(accuracy[0])} after round 1, ${pct(accuracy.at(-1))} after round ${accuracy.length}`).join("; ");
    const rounds = (entry) => entry.accuracy.map((_, i) => i + 1);
    const last = Math.max(1, ...entries.map(({ accuracy }) => accuracy.length));
    draw("plot-rounds", `Accuracy against rounds. ${says}.`, curveTraces(entries, rounds, "round %{x}"), { yaxis, xaxis: roundAxis(last), shapes: rules });
    if (!byId("plot-uplink")) return;
    const counted = entries.filter(({ uplink }) => uplink.length); // a private run may not tell
    draw("plot-uplink", `Accuracy against bytes sent by clients. ${says}.`, curveTraces(counted, (entry) => entry.uplink, "%{x:.3s}B"), {
      yaxis,
      xaxis: { type: "log", title: { text: "bytes from all clients" }, tickformat: "~s", tickangle: 0, tickvals: byteTicks(entries) },
      shapes: rules,
    });
  }

  function metrics(setting, entries) {
    const section = byId("metrics");
    if (!section) return;
    section.hidden = !setting.metrics.length;
    for (const figure of section.querySelectorAll("figure")) {
      const name = figure.dataset.metric;
      const shown = entries.filter((one) => one.metrics[name]);
      figure.hidden = !shown.length;
      if (!shown.length) continue;
      const traces = shown.map((entry) => ({
        x: entry.metrics[name].rounds,
        y: entry.metrics[name].values,
        mode: entry.metrics[name].rounds.length <= 12 ? "lines+markers" : "lines",
        line: { color: colour(`series-${entry.colour}`), width: 2.2, dash: entry.dash },
        marker: { size: 6 },
        text: entry.metrics[name].rounds.map(() => plain(entry.label)),
        hovertemplate: "%{text}<br>%{y:.4g} at round %{x}<extra></extra>",
      }));
      const last = Math.max(1, ...shown.map((entry) => entry.metrics[name].rounds.at(-1) ?? 1));
      const says = shown.map((entry) => `${entry.label}: ${entry.metrics[name].values.at(-1)} at the end`).join("; ");
      draw(`plot-metric-${name}`, `${name} against rounds. ${says}.`, traces, { xaxis: roundAxis(last) });
    }
  }

  const boxSays = (label, box) =>
    `${label}: worst ${pct(box[0])}, 10th percentile ${pct(box[1])}, median ${pct(box[3])}, mean ${pct(box[6])}, best ${pct(box[5])}`;

  function clients(setting) {
    const rows = setting.entries.flatMap((entry) => [
      { entry, box: entry.clients, spread: entry.spread, label: entry.label },
      { entry, box: entry.personal, spread: entry.personal_spread, label: `${entry.label}, personal heads` },
    ]).filter(({ box }) => box);
    const section = byId("plot-clients").parentElement;
    section.hidden = section.previousElementSibling.hidden = !rows.length;
    if (!rows.length) return;
    const says = rows.map(({ label, box }) => boxSays(label, box)).join("; ");
    // One strategy: how many clients are how well off. A box alone would show less.
    if (setting.entries.length === 1) histogram(rows, says);
    else boxes(rows, says);
  }

  function histogram(rows, says) {
    const traces = rows.map(({ entry, spread, label }, i) => ({
      type: "bar",
      x: spread.map((_, k) => (k + 0.5) / spread.length),
      y: spread,
      name: plain(label),
      marker: { color: colour(`series-${(entry.colour + 2 * i) % 6}`, 0.75) },
      customdata: spread.map((_, k) => `${100 * k / spread.length} to ${100 * (k + 1) / spread.length} %`),
      hovertemplate: `${plain(label)}<br>%{y} clients with %{customdata}<extra></extra>`,
    }));
    const mark = (value, dash) => ({
      type: "line", yref: "paper", y0: 0, y1: 1, x0: value, x1: value, line: { color: colour("ink"), width: 1.4, dash },
    });
    const [{ box, spread }] = rows;
    const first = Math.min(...rows.map((row) => row.spread.findIndex((count) => count)));
    draw("plot-clients", says, traces, {
      height: 260,
      bargap: 0.08,
      showlegend: rows.length > 1,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom" },
      shapes: [mark(box[1], "dot"), mark(box[3], "dash")],
      xaxis: { title: { text: "accuracy on the client's own test images" }, tickformat: ".0%", range: [first / spread.length - 0.05, 1.05], tick0: 0, dtick: (first > 0.6 * spread.length ? 0.05 : 0.1) * (narrow() ? 2 : 1) },
      yaxis: { title: { text: "clients", standoff: 10 }, rangemode: "tozero", tickformat: "d", nticks: 5 },
    });
  }

  function boxes(rows, says) {
    const y = rows.map((_, i) => i);
    const traces = rows.map(({ entry, box }, i) => ({
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
      text: rows.map(({ box, label }) => boxSays(plain(label), box).replaceAll(/[:,] (?=worst|median|best)/g, "<br>")),
      hovertemplate: "%{text}<extra></extra>",
    });
    const lowest = Math.min(...rows.map(({ box }) => box[0]));
    // A phone has no room beside the boxes for names: they stand above.
    const above = narrow();
    draw("plot-clients", says, traces, {
      height: 70 + (above ? 48 : 30) * rows.length,
      xaxis: { tickformat: ".0%", range: [lowest - 0.02, 1.01], nticks: above ? 5 : 11 },
      yaxis: {
        range: [rows.length - 0.5, above ? -0.9 : -0.5], showgrid: false, tickvals: y,
        ticktext: rows.map(({ label }) => plain(label)), tickfont: { color: colour("ink") }, showticklabels: !above,
      },
      annotations: above ? rows.map(({ label }, i) => ({
        text: plain(label), xref: "paper", x: 0, xanchor: "left", y: i, yshift: 20, showarrow: false,
        font: { size: 11, color: colour("ink") },
      })) : [],
    });
  }

  return { curves, metrics, clients };
})();
