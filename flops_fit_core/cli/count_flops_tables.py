"""The tables of ``count-flops``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from flops_fit_core import numbers
from flops_fit_core.flops.audit import Audit, Convention, LossExponents, Scaling
from flops_fit_core.records import LawFit
from flops_fit_core.report import DataTable
from flops_fit_core.report.datatable import Row, column


def counts_table(audited: Audit, shown: Sequence[int], unit: str) -> DataTable:
    """Each counter's N and FLOPs per token at some of the sizes."""
    token = unit.removesuffix("s")
    return DataTable(
        title=f"Training FLOPs per {token} of {audited.family}, by every counter that can count it",
        caption=(
            "N by the counter's convention. Over traced: relative to torch's count of a forward and backward "
            "pass. Over 6 N: relative to 6 N with N the matmul parameters. The first counter is the experiment's."
        ),
        fields=("size", "counter", "params", "params_name", "flops_per_token", "flops_name", *RATIOS, "terms"),
        rows=tuple(_count_rows(audited, shown)),
        columns=(
            column("size", "size"),
            column("counter", "counter", align_left=True),
            column("N", "params", numbers.count),
            column(f"FLOPs per {token}", "flops_per_token", numbers.scientific),
            column("over traced", "over_traced", _three_decimals),
            column("over 6 N", "over_six_n", _three_decimals),
        ),
    )


RATIOS = ("over_traced", "over_six_n")


def _count_rows(audited: Audit, shown: Sequence[int]) -> Iterator[Row]:
    for index in shown:
        for convention in audited.conventions:
            count = convention.counts[index]
            yield {
                "size": audited.sizes[index].size,
                "counter": convention.label,
                "params": count.params,
                "params_name": count.params_name,
                "flops_per_token": count.flops_per_token,
                "flops_name": count.flops_name,
                "over_traced": audited.over_traced(convention)[index],
                "over_six_n": audited.over_six_n(convention)[index],
                "terms": dict(count.terms),
            }


def terms_table(audited: Audit, shown: Sequence[int]) -> DataTable:
    """Each term's share of a count, for counters that report terms."""
    names = [f"share at {audited.sizes[index].size}" for index in shown]
    return DataTable(
        title="Terms of the counts",
        caption="Each term's share of the counter's FLOPs at each size. Terms of a trace are torch operations.",
        fields=("counter", "term", *names),
        rows=tuple(_term_rows(audited, shown, names)),
        columns=(
            column("counter", "counter", align_left=True),
            column("term", "term", align_left=True),
            *(column(name, name, _percent) for name in names),
        ),
    )


def _term_rows(audited: Audit, shown: Sequence[int], names: Sequence[str]) -> Iterator[Row]:
    first: dict[str, Convention] = {}  # a counter with other options has the same terms, or fewer
    for convention in audited.conventions:
        first.setdefault(convention.counter.name, convention)
    for convention in first.values():
        counts = [convention.counts[index] for index in shown]
        for term in dict.fromkeys(term for count in counts for term in count.terms):
            shares = (count.terms.get(term, 0.0) / count.flops_per_token for count in counts)
            yield {"counter": convention.label, "term": term, **dict(zip(names, shares, strict=True))}


def exponents_table(
    audited: Audit, scalings: Sequence[Scaling], law: LossExponents, fits: Mapping[str, LawFit]
) -> DataTable:
    """The exponent a of N_opt ~ C^a by each counter: from the law, and refitted if there are runs."""
    level = next((fit.level for fit in fits.values()), None)
    refits = f" Refitted: the study's own runs with this N and C, {level:.0%} intervals." if level else ""
    return DataTable(
        title="The exponent by counter",
        caption=(
            f"FLOPs per token ~ N^phi over the plan's sizes; N: {audited.conventions[0].counts[0].params_name}. "
            f"For the same loss, N_opt ~ C^a with a = beta / (alpha + phi beta); alpha = {law.alpha:.4g}, beta = "
            f"{law.beta:.4g} from {law.source}. In its own N: the exponent of the counter's own N."
            f"{refits}"
        ),
        fields=("counter", "phi", "a", "b", "own_a", "refitted_a", "refitted_b"),
        rows=tuple(_scaling_row(scaling, fits) for scaling in scalings),
        columns=(
            column("counter", "counter", align_left=True),
            column("phi", "phi", _three_decimals),
            column("a", "a", _three_decimals),
            column("b", "b", _three_decimals),
            column("a in its own N", "own_a", _three_decimals),
            *((column("refitted a", "refitted_a", _interval),) if fits else ()),
            *((column("refitted b", "refitted_b", _interval),) if fits else ()),
        ),
    )


def _scaling_row(scaling: Scaling, fits: Mapping[str, LawFit]) -> Row:
    fit = fits.get(scaling.convention.label)
    exponents = {name: fit.exponents[name].model_dump() if fit else None for name in ("a", "b")}
    return {
        "counter": scaling.convention.label,
        "phi": scaling.phi,
        "a": scaling.a,
        "b": scaling.b,
        "own_a": scaling.own_a,
        "refitted_a": exponents["a"],
        "refitted_b": exponents["b"],
    }


def _three_decimals(value: float | None) -> str:
    return numbers.NONE if value is None else f"{value:.3f}"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def _interval(interval: Mapping[str, float | None] | None) -> str:
    if interval is None:
        return numbers.NONE
    ends = "" if interval["low"] is None else f" ({interval['low']:.3f} to {interval['high']:.3f})"
    return f"{interval['value']:.3f}{ends}"
