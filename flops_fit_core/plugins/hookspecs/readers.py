"""The hook for readers of logs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from flops_fit_core.plugins.hookspecs.markers import hookspec

if TYPE_CHECKING:
    from flops_fit_core.plugins.specs import ReaderSpec


@hookspec
def flops_fit_readers() -> Iterable[ReaderSpec]:
    """Offer readers, which read the logs of runs of other software: ``flops-fit fit FOLDER``.

    ::

        from flops_fit_core.plugins import LoggedRun, ReaderSpec, RunReader, hookimpl
        from flops_fit_core.plugins import find_run_files, read_run_file

        class ProgressReader(RunReader):
            # One folder per run, with a progress.txt of lines such as "step=100 tokens=4e6 eval_loss=3.1".
            def read(self, path):
                for file in find_run_files(path, "progress.txt"):
                    lines = read_run_file(file).decode(errors="replace").splitlines()
                    points = [dict(part.split("=", 1) for part in line.split() if "=" in part) for line in lines]
                    yield LoggedRun(
                        id=str(file.parent.relative_to(path)),
                        history=points,
                        config_files=[file.with_name("config.json")],
                        folder=file.parent,
                    )

        @hookimpl
        def flops_fit_readers():
            yield ReaderSpec(
                name="progress",
                build=lambda options: ProgressReader(),
                recognises=lambda path: any(find_run_files(path, "progress.txt")),
            )
    """
    return ()
