"""The written report."""

import csv
import re
from collections import Counter
from html.parser import HTMLParser

import made_up_fits
import pytest

from flops_fit_core import Diagnostic, Interval, RunError
from flops_fit_core.report import write_report
from flops_fit_core.report.page import ReportContent, ReportFigure, render_page
from flops_fit_core.report.provenance import provenance

BUDGETS = (1e18, 1e19, 1e20)
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects what a browser would see, and refuses tags that do not match."""

    def __init__(self, html):
        super().__init__()
        self.open, self.attributes, self.words = [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *attribute) for attribute in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


SVG = '<svg width="9" height="9"><path d="M0 0h9"/></svg>'


def page_of(*, flops=1e22, optimum=made_up_fits.true_optimum, **changes):
    defaults = {
        "title": "study",
        "fit": made_up_fits.law_fit(),
        "predictions": [optimum(flops)],
        "answer": optimum(flops),
    }
    return Page(render_page(ReportContent(**{**defaults, "figures": [ReportFigure(SVG, "caption")], **changes})))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A whole report, over an earlier one."""
    folder = tmp_path_factory.mktemp("study") / "report"
    defaults = {
        "observations": made_up_fits.runs(BUDGETS),
        "fit": made_up_fits.law_fit(),
        "optimum": made_up_fits.true_optimum,
    }
    folder.mkdir()
    (folder / "index.html").write_text("an earlier report")
    return write_report(folder, **defaults, results=[made_up_fits.result(synthetic=True)])


def read(path):
    return path.read_text(encoding="utf-8")


def test_the_page_answers_in_words_with_the_true_optimum():
    page = page_of(flops=1e22)
    # From the closed form of the surface's optimum, by hand: N = 8.98e9, D = 1.855e11.
    assert made_up_fits.best_params(1e22) == pytest.approx(9.0e9, rel=0.01)
    params = made_up_fits.best_params(1e22)
    tokens = 1e22 / 6 / params
    expected = (
        f"For C = 1e22 training FLOPs, train N = {params / 1e9:.2f}B parameters "
        f"({params / 1.2e9:.2f}B to {params * 1.2 / 1e9:.1f}B) on D = {tokens / 1e9:.0f}B tokens "
        f"({tokens / 1.2e9:.0f}B to {tokens * 1.2 / 1e9:.0f}B), {tokens / params:.1f} tokens per parameter."
    )
    assert expected in page.text


def test_without_budgets_the_page_answers_for_ten_times_the_largest_fitted_budget(report):
    assert "For C = 1e21 training FLOPs" in Page(read(report[0])).text
    rows = csv.DictReader(read(report[0].with_name("predictions.csv")).splitlines())
    assert [float(row["flops"]) for row in rows] == [1e20, 1e21, 1e22]


def test_the_files_are_figures_tables_and_the_page_first(report):
    assert [path.name for path in report] == [
        *("index.html", "isoflop.png", "isoflop.svg", "optimum.png", "optimum.svg"),
        *("tokens-per-param.png", "tokens-per-param.svg", "frontier.png", "frontier.svg"),
        *("predicted.png", "predicted.svg", "minima.csv", "predictions.csv", "runs.csv"),
    ]
    assert all(path.stat().st_size > 50 for path in report)


def test_an_earlier_report_is_replaced(report):
    assert set(report[0].parent.iterdir()) == set(report)
    assert "an earlier report" not in read(report[0])


def test_the_report_predicts_for_the_largest_budget_and_ten_and_a_hundred_times_as_much(report):
    largest = made_up_fits.law_fit().flops_range[1]
    (file,) = [path for path in report if path.name == "predictions.csv"]
    rows = list(csv.DictReader(read(file).splitlines()))
    assert [float(row["flops"]) for row in rows] == pytest.approx([largest, 10 * largest, 100 * largest])
    assert largest == 1e20
    assert "For C = 1e21 training FLOPs" in re.sub(r"<[^>]+>|\s+", " ", read(report[0]))


def test_the_page_loads_no_external_resources(report):
    page = Page(read(report[0]))
    loading = {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}
    external = [value for _, name, value in page.attributes if name in loading and not value.startswith("#")]
    assert external == []
    styles = " ".join(value or "" for _, name, value in page.attributes if name in ("style", "clip-path"))
    assert set(re.findall(r"url\((.)", styles)) <= {"#"}
    assert not {tag for tag, *_ in page.attributes} & {"script", "link", "iframe", "img"}


