"""Is the compact model faster? Dense against compact ONNX file, timed in alternation.

The two run by turns, A B, B A, A B, ..., so that a machine that slows down or speeds up does so for both; idle sessions
do not spin. Reported are median and 10th and 90th percentile of single calls, nothing subtracted or discarded after
the warm-up.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdc_fx.errors import InputError
from pdc_fx.export.session import default_threads, make_session, run_session

_SEED = 0


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call, and samples a second at the median."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    throughput: float


@dataclass(frozen=True)
class BatchTiming:
    """Dense and compact at one batch size; ``speedup`` is the ratio of the medians, above 1 if compact is faster."""

    batch: int
    dense: Timing
    compact: Timing
    speedup: float


@dataclass(frozen=True)
class BenchmarkReport:
    """Sizes in bytes, times in milliseconds; ``size_ratio`` is dense over compact, above 1 if compact is smaller."""

    dense: Path
    compact: Path
    dense_bytes: int
    compact_bytes: int
    size_ratio: float
    timings: tuple[BatchTiming, ...]
    runs: int
    warmup: int
    threads: int
    providers: tuple[str, ...]
    runtime: str

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values, for ``json.dumps``."""
        return dataclasses.asdict(self) | {"dense": str(self.dense), "compact": str(self.compact)}


def benchmark(
    dense: str | os.PathLike[str],
    compact: str | os.PathLike[str],
    *,
    batch_sizes: Sequence[int] = (1,),
    runs: int = 30,
    threads: int | None = None,
    warmup: int = 5,
    provider: str = "cpu",
) -> BenchmarkReport:
    """Time two ONNX files with the same inputs against each other, on random input.

    Args:
        dense, compact: the files.
        batch_sizes: sizes of the first dimension where the file leaves it open.
        runs: timed calls of each file and batch size.
        threads: threads of ONNX Runtime; None for all processors of this process.
        warmup: calls before those.
        provider: a key of :data:`~pdc_fx.export.session.PROVIDERS`.

    Raises:
        ArtifactError: a file is missing, damaged or not ONNX.
        InputError: the two take different inputs, a size other than the batch is open, or an option is out of range.

    >>> import tempfile, torch
    >>> from pdc_fx.export.onnx import export_onnx
    >>> model = torch.nn.Conv2d(3, 4, 3)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = export_onnx(model, torch.zeros(1, 3, 8, 8), Path(directory) / "model.onnx").path
    ...     report = benchmark(path, path, runs=3, threads=1)
    >>> report.size_ratio, report.timings[0].dense.median_ms > 0
    (1.0, True)
    """
    import onnxruntime

    if not batch_sizes or min(batch_sizes) < 1 or runs < 1 or warmup < 0:
        raise InputError(
            "batch sizes and runs must be positive, warm-up calls not negative",
            where=f"{batch_sizes}, {runs}, {warmup}",
        )
    threads = default_threads() if threads is None else threads
    paths = Path(dense), Path(compact)
    sessions = [make_session(path, provider=provider, threads=threads) for path in paths]
    timings = tuple(_time_batch(sessions[0], sessions[1], batch, runs, warmup) for batch in batch_sizes)
    sizes = [path.stat().st_size for path in paths]
    return BenchmarkReport(
        dense=paths[0],
        compact=paths[1],
        dense_bytes=sizes[0],
        compact_bytes=sizes[1],
        size_ratio=sizes[0] / sizes[1],
        timings=timings,
        runs=runs,
        warmup=warmup,
        threads=threads,
        providers=tuple(sessions[0].get_providers()),
        runtime=f"onnxruntime {onnxruntime.__version__}",
    )


def _time_batch(dense: Any, compact: Any, batch: int, runs: int, warmup: int) -> BatchTiming:
    feed = _random_feed(dense, batch)
    other = {name: (value.shape, value.dtype) for name, value in _random_feed(compact, batch).items()}
    if {name: (value.shape, value.dtype) for name, value in feed.items()} != other:
        shapes = [
            {name: value.shape for name, value in feed.items()},
            {name: shape for name, (shape, _) in other.items()},
        ]
        raise InputError("the two files take different inputs", where=f"{shapes[0]} against {shapes[1]}")
    for _ in range(warmup):
        run_session(dense, feed)
        run_session(compact, feed)
    seconds: tuple[list[float], list[float]] = ([], [])
    sides = list(zip((dense, compact), seconds, strict=True))
    for run in range(runs):
        for session, times in sides if run % 2 == 0 else reversed(sides):
            start = time.perf_counter()
            run_session(session, feed)
            times.append(time.perf_counter() - start)
    timings = [_timing(times, batch) for times in seconds]
    return BatchTiming(batch, timings[0], timings[1], timings[0].median_ms / timings[1].median_ms)


def _timing(seconds: Sequence[float], batch: int) -> Timing:
    p10, median, p90 = (float(value) for value in np.percentile(np.asarray(seconds) * 1e3, (10, 50, 90)))
    return Timing(median, p10, p90, batch / median * 1e3)


def _random_feed(session: Any, batch: int) -> dict[str, NDArray[Any]]:
    """Standard normal float32 values for all inputs of a session; a fixed first dimension must be ``batch``."""
    generator = np.random.default_rng(_SEED)
    feed: dict[str, NDArray[Any]] = {}
    for value in session.get_inputs():
        if value.type != "tensor(float)":
            raise InputError("only float32 inputs can be timed", where=f"{value.name}: {value.type}")
        shape = [batch if axis == 0 and not isinstance(size, int) else size for axis, size in enumerate(value.shape)]
        if not all(isinstance(size, int) for size in shape):
            raise InputError("a size other than the batch is open", where=f"{value.name}: {value.shape}")
        feed[value.name] = generator.standard_normal(shape, dtype=np.float32)
    if feed and all(value.shape[:1] != (batch,) for value in feed.values()):
        raise InputError(f"the file does not take a batch of {batch}", where=f"{session.get_inputs()[0].shape}")
    return feed
