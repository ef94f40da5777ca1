"""``count-flops``: every FLOPs counter on an experiment's models, and the exponents that follow."""

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
    without: args.WithoutOption = None,
    every_size: Annotated[
        bool, typer.Option("--all", help="Show every size of the plan, not three of them.")
    ] = False,
    json: args.JsonOption = False,
) -> None:
    """Compare the FLOPs counters for an experiment's models, and show how the exponent moves with them."""
    from flops_fit_core.cli import audit_tables as tables
    from flops_fit_core.flops.audit import scalings

    registry = args.registry_for(source, plugin, without)
    study = args.planned(source, registry, out, overrides, {})
    audited = _audited(study)
    places = range(len(audited.sizes))
    shown = list(places) if every_size else sorted({0, len(places) // 2, len(places) - 1})
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
    own = choose("counter", study.plan.runs[0].counter, study.registry)
    others = every_counter(study.registry)
    return audit(experiment.model, list(_sizes(study).values()), task, own, others)


def _sizes(study: Study) -> dict[str, Any]:
    """The model's options at each size of the plan, by the model's record."""
    from flops_fit_core.config import choose

    choices = {run.model.model_dump_json(): run.model for run in study.plan.runs}
    return {key: choose("model", choice, study.registry).options for key, choice in choices.items()}


def _law(study: Study) -> LossExponents:
    """The study's own where its fit has one, otherwise Chinchilla's."""
    from flops_fit_core.flops.audit import CHINCHILLA, LossExponents

    try:
        law = study.fit.law if study.results else None
    except FitError:
        law = None
    if law is None or not {"alpha", "beta"} <= set(law.parameters):
        return CHINCHILLA
    return LossExponents(law.parameters["alpha"], law.parameters["beta"], "this study's fit")


def _refits(study: Study, audited: Audit) -> dict[str, LawFit]:
    """The law through the study's runs under each counter, by its label; without those that cannot be fitted."""
    from flops_fit_core.fitting import recounted

    observations = study.observations if study.results else []
    options = {key: chosen.model_dump_json() for key, chosen in _sizes(study).items()}
    at = {size.options.model_dump_json(): place for place, size in enumerate(audited.sizes)}
    places = {run.id: at[options[run.model.model_dump_json()]] for run in study.plan.runs}
    fits = {}
    for convention in audited.conventions if observations else ():

        def count(one: Observation, counts: Any = convention.counts) -> tuple[float, float]:
            found = counts[places[one.id]]
            return found.params, found.flops_per_token

        try:
            fits[convention.label] = study.fit_with(study.fitter, recounted(observations, count))
        except FitError:
            continue
    return fits
