"""The dry run: can this model be merged exactly? No data, no training.

Half of the channels of every group are merged at random in float64, after statistics and constant parameters have been drawn at
random (a zero-initialised head or a layer scale of 1e-6 would make any two models look equal). The certificate says how far
the compact model is from the tied one, and refuses to say anything where the outputs did not feel the tie at all.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pdc_fx.errors import ExactnessError, InputError, NothingToMergeError
from pdc_fx.ir import Certificate, ClusterPlan
from pdc_fx.passes.analysis import AnalyzeDependencies
from pdc_fx.passes.axes import named_tensors
from pdc_fx.passes.compare import EXACT, called, compare, in_precision, lively
from pdc_fx.passes.random_plans import random_halves
from pdc_fx.passes.rewrite import describe, merge_channels, require_other_sizes
from pdc_fx.passes.tied import tie_once
from pdc_fx.trace import (
    Inputs,
    as_arguments,
    copied,
    evaluating,
    fresh,
    overlapping,
    record,
    require_usable,
    require_values,
)

GAINS = (1.0, 10.0, 100.0, 1000.0)
"""How much the layers whose channels are frozen are amplified until the outputs vary: an untrained detector finds nothing."""

TOLERANCES = {"float64": EXACT, "float32": 1e-4}


@torch.no_grad()
def randomize_statistics(model: nn.Module, seed: int) -> None:
    """Draw normalisation statistics, and every parameter that is constant, at random."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=torch.float64) * (high - low) + low)

    for module in model.modules():
        if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
            uniform(module.running_mean, -0.2, 0.2)
            uniform(module.running_var, 0.8, 1.2)
    tied = overlapping(named_tensors(model))
    for name, parameter in model.named_parameters():
        if name not in tied and parameter.numel() and bool((parameter == parameter.flatten()[0]).all()):
            base = 1.0 if float(parameter.flatten()[0]) == 1.0 else 0.0
            uniform(parameter, base - 0.2, base + 0.2)


