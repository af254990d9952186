"""The network as both pages show it: a graph coloured by channel group, the groups, and what stays and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdc_fx.export.pages.drawing import boxes, curves, hues, title_of
from pdc_fx.export.pages.layout import NODE_HEIGHT, NODE_WIDTH, Layout, layout
from pdc_fx.export.pages.model_graph import ModelGraph
from pdc_fx.ir import ChannelGroup
from pdc_fx.words import number, percent, quantity, told_apart

ROLES = ("producer", "channelwise", "consumer")


@dataclass(frozen=True)
class GroupRow:
    """A group in the table.

    Attributes:
        name: with a number where several groups are called so.
        share: of the model's multiply-accumulates, those that grow with it, 0 to 1.
        bar: its length in percent of the largest.
    """

    number: int
    name: str
    group: ChannelGroup
    hue: int
    stream: bool
    members: str
    macs: int
    params: int
    share: float
    bar: float
    constraints: tuple[str, ...]


@dataclass(frozen=True)
class FrozenRow:
    """A reason, the channels that stay for it, and the modules that make them."""

    reason: str
    channels: int
    modules: tuple[tuple[str, int], ...]
    numbers: tuple[int, ...]


def network_values(graph: ModelGraph, widths: Mapping[int, int] | None = None) -> dict[str, Any]:
    """What the templates of a page read of the network, its ``data`` for the scripts among it.

    Args:
        widths: the groups' widths by their number, where channels have been merged.
    """
    placed = layout([node.module for node in graph.nodes], graph.edges)
    data = page_data(graph, placed, group_rows(graph))
    if widths is not None:
        data = {**data, "groups": [{**group, "kept": widths[i]} for i, group in enumerate(data["groups"])]}
    return {
        "data": data,
        "inputs": " and ".join("×".join(map(str, shape)) or "a number" for shape, _ in graph.groups.inputs),
        "boxes": boxes(graph, placed, widths),
        "curves": curves(graph, placed),
        "placed": placed,
        "title_of": title_of,
        "size": {"width": NODE_WIDTH, "height": NODE_HEIGHT},
        "frozen": frozen_rows(graph),
        "unreached": graph.groups.unreached,
    }


def group_rows(graph: ModelGraph) -> list[GroupRow]:
    """The groups in the order in which they are made."""
    macs, streams, hue = max(graph.groups.macs(), 1), set(graph.streams), hues(graph)
    most = max((stake for stake, _ in graph.stakes), default=1) or 1
    names = told_apart([group.name or "(the model itself)" for group in graph.groups.groups])
    return [
        GroupRow(
            index,
            names[index],
            group,
            hue[index],
            index in streams,
            members_of(group),
            *graph.stakes[index],
            graph.stakes[index][0] / macs,
            round(100 * graph.stakes[index][0] / most, 2),
            tuple(constraints(graph, index)),
        )
        for index, group in enumerate(graph.groups.groups)
    ]


def members_of(group: ChannelGroup) -> str:
    """How many tensors make the channels, how many read them, and how many there are in all.

    >>> members_of(ChannelGroup("a", 8, ()))
    '0 producers, 0 readers, 0 tensors'
    """
    count = Counter(member.role for member in group.members)
    tensors = len({member.tensor for member in group.members})
    return ", ".join(
        [number(count["producer"], "producer"), number(count["consumer"], "reader"), number(tensors, "tensor")]
    )


def constraints(graph: ModelGraph, index: int) -> list[str]:
    """What a merge in this group has to respect, in words."""
    group, found = graph.groups.groups[index], []
    producers = len({member.tensor for member in group.producers})
    if index in graph.joins:
        names = Counter(graph.nodes[n].name.strip("_") for n in graph.joins[index])
        where = " and ".join(f"{n} × {name}" for name, n in names.items())
        found.append(f"one clustering for {number(producers, 'layer')}, joined by {where}")
    elif producers > 1:
        found.append(f"one clustering for {number(producers, 'layer')}")
    if group.balance is not None:
        others = len(graph.groups.balanced[group.balance]) - 1
        together = f", together with {number(others, 'other group')}" if others else ""
        found.append(f"clusters of one size (a normalisation averages over them){together}")
    places = max((member.positions.shape[1] for member in group.members), default=1)
    if places > 1:
        found.append(f"up to {places:,} entries per channel go together")
    return found


def frozen_rows(graph: ModelGraph) -> list[FrozenRow]:
    """What stays by reason, whatever the place, most channels first."""
    channels: Counter[str] = Counter()
    modules: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in graph.groups.frozen:
        reason = general(entry.reason)
        channels[reason] += entry.channels
        modules[reason][entry.module] += entry.channels
    return [
        FrozenRow(
            reason,
            count,
            tuple(modules[reason].items()),
            tuple(i for i, text in enumerate(graph.reasons) if general(text) == reason),
        )
        for reason, count in channels.most_common()
    ]


def general(reason: str) -> str:
    """A reason without the place at which it arose.

    >>> general("is sorted (at 'head.0')"), general("is an output of the model")
    ('is sorted', 'is an output of the model')
    """
    return reason.partition(" (at '")[0]


def page_data(graph: ModelGraph, placed: Layout, rows: Sequence[GroupRow]) -> Mapping[str, Any]:
    """What the page's script shows of a node or a group.

    Roles and tensors are numbers into ``roles`` and ``tensors``, since the name of a tensor is there once for each group it belongs to:
    in a DenseNet dozens of times.
    """
    shapes = graph.groups.shapes
    number = {tensor: index for index, tensor in enumerate(shapes)}
    return {
        "roles": ROLES,
        "tensors": [[tensor, "×".join(map(str, shape)) or "1"] for tensor, shape in shapes.items()],
        "size": [placed.width, placed.height, NODE_WIDTH, NODE_HEIGHT],
        "reasons": graph.reasons,
        "nodes": [
            {
                "name": node.name,
                "function": node.function,
                "module": node.module,
                "source": node.source,
                "shape": "×".join(map(str, node.shape)) if node.shape is not None else "",
                "macs": quantity(node.macs) if node.macs else "",
                "tensors": [number[tensor] for tensor in node.tensors],
                "groups": list(node.groups.items()),
                "frozen": list(node.frozen.items()),
                "at": [placed.x[index], placed.y[index]],
            }
            for index, node in enumerate(graph.nodes)
        ],
        "groups": [
            {
                "name": row.name,
                "channels": row.group.channels,
                "hue": row.hue,
                "stream": row.stream,
                "macs": quantity(row.macs),
                "params": quantity(row.params),
                "share": percent(row.share),
                "constraints": row.constraints,
                "joins": graph.joins.get(row.number, ()),
                "members": [
                    [ROLES.index(m.role), number[m.tensor], m.dim, int(m.positions.size), shapes[m.tensor][m.dim]]
                    for m in row.group.members
                ],
            }
            for row in rows
        ],
    }
