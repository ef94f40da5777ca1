"""The page of two studies, tables or fits."""

import csv
from collections import Counter

import made_up_fits
import pytest
from test_page import EVIL, SHOWN, Page, read

from flops_fit_core import Diagnostic, Interval
from flops_fit_core.fitting import compare
from flops_fit_core.report.overlay import Gain, Side, list_conventions, write_overlay
from flops_fit_core.report.overlay.answers import answers_table
from flops_fit_core.report.overlay.content import build_content
from flops_fit_core.report.overlay.conventions import find_refused, list_assumed
from flops_fit_core.report.overlay.rendering import FILES, render_overlay
from flops_fit_core.report.overlay.side import read_labels
from flops_fit_core.report.page import assets

BUDGETS = (1e18, 1e19, 1e20)


def better_optimum(flops):
    """The true optimum with 1.5 times the parameters, 2 / 3 of the tokens and a loss lower by 0.1."""
    optimum = made_up_fits.true_optimum(flops)
    factors = {"params": 1.5, "tokens": 1 / 1.5}
    changes = {name: scaled(getattr(optimum, name), factor) for name, factor in factors.items()}
    loss = optimum.loss
    changes["loss"] = Interval(value=loss.value - 0.1, low=loss.low - 0.1, high=loss.high - 0.1)
    return optimum.model_copy(update=changes)


def scaled(interval, factor):
    return Interval(value=interval.value * factor, low=interval.low * factor, high=interval.high * factor)


def side(name="base", optimum=made_up_fits.true_optimum, **changes):
    results = [made_up_fits.result(seed=seed) for seed in range(3)]
    defaults = {
        "source": f"runs/{name}",
        "fit": made_up_fits.law_fit(),
        "observations": made_up_fits.runs(BUDGETS),
        "plan": made_up_fits.plan(results),
        "results": results,
    }
    return Side(name, optimum=optimum, **{**defaults, **changes})


def table_side(name="a.csv", **changes):
    fit = made_up_fits.law_fit(params_name="as given", flops_name="as given")
    columns = {"params": "params", "tokens": "tokens", "loss": "loss"}
    return side(name, **{"fit": fit, "plan": None, "results": (), "columns": columns, **changes})


def show(first, second, gain=None, *, allow_differences=False):
    """The content and the page of two sides, without files."""
    conventions = list_conventions(first, second)
    gain = gain or Gain(refusal="not asked for")
    content = build_content(first, second, conventions, gain, allow_differences)
    return content, Page(render_overlay(content))


# ---------------------------------------------------------------------------- conventions


def other_plan(**changes):
    return made_up_fits.plan([made_up_fits.result()], **changes)


def other_data(fingerprint):
    result = made_up_fits.result()
    run = result.run.model_copy(update={"fingerprint": fingerprint})
    return made_up_fits.plan([result.model_copy(update={"run": run})])


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"plan": other_plan(params_name="all parameters")}, {"params"}),
        ({"plan": other_plan(flops_name="traced")}, {"params", "tokens", "loss"}),
        ({"plan": other_plan(unit="images")}, {"tokens", "loss"}),
        ({"plan": other_data("def")}, {"loss"}),
        ({"eval_set": "code"}, {"loss"}),
    ],
    ids=["N", "C", "D", "data", "held-out set"],
)
def test_a_difference_in_a_convention_refuses_the_quantities_that_depend_on_it(change, refused):
    assert find_refused(list_conventions(side(), side("other"))) == {}
    first, second = side(), side("other", better_optimum, **change)
    assert set(find_refused(list_conventions(first, second))) == refused
    content, page = show(first, second)
    # Without a common count of C, there is no common budget.
    assert len(content.pairs) == (0 if len(refused) == 3 else 3)
    for name in ("params", "tokens", "loss"):
        assert all((name in pair.differences) == (name not in refused) for pair in content.pairs), name
    assert page.text.index("Not compared:") < page.text.index("Answers next to each other")
    figures = {value for _, name, value in page.attributes if name == "data-figure"}
    drawn = {"params": {"params"}, "tokens": {"tokens"}, "loss": {"frontier", "profiles"}}
    assert not figures & set().union(*(drawn[name] for name in refused))


