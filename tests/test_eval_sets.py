"""Several held-out sets at once: measured for each run, one of them chosen by the fit."""

import json
import math
from contextlib import nullcontext
from itertools import islice

import numpy as np
import pytest
import torch
from small import text_table, write_text

import flops_fit_core
from flops_fit_core import DataError, FitError
from flops_fit_core.cli.main import run as command_line
from flops_fit_core.data import TokenDataset
from flops_fit_core.plugins import MultiEvalDataset
from flops_fit_core.plugins.options import identity_options, runtime_options
from flops_fit_core.plugins.registry import installed
from flops_fit_core.records import RunResult

TEXT = installed().find("dataset", "text/text").spec
TOKENS = installed().find("dataset", "tokens/tokens").spec


def opened(spec, seed=0, **options):
    return spec.build(
        spec.options.model_validate({key: str(v) if key == "path" else v for key, v in options.items()}), seed
    )


# ---------------------------------------------------------------------------- datasets


@pytest.fixture
def texts(tmp_path):
    """Forty files, each of one letter, and two more folders."""
    for name, letters in (("prose", range(64, 104)), ("poems", (104,)), ("code", (105, 106))):
        (tmp_path / name).mkdir()
        for letter in letters:
            (tmp_path / name / f"{letter}.txt").write_bytes(bytes([letter]) * 120)
    return tmp_path


def letters(batches):
    return {int(byte) for batch in batches for byte in batch.unique()} - {0}


