"""Drivers in separate processes, and the source of a small model plugin for their runs."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

COMMAND = (sys.executable, "-c", "from flops_fit_core.cli import main; main()")
"""The start of a ``flops-fit`` command line."""

PLUGIN = """\
import os
from flops_fit_core.plugins import ModelSpec, Options, hookimpl

class NetOptions(Options):
    width: int = 8
    fault: str = ""

def build(options, task):
    import torch

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = torch.nn.Embedding(task.vocab_size, options.width)
            self.head = torch.nn.Linear(options.width, task.vocab_size)
            self.calls = 0

        def forward(self, ids):
            self.calls += 1
{before}
            return self.head(self.embedding(ids))

    return Net()

@hookimpl
def flops_fit_models():
    yield ModelSpec(name="{name}", options=NetOptions, build=build, size="width")
"""


def net_plugin(name: str, before: str) -> str:
    """Source of a plugin with a model of an embedding and a head.

    Args:
        name: Name of the model.
        before: Code at the start of ``forward``. It can use ``ids``, ``options``, ``self.calls``, ``torch`` and
            ``os``. The option ``fault`` is a text for it.
    """
    return PLUGIN.replace("{name}", name).replace("{before}", textwrap.indent(textwrap.dedent(before), " " * 12))


def start_driver(
    *arguments: str, folder: Path | None = None, stderr: int = subprocess.DEVNULL
) -> subprocess.Popen[bytes]:
    """Start ``flops-fit ARGUMENTS`` in a folder, by default the working directory. Its output is dropped."""
    return subprocess.Popen([*COMMAND, *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=stderr)
