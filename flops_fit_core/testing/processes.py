"""Other processes that use a store at the same time, for the kit. Imports no pytest."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from pydantic import JsonValue

from flops_fit_core.plugins.protocols import ResultStore
from flops_fit_core.plugins.registry import PluginSetup, Registry, registry_from
from flops_fit_core.records import RunResult
from flops_fit_core.testing.examples import result_of


class OtherProcess:
    """Another process with the same store open. It answers each line of JSON with a line of JSON."""

    def __init__(self, setup: PluginSetup, name: str, options: Mapping[str, JsonValue], folder: Path) -> None:
        code = "from flops_fit_core.testing.processes import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.send(setup.model_dump_json(), sys.path, name, dict(options), str(folder))
        self.answer()

    def send(self, *command: Any) -> None:
        """Send a command, without waiting for its answer."""
        stdin = _require_pipe(self._process.stdin)
        stdin.write(json.dumps(command) + "\n")
        stdin.flush()

    def answer(self) -> Any:
        """Wait for the next answer."""
        line = _require_pipe(self._process.stdout).readline()
        if not line:
            raise RuntimeError("the other process has ended; its error is on standard error")
        return json.loads(line)

    def kill(self) -> list[Any]:
        """Send SIGKILL. Returns the answers that were not read yet."""
        self._process.kill()
        output, _ = self._process.communicate()
        complete = output[: output.rfind("\n") + 1]
        return [json.loads(line) for line in complete.splitlines()]


def extend_path(path: Sequence[str]) -> None:
    """Import from the folders of another process, too, and find the plugins installed in them.

    The folders in a setup of plugins have no installed plugins.
    """
    sys.path += [entry for entry in path if entry not in sys.path]


def _require_pipe(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise RuntimeError("the process was started without a pipe")
    return pipe


def serve() -> None:
    """Main function of :class:`OtherProcess`."""

    def read() -> list[Any]:
        line = sys.stdin.readline()
        return list(json.loads(line)) if line else []

    def write(answer: Any) -> None:
        print(json.dumps(answer), flush=True)  # noqa: T201

    setup, path, name, options, folder = read()
    extend_path(path)
    store = build_store(registry_from(PluginSetup.model_validate_json(setup)), name, options, Path(folder))
    write("open")
    while command := read():
        match command:
            case ["stream", int(seed)]:
                while True:
                    _add_claimed(store, result_of(seed))
                    write(seed)
                    seed += 1
            case ["add", str(text), *tokens]:
                stored = store.add(RunResult.model_validate_json(text), *tokens)
                write(None if stored is None else stored.model_dump_json())
            case [method, *arguments]:
                write(getattr(store, method)(*arguments))
    store.close()


def _add_claimed(store: ResultStore, result: RunResult) -> None:
    """Add a result as the driver of its run."""
    token = store.claim(result.id, "the other process", 600)
    if store.fenced and isinstance(token, str):
        store.add(result, token)
    else:
        store.add(result)


def build_store(registry: Registry, name: str, options: Mapping[str, JsonValue], folder: Path) -> ResultStore:
    """Open a store. Raises TypeError if the plugin's ``build`` does not return a ResultStore."""
    spec = registry.find("store", name).spec
    store = spec.build(spec.options.model_validate(dict(options)), folder)
    if not isinstance(store, ResultStore):
        raise TypeError(f"build returned a {type(store).__name__}, which is not a subclass of ResultStore")
    return store
