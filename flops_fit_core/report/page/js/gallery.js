// Draws the figures into the page, again if its width or its colours change.

import { saveSvg, savePng } from "./download.js";
import { isOnPaper, onSchemeChange, palette } from "./palette.js";

let drawings = {};

const PAPER = { full: 680, half: 328 }; // width of figures in CSS pixels on A4, with the margins of print.css

/** Draws the figures: name in data-figure -> function of the width, which returns an SVG element or null. */
export function startGallery(figuresByName) {
  drawings = figuresByName;
  const gallery = document.querySelector(".charts");
  gallery.hidden = false;
  document.querySelector(".no-script").hidden = true;
  const figures = [...gallery.querySelectorAll("[data-figure]")];
  for (const figure of figures) drawFigure(figure);
  if (figures.every((figure) => figure.hidden)) document.getElementById("figures").hidden = true;
  fillLastRow(figures);
  onSchemeChange(() => figures.forEach(drawFigure));
  redrawOnResize(gallery, figures);
}

export function drawFigure(figure) {
  const body = figure.querySelector(".chart-body");
  const width = isOnPaper() ? PAPER[isFull(figure) ? "full" : "half"] : Math.floor(body.clientWidth) || 640;
  const svg = drawings[figure.dataset.figure](width);
  figure.hidden = svg === null;
  if (svg === null) return;
  body.replaceChildren(svg);
  for (const button of figure.querySelectorAll("[data-save]")) {
    const save = button.dataset.save === "png" ? savePng : saveSvg;
    button.onclick = () => save(svg, figure.dataset.figure, palette().paper);
  }
}

function isFull(figure) {
  return figure.dataset.figure === "profiles" || figure.classList.contains("full");
}

/** The last figure takes a full row if it would leave half a row empty. */
function fillLastRow(figures) {
  const halves = figures.filter((figure) => !figure.hidden && !isFull(figure));
  if (halves.length % 2 === 0) return;
  halves.at(-1).classList.add("full");
  drawFigure(halves.at(-1));
}

function redrawOnResize(gallery, figures) {
  let width = gallery.clientWidth;
  new ResizeObserver(() => {
    if (gallery.clientWidth === width) return;
    width = gallery.clientWidth;
    requestAnimationFrame(() => figures.forEach(drawFigure));
  }).observe(gallery);
}