def test_differences_are_compared_with_a_warning_if_you_allow_them():
    first, second = side(), side("other", better_optimum, plan=other_data("def"))
    _, page = show(first, second, allow_differences=True)
    warning = "Compared because differences are allowed: the loss , although the datasets differ"
    assert page.text.index(warning) < page.text.index("−0.1000")


def test_tables_record_no_conventions_and_the_page_states_what_it_assumes():
    first, second = table_side(), table_side("b.csv", optimum=better_optimum)
    conventions = list_conventions(first, second)
    assert find_refused(conventions) == {}
    assert set(list_assumed(conventions, "loss")) == {
        *("the count of C", "the unit of D", "the data", "the held-out set", "the unit of the loss"),
    }
    _, page = show(first, second)
    assert "Under the assumptions above, the loss of B is lower by 0.1000." in page.text


@pytest.mark.parametrize(
    ("first", "second", "refused"),
    [
        ({"columns": {"loss": "c4_loss"}}, {"columns": {"loss": "code_loss"}}, {"loss"}),
        ({"columns": {"params": "params_no_embed"}}, {"columns": {"params": "params_total"}}, {"params"}),
        ({"labels": {"dataset": "c4"}}, {"labels": {"dataset": "owt"}}, {"loss"}),
        ({"labels": {"tokenizer": "gpt2"}}, {"labels": {"tokenizer": "bytes"}}, {"tokens", "loss"}),
        ({"diagnostics": (Diagnostic(code="bits", message="in bits"),)}, {}, {"loss"}),
    ],
    ids=["loss column", "N column", "dataset column", "tokenizer column", "bits"],
)
def test_columns_of_tables_that_differ_refuse_a_comparison(first, second, refused):
    assert set(find_refused(list_conventions(table_side(**first), table_side(**second)))) == refused


def test_evidence_of_other_units_in_the_losses_refuses_their_difference():
    conventions = list_conventions(table_side(), table_side("b.csv"), "the losses of A are 1.44 times those of B")
    assert find_refused(conventions) == {"loss": "the losses of A are 1.44 times those of B"}


def test_labels_are_the_texts_of_a_column_that_names_the_data():
    cells = [{"Train Set": "c4", "tokenizer": "gpt2", "lr": "1"}, {"Train Set": "pile", "tokenizer": "gpt2"}]
    assert read_labels(cells) == {"dataset": "c4, pile", "tokenizer": "gpt2"}
    assert read_labels([]) == {}


# ---------------------------------------------------------------------------- answers


def test_answers_stand_next_to_each_other_at_the_common_budgets():
    """Intervals by hand: +- 20% of N in both give a ratio of 1.5 within a factor of exp(sqrt(2) ln 1.2)."""
    content, page = show(side(), side("other", better_optimum))
    rows = answers_table(content.pairs, "").rows
    assert [float(row["flops"]) for row in rows] == list(BUDGETS)
    for row in rows:
        params = made_up_fits.best_params(float(row["flops"]))
        assert float(row["params_a"]) == pytest.approx(params)
        assert float(row["params_b"]) == pytest.approx(1.5 * params)
        assert float(row["params_ratio"]) == pytest.approx(1.5)
        assert float(row["params_ratio_high"]) == pytest.approx(1.5 * 1.2**2**0.5)
        assert float(row["params_ratio_low"]) == pytest.approx(1.5 / 1.2**2**0.5)
        assert float(row["loss_difference"]) == pytest.approx(-0.1)
        half = ((0.01 * float(row["loss_a"])) ** 2 * 2) ** 0.5
        assert float(row["loss_difference_low"]) == pytest.approx(-0.1 - half)
    assert "For 1e20 training FLOPs, the largest budget that both reach" in page.text
    assert "B / A 1.50" in page.text
    assert "The loss of B is lower by 0.1000. N opt of B is larger: 1.50 times that of A." in page.text


