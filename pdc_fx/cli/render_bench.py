"""What ``bench`` shows: one table per engine, of at most 80 columns."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table

from pdc_fx.cli.render import out
from pdc_fx.export.benchmark import BenchmarkReport
from pdc_fx.export.timing.benchmark_torch import TorchReport
from pdc_fx.export.timing.turns import BatchTiming, Timing
from pdc_fx.words import quantity

STEADY = 1.5
"""Ratio of the 90th to the 10th percentile above which a time says little."""


def print_benchmark(name: str, report: BenchmarkReport, engines: Sequence[TorchReport]) -> None:
    """Sizes, a table of times for ONNX Runtime, one for each way to run PyTorch, and where the time goes."""
    macs = f"MACs {_pair(report.dense_macs, report.compact_macs)}, " if report.dense_macs else ""
    out.print(
        f"[bold]{escape(name)}[/]: {macs}ONNX file {quantity(report.dense_bytes)}B -> {quantity(report.compact_bytes)}B"
    )
    out.print(_table(f"{report.runtime}, {report.provider}, {_threads(report.threads)}", report.timings))
    for timing in report.timings:
        spread = max(side.p90_ms / side.p10_ms for side in (timing.dense, timing.compact))
        if spread > STEADY:
            out.print(f"batch {timing.batch}: 10% and 90% are a factor of {spread:.1f} apart: was the machine busy?")
        for number, reason in enumerate(timing.reasons):
            label = f"batch {timing.batch}: "
            out.print((" " * len(label) if number else label) + reason, markup=False)
    if report.provider != "cpu":
        for provider, operators in (report.placement or {}).items():
            counts = ", ".join(f"{operator} x{number}" for operator, number in operators.items())
            out.print(f"{provider}: {counts}", markup=False)
    for engine in engines:
        title = f"{engine.runtime} {engine.engine}, {engine.device}, {engine.dtype}, {_threads(engine.threads)}"
        if engine.problem is None:
            out.print(_table(title, engine.timings))
        else:
            out.print(f"{title}: not run: {engine.problem}", markup=False)
    out.print("times in ms per call; efficiency: speed-up over the ratio of the MACs", markup=False)


def _table(title: str, timings: Sequence[BatchTiming]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    memory = any(timing.compact_memory is not None for timing in timings)
    columns = ("batch", "", "median", "10%", "90%", "per s", *(["memory"] if memory else []), "speed-up", "efficiency")
    for column in columns:
        table.add_column(column, justify="left" if column == "" else "right")
    for timing in timings:
        efficiency = "-" if timing.efficiency is None else f"{timing.efficiency:.2f}"
        table.add_row(str(timing.batch), "dense", *_cells(timing.dense, timing.dense_memory, memory))
        compact = _cells(timing.compact, timing.compact_memory, memory)
        table.add_row("", "compact", *compact, f"{timing.speedup:.2f}", efficiency)
    return table


def _cells(timing: Timing, memory: int | None, shown: bool) -> list[str]:
    times = [_milliseconds(ms) for ms in (timing.median_ms, timing.p10_ms, timing.p90_ms)]
    taken = ["-" if memory is None else f"{quantity(memory)}B"] if shown else []
    return [*times, f"{timing.throughput:.4g}" if timing.throughput < 1000 else f"{timing.throughput:.0f}", *taken]


def _milliseconds(value: float) -> str:
    """Four significant digits.

    >>> _milliseconds(0.03217), _milliseconds(35.128), _milliseconds(1234.5)
    ('0.03217', '35.13', '1234')
    """
    return f"{value:.4g}" if value < 1000 else f"{value:.0f}"


def _pair(before: int | None, after: int | None) -> str:
    return f"{quantity(before or 0)} -> {quantity(after or 0)}"


def _threads(number: int) -> str:
    return f"{number} thread{'s' if number > 1 else ''}"
