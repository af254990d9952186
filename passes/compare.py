"""Two modules that must compute the same: run both on the same random inputs and measure how far apart they are."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pdc_fx.errors import TraceError
from pdc_fx.passes.axes import named_tensors
from pdc_fx.trace import Inputs, as_arguments, evaluating, named_outputs, overlapping, way_out


@dataclass(frozen=True)
class Comparison:
    """What was measured.

    Attributes:
        passed: every output within ``tolerance``, finite, of the same shape.
        max_abs_error: over all outputs.
        max_rel_error: the largest, over outputs, of the absolute error over the largest magnitude of the reference.
        first_difference: the first output that differs, or None.
        constant: no output of the reference varies (all are empty, say), so that the comparison says nothing.
    """

    passed: bool
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    first_difference: str | None = None
    constant: bool = False


def in_precision(
    model: nn.Module, example_inputs: Inputs, dtype: torch.dtype = torch.float64
) -> tuple[nn.Module, tuple[Any, ...]]:
    """Copies in another precision; integer inputs stay as they are, and so does what shares memory."""
    inputs = tree_map(
        lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, as_arguments(example_inputs)
    )
    with torch.no_grad():
        try:
            twin = copy.deepcopy(model, _shared_memory(model, dtype))
        except Exception as error:  # anything that the model holds may object
            raise TraceError(
                f"{type(model).__name__} cannot be copied: {error}",
                hint="keep what cannot be copied outside of the module, or give its class a __deepcopy__",
            ) from error
        return twin.to(dtype), inputs


def _shared_memory(model: nn.Module, dtype: torch.dtype) -> dict[int, Any]:
    """For ``deepcopy``: copies of the tensors that overlap in memory, overlapping in the same way."""
    copies: dict[int, Any] = {}
    wholes: dict[int, Tensor] = {}
    tensors = named_tensors(model)
    for name in overlapping(tensors):
        tensor = tensors[name]
        flat = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
        whole = wholes.setdefault(tensor.untyped_storage().data_ptr(), flat.to(dtype, copy=True))
        view = whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        copies[id(tensor)] = nn.Parameter(view, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else view
    return copies


def random_inputs(example_inputs: Inputs, seed: int) -> tuple[Any, ...]:
    """Standard normal tensors in place of floating inputs, all else as given."""
    generator = torch.Generator().manual_seed(seed)

    def draw(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.is_floating_point():
            return torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf.device)
        return leaf

    return tuple(tree_map(draw, as_arguments(example_inputs)))


def varies(output: Any) -> bool:
    """Whether any tensor of an output holds two different numbers."""
    return any(bool((t != t.flatten()[0]).any()) for t in named_outputs(output).values() if t.numel())


def compare(
    reference: nn.Module, other: nn.Module, example_inputs: Inputs, *, tolerance: float, seed: int = 0
) -> Comparison:
    """Run both in eval mode on the same random inputs.

    Raises:
        TraceError: one of them raises.
    """
    inputs = random_inputs(example_inputs, seed)
    expected, actual = (named_outputs(run(model, inputs)) for model in (reference, other))
    if not expected or list(expected) != list(actual):
        return Comparison(
            False, float("inf"), float("inf"), tolerance, f"outputs {list(actual)} instead of {list(expected)}"
        )
    absolute = relative = 0.0
    first: str | None = None
    for name, want in expected.items():
        error, scale = _distance(want, actual[name])
        ratio = error / scale if scale > 0 else error
        if not ratio <= tolerance and first is None:
            first = name
        absolute, relative = max(absolute, error), max(relative, ratio)
    return Comparison(first is None, absolute, relative, tolerance, first, not varies(expected))


def run(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The output in eval mode; :class:`TraceError` if the model raises."""
    with evaluating(model):
        try:
            return model(*inputs)
        except Exception as error:
            raise TraceError(
                f"{type(model).__name__} raised {type(error).__name__} in its forward pass: {error}",
                hint=way_out(error),
            ) from error


def _distance(want: Tensor, got: Tensor) -> tuple[float, float]:
    """The largest difference, and the largest magnitude that was wanted."""
    if want.shape != got.shape or not bool(torch.isfinite(want).all()) or not bool(torch.isfinite(got).all()):
        return float("inf"), 1.0
    if not want.numel():
        return 0.0, 1.0
    want, got = want.double(), got.double()
    return float((want - got).abs().max()), float(want.abs().max())
