"""Further processes that use a store at the same time, for the kit. Imports no pytest."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pydantic import JsonValue

from flops_fit_core.plugins.protocols import ResultStore
from flops_fit_core.plugins.registry import PluginSetup, Registry, registry_from
from flops_fit_core.records import RunResult
from flops_fit_core.testing.examples import result_of


class OtherProcess:
    """Another process with the same store open. It answers one line of JSON for each that it is sent."""

    def __init__(self, setup: PluginSetup, name: str, options: Mapping[str, JsonValue], folder: Path) -> None:
        code = "from flops_fit_core.testing.processes import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.send(setup.model_dump_json(), name, dict(options), str(folder))
        self.answer()

    def send(self, *command: Any) -> None:
        """Send a command, without waiting for its answer."""
        _of(self._process.stdin).write(json.dumps(command) + "\n")
        _of(self._process.stdin).flush()

    def answer(self) -> Any:
        """Its next answer."""
        line = _of(self._process.stdout).readline()
        if not line:
            raise RuntimeError("the other process has ended; its error is on standard error")
        return json.loads(line)

    def kill(self) -> list[Any]:
        """SIGKILL; gives what it had answered before and nobody has read."""
        self._process.kill()
        output, _ = self._process.communicate()
        whole = output[: output.rfind("\n") + 1]
        return [json.loads(line) for line in whole.splitlines()]


def _of(pipe: IO[str] | None) -> IO[str]:
    if pipe is None:
        raise RuntimeError("the process was started without a pipe")
    return pipe


def serve() -> None:
    """What :class:`OtherProcess` runs."""

    def read() -> list[Any]:
        line = sys.stdin.readline()
        return list(json.loads(line)) if line else []

    def say(answer: Any) -> None:
        print(json.dumps(answer), flush=True)  # noqa: T201

    setup, name, options, folder = read()
    store = build_store(registry_from(PluginSetup.model_validate_json(setup)), name, options, Path(folder))
    say("open")
    while command := read():
        match command:
            case ["stream", int(seed)]:
                while True:
                    store.add(result_of(seed))
                    say(seed)
                    seed += 1
            case ["add", str(text)]:
                store.add(RunResult.model_validate_json(text))
                say(None)
            case [method, *arguments]:
                say(getattr(store, method)(*arguments))
    store.close()


def build_store(registry: Registry, name: str, options: Mapping[str, JsonValue], folder: Path) -> ResultStore:
    """Raises TypeError if the plugin builds no ResultStore."""
    spec = registry.find("store", name).spec
    store = spec.build(spec.options.model_validate(dict(options)), folder)
    if not isinstance(store, ResultStore):
        raise TypeError(f"build returned a {type(store).__name__}, whose class does not inherit ResultStore")
    return store
