"""Operations that give a channel several places on its axis, and those that bring its places together again.

``pixel_shuffle(r)`` makes one channel out of ``r * r``, ``unfold`` gives each a place per position of its kernel, ``repeat`` a place per
copy. Such channels are taken in blocks: the places of one channel live or go together, told apart by their path, and no size
that is written into the program has to change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from pdc_fx.rules.base import Declined, Site, Value
from pdc_fx.rules.channels import FIXED, Channels, Shape, mix
from pdc_fx.rules.elementwise import lifted
from pdc_fx.rules.registry import rule


def spread(site: Site, label: Tensor, path: Tensor, dim: int, places: int) -> tuple[Tensor, Tensor]:
    """Give the channels along ``dim`` a place each along a new axis behind it.

    The places get labels of their own, bundled with that of the channel, so that what meets one place can be told from
    what meets another.
    """
    label, path = label.unsqueeze(dim + 1), path.unsqueeze(dim + 1)
    place = torch.arange(places).reshape([places if d == dim + 1 else 1 for d in range(label.dim())])
    path = mix(path, place, site.key)
    if places == 1:
        return label, path
    minted = site.flow.mint(label.numel() * places, site.module).reshape(path.shape)
    minted = torch.where(label == FIXED, FIXED, minted)
    rows = torch.cat([label, minted], dim + 1).movedim(dim + 1, -1).reshape(-1, places + 1)
    site.flow.spread(rows[rows[:, 0] != FIXED], site.module)
    return minted, path


def in_a_row(site: Site, label: Tensor, path: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """One-dimensional channels, each at ``places`` places in a row."""
    label, path = spread(site, label, path, 0, places)
    return label.flatten(), path.flatten()


def brought_together(site: Site, label: Tensor, path: Tensor, places: int) -> tuple[Tensor, Tensor]:
    """One-dimensional channels, each ``places`` of which become one."""
    return site.bundled(label.reshape(-1, places), path.reshape(-1, places))


@rule("pixel_shuffle")
def pixel_shuffle(site: Site) -> Value:
    """``(..., C * r * r, H, W) -> (..., C, H * r, W * r)``."""
    axis = len(site.shape) - 3
    label, path = site.along(site.channels(site.argument(0, "input")), axis)
    label, path = brought_together(site, label, path, len(label) // site.shape[axis])
    return site.laid(label, path, axis).then(site.key)


@rule("pixel_unshuffle")
def pixel_unshuffle(site: Site) -> Value:
    """``(..., C, H * r, W * r) -> (..., C * r * r, H, W)``."""
    axis = len(site.shape) - 3
    label, path = site.along(site.channels(site.argument(0, "input")), axis)
    return site.laid(*in_a_row(site, label, path, site.shape[axis] // len(label)), axis)


@rule("channel_shuffle native_channel_shuffle", moves=True)
def channel_shuffle(site: Site) -> Value:
    """``(N, g * n, *space) -> (N, n * g, *space)``: the channels in another order."""
    label, path = site.along(site.channels(site.argument(0, "input")), 1)
    groups = int(site.argument(1, "groups"))
    label, path = (t.reshape(groups, -1).T.reshape(-1) for t in (label, path))
    return site.laid(label, path, 1).then(site.key)


@rule(torch.nn.functional.unfold)
def sliding_blocks(site: Site) -> Value:
    """``(N, C, H, W) -> (N, C * k * k, blocks)``."""
    axis = len(site.shape) - 2
    label, path = site.along(site.channels(site.argument(0, "input")), axis)
    return site.laid(*in_a_row(site, label, path, site.shape[axis] // len(label)), axis)


@rule(torch.nn.functional.fold)
def folded_blocks(site: Site) -> Value:
    """``(N, C * k * k, blocks) -> (N, C, H, W)``."""
    axis = len(site.shape) - 3
    label, path = site.along(site.channels(site.argument(0, "input")), axis)
    label, path = brought_together(site, label, path, len(label) // site.shape[axis])
    return site.laid(label, path, axis).then(site.key)


@rule(torch.Tensor.unfold)
def windows(site: Site) -> Value:
    """``x.unfold(dim, size, step)``: windows along ``dim`` go to a new last axis."""
    x = site.channels(site.argument(0, "input"))
    if int(site.argument(1, "dimension")) % len(x.shape) in x.varying:
        raise Declined("slides over the channels")
    return Channels(site.shape, x.label.unsqueeze(-1), x.path.unsqueeze(-1)).then(site.key)


@rule("repeat tile")
def repeat(site: Site) -> Value:
    """``x.repeat(*sizes)``: along the channels each copy is a place of its own."""
    x = site.channels(site.argument(0, "input"))
    x = lifted(x, len(site.shape) - len(x.shape))
    label, path = x.label, x.path
    for dim in x.varying:
        if (copies := site.shape[dim] // x.shape[dim]) > 1:
            label, path = (
                t.transpose(dim, dim + 1).flatten(dim, dim + 1) for t in spread(site, label, path, dim, copies)
            )
    # a number of copies is written into the program and does not follow channels met later: they are not ``same``
    return Channels(site.shape, label, mix(path, site.key))


@rule("repeat_interleave")
def repeat_interleave(site: Site) -> Value:
    """``x.repeat_interleave(times, dim)``: along the channels each copy is a place of its own."""
    x = site.channels(site.argument(0, "input"))
    times, dim = site.argument(1, "repeats"), site.argument(2, "dim")
    if not isinstance(times, int) or not isinstance(dim, int):
        raise Declined("repeats a flattened tensor, or by numbers that are computed")
    dim %= len(x.shape)
    label, path = x.label, x.path
    if dim in x.varying:
        label, path = (t.flatten(dim, dim + 1) for t in spread(site, label, path, dim, times))
    return Channels(site.shape, label, mix(path, site.key))


@rule("broadcast_tensors")
def broadcast_tensors(site: Site) -> Value:
    """Each tensor is expanded to the shape of all."""
    nodes = [node for node in site.node.args if isinstance(node, fx.Node)]
    shape: Shape = next(iter(site.node.users)).meta["shape"]
    results = []
    for node in nodes:
        x = lifted(site.channels(node), len(shape) - len(node.meta["shape"]))
        same = {d for d in range(len(shape)) if x.size(d) == 1}
        results.append(Channels(shape, x.label, x.path, frozenset(same)))
    return results


@rule("tril triu")
def triangle(site: Site) -> Value:
    """Zeros on one side of the diagonal of the last two axes."""
    x = site.channels(site.argument(0, "input"))
    if any(d >= len(x.shape) - 2 for d in x.varying):
        raise Declined("sets some of the channels to zero")
    return x.then(site.key, site.shape)


@rule("rot90")
def rotated(site: Site) -> Value:
    """``rot90(x, k, (first, second))`` in a plane without channels."""
    x = site.channels(site.argument(0, "input"))
    if {d % len(x.shape) for d in site.argument(2, "dims", (0, 1))} & set(x.varying):
        raise Declined("turns channels into positions")
    return x.then(site.key, site.shape)


@rule("glu")
def gated_halves(site: Site) -> Value:
    """``a * sigmoid(b)`` for the halves ``a, b`` of ``x``: their i-th channels are one channel with a place in each."""
    x = site.channels(site.argument(0, "input"))
    dim: Any = int(site.argument(1, "dim", -1)) % len(x.shape)
    if dim not in x.varying:
        return x.then(site.key, site.shape)
    halves = [torch.stack(t.chunk(2, dim), -1) for t in (x.label, x.path)]
    label, path = site.bundled(*(t.reshape(-1, 2) for t in halves))
    sizes = halves[0].shape[:-1]
    return Channels(site.shape, label.reshape(sizes), path.reshape(sizes)).then(site.key)
