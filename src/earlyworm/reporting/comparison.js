// Lets methods be hidden, a setting be chosen, and curves be drawn over FLOPs or epochs: in all figures at once.
"use strict";

const hidden = new Set();
const setting = document.getElementById("setting");
const chips = [...document.querySelectorAll(".chip")];

// A trace belongs to one method, or has a column for each of several.
function withoutHidden(trace) {
  const { method, methods } = trace.meta ?? {};
  if (!methods) return { ...trace, visible: !hidden.has(method) };
  const shown = (row) => row.filter((_, i) => !hidden.has(methods[i]));
  return { ...trace, x: shown(trace.x), z: trace.z.map(shown), text: trace.text.map(shown) };
}

function show() {
  const index = setting ? setting.selectedIndex : 0;
  const along = document.querySelector("[name=along]:checked")?.value;
  const closeup = document.querySelector("[name=reach]:checked")?.value === "closeup";
  page.figures = {};
  for (const plot of document.querySelectorAll(".plot")) {
    const found = page.views[index][plot.id];
    plot.closest("figure").hidden = !found;
    if (!found) continue;
    const { data, layout } = found.data ? found : found[along];
    page.figures[plot.id] = { data: data.map(withoutHidden), layout: { ...layout, ...marginFor(plot, data, layout) } };
    const range = layout.meta?.closeup;
    if (closeup && range) page.figures[plot.id].layout.yaxis = { ...layout.yaxis, range };
  }
  for (const part of document.querySelectorAll("[data-setting]")) part.hidden = part.dataset.setting !== String(index);
  for (const chip of chips) chip.setAttribute("aria-pressed", String(!hidden.has(chip.dataset.method)));
  return drawAll();
}

for (const chip of chips) {
  chip.addEventListener("click", () => {
    const { method } = chip.dataset;
    if (!hidden.delete(method)) hidden.add(method);
    show();
  });
}
document.getElementById("all").addEventListener("click", () => {
  hidden.clear();
  show();
});
document.getElementById("none").addEventListener("click", () => {
  for (const chip of chips) hidden.add(chip.dataset.method);
  show();
});
setting?.addEventListener("change", show);
for (const choice of document.querySelectorAll("[name=along], [name=reach]")) choice.addEventListener("change", show);

let resized;
addEventListener("resize", () => {
  clearTimeout(resized);
  resized = setTimeout(show, 250);
});
afterDrawing = placeLabels;
show();
