"""Column names: the role of each common name, and units stated in names."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from flops_fit_core.fitting.io.histories import NAME_COLUMNS
from flops_fit_core.fitting.io.numbers import parse_scale

FINISHED = frozenset(("finished", "completed", "success", "is_finished"))
"""Columns with a flag for finished runs."""
YES = frozenset(("true", "yes", "1", "1.0", "y", "t"))
NO = frozenset(("false", "no", "0", "0.0", "n", "f"))
DIVERGED = frozenset(("diverged", "failed", "crashed", "is_diverged", "has_diverged"))
"""Columns with a flag for failed runs."""
NAMES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "params": (
        (
            *("params", "parameters", "n_params", "num_params", "nparams", "param_count", "params_count"),
            *("parameter_count", "num_parameters", "n_parameters", "model_size", "model_params"),
            "model_num_parameters",
        ),
        (
            *("non_embedding_params", "non_emb_params", "params_non_embedding", "params_no_embed", "n_no_emb"),
            *("non_embedding_parameters", "total_params", "params_total", "total_parameters", "n_total"),
            *("active_params", "active_parameters", "activated_params", "params_active", "n_active"),
            "N",
        ),
        ("n",),
    ),
    "tokens": (
        (
            *("tokens", "train_tokens", "n_tokens", "num_tokens", "training_tokens", "tokens_trained"),
            *("tokens_seen", "total_tokens", "token_count", "train_token_count"),
            *("throughput_total_tokens", "train_total_tokens", "train_tokens_seen", "consumed_tokens"),
            *("num_input_tokens_seen", "train_num_input_tokens_seen"),
        ),
        ("dataset_size", "data_size", "samples", "train_samples", "n_samples", "samples_seen", "images", "D"),
        ("d",),
    ),
    "flops": (
        (
            *("flops", "flop", "train_flops", "training_flops", "training_flop", "total_flops", "total_flop"),
            *("num_flops", "n_flops", "flops_total", "total_train_flops", "total_flos", "train_total_flos"),
            *("throughput_total_flops", "throughput_total_training_flops"),
        ),
        ("compute", "training_compute", "C"),
        ("c",),
    ),
    "budget": (("budget", "compute_budget", "flops_budget", "flop_budget", "nominal_flops", "isoflop_budget"),),
    "unique_tokens": (("unique_tokens", "unique", "u_d"),),
    "loss_se": (("loss_se", "loss_stderr", "loss_std_err", "loss_standard_error", "loss_sem"),),
    "id": (
        *((name,) for name in ("id", "run_id", "runid", "run_uuid", "wandb_run_id", "run")),
        *((name.replace(" ", "_"),) for name in NAME_COLUMNS),
    ),
    "seed": (("seed", "random_seed", "rng_seed"),),
    "trajectory": (("trajectory", "trunk"),),
    "status": (("status",), ("state", "run_status", "run_state"), tuple(sorted(FINISHED))),
}
"""Names of each role in ranks, best first. Two columns of the same rank with different values are ambiguous.

Capital N, D and C rank with longer names; lower case is read only if no other name matches.
"""
ACTIVE = frozenset(("active_params", "active_parameters", "activated_params", "params_active", "n_active"))
"""Names of active parameters."""
EXPERTS = frozenset(("experts", "moe", "nume", "topk"))
"""Words in column names that indicate a mixture of experts."""
ROLES = (*NAMES, "loss")
"""All roles of columns."""
LETTERS = {"params": "n", "tokens": "d", "flops": "c", "loss": "l"}
"""Single-letter names, which are ambiguous (d may be a width)."""

HELD_OUT = frozenset(("val", "valid", "validation", "eval", "evaluation", "test", "heldout", "held", "dev"))
TRAINING = frozenset(("train", "training", "smooth", "smoothed", "ema", "running", "avg", "moving"))
LOSS = frozenset(("loss", "nll", "xent", "ce"))
NO_LOSS = frozenset(
    (
        *("se", "std", "stderr", "sem", "err", "error", "var", "sd", "ci", "low", "high", "lower", "upper", "aux"),
        *("scale", "weight", "coef", "fn", "function", "type", "name", "step", "delta", "diff", "spike", "spikes"),
        *("pred", "predicted", "fit", "z", "router", "balance", "balancing", "reduction", "init"),
        "initial",
    )
)
PERPLEXITY = frozenset(("ppl", "perplexity"))

_ROOTS = re.compile(r"^(?:config|summary|summary_metrics|_?hparams)[./]", re.IGNORECASE)
"""Prefixes of W&B and other trackers for inputs and results of a run."""
_BRACKET = re.compile(r"[(\[]\s*(?:in\s)?([^()\[\]]+)[)\]]\s*$")
_OTHER_QUANTITY = re.compile(r"^per\b|^/|log|hour|second|minute|usd|\$|%|ratio|step", re.IGNORECASE)
_PETAFLOP_DAYS = re.compile(r"(?:^|[_ (\[])(?:pf|(?:p|peta)flops?)(?:s|/s)?[-_ ]?days?[)\]]?$", re.IGNORECASE)
_PREFIXED_FLOPS = re.compile(r"(?<![a-z])([kmgtpezy])(flops?)$", re.IGNORECASE)


def parse_header_scale(column: str) -> float | None:
    """The factor in a column name: ``params (M)``, ``tokens_B``, ``D [billions]``, ``flops (1e18)``,
    ``total_gflops``, ``pf_days``."""
    if _PETAFLOP_DAYS.search(column):
        return parse_scale("pf-days")
    match = _BRACKET.search(column) or re.search(r"(?<=[a-z])[_ ](?:in[_ ])?([MBT]|[a-zA-Z]+ions)$", column)
    if match is None and (match := re.search(r"(?<=[a-z])_([mbt])$", column)) is not None:
        base = column[: match.start()].lower()
        unit_names = {*NAMES["params"][0], *NAMES["params"][1], *NAMES["tokens"][0], *NAMES["budget"][0]}
        match = match if base in unit_names else None
    match = match or _PREFIXED_FLOPS.search(column)
    if match is None:
        return None
    word = match[0] if match.re is _PREFIXED_FLOPS else match[1].strip()
    power = re.fullmatch(r"(?:x\s*)?(1e\d+|10\s*\^\s*\d+)", word.lower())
    return parse_scale(power[1] if power else word) if power or not word.isdigit() else None


@functools.cache
def normalise_name(column: str) -> str:
    """A name without its unit, in lower case, with ``_`` between words; N, D and C keep their case."""
    name = _ROOTS.sub("", column.strip().lstrip("#").strip())
    if (bracket := _BRACKET.search(name)) is not None:
        if _OTHER_QUANTITY.search(bracket[1].strip()) and parse_header_scale(name) is None:
            return re.sub(r"[\s\-./()\[\]]+", "_", name.lower()).strip("_")
        name = name[: bracket.start()].strip()
    if parse_header_scale(name) is not None:
        prefix = _PREFIXED_FLOPS.search(name)
        if prefix is None:
            name = re.sub(r"[_ ](?:in[_ ])?[A-Za-z]+$", "", name)
        elif prefix.start():
            name = name[: prefix.start()] + prefix[2]
    if name in ("N", "D", "C"):
        return name
    return re.sub(r"[\s\-./]+", "_", name.strip().lower()).strip("_")


@functools.lru_cache(maxsize=10_000)
def split_words(column: str) -> frozenset[str]:
    """The words of a name in lower case."""
    separated = re.sub(r"([a-z])([A-Z])", r"\1 \2", column)
    return frozenset(re.split(r"[^a-z]+", separated.lower()))
