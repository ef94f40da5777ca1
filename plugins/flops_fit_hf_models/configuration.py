"""From options to a configuration of the library transformers."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import logging

from flops_fit_core import ConfigError
from flops_fit_core.data import LanguageTask
from flops_fit_core.plugins import Task
from flops_fit_hf_models import HFOptions, LadderOptions

FEED_FORWARD = ("intermediate_size", "intermediate_size_mlp", "ffn_dim", "ffn_hidden_size", "dff")
"""Names of the fields for hidden units of feed-forward parts, after prefixes such as ``moe_``, ``decoder_`` and
``shared_expert_``."""
TOP_K = ("num_experts_per_tok", "moe_topk", "top_k_experts")
"""Names of the field for the number of experts per token. A list has one number per layer."""
SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
"""Set to None, because the dataset defines the tokens. A padding token would be an embedding that never learns."""
TASK_FIELDS = ("vocab_size", "max_position_embeddings", "is_decoder", "use_cache", *SPECIAL_TOKENS)
"""Fields that the task and the training decide. They override a ladder's configuration: hubs have encoders with
``is_decoder = false``, which would see the tokens that they must predict."""
REFUSED = {
    **dict.fromkeys(
        ("cpmant", "xlm", "xlnet"), "sees the tokens that it must predict, so its loss would mean nothing"
    ),
    **dict.fromkeys(
        ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"),
        "counts positions from a padding token, which a dataset's tokens do not have",
    ),
}
"""Causal language models of transformers that are not supported, with the reason."""
FILE_FIELDS = ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
"""Entries of a ``config.json`` that do not affect the model's shape. Weights are always float32."""


@contextmanager
def quiet() -> Iterator[None]:
    """Silence warnings about special tokens and missing faster kernels."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@dataclass(frozen=True)
class Architecture:
    """A model type of transformers, with its configuration class, defaults and fields."""

    name: str
    make: type[Any]
    defaults: Any
    fields: frozenset[str]

    def field_name(self, field: str) -> str:
        """The architecture's name of a field: ``n_embd`` for ``hidden_size``. Raises ConfigError if it has
        none."""
        name = self._map_name(field)
        if name not in self.fields:
            raise ConfigError(
                f"model: a configuration of {self.name!r} has no field {field!r}; {_nearest(field, self.fields)}"
                f"available: {', '.join(sorted(self.fields))}"
            )
        return name

    def rename_fields(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The values by the architecture's names of fields. Raises ConfigError for an unknown field."""
        return {self.field_name(name): value for name, value in values.items()}

    def has(self, field: str) -> bool:
        return self._map_name(field) in self.fields

    def _map_name(self, field: str) -> str:
        """Some architectures accept a name, store it under another, and map the former to the latter."""
        return field if field in self.fields else str(self.make.attribute_map.get(field, field))

    def default(self, field: str) -> Any:
        return getattr(self.defaults, field, None)


@lru_cache
def architecture(name: str) -> Architecture:
    """Look up an architecture. Raises ConfigError if the installed transformers has no such causal language
    model."""
    if name in REFUSED:
        raise ConfigError(f"model.architecture: {name!r} {REFUSED[name]}: choose another architecture")
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigError(
            f"model.architecture: transformers has no causal language model {name!r}; "
            f"{_nearest(name, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}"
            f"available: {', '.join(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}"
        )
    make = CONFIG_MAPPING[name]
    try:
        with quiet():
            defaults = make()
    except Exception as error:
        raise ConfigError(
            f"model.architecture: transformers could not create a default {name!r}: {_one_line(error)}"
        ) from error
    general = inspect.signature(PretrainedConfig.__init__).parameters  # self, labels of classes, dtypes, ...
    specific = {field for field in inspect.signature(make.__init__).parameters if field not in general}
    common = {"is_decoder", "tie_word_embeddings", "use_cache", *SPECIAL_TOKENS} & set(defaults.to_dict())
    result = Architecture(name, make, defaults, frozenset((specific - {"kwargs"}) | common))
    if not result.has("hidden_size") and f"{name}_text" in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigError(f"model.architecture: {name!r} takes more than text: choose '{name}_text'")
    return result


