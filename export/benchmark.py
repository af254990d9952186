"""Is the compact model faster, and as much as its multiply-accumulates promise? Dense against compact ONNX file.

The two run by turns, idle sessions do not spin, and inputs and outputs stay on the device. Reported are median and 10th and 90th
percentile of single calls. *Efficiency* is the speed-up over the ratio of the multiply-accumulates: 1 where time shrinks as they do.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from pdc_fx.directory import DENSE_MACS_KEY, MACS_KEY
from pdc_fx.errors import InputError
from pdc_fx.export.session import bind, choose_provider, default_threads, make_session, random_feed
from pdc_fx.export.store import bytes_of
from pdc_fx.export.timing.memory import peak_memory
from pdc_fx.export.timing.profiling import explain, placement, profile, uneven_share
from pdc_fx.export.timing.turns import BatchTiming, processor_name, require_counts, time_batch
from pdc_fx.passes.budget import BLOCKS

ENOUGH = 0.95
"""Efficiency below which a report says where the time goes."""


@dataclass(frozen=True)
class BenchmarkReport:
    """Sizes in bytes, times in milliseconds; ``size_ratio`` is dense over compact, above 1 if compact is smaller.

    Attributes:
        dense_macs, compact_macs: multiply-accumulates of one sample; None where they are not known.
        placement: provider -> operator -> number of the compact file's nodes that run there.
        device: name of the processor; on a GPU that of its host.
    """

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
    provider: str = "cpu"
    provider_reason: str = ""
    dense_macs: int | None = None
    compact_macs: int | None = None
    placement: dict[str, dict[str, int]] | None = None
    device: str = ""

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
    macs: tuple[int, int] | None = None,
    details: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> BenchmarkReport:
    """Time two ONNX files with the same inputs against each other, on random input.

    Args:
        dense, compact: the files.
        batch_sizes: sizes of the first dimension where the file leaves it open.
        runs: timed calls of each file and batch size.
        threads: threads of ONNX Runtime; None for all processors of this process.
        warmup: calls before those.
        provider: a key of :data:`~pdc_fx.export.session.PROVIDERS`, or ``auto``.
        macs: multiply-accumulates of one sample, dense and compact; None to read them from the files' metadata.
        details: measure peak memory, too, where nodes run, and where the time goes if the efficiency is below :data:`ENOUGH`.
        progress: is told what is measured next.

    Raises:
        ArtifactError: a file is missing, damaged or not ONNX.
        InputError: the two take different inputs, a size other than the batch is open, an option is out of range, or the
            provider does not work here.

    >>> import tempfile, torch
    >>> from pdc_fx.export.onnx import export_onnx
    >>> model = torch.nn.Conv2d(3, 4, 3)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     path = export_onnx(model, torch.zeros(1, 3, 8, 8), Path(directory) / "model.onnx").path
    ...     report = benchmark(path, path, runs=3, threads=1, macs=(3888, 3888))
    >>> timing = report.timings[0]
    >>> report.size_ratio, timing.dense.median_ms > 0, timing.efficiency == timing.speedup
    (1.0, True, True)
    """
    import onnxruntime

    require_counts(batch_sizes, runs, warmup)
    chosen = choose_provider(provider)
    threads = default_threads() if threads is None else threads
    paths = Path(dense), Path(compact)
    sessions = [make_session(path, provider=chosen.name, threads=threads, tf32=True) for path in paths]
    macs = macs if macs is not None else _macs_of(*sessions)
    timings, places = [], None
    for batch in batch_sizes:
        progress(f"ONNX Runtime, batch {batch}")
        first, second = (bind(s, f) for s, f in zip(sessions, _same_feeds(sessions, batch), strict=True))
        timing = time_batch(
            first, second, batch, runs=runs, warmup=warmup, mac_ratio=macs[0] / macs[1] if macs else None
        )
        if details:
            timing, places = _detailed(timing, paths, chosen.name, threads, macs, places)
        timings.append(timing)
    sizes = [bytes_of(path) for path in paths]
    return BenchmarkReport(
        dense=paths[0],
        compact=paths[1],
        dense_bytes=sizes[0],
        compact_bytes=sizes[1],
        size_ratio=sizes[0] / sizes[1],
        timings=tuple(timings),
        runs=runs,
        warmup=warmup,
        threads=threads,
        providers=tuple(sessions[0].get_providers()),
        runtime=f"onnxruntime {onnxruntime.__version__}",
        provider=chosen.name,
        provider_reason=chosen.why,
        dense_macs=macs[0] if macs is not None else None,
        compact_macs=macs[1] if macs is not None else None,
        placement=places,
        device=processor_name(),
    )


def _detailed(
    timing: BatchTiming,
    paths: tuple[Path, Path],
    provider: str,
    threads: int,
    macs: tuple[int, int] | None,
    places: dict[str, dict[str, int]] | None,
) -> tuple[BatchTiming, dict[str, dict[str, int]]]:
    """The timing with memory and reasons, and where the nodes of the compact file run."""
    memory: list[int | None] = [None, None]
    if provider == "cpu":  # the memory of a GPU is not that of the process
        memory = [peak_memory(path, timing.batch, threads=threads) for path in paths]
    block = BLOCKS[provider]
    low = timing.efficiency is not None and timing.efficiency < ENOUGH
    reasons: tuple[str, ...] = ()
    if low or places is None:
        dense, compact = profile(paths, timing.batch, provider=provider, threads=threads)
        places = placement(compact)
        if low and macs is not None:
            reasons = (
                explain(dense, compact, (macs[0] * timing.batch, macs[1] * timing.batch))
                if provider == "cpu"
                else (
                    f"{uneven_share(compact, 'macs', block):.0%} of the MACs at widths no multiple of {block} "
                    f"(dense: {uneven_share(dense, 'macs', block):.0%})",
                )
            )
    detailed = dataclasses.replace(timing, dense_memory=memory[0], compact_memory=memory[1], reasons=reasons)
    return detailed, places


def _macs_of(dense: Any, compact: Any) -> tuple[int, int] | None:
    """Multiply-accumulates from the metadata of two sessions' files; None where they are not there."""
    first, second = (session.get_modelmeta().custom_metadata_map for session in (dense, compact))
    found = first.get(MACS_KEY) or second.get(DENSE_MACS_KEY), second.get(MACS_KEY)
    try:
        macs = int(found[0] or 0), int(found[1] or 0)
    except ValueError:
        return None
    return macs if min(macs) > 0 else None


def _same_feeds(sessions: Sequence[Any], batch: int) -> list[dict[str, NDArray[Any]]]:
    feeds = [random_feed(session, batch) for session in sessions]
    shapes = [{name: value.shape for name, value in feed.items()} for feed in feeds]
    if shapes[0] != shapes[1]:
        raise InputError("the two files take different inputs", where=f"{shapes[0]} against {shapes[1]}")
    return feeds