def everything(dataset):
    return islice(dataset.batches(dataset.num_unique_tokens // dataset.task.context), 1)


def test_each_set_of_text_is_its_own_files(texts):
    sets = {"poems": str(texts / "poems"), "code": str(texts / "code" / "*.txt")}
    dataset = opened(TEXT, path=texts / "prose", context=8, eval_sets=sets)
    assert isinstance(dataset, MultiEvalDataset)
    assert dataset.eval_sets == ("poems", "code")
    assert letters(dataset.eval_batches(9999, 4, "poems")) == {104}
    assert letters(dataset.eval_batches(9999, 4, "code")) == {105, 106}
    main = letters(dataset.eval_batches(9999, 4))
    assert main | letters(everything(dataset)) == set(range(64, 104))


def test_what_a_further_set_holds_is_not_trained_on(texts):
    some = str(texts / "prose" / "6*.txt")
    dataset = opened(TEXT, path=texts / "prose", context=8, eval_sets={"some": some})
    assert letters(dataset.eval_batches(9999, 4, "some")) == set(range(64, 70))
    assert not letters(everything(dataset)) & set(range(64, 70))
    with pytest.raises(DataError, match=r"0 files in .*prose leave nothing"):
        opened(TEXT, path=texts / "prose", context=8, eval_sets={"all": str(texts / "prose")})


def test_sets_are_part_of_the_fingerprint_and_their_places_are_not(texts):
    plain = opened(TEXT, path=texts / "prose", context=8)
    given = {"poems": str(texts / "poems")}
    dataset = opened(TEXT, path=texts / "prose", context=8, eval_sets=given)
    (texts / "poems").rename(texts / "elsewhere")
    moved = opened(TEXT, path=texts / "prose", context=8, eval_sets={"poems": str(texts / "elsewhere")})
    renamed = opened(TEXT, path=texts / "prose", context=8, eval_sets={"verse": str(texts / "elsewhere")})
    assert dataset.fingerprint == moved.fingerprint
    assert len({plain.fingerprint, dataset.fingerprint, renamed.fingerprint}) == 3
    assert identity_options(TEXT.options(eval_sets=given)) == identity_options(TEXT.options()) == {}
    assert runtime_options(TEXT.options(eval_sets={"a": "~"})).keys() == {"eval_sets"}


def test_token_files_can_be_several_sets(tmp_path):
    for name, first in (("train", 0), ("val", 1000), ("code", 2000)):
        np.arange(first, first + 321).astype("<u2").tofile(tmp_path / f"{name}.bin")
    given = {"path": tmp_path / "train.bin", "vocab_size": 3000, "context": 32}
    plain = opened(TOKENS, **given)
    dataset = opened(TOKENS, **given, eval_sets={"code": str(tmp_path / "code.bin")})
    assert torch.cat(list(dataset.eval_batches(320, 3, "code")))[:, 1:].flatten().tolist() == list(
        range(2001, 2321)
    )
    assert torch.cat(list(dataset.eval_batches(320, 3)))[:, 1:].flatten().tolist() == list(range(1001, 1321))
    assert dataset.fingerprint != plain.fingerprint
    assert plain.eval_sets == ()
    with pytest.raises(DataError, match=r"train\.bin is both trained on and held out"):
        opened(TOKENS, **given, eval_sets={"again": str(tmp_path / "train.bin")})
    np.arange(9).astype("<u2").tofile(tmp_path / "few.bin")
    with pytest.raises(DataError, match=r"the held-out set 'few', of .*few.bin, has 9 tokens, fewer than one"):
        opened(TOKENS, **given, eval_sets={"few": str(tmp_path / "few.bin")})


def test_a_row_without_a_window_is_named_by_its_part():
    def made(training=99, eval_set=99, further=99):
        rows = (np.zeros(length, dtype=np.uint8) for length in (training, eval_set, further))
        TokenDataset(
            next(rows), next(rows), vocab_size=2, context=16, seed=0, fingerprint="x", further={"more": next(rows)}
        )

    made()
    for part, lengths in (
        ("training part", {"training": 16}),
        ("held-out part", {"eval_set": 3}),
        ("held-out set 'more'", {"further": 1}),
    ):
        with pytest.raises(DataError, match=f"^the {part}: {next(iter(lengths.values()))} tokens are not enough"):
            made(**lengths)


@pytest.mark.parametrize("name", ["", "a/b", "../up", "a b"])
def test_a_name_that_is_no_file_name_is_refused(name):
    with pytest.raises(ValueError, match="eval_sets"):
        TEXT.options(eval_sets={name: "x"})


# ---------------------------------------------------------------------------- training


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A study of two runs on words. Held out: words; the same words again, digits, and words backward."""
    folder = tmp_path_factory.mktemp("trained")
    words = " ".join(file.read_text() for file in sorted(write_text(folder / "words").glob("*.txt"))[:5])
    sets = {"again": words, "digits": "0123456789 " * 300, "backward": words[::-1]}
    for name, text in {"main": words, **sets}.items():
        (folder / f"{name}.txt").write_text(text)
    paths = {name: str(folder / f"{name}.txt") for name in sets}
    dataset = {"eval_path": str(folder / "main.txt"), "eval_sets": paths}
    table = text_table(folder / "words", dataset=dataset, sweep={"budgets": [1e8]})
    return flops_fit_core.run(table, out=folder / "study")


def test_a_run_keeps_its_loss_on_every_set(trained):
    assert len(trained.results) == 2
    for result in trained.results:
        assert result.losses.keys() == {"again", "digits", "backward"}
        assert result.losses["again"] == result.loss
        assert result.loss < result.losses["backward"] < result.losses["digits"]


def test_the_loss_on_a_set_is_the_mean_over_its_predictions():
    from flops_fit_core.training import further_losses

    spec = installed().find("model", "gpt/gpt").spec
    rows = {name: np.random.default_rng(seed).integers(0, 20, 200) for seed, name in enumerate(("main", "a", "b"))}
    main = rows.pop("main")
    dataset = TokenDataset(main, main, vocab_size=20, context=8, seed=0, fingerprint="x", further=rows)
    model = spec.build(spec.options(width=8, depth=1), dataset.task)
    losses = further_losses(model, dataset, 10**6, device="cpu", batch_tokens=30, autocast=nullcontext())
    for name, row in rows.items():
        windows = torch.tensor(row[:193]).unfold(0, 9, 8)
        with torch.no_grad():
            logits = model(windows[:, :-1])
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        assert losses[name] == pytest.approx(float(expected), rel=1e-5)
    assert losses["a"] != losses["b"]


def test_the_table_of_runs_has_a_column_for_each(trained):
    assert {"loss on again", "loss on digits", "loss on backward"} <= {
        column.heading for column in trained.runs.columns
    }
    assert f"{trained.results[0].losses['digits']:.4f}" in str(trained.runs)
    (first, _) = trained.runs.json()
    assert first["loss_digits"] == trained.results[0].losses["digits"]
    assert trained.runs.csv().splitlines()[0].endswith("loss_again,loss_digits,loss_backward")


def test_a_set_on_which_the_loss_is_not_finite_is_left_out():
    from flops_fit_core.training import further_losses

    class Broken(torch.nn.Module):
        def forward(self, ids):
            logits = torch.zeros(*ids.shape, 4)
            return logits / (ids != 3).float()[..., None]

    rows = {"threes": np.full(99, 3), "twos": np.full(99, 2)}
    dataset = TokenDataset(
        rows["twos"], rows["twos"], vocab_size=4, context=8, seed=0, fingerprint="x", further=rows
    )
    how = {"device": "cpu", "batch_tokens": 64, "autocast": nullcontext()}
    assert further_losses(Broken(), dataset, 80, **how) == {"twos": pytest.approx(math.log(4))}


def test_a_dataset_with_one_set_has_no_further_losses():
    from flops_fit_core.testing.tiny import Majority
    from flops_fit_core.training import further_losses

    how = {"device": "cpu", "batch_tokens": 64, "autocast": nullcontext()}
    assert further_losses(torch.nn.Linear(8, 2), Majority(0), 64, **how) == {}


# ---------------------------------------------------------------------------- fitting


@pytest.fixture
def study(tmp_path):
    """A finished study. Its runs follow a law on their main set and another law on the set ``code``."""
    planned = flops_fit_core.plan(
        {
            "name": "two-laws",
            "sweep": {"budgets": [1e18, 1e19, 1e20, 1e21], "sizes": 7},
            "model": "surface/surface",
            "dataset": "surface/surface",
            "executor": "local",
            "fitter": "parametric",
        },
        out=tmp_path / "study",
    )
    planned.folder.save(planned.experiment, planned.plan, planned.registry.setup)
    with planned.store() as store:
        smallest = min(run.size for run in planned.plan.runs)
        for run in planned.plan.runs:
            losses = {"code": 1 + 300 / run.params**0.30 + 500 / run.tokens**0.30}
            if run.size == smallest:
                losses = {}
            main = 1.8 + 480 / run.params**0.35 + 2000 / run.tokens**0.37
            store.add(
                RunResult(
                    run=run, status="completed", loss=main, losses=losses, tokens=run.tokens, flops=run.flops
                )
            )
    planned.refresh()
    return planned


def test_a_fit_takes_the_losses_of_the_set_that_is_named(study):
    assert study.fit.law.parameters["alpha"] == pytest.approx(0.35, rel=1e-4)
    assert study.fit.eval_set is None
    on_code = study.on("code")
    assert on_code.fit.law.parameters["alpha"] == pytest.approx(0.30, rel=1e-4)
    assert on_code.fit.eval_set == "code"
    assert on_code.isoflop.eval_set == "code"
    assert on_code.on(None).fit == study.fit


def test_runs_without_a_loss_on_that_set_are_left_out(study):
    assert 0 < len(study.on("code").observations) < len(study.observations) == len(study.plan.runs)


def test_a_set_that_no_run_was_measured_on_is_an_error_that_names_those_there_are(study):
    with pytest.raises(
        FitError, match=r"no run has a loss on held-out set 'prose'; .* held-out sets of these runs: code"
    ):
        _ = study.on("prose").fit


@pytest.fixture
def call_cli(capsys):
    def call(*arguments):
        fits = arguments[0] in ("fit", "predict", "backtest")
        status = command_line([*map(str, arguments), *(("--set", "draws=20") if fits else ())])
        output, error = capsys.readouterr()
        return status, " ".join(output.split()), " ".join(error.split())

    return call


def test_the_command_line_fits_predicts_and_reports_on_a_set(study, call_cli):
    folder = study.folder.path
    status, output, _ = call_cli("fit", folder, "--eval-set", "code", "--json")
    fit = json.loads(output)
    assert (status, fit["eval_set"]) == (0, "code")
    assert fit["law"]["parameters"]["beta"] == pytest.approx(0.30, rel=1e-4)
    assert "L on code nats/token" in call_cli("fit", folder, "--eval-set", "code", "--checklist")[1]
    assert "held-out on code, nats per token" in call_cli("fit", folder, "--eval-set", "code", "--checklist")[1]
    assert "on code" not in call_cli("fit", folder, "--checklist")[1]
    predicted = [
        json.loads(call_cli("predict", folder, "--flops", 1e22, "--json", *more)[1])
        for more in ((), ("--eval-set", "code"))
    ]
    assert predicted[0]["loss"]["value"] != pytest.approx(predicted[1]["loss"]["value"], rel=0.01)
    assert call_cli("backtest", folder, "--eval-set", "code")[0] == 0
    status, output, _ = call_cli("report", folder, "--eval-set", "code")
    assert status == 0
    page = folder / "report" / "code" / "index.html"
    assert "Loss on code: nats per token" in page.read_text()
    assert "held-out loss on code" in (page.parent / "isoflop.svg").read_text()
    assert not (folder / "report" / "index.html").exists()


def test_a_set_of_a_table_or_of_a_fit_is_the_users_mistake(study, call_cli, tmp_path):
    status, _, error = call_cli("fit", study.folder.path, "--eval-set", "prose")
    assert status == 2
    assert "held-out sets of these runs: code" in error
    (tmp_path / "runs.csv").write_text(study.runs.csv())
    status, _, error = call_cli("fit", tmp_path / "runs.csv", "--eval-set", "code")
    assert status == 2
    assert "a table has one loss column; name it with --column loss=COLUMN" in error
    assert (
        call_cli("fit", tmp_path / "runs.csv", "--column", "loss=loss_code", "--out", tmp_path / "fit.json")[0]
        == 0
    )
    status, _, error = call_cli("predict", tmp_path / "fit.json", "--flops", 1e22, "--eval-set", "code")
    assert status == 2
    assert "--eval-set code" in error
    assert "name the study or the table of runs" in error
