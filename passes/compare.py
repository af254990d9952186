"""Two modules that must compute the same: run both on the same random inputs and measure how far apart they are."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from pdc_fx.errors import TraceError
from pdc_fx.passes.axes import named_tensors
from pdc_fx.trace import (
    Inputs,
    as_arguments,
    copied,
    failed,
    looking_at,
    named_outputs,
    overlapping,
)

EXACT = 1e-9
"""Largest relative error, in float64, of networks that are the same function but for the order of their sums."""

FILLER = 1e4
"""How many times larger than all others a number is that only fills places."""


@dataclass(frozen=True)
class Comparison:
    """What was measured.

    Attributes:
        passed: every output within ``tolerance``, of the same shape, and finite at the same places.
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
    inputs = tree_map(lambda t: precise(t, dtype) if isinstance(t, Tensor) else t, as_arguments(example_inputs))
    with torch.no_grad():
        twin = copied(model, _shared_memory(model, dtype))
        for tensor in named_tensors(twin).values():  # Module.to would give each of several modules a buffer of its own
            tensor.data = precise(tensor.data, dtype)
        return twin, inputs


def precise(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In a floating ``dtype``, or its complex numbers; integers as they are.

    >>> [precise(torch.zeros(1, dtype=d), torch.float64).dtype for d in (torch.float16, torch.complex64, torch.int8)]
    [torch.float64, torch.complex128, torch.int8]
    """
    if tensor.is_complex():
        return tensor.to(dtype.to_complex())
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _shared_memory(model: nn.Module, dtype: torch.dtype) -> dict[int, Any]:
    """For ``deepcopy``: copies of the tensors that overlap in memory, overlapping in the same way."""
    copies: dict[int, Any] = {}
    wholes: dict[int, Tensor] = {}
    tensors = named_tensors(model)
    for name in overlapping(tensors):
        tensor = tensors[name]
        flat = torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())
        whole = wholes.setdefault(tensor.untyped_storage().data_ptr(), precise(flat.clone(), dtype))
        view = whole.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
        copies[id(tensor)] = nn.Parameter(view, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else view
    return copies


def random_inputs(example_inputs: Inputs, seed: int, *, positive: bool = False) -> tuple[Any, ...]:
    """Random numbers in place of the floating inputs and of images of bytes, such as the model may take; all else as given.

    An input that holds one number alone says nothing of that: it becomes standard normal, or lies between 0 and 1 (``positive``). Others
    lie between the smallest and the largest finite number of the example, and are not finite where that is not (a mask that is added).
    Beside other inputs a matrix that varies stays as it is: it may hold boxes, of which not any numbers are one.
    """
    generator = torch.Generator().manual_seed(seed)
    args = as_arguments(example_inputs)
    alone = sum(isinstance(leaf, Tensor) for leaf in tree_leaves(args)) == 1

    def drawn(leaf: Any) -> Any:
        if isinstance(leaf, Tensor) and leaf.dtype == torch.uint8 and leaf.dim() > 2:
            low, high = (int(leaf.min()), int(leaf.max())) if varies(leaf) else (0, 255)
            return torch.randint(low, high + 1, leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf.device)
        if not isinstance(leaf, Tensor) or not (leaf.is_floating_point() or leaf.is_complex()):
            return leaf
        known = leaf.isfinite()
        varied = varies(leaf[known])
        if varied and (leaf.is_complex() or (leaf.dim() < 3 and not alone)):
            return leaf
        draw = torch.rand if positive or varied else torch.randn
        values = draw(leaf.shape, generator=generator, dtype=leaf.dtype).to(leaf.device)
        if varied:
            values = torch.lerp(leaf[known].min(), leaf[known].max(), values)
        return torch.where(known, values, leaf)

    return tuple(tree_map(drawn, args))


def lively(model: nn.Module, example_inputs: Inputs, seed: int) -> tuple[tuple[Any, ...], Any]:
    """Random inputs on which the model gives finite numbers that vary, and these: positive inputs, if others do not do (it takes a
    logarithm, say), or the example (a detector finds nothing in noise). Where nothing varies, the first that are finite.

    Raises:
        TraceError: the model raises, or gives no finite numbers on the example either.
    """
    random = (random_inputs(example_inputs, seed, positive=positive) for positive in (False, True))
    steady = None
    for inputs in chain(random, [as_arguments(example_inputs)]):
        output = run(model, inputs)
        if finite(output) and varies(output):
            return inputs, output
        if finite(output) and steady is None:
            steady = inputs, output
    if steady is not None:
        return steady
    raise TraceError(
        f"an output of {type(model).__name__} holds no finite number, neither on the example inputs nor on random ones",
        hint="give example inputs as in use",
    )


def larger_batch(example_inputs: Inputs) -> tuple[Any, ...] | None:
    """The inputs with one sample more, the first once again; None where there is no batch."""
    args = as_arguments(example_inputs)
    sizes = [leaf.shape[0] for leaf in tree_leaves(args) if isinstance(leaf, Tensor) and leaf.dim()]

    def larger(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.dim() or len(leaf) != sizes[0]:
            return leaf
        return torch.cat([leaf, leaf[:1]])

    return tuple(tree_map(larger, args)) if sizes and sizes[0] else None


def larger_images(example_inputs: Inputs) -> tuple[Any, ...]:
    """The inputs with images (four axes or more) of another size and ratio of their sides, repeating those there are.

    >>> larger_images(torch.zeros(2, 3, 32, 32))[0].shape
    torch.Size([2, 3, 64, 96])
    """

    return _grown(example_inputs, lambda shape: [shape[-2] + 32, shape[-1] + 64] if len(shape) > 3 else [])


def other_sizes(example_inputs: Inputs) -> Iterator[tuple[Any, ...]]:
    """The inputs with sounds, images or videos of other sizes, or sequences of another length, repeating those there are.

    The first that a model takes tells most: sides in another ratio, then all twice as large, then what lies along the axis of channels.

    >>> [tuple(image.shape) for (image,) in other_sizes(torch.zeros(2, 3, 8, 8))]
    [(2, 3, 40, 72), (2, 3, 16, 16)]
    >>> [tuple(tokens.shape) for (tokens,) in other_sizes(torch.zeros(2, 5, 16))]
    [(2, 5, 48), (2, 5, 32), (2, 10, 16)]
    """
    steps = {1: (32,), 2: (32, 64), 3: (8, 16, 32)}
    ways: list[Callable[[tuple[int, ...]], list[int]]] = [
        lambda shape: [n + step for n, step in zip(shape[2:], steps.get(len(shape) - 2, ()), strict=False)],
        lambda shape: [2 * n for n in shape[2:]],
        lambda shape: [2 * shape[1], *shape[2:]] if 2 <= len(shape) <= 3 else [],
    ]
    for way in ways:
        changed = _grown(example_inputs, way)
        if any(a is not b for a, b in zip(tree_leaves(changed), tree_leaves(example_inputs), strict=True)):
            yield changed


def _grown(example_inputs: Inputs, sizes: Callable[[tuple[int, ...]], Sequence[int]]) -> tuple[Any, ...]:
    """The inputs with the last axes of each tensor of the sizes that its shape is to have, repeating what there is."""

    def grown(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.numel():
            return leaf
        new = sizes(tuple(leaf.shape))
        for axis, size in zip(range(leaf.dim() - len(new), leaf.dim()), new, strict=True):
            if size != leaf.shape[axis]:
                leaf = leaf.index_select(axis, torch.arange(size, device=leaf.device) % leaf.shape[axis])
        return leaf

    return tuple(tree_map(grown, as_arguments(example_inputs)))


def varies(output: Any) -> bool:
    """Whether any tensor of an output holds two different numbers, or one number alone that is not 0 (a regression of one image)."""
    tensors = [tensor for tensor in named_outputs(output).values() if tensor.numel()]
    return any(bool((t != t.flatten()[0]).any()) or (t.numel() == 1 and bool(t.any())) for t in tensors)


def finite(output: Any) -> bool:
    """Whether every tensor of an output holds a finite number: one may be minus infinity by design, not all."""
    return all(bool(t.isfinite().any()) for t in named_outputs(output).values() if t.numel())


def compare(
    reference: nn.Module, other: nn.Module, example_inputs: Inputs, *, tolerance: float, seed: int = 0
) -> Comparison:
    """Run both in eval mode on the same inputs, with the same random numbers.

    Raises:
        TraceError: one of them raises, or the reference gives no finite numbers.
    """
    inputs, expected = lively(reference, example_inputs, seed)
    return difference(expected, run(other, inputs), tolerance)


def difference(expected: Any, actual: Any, tolerance: float) -> Comparison:
    """How far two outputs are apart."""
    wanted, found = named_outputs(expected), named_outputs(actual)
    if not wanted or list(wanted) != list(found):
        return Comparison(
            False, float("inf"), float("inf"), tolerance, f"outputs {list(found)} instead of {list(wanted)}"
        )
    absolute = relative = 0.0
    first: str | None = None
    for name, want in wanted.items():
        error, scale = distance(want, found[name])
        ratio = error / scale if scale > 0 else error
        if not ratio <= tolerance and first is None:
            first = name
        absolute, relative = max(absolute, error), max(relative, ratio)
    return Comparison(first is None, absolute, relative, tolerance, first, not varies(wanted))


def run(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The output in eval mode; :class:`TraceError` if the model raises. Nothing of it shows afterwards."""
    with looking_at(model, *inputs) as args:
        return called(model, args)


def called(model: nn.Module, args: tuple[Any, ...]) -> Any:
    """The output; :class:`TraceError` if the model raises."""
    try:
        return model(*args)
    except (Exception, SystemExit) as error:
        raise failed(model, error) from error


def attempted(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """The output, or None where the model does not take these inputs."""
    try:
        with redirect_stderr(io.StringIO()):  # a graph that fails prints its code
            return run(model, inputs)
    except TraceError:
        return None


def distance(want: Tensor, got: Tensor) -> tuple[float, float]:
    """The largest difference, and the largest magnitude that was wanted. What is not finite must be the same in both.

    >>> distance(torch.tensor([-torch.inf, 4.0]), torch.tensor([-torch.inf, 3.0])), distance(torch.tensor([torch.nan]), torch.ones(1))
    ((1.0, 4.0), (inf, 1.0))
    """
    measured = want.isfinite()
    if want.shape != got.shape or not torch.equal(measured, got.isfinite()):
        return float("inf"), 1.0
    apart, same = want[~measured], got[~measured]
    if not bool(((apart == same) | (apart.isnan() & same.isnan())).all()):
        return float("inf"), 1.0
    want, got = (precise(t if t.is_complex() else t.double(), torch.float64)[measured] for t in (want, got))
    if not want.numel():
        return 0.0, 1.0
    return float((want - got).abs().max()), scale_of(want.abs(), want == got)


def scale_of(sizes: Tensor, same: Tensor) -> float:
    """The largest magnitude, but for that of a filler: a number that both hold alike, and far beyond all others, like -1e9 of a mask.

    >>> scale_of(torch.tensor([1e9, 1e9, 2.0]), torch.tensor([True, True, False])), scale_of(torch.tensor([3.0, 2.0]), torch.ones(2) > 0)
    (2.0, 3.0)
    """
    largest = sizes.max()
    rest = sizes[sizes < largest]
    filler = rest.numel() and bool(same[sizes == largest].all()) and float(largest) > FILLER * float(rest.max()) > 0
    return float(rest.max() if filler else largest)
