"""Indexing by tensors, and assignment to a part of a tensor, along axes that carry no channels.

Which positions an index picks is not known to the analysis, only its shape. That is enough away from the channels: every channel is
picked alike. The picking itself is run on the labels, with an index of size 1 in the place of each tensor.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from pdc_fx.rules.base import Declined, Site, Value
from pdc_fx.rules.channels import Channels
from pdc_fx.rules.elementwise import combine, lifted, met
from pdc_fx.rules.registry import functions, rule

_TRUTH = functions("eq ne lt le gt ge logical_and logical_or logical_xor logical_not isnan isinf isfinite")
_BITS = functions("bitwise_and bitwise_or bitwise_xor bitwise_not and or xor invert")


def has_tensors(index: Any) -> bool:
    """Whether an index holds tensors or lists."""
    items = index if isinstance(index, tuple) else (index,)
    return any(isinstance(item, (fx.Node, list)) for item in items)


def spelled_out(index: Any, rank: int) -> list[Any]:
    """An index with one item per axis: ``...`` as slices."""
    items = list(index) if isinstance(index, tuple) else [index]
    places = [i for i, item in enumerate(items) if item is Ellipsis]
    at = places[0] if places else len(items)
    missing = rank - sum(axes_used(item) for item in items if item is not Ellipsis)
    return [*items[:at], *[slice(None)] * missing, *items[at + 1 :]]


def axes_used(item: Any) -> int:
    """How many axes an index takes: a mask one for each of its own."""
    if item is None:
        return 0
    return len(item.meta["shape"]) if isinstance(item, fx.Node) and is_mask(item) else 1


def is_mask(node: Any) -> bool:
    """Whether a tensor holds truth values, as far as the function that made it tells."""
    if not isinstance(node, fx.Node):
        return False
    return node.target in _TRUTH or (node.target in _BITS and is_mask(node.args[0]))


def picks(site: Site, x: Channels, index: Any) -> list[Any]:
    """What to apply to the label of ``x``; tensors become zeros of their rank."""
    found: list[Any] = []
    items = spelled_out(index, len(x.shape))
    together = sum(isinstance(item, (fx.Node, list)) for item in items) > 1
    dim = 0
    for item in items:
        used = axes_used(item)
        varies = any(d in x.varying for d in range(dim, dim + used))
        if isinstance(item, (fx.Node, slice)):
            site.freeze(item, "is used as an index")
        if (
            varies
            and isinstance(item, slice)
            and any(isinstance(p, fx.Node) for p in (item.start, item.stop, item.step))
        ):
            raise Declined("slices at a position that is computed")
        if isinstance(item, fx.Node):
            if varies:
                raise Declined("picks channels by a tensor")
            rank = 1 if is_mask(item) else len(item.meta["shape"])
            found.extend([torch.zeros([1] * rank, dtype=torch.int64)] * used)
        elif isinstance(item, list):
            values = torch.tensor(item, dtype=torch.int64) if all(type(i) is int for i in item) else None
            if values is None:
                raise Declined("indexes with a list of tensors, lists or truth values")
            if varies and together:
                raise Declined("picks channels together with positions")
            found.append(values % x.shape[dim] if varies else torch.zeros_like(values[:1]))
        elif isinstance(item, bool) or not isinstance(item, (int, slice, type(None))):
            raise Declined("has an index of an unknown kind")
        elif item is None or varies:
            found.append(item)
        else:
            found.append(slice(None) if isinstance(item, slice) else 0)
        dim += used
    return found


def picked(site: Site, x: Channels, index: Any) -> Channels:
    """``x[index]`` where the index holds tensors or lists."""
    found = tuple(picks(site, x, index))
    label, path = x.label[found], x.path[found]
    if label.dim() != len(site.shape):
        raise Declined("has an index of an unknown kind")
    return Channels(site.shape, label, path).then(site.key).collapsed()


@rule(torch.Tensor.__setitem__)
def assign(site: Site) -> Value:
    """``x[index] = y``, every channel of ``x`` being written to alike: the channels of ``y`` and ``x`` are one."""
    target, index, source = (site.argument(i, name) for i, name in enumerate(("self", "key", "value")))
    if site.weight(target) is not None:
        raise Declined("changes a parameter or buffer")
    x = site.channels(target)
    if isinstance(source, fx.Node):
        y = site.channels(source)
    else:
        y = Channels.fixed((), ())
        if isinstance(index, fx.Node) and is_mask(index) and index.meta["shape"] == x.shape:
            return combine(site, [target, index])
    items = _items_by_axis(index, len(x.shape))
    if any(isinstance(i, fx.Node) and len(i.meta["shape"]) != 1 and not is_mask(i) for i in items):
        raise Declined("assigns to positions in a tensor that may be a mask or a table")
    wide = Channels.fixed(x.shape, same=x.same)
    found = picks(site, wide, index)
    lands = _landing(found, len(x.shape))
    rank = torch.zeros([1] * len(x.shape))[tuple(found)].dim()
    y = lifted(y, rank - len(y.shape)) if len(y.shape) <= rank else _lowered(y, rank)
    back = {slot: dim for dim, slot in lands.items()}
    if any(d not in back for d in y.varying):
        raise Declined("assigns channels along an axis that is indexed")
    channels = {*x.varying, *(back[d] for d in y.varying)}
    if any(not _whole(items[d], x.shape[d]) for d in channels):
        raise Declined("assigns to a part of the channels")
    order = [lands.get(d) for d in range(len(x.shape))]
    kept = [slot for slot in order if slot is not None]
    kept += [slot for slot in range(rank) if slot not in kept]

    def moved(t: Tensor) -> Tensor:
        return t.permute(kept).reshape([1 if slot is None else t.shape[slot] for slot in order])

    shape = tuple(1 if slot is None else y.shape[slot] for slot in order)
    same = {d for d, slot in enumerate(order) if slot is None or slot in y.same or y.shape[slot] == 1}
    return met(site, x.shape, [x, Channels(shape, moved(y.label), moved(y.path), frozenset(same))])


def _items_by_axis(index: Any, rank: int) -> list[Any]:
    """The item that each axis is indexed by."""
    return [item for item in spelled_out(index, rank) for _ in range(axes_used(item))]


def _whole(item: Any, size: int) -> bool:
    return isinstance(item, slice) and range(size)[item] == range(size)


def _landing(found: list[Any], rank: int) -> dict[int, int]:
    """Axis -> axis of the result, for the axes that an index leaves whole."""
    lands = {}
    for dim in range(rank):
        probe = torch.zeros([2 if d == dim else 1 for d in range(rank)])[tuple(found)]
        if 2 in probe.shape:
            lands[dim] = probe.shape.index(2)
    return lands


def _lowered(y: Channels, rank: int) -> Channels:
    """Without leading axes of size 1."""
    extra = len(y.shape) - rank
    gone = list(range(extra))
    same = frozenset(d - extra for d in y.same if d >= extra)
    return replace(y, shape=y.shape[extra:], label=y.label.squeeze(gone), path=y.path.squeeze(gone), same=same)


def _beside(site: Site, arguments: list[Any], dim: int, shape: tuple[int, ...]) -> Channels:
    """Element by element along all axes but ``dim``, along which positions are picked or added to."""
    values = [site.channels(argument) for argument in arguments]
    rank = len(shape)
    for value in values:
        if len(value.shape) != rank or dim in value.varying:
            raise Declined("picks channels by a tensor")
        if any(value.shape[d] not in (1, shape[d]) for d in value.varying):
            raise Declined("picks some of the channels")
    varying = {d for value in values for d in value.varying}
    if any(value.shape[d] not in (1, shape[d]) for value in values for d in varying):
        raise Declined("picks some of the channels")
    return met(site, shape, values)


@rule("gather take_along_dim")
def gather(site: Site) -> Value:
    """``y[..., i, ...] = x[..., index[..., i, ...], ...]`` along ``dim``; which position is picked may differ by channel."""
    swapped = site.node.target in _GATHER
    dim = site.argument(1 if swapped else 2, "dim")
    index = site.argument(2 if swapped else 1, "index", site.node.kwargs.get("indices"))
    if not isinstance(dim, int):
        raise Declined("picks from a flattened tensor")
    return _beside(site, [site.argument(0, "input"), index], dim % len(site.shape), site.shape)


_GATHER = functions("gather")


@rule("index_select", moves=True)
def index_select(site: Site) -> Value:
    """``index_select(x, dim, index)``; along the channels only where ``index`` is a buffer of the model."""
    x = site.channels(site.argument(0, "input"))
    dim, index = int(site.argument(1, "dim")) % len(x.shape), site.constant(site.argument(2, "index"))
    if index is not None and dim in x.varying:
        return replace(
            x, shape=site.shape, label=x.label.index_select(dim, index), path=x.path.index_select(dim, index)
        )
    site.freeze(site.argument(2, "index"), "is used as an index")
    if dim in x.varying:
        raise Declined("picks channels by a tensor")
    return x.then(site.key, site.shape)


@rule("index_add index_copy index_fill")
def index_add(site: Site) -> Value:
    """``index_add(x, dim, index, y)``: ``y`` lands on the positions of ``x`` along ``dim`` that the index names."""
    site.freeze(site.argument(2, "index"), "is used as an index")
    y = site.argument(3, "source", site.node.kwargs.get("value"))
    arguments = [site.argument(0, "input"), *([y] if isinstance(y, fx.Node) and y.meta["shape"] else [])]
    return _beside(site, arguments, int(site.argument(1, "dim")) % len(site.shape), site.shape)


@rule("scatter scatter_add scatter_reduce")
def scatter(site: Site) -> Value:
    """``scatter(x, dim, index, y)``: like ``index_add``, with an index of the rank of ``x``."""
    y = site.argument(3, "src")
    arguments = [site.argument(0, "input"), site.argument(2, "index"), *([y] if isinstance(y, fx.Node) else [])]
    return _beside(site, arguments, int(site.argument(1, "dim")) % len(site.shape), site.shape)
