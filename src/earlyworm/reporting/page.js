// Draws the figures of a page in the colours of the mode, and lets them be read with the keyboard.
"use strict";

const page = JSON.parse(document.getElementById("data").textContent);
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const darkColours = new Map(Object.values(page.palette));
const light = (name) => page.palette[name][0];

const family = getComputedStyle(document.body).fontFamily;
const base = {
  paper_bgcolor: light("paper"), plot_bgcolor: light("paper"), height: 380, template: {},
  hovermode: "x unified", dragmode: false, margin: { l: 16, r: 20, t: 8, b: 8 },
  legend: { orientation: "h", traceorder: "normal", x: 0, y: 1.02, yanchor: "bottom" },
  font: { family, size: 13, color: light("ink") },
  hoverlabel: { bgcolor: light("paper"), bordercolor: light("muted"), font: { family, color: light("ink") } },
};
const axis = {
  gridcolor: light("rule"), linecolor: light("muted"), zeroline: false, fixedrange: true, automargin: true,
};

// Figures come in the light colours of the palette; in dark mode each one is replaced by its counterpart.
function paint(part) {
  if (typeof part === "string") return prefersDark.matches ? darkColours.get(part) ?? part : part;
  if (Array.isArray(part)) return part.map(paint);
  if (part && typeof part === "object") {
    return Object.fromEntries(Object.entries(part).map(([name, value]) => [name, paint(value)]));
  }
  return part;
}

let afterDrawing = (plot) => plot;

function draw(id) {
  const { data, layout } = page.figures[id];
  // A square picture has about as much beside it as below it; `meta.square` is how high it gets at most.
  const square = layout.meta?.square && Math.min(document.getElementById(id).clientWidth, layout.meta.square) + 10;
  const whole = { ...base, ...layout, xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis } };
  if (square) whole.height = square;
  return Plotly.react(id, paint(data), paint(whole), { displayModeBar: false, responsive: true })
    .then(afterDrawing);
}

function drawAll() {
  return Promise.all(Object.keys(page.figures).map(draw));
}

// A place along an axis of a picture: a number is one, a name counts from 0, and others are evenly spaced.
const place = (names, first, step, i) => {
  if (!names) return first + i * step;
  return typeof names[i] === "number" ? names[i] : i;
};

// What the arrow keys walk over: a row per line or per row of a picture, and in it what plotly is told to point at.
function rowsOf(plot) {
  return plot.data.flatMap((trace, curveNumber) => {
    if (trace.visible === false || trace.hoverinfo === "skip" || trace.mode === "text") return [];
    if (trace.type !== "heatmap") return [trace.x.map((_, pointNumber) => [{ curveNumber, pointNumber }])];
    return trace.z.map((row, i) => row.map((_, j) => ({
      xval: place(trace.x, trace.x0, trace.dx, j), yval: place(trace.y, trace.y0, trace.dy, i),
    })));
  }).filter((row) => row.length);
}

// Where one label tells of all lines at once, the places along the axis.
function stopsOf(plot, along) {
  const values = plot.data.filter(({ mode, visible }) => mode !== "text" && visible !== false)
    .flatMap((trace) => trace[along]);
  return [...new Set(values)].sort((a, b) => a - b);
}

const clamp = (value, count) => Math.min(Math.max(value, 0), count - 1);

function readWithKeys(plot) {
  let row = 0, column = -1;
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
    if (!step) return;
    event.preventDefault();
    const [along, unified] = (plot.layout.hovermode ?? "").split(" ");
    if (unified) {
      const stops = stopsOf(plot, along);
      if (!stops.length) return;
      column = clamp(column + step[0] + step[1], stops.length);
      Plotly.Fx.hover(plot, { [`${along}val`]: stops[column] });
    } else {
      const rows = rowsOf(plot);
      if (!rows.length) return;
      row = clamp(row + step[0], rows.length);
      column = clamp(column + step[1], rows[row].length);
      Plotly.Fx.hover(plot, rows[row][column]);
    }
  });
  plot.addEventListener("blur", () => Plotly.Fx.unhover(plot));
}

document.querySelectorAll(".plot").forEach(readWithKeys);
prefersDark.addEventListener("change", drawAll);
