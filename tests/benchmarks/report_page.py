"""Measure the report and look at its page: CPU time, size, loading, accessibility, screenshots, print.

    python tests/benchmarks/report_page.py [--runs 5 50 500 1000] [--failed 0.1] [--look FOLDER]

Makes studies with the formula of ``surface``: a budget per fifty runs, ``--evaluations`` per run. ``--failed``
adds 500 runs of which that share failed: half of them by an allocation that torch refuses in this process, half
with the text of CUDA's allocator. Each row is one study:

    report s   CPU time (user and system) of ``flops-fit report STUDY``, and of ``flops-fit report runs.csv``
    page MB    size of index.html
    load ms    time until the load event, in a Chromium with this machine's load
    axe        violations of any severity at 1,200 and 390 pixels, light and dark, with all details open

``--look`` keeps the reports there, with screenshots in slices of a screen and the page as printed on A4.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import torch
from axe_playwright_python import __file__ as axe_file
from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from flops_fit_core import Evaluation, RunError, RunResult, RunSpec, Study, plan

SIZES, SLICE = 10, 1400
CHROMIUM = os.environ.get("FLOPS_FIT_CHROMIUM") or shutil.which("chromium")
CUDA_TEXT = (
    "CUDA out of memory. Tried to allocate {0:.2f} GiB. GPU {1} has a total capacity of 79.10 GiB of which "
    "{2:.2f} MiB is free. Including non-PyTorch memory, this process has {3:.2f} GiB memory in use. Of the "
    "allocated memory {4:.2f} GiB is allocated by PyTorch, and {0:.2f} GiB is reserved by PyTorch but "
    "unallocated. If reserved but unallocated memory is large try setting "
    "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See documentation for Memory "
    "Management  (https://pytorch.org/docs/stable/notes/cuda.html#environment-variables)"
)


def make_study(folder: Path, runs: int, failed: float, evaluations: int) -> Study:
    """A finished study of the surface, with a curve per run and a share of failed runs."""
    budgets = max(1, min(20, runs // 50))
    sizes = min(SIZES, runs)
    table = {
        "name": f"{runs}-runs",
        "sweep": {
            "budgets": [10 ** (18 + 2 * place / max(1, budgets - 1)) for place in range(budgets)],
            "sizes": sizes,
            "size_ratio": 1.25,
            "seeds": list(range(runs // (budgets * sizes))),
        },
        "model": "surface",
        "dataset": {"name": "surface", "noise": 0.004},
    }
    study = plan(table, out=folder)
    study.folder.save(study.experiment, study.plan, study.registry.setup)
    surface = study.experiment.dataset.spec.build(study.experiment.dataset.options, 0)
    with study.store() as store:
        for place, run in enumerate(study.plan.runs):
            has_failed = failed and place % round(1 / failed) == 3
            store.add(fail(run, place) if has_failed else complete(run, surface, evaluations))
    study.refresh()
    return study


def complete(run: RunSpec, surface, evaluations: int) -> RunResult:
    loss = surface.synthetic_loss(run.params, run.tokens, run.seed)
    offset = loss - surface.loss(run.params, run.tokens)
    curve = []
    for part in range(1, evaluations + 1):
        tokens = run.tokens * part // evaluations
        # A cosine schedule ends below the curve of the constant rate: 3% at the start of the decay.
        excess = 1 + 0.03 * (1 - part / evaluations)
        value = surface.loss(run.params, tokens) * excess + offset
        curve.append(Evaluation(step=run.steps * part // evaluations, tokens=tokens, loss=value))
    return result(run, status="completed", loss=loss, curve=tuple(curve))


def fail(run: RunSpec, place: int) -> RunResult:
    """Out of memory: torch's own error of this process, or CUDA's text with the numbers of a run."""
    if place % 20 < 10:
        try:
            torch.nn.Linear(2**20 + place, 2**32, bias=False)
        except RuntimeError as error:
            text = traceback.format_exc()
            return result(
                run, status="failed", error=RunError(type="RuntimeError", message=str(error), traceback=text)
            )
        raise RuntimeError("torch allocated 16 PiB")
    numbers = 2 + place / 100, place % 8, 900 - place, 78.0 + place / 1000, 70 + place / 100
    return result(
        run, status="failed", error=RunError(type="OutOfMemoryError", message=CUDA_TEXT.format(*numbers))
    )


def result(run: RunSpec, **outcome) -> RunResult:
    return RunResult(
        run=run, tokens=run.tokens, flops=run.flops, flops_name="6 N D", params_name="matmul parameters",
        seconds=run.flops / 4e14, synthetic=True, versions={"torch": torch.__version__}, **outcome,
    )  # fmt: skip


def report_seconds(source: Path, out: Path) -> float:
    """CPU time of ``flops-fit report`` with one thread."""
    before = os.times()
    command = [str(Path(sys.executable).parent / "flops-fit"), "report", str(source), "--out", str(out)]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def open_page(browser: Browser, file: Path, width: int, scheme: str):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(file.as_uri())
    page.wait_for_selector("#figures svg, #figures[hidden]", state="attached")
    return page


def load_milliseconds(browser: Browser, file: Path) -> float:
    """Median time of three loads until the load event ends."""
    times = []
    for _ in range(3):
        page = open_page(browser, file, 1200, "light")
        times.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
        page.context.close()
    return sorted(times)[1]


def look(browser: Browser, file: Path, shots: Path | None) -> list[str]:
    """The axe violations of both widths and schemes. Writes screenshots and the printed page."""
    axe = (Path(axe_file).parent / "axe.min.js").read_text(encoding="utf-8")
    violations = []
    for width in (1200, 390):
        for scheme in ("light", "dark"):
            page = open_page(browser, file, width, scheme)
            if shots is not None:
                take_slices(page, shots / f"{width}-{scheme}")
            page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
            page.evaluate(axe)
            matches = page.evaluate("axe.run().then(result => result.violations)")
            violations += [f"{width} {scheme} {item['impact']} {item['id']}" for item in matches]
            page.context.close()
    if shots is not None:
        page = open_page(browser, file, 1200, "dark")
        page.pdf(path=shots / "print.pdf", format="A4")
        page.context.close()
    return violations


def take_slices(page, stem: Path) -> None:
    """The whole page in PNG files of a readable height."""
    width, height = page.viewport_size["width"], page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": width, "height": height})
    image = Image.open(io.BytesIO(page.screenshot()))
    for place, top in enumerate(range(0, height, SLICE)):
        image.crop((0, top, width, min(top + SLICE, height))).save(f"{stem}-{place}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, nargs="*", default=[5, 50, 500, 1000])
    parser.add_argument("--failed", type=float, default=0.1)
    parser.add_argument("--evaluations", type=int, default=30)
    parser.add_argument("--look", type=Path)
    arguments = parser.parse_args()
    cases = [(count, 0.0) for count in arguments.runs] + ([(500, arguments.failed)] if arguments.failed else [])
    print("runs  failed  study s  table s  page MB  load ms  axe", flush=True)
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for count, failed in cases:
            folder = Path(arguments.look or temporary).resolve() / f"{count}-{failed:g}"
            study = make_study(folder, count, failed, arguments.evaluations)
            on_study = report_seconds(folder, folder / "report")
            table = folder / "runs.csv"
            rows = [f"{run.params},{run.tokens},{run.flops},{run.loss}" for run in study.observations]
            table.write_text("\n".join(["params,tokens,flops,loss", *rows]) + "\n")
            on_table = report_seconds(table, folder / "table-report")
            page = folder / "report" / "index.html"
            load = load_milliseconds(browser, page)
            violations = look(browser, page, folder if arguments.look else None)
            megabytes = page.stat().st_size / 1e6
            print(
                f"{count:>4}  {failed:>6.0%}  {on_study:>7.1f}  {on_table:>7.1f}  {megabytes:>7.2f}  {load:>7.0f}"
                f"  {len(violations)} {' '.join(violations)}",
                flush=True,
            )
        browser.close()


if __name__ == "__main__":
    main()
