// Accuracy against bytes: a mark for each row, its name beside it, and the front as a line of steps.
const bytesPlot = (() => {
  const { byId, bytes, colour, draw, narrow, pct, plain, short } = plots;
  const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "star", "pentagon", "hexagon"];
  const MARGIN = { l: 54, r: 14, t: 30, b: 48 };
  const RADII = [0, 8, 18, 30, 44, 60, 80, 104, 130];
  const PARTS = [0.15, 0.25, 0.35, 0.45, 0.55, 0.65, 0.75]; // of the way from a mark to its name
  const STEPS = [[1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]];
  const NAMED = 8; // marks on a phone that all have names
  const pen = document.createElement("canvas").getContext("2d");
  let [setting, counted] = [undefined, 0];

  // What is drawn: rows that sent anything, for a log axis has no place for the others.
  function marks() {
    const { rows, traffics } = setting.bytes;
    const { costs, front } = traffics[counted];
    const strategies = [...new Set(rows.map(({ strategy }) => strategy))];
    const every = rows.map((row, i) => ({
      ...row,
      cost: costs[i],
      front: front[i],
      colour: setting.entries[i].colour,
      symbol: SYMBOLS[strategies.indexOf(row.strategy) % SYMBOLS.length],
      // Of one strategy its name would be in the way.
      name: short(strategies.length > 1 ? row.label : row.label.replace(`${row.strategy} · `, ""), narrow() ? 28 : 44),
    })).filter(({ cost }) => cost > 0);
    if (!narrow() || every.length <= NAMED) return every;
    const hollow = every.filter((mark) => !mark.front).toSorted((a, b) => a.cost - b.cost);
    return every.map((mark) => ({ ...mark, number: hollow.indexOf(mark) + 1 }));
  }

  // A phone has no room for all names: hollow marks have numbers, and their names stand below.
  function numbers(shown) {
    const lines = shown.filter(({ number }) => number).toSorted((a, b) => a.number - b.number).map(({ number, name }) => {
      const line = document.createElement("span");
      line.append(Object.assign(document.createElement("b"), { className: "mark", textContent: number }), name);
      return line;
    });
    byId("bytes-numbers").replaceChildren(...lines);
  }

  // From the front's whiskers as far down again, at most: a row that failed would flatten all others.
  function heights(shown) {
    const rules = setting.yardsticks.map(({ value }) => value);
    const high = Math.max(...rules, ...shown.map((mark) => mark.high));
    const ends = shown.filter(({ front }) => front).map((mark) => mark.low);
    const least = Math.min(...rules, ...(ends.length ? ends : shown.map((mark) => mark.low)));
    const low = Math.max(Math.min(...rules, ...shown.map((mark) => mark.low)), least - (high - least));
    const pad = 0.002 + 0.05 * (high - low);
    return [Math.max(-0.005, low - pad), Math.min(1.01, high + 2 * pad)];
  }

  // What lies below has its accuracy behind its name, and a mark at the lower edge.
  function lifted(mark, [low, high]) {
    const floor = low + 0.03 * (high - low);
    if (mark.accuracy >= low) return { ...mark, at: mark.accuracy };
    return { ...mark, at: floor, below: true, symbol: "triangle-down", name: `${mark.name}, ${pct(mark.accuracy)}` };
  }

  function ticks({ x, wide }) {
    const [first, last] = x;
    for (const steps of STEPS) {
      const found = [];
      for (let power = Math.floor(first); power <= last; power += 1) found.push(...steps.map((step) => step * 10 ** power));
      const logs = found.map(Math.log10).filter((log) => log >= first && log <= last);
      const gaps = logs.slice(1).map((log, i) => (wide * (log - logs[i])) / (last - first));
      if (Math.min(...gaps) > 58 || steps.length === 1) return logs.map((log) => Number((10 ** log).toPrecision(2)));
    }
  }

  // The axes' ranges, and where they put a point: the margins are fixed, so that names find room.
  function frame(shown, width, height) {
    const logs = shown.map(({ cost }) => Math.log10(cost));
    const [first, last] = [Math.min(...logs), Math.max(...logs)];
    const beside = 0.06 * (last - first) + 0.12;
    const x = [first - beside, last + beside];
    const y = heights(shown);
    const [wide, tall] = [width - MARGIN.l - MARGIN.r, height - MARGIN.t - MARGIN.b];
    return {
      x, y, wide, tall,
      right: (cost) => (wide * (Math.log10(cost) - x[0])) / (x[1] - x[0]),
      down: (value) => (tall * (y[1] - value)) / (y[1] - y[0]),
    };
  }

  // The front from its cheapest row to the right edge, as corners of its steps.
  function steps(shown, { x, y }) {
    const front = shown.filter((mark) => mark.front).toSorted((a, b) => a.cost - b.cost || a.accuracy - b.accuracy);
    if (!front.length) return [];
    return [[front[0].cost, y[0]], ...front.map(({ cost, accuracy }) => [cost, accuracy]), [10 ** x[1], front.at(-1).accuracy]];
  }

  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  const around = (x, y, width, height) => ({ left: x - width / 2, right: x + width / 2, top: y - height / 2, bottom: y + height / 2 });

  // A place for each name: the nearest that covers no mark and no name, and few lines. Of the orders
  // in which names may choose, the one that leads to the shortest ways.
  function named(shown, corners, area) {
    const size = narrow() ? 10.5 : 11.5;
    const points = shown.map((mark) => {
      const [x, y] = [area.right(mark.cost), area.down(mark.at)];
      return { mark, x, y, box: around(x, y, 13, 13), ...extent(mark, size) };
    });
    const lines = drawnLines(shown, corners, area);
    const byCost = points.toSorted((a, b) => b.mark.front - a.mark.front || a.mark.cost - b.mark.cost);
    const byHeight = points.toSorted((a, b) => b.mark.front - a.mark.front || a.y - b.y);
    const tried = [byCost, byCost.toReversed(), byHeight, byHeight.toReversed()].map((order) => placed(order, points, lines, area));
    const { places } = tried.reduce((a, b) => (b.cost < a.cost ? b : a));
    return [...places].map(([{ mark }, { ax, ay }]) => ({
      x: Math.log10(mark.cost), y: mark.at, ax, ay,
      text: mark.front ? `<b>${plain(mark.name)}</b>` : plain(mark.number || mark.name),
      font: { size, color: colour(mark.front ? "ink" : "muted") },
      showarrow: true, arrowhead: 0, arrowwidth: 0.8, arrowcolor: colour("muted", 0.8), standoff: 6, borderpad: 0, bgcolor: colour("card", 0.7),
    }));
  }

  function extent(mark, size) {
    pen.font = `${mark.front ? "bold " : ""}${size}px ${getComputedStyle(document.body).fontFamily}`;
    return { width: pen.measureText(mark.number || mark.name).width + 8, height: size + 5 };
  }

  // Whiskers, steps and rules as thin boxes: a name may lie on them, but better does not.
  function drawnLines(shown, corners, { wide, right, down }) {
    const upright = (x, top, bottom) => ({ left: x - 1, right: x + 1, top, bottom });
    const level = (y, left, to) => ({ left, right: to, top: y - 1, bottom: y + 1 });
    const ends = corners.map(([cost, value]) => [right(cost), down(value)]);
    return [
      ...shown.filter(({ below }) => !below).map(({ cost, low, high }) => upright(right(cost), down(high), down(low))),
      ...ends.slice(1).flatMap(([x, y], i) => [level(ends[i][1], ends[i][0], x), upright(x, y, ends[i][1])]),
      ...setting.yardsticks.map(({ value }) => level(down(value), 0, wide)),
    ];
  }

  function placed(order, points, lines, area) {
    const [taken, leaders, places] = [points.map(({ box }) => box), [], new Map()];
    let total = 0;
    for (const point of order) {
      const best = place(point, taken, leaders, lines, area);
      total += best ? best.cost : 500;
      if (!best) continue; // the pointer tells, and the leaderboard
      taken.push(best.box);
      leaders.push(...best.leader);
      places.set(point, best);
    }
    return { places, cost: total };
  }

  function place({ x, y, width, height }, taken, leaders, lines, { wide, tall }) {
    let [best, least] = [undefined, Infinity];
    for (const radius of RADII) {
      for (let turn = 0; turn < 16; turn += 1) {
        const [cos, sin] = [Math.cos((turn * Math.PI) / 8), Math.sin((turn * Math.PI) / 8)];
        const [ax, ay] = [cos * (width / 2 + 9 + radius), sin * (height / 2 + 9 + radius)];
        const box = around(x + ax, y + ay, width, height);
        if (box.left < 0 || box.right > wide || box.top < 0 || box.bottom > tall || taken.some((one) => meet(one, box))) continue;
        // A leader through another name or mark, or along its leader, would seem to be theirs.
        const leader = radius ? PARTS.map((part) => [x + part * ax, y + part * ay]) : [];
        const through = leader.filter(([a, b]) => taken.some((one) => meet(one, around(a, b, 1, 1)))).length;
        const beside = leaders.filter(([a, b]) => meet(around(a, b, 1, 1), box) || leader.some(([c, d]) => Math.hypot(a - c, b - d) < 7)).length;
        const cost = radius + 5 * lines.filter((one) => meet(one, box)).length + 25 * through + 15 * beside + (Math.abs(sin) > 0.5 ? 2 : 0);
        if (cost < least) [best, least] = [{ ax, ay, box, leader, cost }, cost];
      }
    }
    return best;
  }

  function trace(shown, full) {
    return shown.filter(({ front }) => front === full).map((mark) => ({
      x: [mark.cost],
      y: [mark.at],
      mode: "markers",
      marker: { size: 11, symbol: full ? mark.symbol : `${mark.symbol}-open`, color: colour(`series-${mark.colour}`), line: { width: 2, color: colour(`series-${mark.colour}`) } },
      error_y: mark.below ? undefined : {
        type: "data", symmetric: false, array: [mark.high - mark.accuracy], arrayminus: [mark.accuracy - mark.low],
        thickness: 1.2, width: 3, color: colour(`series-${mark.colour}`, 0.5),
      },
      text: [`${plain(mark.label)}<br>${pct(mark.accuracy)} (${pct(mark.low)} to ${pct(mark.high)}) for ${bytes(mark.cost)}<br>${full ? "on the front" : "not on the front"}`],
      hovertemplate: "%{text}<extra></extra>",
    }));
  }

  function show(current = setting) {
    setting = current;
    if (!window.Plotly) return;
    const every = marks();
    const height = 420 + 6 * Math.max(0, every.length - 8);
    const shown = every.map((mark) => lifted(mark, heights(every)));
    const area = frame(every, byId("plot-bytes").clientWidth, height);
    const corners = steps(shown, area);
    const line = {
      x: corners.map(([cost]) => cost), y: corners.map(([, value]) => value), mode: "lines", hoverinfo: "skip",
      line: { shape: "hv", color: colour("ink"), width: 1.4 },
    };
    const rules = setting.yardsticks.map(({ value, dash }) => ({
      type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value, layer: "below",
      line: { color: colour("muted", 0.9), width: 1.2, dash },
    }));
    const words = (full) => shown.filter(({ front }) => front === full).toSorted((a, b) => a.cost - b.cost)
      .map(({ label, accuracy, cost }) => `${label}: ${pct(accuracy)} for ${bytes(cost)}`).join("; ") || "none";
    const { axis } = setting.bytes.traffics[counted];
    const tickvals = ticks(area);
    draw("plot-bytes", `Accuracy against ${axis}. On the front: ${words(true)}. Not on it: ${words(false)}.`, [line, ...trace(shown, false), ...trace(shown, true)], {
      height,
      margin: MARGIN,
      xaxis: { type: "log", title: { text: axis, standoff: 10 }, range: area.x, tickvals, ticktext: tickvals.map(bytes), tickangle: 0, automargin: false },
      yaxis: { range: area.y, tickformat: area.y[1] - area.y[0] < 0.06 ? ".1%" : ".0%", automargin: false },
      shapes: rules,
      annotations: named(shown, corners, area),
    });
    numbers(shown);
  }

  const buttons = [...document.querySelectorAll("#bytes .chips button")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      counted = Number(button.dataset.traffic);
      for (const one of buttons) one.ariaPressed = one.dataset.traffic === button.dataset.traffic;
      for (const table of document.querySelectorAll("#bytes .traffic")) table.hidden = table.dataset.traffic !== button.dataset.traffic;
      show();
    });
  }

  return { show };
})();
