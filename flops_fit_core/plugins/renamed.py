"""Options and plugins that have new names or are gone. Each old name is an error that names the new one."""

from __future__ import annotations

from collections.abc import Collection

OPTIONS: dict[str, tuple[str, ...]] = {
    "clip": ("grad_clip",),
    "divergence": ("divergence_factor",),
    "evaluations": ("num_evals",),
    "flops": ("counter",),
    "grace": ("grace_period",),
    "grace_seconds": ("grace_period",),
    "heldout": ("eval_source",),
    "heldout_path": ("eval_path",),
    "heldout_sets": ("eval_sets",),
    "heldout_share": ("eval_share",),
    "heldout_source": ("eval_source",),
    "heldout_tokens": ("eval_tokens",),
    "lookup_params": ("lookup_table_params",),
    "pack": ("vmap_runs",),
    "patience": ("flush_timeout",),
    "previous_fit": ("init_from_fit",),
    "repeat": ("allow_repeat",),
    "rung": ("config_number",),
    "share_trunks": ("share_stable_phase",),
    "wait": ("lock_timeout", "reconnect_timeout"),
}
"""Old option -> its new names; a table of options has at most one of them."""

REMOVED_OPTIONS = {"planner": "removed: there is one revision of the defaults"}

PLUGINS: dict[tuple[str, str], str] = {
    ("recipe", "default"): "width-scaled",
    ("recipe", "recipes/default"): "width-scaled",
    **{("counter", f"flops/{name}"): f"counters/{name}" for name in ("chinchilla", "hoffmann", "model", "traced")},
}
"""(kind, old name) -> new name."""

REMOVED_PLUGINS: dict[tuple[str, str], str] = {
    ("store", name): "choose 'sqlite' or 'json'; 'flops-fit export STUDY --parquet FILE' writes a parquet file"
    for name in ("parquet", "stores/parquet")
} | {
    ("fitter", f"{prefix}{law}"): f"fit with fitter law, law = {law!r}, or --law {law}"
    for law in ("kaplan", "muennighoff")
    for prefix in ("", "fitters/")
}


def explain_option(name: str, valid: Collection[str]) -> str | None:
    """The advice for an old option name, or None for a name that never was an option of a table like this."""
    if name in REMOVED_OPTIONS and "sweep" in valid:  # of the experiment itself
        return REMOVED_OPTIONS[name]
    new = [option for option in OPTIONS.get(name, ()) if option in valid]
    return f"renamed: write {new[0]!r}" if new else None


def explain_plugin(kind: str, name: str) -> str | None:
    """The advice for an old plugin name, or None for a name that never was one."""
    if (kind, name) in PLUGINS:
        return f"{kind} {name!r} was renamed: write {PLUGINS[kind, name]!r}"
    if (kind, name) in REMOVED_PLUGINS:
        return f"{kind} {name!r} was removed: {REMOVED_PLUGINS[kind, name]}"
    return None
