"""The written report."""

import csv
import json
import re
from collections import Counter
from html.parser import HTMLParser

import made_up_fits
import pytest

from flops_fit_core import Diagnostic, FitError, Interval, RunError
from flops_fit_core.report import write_report
from flops_fit_core.report.page import ReportContent, ReportContext, render_page
from flops_fit_core.report.page.assets import FOLDER, LIBRARIES, MODULES, STYLES, script_json, scripts
from flops_fit_core.report.page.figure_data import loss_curves
from flops_fit_core.report.page.prediction_grid import prediction_grid
from flops_fit_core.report.page.run_rows import group_errors
from flops_fit_core.report.provenance import provenance

BUDGETS = (1e18, 1e19, 1e20)
VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects what a browser would see, and refuses tags that do not match."""

    def __init__(self, html):
        super().__init__()
        self.open, self.attributes, self.words, self.scripts = [], [], [], []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, *attribute) for attribute in attrs]
        if tag == "script":
            self.scripts.append(dict(attrs))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, *attribute) for attribute in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts[-1]["text"] = data
        elif self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self):
        return " ".join("".join(f" {word}" for word in self.words).split())

    @property
    def data(self):
        """What the scripts of the page read."""
        (text,) = [script["text"] for script in self.scripts if script.get("type") == "application/json"]
        return json.loads(text)


def page_of(*, flops=1e22, optimum=made_up_fits.true_optimum, **changes):
    fit = made_up_fits.law_fit()
    defaults = {"title": "study", "fit": fit, "predictions": [optimum(flops)], "answer": optimum(flops)}
    return Page(render_page(ReportContent(**{**defaults, **changes})))


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
    sentence = f"For 1e22 training FLOPs, train {params / 1e9:.2f}B parameters on {tokens / 1e9:.0f}B tokens"
    assert sentence in page.text
    assert f"Parameters N {params / 1e9:.2f}B {params / 1.2e9:.2f}B to {params * 1.2 / 1e9:.1f}B" in page.text
    assert f"Tokens D {tokens / 1e9:.0f}B {tokens / 1.2e9:.0f}B to {tokens * 1.2 / 1e9:.0f}B" in page.text
    assert f"Tokens per parameter {tokens / params:.1f}" in page.text


def test_without_budgets_the_page_answers_for_ten_times_the_largest_fitted_budget(report):
    assert "For 1e21 training FLOPs" in Page(read(report[0])).text
    rows = csv.DictReader(read(report[0].with_name("predictions.csv")).splitlines())
    assert [float(row["flops"]) for row in rows] == [1e20, 1e21, 1e22]


def test_the_files_are_figures_tables_and_the_page_first(report):
    assert [path.name for path in report] == [
        *("index.html", "isoflop.png", "isoflop.svg", "optimum.png", "optimum.svg"),
        *("tokens-per-param.png", "tokens-per-param.svg", "frontier.png", "frontier.svg"),
        *("predicted.png", "predicted.svg", "minima.csv", "predictions.csv", "runs.csv"),
    ]
    assert all(path.stat().st_size > 50 for path in report)


def test_a_profile_reaches_from_its_smallest_to_its_largest_size(report):
    profiles = Page(read(report[0])).data["figures"]["profiles"]
    drawn = {profile["budget"]: profile["params"] for profile in profiles if profile["params"]}
    ends = {minimum.budget: minimum.curve for minimum in made_up_fits.law_fit().minima}
    assert len(drawn) == len(BUDGETS)
    for budget, params in drawn.items():
        curve = ends[budget]
        assert [params[0], params[-1]] == pytest.approx([curve["smallest"], curve["largest"]], rel=1e-5)


def test_an_earlier_report_is_replaced(report):
    assert set(report[0].parent.iterdir()) == set(report)
    assert "an earlier report" not in read(report[0])


def test_equal_content_gives_equal_pages():
    results = [made_up_fits.result(), made_up_fits.result(seed=1)]
    content = ReportContent(
        title="study", fit=made_up_fits.law_fit(), answer=made_up_fits.true_optimum(1e21), results=results
    )
    assert render_page(content) == render_page(content)


# ---------------------------------------------------------------------------- safety


def test_the_page_loads_no_external_resources(report):
    page = Page(read(report[0]))
    loading = {"src", "href", "xlink:href", "srcset", "data", "action", "poster"}
    external = [value for _, name, value in page.attributes if name in loading and not value.startswith("#")]
    assert external == []
    assert not {tag for tag, *_ in page.attributes} & {"link", "iframe", "img", "object", "embed"}
    assert "url(" not in "".join(read(FOLDER / "css" / name) for name in STYLES)


def test_the_security_policy_allows_the_page_s_own_scripts_only(report):
    import base64
    import hashlib

    page = Page(read(report[0]))
    (policy,) = [value for tag, name, value in page.attributes if name == "content" and "default-src" in value]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    code = [script["text"] for script in page.scripts if "type" not in script]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in code]
    assert rules["script-src"].split() == [f"'sha256-{value}'" for value in hashes]
    assert "http" not in policy


def test_no_id_is_used_twice_and_every_reference_has_its_target(report):
    page = Page(read(report[0]))
    ids = Counter(value for _, name, value in page.attributes if name == "id")
    assert ids
    assert set(ids.values()) == {1}
    used = {value[1:] for _, name, value in page.attributes if name == "href"}
    used |= {value for _, name, value in page.attributes if name in ("for", "aria-labelledby")}
    assert used
    assert used <= set(ids)


EVIL = "<script>alert(1)</script><!--\u2028\x1b[2J"
SHOWN = "<script>alert(1)</script><!--\\u2028\\x1b[2J"


def evil_page(**changes):
    failed = made_up_fits.result(
        status="failed",
        loss=None,
        error=RunError(type="ValueError", message=EVIL, traceback=EVIL),
        device=EVIL,
        metrics={EVIL: 1.0},
    )
    fit = made_up_fits.law_fit(
        params_name=EVIL, unit=EVIL, excluded={"row 1": EVIL}, diagnostics=(Diagnostic(code="x", message=EVIL),)
    )
    plan = made_up_fits.plan([failed], notes=(EVIL,))
    context = ReportContext(source=EVIL, experiment=EVIL, missing=EVIL, peaks={EVIL: 1e15})
    grid = prediction_grid(fit, made_up_fits.true_optimum, None)
    content = {"fit": fit, "results": [failed], "plan": plan, "title": EVIL, "context": context, "grid": grid}
    return page_of(**{**content, **changes})


@pytest.mark.parametrize("with_law", [True, False])
def test_external_text_cannot_become_markup(with_law):
    page = evil_page() if with_law else evil_page(fit=None, answer=None, grid=None, predictions=[])
    assert "script" not in page.open
    assert len(page.scripts) == 1 + len(LIBRARIES) + 1
    assert page.text.count(SHOWN) >= (12 if with_law else 8)
    assert page.data["title"] == page.data["source"] == SHOWN
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]", json.dumps(page.data, ensure_ascii=False))


def test_json_in_a_script_cannot_end_it():
    value = {"</script>": ["<!--", "]]>", "a & b", "\u2028", "\x00", 1.5, None, True, {"x": "'\\\""}]}
    text = script_json(value)
    assert not set("<>&\u2028\x00") & set(text)
    assert json.loads(text) == {
        "</script>": ["<!--", "]]>", "a & b", "\\u2028", "\\x00", 1.5, None, True, {"x": "'\\\""}]
    }


# ---------------------------------------------------------------------------- scripts


def test_each_top_level_name_of_the_scripts_is_defined_in_one_module():
    """The page joins the modules into one script."""
    pattern = re.compile(
        r"^(?:export )?(?:async )?(?:function|const|let|class) (\w+|\[[^\]]*\]|{[^}]*})", re.MULTILINE
    )
    names = Counter(
        name
        for module in MODULES
        for text in pattern.findall(read(FOLDER / "js" / module))
        for name in re.findall(r"\w+", text)
    )
    assert len(names) > 40
    assert [name for name, count in names.items() if count > 1] == []


def test_each_module_imports_from_earlier_modules_and_all_are_used():
    assert sorted(path.name for path in (FOLDER / "js").iterdir()) == sorted(MODULES)
    assert sorted(path.name for path in (FOLDER / "css").iterdir()) == sorted(STYLES)
    for place, module in enumerate(MODULES):
        imported = re.findall(r'from "\./([\w.]+)"', read(FOLDER / "js" / module))
        assert set(imported) <= set(MODULES[:place]), module
    assert not re.search(r"^(import|export)\b", scripts()[-1], re.MULTILINE)


def test_the_vendored_libraries_are_those_of_the_readme():
    import hashlib

    text = read(FOLDER / "vendor" / "README.md")
    for name in LIBRARIES:
        assert hashlib.sha256((FOLDER / "vendor" / name).read_bytes()).hexdigest() in text
    assert {"LICENSE-d3.txt", "LICENSE-observable-plot.txt"} <= {
        path.name for path in (FOLDER / "vendor").iterdir()
    }


# ---------------------------------------------------------------------------- content


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
    assert " to " not in page.text[page.text.index("Parameters N") : page.text.index("The fit has no intervals")]


def out_of_memory(seed, gigabytes):
    message = (
        f"CUDA out of memory. Tried to allocate {gigabytes:.2f} GiB. GPU 0 has a total capacity of 79.11 GiB of "
        f"which 1.88 GiB is free. Process {1000 + seed} has 77.22 GiB memory in use."
    )
    error = RunError(type="OutOfMemoryError", message=message, traceback="Traceback\n  one place")
    return made_up_fits.result(status="failed", loss=None, seed=seed, error=error)


def test_errors_that_differ_in_numbers_are_one_group_and_each_text_is_stored_once():
    failed = [out_of_memory(seed, 2 + seed % 2) for seed in range(4)] + [out_of_memory(0, 2).model_copy()]
    other = made_up_fits.result(
        status="failed", loss=None, seed=9, error=RunError(type="ValueError", message="bad")
    )
    groups, number_by_run = group_errors([other, *failed])
    assert [len(group.runs) for group in groups] == [5, 1]
    assert len(groups[0].messages) == 4
    assert list(groups[0].tracebacks) == ["Traceback\n  one place"]
    assert number_by_run[other.id] == 2
    page = page_of(results=[other, *failed[:4]])
    assert page.text.count("Tried to allocate 2.00 GiB. GPU 0 has") == 3  # two processes and the summary
    assert page.text.count("one place") == 1
    assert "failed 5" in page.text


def test_loss_curves_have_at_most_200_points_with_both_ends():
    points = tuple({"step": step, "tokens": 10 * step, "loss": 5 - step / 1000} for step in range(1, 1001))
    result = made_up_fits.result(curve=points)
    (curve,) = loss_curves([result]).values()
    assert len(curve["at"]) == len(curve["loss"]) == 200
    assert (curve["at"][0], curve["at"][-1], curve["tokens"]) == (10, 10000, 10000)
    assert curve["loss"] == pytest.approx([5 - count / 10000 for count in curve["at"]], rel=1e-5)
    assert loss_curves([made_up_fits.result()]) == {}


def test_a_study_without_a_law_has_a_page_that_names_what_is_missing(tmp_path):
    done = made_up_fits.result()
    to_train = [made_up_fits.result(params=2000, width=32, seed=seed) for seed in range(3)]
    files = write_report(
        tmp_path,
        observations=made_up_fits.runs(BUDGETS[:1], sizes=1),
        fit=None,
        optimum=None,
        results=[done],
        plan=made_up_fits.plan([done, *to_train]),
        context=ReportContext(missing="train 9 runs or more", source="runs/x"),
    )
    page = Page(read(files[0]))
    assert [path.name for path in files] == ["index.html", "isoflop.png", "isoflop.svg", "runs.csv"]
    # 2.5 s for 6 x 1000 x 2000 FLOPs, and twice the FLOPs in each of three runs.
    assert "1 of 4 runs completed; 3 to train, about 15 s of training." in page.text
    assert "train 9 runs or more" in page.text
    assert "flops-fit report runs/x" in page.text
    assert page.data["grid"] is None
    assert "planned 3" in page.text


def test_the_report_of_a_saved_fit_needs_no_runs(tmp_path):
    fit, optimum = made_up_fits.law_fit(), made_up_fits.true_optimum
    files = write_report(tmp_path, observations=[], fit=fit, optimum=optimum, title="fit.json")
    assert "For 1e21 training FLOPs" in Page(read(files[0])).text
    assert {"optimum.svg", "tokens-per-param.svg", "frontier.svg"} < {path.name for path in files}
    assert "runs.csv" not in {path.name for path in files}


def test_a_law_without_an_optimum_is_an_error(tmp_path):
    def fail(flops):
        raise FitError("the law has no optimum")

    with pytest.raises(FitError, match="no optimum"):
        write_report(tmp_path, observations=[], fit=made_up_fits.law_fit(), optimum=fail)


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
    assert items["Trained"] == "no model was trained: the losses are those of a formula"


def test_runs_with_other_conventions_than_the_fit_are_reported():
    assert "Conventions of the runs" not in facts([made_up_fits.result()])
    assert "model's own" in facts([made_up_fits.result(flops_name="model's own")])["Conventions of the runs"]
