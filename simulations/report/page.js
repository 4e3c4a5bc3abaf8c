// The page's tables, colours and choices. One file in the end, for the page is one: a browser opens
// it from a disk, where it may load no other script.
(() => {
  const root = document.documentElement;
  root.classList.add("scripted");
  const byId = (id) => document.getElementById(id);
  const settings = JSON.parse(byId("data").textContent);
  const SHOWN = 6; // curves drawn at first: more are a tangle
  let current = settings[0];
  let drawn = new Set();

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

  // ---- paper is white and narrow, and cannot be scrolled
  let screen;
  addEventListener("beforeprint", () => {
    screen = root.dataset.theme;
    root.dataset.theme = "light";
    root.classList.add("printing");
    draw();
  });
  addEventListener("afterprint", () => {
    if (screen) root.dataset.theme = screen;
    else delete root.dataset.theme;
    root.classList.remove("printing");
    draw();
  });

  // ---- tables
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const sorted = heads.filter((head) => head.ariaSort);
    heads.forEach((head, index) => {
      head.querySelector("button")?.addEventListener("click", () => {
        const before = head.ariaSort;
        const rising = before === "none" ? head.dataset.rising === "true" : before !== "ascending";
        for (const other of sorted) other.ariaSort = "none";
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

  // ---- what is drawn
  const chosen = () => current.entries.filter((one) => drawn.has(one.label));

  function drawChosen() {
    if (!window.Plotly) return;
    curvePlots.curves(current, chosen());
    curvePlots.metrics(current, chosen());
  }

  function chips() {
    const box = byId("chips");
    if (!box) return;
    const rows = document.querySelectorAll(`#leaderboard .setting[data-setting="${settings.indexOf(current)}"] tbody th`);
    const swatches = new Map([...rows].map((head) => [head.dataset.value, head.querySelector("svg")]));
    const buttons = current.entries.map((entry) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(swatches.get(entry.label).cloneNode(true), entry.label);
      button.ariaPressed = drawn.has(entry.label);
      button.addEventListener("click", () => {
        if (!drawn.delete(entry.label)) drawn.add(entry.label);
        button.ariaPressed = drawn.has(entry.label);
        drawChosen();
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
      drawChosen();
    });
    box.replaceChildren(...buttons, ...(current.entries.length > SHOWN ? [all] : []));
  }

  function draw() {
    if (!window.Plotly) return;
    if (byId("plot-bytes")) bytesPlot.show(current);
    if (byId("plot-privacy")) privacyPlot.show(current);
    drawChosen();
    if (byId("plot-clients")) curvePlots.clients(current);
    byId("by-class").classList.toggle("stacked", current.confusion.names.length > 20);
    cellPlots.confusion(current);
    if (byId("plot-partition")) cellPlots.partition(current);
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

  // Which labels have room depends on the width, so a turned phone draws anew.
  let [width, waiting] = [0, 0];
  new ResizeObserver(([{ contentRect }]) => {
    if (Math.abs(contentRect.width - width) < 1) return;
    width = contentRect.width;
    clearTimeout(waiting);
    waiting = setTimeout(draw, 100);
  }).observe(document.querySelector("main"));

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
