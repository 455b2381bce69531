// Writes the name of each method beside its marker or at the end of its line, so that no two names lie on each other.
"use strict";

const LABEL_SIZE = 12;
const NARROW = 560;  // pixels: below, names at the ends of lines would take half of the picture
const pen = document.createElement("canvas").getContext("2d");
pen.font = `${LABEL_SIZE}px ${family}`;
const widthOf = (text) => pen.measureText(text).width + 6;

// Names at the ends of lines need room to the right of them.
function marginFor(plot, data, layout) {
  if (layout.meta?.labels !== "margin" || plot.clientWidth < NARROW) return {};
  const widest = Math.max(0, ...data.filter(({ meta }) => meta?.label).map(({ meta }) => widthOf(meta.method)));
  return { margin: { ...base.margin, r: widest + 30 } };
}

// From the values of a trace to pixels from the upper left corner of the plot's inner area.
function scales(plot) {
  const { xaxis, yaxis, _size: { w, h } } = plot._fullLayout;
  const across = ({ range: [start, end] }, value) => (value - start) / (end - start);
  return { x: (value) => w * across(xaxis, value), y: (value) => h * (1 - across(yaxis, value)) };
}

const around = ({ x, y }, width, height) => ({
  x0: x - width / 2, x1: x + width / 2, y0: y - height / 2, y1: y + height / 2,
});
const overlap = (a, b) => Math.max(0, Math.min(a.x1, b.x1) - Math.max(a.x0, b.x0))
  * Math.max(0, Math.min(a.y1, b.y1) - Math.max(a.y0, b.y0));

// What a name should not lie on: markers and lines, and, if it must be, the bars of an interval.
function obstaclesOf(plot, traces) {
  const at = scales(plot);
  return traces.flatMap(({ x, y, error_x: across, error_y: upright }) => x.flatMap((value, i) => {
    const found = [{ ...around({ x: at.x(value), y: at.y(y[i]) }, 14, 14), weight: 1 }];
    if (across?.array) {
      const [x0, x1] = [value - across.arrayminus[i], value + across.array[i]].map(at.x);
      found.push({ x0, x1, y0: at.y(y[i]) - 2, y1: at.y(y[i]) + 2, weight: 0.5 });
    }
    if (upright?.array) {
      const [y1, y0] = [y[i] - upright.arrayminus[i], y[i] + upright.array[i]].map(at.y);
      found.push({ x0: at.x(value) - 2, x1: at.x(value) + 2, y0, y1, weight: 0.5 });
    }
    return found;
  }));
}

// Of the places around a point, the one that covers least; near ones are preferred.
function bestPlace({ text, at }, obstacles, inside) {
  const width = widthOf(text), height = LABEL_SIZE + 4;
  let best = { cost: Infinity };
  for (const distance of [10, 18, 30, 46, 66, 90, 120]) {
    for (let step = 0; step < 16; step += 1) {
      const angle = step * Math.PI / 8;
      const ax = Math.cos(angle) * (width / 2 + distance), ay = Math.sin(angle) * (height / 2 + distance);
      const box = around({ x: at.x + ax, y: at.y + ay }, width, height);
      const covered = obstacles.reduce((sum, obstacle) => sum + obstacle.weight * overlap(box, obstacle), 0);
      const cost = covered + 4 * (width * height - overlap(box, inside)) + 2 * distance + (step % 8 ? 4 : 0);
      if (cost < best.cost) best = { cost, ax, ay, box: { ...box, weight: 3 } };
    }
  }
  return best;
}

// Each name makes way for the others a few times.
function placeNearby(plot, labels, obstacles) {
  const { w, h } = plot._fullLayout._size;
  for (let round = 0; round < 4; round += 1) {
    for (const label of labels) {
      const others = labels.filter(({ box }) => box && box !== label.box).map(({ box }) => box);
      Object.assign(label, bestPlace(label, [...obstacles, ...others], { x0: 0, x1: w, y0: 0, y1: h }));
    }
  }
}

// One below the other to the right of the lines, as near to their ends as their height allows.
function placeInMargin(plot, labels) {
  const { w, h } = plot._fullLayout._size, height = LABEL_SIZE + 3;
  labels.sort((a, b) => a.at.y - b.at.y);
  let lowest = -Infinity;
  const places = labels.map(({ at }) => (lowest = Math.max(at.y, lowest + height)));
  let limit = h;
  for (let i = labels.length - 1; i >= 0; i -= 1) {
    const place = Math.min(places[i], limit);
    limit = place - height;
    labels[i].ax = w - labels[i].at.x + 22;
    labels[i].ay = place - labels[i].at.y;
  }
}

function placeLabels(plot) {
  const how = plot.layout.meta?.labels;
  if (!how) return plot;
  const traces = plot.data.filter(({ visible, meta }) => visible !== false && meta?.label);
  const lines = traces.some(({ x }) => x.length > 1), at = scales(plot);
  const labels = lines && plot.clientWidth < NARROW ? [] : traces.map(({ meta, x, y, marker }) => ({
    text: meta.method, x: x.at(-1), y: y.at(-1), colour: marker.color, at: { x: at.x(x.at(-1)), y: at.y(y.at(-1)) },
  }));
  if (how === "margin") placeInMargin(plot, labels);
  else placeNearby(plot, labels, obstaclesOf(plot, traces));
  const annotations = labels.map(({ text, x, y, ax, ay, colour }) => ({
    text, x, y, ax, ay, showarrow: true, arrowhead: 0, arrowwidth: 0.75, arrowcolor: colour, standoff: 7, borderpad: 0,
    font: { size: LABEL_SIZE }, bgcolor: paint(light("paper")), xanchor: how === "margin" ? "left" : "center",
  }));
  // Names must not move the axes, for which they were placed.
  const { xaxis, yaxis } = plot._fullLayout;
  return Plotly.relayout(plot, { annotations, "xaxis.range": [...xaxis.range], "yaxis.range": [...yaxis.range] });
}
