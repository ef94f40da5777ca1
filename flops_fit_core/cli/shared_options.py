"""Options that several commands share, written once."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def share_options(
    prepare: Callable[..., tuple[Any, ...]], **replaced: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the parameters of ``prepare`` to a command, which then gets the values that ``prepare`` returns.

    The first parameter of ``prepare`` stays the command's first; its other parameters follow the command's own::

        def law_source(source: RunsArgument, law_name: LawNameOption = None) -> tuple[LawRequest]: ...

        @share_options(law_source)
        def fit(request: LawRequest, out: OutOption = None) -> None: ...

    typer reads the joined signature.

    Args:
        prepare: Returns the first positional arguments of the command.
        replaced: Annotations of parameters of ``prepare`` that differ for this command.
    """
    shared = [
        parameter.replace(annotation=replaced.get(parameter.name, parameter.annotation))
        for parameter in inspect.signature(prepare, eval_str=True).parameters.values()
    ]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        parameters = list(inspect.signature(command, eval_str=True).parameters.values())
        own = [parameter for parameter in parameters if parameter.default is not parameter.empty]

        @functools.wraps(command)
        def callback(**values: Any) -> Any:
            prepared = prepare(**{parameter.name: values.pop(parameter.name) for parameter in shared})
            return command(*prepared, **values)

        joined = [shared[0], *own, *shared[1:]]
        keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in joined]
        callback.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
        callback.__annotations__ = {}  # typer takes the annotations of the signature
        return callback

    return decorate