def calibrate(model: nn.Module, inputs: tuple[Any, ...], seed: int) -> None:
    """Give every batch norm, in the order in which they run, about the statistics that its input has.

    An untrained network would otherwise let the signal die out on the way, and two outputs that both are a bias look equal.
    """
    generator = torch.Generator().manual_seed(seed)

    def near(statistic: Tensor) -> Tensor:
        noise = torch.rand(statistic.shape, generator=generator, dtype=torch.float64) * 0.4 + 0.8
        return statistic * noise.to(statistic)

    def measure(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        assert isinstance(module, _NormBase)
        given = args[0] if args else named["input"]
        if isinstance(module.running_mean, Tensor) and isinstance(module.running_var, Tensor) and given.dim() > 1:
            values = given.transpose(0, 1).flatten(1)
            module.running_mean.copy_(near(values.mean(1)))
            if values.shape[1] > 1:
                module.running_var.copy_(near(values.var(1)) + 1e-3)

    hooks = [
        m.register_forward_pre_hook(measure, with_kwargs=True) for m in model.modules() if isinstance(m, _NormBase)
    ]
    try:
        with evaluating(model):
            called(model, fresh(inputs))
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def _amplify(model: nn.Module, names: tuple[str, ...], gain: float) -> None:
    tensors = named_tensors(model)
    for name in names:
        tensors[name].mul_(gain)


@dataclass(frozen=True)
class HalfMerge:
    """A network with random statistics, a tied copy of it, what is left of that when it is merged, and what they were made of."""

    original: nn.Module
    tied: nn.Module
    compact: nn.Module
    inputs: tuple[Any, ...]
    plan: ClusterPlan


def merged_halves(
    model: nn.Module,
    example_inputs: Inputs,
    seed: int,
    *,
    dtype: torch.dtype = torch.float64,
    frozen: str | Iterable[str] = (),
    gains: Iterable[float] = GAINS,
    seconds: dict[str, float] | None = None,
) -> Iterator[HalfMerge]:
    """Half of the channels of a copy, merged at random: once for each gain, until who asks is content.

    Args:
        gains: of the layers whose channels are frozen.
        seconds: takes how long the parts of the last one took.

    Raises:
        NothingToMergeError: no two channels may be merged.
        TraceError, InputError, RewriteError: as for :func:`check`.
    """
    seconds = {} if seconds is None else seconds
    outputs: tuple[str, ...] = ()
    for gain in gains:
        original, inputs = in_precision(model, example_inputs, dtype)
        inputs, _ = lively(original.requires_grad_(False), inputs, seed)
        randomize_statistics(original, seed)
        _amplify(original, outputs, gain)
        calibrate(original, inputs, seed)
        with _timed(seconds, "trace"):
            recording = record(original, inputs)
        with _timed(seconds, "analyze"):
            analysis = AnalyzeDependencies(inputs, frozen, recording)(original)
        groups, outputs = analysis.groups, analysis.solution.frozen_producers()
        if not groups.groups:
            reasons = "; ".join(f"{f.channels} channels of '{f.module}': {f.reason}" for f in groups.frozen[:3])
            raise NothingToMergeError(
                "no two channels of this model may be merged", where=reasons, hint="'pdc-fx inspect' lists all reasons"
            )
        plan = random_halves(groups, seed)
        with _timed(seconds, "tie"):
            tied = copied(original)
            tie_once(tied, plan)
        with _timed(seconds, "rewrite"):
            compact = merge_channels(tied, plan, inputs, analysis)
        yield HalfMerge(original, tied, compact, inputs, plan)


def check(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    name: str = "",
    frozen: str | Iterable[str] = (),
) -> Certificate:
    """Merge half of the channels at random on a copy of ``model``, and measure what that changes.

    Args:
        model: any module; it is not changed.
        example_inputs: a tensor or a tuple of call arguments.
        seed: of the partition, of the statistics and of the inputs.
        dtype: ``float64`` (tolerance 1e-9 relative), or ``float32`` (1e-4) for models too large for that.
        name: of the model, for the certificate; its class by default.
        frozen: names or patterns (``layer4.*``) of modules whose channels stay.

    Raises:
        TraceError: the model does not run on these inputs.
        InputError: ``frozen`` meets no module, or ``dtype`` is neither float64 nor float32.
        NothingToMergeError: no two channels may be merged.
        ExactnessError: the outputs do not depend on what was merged, so that nothing could be shown.
        RewriteError: a size is written out where it cannot be edited, or inputs of another size come out wrong.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    >>> certificate = check(net, torch.zeros(1, 3, 8, 8))
    >>> certificate.passed, certificate.mergeable_channels
    (True, 8)
    """
    dtype_name = str(dtype).removeprefix("torch.")
    if dtype_name not in TOLERANCES:
        raise InputError(f"a check runs in float64 or float32, not in {dtype_name}")
    if seed < 0:
        raise InputError("a seed must not be negative", where=str(seed))
    require_usable(model)
    require_values(as_arguments(example_inputs))
    seconds: dict[str, float] = {}
    tolerance = TOLERANCES[dtype_name]
    for made in merged_halves(model, example_inputs, seed, dtype=dtype, frozen=frozen, seconds=seconds):
        with _timed(seconds, "compare"):
            found = compare(made.tied, made.compact, made.inputs, tolerance=tolerance, seed=seed)
            felt = compare(made.original, made.tied, made.inputs, tolerance=tolerance, seed=seed)
        if felt.max_rel_error > 100 * tolerance and not found.constant:
            if found.passed:
                require_other_sizes(made.tied, made.compact, made.inputs, tolerance)
            break
    else:
        raise ExactnessError(
            "the check says nothing: the outputs do not depend on the merged channels, or are constant",
            hint="give example inputs on which the model is alive, or another --seed",
        )
    plan, groups = made.plan, made.plan.groups
    return Certificate(
        model=name or type(model).__name__,
        passed=found.passed,
        max_abs_error=found.max_abs_error,
        max_rel_error=found.max_rel_error,
        tolerance=tolerance,
        dtype=dtype_name,
        seed=seed,
        macs_before=plan.macs_before,
        macs_after=plan.macs_after,
        params_before=plan.params_before,
        params_after=sum(p.numel() for p in made.compact.parameters()),
        channels=groups.channels,
        mergeable_channels=groups.mergeable_channels,
        groups=len(groups.groups),
        frozen=groups.frozen,
        unreached=groups.unreached,
        seconds=seconds,
        result_type=describe(made.compact),
        first_difference=found.first_difference,
        mergeable_macs=groups.mergeable_macs(),
    )


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    seconds[phase] = round(time.perf_counter() - start, 4)
