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
"""How architectures call the hidden units of feed-forward parts, after words such as ``moe_``, ``decoder_`` and
``shared_expert_``."""
TOP_K = ("num_experts_per_tok", "moe_topk", "top_k_experts")
"""How they call the number of experts to which a token is sent; a list has one for each layer."""
SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
"""A dataset's tokens are its own: a padding token would be an embedding that never learns."""
OF_TRAINING = ("vocab_size", "max_position_embeddings", "is_decoder", "use_cache", *SPECIAL_TOKENS)
"""What the task and the training decide, whatever a ladder's configuration says: hubs have encoders with
``is_decoder = false``, which would see the tokens that they are to predict."""
REFUSED = {
    **dict.fromkeys(
        ("cpmant", "xlm", "xlnet"), "sees the tokens that it is to predict, so its loss would mean nothing"
    ),
    **dict.fromkeys(
        ("camembert", "data2vec-text", "roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl"),
        "counts positions from a padding token, which a dataset's tokens do not have",
    ),
}
"""Listed as causal language models; what is wrong with each."""
OF_FILES = ("architectures", "auto_map", "dtype", "torch_dtype", "transformers_version", "_name_or_path")
"""Entries of a ``config.json`` that are not the model's shape; weights are float32 here."""


@contextmanager
def quiet() -> Iterator[None]:
    """Without remarks on special tokens and on faster kernels that are not installed."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


@dataclass(frozen=True)
class Architecture:
    """One model type of transformers, and what its configuration has."""

    name: str
    make: type[Any]
    defaults: Any
    known: frozenset[str]

    def own(self, field: str) -> str:
        """Its own name of a field: ``n_embd`` for ``hidden_size``. Raises ConfigError for one it has not."""
        name = self._called(field)
        if name not in self.known:
            there = ", ".join(sorted(self.known))
            raise ConfigError(
                f"model: a configuration of {self.name!r} has no field {field!r}; {_nearest(field, self.known)}"
                f"there is: {there}"
            )
        return name

    def named(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """The fields by its own names. Raises ConfigError for one it has not."""
        return {self.own(name): value for name, value in fields.items()}

    def has(self, field: str) -> bool:
        return self._called(field) in self.known

    def _called(self, field: str) -> str:
        """Some architectures take a name, keep it under another, and map the first to the second."""
        return field if field in self.known else str(self.make.attribute_map.get(field, field))

    def default(self, field: str) -> Any:
        return getattr(self.defaults, field, None)


@lru_cache
def architecture(name: str) -> Architecture:
    """Raises ConfigError for a name that is no causal language model of this transformers."""
    if name in REFUSED:
        raise ConfigError(f"model.architecture: {name!r} {REFUSED[name]}: choose another one")
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        there = ", ".join(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
        raise ConfigError(
            f"model.architecture: transformers has no causal language model {name!r}; "
            f"{_nearest(name, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)}there is: {there}"
        )
    make = CONFIG_MAPPING[name]
    try:
        with quiet():
            defaults = make()
    except Exception as error:
        raise ConfigError(
            f"model.architecture: transformers makes no {name!r} by default: {_gist(error)}"
        ) from error
    general = inspect.signature(PretrainedConfig.__init__).parameters  # self, labels of classes, dtypes, ...
    own = {one for one in inspect.signature(make.__init__).parameters if one not in general} - {"kwargs"}
    kept = {"is_decoder", "tie_word_embeddings", "use_cache", *SPECIAL_TOKENS} & set(defaults.to_dict())
    found = Architecture(name, make, defaults, frozenset(own | kept))
    if not found.has("hidden_size") and f"{name}_text" in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ConfigError(f"model.architecture: {name!r} takes more than text: choose '{name}_text'")
    return found


def configure(options: HFOptions | LadderOptions, task: Task) -> Any:
    """The configuration of one size. Raises ConfigError for what does not fit together."""
    return made(options, language(task))


def hidden_size(options: HFOptions | LadderOptions) -> int:
    """Channels of the residual stream, which no task changes."""
    return int(made(options, LanguageTask(vocab_size=8, context=8), strict=False).hidden_size)


def language(task: Task) -> LanguageTask:
    """Raises ConfigError for a task that is no language task."""
    if not isinstance(task, LanguageTask):
        raise ConfigError(
            f"models 'hf' and 'hf-ladder' predict the next token, and this dataset poses a {type(task).__name__}: "
            f"choose a text dataset, or another model"
        )
    return task


def made(options: HFOptions | LadderOptions, task: LanguageTask, *, strict: bool = True) -> Any:
    """The configuration of one size; ``strict`` for whether it must fit the task. Raises ConfigError."""
    if isinstance(options, HFOptions):
        about = architecture(options.architecture)
        fields = _scaled_fields(options, about)
        _fits_task(fields, about, task if strict else None)
    else:
        about = architecture(str(options.config.get("model_type", options.architecture)))
        given = {name: value for name, value in options.config.items() if name not in ("model_type", *OF_FILES)}
        # What transformers wrote has derived entries and those of earlier versions, which it understands.
        written_by_it = not options.config.keys().isdisjoint(OF_FILES)
        fields = given if written_by_it else about.named(given)
        for one in OF_TRAINING:
            fields.pop(about.make.attribute_map.get(one, one), None)
    return _instance(about, {**_from_task(about, task, fields), **fields})


def _instance(about: Architecture, fields: Mapping[str, Any]) -> Any:
    try:
        with quiet():
            return about.make(**fields)
    except Exception as error:
        raise ConfigError(
            f"model: transformers makes no {about.name!r} of {dict(fields)}: {_gist(error)}"
        ) from error


def _gist(error: Exception) -> str:
    return " ".join(str(error).split())


def _from_task(about: Architecture, task: LanguageTask, given: Mapping[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {"vocab_size": task.vocab_size, **dict.fromkeys(SPECIAL_TOKENS)}
    if about.has("max_position_embeddings"):
        fields[about.own("max_position_embeddings")] = task.context
    if about.has("is_decoder"):
        fields["is_decoder"] = True  # BERT and its like see the future otherwise
    fields["use_cache"] = False
    return {name: value for name, value in fields.items() if name in about.known and name not in given}


def _fits_task(fields: Mapping[str, Any], about: Architecture, task: LanguageTask | None) -> None:
    if task is None:
        return
    if fields.get("vocab_size", task.vocab_size) != task.vocab_size:
        raise ConfigError(
            f"model.config: vocab_size = {fields['vocab_size']}, and the dataset has {task.vocab_size} tokens: "
            f"leave it out"
        )
    if not fields.get("is_decoder", True):
        raise ConfigError(
            "model.config: with is_decoder = false the model sees the tokens that it is to predict: leave it out"
        )
    positions = about.make.attribute_map.get("max_position_embeddings", "max_position_embeddings")
    if fields.get(positions, task.context) < task.context:
        raise ConfigError(
            f"model.config: {positions} = {fields[positions]} is less than the dataset's context of {task.context}"
        )


def _scaled_fields(options: HFOptions, about: Architecture) -> dict[str, Any]:
    scaling = about.own(options.field)
    fixed = about.named(options.config)
    follow = {about.own(name): rounded(ratio * options.width) for name, ratio in options.scaled.items()}
    for clash, what in ((fixed, "config"), (follow, "scaled")):
        if scaling in clash:
            raise ConfigError(
                f"model.{what}: {scaling} is what model.width sets: write width = ..., or another model.field"
            )
    if both := sorted(fixed.keys() & follow.keys()):
        raise ConfigError(f"model: {', '.join(both)} in config and in scaled: one of them decides")
    given = {scaling: options.width, **follow, **fixed}
    if scaling == about.own("hidden_size"):
        return {**_feed_forward(options.width, about, given), **_heads(options, about, given), **given}
    return given


def rounded(value: float, *, always: bool = False) -> int:
    """To an integer above zero, and from 128 on (or always) to a multiple of 8."""
    return max(8, 8 * round(value / 8)) if always or value >= 128 else max(1, round(value))


def _feed_forward(width: int, about: Architecture, given: Mapping[str, Any]) -> dict[str, int]:
    """In proportion as in the architecture's defaults, where these give a number. Torch's product for experts
    takes rows of whole 16 bytes."""
    experts = any(about.has(name) for name in TOP_K)
    sizes = {
        name: about.default(name) for name in about.known if name.endswith(FEED_FORWARD) and name not in given
    }
    return {
        name: rounded(width * size / about.default("hidden_size"), always=experts)
        for name, size in sizes.items()
        if isinstance(size, int) and size
    }


def _heads(options: HFOptions, about: Architecture, given: Mapping[str, Any]) -> dict[str, int]:
    if not about.has("num_attention_heads"):
        return _state_space_heads(options, about, given)
    name, width = about.own("num_attention_heads"), options.width
    apart = given.get("head_dim")
    heads = given.get(name) or (max(1, width // apart) if apart else even_heads(width, options.head_dim))
    if not apart and width % heads:
        raise ConfigError(
            f"model: {name} = {heads} does not divide a width of {width}: write sweep.multiple_of = "
            f"{2 * heads}, or leave {name} out for heads of model.head_dim channels"
        )
    fields = {name: heads}
    if "head_dim" in about.known:
        fields["head_dim"] = apart or width // heads
    if "rotary_dim" in about.known and "rotary_dim" not in given:  # GPT-J's, of a head's channels
        fields["rotary_dim"] = min(about.default("rotary_dim"), apart or width // heads)
    if about.has("num_key_value_heads"):
        shared = options.queries_per_kv or queries_per_kv(about)
        fields[about.own("num_key_value_heads")] = heads // _nearest_divisor(heads, shared)
    elif options.queries_per_kv is not None:
        raise ConfigError(f"model.queries_per_kv: {about.name!r} has no heads of keys and values of their own")
    return fields


def _state_space_heads(options: HFOptions, about: Architecture, given: Mapping[str, Any]) -> dict[str, int]:
    """Mamba2 has ``expand * width`` channels, which are to be ``num_heads * head_dim``."""
    if not {"num_heads", "head_dim", "expand"} <= about.known or "num_heads" in given:
        return {}
    inner = int(given.get("expand", about.default("expand")) * options.width)
    heads = max(1, inner // given["head_dim"]) if "head_dim" in given else even_heads(inner, options.head_dim)
    fields = {"num_heads": heads, "head_dim": inner // heads}
    if "n_groups" in about.known and "n_groups" not in given:  # of heads that share their B and C
        fields["n_groups"] = _nearest_divisor(heads, about.default("n_groups"))
    return fields


def even_heads(width: int, head_dim: int) -> int:
    """The most heads of at least ``head_dim`` channels that share the width evenly, in pairs of channels."""
    most = max(1, width // head_dim)
    return next((n for n in range(most, 0, -1) if width % (2 * n) == 0), 1)


def queries_per_kv(about: Architecture) -> int:
    """Query heads that share one head of keys and values in the architecture's defaults."""
    heads, shared = about.default("num_attention_heads"), about.default("num_key_value_heads")
    return heads // shared if isinstance(shared, int) and shared else 1


def _nearest_divisor(heads: int, wanted: int) -> int:
    return min((n for n in range(1, heads + 1) if heads % n == 0), key=lambda n: abs(n - wanted))


def _nearest(word: str, among: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(among), n=1)
    return f"did you mean {close[0]!r}? " if close else ""
