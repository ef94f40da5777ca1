"""Fits read the logs of W&B, the Hugging Face Trainer, TensorBoard, Lightning and JSON lines, or refuse them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import run_logs
from run_logs import STEPS, expected, grid, loss, write_json

from flops_fit_core import ConfigError, FitError, fit
from flops_fit_core.fitting import is_table, read_table, table_groups
from flops_fit_core.plugins import Registry, limits

RUNS = grid()
WRITERS = {
    "wandb": run_logs.write_wandb_runs,
    "wandb-export": run_logs.write_chart_exports,
    "trainer-state": run_logs.write_trainer_states,
    "tensorboard": run_logs.write_event_files,
    "lightning": run_logs.write_lightning,
    "json-lines": run_logs.write_json_logs,
}


def numbers(table):
    return sorted((run.params, run.tokens, run.loss) for run in table.observations)


def refusal(folder, **options):
    with pytest.raises(FitError) as error:
        read_table(folder, **options)
    return str(error.value)


def state_of(folder, name="run", **changes):
    """One run of the Trainer with changes of its state."""
    write_json(folder / name / "trainer_state.json", {**run_logs.trainer_state(10_000_000, 4096), **changes})
    return folder


def logs(folder, points, config=None, name="run"):
    """One run in JSON lines."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    if config is not None:
        write_json(folder / name / "config.json", config)
    return folder


# ---------------------------------------------------------------------------- every kind of log


@pytest.mark.parametrize("reader", WRITERS)
def test_a_fit_of_logs_finds_their_law_and_names_the_reader(tmp_path: Path, call, reader: str) -> None:
    WRITERS[reader](tmp_path / "logs", RUNS) if reader != "wandb-export" else _write_exports(tmp_path / "logs")
    status, output, error = call("fit", tmp_path / "logs", "--fitter", "parametric", "--set", "draws=0")
    assert (status, error) == (0, "")
    text = " ".join(output.split())
    assert f"read logs with reader {reader}: params = " in text
    assert "alpha 0.34" in text
    assert "beta 0.28" in text


def _write_exports(folder: Path) -> None:
    folder.mkdir()
    run_logs.write_chart_exports(folder, RUNS)


def test_python_reads_what_the_command_line_reads(tmp_path: Path) -> None:
    run_logs.write_lightning(tmp_path / "logs", RUNS)
    assert is_table(tmp_path / "logs")
    assert numbers(read_table(tmp_path / "logs")) == sorted(expected(RUNS).values())
    law = fit(tmp_path / "logs", fitter="parametric")
    assert law.law.parameters["alpha"] == pytest.approx(0.34, rel=1e-4)


def test_predict_and_backtest_read_logs(tmp_path: Path, call) -> None:
    run_logs.write_json_logs(tmp_path / "logs", RUNS)
    status, output, error = call("predict", tmp_path / "logs", "--flops", "1e21", "--set", "draws=0")
    assert (status, error) == (0, "")
    assert "read logs with reader json-lines" in " ".join(output.split())
    status, output, error = call("backtest", tmp_path / "logs", "--set", "draws=0")
    assert (status, error) == (0, "")
    assert "mean absolute relative error" in output


def test_every_evaluation_is_a_point_of_its_run_on_request(tmp_path: Path) -> None:
    run_logs.write_wandb_runs(tmp_path, RUNS[:2])
    table = read_table(tmp_path, {"trajectory": "run_id"})
    assert len(table.observations) == 20
    assert len({run.trajectory for run in table.observations}) == 2


def test_groups_of_logs_are_fitted_separately(tmp_path: Path) -> None:
    for name, data in (("a", "c4"), ("b", "web"), ("c", "c4")):
        points = [{"step": 1, "tokens": 1e9, "eval/loss": 3.0}]
        logs(tmp_path, points, {"n_params": 1e8, "data": data}, name)
    assert table_groups(tmp_path, "config.data") == ["c4", "web"]
    table = read_table(tmp_path, where={"config.data": "c4"})
    assert [run.id for run in table.observations] == ["a", "c"]


