// Draws the figures into the page, again if its width or its colours change.

import { saveSvg, savePng } from "./download.js";
import { onSchemeChange, palette } from "./palette.js";

let drawings = {};

/** Draws the figures: name in data-figure -> function of the width, which returns an SVG element or null. */
export function startGallery(figuresByName) {
  drawings = figuresByName;
  const gallery = document.querySelector(".charts");
  gallery.hidden = false;
  document.querySelector(".no-script").hidden = true;
  const figures = [...gallery.querySelectorAll("[data-figure]")];
  for (const figure of figures) drawFigure(figure);
  if (figures.every((figure) => figure.hidden)) document.getElementById("figures").hidden = true;
  onSchemeChange(() => figures.forEach(drawFigure));
  redrawOnResize(gallery, figures);
}

export function drawFigure(figure) {
  const body = figure.querySelector(".chart-body");
  const width = Math.floor(body.clientWidth) || 640;
  const svg = drawings[figure.dataset.figure](width);
  figure.hidden = svg === null;
  if (svg === null) return;
  body.replaceChildren(svg);
  for (const button of figure.querySelectorAll("[data-save]")) {
    const save = button.dataset.save === "png" ? savePng : saveSvg;
    button.onclick = () => save(svg, figure.dataset.figure, palette().paper);
  }
}

function redrawOnResize(gallery, figures) {
  let width = gallery.clientWidth;
  new ResizeObserver(() => {
    if (gallery.clientWidth === width) return;
    width = gallery.clientWidth;
    requestAnimationFrame(() => figures.forEach(drawFigure));
  }).observe(gallery);
}
