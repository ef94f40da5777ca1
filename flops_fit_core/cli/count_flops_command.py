"""``count-flops``: compare all FLOPs counters on an experiment's models, and the resulting exponents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from flops_fit_core.cli import arguments as args
from flops_fit_core.cli.printing import print_json, print_table, print_text
from flops_fit_core.errors import FitError

if TYPE_CHECKING:
    from flops_fit_core.flops.audit import Audit, LossExponents
    from flops_fit_core.records import LawFit, Observation
    from flops_fit_core.study import Study


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(count_flops)


def count_flops(
    source: args.SourceArgument,
    out: args.OutOption = None,
    overrides: args.SetOption = None,
    plugin: args.PluginOption = None,
    disabled: args.DisableOption = None,
    every_size: Annotated[
        bool, typer.Option("--all", help="Show every size of the plan instead of three.")
    ] = False,
    json: args.JsonOption = False,
) -> None:
    """Compare the FLOPs counters on an experiment's models, and show the exponent by each."""
    from flops_fit_core.cli import count_flops_tables as tables
    from flops_fit_core.flops.audit import scalings

    registry = args.registry_to_train(source, plugin, disabled)
    study = args.plan_source(source, registry, out, overrides, {})
    audited = _audited(study)
    count = len(audited.sizes)
    shown = list(range(count)) if every_size else sorted({0, count // 2, count - 1})
    law, fits = _law(study), _refits(study, audited)
    counts = tables.counts_table(audited, shown, study.plan.unit)
    terms = tables.terms_table(audited, shown)
    exponents = tables.exponents_table(audited, scalings(audited, law), law, fits)
    if json:
        print_json(
            {
                "name": study.plan.name,
                "family": audited.family,
                "unit": study.plan.unit,
                "counts": counts.json(),
                "refused": dict(audited.refused),
                "law": {"alpha": law.alpha, "beta": law.beta, "source": law.source},
                "exponents": exponents.json(),
            }
        )
        return
    print_table(counts)
    for table in (terms, exponents):
        if table.rows:
            print_table(table)
    for name, reason in audited.refused.items():
        print_text(f"- {name} cannot count it: {reason}")


def _audited(study: Study) -> Audit:
    """The counters on every size of the plan."""
    from flops_fit_core.config import choose
    from flops_fit_core.flops.audit import audit, every_counter
    from flops_fit_core.planning import open_dataset

    experiment = study.experiment
    assert experiment is not None
    task = open_dataset(experiment, experiment.sweep.seeds[0]).task
    planned = choose("counter", study.plan.runs[0].counter, study.registry)
    counters = every_counter(study.registry)
    return audit(experiment.model, list(_sizes(study).values()), task, planned, counters)


def _sizes(study: Study) -> dict[str, Any]:
    """The model's options at each size of the plan, by the model's record."""
    from flops_fit_core.config import choose

    choices = {run.model.model_dump_json(): run.model for run in study.plan.runs}
    return {key: choose("model", choice, study.registry).options for key, choice in choices.items()}


def _law(study: Study) -> LossExponents:
    """Alpha and beta of the study's fit if it has them, otherwise Chinchilla's."""
    from flops_fit_core.flops.audit import CHINCHILLA, LossExponents

    try:
        law = study.fit.law if study.results else None
    except FitError:
        law = None
    if law is None or not {"alpha", "beta"} <= set(law.parameters):
        return CHINCHILLA
    return LossExponents(law.parameters["alpha"], law.parameters["beta"], "this study's fit")


def _refits(study: Study, audited: Audit) -> dict[str, LawFit]:
    """The law through the study's runs by each counter's label, without counters that give no fit."""
    from flops_fit_core.fitting import recounted

    observations = study.observations if study.results else []
    options = {key: chosen.model_dump_json() for key, chosen in _sizes(study).items()}
    by_options = {size.options.model_dump_json(): index for index, size in enumerate(audited.sizes)}
    indices = {run.id: by_options[options[run.model.model_dump_json()]] for run in study.plan.runs}
    fits = {}
    for convention in audited.conventions if observations else ():

        def count(run: Observation, counts: Any = convention.counts) -> tuple[float, float]:
            at_size = counts[indices[run.id]]
            return at_size.params, at_size.flops_per_token

        try:
            fits[convention.label] = study.fit_with(study.fitter, recounted(observations, count))
        except FitError:
            continue
    return fits
