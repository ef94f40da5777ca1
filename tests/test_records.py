"""Records: the values in a run's id, and JSON that restores every record."""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError

from flops_fit_core import records
from flops_fit_core.plugins.registry import PluginSetup
from flops_fit_core.records import (
    Diagnostic,
    Evaluation,
    Hyperparameters,
    Interval,
    Job,
    Law,
    LawFit,
    LawMember,
    NewRunError,
    Observation,
    Optimum,
    ParameterCounts,
    PluginChoice,
    ProfileMinimum,
    Progress,
    Record,
    RunError,
    RunResult,
    RunSpec,
    SkippedCell,
    SweepPlan,
    Trajectory,
    canonical_json,
    content_hash,
)


def make_run(**changes: Any) -> RunSpec:
    values: dict[str, Any] = {
        "model": PluginChoice(name="gpt/gpt", options={"width": 16, "depth": 3}),
        "dataset": PluginChoice(name="text/text"),
        "fingerprint": "text 0123456789abcdef",
        "optimizer": PluginChoice(name="optim/adamw", options={"lr": 0.01, "betas": [0.9, 0.95]}),
        "schedule": PluginChoice(name="schedules/cosine"),
        "counter": PluginChoice(name="counters/model"),
        "trainer": PluginChoice(name="trainers/torch"),
        "batch_size": 8,
        "steps": 100,
        "tokens": 51_200,
        "seed": 0,
        "base_width": 64,
        "budget": 1e12,
        "size": 16,
        "params": 9_000,
        "flops_per_token": 60_000.0,
    }
    return RunSpec(**{**values, **changes})


def other_choice(choice: PluginChoice) -> list[PluginChoice]:
    return [
        PluginChoice(name=choice.name + "2", options=choice.options),
        PluginChoice(name=choice.name, options={**choice.options, "new": 1}),
        PluginChoice(name=choice.name, options=choice.options, revision=2),
    ]


CHOICES = ["model", "dataset", "optimizer", "schedule", "counter", "trainer"]


@pytest.mark.parametrize("kind", CHOICES)
def test_another_plugin_option_or_revision_is_another_run(kind: str) -> None:
    run = make_run()
    others = [make_run(**{kind: choice}).id for choice in other_choice(getattr(run, kind))]
    assert len({run.id, *others}) == 4


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("fingerprint", "text ffffffffffffffff"),
        ("batch_size", 9),
        ("steps", 101),
        ("tokens", 51_201),
        ("seed", 1),
        ("base_width", 32),
        ("base_width", None),
    ],
)
def test_another_value_is_another_run(field: str, value: object) -> None:
    assert make_run(**{field: value}).id != make_run().id


@pytest.mark.parametrize(
    ("field", "value"),
    [("budget", 2e12), ("size", "sixteen"), ("params", 1), ("flops_per_token", 1.0), ("positions", 7)],
)
def test_predictions_and_display_names_are_not_in_the_id(field: str, value: object) -> None:
    assert make_run(**{field: value}).id == make_run().id


def test_every_field_is_tested_as_part_of_the_id_or_not() -> None:
    tried = {*CHOICES, "fingerprint", "batch_size", "steps", "tokens", "seed", "base_width"}
    not_in_id = {"budget", "size", "params", "flops_per_token", "positions", "branch_step", "devices", "heads"}
    not_in_id.add("head_dim")
    assert tried | not_in_id == set(RunSpec.model_fields)


def test_the_order_of_options_does_not_matter() -> None:
    options = {"depth": 3, "width": 16}
    assert make_run(model=PluginChoice(name="gpt/gpt", options=options)).id == make_run().id


@pytest.mark.parametrize("lr", [0.1 + 0.2, 0.3 * (1 + 1e-14), 0.299999999999998], ids=["sum", "scaled", "digits"])
def test_noise_below_twelve_digits_does_not_matter(lr: float) -> None:
    assert lr != 0.3
    assert content_hash({"lr": lr}) == content_hash({"lr": 0.3})