def configure(options: HFOptions | LadderOptions, task: Task) -> Any:
    """The configuration of a size. Raises ConfigError for options that contradict each other or the task."""
    return make_config(options, language(task))


def hidden_size(options: HFOptions | LadderOptions) -> int:
    """Channels of the residual stream, which do not depend on the task."""
    return int(make_config(options, LanguageTask(vocab_size=8, context=8), strict=False).hidden_size)


def language(task: Task) -> LanguageTask:
    """The task as a language task. Raises ConfigError for other tasks."""
    if not isinstance(task, LanguageTask):
        raise ConfigError(
            f"models 'hf' and 'hf-ladder' predict the next token, and this dataset has a {type(task).__name__}: "
            f"choose a text dataset, or another model"
        )
    return task


def make_config(options: HFOptions | LadderOptions, task: LanguageTask, *, strict: bool = True) -> Any:
    """The configuration of a size. If ``strict``, it must suit the task. Raises ConfigError."""
    if isinstance(options, HFOptions):
        arch = architecture(options.architecture)
        fields = _scaled_fields(options, arch)
        if strict:
            _check_task(fields, arch, task)
    else:
        arch = architecture(str(options.config.get("model_type", options.architecture)))
        values = {
            name: value for name, value in options.config.items() if name not in ("model_type", *FILE_FIELDS)
        }
        # A file of transformers has derived entries and entries of earlier versions, which transformers accepts.
        is_from_file = not options.config.keys().isdisjoint(FILE_FIELDS)
        fields = values if is_from_file else arch.rename_fields(values)
        for field in TASK_FIELDS:
            fields.pop(arch.make.attribute_map.get(field, field), None)
    return _instance(arch, {**_task_fields(arch, task, fields), **fields})