def test_a_grid_of_learning_rates_in_logs_is_refused_with_the_option(tmp_path: Path) -> None:
    for number, lr in enumerate((1e-3, 2e-3, 1e-3, 2e-3)):
        points = [{"step": 1, "tokens": 1e9, "eval/loss": 3.0 + lr}]
        logs(tmp_path, points, {"n_params": 1e8 * (1 + number // 2), "optim": {"lr": lr}}, f"run{number}")
    assert "write --best-of config.optim.lr for the best at each N and D" in refusal(tmp_path)
    assert len(read_table(tmp_path, best_of=["config.optim.lr"]).observations) == 2


# ---------------------------------------------------------------------------- the loss


def test_a_training_loss_is_no_held_out_loss(tmp_path: Path) -> None:
    points = [{"step": step, "tokens": step * 1e6, "loss": 3.0, "train/loss": 3.1} for step in (50, 100)]
    logs(tmp_path, points, {"n_params": 1e8})
    assert refusal(tmp_path).endswith(
        "no held-out loss is logged, only 'loss', 'train/loss', and a training loss is no substitute. To fit it "
        "anyway, type --column loss=loss"
    )
    (run,) = read_table(tmp_path, {"loss": "train/loss"}).observations
    assert (run.tokens, run.loss) == (1e8, 3.1)


def test_the_average_training_loss_of_the_trainer_is_never_the_loss(tmp_path: Path) -> None:
    state = run_logs.trainer_state(10_000_000, 4096)
    entries = [entry for entry in state["log_history"] if "eval_loss" not in entry]
    state_of(tmp_path, log_history=entries)
    assert "no held-out loss is logged, only 'loss', 'train_loss'" in refusal(tmp_path)


def test_several_held_out_sets_are_refused_with_the_choices(tmp_path: Path) -> None:
    sets = {f"eval/{name}/loss": 3.0 + number / 100 for number, name in enumerate("abcdefgh")}
    logs(tmp_path, [{"step": 1, "tokens": 1e9, **sets}], {"n_params": 1e8})
    message = refusal(tmp_path)
    assert "loss could be 'eval/a/loss' or 'eval/b/loss'" in message
    assert "or 2 more columns" in message
    assert "write --column loss=eval/a/loss or" in message
    (run,) = read_table(tmp_path, {"loss": "eval/h/loss"}).observations
    assert run.loss == 3.07


def test_a_run_that_diverged_is_left_out(tmp_path: Path) -> None:
    good = [{"step": step, "tokens": step * 1e6, "train/loss": 3.0, "eval/loss": 3.0} for step in (50, 100)]
    logs(tmp_path, good, {"n_params": 1e8}, "good")
    logs(tmp_path, [*good, {"step": 110, "train/loss": float("nan")}], {"n_params": 1e8}, "nan-in-training")
    after = {"step": 110, "tokens": 1.1e8, "train/loss": 3.0, "eval/loss": float("inf")}
    logs(tmp_path, [*good, after], {"n_params": 1e8}, "inf-in-evaluation")
    table = read_table(tmp_path)
    assert [run.id for run in table.observations] == ["good"]
    assert table.excluded["nan-in-training"] == "its status is diverged"
    assert "not finite" in table.excluded["inf-in-evaluation"]


def test_a_last_evaluation_long_before_the_end_is_reported(tmp_path: Path) -> None:
    points = [{"step": step, "tokens": step * 1e6, "train/loss": 3.0} for step in range(10, 101, 10)]
    points[4]["eval/loss"] = 3.0
    logs(tmp_path, points, {"n_params": 1e8})
    (warning,) = [item for item in read_table(tmp_path).diagnostics if item.code == "early-evaluation"]
    assert warning.message.startswith(
        "1 runs were last evaluated before the end of their training: run (step 50 of 100)."
    )


def test_a_run_without_an_evaluation_is_named(tmp_path: Path) -> None:
    logs(tmp_path, [{"step": 1, "tokens": 1e9, "eval/loss": 3.0}], {"n_params": 1e8}, "first")
    logs(tmp_path, [{"step": 1, "tokens": 1e9, "train/loss": 3.0}], {"n_params": 2e8}, "second")
    assert read_table(tmp_path).excluded == {"second": "loss is missing"}


# ---------------------------------------------------------------------------- tokens


def test_steps_are_not_tokens_and_the_message_has_the_column_to_type(tmp_path: Path) -> None:
    points = [{"step": STEPS, "eval/loss": 3.0}]
    logs(tmp_path, points, {"n_params": 1e8, "batch_size": 8, "seq_len": 1024})
    message = refusal(tmp_path)
    assert "'step' does not count tokens: write --column 'tokens=step*T', with T the tokens of one step" in message
    assert (
        "(for example 'tokens=step*config.batch_size*config.seq_len', if 'config.batch_size' is the batch"
        in message
    )
    (run,) = read_table(tmp_path, {"tokens": "step*config.batch_size*config.seq_len"}).observations
    assert run.tokens == STEPS * 8 * 1024
    (run,) = read_table(tmp_path, {"tokens": "step*8192"}).observations
    assert run.tokens == STEPS * 8192


def test_the_batch_of_the_trainer_is_not_used_as_tokens_per_step(tmp_path: Path) -> None:
    """``train_batch_size`` leaves out accumulation and further devices, so steps stay steps."""
    state = run_logs.trainer_state(10_000_000, 4096, with_tokens=False)
    state_of(tmp_path, **state)
    message = refusal(tmp_path, columns={"params": "run_id"})
    assert "no column for tokens" in message
    assert "tokens=step*T" in message


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ("step*batch", r"'batch' is neither a column nor a positive number"),
        ("step*-2", "'-2' is neither a column nor a positive number"),
        ("2*3", "a product needs at least one column"),
        ("step*run_id", "run_id is not a number: 'run'"),
        ("stepp*2", "did you mean 'step'"),
    ],
)
def test_a_product_without_a_meaning_is_refused(tmp_path: Path, column: str, message: str) -> None:
    logs(tmp_path, [{"step": STEPS, "eval/loss": 3.0}], {"n_params": 1e8})
    with pytest.raises(FitError, match=message):
        read_table(tmp_path, {"tokens": column})


def test_a_product_works_in_a_table(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    path.write_text("params;ratio;loss\n1,5e8;20,5;3,1\n3e8;;2,9\n")
    table = read_table(path, {"tokens": "params*ratio"})
    assert [(run.params, run.tokens) for run in table.observations] == [(1.5e8, 1.5e8 * 20.5)]
    assert table.excluded == {"row 3": "tokens is missing"}


def test_tokens_between_logged_steps_are_interpolated(tmp_path: Path) -> None:
    training = [{"step": step, "tokens": step * 1e6} for step in range(1, 101)]
    evaluations = [{"step": 60.5, "eval/loss": 3.2}, {"step": 100.5, "eval/loss": 3.0}]
    logs(tmp_path, sorted([*training, *evaluations], key=lambda point: point["step"]), {"n_params": 1e8})
    rows = read_table(tmp_path, {"trajectory": "run_id"}).observations
    assert [(run.tokens, run.loss) for run in rows] == [(60.5e6, 3.2), (100.5e6, 3.0)]


def test_tokens_that_are_logged_too_rarely_stay_missing(tmp_path: Path) -> None:
    """The batch grows, so that the count between two logged steps is uncertain by more than 2%."""
    points = [{"step": step, "tokens": step**2 * 1e4} for step in (10, 50, 100)]
    points += [{"step": 101, "eval/loss": 3.0}, {"step": 150, "eval/loss": 2.9}]
    logs(tmp_path, points, {"n_params": 1e8})
    (run,) = read_table(tmp_path).observations
    assert run.loss == 3.0
    assert run.tokens == pytest.approx(100**2 * 1e4 + 50**-1 * (100**2 - 50**2) * 1e4)
    logs(tmp_path, [point for point in points if point["step"] != 101], {"n_params": 1e8})
    assert read_table(tmp_path).excluded == {"run": "tokens is missing"}


def test_a_count_of_one_step_is_not_d(tmp_path: Path) -> None:
    points = [{"step": step, "tokens": 8192, "eval/loss": 3.0 - step / 1000} for step in (50, 75, 100)]
    logs(tmp_path, points, {"n_params": 1e6})
    message = refusal(tmp_path)
    assert "'tokens' does not grow with the steps (run: 8192 at step 50, 8192 at step 100)" in message
    assert "--column 'tokens=step*tokens' if it counts those of one step" in message
    (run,) = read_table(tmp_path, {"tokens": "step*tokens"}).observations
    assert run.tokens == 100 * 8192


def test_a_count_that_starts_again_is_not_d(tmp_path: Path) -> None:
    points = [{"step": step, "tokens": step % 60 * 1e6, "eval/loss": 3.0} for step in (50, 75, 100)]
    logs(tmp_path, points, {"n_params": 1e8})
    assert "(run: 50000000 at step 50, 15000000 at step 75)" in refusal(tmp_path)


def test_a_number_of_tokens_in_the_settings_is_that_of_the_last_evaluation(tmp_path: Path) -> None:
    points = [{"step": step, "eval/loss": 3.0 - step / 1000} for step in (50, 100)]
    logs(tmp_path, points, {"n_params": 1e8, "train_tokens": 2e9})
    table = read_table(tmp_path)
    assert [(run.tokens, run.loss) for run in table.observations] == [(2e9, 2.9)]
    assert (
        "column 'config.train_tokens' has one number per run: it must count the tokens at the last evaluation"
        in [item.message for item in table.diagnostics]
    )
    assert "D of an earlier evaluation is unknown" in refusal(tmp_path, columns={"trajectory": "run_id"})


def test_a_missing_part_of_the_weights_gives_no_n(tmp_path: Path) -> None:
    state_of(tmp_path, total_flos=0)
    run_logs.write_safetensors(tmp_path / "run" / "model-00001-of-00002.safetensors", {"a": [300, 200]})
    assert "no column for params" in refusal(tmp_path)


# ---------------------------------------------------------------------------- N and C


def test_n_of_a_trainer_follows_from_its_count_of_flops(tmp_path: Path) -> None:
    state_of(tmp_path)
    (run,) = read_table(tmp_path).observations
    assert (run.params, run.tokens, run.flops) == (1e7, 409_600, 6e7 * 409_600)


def test_n_is_not_derived_if_the_trainer_counted_other_tokens(tmp_path: Path) -> None:
    """With include_num_input_tokens_seen = "non_padding", total_flos has further tokens."""
    state_of(tmp_path, num_input_tokens_seen=409_599)
    assert "no column for params" in refusal(tmp_path)


def test_n_comes_from_the_headers_of_safetensors_files(tmp_path: Path) -> None:
    state = run_logs.trainer_state(10_000_000, 4096)
    state_of(tmp_path, **{**state, "total_flos": 0, "log_history": state["log_history"][:-1]})
    folder = tmp_path / "run" / "checkpoint-100"
    run_logs.write_safetensors(folder / "model-00001-of-00002.safetensors", {"a": [300, 200], "b": [200]})
    run_logs.write_safetensors(folder / "model-00002-of-00002.safetensors", {"c": [1000, 40]})
    write_json(folder / "trainer_state.json", json.loads((tmp_path / "run" / "trainer_state.json").read_text()))
    (tmp_path / "run" / "trainer_state.json").unlink()
    (run,) = read_table(tmp_path, units={"params": 1}).observations
    assert run.params == 100_200


def test_two_counts_of_parameters_are_refused_with_the_choices(tmp_path: Path) -> None:
    state_of(tmp_path)
    run_logs.write_safetensors(tmp_path / "run" / "model.safetensors", {"a": [3000, 4000]})
    message = refusal(tmp_path)
    assert "--column params=config.total_params or --column params=config.non_embedding_params" in message
    (run,) = read_table(tmp_path, {"params": "config.total_params"}).observations
    assert run.params == 12_000_000


def test_a_user_adds_facts_that_the_log_lacks(tmp_path: Path) -> None:
    run_logs.write_event_files(tmp_path, RUNS[:2])
    for name, params, _ in RUNS[:2]:
        (tmp_path / name / "config.json").unlink()
        write_json(tmp_path / name / "flops_fit.json", {"params": params})
    assert [run.params for run in read_table(tmp_path).observations] == [run[1] for run in RUNS[:2]]
    (tmp_path / RUNS[0][0] / "flops_fit.json").write_text("{")
    assert "flops_fit.json: Expecting property name" in refusal(tmp_path)


def test_a_letter_in_the_settings_has_no_role(tmp_path: Path) -> None:
    for number in range(2):
        points = [{"step": 1, "tokens": 1e9, "eval/loss": 3.0 + number}]
        logs(tmp_path, points, {"n": 100 + number, "N": 200 + number}, f"run{number}")
    message = refusal(tmp_path)
    assert "no column for params" in message
    assert 'write {"params": 124e6} (for example) to flops_fit.json in the folder of each run' in message


def test_marin_s_gigaflops_are_flops(tmp_path: Path) -> None:
    run_logs.write_marin(tmp_path, RUNS)
    table = read_table(tmp_path)
    assert numbers(table) == sorted(expected(RUNS).values())
    assert all(run.flops == pytest.approx(6 * run.params * run.tokens) for run in table.observations)


# ---------------------------------------------------------------------------- which runs


def test_the_state_with_the_most_steps_counts_and_unfinished_runs_are_left_out(tmp_path: Path) -> None:
    run_logs.write_trainer_states(tmp_path, RUNS[:2])
    (tmp_path / RUNS[0][0] / "trainer_state.json").unlink()
    table = read_table(tmp_path)
    assert [run.id for run in table.observations] == [RUNS[1][0]]
    assert table.excluded == {RUNS[0][0]: "its status is unfinished"}


def test_a_wandb_run_that_was_killed_is_left_out_and_parts_of_a_resumed_run_belong_together(
    tmp_path: Path,
) -> None:
    first = [{"_step": 10, "tokens": 1e8, "eval/loss": 3.5}]
    second = [{"_step": 20, "tokens": 2e8, "eval/loss": 3.0}]
    run_logs.write_wandb(tmp_path, "abc", {"n_params": 1e8}, first, exit_code=None)
    later = run_logs.write_wandb(tmp_path / "x", "abc", {"n_params": 1e8}, second)
    later.parent.rename(tmp_path / "offline-run-20260102_000000-abc")
    run_logs.write_wandb(tmp_path, "killed", {"n_params": 2e8}, first, exit_code=None)
    table = read_table(tmp_path)
    assert [(run.tokens, run.loss) for run in table.observations] == [(2e8, 3.0)]
    assert table.excluded == {"name of killed (killed)": "its status is crashed"}


def test_a_wandb_file_of_a_running_process_is_read_to_its_last_complete_record(tmp_path: Path) -> None:
    history = [{"_step": step, "tokens": step * 1e6, "eval/loss": 4 - step / 1000} for step in range(2000)]
    file = run_logs.write_wandb(tmp_path, "abc", {"n_params": 1e8}, history, exit_code=None)
    content = file.read_bytes()
    assert len(content) > 2 * 32_768, "several blocks, so that records are split"
    file.write_bytes(content[:-5])
    rows = read_table(tmp_path, {"trajectory": "run_id", "status": "none"}).observations
    assert len(rows) == 1998  # without step 0, which has no tokens, and the incomplete last record
    damaged = bytearray(content)
    damaged[40_000] ^= 1
    file.write_bytes(bytes(damaged))
    assert "is damaged at byte" in refusal(tmp_path)


def test_nested_values_of_wandb_have_names_with_points(tmp_path: Path) -> None:
    history = [{"_step": 1, "tokens": 1e8, "eval|loss": 3.5}]
    run_logs.write_wandb(tmp_path, "abc", {"n_params": 1e8}, history)
    (run,) = read_table(tmp_path).observations
    assert run.loss == 3.5


def test_a_chart_without_the_table_of_runs_lacks_n(tmp_path: Path) -> None:
    run_logs.write_chart_exports(tmp_path, RUNS)
    (tmp_path / "wandb_export_runs.csv").unlink()
    assert "has no column for params" in refusal(tmp_path)
    assert is_table(tmp_path / "wandb_export_eval_loss.csv")


def test_a_chart_of_groups_of_runs_is_refused(tmp_path: Path) -> None:
    names = ["Step", "Group: a - eval/loss", "Group: a - eval/loss__MIN", "Group: a - eval/loss__MAX"]
    (tmp_path / "chart.csv").write_text(",".join(f'"{name}"' for name in names) + "\n1,3.0,2.9,3.1\n")
    assert "has means of groups of runs ('Group: a'): turn grouping off" in refusal(tmp_path)


def test_a_chart_over_time_uses_the_step_of_each_run(tmp_path: Path) -> None:
    names = ["Relative Time (Process)"]
    for metric in ("_step", "eval/loss"):
        names += [f"a - {metric}", f"a - {metric}__MIN", f"a - {metric}__MAX"]
    rows = ["1.5,100,100,100,3.5,3.5,3.5", "2.5,200,200,200,3.0,3.0,3.0"]
    (tmp_path / "chart.csv").write_text("\n".join([",".join(f'"{name}"' for name in names), *rows]) + "\n")
    (tmp_path / "runs.csv").write_text("Name,State,n_params\na,finished,1e8\n")
    (run,) = read_table(tmp_path, {"tokens": "_step*65536"}).observations
    assert (run.tokens, run.loss) == (200 * 65_536, 3.0)


def test_folders_of_training_and_validation_are_one_run(tmp_path: Path) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    for part, value in (("train", 2.0), ("validation", 3.0)):
        writer = EventFileWriter(str(tmp_path / "run" / part))
        summary = Summary(value=[Summary.Value(tag="epoch_loss", simple_value=value)])
        writer.add_event(Event(wall_time=1.0, step=5, summary=summary))
        writer.close()
    write_json(tmp_path / "run" / "flops_fit.json", {"params": 1e8, "tokens": 1e9})
    table = read_table(tmp_path)
    assert [(run.id, run.loss) for run in table.observations] == [("run", 3.0)]


# ---------------------------------------------------------------------------- which reader


def test_event_files_of_a_trainer_belong_to_its_run(tmp_path: Path) -> None:
    run_logs.write_trainer_states(tmp_path, RUNS)
    run_logs.write_event_files(tmp_path / RUNS[0][0] / "runs", RUNS[:1])
    assert "with reader trainer-state" in read_table(tmp_path).summary
    assert "with reader tensorboard" in read_table(tmp_path, reader="tensorboard").summary


def test_logs_of_several_kinds_are_refused_with_the_choices(tmp_path: Path) -> None:
    run_logs.write_event_files(tmp_path / "a", RUNS[:2])
    run_logs.write_json_logs(tmp_path / "b", RUNS[:2])
    assert "holds logs of 2 kinds: type --reader" in refusal(tmp_path)
    assert "--reader tensorboard" in refusal(tmp_path)
    assert len(read_table(tmp_path, reader="json-lines").observations) == 2


def test_an_unknown_reader_and_an_unknown_folder_are_refused(tmp_path: Path, call) -> None:
    (tmp_path / "notes.txt").write_text("x")
    assert "no reader named 'wandbb'" in refusal(tmp_path, reader="wandbb")
    status, _, error = call("fit", tmp_path)
    assert status == 2
    assert "is neither a study nor a folder with logs that a reader recognises (readers: json-lines" in error


def test_a_reader_without_its_package_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flops_fit_core.plugins.registry import offers

    run_logs.write_wandb_runs(tmp_path, RUNS[:2])
    monkeypatch.setattr(offers, "is_installed", lambda text: "wandb" not in text)
    with pytest.raises(ConfigError, match=r"reader 'wandb' needs wandb>=0.31: pip install 'flops-fit\[wandb\]'"):
        read_table(tmp_path)


def test_a_study_s_folder_is_no_log(tmp_path: Path) -> None:
    run_logs.write_event_files(tmp_path / "tensorboard", RUNS[:2])
    assert is_table(tmp_path)
    for file in ("experiment.json", "plan.json"):
        (tmp_path / file).write_text("{}")
    assert not is_table(tmp_path)


def test_a_reader_that_raises_does_not_prevent_a_fit_of_a_table(tmp_path: Path) -> None:
    from flops_fit_core.plugins import ReaderSpec, hookimpl

    class Plugin:
        @hookimpl
        def flops_fit_readers(self):
            yield ReaderSpec(name="broken", build=lambda options: None, recognises=lambda path: 1 / 0)

    registry = Registry({"mine": Plugin()})
    run_logs.write_json_logs(tmp_path, RUNS[:2])
    assert len(read_table(tmp_path, registry=registry).observations) == 2


# ---------------------------------------------------------------------------- hostile logs


def test_a_folder_with_too_many_files_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_logs.write_json_logs(tmp_path, RUNS)
    monkeypatch.setattr(limits, "READER_ENTRIES", 20)
    assert "more than 20 files and folders" in refusal(tmp_path)


def test_too_many_runs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_logs.write_json_logs(tmp_path, RUNS)
    monkeypatch.setattr(limits, "READER_RUNS", 3)
    assert "more than 3 runs" in refusal(tmp_path)


def test_too_many_values_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_logs.write_json_logs(tmp_path, RUNS)
    monkeypatch.setattr(limits, "TABLE_CELLS", 50)
    assert "has at most 50" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: " + "[" * 20_000, "nested too deeply"),
        (
            "a: &a [1, 1]\n"
            + "\n".join(
                f"{y}: &{y} [*{x}, *{x}]" for x, y in zip("abcdefghijklmnopq", "bcdefghijklmnopqr", strict=True)
            ),
            "at most",
        ),
        ("x" * 1_000_001, "more than 1,000,000 bytes"),
        ("- 1", "no mapping"),
    ],
)
def test_hostile_settings_are_named_and_not_used(tmp_path: Path, text: str, problem: str) -> None:
    run_logs.write_lightning(tmp_path, RUNS[:2])
    run = tmp_path / RUNS[0][0] / "version_0"
    (run / "hparams.yaml").write_text(text)
    table = read_table(tmp_path)
    (warning,) = [item.message for item in table.diagnostics if item.code == "settings"]
    assert problem in warning
    assert table.excluded == {f"{RUNS[0][0]}/version_0": "params is missing"}


def test_tags_in_yaml_execute_nothing(tmp_path: Path) -> None:
    run_logs.write_lightning(tmp_path / "logs", RUNS[:2])
    marker = tmp_path / "executed"
    run = tmp_path / "logs" / RUNS[0][0] / "version_0"
    text = (run / "hparams.yaml").read_text()
    (run / "hparams.yaml").write_text(f"{text}x: !!python/object/apply:os.system ['touch {marker}']\n")
    assert len(read_table(tmp_path / "logs").observations) == 2
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xff\xff\xff\xff\xff\xff\x7f{}",
        b"\x02\x00\x00\x00\x00\x00\x00\x00[]",
        b"short",
        b"\x08" + b"\x00" * 7 + b'{"a": 1}',
    ],
)
def test_damaged_safetensors_are_a_message(tmp_path: Path, content: bytes) -> None:
    state_of(tmp_path)
    (tmp_path / "run" / "model.safetensors").write_bytes(content)
    assert "model.safetensors is damaged" in refusal(tmp_path)


def test_the_law_of_the_test_data_is_that_of_the_docstring() -> None:
    assert loss(1e9, 2e10) == pytest.approx(1.69 + 406.4 / 1e9**0.34 + 410.7 / 2e10**0.28)
