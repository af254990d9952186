"""What every value of a network becomes under a plan, and whether a smaller network's recording agrees.

A channel that stays keeps its label, so the value at a node becomes the block of its labels that remain. The compact network is
recorded and analysed like any other; its rules mint labels in the same order, so its labels can be translated one by one, and
must lie where they were foretold: a size, an order or an offset that is written into the program and no longer fits shows up at
the call that holds it, whether or not the shapes happen to agree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import isclose
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from pdc_fx.ir import ClusterPlan
from pdc_fx.passes.dependency import Solution
from pdc_fx.rules import Channels, Flow
from pdc_fx.rules.base import argument_of
from pdc_fx.rules.channels import FIXED
from pdc_fx.rules.registry import has_trait
from pdc_fx.trace import function_name

Masks = tuple[Tensor | None, ...]
_UNKNOWN = -2
_ANY = -3  # where one channel is left, a depthwise convolution looks like any other and makes a channel of its own


@dataclass(frozen=True)
class Mismatch:
    """A call whose result is not as foretold."""

    node: fx.Node
    text: str
    reason: str = "holds sizes that torch.fx cannot trace and edit"

    def __str__(self) -> str:
        return f"{function_name(self.node.target)} at {self.node.meta.get('source', '')} {self.text}"


class Prediction:
    """The values of a solved flow under a plan."""

    def __init__(self, solution: Solution, plan: ClusterPlan) -> None:
        self.solution, self.plan = solution, plan
        stays = np.ones(len(solution.group), dtype=bool)
        for index, representative in enumerate(plan.representatives):
            units = np.flatnonzero(solution.group == index)
            stays[units] = representative[solution.row[units]] == solution.row[units]
        lone = np.isin(solution.group, [group for group, width in plan.widths.items() if width == 1])
        # label -> whether it stays, and whether it is of a channel left alone in its group; the last entry is that of FIXED
        self.kept, self._lone = (
            torch.from_numpy(np.append(unit[solution.unit] if len(solution.unit) else np.zeros(0, bool), fixed))
            for unit, fixed in ((stays, True), (lone, False))
        )

    def masks(self, value: Channels) -> Masks | None:
        """For each axis the positions that remain, or None where it carries no channel; None if they form no block."""
        alive = self.kept[value.label]
        masks: list[Tensor | None] = []
        block = torch.ones_like(alive)
        for dim, size in enumerate(alive.shape):
            if size == 1 or not alive.numel():
                masks.append(None)
                continue
            mask = alive.movedim(dim, 0).reshape(size, -1).any(1)
            masks.append(mask)
            block &= mask.reshape([-1 if d == dim else 1 for d in range(alive.dim())])
        return tuple(masks) if torch.equal(block, alive) else None

    def block(self, value: Channels) -> tuple[tuple[int, ...], Tensor] | None:
        """The shape a value will have and its labels, size 1 along axes without channels; None if no block remains."""
        masks, label = self.masks(value), value.label
        if masks is None:
            return None
        for dim, mask in enumerate(masks):
            if mask is not None:
                label = label.index_select(dim, mask.nonzero().reshape(-1))
        sizes = zip(value.shape, masks, strict=True)
        return tuple(size if mask is None else int(mask.sum()) for size, mask in sizes), label

    def spread(self, value: Channels) -> tuple[int, Tensor] | None:
        """The axis along which the channels of a value lie, and for each of its positions which of those that remain stands for it.

        Where a channel lies at several positions (a map beside its negative), each is represented at the same one of the several. None
        where channels lie along no axis, or along more than one.
        """
        axes = [dim for dim, size in enumerate(value.label.shape) if size > 1]
        if len(axes) != 1 or self.masks(value) is None:
            return None
        label = value.label.reshape(-1).numpy()
        times: Counter[tuple[int, int]] = Counter()
        places: dict[tuple[int, ...], int] = {}
        wanted = []
        for position, (number, stays) in enumerate(
            zip(label, self.kept[value.label].reshape(-1).tolist(), strict=True)
        ):
            unit = -1 if number == FIXED else self.solution.unit[number]
            group = -1 if unit < 0 else int(self.solution.group[unit])
            if group < 0:
                own = stand_in = (-1, position, 0)
            else:
                row = int(self.solution.row[unit])
                time = times[group, row]
                times[group, row] += 1
                own, stand_in = (group, row, time), (group, int(self.plan.representatives[group][row]), time)
            if stays:
                places[own] = len(places)
            wanted.append(stand_in)
        if not all(key in places for key in wanted):
            return None
        return axes[0], torch.tensor([places[key] for key in wanted])

    def shapes_in(self) -> dict[str, tuple[int, ...]]:
        """Module -> the shape that the input of its function will have, for modules that consist of one call."""
        found: dict[str, tuple[int, ...]] = {}
        for node in self.solution.flow.values:
            argument = self.solution.flow.first(node)
            if isinstance(argument, Channels) and (block := self.block(argument)) is not None:
                found.setdefault(node.meta["module"], block[0])
        return found

    def shrinks(self, value: object) -> bool:
        """Whether any position of a value, or of one of several, goes."""
        if isinstance(value, (list, tuple)):
            return any(self.shrinks(v) for v in value)
        return isinstance(value, Channels) and not bool(self.kept[value.label].all())

    def difference(self, pairs: Iterable[tuple[fx.Node, fx.Node]], compact: Flow) -> Mismatch | None:
        """The first of ``pairs`` (call before, call in the compact network) whose result is not as foretold.

        Beyond the calls, whatever meets in the compact network must have met before.
        """
        translate = self._translation(compact)
        last = None
        for before, now in pairs:
            last = before
            expected, actual = self.solution.flow.values[before], compact.values[now]
            if (text := _other_numbers(before, now)) is not None:
                return Mismatch(before, text, "takes a number that follows the channels")
            if (text := self._mismatch(expected, actual, translate)) is not None:
                return Mismatch(before, text)
        # what is alone in the smaller network meets all others as a gate does
        alone = torch.zeros(compact.labels + 1, dtype=torch.bool)
        for labels in _ranges(compact).values():
            alone[labels.start : labels.stop] = len(labels) == 1
        both = [torch.cat([pair[i] for pair in compact.pairs] or [torch.zeros(0).long()]) for i in range(2)]
        told = ~(alone[both[0]] | alone[both[1]])
        a, b = (translate[labels[told]] for labels in both)
        unit = self.solution.unit
        if last is not None and (bool((a < 0).any() | (b < 0).any()) or (unit[a.numpy()] != unit[b.numpy()]).any()):
            return Mismatch(last, "is reached by other channels than it should be")
        return None

    def _mismatch(self, expected: object, actual: object, translate: Tensor) -> str | None:
        if isinstance(expected, (list, tuple)) and isinstance(actual, (list, tuple)):
            if len(expected) != len(actual):
                return f"gives {len(actual)} results instead of {len(expected)}"
            found = (self._mismatch(e, a, translate) for e, a in zip(expected, actual, strict=True))
            return next((text for text in found if text is not None), None)
        if not isinstance(expected, Channels) or not isinstance(actual, Channels):
            return None
        block = self.block(expected)
        if block is None:
            return "holds channels that remain in no block"
        shape, label = block
        if not of_shape(actual.shape, shape, expected):
            return f"gives {actual.shape} instead of {shape}"
        now = translate[actual.label]
        alike = (now == label) | (now == _ANY)
        if label.numel() and bool((label == label.reshape(-1)[0]).all()):
            # one channel is left here: it looks like none, or like its places (the positions of an attention head)
            alike |= (now == FIXED) | self._same_unit(now, label)
        if bool(self._lone.any()):
            # one channel is left of all that are coupled: it looks like none, its copies like an expansion, its places like channels;
            # and a sum with it has the places of its other part
            alike |= (
                self._lone[now.clamp(min=FIXED)] | (self._lone[label] & (now == FIXED)) | self._same_unit(now, label)
            )
        fits = bool(alike.all())
        return None if fits else "takes other channels than it should"

    def _same_unit(self, now: Tensor, label: Tensor) -> Tensor:
        """Where both hold a place of the same channel."""
        unit = torch.from_numpy(self.solution.unit)
        return (now >= 0) & (label >= 0) & (unit[now.clamp(min=0)] == unit[label.clamp(min=0)])

    def _translation(self, compact: Flow) -> Tensor:
        """Label of the compact flow -> label before; FIXED stays FIXED."""
        before = _ranges(self.solution.flow)
        result = torch.full([compact.labels + 1], _UNKNOWN)
        result[-1] = FIXED
        for key, new in _ranges(compact).items():
            old = before.get(key, range(0))
            kept = torch.arange(old.start, old.stop)[self.kept[old.start : old.stop]]
            if len(kept) == len(new):
                result[new.start : new.stop] = kept
            elif len(new) == 1:
                result[new.start] = _ANY
        return result


def lie_alike(value: object, source: object) -> bool:
    """Whether the channels of a result, or of all of several, lie as they do in what it was made from."""
    parts = value if isinstance(value, list) else [value]
    return isinstance(source, Channels) and all(
        isinstance(p, Channels) and torch.equal(p.label.squeeze(), source.label.squeeze()) for p in parts
    )


def takes_numbers(call: fx.Node) -> bool:
    """Whether arithmetic, or a call that fills a tensor, has a number among its arguments: the bounds of a ``relu6`` follow nothing."""
    return not has_trait(call.target, "bounds") and bool(_numbers(call))


def _numbers(call: fx.Node) -> list[float]:
    values: list[Any] = []
    if has_trait(call.target, "fills"):
        values = [*call.args[1:3], call.kwargs.get("fill_value")]  # behind a tensor, a size, or both
    elif has_trait(call.target, "counts_sets"):
        values = [argument_of(call, 1, "num_groups")]
    elif has_trait(call.target, "arithmetic") or has_trait(call.target, "bounds"):
        values = [*call.args, *call.kwargs.values()]
    return [a for a in tree_leaves(values) if isinstance(a, (int, float)) and not isinstance(a, bool)]


def of_shape(shape: Sequence[int], foretold: Sequence[int], value: Channels) -> bool:
    """Whether a result has the shape foretold. What repeats one value along an axis may have any size there.

    >>> ones = Channels.fixed((2, 8), same={1})
    >>> of_shape((2, 4), (2, 8), ones), of_shape((3, 8), (2, 8), ones)
    (True, False)
    """
    return len(shape) == len(foretold) and all(
        a == b for d, (a, b) in enumerate(zip(shape, foretold, strict=True)) if d not in value.same
    )


def _other_numbers(before: fx.Node, now: fx.Node) -> str | None:
    """A number must not be another one in the smaller network, as in ``x / x.shape[1]``."""
    was, is_now = _numbers(before), _numbers(now)
    if has_trait(before.target, "counts_sets") and was == [argument_of(before, 0, "input").meta["shape"][1]]:
        return None
    alike = len(was) == len(is_now) and all(map(_alike, was, is_now))
    return None if alike else f"takes {is_now} instead of {was}"


def _alike(one: object, other: object) -> bool:
    """The same number; one that comes of the values of a tensor is rounded otherwise where sums have another order."""
    return one == other or (isinstance(one, float) and isinstance(other, float) and isclose(one, other, rel_tol=1e-6))


def _ranges(flow: Flow) -> dict[tuple[str, str, int], range]:
    """What minted labels -> these labels, in any recording of the same network."""
    found: dict[tuple[str, str, int], range] = {}
    starts = [start for start, *_ in flow.makers] + [flow.labels]
    times: Counter[tuple[str, str]] = Counter()
    for (_, module, tensor), (start, stop) in zip(flow.makers, pairwise(starts), strict=True):
        found[module, tensor, times[module, tensor]] = range(start, stop)
        times[module, tensor] += 1
    return found
