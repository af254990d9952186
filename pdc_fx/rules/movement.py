"""Data movement: executed on the labels themselves.

A view, a slice or a concat moves values without changing them, so the label at a position of the result is the label at the
position it came from: the torch function is run on the label tensor. Axes along which the channel does not vary stay at
size 1 unless the operation mixes them with the channel axis (a flatten), in which case the label is first written out
along them and each of the places gets a path of its own.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from pdc_fx.rules.base import Declined, Site, Value, beside_first
from pdc_fx.rules.channels import Channels, Shape, mix
from pdc_fx.rules.literals import Edit, gathered, literal
from pdc_fx.rules.registry import getter, rule


@rule(operator.getitem)
def item_of_results(site: Site) -> Value:
    """One of several results."""
    value, index = site.value(site.node.args[0]), site.node.args[1]
    if not isinstance(value, (tuple, list)) or not isinstance(index, int):
        return Channels.fixed(site.node.meta["shape"]) if "shape" in site.node.meta else None
    result: Value = value[index]
    return result


def segments(before: Shape, after: Shape) -> list[tuple[list[int], list[int]]]:
    """Split a reshape into the smallest runs of axes with equal products.

    >>> segments((2, 8, 3, 4), (2, 96))
    [([0], [0]), ([1, 2, 3], [1])]
    >>> segments((2, 12, 5), (2, 3, 4, 5))
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    runs: list[tuple[list[int], list[int]]] = []
    i = j = 0
    while i < len(before) or j < len(after):
        ins, outs, a, b = [], [], 1, 1
        if i < len(before):
            ins, a, i = [i], before[i], i + 1
        if j < len(after) and (a != 1 or after[j] == 1 or not ins):
            outs, b, j = [j], after[j], j + 1
        while a != b:
            if a < b and i < len(before):
                ins.append(i)
                a, i = a * before[i], i + 1
            elif j < len(after):
                outs.append(j)
                b, j = b * after[j], j + 1
            else:
                raise Declined(f"reshapes {before} to {after}, which do not hold the same number of elements")
        runs.append((ins, outs))
    return runs


def reshaped(x: Channels, shape: Shape) -> Channels:
    """The channels of ``x`` seen through a reshape to ``shape``."""
    if 0 in x.shape:  # no boxes, say: the channels lie as they would with one
        if not x.label.numel() or prod(d or 1 for d in x.shape) != prod(d or 1 for d in shape):
            raise Declined("works on an empty tensor")
        full = reshaped(replace(x, shape=tuple(d or 1 for d in x.shape)), tuple(d or 1 for d in shape))
        return replace(full, shape=shape)
    mixed: list[int] = []
    sizes: list[int] = [1] * len(shape)
    for ins, outs in segments(x.shape, shape):
        if set(ins) & set(x.varying):
            mixed.extend(ins)
            for d in outs:
                sizes[d] = shape[d]
    wide = x.expanded(mixed)
    return Channels(shape, wide.label.reshape(sizes), wide.path.reshape(sizes)).collapsed()


@rule("view reshape flatten unflatten squeeze unsqueeze view_as reshape_as ravel", moves=True)
def reshape(site: Site) -> Value:
    """Anything that keeps the order of the elements."""
    x = site.channels(site.argument(0, "input"))
    if (
        "shape" not in site.node.meta
        or prod(x.shape) != prod(site.shape)
        or isinstance(site.argument(1, "dtype"), torch.dtype)
    ):
        raise Declined("reinterprets its elements")
    return reshaped(x, site.shape).then(site.key)


@literal("view reshape")
def edit_sizes(edit: Edit) -> None:
    """``view(x, *sizes)`` or ``view(x, sizes)``; an entry of -1 finds its size by itself."""
    nested = isinstance(edit.get(1, "shape"), (tuple, list))
    sizes = list(edit.get(1, "shape") if nested else edit.call.args[1:])
    for dim, size in edit.sizes.items():
        sizes[dim] = size if sizes[dim] != -1 else -1
    if nested:
        edit.set(1, "shape", tuple(sizes))
    else:
        for dim, size in enumerate(sizes):
            edit.set(1 + dim, "", size)


@rule("permute transpose t swapaxes swapdims movedim moveaxis adjoint", getter("T"), getter("mT"), moves=True)
def permute(site: Site) -> Value:
    """The order of the axes is read off by running the function on a tensor whose strides tell its axes apart."""
    weight = site.weight(site.argument(0, "input"))
    x = site.channels(site.argument(0, "input")) if weight is None else Channels.fixed(weight.shape)
    probe = torch.empty([d + 2 for d in range(len(x.shape))], device="meta")
    (rest, named), target = beside_first(site.node), site.node.target
    moved = target(probe, *rest, **named) if callable(target) else probe
    order = [size - 2 for size in moved.shape]
    if weight is not None:
        return weight.permuted(order)
    return Channels(site.shape, x.label.permute(order), x.path.permute(order)).then(site.key)


