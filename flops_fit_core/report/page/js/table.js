// The table of runs: search, filter by state, sort by a column.

import { page } from "./data.js";
import { saveText, toCsv } from "./download.js";

export function startRunTable(onChoose) {
  const table = document.getElementById("run-table");
  if (!table) return;
  document.querySelector(".toolbar").hidden = false;
  for (const [place, heading] of [...table.tHead.rows[0].cells].entries()) makeSortable(table, heading, place);
  const search = document.getElementById("run-search");
  const buttons = [...document.querySelectorAll(".filters button")];
  const apply = () => filterRows(table, search.value, buttons.find((button) => button.ariaPressed === "true"));
  search.addEventListener("input", apply);
  for (const button of buttons) {
    button.addEventListener("click", () => {
      for (const other of buttons) other.ariaPressed = String(other === button);
      apply();
    });
  }
  document.getElementById("save-csv").addEventListener("click", () => {
    saveText(toCsv(page.fields, page.runs), "runs.csv", "text/csv");
  });
  makeRunsChoosable(table, onChoose);
  openErrorsOnLink();
}

function makeSortable(table, heading, place) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...heading.childNodes);
  heading.append(button);
  button.addEventListener("click", () => {
    const direction = heading.ariaSort === "ascending" ? "descending" : "ascending";
    for (const other of table.tHead.rows[0].cells) other.ariaSort = "none";
    heading.ariaSort = direction;
    sortRows(table, place, direction === "ascending" ? 1 : -1);
  });
}

function sortRows(table, place, sign) {
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, value: sortValue(row.cells[place]) }));
  rows.sort((a, b) => {
    if (a.value === "" || b.value === "") return (a.value === "") - (b.value === ""); // missing values last
    if (typeof a.value === "number" && typeof b.value === "number") return sign * (a.value - b.value);
    return sign * String(a.value).localeCompare(String(b.value), "en", { numeric: true });
  });
  body.append(...rows.map(({ row }) => row));
}

function sortValue(cell) {
  const text = cell.dataset.sort ?? cell.textContent.trim();
  return text !== "" && Number.isFinite(Number(text)) && "sort" in cell.dataset ? Number(text) : text;
}

function filterRows(table, text, button) {
  const words = text.toLowerCase().split(/\s+/).filter(Boolean);
  const state = button.dataset.state;
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const content = row.textContent.toLowerCase();
    row.hidden = !((state === "" || row.dataset.state === state) && words.every((word) => content.includes(word)));
    shown += row.hidden ? 0 : 1;
  }
  document.getElementById("run-status").textContent = `${shown} of ${table.tBodies[0].rows.length} runs shown`;
}

/** A run that has a training curve gets a button that shows it alone. */
function makeRunsChoosable(table, onChoose) {
  for (const row of table.tBodies[0].rows) {
    if (!(row.dataset.run in page.figures.lossCurves)) continue;
    const code = row.cells[0].querySelector("code");
    const button = document.createElement("button");
    button.type = "button";
    button.className = "run";
    button.title = "Show the training curve";
    code.replaceWith(button);
    button.append(code);
    button.addEventListener("click", () => onChoose(row.dataset.run));
  }
}

/** A link to a closed <details> opens it. */
function openErrorsOnLink() {
  const open = () => {
    const target = location.hash.length > 1 ? document.getElementById(decodeURIComponent(location.hash.slice(1))) : null;
    if (target instanceof HTMLDetailsElement) target.open = true;
  };
  window.addEventListener("hashchange", open);
  open();
}
