// Tables of counts as coloured cells: which class is taken for which, and who holds what.
const cellPlots = (() => {
  const { byId, colour, draw, narrow, pct, plain, short } = plots;

  // Names along an axis, as many as its length has room for: every one, every second, ...
  function names(values, pixels, needed) {
    const step = Math.max(1, Math.ceil((needed * values.length) / pixels));
    const shown = values.map((value, i) => [i, short(String(value), narrow() ? 11 : 18)]).filter(([i]) => i % step === 0);
    return { tickvals: shown.map(([i]) => i), ticktext: shown.map(([, name]) => plain(name)) };
  }

  // Cells in the page's blues; what is null has no colour, and no colour means none.
  function heatmap(id, says, z, { x, y, hover, counts, xtitle, ytitle, height, xticks = true, traces = [], ...more }) {
    const most = narrow() ? 11 : 18;
    const letters = Math.min(most, Math.max(...y.map((name) => String(name).length)));
    const wide = Math.max(80, byId(id).clientWidth - 6.6 * letters - 80);
    const cell = wide / x.length;
    const flat = x.every((name) => 7 * Math.min(most, String(name).length) + 6 < cell);
    const font = Math.min(11, Math.max(9, (height - 110) / y.length - 2));
    const text = cell < 22 || !counts ? [] : counts.flatMap((row, i) => row.map((n, j) => ({
      x: j, y: i, showarrow: false, text: n ? String(n) : "", font: { size: cell < 30 ? 9 : 11, color: colour("ink") },
    }))).filter(({ text }) => text);
    draw(id, says, [{
      type: "heatmap", z, text: hover, hovertemplate: "%{text}<extra></extra>", hoverongaps: false,
      colorscale: [[0, colour("heat-few")], [1, colour("heat-many")]], zmin: 0, zmax: 1,
      showscale: false, xgap: x.length <= 60 ? 1 : 0, ygap: 1,
    }, ...traces], {
      height,
      xaxis: {
        title: { text: xtitle, standoff: 10 }, showgrid: x.length > 12, range: [-0.5, x.length - 0.5], tickangle: flat ? 0 : -90, tickfont: { size: font },
        ...(xticks ? names(x, wide, flat ? 1 : 12) : { showticklabels: false }),
      },
      yaxis: { title: { text: ytitle, standoff: 10 }, showgrid: y.length > 12, range: [y.length - 0.5, -0.5], tickfont: { size: font }, ...names(y, height - 110, 11) },
      annotations: text,
      ...more,
    });
  }

  function confusion({ confusion: { names: classes, counts, shades } }) {
    const totals = counts.map((row) => row.reduce((a, b) => a + b, 0));
    const each = (f) => counts.map((row, i) => row.map((n, j) => f(n, i, j)));
    const share = (n, i) => `${n} of ${totals[i]} (${pct(totals[i] ? n / totals[i] : 0)})`;
    const hover = each((n, i, j) => plain(i === j ? `${classes[i]}: ${share(n, i)} right` : `${classes[i]} taken for ${classes[j]}`)
      + (i === j ? "" : `<br>${share(n, i)}`));
    const height = Math.max(narrow() ? 400 : 460, 15 * classes.length + 130);
    const right = {
      type: "heatmap", z: each((n, i, j) => (i === j && n ? 1 : null)), text: hover, hovertemplate: "%{text}<extra></extra>",
      hoverongaps: false, colorscale: [[0, colour("right")], [1, colour("right")]], showscale: false,
      xgap: classes.length <= 60 ? 1 : 0, ygap: 1,
    };
    // An axis shows only beside something that is drawn on it.
    const beside = { x: [0], y: [0], yaxis: "y2", mode: "markers", marker: { opacity: 0 }, hoverinfo: "skip" };
    const wrong = counts.reduce((sum, row, i) => sum + totals[i] - row[i], 0);
    const all = totals.reduce((a, b) => a + b, 0);
    heatmap("plot-confusion", `Confusion matrix of ${classes.length} classes: ${wrong} mistakes on ${all} test images. The table that follows has a line for each class.`,
      each((_, i, j) => shades[i][j] || null), {
        x: classes, y: classes, xtitle: "answer", ytitle: "true class", height, hover, counts, traces: [right, beside],
        yaxis2: {
          overlaying: "y", side: "right", matches: "y", title: { text: "test images", font: { size: 11 }, standoff: 8 }, showgrid: false, zeroline: false,
          automargin: true, ticks: "", tickvals: totals.map((_, i) => i), ticktext: totals.map((n) => n.toLocaleString("en")),
          tickfont: { size: classes.length > 24 ? 9 : 11, color: colour("ink") }, range: [classes.length - 0.5, -0.5],
        },
      });
  }

  function partition({ partition: held, classes }) {
    byId("partition").hidden = !held;
    if (!held) return;
    const { ids, counts, all, most } = held;
    const few = ids.length < all ? `${ids.length} of ` : "";
    // Square roots: a few large holdings would leave all others pale.
    heatmap("plot-partition", `Training images of ${classes.length} classes on ${few}${all} clients, ${most} at most of one class on one client.`,
      counts.map((row) => row.map((n) => (n ? Math.sqrt(n / most) : null))), {
        x: ids, y: classes, xticks: ids.length <= 24, height: Math.max(300, 13 * Math.min(classes.length, 60) + 110), counts,
        xtitle: ids.length <= 24 ? "client" : `${few}${all} clients`, ytitle: "class",
        hover: counts.map((row, k) => row.map((n, i) => `client ${ids[i]}<br>${n} of class ${plain(classes[k])}`)),
      });
  }

  return { confusion, partition };
})();