@rule("cat concat concatenate")
def cat(site: Site) -> Value:
    """``cat(tensors, dim)``."""
    nodes = site.argument(0, "tensors")
    dim = int(site.argument(1, "dim", 0)) % len(site.shape)
    varying = {d for v in map(site.value, nodes) if isinstance(v, Channels) for d in v.varying}
    return joined(site, [site.meeting(node, varying, {dim}) for node in nodes], dim)


@rule("stack")
def stack(site: Site) -> Value:
    """``stack(tensors, dim)``: a concat of unsqueezed tensors."""
    parts = [site.channels(node) for node in site.argument(0, "tensors")]
    dim = int(site.argument(1, "dim", 0)) % len(site.shape)
    return joined(site, [reshaped(p, (*p.shape[:dim], 1, *p.shape[dim:])) for p in parts], dim)


@rule("hstack vstack dstack")
def stack_along(site: Site) -> Value:
    """A concat along the second, first or third axis."""
    name = str(getattr(site.node.target, "__name__", ""))
    dim = {"hstack": 1, "vstack": 0, "dstack": 2}[name]
    parts = [site.channels(node) for node in site.argument(0, "tensors")]
    if any(len(part.shape) < max(dim + 1, 2) for part in parts):
        raise Declined("adds axes to what it concatenates")
    return joined(site, parts, dim)


def joined(site: Site, parts: list[Channels], dim: int) -> Channels:
    """Parts laid behind each other along ``dim``; what is no channel (zeros) stays none, as its size is made elsewhere.

    Empty parts add nothing.
    """
    parts = [part for part in parts if prod(part.shape)]
    if not parts:
        return Channels.fixed(site.shape)
    across = {d for p in parts for d in p.varying if d != dim}
    if (
        not across
        and not any(dim in p.varying for p in parts)
        and len({int(p.label.reshape(-1)[0]) for p in parts}) == 1
    ):
        # joined along an axis in which no part varies: space or batch
        return Channels(site.shape, parts[0].label, mix(*(p.path for p in parts), site.key))
    wide = [part.expanded([dim, *across]) for part in parts]
    return Channels(
        site.shape, torch.cat([p.label for p in wide], dim), torch.cat([p.path for p in wide], dim)
    ).collapsed()


