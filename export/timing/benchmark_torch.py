"""Dense against compact in PyTorch: eager, and compiled by ``torch.compile``."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from pdc_fx.export.inputs import batch_size, call_arguments, resized, tensors_by_path
from pdc_fx.export.session import default_threads
from pdc_fx.export.timing.turns import BatchTiming, require_counts, time_batch
from pdc_fx.passes.compare import random_inputs
from pdc_fx.trace import Inputs


@dataclass(frozen=True)
class TorchReport:
    """One way to run a model in PyTorch.

    Attributes:
        engine: ``eager`` or ``compile``.
        timings: one per batch size; empty if it was not run.
        problem: why it was not run, or None.
        device: where, as ``torch`` names it, with the name of a GPU.
    """

    engine: str
    timings: tuple[BatchTiming, ...]
    runs: int
    warmup: int
    threads: int
    dtype: str
    channels_last: bool
    device: str
    runtime: str
    problem: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A dict of plain values, for ``json.dumps``."""
        return dataclasses.asdict(self)


def benchmark_torch(
    dense: nn.Module,
    compact: nn.Module,
    example_inputs: Inputs,
    *,
    batch_sizes: Sequence[int] = (1,),
    runs: int = 30,
    threads: int | None = None,
    warmup: int = 5,
    macs: tuple[int, int] | None = None,
    compiler: Callable[[nn.Module], Callable[..., Any]] | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
    progress: Callable[[str], None] = lambda _: None,
) -> TorchReport:
    """Time two modules with the same inputs against each other, by turns, on random input.

    Args:
        dense, compact: the modules; copies of them run, in eval mode and without gradients.
        example_inputs: a tensor (``N x ...``) or a tuple of call arguments.
        batch_sizes, runs, threads, warmup, macs, progress: as of :func:`~pdc_fx.export.benchmark.benchmark`.
        compiler: makes a fast function of a module, as ``torch.compile`` does; None for eager. A failure is no error, but reported.
        device, dtype, channels_last: where and as what modules and inputs are held; images channels last where asked.

    Raises:
        InputError: an option is out of range.

    >>> small, large = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 8, 3)
    >>> report = benchmark_torch(large, small, torch.zeros(1, 3, 8, 8), batch_sizes=(1, 2), runs=3, threads=1)
    >>> [timing.batch for timing in report.timings], report.engine
    ([1, 2], 'eager')
    """
    require_counts(batch_sizes, runs, warmup)
    threads = default_threads() if threads is None else threads
    args = call_arguments(example_inputs)
    of_example = batch_size(args, tensors_by_path("input", args))
    modules = [_placed(module, device, dtype, channels_last) for module in (dense, compact)]
    engine = "eager" if compiler is None else "compile"
    timings: list[BatchTiming] = []
    problem = None
    with _threads(threads), torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a compiler, about what it would rather compile
        functions: list[Callable[..., Any]] = list(modules)
        try:
            if compiler is not None:
                functions = [compiler(module) for module in modules]
            for batch in batch_sizes:
                progress(f"PyTorch {engine}, batch {batch}")
                if compiler is not None:  # beyond a few shapes dynamo runs what it is given as it is, without a word
                    torch.compiler.reset()
                inputs = random_inputs(resized(args, batch, of_example), 0)
                inputs = _placed_inputs(inputs, device, dtype, channels_last)
                first, second = (_call(function, inputs, device) for function in functions)
                ratio = macs[0] / macs[1] if macs is not None else None
                # the first call of a shape compiles it
                timings.append(time_batch(first, second, batch, runs=runs, warmup=max(warmup, 1), mac_ratio=ratio))
        except Exception as error:
            if compiler is None:
                raise
            timings, problem = [], f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
    return TorchReport(
        engine=engine,
        timings=tuple(timings),
        runs=runs,
        warmup=warmup,
        threads=threads,
        dtype=str(dtype).removeprefix("torch."),
        channels_last=channels_last,
        device=torch.cuda.get_device_name(device) if device.startswith("cuda") else device,
        runtime=f"torch {torch.__version__}",
        problem=problem,
    )


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _placed(module: nn.Module, device: str, dtype: torch.dtype, channels_last: bool) -> nn.Module:
    placed = copy.deepcopy(module).eval().to(device, dtype)
    # only tensors of four dimensions have such a format; nn.Module.to sorts them out
    return placed.to(memory_format=torch.channels_last) if channels_last else placed


def _placed_inputs(args: tuple[Any, ...], device: str, dtype: torch.dtype, channels_last: bool) -> tuple[Any, ...]:
    def place(tensor: Tensor) -> Tensor:
        placed = tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)
        image = channels_last and placed.dim() == 4
        return placed.contiguous(memory_format=torch.channels_last) if image else placed

    return tuple(tree_map_only(Tensor, place, args))


def _call(function: Callable[..., Any], inputs: tuple[Any, ...], device: str) -> Callable[[], None]:
    """One run, at whose end the result is there: a GPU answers before it has finished."""

    def run() -> None:
        function(*inputs)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    return run