def test_no_id_is_used_twice_and_every_reference_has_its_target(report):
    page = Page(read(report[0]))
    ids = Counter(value for _, name, value in page.attributes if name == "id")
    assert ids
    assert set(ids.values()) == {1}
    used = {value[1:] for _, name, value in page.attributes if name in ("href", "xlink:href")}
    used |= {
        reference for _, _, value in page.attributes for reference in re.findall(r"url\(#([^)]+)\)", value or "")
    }
    assert used
    assert used <= set(ids)


def test_external_text_cannot_become_markup():
    evil = "<script>alert(1)</script>"
    failed = made_up_fits.result(
        status="failed", loss=None, error=RunError(type="ValueError", message=evil), device=evil
    )
    fit = made_up_fits.law_fit(
        params_name=evil, excluded={"row 1": evil}, diagnostics=(Diagnostic(code="x", message=evil),)
    )
    plan = made_up_fits.plan([failed], notes=(evil,))
    page = page_of(fit=fit, results=[failed], plan=plan, title=evil, figures=[ReportFigure(SVG, evil)])
    assert "script" not in page.open
    assert not [tag for tag, *_ in page.attributes if tag == "script"]
    assert page.text.count(evil) >= 7


def test_unused_runs_are_listed_by_reason():
    fit = made_up_fits.law_fit(
        excluded={"run-a": "its budget has no minimum", "run-b": "its budget has no minimum"}
    )
    diverged = made_up_fits.result(status="diverged", loss=None, seed=3)
    page = page_of(fit=fit, results=[diverged])
    assert "its budget has no minimum: run-a run-b" in page.text
    assert f"diverged: {diverged.id}" in page.text


def test_warnings_come_before_notes():
    diagnostics = (
        Diagnostic(code="a", message="just so you know", severity="note"),
        Diagnostic(code="b", message="this is bad"),
    )
    page = page_of(fit=made_up_fits.law_fit(diagnostics=diagnostics))
    assert page.text.index("this is bad") < page.text.index("just so you know")


def test_synthetic_results_make_a_synthetic_report(report):
    assert "nothing was trained" in Page(read(report[0])).text
    assert "nothing was trained" not in page_of(results=[made_up_fits.result()]).text


def test_a_fit_without_intervals_is_reported_as_such():
    def bare(flops):
        full = made_up_fits.true_optimum(flops)
        return full.model_copy(
            update={name: Interval(value=getattr(full, name).value) for name in ("params", "tokens", "loss")}
        )

    page = page_of(optimum=bare, fit=made_up_fits.law_fit(exponents={"a": Interval(value=0.5)}))
    assert "The fit has no intervals" in page.text
    assert "(" not in page.text[page.text.index("For C =") : page.text.index("Expected held-out")]


# ---------------------------------------------------------------------------- provenance


def facts(results, **fit):
    return {fact.name: fact.value for fact in provenance(made_up_fits.law_fit(**fit), results)}


def test_an_option_that_differs_between_runs_varies():
    items = facts([made_up_fits.result(width=16), made_up_fits.result(width=32)])
    assert items["Model"] == "gpt/gpt (width varies)"
    assert items["Optimizer"] == "optim/adamw (lr 0.008)"


def test_a_mix_of_versions_is_shown_as_one():
    later = made_up_fits.result(seed=1, versions={"torch": "2.14.1", "flops-fit": "0.1.0"})
    assert facts([made_up_fits.result(), later])["Versions"] == "flops-fit 0.1.0, torch 2.13.0 and 2.14.1"


def test_seeds_and_totals_are_those_of_the_runs():
    items = facts([made_up_fits.result(seed=0), made_up_fits.result(seed=7)])
    assert items["Seeds of the runs"] == "0, 7"
    assert items["Runs"] == "2 completed"
    assert items["Trained"] == "2.4e7 FLOPs, 5.0 s wall time, summed over runs"


def test_bootstrap_draws_are_counted_with_those_that_failed():
    items = facts([], draws={"a": (0.5, 0.51, 0.49)}, failed_draws=2, seed=4)
    assert items["Bootstrap"] == "3 draws, 2 more failed, seed 4, 90% intervals"
    assert facts([])["Bootstrap"] == "none"


def test_synthetic_runs_are_not_reported_as_trained():
    items = facts([made_up_fits.result(synthetic=True)])
    assert items["Trained"] == "nothing: the losses were computed from a formula"


def test_runs_with_other_conventions_than_the_fit_are_reported():
    assert "Conventions of the runs" not in facts([made_up_fits.result()])
    assert "model's own" in facts([made_up_fits.result(flops_name="model's own")])["Conventions of the runs"]
