"""The documentation matches the code: examples run, commands and options exist, links have targets."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import option_tables
import pytest
import readme_outputs
import typer.main
from optional_packages import needs

import flops_fit_core
from flops_fit_core.cli import app
from flops_fit_core.config import Experiment, load_experiment
from flops_fit_core.plugins import Registry, hookspecs
from flops_fit_core.plugins.registry import KINDS, installed
from flops_fit_core.report.answer import MAX_LINES

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "reference").glob("*.md")),
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
]
HOOKS = ROOT / "docs" / "reference" / "hooks.md"
"""tests/test_hooks_are_documented.py runs its examples."""


@dataclass(frozen=True)
class Block:
    """A fenced block.

    ``info`` comes from a comment on the line above the fence, ``<!-- example: INFO -->``: ``fragment`` is not
    complete, ``append FILE`` continues a file, ``slow`` takes long. Without a comment, the block is complete.
    """

    document: Path
    language: str
    info: str
    text: str

    @property
    def file(self) -> str | None:
        """Name of the file that a complete block shows, from the comment in its first line."""
        comment = re.match(r"# (\w[\w./-]*\.(?:py|toml))\n", self.text)
        return comment[1] if comment else None

    @property
    def marks(self) -> list[pytest.MarkDecorator]:
        """Marks of a test of this block."""
        slow = [pytest.mark.slow] if self.info == "slow" else []
        return [*slow, needs("lightning")] if "lightning" in self.text else slow

    def __str__(self) -> str:
        return f"{self.document.name}-{self.file or self.text.splitlines()[0][:30]}"


def blocks(language: str) -> list[Block]:
    return [block for path in DOCUMENTS for block in blocks_of(path) if block.language == language]


BLOCK = re.compile(r"^(?: *<!-- example: ([^\n]*) -->\n)? *```(\w+)\n(.*?)^ *```$", re.M | re.S)


def blocks_of(path: Path) -> list[Block]:
    matches = BLOCK.findall(path.read_text(encoding="utf-8"))
    return [Block(path, language, info, text) for info, language, text in matches]


def test_every_block_has_a_language_and_a_valid_marker() -> None:
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        fences = re.findall(r"^ *```(.*)$", text, re.M)
        assert set(fences[::2]) <= {"python", "toml", "bash", "text"}, path
        infos = [block.info for block in blocks_of(path)]
        assert set(infos) <= {"", "fragment", "slow", "append causal_conv/__init__.py"}, path
        assert len(infos) == len(fences) // 2, path
        assert text.count("<!-- example:") == len(list(filter(None, infos))), f"{path}: a marker without a block"


# ---------------------------------------------------------------------------- python


def files_of(path: Path) -> dict[str, str]:
    """Complete files that a document shows: name -> text."""
    files: dict[str, str] = {}
    for block in blocks_of(path):
        if block.info.startswith("append "):
            files[block.info.removeprefix("append ")] += "\n\n" + block.text
        elif block.file and block.info in ("", "slow"):
            files[block.file] = block.text
    return files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty working directory. Modules imported from it are removed from sys.modules afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


RUN = [block for block in blocks("python") if block.document != HOOKS and block.info in ("", "slow")]
SCRIPTS = [
    pytest.param(block, id=str(block), marks=block.marks)
    for block in RUN
    if not (block.file or "").startswith("test_")
]


@pytest.mark.parametrize("block", SCRIPTS)
def test_an_example_runs(block: Block, folder: Path) -> None:
    write_files(block.document, folder)
    path = folder / (block.file or "example.py")
    path.write_text(block.text, encoding="utf-8")
    (folder / "runs.csv").write_text(table_of_runs())
    process = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr


def table_of_runs() -> str:
    """The file runs.csv of the examples: five budgets of a known law, each loss 1% too high or too low."""
    lines = ["params,tokens,flops,loss"]
    for budget in (1e18, 3e18, 1e19, 3e19, 1e20):
        for k in range(7):
            params = (budget / 120) ** 0.5 * 2.0 ** (k - 3)
            tokens = budget / (6 * params)
            loss = (1.8 + 480 / params**0.35 + 2000 / tokens**0.36) * (
                1.01 if (3 * k + len(lines)) % 4 < 2 else 0.99
            )
            lines.append(f"{params:.6g},{tokens:.6g},{budget:.6g},{loss:.6f}")
    return "\n".join(lines) + "\n"


def write_files(document: Path, folder: Path) -> dict[str, str]:
    """Write the complete files that a document shows. Return their texts by name."""
    files = files_of(document)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return files


def plugin_modules(folder: Path) -> Iterator[tuple[str, ModuleType]]:
    """Import every plugin that a document shows. Yield import names and modules."""
    for document in DOCUMENTS:
        for name, source in write_files(document, folder).items():
            if "@hookimpl" in source:
                importlib.invalidate_caches()
                module = name.removesuffix(".py").removesuffix("/__init__")
                yield module, importlib.import_module(module)


def test_every_plugin_in_the_docs_registers_without_problems(folder: Path) -> None:
    modules = dict(plugin_modules(folder))
    assert set(modules) == {"my_optimizers", "causal_conv", "interaction_law"}
    for module in modules.values():
        registry = Registry({"mine": module}, entry_points=False)
        assert registry.problems == []
        assert len(registry.offers()) == 1


@pytest.mark.slow
def test_the_plugin_guide_works_step_by_step(folder: Path) -> None:
    document = ROOT / "docs" / "write-a-plugin.md"
    write_files(document, folder)

    def run_python(*arguments: str) -> str:
        process = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(["site", str(ROOT)]), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stdout + process.stderr
        return process.stdout

    command_line = ["-c", "from flops_fit_core.cli import main; main()"]
    plan = run_python(
        *command_line, "plan", "conv.toml", "-p", "causal_conv", "--counter", "model", "--no-estimate"
    )
    assert "18 runs" in plan
    assert "causal_conv/conv" in plan, "the family counts its FLOPs itself"
    assert " passed" in run_python("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_causal_conv.py")
    pip = [
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--target",
        "site",
    ]
    run_python(*pip, ".")
    shutil.rmtree(folder / "causal_conv")
    commands = "run(['plugins']); run(['plan', 'conv.toml', '--no-estimate'])"
    output = run_python("-c", f"from flops_fit_core.cli.main import run; {commands}")
    assert "causal-conv 1.0" in output
    assert "18 runs" in output


def test_the_law_of_the_plugin_guide_passes_its_kit_and_fits_a_table(folder: Path) -> None:
    files = write_files(ROOT / "docs" / "write-a-plugin.md", folder)
    body = files["interaction_law.py"].partition("\n\n\n")[2]
    assert len([line for line in body.splitlines() if line.strip()]) <= 20, "the guide promises about 20 lines"
    (folder / "runs.csv").write_text(table_of_runs())
    fit = "from flops_fit_core.cli import main; main()", "fit", "runs.csv", "-p", "interaction_law", "--law"
    for arguments in (
        ("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_interaction_law.py"),
        ("-c", *fit, "interaction_law/interaction"),
    ):
        process = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert process.returncode == 0, process.stdout + process.stderr
    assert "law interaction_law/interaction   E " in process.stdout


def test_the_readmes_optimizer_trains(folder: Path) -> None:
    module = dict(plugin_modules(folder))["my_optimizers"]
    study = flops_fit_core.run(
        {
            "sweep": {"budgets": [2e8], "sizes": [{"width": 8}], "min_steps": 5},
            "model": {"name": "mlp", "depth": 1},
            "dataset": "text",
            "optimizer": "rmsprop",
            "trainer": {"eval_tokens": 1024},
            "executor": "local",
            "device": "cpu",
        },
        registry=Registry({"my_optimizers": module}),
        out=folder / "study",
    )
    assert [result.status for result in study.results] == ["completed"]
    assert study.results[0].run.optimizer.name == "my_optimizers/rmsprop"


# ---------------------------------------------------------------------------- experiment files

EXPERIMENTS = [block for block in blocks("toml") if block.info == "" and "[sweep]" in block.text]


def test_every_toml_block_is_toml() -> None:
    for block in blocks("toml"):
        assert tomllib.loads(block.text), block


@pytest.mark.parametrize("block", [pytest.param(block, id=str(block), marks=block.marks) for block in EXPERIMENTS])
def test_an_experiment_in_the_docs_is_valid(block: Block, folder: Path) -> None:
    registry = Registry(dict(plugin_modules(folder)))
    path = folder / (block.file or "example.toml")
    path.write_text(block.text, encoding="utf-8")
    assert load_experiment(path, registry).sweep.budgets


@pytest.mark.parametrize(
    "block", [pytest.param(block, id=str(block)) for block in blocks("toml") if block.text.startswith("[fitter]")]
)
def test_a_fitter_in_the_docs_is_valid(block: Block, folder: Path) -> None:
    path = folder / "example.toml"
    path.write_text(f'model = "gpt"\ndataset = "text"\n[sweep]\nbudgets = [1e15]\n{block.text}', encoding="utf-8")
    assert load_experiment(path, installed()).fitter.spec.build(load_experiment(path, installed()).fitter.options)


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "examples").glob("*.toml")), ids=lambda path: path.name)
def test_an_example_file_is_valid(path: Path) -> None:
    assert load_experiment(path, installed()).name == path.stem


def test_the_option_tables_match_the_code() -> None:
    text = option_tables.DOCUMENT.read_text(encoding="utf-8")
    assert option_tables.render(text) == text, "update them with: python tests/option_tables.py"


def test_the_readmes_list_of_plugins_matches_the_code() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("## What comes with it")[2].partition("\n## ")[0]
    bundled = {offer.spec.name for offer in installed().offers() if offer.source.startswith("flops-fit ")}
    assert set(re.findall(r"`([a-z-]+)`", table)) == bundled


def test_every_option_has_a_meaning() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| *(.*?) *\|$", option_tables.DOCUMENT.read_text(encoding="utf-8"), re.M)
    assert len(rows) > 50
    assert [name for name, meaning in rows if meaning in ("", "†")] == []


def test_every_table_of_an_experiment_is_documented() -> None:
    text = option_tables.DOCUMENT.read_text(encoding="utf-8")
    tables = set(Experiment.model_fields) - {"name", "loggers", "sweep"}
    assert tables == set(KINDS) - {*option_tables.HEADINGS, "law"}  # a fitter names its law
    assert set(re.findall(r"^##+ `\[(\w+)\]`", text, re.M)) == tables | {"sweep"}


# ---------------------------------------------------------------------------- commands


def commands() -> Iterator[tuple[Block, list[str]]]:
    for block in blocks("bash"):
        for line in block.text.splitlines():
            for part in line.split("&&"):
                words = shlex.split(part, comments=True)
                if words and Path(words[0]).name == "flops-fit":
                    yield block, words[1:]


def test_every_command_in_the_docs_exists() -> None:
    valid_commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    shown_commands = list(commands())
    assert len(shown_commands) > 15
    for block, (name, *arguments) in shown_commands:
        assert name in valid_commands, f"{block}: flops-fit {name}"
        command = valid_commands[name]
        if arguments and arguments[0] in getattr(command, "commands", {}):
            command = command.commands[arguments.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts}
        used = {word.partition("=")[0] for word in arguments if word.startswith("-")}
        assert used <= options, f"{block}: flops-fit {name} has no {', '.join(used - options)}"


def test_every_command_is_documented() -> None:
    names = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    text = "".join(path.read_text(encoding="utf-8") for path in DOCUMENTS)
    assert {name for name in names if f"flops-fit {name}" not in text} == set()


@pytest.mark.parametrize("name", ["run-command", "test-command"])
def test_the_readme_has_its_commands_between_markers(name: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(rf"<!-- {name} -->\n```bash\n([^\n]+)\n```\n<!-- /{name} -->", text)
    assert len(lines) == 1, "the command must be a single line, so that users can copy it"


def test_ci_runs_the_readmes_test_command(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    script = tmp_path / ".ci" / "run"
    script.write_bytes((ROOT / ".ci" / "run").read_bytes())
    script.chmod(0o755)
    (tmp_path / "README.md").write_text(
        "```bash\nexit 3\n```\n<!-- test-command -->\n```bash\necho one && pwd && echo 2 passed\n```\n"
        "<!-- /test-command -->\n"
    )
    process = subprocess.run([str(script)], cwd=ROOT, check=True, capture_output=True, text=True)
    command, *output = process.stdout.splitlines()
    assert command == "+ echo one && pwd && echo 2 passed"
    assert output == ["one", str(tmp_path), "2 passed"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)


def test_readme_and_quickstart_show_the_same_answer_in_at_most_16_lines() -> None:
    readme, quickstart = (
        readme_outputs.blocks(path.read_text(encoding="utf-8")) for path in readme_outputs.DOCUMENTS
    )
    assert set(readme) == {"answer"}
    assert set(quickstart) == set(readme_outputs.OUTPUTS)
    assert readme["answer"] == quickstart["answer"]
    assert len(readme["answer"].splitlines()) <= MAX_LINES
    assert all(len(line) <= 80 for line in readme["answer"].splitlines())


# ---------------------------------------------------------------------------- text


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_have_targets(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            assert anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_document_is_linked_from_the_index() -> None:
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    for path in DOCUMENTS[1:]:
        target = path.relative_to(ROOT / "docs")
        assert str(target) == "index.md" or f"({target})" in text, path


def test_the_plugin_guide_links_to_the_reference_of_all_hooks() -> None:
    hooks = [name for name in vars(hookspecs) if name.startswith("flops_fit_")]
    text = HOOKS.read_text(encoding="utf-8")
    assert all(hook in text for hook in hooks)
    assert "(reference/hooks.md)" in (ROOT / "docs" / "write-a-plugin.md").read_text(encoding="utf-8")
