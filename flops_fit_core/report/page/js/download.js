// Files that the reader saves: a table as CSV, a figure as SVG or PNG. Nothing leaves the page.

export function saveText(text, name, type) {
  saveBlob(new Blob([text], { type }), name);
}

function saveBlob(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

/** Rows as CSV. A spreadsheet must not take a text for a formula, so such a text gets an apostrophe (OWASP). */
export function toCsv(fields, rows) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    let text = String(value);
    if (typeof value === "string" && /^[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]/.test(text)) text = `'${text}`;
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return [fields, ...rows.map((row) => fields.map((field) => row[field]))]
    .map((line) => line.map(cell).join(","))
    .join("\n");
}

export function saveSvg(svg, name, background) {
  saveText(standaloneSvg(svg, background), `${name}.svg`, "image/svg+xml");
}

/** Draws the figure at three times its size. */
export async function savePng(svg, name, background) {
  const scale = 3;
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(standaloneSvg(svg, background))}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  canvas.width = svg.width.baseVal.value * scale;
  canvas.height = svg.height.baseVal.value * scale;
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  canvas.toBlob((blob) => saveBlob(blob, `${name}.png`), "image/png");
}

/** The figure as a file: its own background and font, without the label that follows the pointer. */
function standaloneSvg(svg, background) {
  const copy = svg.cloneNode(true);
  for (const tip of copy.querySelectorAll('[data-mark="tip"]')) tip.remove();
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  const style = getComputedStyle(svg);
  copy.style.fontFamily = style.fontFamily;
  copy.style.color = style.color;
  const paper = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  for (const [key, value] of Object.entries({ width: "100%", height: "100%", fill: background })) {
    paper.setAttribute(key, value);
  }
  copy.prepend(paper);
  return new XMLSerializer().serializeToString(copy);
}
