"""Movements that cannot keep their written-out form, as gathers.

A channel shuffle ``x.view(n, g, c / g, h, w).transpose(1, 2).reshape(n, c, h, w)`` spreads the channels over two axes; when some of
them go, what remains is no block there. But a chain of functions that only move values is one gather,

    result = source.index_select(dim, index),

and that can be written for any subset of the channels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from pdc_fx.ir import Integers
from pdc_fx.passes.dependency import spread
from pdc_fx.rules import Channels, Flow
from pdc_fx.rules.base import argument_of, beside_first
from pdc_fx.rules.registry import moves


@dataclass(frozen=True)
class Gather:
    """``node``, the end of a chain of movements from ``source``, takes the positions ``index`` along ``dim``."""

    source: fx.Node
    node: fx.Node
    dim: int
    index: Tensor


def moved_by(chain: list[fx.Node], varying: Collection[int]) -> Gather | None:
    """The gather that a chain of recorded movements amounts to, or None: found by running it on the positions themselves.

    A chain that ends where it began is one along any axis: along one of ``varying`` then, where the channels lie.
    """
    source = _source(chain[0])
    assert isinstance(source, fx.Node)
    shape = source.meta["shape"]
    before = torch.arange(prod(shape)).reshape(shape)
    after = before
    for node in chain:
        rest, named = fx.node.map_arg(beside_first(node), lambda n: n.meta.get("constant"))
        assert callable(node.target)
        after = node.target(after, *rest, **named)
    if after.dim() != before.dim() or not after.numel():
        return None
    for dim in sorted(range(before.dim()), key=lambda d: d not in varying):
        others = [size for d, size in enumerate(after.shape) if d != dim]
        if others != [size for d, size in enumerate(shape) if d != dim]:
            continue
        first = after.movedim(dim, 0).reshape(after.shape[dim], -1)[:, 0]
        index = first // prod(shape[dim + 1 :]) % shape[dim]
        if torch.equal(after, before.index_select(dim, index)):
            return Gather(source, chain[-1], dim, index)
    return None


def gathers(
    flow: Flow, unit: Integers, users: Mapping[fx.Node, set[fx.Node]]
) -> tuple[frozenset[fx.Node], list[Gather]]:
    """Chains at which channels are spread over several axes in between, as gathers; and the nodes in between.

    Args:
        users: a recorded node -> the nodes that use it or its sizes in the program to be edited, as recorded nodes.
    """
    ragged = {node for node, value in flow.values.items() if len(spread(value, unit))}
    fine: set[fx.Node] = set()
    for node in flow.recording.graph.nodes:  # from the entries on
        source = _source(node)
        if node in ragged and moves(node.target) and (source in fine or source not in ragged):
            fine.add(node)
    found: list[Gather] = []
    for node in reversed(list(flow.recording.graph.nodes)):  # and from the ends back
        if node not in fine:
            continue
        ends = [user for user in users[node] if user not in ragged]
        chains = [gather for end in ends if moves(end.target) and (gather := _gather(flow, end, ragged)) is not None]
        if len(chains) < len(ends) or not all(user in fine for user in users[node] if user in ragged):
            fine.discard(node)
            continue
        found.extend(chains)
    # behind a node that is not fine all channels stay, and so do the movements as they are written
    return frozenset(fine), [gather for gather in found if fine.issuperset(_chain(gather.node, ragged)[:-1])]


def _gather(flow: Flow, end: fx.Node, ragged: set[fx.Node]) -> Gather | None:
    chain = _chain(end, ragged)
    source = flow.values[_source(chain[0])]
    return moved_by(chain, source.varying) if isinstance(source, Channels) else None


def _source(node: fx.Node) -> Any:
    return argument_of(node, 0, "input")


def _chain(end: fx.Node, ragged: set[fx.Node]) -> list[fx.Node]:
    """The movements that lead to ``end``, from the last value whose channels lie along one axis."""
    chain = [end]
    while (source := _source(chain[0])) in ragged:
        assert isinstance(source, fx.Node)
        chain.insert(0, source)
    return chain
