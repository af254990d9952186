"""Indexing, and assignment to a part of a tensor.

Slices and integers are run on the labels. Which positions a tensor picks is not known to the analysis, only its shape. That is enough away
from the channels, where every channel is picked alike: an index of size 1 stands there in the place of the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from pdc_fx.rules.base import Declined, Site, Value
from pdc_fx.rules.channels import Channels, mix
from pdc_fx.rules.elementwise import combine, lifted, met
from pdc_fx.rules.literals import Edit, literal
from pdc_fx.rules.registry import functions, rule

_TRUTH = functions("eq ne lt le gt ge logical_and logical_or logical_xor logical_not isnan isinf isfinite")
_BITS = functions("bitwise_and bitwise_or bitwise_xor bitwise_not and or xor invert")


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
        if varies and isinstance(item, slice) and _computed(item):
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


def indexed(site: Site, x: Channels, index: Any) -> Channels:
    """``x[index]``. A mere movement of channels, of which the paths stay, leaves all other axes whole."""
    found = tuple(picks(site, x, index))
    label, path = x.label[found], x.path[found]
    if label.dim() != len(site.shape):
        raise Declined("has an index of an unknown kind")
    moves = all(
        isinstance(item, (int, slice)) if dim in x.varying else _whole(item, x.shape[dim])
        for dim, item in enumerate(_items_by_axis(index, len(x.shape)))
    )
    return Channels(site.shape, label, path if moves else mix(path, site.key)).collapsed()


@rule(torch.Tensor.__getitem__, moves=True)
def getitem(site: Site) -> Value:
    """Slices, integers, ``None`` and ``...``; indexing by tensors only away from the channels."""
    return indexed(site, site.channels(site.node.args[0]), site.node.args[1])


@literal(torch.Tensor.__getitem__, ordered=True)
def edit_slices(edit: Edit) -> None:
    """A slice along an axis that shrinks takes those of its positions that remain, which lie at new places."""
    index = edit.get(1, "index")
    items: list[Any] = list(index) if isinstance(index, tuple) else [index]
    dim = 0
    for at, item in enumerate(items):
        if item is None:
            continue
        if item is Ellipsis:
            dim = len(edit.source) - sum(1 for i in items[at + 1 :] if i is not None)
            continue
        kept = edit.kept_in[dim]
        if kept is not None and not bool(kept.all()):
            named = item if isinstance(item, list) else [item]
            taken = range(len(kept))[item] if isinstance(item, slice) else [i % len(kept) for i in named]
            items[at] = _moved(kept, taken, item)
        dim += 1
    edit.set(1, "index", tuple(items) if isinstance(index, tuple) else items[0])


def _moved(kept: Tensor, taken: Sequence[int], item: Any) -> Any:
    """The index of the positions ``taken`` among those that remain.

    >>> _moved(torch.tensor([True, False, True, True]), range(0, 3), slice(0, 3))
    slice(0, 2, 1)
    """
    places = torch.cumsum(kept, 0) - 1
    now = [int(places[i]) for i in taken if bool(kept[i])]
    if isinstance(item, int):
        return now[0]
    step = now[1] - now[0] if len(now) > 1 else 1
    if now and now == list(range(now[0], now[0] + step * len(now), step)) and step > 0:
        return slice(now[0], now[-1] + 1, step)
    return now


@rule("narrow", moves=True)
def narrow(site: Site) -> Value:
    """``narrow(x, dim, start, length)``."""
    x = site.channels(site.argument(0, "input"))
    dim, start, length = (site.argument(i, n) for i, n in enumerate(("dim", "start", "length"), 1))
    if isinstance(start, fx.Node):
        raise Declined("starts at a position that is computed")
    items: list[Any] = [slice(None)] * len(x.shape)
    start = start % x.shape[dim]
    items[dim] = slice(start, start + length)
    return indexed(site, x, tuple(items))


@rule("select", moves=True)
def select(site: Site) -> Value:
    """``select(x, dim, index)``."""
    x = site.channels(site.argument(0, "input"))
    items: list[Any] = [slice(None)] * len(x.shape)
    items[site.argument(1, "dim")] = site.argument(2, "index")
    return indexed(site, x, tuple(items))


@literal("narrow", ordered=True)
def edit_narrow(edit: Edit) -> None:
    """The part lies elsewhere, and is shorter."""
    dim = int(edit.get(1, "dim")) % len(edit.source)
    kept, start = edit.kept_in[dim], int(edit.get(2, "start"))
    if kept is not None:
        start %= len(kept)
        edit.set(2, "start", int(kept[:start].sum()))
        edit.set(3, "length", int(kept[start : start + int(edit.get(3, "length"))].sum()))


@literal("select", ordered=True)
def edit_select(edit: Edit) -> None:
    """The one position lies elsewhere."""
    kept = edit.kept_in[int(edit.get(1, "dim")) % len(edit.source)]
    if kept is not None:
        edit.set(2, "index", int(kept[: int(edit.get(2, "index")) % len(kept)].sum()))


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
    return isinstance(item, slice) and not _computed(item) and range(size)[item] == range(size)


def _computed(item: slice) -> bool:
    """Whether a slice begins, ends or steps as a tensor says."""
    return any(isinstance(part, fx.Node) for part in (item.start, item.stop, item.step))


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


@rule("embedding embedding_bag")
def embedding(site: Site) -> Value:
    """``y[..., c] = table[index[...], c]``, of a bag summed or the largest: the columns of the table make the channels, its rows stay."""
    site.freeze(site.argument(0, "input"), "is used as an index")
    table = site.weight(site.argument(1, "weight"))
    if table is None:
        raise Declined("looks up rows of a table that is computed")
    if site.argument(3, "max_norm") is not None:
        raise Declined("rescales the rows that it looks up")
    site.hold(table, 0, "channelwise")
    return site.laid(*site.produce(table, 1), len(site.shape) - 1)
