// Accuracy against epsilon: a line for each strategy, and a dashed one for the same without privacy.
const privacyPlot = (() => {
  const { byId, colour, draw, narrow, pct, plain, short } = plots;
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "pentagon", "hexagon"];
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

  // Names behind the last mark of each line, apart from each other.
  function names(lines, span, low, high, height) {
    const ends = lines.filter(({ points }) => points.length).map((line) => ({ line, ...line.points.at(-1) }));
    const step = (17 * (high - low)) / height;
    let above = Infinity;
    return ends.toSorted((a, b) => b.accuracy - a.accuracy).map(({ line, epsilon, accuracy }) => {
      const at = Math.min(accuracy, above - step);
      above = at;
      return {
        x: Math.log10(epsilon), y: at, xanchor: "right", yanchor: "bottom", xshift: -8, yshift: 2, showarrow: false,
        text: `<b>${plain(short(line.label, narrow() ? 24 : 44))}</b>`, font: { size: 11.5, color: colour(`series-${line.colour}`) },
      };
    });
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
    const tickvals = ticks(lines, span, byId("plot-privacy").clientWidth - 70);
    draw("plot-privacy", `Accuracy against epsilon. ${lines.map(words).join(". ")}.`, [
      ...lines.filter(({ without }) => without).map((line) => level(line, span)),
      ...lines.filter(({ points }) => points.length).map(trace),
    ], {
      height,
      xaxis: { type: "log", title: { text: "epsilon" }, range: span, tickvals, ticktext: tickvals.map(String), tickangle: 0 },
      yaxis: { range: [low, high], tickformat: high - low < 0.06 ? ".1%" : ".0%" },
      annotations: lines.length > 1 && lines.length < 7 ? names(lines, span, low, high, height - 70) : [],
    });
  }

  return { show };
})();
