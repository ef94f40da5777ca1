"""The outputs in README.md and docs/quickstart.md, from the finished study of docs/examples/text-gpt.toml.

``python tests/readme_outputs.py FOLDER``, with the study in FOLDER/runs/text-gpt, writes them anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "quickstart.md")
STUDY = "runs/text-gpt"
ANSWER = f"from flops_fit_core import Study; print('\\n'.join(Study.open({STUDY!r}).answer().lines(80)))"
MAIN = "from flops_fit_core.cli import main; main()"
PREDICT = ["predict", STUDY, "--flops", "1e12", "--flops", "1e15"]
OUTPUTS = {
    "answer": ["-c", ANSWER],
    "predict-output": ["-c", MAIN, *PREDICT],
    "backtest-output": ["-c", MAIN, "backtest", STUDY],
}
"""Name of a block's markers -> arguments of Python that print it."""


def blocks(text: str) -> dict[str, str]:
    """The outputs in a document, by name."""
    pattern = r"<!-- (" + "|".join(OUTPUTS) + r") -->\n```text\n(.*?)\n```"
    return dict(re.findall(pattern, text, re.S))


def main(folder: Path) -> None:
    environment = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    outputs = {}
    for name, arguments in OUTPUTS.items():
        process = subprocess.run(
            [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=True
        )
        outputs[name] = process.stdout.strip("\n")
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        for name, shown in blocks(text).items():
            text = text.replace(
                f"<!-- {name} -->\n```text\n{shown}\n```", f"<!-- {name} -->\n```text\n{outputs[name]}\n```"
            )
        document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
