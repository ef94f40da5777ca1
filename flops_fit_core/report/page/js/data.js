// The data of the page, as Python wrote them.

export const page = JSON.parse(document.getElementById("page-data").textContent);

export const runById = new Map(page.runs.map((run) => [run.id, run]));

/** "tokens" -> "token". */
export const unitOfOne = page.unit.replace(/s$/, "") || page.unit;