def _instance(arch: Architecture, fields: Mapping[str, Any]) -> Any:
    try:
        with quiet():
            return arch.make(**fields)
    except Exception as error:
        raise ConfigError(
            f"model: transformers could not create {arch.name!r} from {dict(fields)}: {_one_line(error)}"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _task_fields(arch: Architecture, task: LanguageTask, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Fields that the task decides, without those that are already chosen."""
    fields: dict[str, Any] = {"vocab_size": task.vocab_size, **dict.fromkeys(SPECIAL_TOKENS)}
    if arch.has("max_position_embeddings"):
        fields[arch.field_name("max_position_embeddings")] = task.context
    if arch.has("is_decoder"):
        fields["is_decoder"] = True  # otherwise encoders such as BERT see later tokens
    fields["use_cache"] = False
    return {name: value for name, value in fields.items() if name in arch.fields and name not in chosen}


def _check_task(fields: Mapping[str, Any], arch: Architecture, task: LanguageTask) -> None:
    """Raise ConfigError for fields that contradict the task."""
    if fields.get("vocab_size", task.vocab_size) != task.vocab_size:
        raise ConfigError(
            f"model.config: vocab_size = {fields['vocab_size']}, and the dataset has {task.vocab_size} tokens: "
            f"leave it out"
        )
    if not fields.get("is_decoder", True):
        raise ConfigError(
            "model.config: with is_decoder = false the model sees the tokens that it must predict: leave it out"
        )
    positions = arch.make.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    if fields.get(positions, task.context) < task.context:
        raise ConfigError(
            f"model.config: {positions} = {fields[positions]} is less than the dataset's context of {task.context}"
        )


def _scaled_fields(options: HFOptions, arch: Architecture) -> dict[str, Any]:
    scaling = arch.field_name(options.field)
    fixed = arch.rename_fields(options.config)
    scaled = {arch.field_name(name): round_size(ratio * options.width) for name, ratio in options.scaled.items()}
    for fields, option in ((fixed, "config"), (scaled, "scaled")):
        if scaling in fields:
            raise ConfigError(
                f"model.{option}: {scaling} is set by model.width: write width = ..., or another model.field"
            )
    if duplicates := sorted(fixed.keys() & scaled.keys()):
        raise ConfigError(f"model: {', '.join(duplicates)} in config and in scaled: leave it out of one of them")
    chosen = {scaling: options.width, **scaled, **fixed}
    if scaling == arch.field_name("hidden_size"):
        return {**_feed_forward(options.width, arch, chosen), **_heads(options, arch, chosen), **chosen}
    return chosen


def round_size(value: float, *, always: bool = False) -> int:
    """Round to an integer above zero; from 128 on (or always) to a multiple of 8."""
    return max(8, 8 * round(value / 8)) if always or value >= 128 else max(1, round(value))


def _feed_forward(width: int, arch: Architecture, chosen: Mapping[str, Any]) -> dict[str, int]:
    """Sizes of feed-forward parts in the proportion of the architecture's defaults, if these are numbers. Experts
    need rows of a multiple of 16 bytes, for torch's product."""
    has_experts = any(arch.has(name) for name in TOP_K)
    sizes = {
        name: arch.default(name) for name in arch.fields if name.endswith(FEED_FORWARD) and name not in chosen
    }
    return {
        name: round_size(width * size / arch.default("hidden_size"), always=has_experts)
        for name, size in sizes.items()
        if isinstance(size, int) and size
    }


def _heads(options: HFOptions, arch: Architecture, chosen: Mapping[str, Any]) -> dict[str, int]:
    if not arch.has("num_attention_heads"):
        return _state_space_heads(options, arch, chosen)
    name, width = arch.field_name("num_attention_heads"), options.width
    head_dim = chosen.get("head_dim")
    heads = chosen.get(name) or (max(1, width // head_dim) if head_dim else even_heads(width, options.head_dim))
    if not head_dim and width % heads:
        raise ConfigError(
            f"model: {name} = {heads} does not divide a width of {width}: write sweep.multiple_of = "
            f"{2 * heads}, or leave {name} out for heads of model.head_dim channels"
        )
    fields = {name: heads}
    if "head_dim" in arch.fields:
        fields["head_dim"] = head_dim or width // heads
    if "rotary_dim" in arch.fields and "rotary_dim" not in chosen:  # GPT-J: rotated channels per head
        fields["rotary_dim"] = min(arch.default("rotary_dim"), head_dim or width // heads)
    if arch.has("num_key_value_heads"):
        group_size = options.queries_per_kv or queries_per_kv(arch)
        fields[arch.field_name("num_key_value_heads")] = heads // _nearest_divisor(heads, group_size)
    elif options.queries_per_kv is not None:
        raise ConfigError(f"model.queries_per_kv: {arch.name!r} has no separate heads of keys and values")
    return fields


def _state_space_heads(options: HFOptions, arch: Architecture, chosen: Mapping[str, Any]) -> dict[str, int]:
    """Mamba2 has ``expand * width`` channels, which must equal ``num_heads * head_dim``."""
    if not {"num_heads", "head_dim", "expand"} <= arch.fields or "num_heads" in chosen:
        return {}
    inner = int(chosen.get("expand", arch.default("expand")) * options.width)
    heads = max(1, inner // chosen["head_dim"]) if "head_dim" in chosen else even_heads(inner, options.head_dim)
    fields = {"num_heads": heads, "head_dim": inner // heads}
    if "n_groups" in arch.fields and "n_groups" not in chosen:  # groups of heads that share B and C
        fields["n_groups"] = _nearest_divisor(heads, arch.default("n_groups"))
    return fields


def even_heads(width: int, head_dim: int) -> int:
    """The largest number of heads with at least ``head_dim`` channels each that divides the pairs of channels."""
    largest = max(1, width // head_dim)
    return next((n for n in range(largest, 0, -1) if width % (2 * n) == 0), 1)


def queries_per_kv(arch: Architecture) -> int:
    """Query heads per head of keys and values in the architecture's defaults."""
    heads, kv_heads = arch.default("num_attention_heads"), arch.default("num_key_value_heads")
    return heads // kv_heads if isinstance(kv_heads, int) and kv_heads else 1


def _nearest_divisor(heads: int, target: int) -> int:
    return min((n for n in range(1, heads + 1) if heads % n == 0), key=lambda n: abs(n - target))


def _nearest(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(words), n=1)
    return f"did you mean {close[0]!r}? " if close else ""