@rule("pad constant_pad_nd")
def pad(site: Site) -> Value:
    """``pad(x, (left of the last axis, right of it, left of the one before, ...))``."""
    x = site.channels(site.argument(0, "input"))
    widths: Sequence[int] = site.argument(1, "pad")
    rank = len(x.shape)
    padded = {rank - 1 - i // 2 for i, width in enumerate(widths) if width}
    result = x.then(site.key, site.shape) if padded - set(x.varying) else replace(x, shape=site.shape)
    for dim in sorted(padded & set(x.varying)):
        if site.argument(2, "mode", "constant") != "constant":
            raise Declined("pads along the channels with copies of them")
        left, right = widths[2 * (rank - 1 - dim)], widths[2 * (rank - 1 - dim) + 1]
        if left < 0 or right < 0:
            raise Declined("crops the channels with a negative padding")
        result = _padded(site, result, dim, left, right)
    return replace(result, shape=site.shape)


def _padded(site: Site, x: Channels, dim: int, left: int, right: int) -> Channels:
    def border(size: int) -> tuple[Tensor, Tensor]:
        sizes = [*x.label.shape[:dim], size, *x.label.shape[dim + 1 :]]
        label = site.flow.mint(prod(sizes), site.module).reshape(sizes)
        return label, mix(torch.zeros_like(label), site.key)

    (before, path_before), (after, path_after) = border(left), border(right)
    return Channels(
        site.shape, torch.cat([before, x.label, after], dim), torch.cat([path_before, x.path, path_after], dim)
    )


@literal("pad constant_pad_nd", ordered=True)
def edit_padding(edit: Edit) -> None:
    """Zeros follow the channels that they were added to."""
    widths = list(edit.get(1, "pad"))
    rank = len(edit.source)
    for dim, mask in enumerate(edit.kept_out):
        at = 2 * (rank - 1 - dim)
        if mask is not None and at < len(widths):
            widths[at : at + 2] = [int(mask[: widths[at]].sum()), int(mask[len(mask) - widths[at + 1] :].sum())]
    edit.set(1, "pad", tuple(widths))


@rule("chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split unbind hsplit vsplit dsplit")
def split(site: Site) -> Value:
    """Run on the labels where the axis carries channels; otherwise every part has all of them."""
    x = site.channels(site.argument(0, "input"))
    parts = sorted((u for u in site.node.users if u.target is operator.getitem), key=_place)
    shapes = [u.meta["shape"] for u in parts]
    removes = any(len(s) != len(x.shape) for s in shapes)
    dim = _split_dim(site.node.target, site.argument, len(x.shape))
    if dim not in x.varying:
        label, path = (t.squeeze(dim) if removes else t for t in (x.label, x.path))
        return [Channels(s, label, mix(path, site.key, i)) for i, s in enumerate(shapes)]
    offsets = [0]
    for s in shapes:
        offsets.append(offsets[-1] + (1 if removes else s[dim]))
    found = []
    for shape, start in zip(shapes, offsets[:-1], strict=True):
        label, path = (t.narrow(dim, start, 1 if removes else shape[dim]) for t in (x.label, x.path))
        if removes:
            label, path = label.squeeze(dim), path.squeeze(dim)
        found.append(Channels(shape, label, path).collapsed())
    return found


@literal("chunk split split_with_sizes tensor_split unsafe_chunk unsafe_split hsplit vsplit dsplit", ordered=True)
def edit_parts(edit: Edit) -> None:
    """Any kind of split along the channels becomes a split by the sizes that remain."""
    dim = _split_dim(edit.call.target, edit.get, len(edit.source))
    kept = edit.kept_in[dim]
    if kept is None or bool(kept.all()):
        return
    sizes = [int(part.sum()) for part in torch.split(kept, [shape[dim] for shape in edit.parts])]
    edit.node.op, edit.node.target = "call_function", torch.split
    edit.node.args, edit.node.kwargs = (edit.node.all_input_nodes[0], sizes, dim), {}


def _place(item: fx.Node) -> int:
    index = item.args[1]
    assert isinstance(index, int)
    return index


def _split_dim(target: Any, argument: Callable[..., Any], rank: int) -> int:
    """The axis that a call splits, by its arguments: the sizes of the parts do not tell it where one part holds everything."""
    name = str(getattr(target, "__name__", ""))
    if name in ("hsplit", "vsplit", "dsplit"):
        return {"hsplit": min(1, rank - 1), "vsplit": 0, "dsplit": 2}[name]
    return int(argument(1 if name == "unbind" else 2, "dim", 0)) % rank


@literal("unflatten")
def edit_unflatten(edit: Edit) -> None:
    """``unflatten(x, dim, sizes)``: the sizes of some axes of the result."""
    dim, sizes = int(edit.get(1, "dim")) % len(edit.source), list(edit.get(2, "sizes"))
    for at, size in edit.sizes.items():
        if 0 <= at - dim < len(sizes) and sizes[at - dim] != -1:
            sizes[at - dim] = size
    edit.set(2, "sizes", tuple(sizes))


@literal("expand broadcast_to")
def edit_expand(edit: Edit) -> None:
    """As for a view: an entry of -1 keeps the size."""
    edit_sizes(edit)


@rule("expand expand_as broadcast_to", traits=("repeats",))
def expand(site: Site) -> Value:
    """Axes of size 1 are repeated: the channels are where they were. ``expand_as(other)`` follows the channels of ``other``."""
    x, other = site.channels(site.argument(0, "input")), site.value(site.argument(1, "other"))
    ones = (1,) * (len(site.shape) - len(x.shape))
    was = ones + x.shape
    same = (
        {d for d, size in enumerate(site.shape) if was[d] != size}
        | {d + len(ones) for d in x.same}
        | set(range(len(ones)))
    )
    label, path = x.label.reshape(ones + x.label.shape), x.path.reshape(ones + x.path.shape)
    if isinstance(other, Channels) and not x.varying and other.varying and same.issuperset(other.varying):
        site.flow.freeze(x.label, "is shared by channels that vary in another direction", site.module)
        label, path = other.label, path.expand(other.label.shape)
    return Channels(site.shape, label, path, frozenset(same))


@rule("roll flip fliplr flipud", moves=True)
def shuffle_along(site: Site) -> Value:
    """Positions change places along some axes; run on the labels where these carry channels."""
    x = site.channels(site.argument(0, "input"))
    target = site.node.target
    if not x.varying or not callable(target):
        return x.then(site.key)
    if getattr(target, "__name__", "") == "roll" and site.argument(2, "dims") is None:
        raise Declined("rolls the flattened tensor")
    rest, named = beside_first(site.node)
    return Channels(site.shape, target(x.label, *rest, **named), target(x.path, *rest, **named)).then(site.key)


gathered("roll index_select channel_shuffle native_channel_shuffle")
