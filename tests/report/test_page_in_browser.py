"""The page in a real Chromium: the budget field, the table, the figures, accessibility."""

import json
import math
import os
import random
import re
import shutil
from functools import partial
from pathlib import Path

import made_up_fits
import numpy as np
import pytest

from flops_fit_core import Interval, RunError
from flops_fit_core.fitting import (
    AverageFitter,
    ParametricFitter,
    TaskScores,
    compare,
    fit_task,
    observations,
    optimum,
)
from flops_fit_core.report import write_report
from flops_fit_core.report.overlay import Gain, Side, list_conventions
from flops_fit_core.report.overlay.content import build_content
from flops_fit_core.report.overlay.rendering import render_overlay
from flops_fit_core.report.page import ReportContent, ReportContext, render_page
from flops_fit_core.report.page.tasks import describe_task

pytestmark = pytest.mark.browser

CHROMIUM = os.environ.get("FLOPS_FIT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
SCHEMES = ["light", "dark"]
WIDTHS = [1200, 390]
PEAK = 989e12


@pytest.fixture(scope="module")
def browser():
    """Chromium of the operating system, without a network."""
    if CHROMIUM is None:
        pytest.skip("no chromium: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def fit():
    law = AverageFitter(draws=200).fit(observations(make_results()))
    return law.model_copy(update={"params_name": "matmul parameters", "params_range": (1e8, 1e10)})


def make_results():
    """A study: completed runs with curves, one that diverged, and failures with long errors."""
    results = []
    for place, run in enumerate(made_up_fits.runs((1e18, 1e19, 1e20), 8, noise=0.004)):
        curve = tuple(
            {"step": step, "tokens": int(run.tokens * step / 20), "loss": run.loss * (1 + 1 / step)}
            for step in range(1, 21)
        )
        params, tokens = round(run.params), round(run.tokens)
        result = made_up_fits.result(params, tokens, run.loss, width=16 + place, curve=curve)
        results.append(result.model_copy(update={"run": result.run.model_copy(update={"budget": run.budget})}))
    error = RunError(type="OutOfMemoryError", message="CUDA out of memory. " * 20, traceback="Traceback\n" * 30)
    for seed in range(3):
        failed = made_up_fits.result(2000 + seed, 3000, None, seed=seed, status="failed", error=error)
        results.append(failed)
    results.append(made_up_fits.result(4000, 3000, None, seed=7, status="diverged"))
    return results


@pytest.fixture(scope="module")
def page_file(tmp_path_factory, fit):
    results = make_results()
    return write_report(
        tmp_path_factory.mktemp("report"),
        observations=observations(results),
        fit=fit,
        optimum=lambda flops: optimum(fit, flops),
        results=results,
        plan=made_up_fits.plan(results, notes=("a note",)),
        context=ReportContext(source="runs/study", peaks={"h100": PEAK}, experiment='name = "study"'),
    )[0]


@pytest.fixture
def open_page(browser, page_file):
    """Opens the page; fails at the end if it logged anything, or asked for anything but itself."""
    contexts, problems = [], []

    def open_page(file=page_file, width=1200, scheme="light", **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("request", lambda request: note_request(request.url))
        page.goto(file.as_uri())
        page.wait_for_selector("#figures svg, #figures[hidden]", state="attached")
        return page

    def note_request(url):
        if not url.startswith(("file:", "data:", "blob:")):
            problems.append(url)

    yield open_page
    for context in contexts:
        context.close()
    assert problems == []


def prediction(page):
    """The numbers that the budget field shows, before they are rounded; None outside its range."""
    text = page.evaluate("document.documentElement.dataset.prediction ?? null")
    return None if text is None else json.loads(text)


def assert_close(shown, expected):
    for name in ("params", "tokens", "loss"):
        for end in ("value", "low", "high"):
            value = getattr(getattr(expected, name), end)
            assert shown[name][end] == pytest.approx(value, rel=0.005), (name, end)


# ---------------------------------------------------------------------------- the budget field


def test_the_budget_field_equals_python_within_half_a_percent_at_50_random_budgets(open_page, fit):
    page, rng = open_page(), random.Random(0)
    for _ in range(50):
        flops = math.exp(rng.uniform(math.log(1e17), math.log(1e23)))
        page.fill("#budget-flops", repr(flops))
        assert_close(prediction(page), optimum(fit, flops))


def test_tokens_of_inference_equal_python_within_half_a_percent_at_50_random_loads(open_page, fit):
    page, rng = open_page(), random.Random(1)
    for _ in range(50):
        flops = math.exp(rng.uniform(math.log(1e17), math.log(1e23)))
        serving = optimum(fit, flops).tokens.value * math.exp(rng.uniform(math.log(1e-4), math.log(300)))
        page.fill("#budget-flops", repr(flops))
        page.fill("#budget-serving", repr(serving))
        assert_close(prediction(page), optimum(fit, flops, serving))


def test_devices_and_days_give_a_budget(open_page, fit):
    page = open_page()
    page.check("input[value=devices]")
    for name, value in {"devices": "64", "days": "14", "mfu": "0.4"}.items():
        page.fill(f"#budget-{name}", value)
    flops = 64 * 14 * 86400 * PEAK * 0.4
    assert_close(prediction(page), optimum(fit, flops))
    assert "These devices give 3.06e22 FLOPs." in page.inner_text("#budget-message")


@pytest.mark.parametrize("text", ["3.5e20", "350,000,000,000,000,000,000", " 3.5E20 ", "350_000_000_000B"])
def test_numbers_may_be_written_in_several_ways(open_page, fit, text):
    page = open_page()
    page.fill("#budget-flops", text)
    assert_close(prediction(page), optimum(fit, 3.5e20))


@pytest.mark.parametrize("text", ["", "x", "-1", "0", "1e", "1e20 flops"])
def test_what_is_no_number_gets_a_message(open_page, text):
    page = open_page()
    page.fill("#budget-flops", text)
    assert "write for example 1e21" in page.inner_text("#budget-message")
    assert page.get_attribute("#budget-flops", "aria-invalid") == "true"


def test_outside_the_grid_the_page_states_its_range_and_the_command(open_page):
    page = open_page()
    page.fill("#budget-flops", "1e30")
    message = page.inner_text("#budget-message")
    assert "covers 1e17 to 1e23 FLOPs" in message
    assert "flops-fit predict runs/study --flops 1e30" in message
    assert prediction(page) is None
    page.fill("#budget-flops", "1e21")
    page.fill("#budget-serving", "1e18")
    assert "--flops 1e21 --inference-tokens 1e18" in page.inner_text("#budget-message")


def test_far_beyond_the_runs_the_interval_comes_first(open_page, fit):
    page = open_page()
    page.fill("#budget-flops", "5e22")
    for name, number in (("params", r"\d0?0?[KMBT]"), ("tokens", r"\d0?0?[KMBT]"), ("loss", r"\d\.\d")):
        tile = page.locator(f"[data-tile={name}]")
        assert re.fullmatch(f"{number} to {number}", tile.locator(".value").inner_text())
        assert re.fullmatch(f"about {number}", tile.locator(".interval").inner_text())
    assert re.search(r"train about \d0?0?[KMBT] parameters on about", page.inner_text("#answer-sentence"))
    remark, sentence = (page.locator(name).bounding_box()["y"] for name in ("#answer-remark", "#answer-sentence"))
    assert remark < sentence, "the warning comes before the numbers"
    assert "500x beyond the largest budget" in page.inner_text("#answer-remark")


# ---------------------------------------------------------------------------- the table of runs


def column(page, place):
    rows = page.locator("#run-table tbody tr:visible")
    return rows.evaluate_all(f"rows => rows.map(row => row.cells[{place}].dataset.sort)")


def test_a_click_on_a_heading_sorts_and_missing_values_come_last(open_page):
    page = open_page()
    heading = page.locator("#run-table thead th", has_text="loss").first
    place = heading.evaluate("heading => heading.cellIndex")
    for direction in ("ascending", "descending"):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == direction
        values = column(page, place)
        numbers = [float(value) for value in values if value]
        assert len(numbers) == 24
        assert numbers == sorted(numbers, reverse=direction == "descending")
        assert values[24:] == [""] * 4


def test_search_and_states_filter_the_runs(open_page):
    page = open_page()
    visible = page.locator("#run-table tbody tr:visible")
    assert visible.count() == 28
    page.click(".filters button:has-text('failed')")
    assert visible.count() == 3
    assert page.inner_text("#run-status") == "3 of 28 runs shown"
    page.click(".filters button:has-text('all')")
    first = page.locator("#run-table tbody tr code").first.inner_text()
    page.fill("#run-search", f"{first[:8]} COMPLETED")
    assert visible.count() == 1
    page.fill("#run-search", "no such run")
    assert visible.count() == 0


def test_a_failed_run_leads_to_its_full_error(open_page):
    page = open_page()
    page.locator("td.remark a").first.click()
    page.wait_for_selector("#error-1[open]")
    assert "CUDA out of memory. " * 19 in page.inner_text("#error-1 pre")


def test_a_run_shows_its_training_curve_alone(open_page):
    page = open_page()
    button = page.locator("#run-table button.run").first
    button.click()
    label = page.get_attribute("#figure-curves svg", "aria-label")
    assert button.inner_text() in label


def test_of_many_runs_a_few_curves_are_drawn_and_every_run_is_under_the_pointer(open_page, tmp_path):
    results = []
    for place, run in enumerate(made_up_fits.runs((1e18, 1e20), 30)):
        curve = tuple(
            {"step": k, "tokens": int(run.tokens * k / 20), "loss": run.loss + 1 / k} for k in range(1, 21)
        )
        result = made_up_fits.result(round(run.params), round(run.tokens), run.loss, width=16 + place, curve=curve)
        results.append(result.model_copy(update={"run": result.run.model_copy(update={"budget": run.budget})}))
    plan = made_up_fits.plan(results)
    runs = observations(results)
    page = open_page(
        write_report(tmp_path, observations=runs, fit=None, optimum=None, results=results, plan=plan)[0]
    )
    figure = page.locator("#figure-curves")
    assert "draws 40 of 60 runs" in figure.inner_text()
    assert figure.locator("svg [data-mark=line] path").count() == 40 + 2
    shown = set(page.evaluate("page.figures.shownCurves.shown"))
    hidden = next(result.id for result in results if result.id not in shown)
    x, y = page.evaluate(
        """id => {
        const svg = document.querySelector("#figure-curves svg");
        svg.scrollIntoView({ block: "center", behavior: "instant" });
        const { tokens, loss } = page.figures.lossCurves[id];
        const box = svg.getBoundingClientRect();
        return [box.x + svg.scale("x").apply(tokens), box.y + svg.scale("y").apply(loss.at(-1))];
    }""",
        hidden,
    )
    page.mouse.move(x - 1, y)
    page.mouse.move(x, y)
    figure.locator("svg .highlight").wait_for(state="attached", timeout=5000)
    assert figure.locator("svg .highlight").count() == 1
    assert hidden in figure.locator("[data-mark=tip] text").text_content()


# ---------------------------------------------------------------------------- figures and files


def test_an_axis_may_have_more_values_than_a_call_has_arguments(open_page):
    """A study of 1,000 runs with 200 evaluations each."""
    domain = open_page().evaluate(
        "logAxis(Array.from({ length: 300000 }, (_, k) => k + 1), '', String, 600).domain"
    )
    assert domain[0] < 1 < 300000 < domain[1]


@pytest.mark.parametrize("without", [None, "residuals"])
def test_no_figure_leaves_half_a_row_empty(open_page, without):
    page = open_page()
    if without:
        page.evaluate(f"""() => {{
            page.figures.{without} = null;
            const figures = [...document.querySelectorAll("[data-figure]")];
            figures.forEach(drawFigure);
            fillLastRow(figures);
        }}""")
    rows = page.evaluate("""() => {
        const width = document.querySelector(".charts").clientWidth, tops = new Map();
        for (const figure of document.querySelectorAll("[data-figure]:not([hidden])")) {
            const box = figure.getBoundingClientRect();
            tops.set(Math.round(box.top), (tops.get(Math.round(box.top)) ?? 0) + box.width);
        }
        return [...tops.values()].map((sum) => sum / width);
    }""")
    assert len(rows) == 4
    assert min(rows) > 0.9


def test_every_figure_has_points_and_shows_a_run_under_the_pointer(open_page):
    page = open_page()
    names = page.locator("[data-figure]:visible").evaluate_all("items => items.map(item => item.dataset.figure)")
    assert names == ["profiles", "params", "tokens", "frontier", "ratio", "residuals", "curves"]
    for name in names:
        svg = page.locator(f"[data-figure={name}] svg")
        svg.scroll_into_view_if_needed()
        # The middle of a dot, or the last point of a line.
        x, y = svg.evaluate("""svg => {
            const dot = svg.querySelector("[data-mark=dot] circle, [data-mark=dot] path");
            const line = svg.querySelector("[data-mark=line] path, path[data-mark=line]");
            const box = dot?.getBoundingClientRect();
            if (box) return [box.x + box.width / 2, box.y + box.height / 2];
            const end = line.getPointAtLength(line.getTotalLength()).matrixTransform(line.getScreenCTM());
            return [end.x - 1, end.y];
        }""")
        page.mouse.move(x - 1, y)
        page.mouse.move(x, y)
        tip = svg.locator("[data-mark=tip] text")
        tip.wait_for(state="attached", timeout=5000)
        assert re.search(r"(run|C|loss) ", tip.text_content()), name


def test_buttons_save_csv_svg_and_png(open_page, tmp_path):
    page = open_page()
    saved = {}
    for selector in ("#save-csv", "#figure-profiles [data-save=svg]", "#figure-profiles [data-save=png]"):
        with page.expect_download() as waiting:
            page.click(selector)
        waiting.value.save_as(tmp_path / waiting.value.suggested_filename)
        saved[waiting.value.suggested_filename] = (tmp_path / waiting.value.suggested_filename).read_bytes()
    assert saved["runs.csv"].count(b"\n") == 28
    assert saved["runs.csv"].startswith(b"id,status,params,tokens,flops,loss")
    assert saved["profiles.svg"].startswith(b"<svg")
    assert saved["profiles.png"].startswith(b"\x89PNG")


def test_texts_that_a_spreadsheet_takes_for_formulas_are_marked(open_page):
    page = open_page()
    shown = page.evaluate("toCsv(['a', 'b'], [{a: '=1+1', b: -2}, {a: 'x,\"y', b: null}])")
    assert shown == 'a,b\n\'=1+1,-2\n"x,""y",'


def luminance(color):
    channels = [int(value) / 255 for value in re.findall(r"\d+", color)[:3]]
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_marks_have_a_contrast_of_at_least_three_to_one(open_page, scheme):
    """WCAG 2.2, success criterion 1.4.11."""
    page = open_page(scheme=scheme)
    paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    colors = page.evaluate("""() => [...document.querySelectorAll(
        '[data-mark=line] path, [data-mark=line], [data-mark=dot] circle, [data-mark=text] text'
    )].flatMap(mark => { const style = getComputedStyle(mark); return [style.fill, style.stroke]; })""")
    grid = page.evaluate("palette().grid"), page.evaluate("palette().paper")
    skipped = {page.evaluate(f"d3.color('{color}').formatRgb()") for color in grid}
    seen = {color for color in colors if color.startswith("rgb(")} - skipped
    assert len(seen) >= 5
    for color in seen:
        light, dark = sorted((luminance(color), paper), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, color


# ---------------------------------------------------------------------------- for every reader


def find_violations(page):
    """What axe-core finds on a page with all its details open."""
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    violations = page.evaluate("axe.run().then(result => result.violations)")
    return [(item["impact"], item["id"], item["nodes"][0]["html"][:200]) for item in violations]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_violation(open_page, width, scheme):
    assert find_violations(open_page(width=width, scheme=scheme, bypass_csp=True)) == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_narrow_page_does_not_scroll_sideways(open_page, scheme):
    page = open_page(width=390, scheme=scheme)
    page.evaluate("for (const details of document.querySelectorAll('details')) details.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.fill("#budget-flops", "1e30")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_keyboard_reaches_the_field_the_table_and_the_details(open_page):
    page = open_page()
    reached = set()
    for _ in range(120):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"budget-flops", "budget-serving", "run-search", "save-csv", "SUMMARY", "A"} <= reached


def test_the_skip_link_comes_first_and_leads_to_the_answer(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    assert page.locator("a.skip:focus").bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#answer"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.closest('section').id") == "answer"


def test_enter_on_a_heading_sorts_and_the_focus_is_visible(open_page):
    page = open_page()
    page.focus("#save-csv")
    for _ in range(2):  # the table that scrolls, then its first heading
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert page.get_attribute("#run-table thead th >> nth=0", "aria-sort") == "ascending"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_paper_is_light_has_no_fields_and_cuts_nothing(open_page):
    """A dark page while it is printed, 680 pixels wide: A4 without the margins."""
    page = open_page(width=680, scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    styles = "const style = getComputedStyle(document.body); return [style.backgroundColor, style.color]"
    paper, ink = page.evaluate(f"() => {{ {styles} }}")
    assert luminance(paper) == 1
    assert luminance(ink) < 0.1
    assert page.evaluate("palette().paper") == "#ffffff"
    assert page.locator("input:visible, select:visible, nav:visible, .chart-actions:visible").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 680
    sizes = "items => items.map(item => item.clientWidth)"
    assert page.locator("[data-figure]:visible svg").evaluate_all(sizes) == [680, *[328] * 6]
    box = page.locator("#runs .scroll")
    assert box.evaluate("box => box.scrollHeight") == box.evaluate("box => box.clientHeight")
    assert page.locator("details.quiet:not([open])").count() == 0
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details.quiet:not([open])").count() > 0
    assert page.evaluate("palette().paper") == "#14171b"


def test_a_print_of_chromium_has_light_figures(open_page, tmp_path):
    page = open_page(scheme="dark")
    page.evaluate("addEventListener('beforeprint', () => (window.printed = palette().paper))")
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    assert page.evaluate("window.printed") == "#ffffff"


def test_without_javascript_the_answer_and_the_tables_are_there(browser, page_file):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert "For 1e21 training FLOPs, train" in page.inner_text("#answer")
    assert page.locator("#run-table tbody tr:visible").count() == 28
    assert "next to this page as PNG and SVG" in page.inner_text("#figures")
    assert not page.locator("#budget-form").is_visible()
    context.close()


def test_a_page_without_a_law_works(open_page, tmp_path):
    results = make_results()[:9]
    files = write_report(
        tmp_path,
        observations=observations(results),
        fit=None,
        optimum=None,
        results=results,
        plan=made_up_fits.plan([*results, made_up_fits.result(seed=99)]),
        context=ReportContext(missing="train more", source="runs/study"),
    )
    page = open_page(files[0])
    assert "No law yet." in page.inner_text("#answer")
    assert page.locator("#figure-profiles svg [data-mark=dot] circle").count() == 9
    page.click("#run-table thead button >> nth=2")
    assert page.get_attribute("#run-table thead th >> nth=2", "aria-sort") == "ascending"


def test_a_law_without_intervals_and_without_runs_works(open_page, tmp_path):
    def bare(flops):
        full = made_up_fits.true_optimum(flops)
        return full.model_copy(
            update={name: Interval(value=getattr(full, name).value) for name in ("params", "tokens", "loss")}
        )

    page = open_page(write_report(tmp_path, observations=[], fit=made_up_fits.law_fit(), optimum=bare)[0])
    page.fill("#budget-flops", "3e20")
    shown = prediction(page)
    assert shown["params"]["value"] == pytest.approx(made_up_fits.best_params(3e20), rel=0.005)
    assert shown["params"]["low"] is None
    assert page.locator("#budget-serving").count() == 0


# ---------------------------------------------------------------------------- two studies, and tasks


@pytest.fixture(scope="module")
def overlay_file(tmp_path_factory):
    """The page of two studies; B has losses lower by 2% and the same conventions."""
    results = make_results()
    better = [item.model_copy(update={"loss": item.loss and 0.98 * item.loss}) for item in results]
    sides = []
    for name, runs in (("base", results), ("better", better)):
        law = ParametricFitter(draws=100).fit(observations(runs))
        sides.append(
            Side(
                name,
                source=f"runs/{name}",
                fit=law,
                optimum=partial(optimum, law),
                observations=observations(runs),
                plan=made_up_fits.plan(runs),
                results=runs,
            )
        )
    gain = Gain(compare(sides[0].observations, sides[1].observations), command="flops-fit compare base better")
    file = tmp_path_factory.mktemp("overlay") / "index.html"
    file.write_text(render_overlay(build_content(*sides, list_conventions(*sides), gain, False)), encoding="utf-8")
    return file


def test_the_page_of_two_studies_draws_both_with_labels_in_every_figure(open_page, overlay_file):
    page = open_page(overlay_file)
    names = page.locator("[data-figure]:visible").evaluate_all("items => items.map(item => item.dataset.figure)")
    assert names == ["profiles", "params", "tokens", "frontier", "ratio", "gain"]
    colors = page.evaluate("sides.map(side => d3.color(sideColor(side)).formatRgb())")
    for name in names[:-1]:
        svg = page.locator(f"[data-figure={name}] svg")
        labels = svg.locator("[data-mark=text] text").all_text_contents()
        assert {"A base", "B better"} <= set(labels), name
        drawn = svg.evaluate("""svg => [...svg.querySelectorAll("[data-mark=line], [data-mark=line] path")]
            .map(line => getComputedStyle(line).stroke)""")
        assert set(colors) <= set(drawn), name


def test_a_budget_on_the_page_of_two_studies_has_the_optima_of_both(open_page, overlay_file):
    page = open_page(overlay_file)
    svg = page.locator("[data-figure=params] svg")
    svg.scroll_into_view_if_needed()
    box = svg.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    tip = svg.locator("[data-mark=tip] text")
    tip.wait_for(state="attached", timeout=5000)
    assert re.search(r"C \S+.*A \S+ \(.*B \S+ \(", tip.text_content(), re.DOTALL)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_two_hues_have_a_contrast_of_at_least_three_to_one(open_page, overlay_file, scheme):
    page = open_page(overlay_file, scheme=scheme)
    paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    for color in page.evaluate("sides.map(side => d3.color(sideColor(side)).formatRgb())"):
        light, dark = sorted((luminance(color), paper), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, color


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_violation_on_the_page_of_two_studies(open_page, overlay_file, width, scheme):
    page = open_page(overlay_file, width=width, scheme=scheme, bypass_csp=True)
    assert find_violations(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_task_has_a_figure_with_its_runs(open_page, tmp_path):
    runs = observations(make_results())
    accuracy = np.array([0.25 + 0.75 / (1 + math.exp(2 * (run.loss - 3))) for run in runs])
    columns = {
        name: np.array([getattr(run, name) for run in runs]) for name in ("params", "tokens", "flops", "loss")
    }
    ids = tuple(run.id for run in runs)
    scores = TaskScores(
        "arc/acc", "loss", ids, **columns, accuracy=accuracy, trajectories=ids, main_loss=columns["loss"]
    )
    task = describe_task(fit_task(scores, chance=0.25, draws=50), scores)
    file = tmp_path / "index.html"
    content = ReportContent("study", observations=runs, context=ReportContext(tasks=[task]))
    file.write_text(render_page(content), encoding="utf-8")
    page = open_page(file, width=390, bypass_csp=True)
    assert page.locator("[data-figure=task-1] [data-mark=dot] circle").count() == len(runs)
    assert page.locator("#tasks tbody tr").count() == 3
    assert find_violations(page) == []