def test_the_twelfth_digit_matters() -> None:
    assert content_hash({"lr": 0.3}) != content_hash({"lr": 0.300000000001})


def test_an_integer_and_an_equal_float_have_the_same_hash() -> None:
    assert canonical_json({"b": [-0.0, 1.0, 1e3, True], "a": 1.5}) == '{"a":1.5,"b":[0,1,1000,true]}'


def first_digits_of_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_a_hash_is_sha256_of_canonical_json() -> None:
    value = {"b": [1, 2.5, None, "ü"], "a": {"c": 1e22}}
    text = '{"a":{"c":10000000000000000000000},"b":[1,2.5,null,"\\u00fc"]}'
    assert content_hash(value) == first_digits_of_sha256(text)


def test_an_id_is_a_hash_of_the_identity_fields() -> None:
    """Written out, since changing it orphans every result that anybody has stored."""
    text = (
        '{"base_width":64,"batch_size":8,"counter":{"name":"counters/model"},"dataset":{"name":"text/text"},'
        '"fingerprint":"text 0123456789abcdef","model":{"name":"gpt/gpt","options":{"depth":3,"width":16}},'
        '"optimizer":{"name":"optim/adamw","options":{"betas":[0.9,0.95],"lr":0.01}},'
        '"schedule":{"name":"schedules/cosine"},"seed":0,"steps":100,"tokens":51200,'
        '"trainer":{"name":"trainers/torch"}}'
    )
    assert make_run().id == first_digits_of_sha256(text)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_nan_and_infinity_have_no_hash(value: float) -> None:
    with pytest.raises(ValueError, match=r"JSON compliant"):
        content_hash({"lr": [value]})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_record_takes_a_number_that_is_not_finite(value: float) -> None:
    with pytest.raises(ValidationError, match="finite"):
        PluginChoice(name="optim/sgd", options={"betas": [0.9, value]})
    with pytest.raises(ValidationError, match="finite"):
        make_run(flops_per_token=abs(value))
    with pytest.raises(ValidationError, match="finite"):
        RunResult(run=make_run(), status="completed", loss=value)
    with pytest.raises(ValidationError, match="finite"):
        RunResult(run=make_run(), status="failed", metrics={"accuracy": value})


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "Infinity"])
@pytest.mark.parametrize("options", ['{{"x": {}}}', '{{"x": [1, {{"y": {}}}]}}'])
def test_no_option_in_a_file_is_a_number_that_is_not_finite(number: str, options: str) -> None:
    text = f'{{"name": "optim/sgd", "options": {options.format(number)}}}'
    with pytest.raises(ValidationError, match="Input should be a finite number"):
        PluginChoice.model_validate_json(text)


def test_a_copy_with_another_seed_has_another_id() -> None:
    run = make_run()
    assert run.id == make_run().id  # computed, and kept
    copy = run.model_copy(update={"seed": 1})
    assert copy.id == make_run(seed=1).id
    assert copy.trajectory == make_run(seed=1).trajectory


def test_only_a_completed_run_has_a_loss() -> None:
    with pytest.raises(ValidationError, match="only a completed run has a loss"):
        RunResult(run=make_run(), status="completed")
    with pytest.raises(ValidationError, match=r"a diverged run with loss 2\.5"):
        RunResult(run=make_run(), status="diverged", loss=2.5)


def test_completed_and_diverged_runs_are_finished_and_failed_ones_are_not() -> None:
    assert RunResult(run=make_run(), status="completed", loss=1.0).is_finished
    assert RunResult(run=make_run(), status="diverged").is_finished
    assert not RunResult(run=make_run(), status="failed").is_finished


def test_records_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        make_run().seed = 1  # type: ignore[misc]


def test_an_unknown_field_is_an_error() -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        make_run(steeps=3)


def test_the_three_counts_of_parameters() -> None:
    counts = ParameterCounts(total=1000, lookup_table=100, unembedding=250, active=900)
    assert (counts.matmul, counts.non_embedding, counts.inactive) == (800, 550, 100)


# ---------------------------------------------------------------------------- JSON

