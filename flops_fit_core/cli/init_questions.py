"""The questions of ``init`` on a terminal: the plugins, the options that they need, and the budgets."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar, get_origin

import typer
from pydantic.fields import FieldInfo

from flops_fit_core.cli.printing import print_error, print_message
from flops_fit_core.config import choose_from_table, override_value
from flops_fit_core.config.starter import bare_name, plain_text
from flops_fit_core.errors import ConfigError
from flops_fit_core.plugins.registry import Registry

MEANINGS: Mapping[str, Mapping[str, str]] = {
    "model": {
        "gpt": "a GPT of any width and depth, for text",
        "mlp": "hidden layers with ReLU, for text or images",
        "vit": "a vision transformer, for images",
        "callable": "your own model: a class, or a function that returns a module",
        "hf": "an architecture of Hugging Face transformers, scaled in width",
        "hf-ladder": "complete configurations of Hugging Face transformers",
        "declared": "numbers of a model that your own program trains",
    },
    "dataset": {
        "text": "text files; without a path, the sources of Python's library",
        "hf-dataset": "documents saved by Hugging Face datasets, and a tokenizer",
        "tokens": "files of token ids, such as train.bin",
        "images": "your own images; without a source, handwritten digits",
        "external": "a description of data that your own program reads",
    },
    "device": {"auto": "all GPUs if there are any, otherwise the CPU", "cpu": "", "cuda": ""},
}
"""Kind -> name -> meaning, in the order of the list. Other plugins follow."""
ASKED: Mapping[str, Sequence[str]] = {
    "callable": ("import_path", "size_argument"),
    "hf": ("architecture",),
    "hf-ladder": ("configs",),
    "text": ("path",),
    "hf-dataset": ("path", "tokenizer"),
    "images": ("source",),
}
"""Options to ask for, in addition to those without a default."""
T = TypeVar("T")


def ask_plugin(
    kind: str, registry: Registry, default: str, name: str | None, overrides: Sequence[str]
) -> dict[str, Any]:
    """The table of a plugin: its name, and the options that it needs.

    Args:
        kind: ``model``, for example.
        registry: The plugins to choose from.
        default: The name if the answer is empty.
        name: The name from the command line; None to ask for it.
        overrides: ``kind.option=value`` from the command line. These options are not asked for.

    A wrong answer is asked again. Raises ConfigError for a wrong name from the command line.
    """
    if name is None:
        _print_choices(kind, registry)
        name = _ask(kind, default, lambda answer: _check_name(kind, answer, registry))
    spec = registry.find(kind, name).spec
    keys = {override.partition("=")[0].strip() for override in overrides}
    fields = {
        option: field
        for option, field in spec.options.model_fields.items()
        if (field.is_required() or option in ASKED.get(spec.name, ())) and f"{kind}.{option}" not in keys
    }
    own_overrides = [item for item in overrides if item.strip().startswith(f"{kind}.")]
    while True:
        table = {"name": name}
        for option, field in fields.items():
            table |= _ask_option(option, field)
        try:
            _check_table(kind, table, registry, own_overrides)
        except ConfigError as error:
            if not fields:
                raise
            print_error(str(error))
        else:
            return table


def ask_budgets(default: str, parse: Callable[[str], T]) -> T:
    """The budgets."""
    print_message("Training FLOPs of each budget, with commas. Three or more give intervals.")
    return _ask("budgets", default, parse)


def ask_to_plan() -> bool:
    """Whether to plan the runs of the new file."""
    return bool(_until_interrupted(typer.confirm, "Plan the runs, to check the file?", default=True))


def _print_choices(kind: str, registry: Registry) -> None:
    names = {offer.spec.name for offer in registry.offers(kind)}
    known = {name: meaning for name, meaning in MEANINGS.get(kind, {}).items() if name in names}
    width = max(map(len, known), default=0)
    others = sorted(names.difference(known))
    print_message(f"Which {kind}?")
    for name, meaning in known.items():
        print_message(f"  {name:<{width}}  {meaning}".rstrip())
    if others:
        print_message(f"  others: {', '.join(others)}")


def _check_name(kind: str, name: str, registry: Registry) -> str:
    """Raises ConfigError for a name that no plugin has."""
    names = _names(kind, registry)
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f". Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"no {kind} is named {name!r}{hint}")
    return name


def _names(kind: str, registry: Registry) -> Collection[str]:
    offers = registry.offers(kind)
    return {name for offer in offers for name in (offer.name, bare_name(offer.name))}


def _ask_option(option: str, field: FieldInfo) -> dict[str, Any]:
    """The option and its value; nothing for an empty answer to an option with a default."""
    print_message(f"  {plain_text(field.description or '')}")
    default = None if field.is_required() or not isinstance(field.default, str) else field.default
    is_needed = field.is_required()
    question = option if is_needed or default else f"{option} (Enter: unset)"
    answer = _ask(f"  {question}", default if is_needed or default else "", str.strip)
    if not answer or answer == default:
        return {}
    return {option: _value(option, answer, field)}


def _value(option: str, answer: str, field: FieldInfo) -> Any:
    """The answer as TOML, or as text; names with commas for an option with several."""
    if field.annotation is str:
        return answer
    if get_origin(field.annotation) in (list, tuple) and not answer.startswith("["):
        return [part.strip() for part in answer.split(",")]
    table: dict[str, Any] = {}
    override_value(table, f"{option}={answer}")
    return table[option]


def _check_table(kind: str, table: Mapping[str, Any], registry: Registry, overrides: Sequence[str]) -> None:
    data: dict[str, Any] = {kind: dict(table)}
    for override in overrides:
        override_value(data, override)
    choose_from_table(kind, data[kind], registry, "your answers")


def _ask(question: str, default: str | None, parse: Callable[[str], T]) -> T:
    """The answer, parsed. It is asked again as long as ``parse`` raises ConfigError."""
    is_plain = "NO_COLOR" in os.environ or os.environ.get("TERM") in ("dumb", "unknown")
    text = question if is_plain else typer.style(question, bold=True)
    while True:
        answer = _until_interrupted(typer.prompt, text, default=default, show_default=bool(default))
        try:
            return parse(str(answer))
        except ConfigError as error:
            print_error(str(error))


def _until_interrupted(prompt: Callable[..., T], text: str, **settings: Any) -> T:
    """The answer. After Ctrl-C or the end of the input, the next message starts on a new line."""
    try:
        return prompt(text, err=True, **settings)
    except typer.Abort:
        typer.echo(err=True)
        raise
