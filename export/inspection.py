"""The dependency report as a page: the network as a graph coloured by channel group, its groups, layers, and what stays and why.

The bars are table cells of a given width and the graph is plain SVG: a charting library in each page would weigh ten times
what a page of ResNet-50 does, and its bars could not be sorted, searched or reached with the keyboard as rows of a table can.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdc_fx.export.pages.drawing import boxes, curves, hues, title_of
from pdc_fx.export.pages.layout import NODE_HEIGHT, NODE_WIDTH, Layout, layout
from pdc_fx.export.pages.model_graph import ModelGraph
from pdc_fx.export.pages.page import render
from pdc_fx.ir import ChannelGroup
from pdc_fx.words import number, percent, quantity, told_apart

SCRIPTS = ("page.js", "tables.js", "graph.js")

ROLES = ("producer", "channelwise", "consumer")

_NAMED = 3
"""A sentence names so many modules and counts the others."""


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
class LayerRow:
    """A layer in the chart; widths of its bars in percent of the largest."""

    module: str
    macs: int
    params: int
    macs_bar: float
    params_bar: float
    groups: tuple[int, ...]
    at: int | None


@dataclass(frozen=True)
class FrozenRow:
    """A reason, the channels that stay for it, and the modules that make them."""

    reason: str
    channels: int
    modules: tuple[tuple[str, int], ...]
    numbers: tuple[int, ...]


def render_inspection(graph: ModelGraph, *, title: str, command: str = "") -> str:
    """The page as text.

    Args:
        graph: the result of :func:`pdc_fx.pipeline.inspect`.
        title: name of the model.
        command: how to repeat it; may be empty.

    >>> import torch
    >>> from pdc_fx.pipeline import inspect
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))
    >>> render_inspection(inspect(net, torch.zeros(1, 3, 8, 8)), title="a small network").splitlines()[0]
    '<!DOCTYPE html>'
    """
    groups = graph.groups
    placed = layout([node.module for node in graph.nodes], graph.edges)
    rows = group_rows(graph)
    layers, rest = layer_rows(graph)
    return render(
        "inspect.html.j2",
        scripts=SCRIPTS,
        data=page_data(graph, placed, rows),
        title=title,
        command=command,
        sentences=summary(graph),
        inputs=" and ".join("×".join(map(str, shape)) or "a number" for shape, _ in groups.inputs),
        figures=figures(graph),
        boxes=boxes(graph, placed),
        curves=curves(graph, placed),
        placed=placed,
        title_of=title_of,
        size={"width": NODE_WIDTH, "height": NODE_HEIGHT},
        rows=rows,
        layers=layers,
        rest=rest,
        frozen=frozen_rows(graph),
        unreached=groups.unreached,
    )


def named(modules: Iterable[str]) -> str:
    """Modules in a sentence.

    >>> named(["fc"]), named(["a", "b", "c", "d", "e"])
    ('fc', 'a, b, c and 2 more')
    """
    names = [module or "the model itself" for module in modules]
    shown = ", ".join(names[:_NAMED])
    return f"{shown} and {len(names) - _NAMED} more" if len(names) > _NAMED else shown


def summary(graph: ModelGraph) -> list[str]:
    """What a person should know first, one sentence each."""
    groups = graph.groups
    macs, mergeable = groups.macs(), groups.mergeable_macs()
    share = (
        f"{percent(mergeable / max(macs, 1))} of the multiply-accumulates (MACs) are in layers that can be compressed."
    )
    found = [share if macs else "No layer multiplies."]
    if graph.streams:
        coupled = sum(len(groups.groups[g].producers) for g in graph.streams)
        couple = "couples" if len(graph.streams) == 1 else "couple"
        found.append(
            f"{number(len(graph.streams), 'residual stream')} {couple} the outputs of {number(coupled, 'layer')}."
        )
    rows = frozen_rows(graph)
    if not rows:
        found.append("Nothing is frozen.")
    for row in rows[:2]:
        are = "is" if row.channels == 1 else "are"
        where = named(module for module, _ in row.modules)
        found.append(f"{number(row.channels, 'channel')} of {where} {are} frozen: “{row.reason}”.")
    if len(rows) > 2:
        others = sum(row.channels for row in rows[2:])
        found.append(f"{number(others, 'channel')} more are frozen for {number(len(rows) - 2, 'other reason')}.")
    return found


def figures(graph: ModelGraph) -> list[tuple[str, str, str]]:
    """The figures at the top: a value, what it is, and what it is a part of."""
    groups = graph.groups
    macs = groups.macs()
    frozen = groups.channels - groups.mergeable_channels
    return [
        (percent(groups.mergeable_macs() / macs) if macs else "–", "of MACs compressible", f"of {quantity(macs)} MACs"),
        (f"{groups.mergeable_channels:,}", "channels can merge", f"of {groups.channels:,} channels"),
        (f"{len(groups.groups):,}", "channel groups", number(len(graph.streams), "residual stream")),
        (f"{frozen:,}", "channels frozen", number(len(frozen_rows(graph)), "reason")),
        (quantity(groups.params()), "parameters", f"{len(graph.nodes):,} operators"),
    ]


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


def layer_rows(graph: ModelGraph) -> tuple[list[LayerRow], tuple[int, int]]:
    """The layers that multiply, as they run; and how many others there are, with their parameters."""
    shown = [layer for layer in graph.layers if layer.macs]
    most = max((layer.macs for layer in shown), default=1)
    largest = max((layer.params for layer in shown), default=1) or 1
    rows = [
        LayerRow(
            layer.module,
            layer.macs,
            layer.params,
            round(100 * layer.macs / most, 2),
            round(100 * layer.params / largest, 2),
            layer.groups,
            layer.at,
        )
        for layer in shown
    ]
    rest = [layer.params for layer in graph.layers if not layer.macs]
    return rows, (len(rest), sum(rest))


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