def test_the_files_are_the_page_the_figures_and_the_tables(tmp_path):
    gain = Gain(compare(made_up_fits.runs(BUDGETS, noise=0.001), made_up_fits.runs(BUDGETS)))
    first, second = side(), side("other", better_optimum)
    files = write_overlay(tmp_path / "new", first, second, list_conventions(first, second), gain)
    figures = [
        f"{name}.{ending}" for name in ("isoflop", "optimum", "frontier", "gain") for ending in ("png", "svg")
    ]
    assert [path.name for path in files] == ["index.html", *figures, "answers.csv", "gains.csv"]
    (row, *_) = csv.DictReader(read(tmp_path / "new" / "answers.csv").splitlines())
    assert float(row["params_ratio"]) == pytest.approx(1.5)


def test_laws_of_one_study_show_no_difference():
    _, page = show(side(), side("again"))
    assert "The intervals show no difference in N opt , D opt and the loss." in page.text


def test_an_optimum_outside_the_trained_sizes_is_marked():
    def above(flops):
        return better_optimum(flops).model_copy(update={"outside": "above"})

    _, page = show(side(), side("other", above))
    assert "N opt of B lies above its trained sizes. The loss" in page.text


def test_only_budgets_that_both_reach_are_compared():
    second = side("small", fit=made_up_fits.law_fit(flops_range=(1e17, 3e18)), observations=())
    content, _ = show(side(observations=()), second)
    budgets = [pair.flops for pair in content.pairs]
    assert (budgets[0], budgets[-1]) == (1e18, 3e18)


def test_budgets_that_do_not_overlap_have_no_comparison():
    second = side("tiny", fit=made_up_fits.law_fit(flops_range=(1e10, 1e12)))
    content, page = show(side(), second)
    assert "The budgets do not overlap: A reaches C = 1e18 to 1e20 and B reaches C = 1e10 to 1e12." in page.text
    assert content.pairs == ()


def test_levels_that_differ_give_differences_without_intervals():
    content, page = show(side(), side("other", better_optimum, fit=made_up_fits.law_fit(level=0.5)))
    assert {item.low for pair in content.pairs for item in pair.differences.values()} == {None}
    assert "Differences have no interval, because the levels differ." in page.text


def test_a_side_without_a_law_has_its_runs_and_the_reason():
    second = side("sweep", fit=None, optimum=None, missing="train more\nsizes")
    _, page = show(side(), second)
    assert "B has no law yet: train more." in page.text
    assert len(page.data["sides"][1]["runs"]) == 21
    assert page.data["sides"][1]["curve"] == []


# ---------------------------------------------------------------------------- the page


def test_the_page_is_one_safe_file():
    results = [made_up_fits.result(device=EVIL)]
    plan = made_up_fits.plan(results, params_name=EVIL, flops_name=EVIL, unit=EVIL)
    diagnostics = (Diagnostic(code="x", message=EVIL),)
    evil = side(EVIL, plan=plan, fit=made_up_fits.law_fit(diagnostics=diagnostics), missing=EVIL, source=EVIL)
    _, page = show(side(), evil, Gain(refusal=EVIL, command=EVIL))
    assert len(page.scripts) == 1 + len(assets.LIBRARIES) + 1
    assert page.text.count(SHOWN) >= 10
    loading = {"src", "href", "srcset", "action"}
    assert [value for _, name, value in page.attributes if name in loading and not value.startswith("#")] == []
    ids = Counter(value for _, name, value in page.attributes if name == "id")
    assert set(ids.values()) == {1}
    assert {value[1:] for _, name, value in page.attributes if name == "href"} <= set(ids)


def test_every_file_of_the_page_is_used():
    folder = FILES.styles[-2].parents[1]
    used = {path.name for path in (*FILES.styles, *FILES.modules)}
    assert {path.name for kind in ("css", "js") for path in (folder / kind).iterdir()} <= used


def test_no_name_of_the_joined_script_is_declared_twice():
    names = Counter()
    for line in assets.scripts(FILES)[-1].splitlines():
        words = [] if line.startswith(" ") else line.replace("(", " ").replace("async ", "").split()
        if words[:1] and words[0] in ("const", "let", "function", "class") and words[1] != "{":
            names[words[1]] += 1
    assert len(names) > 40
    assert [name for name, count in names.items() if count > 1] == []
