// Colours of the figures. Each has a contrast of at least 3:1 against the page, light and dark.

const darkScreen = window.matchMedia("(prefers-color-scheme: dark)");
let isPrinting = false;

const LIGHT = { paper: "#ffffff", ink: "#1c2128", faint: "#59636e", grid: "#e4e8ec", law: "#2f5bd3", run: "#6e7781" };
const DARK = { paper: "#14171b", ink: "#e6e9ed", faint: "#9aa4af", grid: "#2a3037", law: "#8ab0ff", run: "#8b949e" };

export function isDark() {
  return darkScreen.matches && !isPrinting;
}

export function isOnPaper() {
  return isPrinting;
}

export function palette() {
  return isDark() ? DARK : LIGHT;
}

/** One colour per budget, in ascending order: plasma, without the part that is faint on this page. */
export function budgetColors(budgets) {
  const [from, to] = isDark() ? [0.44, 0.97] : [0.02, 0.62];
  const last = Math.max(1, budgets.length - 1);
  return new Map(budgets.map((budget, place) => [budget, d3.interpolatePlasma(from + ((to - from) * place) / last)]));
}

/** Calls back if the page turns light or dark, and before it is printed: paper is light. */
export function onSchemeChange(callback) {
  darkScreen.addEventListener("change", callback);
  for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
    window.addEventListener(event, () => {
      isPrinting = printing;
      callback();
    });
  }
}
