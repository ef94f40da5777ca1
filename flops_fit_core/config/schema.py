"""The JSON Schema of experiment files, with the options of every plugin, for editors and validators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticInvalidForJsonSchema

from flops_fit_core.config.choices import DEFAULTS
from flops_fit_core.config.experiment import Experiment, Sweep
from flops_fit_core.config.starter import plain_text
from flops_fit_core.plugins.registry import RegisteredSpec, Registry

DIALECT = "https://json-schema.org/draft/2020-12/schema"
Schema = dict[str, Any]


def experiment_schema(registry: Registry) -> Schema:
    """The schema of an experiment file. A table is checked against the options of the plugin that it names.

    A table without ``name`` is not checked: its plugin may depend on the model or the dataset.
    """
    definitions: Schema = {}
    fields = _with_plain_texts(Experiment.model_json_schema()["properties"])
    properties: Schema = {"$schema": {"type": "string"}, "name": fields["name"]}
    properties["sweep"] = _options_schema(Sweep, "sweep", definitions)
    for name in fields:
        kind = "logger" if name == "loggers" else name
        if kind in properties:
            continue
        choice = _choice_schema(kind, registry.offers(kind), definitions)
        properties[name] = {"type": "array", "items": choice} if name == "loggers" else choice
    return {
        "$schema": DIALECT,
        "title": "flops-fit experiment",
        "type": "object",
        "properties": properties,
        "required": [name for name, field in Experiment.model_fields.items() if field.is_required()],
        "additionalProperties": False,
        "$defs": definitions,
    }


def _choice_schema(kind: str, offers: Sequence[RegisteredSpec[Any]], definitions: Schema) -> Schema:
    """A plugin of one kind: its name, or a table with its name and options."""
    names = {offer.name: _names(offer, offers) for offer in offers}
    tables = [_table_schema(offer, names[offer.name], definitions) for offer in offers]
    all_names = sorted({name for options in names.values() for name in options})
    choices: list[Schema] = [{"enum": all_names}]
    # One branch per plugin would report every branch for a mistake; "if" selects the one that the file names.
    rules = [
        {"if": {"properties": {"name": {"enum": names[offer.name]}}, "required": ["name"]}, "then": table}
        for offer, table in zip(offers, tables, strict=True)
    ]
    named = {"type": "object", "properties": {"name": {"enum": all_names}}, "allOf": rules}
    choices.append(named if kind in DEFAULTS or kind == "optimizer" else {**named, "required": ["name"]})
    return {"anyOf": choices, "description": f"A {kind} by name, or a table with its name and options."}


def _names(offer: RegisteredSpec[Any], offers: Sequence[RegisteredSpec[Any]]) -> list[str]:
    """The names that select a plugin: qualified, and bare if no other plugin offers the same name."""
    is_unique = sum(other.spec.name == offer.spec.name for other in offers) == 1
    return [offer.name, *([offer.spec.name] if is_unique else [])]


def _table_schema(offer: RegisteredSpec[Any], names: Sequence[str], definitions: Schema) -> Schema:
    schema = _options_schema(offer.spec.options, offer.name, definitions)
    return {**schema, "properties": {"name": {"enum": list(names)}, **schema.get("properties", {})}}


def _options_schema(options: type[BaseModel], prefix: str, definitions: Schema) -> Schema:
    """The schema of a table. Its nested definitions move to ``definitions``, with a prefix."""
    key = prefix.replace("/", ".")
    try:
        schema = options.model_json_schema(ref_template=f"#/$defs/{key}.{{model}}")
    except PydanticInvalidForJsonSchema:  # an option of a type that JSON lacks
        return {"type": "object"}
    schema = _with_plain_texts(schema)
    definitions |= {f"{key}.{name}": definition for name, definition in schema.pop("$defs", {}).items()}
    return {name: value for name, value in schema.items() if name not in ("title", "description")}


def _with_plain_texts(value: Any) -> Any:
    """The schema with descriptions that editors can show as they are."""
    if isinstance(value, list):
        return [_with_plain_texts(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: plain_text(item) if key == "description" and isinstance(item, str) else _with_plain_texts(item)
        for key, item in value.items()
    }
