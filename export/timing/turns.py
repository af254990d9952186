"""Times of two calls, taken by turns: A B, B A, A B, ..., so that a machine that slows down does so for both."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pdc_fx.errors import InputError


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call, and samples a second at the median."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    throughput: float


@dataclass(frozen=True)
class BatchTiming:
    """Dense and compact at one batch size.

    Attributes:
        speedup: ratio of the medians, above 1 if compact is faster.
        efficiency: ``speedup`` over the ratio of the multiply-accumulates, 1 where time shrinks as they do; None where
            they are not known.
        dense_memory, compact_memory: peak memory in bytes beyond what the process took before it opened the file; None
            where it was not measured.
        reasons: where the efficiency is low, what takes the time.
    """

    batch: int
    dense: Timing
    compact: Timing
    speedup: float
    efficiency: float | None = None
    dense_memory: int | None = None
    compact_memory: int | None = None
    reasons: tuple[str, ...] = ()


def time_batch(
    dense: Callable[[], object],
    compact: Callable[[], object],
    batch: int,
    *,
    runs: int,
    warmup: int,
    mac_ratio: float | None = None,
) -> BatchTiming:
    """Time two calls against each other; nothing is subtracted or discarded after the warm-up.

    Args:
        dense, compact: each runs its model once and returns when the result is there.
        batch: samples of one call.
        runs, warmup: calls of each that are timed, and calls before those.
        mac_ratio: multiply-accumulates of dense over those of compact.

    >>> timed = time_batch(lambda: sum(range(30_000)), lambda: sum(range(10_000)), 4, runs=9, warmup=1, mac_ratio=3)
    >>> timed.speedup > 1, 0 < timed.efficiency < 3, timed.dense.p10_ms <= timed.dense.median_ms
    (True, True, True)
    """
    for _ in range(warmup):
        dense()
        compact()
    seconds: tuple[list[float], list[float]] = ([], [])
    sides = list(zip((dense, compact), seconds, strict=True))
    for run in range(runs):
        for call, times in sides if run % 2 == 0 else reversed(sides):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
    first, second = (_timing(times, batch) for times in seconds)
    speedup = first.median_ms / second.median_ms
    return BatchTiming(batch, first, second, speedup, speedup / mac_ratio if mac_ratio else None)


def _timing(seconds: Sequence[float], batch: int) -> Timing:
    p10, median, p90 = (float(value) for value in np.percentile(np.asarray(seconds) * 1e3, (10, 50, 90)))
    return Timing(median, p10, p90, batch / median * 1e3)


def require_counts(batch_sizes: Sequence[int], runs: int, warmup: int) -> None:
    """Raise :class:`InputError` unless there are batch sizes, all numbers are positive and the warm-up is not negative."""
    if not batch_sizes or min(batch_sizes) < 1 or runs < 1 or warmup < 0:
        raise InputError(
            "batch sizes and runs must be positive, warm-up calls not negative",
            where=f"{tuple(batch_sizes)}, {runs}, {warmup}",
        )


def processor_name() -> str:
    """What this machine calls its processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine() or "unknown"