RUN = make_run()
CHOICE = PluginChoice(name="devices/auto")
PLAN = SweepPlan(
    name="text-gpt",
    runs=(RUN, make_run(seed=1, size="wide")),
    skipped=(SkippedCell(budget=1e12, size=0.5, params=3, reason="fewer than 100 steps"),),
    notes=("one learning rate",),
    params_name="matmul parameters",
    flops_name="every matmul",
    device=CHOICE,
    runtime={"trainer": {"compile": True}},
)
RESULT = RunResult(
    run=RUN,
    status="completed",
    attempt=2,
    loss=2.345678901234567,
    bits_per_byte=1.1,
    metrics={"accuracy": 0.25},
    curve=(Evaluation(step=1, tokens=512, loss=5.5), Evaluation(step=2, tokens=1024, loss=None)),
    tokens=51_200,
    unique_tokens=51_000,
    eval_tokens=131_072,
    parameters=ParameterCounts(total=10_000, lookup_table=1_000, active=10_000),
    params_name="matmul parameters",
    flops=3.072e9,
    flops_name="every matmul",
    flops_per_second=1e9,
    seconds=3.25,
    device="cpu",
    precision="float32",
    peak_memory=123,
    versions={"torch": "2.9"},
    runtime={"trainer": {"threads": 1}},
    synthetic=True,
    finished=datetime(2026, 11, 1, 12, 30, 15, 123456, tzinfo=UTC),
)
EVERY_KIND: list[Record] = [
    CHOICE,
    Hyperparameters(batch_size=8, lr=0.01, betas=(0.9, 0.95)),
    ParameterCounts(total=10, active=10),
    RUN,
    make_run(size=16.0),
    Trajectory(id="t", runs=(RUN,)),
    Job(id="j", trajectories=(Trajectory(id="t", runs=(RUN,)),), device=CHOICE, attempts={RUN.id: 3}),
    SkippedCell(budget=1e12, size=1, params=3, reason="too few steps"),
    PLAN,
    Progress(run="r", step=1, steps=2, tokens=3, loss=0.1 + 0.2, tokens_per_second=None),
    Evaluation(step=1, tokens=2, loss=None),
    RunError(type="ValueError", message="nö \u2028 \x00 \"'\\", traceback="a\nb"),
    RESULT,
    RunResult(run=RUN, status="diverged"),
    RunResult(run=make_run(seed=2**63), status="failed", error=RunError(type="E", message="m")),
    Observation(id="row 17", params=1e9, tokens=1e11, flops=6e20, loss=2.1),
    Interval(value=0.5, low=0.4, high=0.6),
    Law(name="chinchilla", parameters={"E": 1.69}),
    ProfileMinimum(budget=1e18, params=1e8, tokens=1e10, loss=3.0, at_edge=False, n_runs=6, curve={"c0": 1.0}),
    Optimum(
        flops=1e24,
        params=Interval(value=1.0),
        tokens=Interval(value=2.0),
        loss=Interval(value=3.0),
        notes=("far",),
    ),
    Diagnostic(code="edge", message="the minimum lies outside the grid"),
    LawFit(
        fitter=CHOICE,
        law=Law(name="power law", parameters={"a": 0.5}),
        exponents={"a": Interval(value=0.5, low=0.45, high=0.55)},
        level=0.9,
        objective=1e-3,
        n_runs=24,
        excluded={"row 3": "diverged"},
        diagnostics=(Diagnostic(code="few", message="three budgets", severity="note"),),
        draws={"a": (0.49, 0.51)},
        flops_range=(1e18, 1e21),
    ),
    LawMember(
        law=Law(name="skaling", parameters={"E": 1.7, "k": 0.5}),
        drift=3.0,
        weight=0.6,
        errors=(0.01, 0.006),
        exponents={"a": Interval(value=0.5)},
        draws={"E": (1.6, 1.8), "k": (0.4, 0.6)},
    ),
    NewRunError(sigma=0.005, sigma_dof=18.0, drift_rate=0.002, drift_dof=1.5),
    PluginSetup(modules={"mine": "my_research.models"}, disabled=("rnn",), paths=("/home/me",)),
]


