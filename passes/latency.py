"""How long a network takes at given widths, foretold from times of single layers.

    time(widths) = sum over layers of t(layer, widths) + rest * activations(widths) / activations(dense)

A layer is one use of a weight by a convolution, its transpose, or a linear layer. ``t`` was measured on a small grid of rounded widths and
is bilinear in both widths between four neighbours, as the number of multiply-accumulates is; a depthwise layer has one width. Noise
must not make a narrower layer slower, so ``t`` is the least of all that are as wide or wider. ``rest`` is what the dense network takes
beyond its layers (pooling, additions, other operators); it grows with what the layers write.

Times are data here, a mapping from :meth:`Layer.key` to nanoseconds. Who measures them, and on what, is for others to know.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import fx

from pdc_fx.ir import ChannelGroups
from pdc_fx.passes.budget import Rounding, Widths
from pdc_fx.passes.convolution import layer_call, window
from pdc_fx.trace import Recording

Shape = tuple[int, ...]
_GRID = Rounding.of("auto")
_SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class Layer:
    """One use of a weight, with all that its time depends on.

    Attributes:
        kind: ``conv``, ``conv_transpose`` or ``linear``.
        weight: shape of the weight: ``(out, in / groups, *kernel)``, ``(in, out / groups, *kernel)``, ``(out, in)``.
        batch: size of the first axis; rows of a linear layer.
        space: of the input; stride, dilation, output_padding: one for each of its axes. Empty for a linear layer.
        pads: before each axis, then behind each.
        multiplier: outputs of each channel of a depthwise layer, whose groups are its channels; None for all others.
    """

    kind: str
    weight: Shape
    batch: int
    space: Shape = ()
    stride: Shape = ()
    pads: Shape = ()
    dilation: Shape = ()
    output_padding: Shape = ()
    groups: int = 1
    multiplier: int | None = None

    @property
    def inputs(self) -> int:
        """Channels that are read."""
        return self.weight[0] if self.kind == "conv_transpose" else self.weight[1] * self.groups

    @property
    def outputs(self) -> int:
        """Channels that are made."""
        return self.made(*self.weight[:2])

    def made(self, first: int, second: int) -> int:
        """Channels that are made where the first two axes of the weight have these sizes."""
        if self.kind != "conv_transpose":
            return first
        return second * (self.groups if self.multiplier is None else first)

    def at(self, first: int, second: int) -> Layer:
        """The same layer where the first two axes of its weight have these sizes."""
        groups = self.groups
        if self.multiplier is not None:
            groups = max(first if self.kind == "conv_transpose" else first // self.multiplier, 1)
        return replace(self, weight=(first, second, *self.weight[2:]), groups=groups)

    def key(self) -> str:
        """The layer in words.

        >>> Layer("conv", (128, 64, 3, 3), 1, (56, 56), (2, 2), (1, 1, 1, 1), (1, 1)).key()
        'conv 64 to 128, kernel 3x3, input 1x56x56, stride 2x2, pads 1x1x1x1'
        """
        words = [f"{self.kind} {self.inputs} to {self.outputs}"]
        if self.kind != "linear":
            words.append(f"kernel {_times(self.weight[2:])}")
        words.append(f"input {_times((self.batch, *self.space))}")
        usual = {"stride": 1, "pads": 0, "dilation": 1, "output_padding": 0}
        words += [f"{name} {_times(v)}" for name, one in usual.items() if set(v := getattr(self, name)) - {one}]
        return ", ".join([*words, f"groups {self.groups}"] if self.groups > 1 else words)


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


@dataclass(frozen=True)
class LayerUse:
    """A layer where it stands in a network.

    Attributes:
        tensor: name of the weight.
        positions: entries it writes for each channel that it makes.
    """

    tensor: str
    layer: Layer
    positions: int

    def sizes(self, groups: ChannelGroups, widths: Widths | None) -> tuple[int, int]:
        """The first two axes of the weight at these widths."""
        first, second, *_ = groups.compact_shape(self.tensor, widths)
        return first, second


def layers_of(recording: Recording) -> tuple[LayerUse, ...]:
    """Every use of a parameter by a convolution or a linear layer in a forward pass."""
    return tuple(use for node in recording.graph.nodes if (use := _use(node, recording.shapes)) is not None)


def _use(node: fx.Node, shapes: Mapping[str, Shape]) -> LayerUse | None:
    found = layer_call(node.target, node.args, node.kwargs) if node.op == "call_function" else None
    if found is None:
        return None
    kind, given = found
    weight, x = given.get("weight"), given.get("input")
    if not isinstance(weight, fx.Node) or not isinstance(x, fx.Node) or weight.op != "get_attr":
        return None
    shape, read = shapes.get(str(weight.target)), tuple(x.meta.get("shape", ()))
    if shape is None or len(shape) < 2 or "shape" not in node.meta:
        return None
    if kind == "linear":
        layer = Layer(kind, shape, prod(read[:-1]))
    elif len(read) == len(shape):
        layer = _convolution(kind, shape, read, given)
    else:
        return None  # without an axis for the batch
    return LayerUse(str(weight.target), layer, prod(node.meta["shape"]) // layer.outputs)


def _convolution(kind: str, shape: Shape, read: Shape, given: Mapping[str, Any]) -> Layer:
    moves, groups = window(given, shape[2:]), int(given.get("groups", 1))
    depthwise = groups == read[1] > 1
    multiplier = (shape[1] if kind == "conv_transpose" else shape[0] // groups) if depthwise else None
    behind = moves.output_padding if kind == "conv_transpose" else ()
    pads = (*moves.before, *moves.behind)
    return Layer(kind, shape, read[0], read[2:], moves.stride, pads, moves.dilation, behind, groups, multiplier)


def grid(size: int) -> tuple[int, ...]:
    """The widths at which a layer is timed: about a quarter, a half and three quarters of all, rounded, and the least.

    >>> grid(64), grid(256), grid(24), grid(3)
    ((16, 32, 48, 64), (16, 64, 128, 192, 256), (4, 8, 12, 16, 24), (1, 2, 3))
    """
    step = _GRID.step(size)
    rounded = {max(round(size * share / step), 1) * step for share in _SHARES}
    return tuple(sorted({step, *(width for width in rounded if width < size), size}))


class _Times:
    """The times of one layer over its two widths."""

    def __init__(self, layer: Layer, movable: tuple[bool, bool]) -> None:
        self.layer = layer
        first, second = layer.weight[:2]
        unit = layer.groups if layer.multiplier is None else layer.weight[0] // layer.groups
        self.axes = [
            tuple(unit * n for n in grid(first // unit)) if movable[0] else (first,),
            grid(second) if movable[1] else (second,),
        ]
        self.table: npt.NDArray[np.float64] = np.zeros(0)

    def points(self) -> list[Layer]:
        return [self.layer.at(*sizes) for sizes in product(*self.axes)]

    def fill(self, times: Mapping[str, float]) -> None:
        table = np.asarray([times[point.key()] for point in self.points()]).reshape([len(a) for a in self.axes])
        for axis in (0, 1):
            table = np.flip(np.minimum.accumulate(np.flip(table, axis), axis), axis)
        self.table = table

    def __call__(self, sizes: Sequence[int]) -> float:
        table = self.table
        for axis, size in zip(self.axes, sizes, strict=False):  # along the first axis, then what was the second
            if len(axis) == 1:
                table = table[0]
                continue
            i = min(max(bisect_right(axis, size) - 1, 0), len(axis) - 2)
            part = min(max((size - axis[i]) / (axis[i + 1] - axis[i]), 0.0), 1.0)
            table = table[i] * (1 - part) + table[i + 1] * part
        return float(table)


class LatencyModel:
    """Widths -> nanoseconds.

    Attributes:
        needed: the layers whose times it needs, by their keys, the dense ones among them.
    """

    def __init__(self, groups: ChannelGroups, uses: Sequence[LayerUse]) -> None:
        moves = {(member.tensor, member.dim) for group in groups.groups for member in group.members}
        self.groups, self.uses = groups, tuple(uses)
        found: dict[tuple[Layer, tuple[bool, bool]], _Times] = {}
        self._times = []
        for use in self.uses:
            movable = ((use.tensor, 0) in moves, (use.tensor, 1) in moves)
            self._times.append(found.setdefault((use.layer, movable), _Times(use.layer, movable)))
        self.needed = {point.key(): point for times in found.values() for point in times.points()}
        self._rest, self._dense_written = 0.0, self._written(None)

    def fill(self, times: Mapping[str, float], dense: float) -> None:
        """Enter the times of the needed layers and of the whole dense network, in nanoseconds."""
        for layer in self._times:
            layer.fill(times)
        self._rest = max(dense - self.layers(None), 0.0)

    def layers(self, widths: Widths | None = None) -> float:
        """What all layers take."""
        return sum(times(use.sizes(self.groups, widths)) for times, use in zip(self._times, self.uses, strict=True))

    def __call__(self, widths: Widths | None = None) -> float:
        return self.layers(widths) + self._rest * self._written(widths) / max(self._dense_written, 1)

    def _written(self, widths: Widths | None) -> int:
        """Entries that all layers write."""
        return sum(use.positions * use.layer.made(*use.sizes(self.groups, widths)) for use in self.uses)
