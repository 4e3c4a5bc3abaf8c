"use strict";
// What all plots have in common: the page's colours and type, and how they are drawn.
const plots = (() => {
  const root = document.documentElement;
  const byId = (id) => document.getElementById(id);
  const pct = (share) => `${(100 * share).toFixed(1)} %`;
  // plotly reads a few HTML tags in every text; names are the user's.
  const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;");
  const short = (name, most) => (name.length > most ? `${name.slice(0, most - 1)}…` : name);
  const narrow = () => root.clientWidth < 640;
  // On a touch screen a finger scrolls the page instead of drawing a frame to zoom into.
  const touch = matchMedia("(pointer: coarse)").matches;
  const CONFIG = {
    displaylogo: false,
    displayModeBar: touch ? false : "hover",
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "autoScale2d", "resetScale2d"]],
  };

  const probe = document.body.appendChild(document.createElement("span"));
  probe.hidden = true;
  function colour(name, alpha = 1) {
    probe.style.color = `var(--${name})`;
    const [r, g, b] = getComputedStyle(probe).color.match(/[\d.]+/g);
    return `rgba(${r},${g},${b},${alpha})`;
  }

  // Three digits, powers of 1000, as the tables have them.
  function bytes(value) {
    const units = ["B", "kB", "MB", "GB", "TB"];
    const unit = Math.min(units.length - 1, Math.max(0, Math.floor(Math.log10(value * 1.0005) / 3)));
    return `${Number((value / 1000 ** unit).toPrecision(3))} ${units[unit]}`;
  }

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
      modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("muted", 0.8), activecolor: colour("accent") },
      ...extra,
      xaxis: { ...axis(), ...extra.xaxis },
      yaxis: { ...axis(), ...extra.yaxis },
    };
  }

  // A plot is one image to who cannot see it, with what it shows as its text.
  function draw(id, says, traces, extra) {
    const plot = byId(id);
    plot.setAttribute("role", "img");
    plot.setAttribute("aria-label", says);
    // A plot's own care for its width comes too late for paper.
    Plotly.react(plot, traces, layout({ width: plot.clientWidth || undefined, ...extra }), CONFIG);
  }

  return { byId, bytes, colour, draw, narrow, pct, plain, short };
})();