@pytest.mark.parametrize("record", EVERY_KIND, ids=lambda record: type(record).__name__)
def test_a_record_goes_to_json_and_back_equal(record: Record) -> None:
    restored = type(record).model_validate_json(record.model_dump_json())
    assert restored == record
    assert restored.model_dump() == record.model_dump()


def test_every_kind_of_record_is_tested_with_json() -> None:
    def below(kind: type[Record]) -> set[type[Record]]:
        return {kind, *(deeper for subclass in kind.__subclasses__() for deeper in below(subclass))}

    ours = {kind for kind in below(Record) if kind.__module__.startswith(records.__name__)} - {Record}
    assert ours <= {type(record) for record in EVERY_KIND}


def test_a_run_keeps_its_id_through_json() -> None:
    assert RunSpec.model_validate_json(RUN.model_dump_json()).id == RUN.id
    assert SweepPlan.model_validate_json(PLAN.model_dump_json()).runs[1].id == PLAN.runs[1].id


def test_json_restores_every_field_of_a_result() -> None:
    restored = RunResult.model_validate_json(RESULT.model_dump_json())
    assert restored.finished.tzinfo is not None
    assert restored.loss == 2.345678901234567
    assert isinstance(restored.run.size, int)


def test_an_error_with_a_file_name_of_invalid_bytes_can_be_stored() -> None:
    name = b"caf\xe9.txt".decode("utf-8", "surrogateescape")
    error = RunError(type="FileNotFoundError", message=name, traceback=name)
    assert error.message == r"caf\udce9.txt"
    assert RunError.model_validate_json(error.model_dump_json()) == error


# ---------------------------------------------------------------------------- jobs


def sweep_of(*runs: RunSpec) -> SweepPlan:
    return PLAN.model_copy(update={"runs": runs})


def test_the_jobs_with_most_flops_come_first() -> None:
    runs = [make_run(seed=seed, tokens=tokens) for seed, tokens in enumerate([512, 51_200, 1_024, 5_120])]
    jobs = sweep_of(*runs).jobs({run.id for run in runs})
    assert [job.runs[0].tokens for job in jobs] == [51_200, 5_120, 1_024, 512]
    assert jobs[0].flops == 51_200 * 60_000.0


def test_equal_jobs_keep_the_order_of_the_plan() -> None:
    runs = [make_run(seed=seed) for seed in (3, 1, 2)]
    assert [job.runs[0].seed for job in sweep_of(*runs).jobs({run.id for run in runs})] == [3, 1, 2]


def test_only_missing_runs_get_a_job() -> None:
    runs = [make_run(seed=seed) for seed in range(4)]
    jobs = sweep_of(*runs).jobs({runs[1].id, runs[3].id, "no run of this plan"})
    assert [run.id for job in jobs for run in job.runs] == [runs[1].id, runs[3].id]
    assert sweep_of(*runs).jobs(set()) == []


def test_a_job_carries_what_its_worker_needs() -> None:
    runs = [make_run(seed=seed) for seed in range(2)]
    first, second = sweep_of(*runs).jobs({run.id for run in runs}, attempts={runs[1].id: 3})
    assert (first.attempts, second.attempts) == ({runs[0].id: 1}, {runs[1].id: 3})
    assert (first.device, first.runtime) == (CHOICE, {"trainer": {"compile": True}})
    assert len({first.id, second.id}) == 2


def test_a_job_has_the_same_id_for_any_missing_runs() -> None:
    runs = [make_run(seed=seed) for seed in range(3)]
    alone = sweep_of(*runs).jobs({runs[2].id})[0]
    among = next(job for job in sweep_of(*runs).jobs({run.id for run in runs}) if job.runs[0].seed == 2)
    assert alone.id == among.id


def test_a_plan_adds_up() -> None:
    plan = sweep_of(make_run(budget=2e12), make_run(seed=1, budget=1e12), make_run(seed=2, budget=2e12))
    assert plan.budgets == (1e12, 2e12)
    assert plan.flops == 3 * 51_200 * 60_000.0
