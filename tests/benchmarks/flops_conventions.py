"""Compare FLOPs conventions: published ratios, widths 64 to 4096, terms, exponents. Time a trace.

    python tests/benchmarks/flops_conventions.py

Expected: the ratios of Hoffmann et al. 2022, table A4, to two decimals. The counter ``traced`` within 0.1% of the
analytic count of matrix products, and also ``hoffmann`` without its embedding and softmax terms. The lookup
counted as a product adds 7% at width 64 with 256 symbols (context 64) and 63% with 32,768 symbols (context 2048).
"""

from __future__ import annotations

import time

from torch import nn

from flops_fit_core import ParameterCounts
from flops_fit_core.config import choose_from_table
from flops_fit_core.data import LanguageTask
from flops_fit_core.flops.audit import CHINCHILLA, audit, every_counter, scalings
from flops_fit_core.flops.model_stats import count_flops, measure_model
from flops_fit_core.plugins import CounterInput, TransformerShape
from flops_fit_core.plugins.registry import installed

TABLE_A4 = [  # name, layers, d_model, ffw_size, num_heads, k/q size, published ratio, N of table A9 (millions)
    ("73M", 10, 640, 2560, 10, 64, 1.03, 74),
    ("305M", 20, 1024, 4096, 16, 64, 1.10, 306),
    ("552M", 24, 1280, 5120, 10, 128, 1.08, 552),
    ("1.1B", 26, 1792, 7168, 14, 128, 1.04, 1143),
    ("1.6B", 28, 2048, 8192, 16, 128, 1.03, 1593),
    ("6.8B", 40, 3584, 14336, 28, 128, 0.99, 6796),
]


def counter(name, **options):
    return choose_from_table("counter", {"name": name, **options}, installed(), "counter")


def gpt(**options):
    return choose_from_table("model", {"name": "gpt", **options}, installed(), "model")


def table_a4():
    print("Appendix F over 6 N D, context 2048, 32,000 symbols; N with one embedding, biases, relative positions")
    print("model   N (M)  table A9   published  without vocabulary  head only  as written")
    for name, depth, d, hidden, heads, key, published, millions in TABLE_A4:
        n = depth * (4 * (d * d + d) + d * d + 2 * d + 2 * d * hidden + hidden + d + 4 * d) + 2 * d + 32_000 * d
        shape = TransformerShape(32_000, 2048, d, depth, heads, key, hidden, tied=True)
        counts = ParameterCounts(total=n, active=n)
        model = CounterInput(nn.Identity(), LanguageTask(32_000, 2048), counts, None, name, shape)
        without, head_only, complete = (
            count_flops(counter("hoffmann", vocabulary=part), model).flops_per_token / (6 * n)
            for part in ("none", "head", "both")
        )
        ratios = f"{without:12.4f} = {without:.2f} {head_only:12.3f} {complete:11.3f}"
        print(f"{name:6} {n / 1e6:7.1f} {millions:9} {published:10.2f} {ratios}")


def widths():
    print("\ngpt, depth 2, 256 symbols: FLOPs per token over 3 (L (24 d^2 + 4 s d) + 2 d V)")
    print("width  context  traced        model         hoffmann - embedding - softmax   seconds per trace")
    for width in (64, 256, 1024, 4096):
        for context in (64, 1024):
            chosen = gpt(width=width, depth=2)
            model = measure_model(chosen, chosen.options, LanguageTask(256, context))
            analytic = 3 * (2 * (24 * width**2 + 4 * context * width) + 2 * width * 256)
            started = time.process_time()
            traced = count_flops(counter("traced"), model).flops_per_token
            seconds = time.process_time() - started
            hoffmann = count_flops(counter("hoffmann"), model)
            less = hoffmann.flops_per_token - hoffmann.terms["embedding"] - hoffmann.terms["softmax"]
            by_model = model.own_flops_per_token
            print(
                f"{width:5} {context:8}  {traced / analytic:.8f}    {by_model / analytic:.8f}    "
                f"{less / analytic:.8f}                       {seconds:.3f}"
            )


def terms():
    for width, vocabulary, context in ((64, 256, 64), (64, 32_768, 2048), (4096, 32_768, 2048)):
        chosen = gpt(width=width, depth=4)
        model = measure_model(chosen, chosen.options, LanguageTask(vocabulary, context))
        hoffmann = count_flops(counter("hoffmann"), model)
        traced = count_flops(counter("traced"), model).flops_per_token
        print(f"\nterms of hoffmann: gpt, width {width}, depth 4, {vocabulary:,} symbols, context {context}")
        for name, flops in hoffmann.terms.items():
            share = flops / hoffmann.flops_per_token
            print(f"  {name:18} {share:6.1%} of hoffmann, {flops / traced:+7.1%} of traced")


def exponents():
    print("\nThe exponent a by convention: gpt, depth 4, context 1024, 32,768 symbols, widths 64 to 4096")
    print(f"alpha {CHINCHILLA.alpha}, beta {CHINCHILLA.beta} ({CHINCHILLA.source})")
    family = gpt(depth=4)
    sizes = [family.with_options(width=64 * 2**k).options for k in range(7)]
    report = audit(family, sizes, LanguageTask(32_768, 1024), counter("chinchilla"), every_counter(installed()))
    print(f"{'counter':34} phi     a       b       a with its N")
    for row in scalings(report, CHINCHILLA):
        print(f"{row.convention.label:34} {row.phi:.3f}   {row.a:.3f}   {row.b:.3f}   {row.own_a:.3f}")


def trace_times():
    print("\nCPU seconds of one trace (minimum of 5), gpt, width 256, context 1024")
    for depth in (1, 3, 12, 24, 48):
        chosen = gpt(width=256, depth=depth)
        model = measure_model(chosen, chosen.options, LanguageTask(256, 1024))
        times = []
        for _ in range(5):
            started = time.process_time()
            count_flops(counter("traced"), model)
            times.append(time.process_time() - started)
        print(f"depth {depth:2}: {min(times):.3f}")


if __name__ == "__main__":
    table_a4()
    widths()
    terms()
    exponents()
    trace_times()
