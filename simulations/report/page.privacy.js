// Accuracy against epsilon: a line for each strategy, and a dashed one for the same without privacy.
const privacyPlot = (() => {
  const { byId, colour, draw, narrow, pct, plain, short } = plots;
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "pentagon", "hexagon"];
  const MOST_NAMES = 14;
  const MARGIN = { l: 54, r: 14, t: 30, b: 48 };
  const pen = document.createElement("canvas").getContext("2d");
  const symbol = ({ number }) => SYMBOLS[number % SYMBOLS.length];

  function range(lines) {
    const logs = lines.flatMap(({ points }) => points.map(({ epsilon }) => Math.log10(epsilon)));
    const [first, last] = [Math.min(...logs), Math.max(...logs)];
    const beside = 0.06 * (last - first) + 0.08;
    return [first - beside, last + beside];
  }

  // All budgets, but those that a narrow screen would write over each other.
  function ticks(lines, [first, last], width) {
    const every = [...new Set(lines.flatMap(({ points }) => points.map(({ epsilon }) => epsilon)))].toSorted((a, b) => a - b);
    const room = (a, b) => (width * Math.log10(b / a)) / (last - first) > 26;
    return every.reduce((kept, value) => (kept.length && !room(kept.at(-1), value) ? kept : [...kept, value]), []);
  }

  function trace(line) {
    const series = `series-${line.colour}`;
    return {
      x: line.points.map(({ epsilon }) => epsilon),
      y: line.points.map(({ accuracy }) => accuracy),
      mode: "lines+markers",
      line: { color: colour(series), width: 2.2 },
      marker: { size: 9, symbol: symbol(line) },
      error_y: {
        type: "data", symmetric: false, thickness: 1.2, width: 3, color: colour(series, 0.5),
        array: line.points.map(({ high, accuracy }) => high - accuracy),
        arrayminus: line.points.map(({ low, accuracy }) => accuracy - low),
      },
      text: line.points.map(({ epsilon, accuracy, low, high }) =>
        `${plain(line.label)}, epsilon ${epsilon}<br>${pct(accuracy)} (${pct(low)} to ${pct(high)})`),
      hovertemplate: "%{text}<extra></extra>",
    };
  }

  // The level without privacy as a line of two ends and a middle, where a pointer finds it.
  function level(line, [first, last]) {
    const { accuracy, low, high } = line.without;
    return {
      x: [first, (first + last) / 2, last].map((log) => 10 ** log),
      y: [accuracy, accuracy, accuracy],
      mode: "lines",
      line: { color: colour(`series-${line.colour}`), width: 1.8, dash: "dash" },
      text: `${plain(line.label)}, without privacy<br>${pct(accuracy)} (${pct(low)} to ${pct(high)})`,
      hovertemplate: "%{text}<extra></extra>",
    };
  }

  const words = ({ label, points, without }) => {
    const parts = points.map(({ epsilon, accuracy }) => `${pct(accuracy)} at ${epsilon}`);
    if (without) parts.push(`${pct(without.accuracy)} without privacy`);
    return `${label}: ${parts.join(", ")}`;
  };

  // Names right of the plot, each beside its line's end and apart from the others. A phone has no
  // room for them: the table below has the colours, too.
  function names(lines, [low, high], tall) {
    if (narrow() || lines.length > MOST_NAMES) return [];
    const ends = lines.map((line) => ({ line, at: (line.points.at(-1) ?? line.without).accuracy }));
    const step = (16 * (high - low)) / tall;
    let above = Infinity;
    const placed = ends.toSorted((a, b) => b.at - a.at).map(({ line, at }) => {
      above = Math.min(at, above - step);
      return { line, at: above };
    });
    // What was pushed out below takes all back up.
    const lift = Math.max(0, low + step / 2 - above);
    return placed.map(({ line, at }) => ({
      xref: "paper", x: 1, y: at + lift, xanchor: "left", xshift: 6, showarrow: false,
      text: `<b>${plain(short(line.label, 34))}</b>`, font: { size: 11.5, color: colour(`series-${line.colour}`) },
    }));
  }

  // Pixels that the widest of them takes.
  function beside(lines) {
    pen.font = `bold 11.5px ${getComputedStyle(document.body).fontFamily}`;
    return Math.max(...lines.map(({ label }) => pen.measureText(short(label, 34)).width));
  }

  function show(setting) {
    if (!window.Plotly) return;
    const lines = setting.budgets;
    const span = range(lines);
    const values = lines.flatMap(({ points, without }) => [...points, ...(without ? [without] : [])]);
    const [least, most] = [Math.min(...values.map(({ low }) => low)), Math.max(...values.map(({ high }) => high))];
    const pad = 0.06 * (most - least) + 0.002;
    const [low, high] = [Math.max(-0.005, least - pad), Math.min(1.01, most + pad)];
    const height = 380;
    const annotations = names(lines, [low, high], height - MARGIN.t - MARGIN.b);
    const margin = annotations.length ? { ...MARGIN, r: MARGIN.r + beside(lines) } : MARGIN;
    const tickvals = ticks(lines, span, byId("plot-privacy").clientWidth - margin.l - margin.r);
    draw("plot-privacy", `Accuracy against epsilon. ${lines.map(words).join(". ")}.`, [
      ...lines.filter(({ without }) => without).map((line) => level(line, span)),
      ...lines.filter(({ points }) => points.length).map(trace),
    ], {
      height,
      margin,
      xaxis: { type: "log", title: { text: "epsilon", standoff: 10 }, range: span, tickvals, ticktext: tickvals.map(String), tickangle: 0, automargin: false },
      yaxis: { range: [low, high], tickformat: high - low < 0.06 ? ".1%" : ".0%", automargin: false },
      annotations,
    });
  }

  return { show };
})();
