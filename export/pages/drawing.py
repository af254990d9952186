"""Operators and edges as they are drawn: colours, labels, and what a screen reader says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pdc_fx.export.pages.layout import NODE_WIDTH, Block, Layout
from pdc_fx.export.pages.model_graph import ModelGraph, Operator
from pdc_fx.ir import ChannelGroups
from pdc_fx.words import number

_STRIPES = 12
"""A value of many groups shows the largest ones as stripes."""

_LETTERS = 16
"""So many letters and digits fit into a node."""

_LETTER = 6.7
"""Width of a letter of a block's title, on average."""

_SPOKEN = 3
"""A screen reader names so many groups of a value and counts the others."""


@dataclass(frozen=True)
class Stripe:
    """A part of a node's lower edge: where it starts and how wide it is, and the hue of its group (None: it stays)."""

    x: float
    width: float
    hue: int | None


@dataclass(frozen=True)
class Box:
    """A node as it is drawn.

    Attributes:
        label: its function, with the size of its kernel.
        channels: how many channels its value holds, as a text; ``64→36`` where they become fewer.
        classes: ``call``, ``input`` or ``output``; ``stream``, ``frozen``, ``plain`` for what it carries.
        spoken: what a screen reader says.
    """

    x: float
    y: float
    label: str
    channels: str
    classes: str
    hue: int | None
    stripes: tuple[Stripe, ...]
    spoken: str


@dataclass(frozen=True)
class Curve:
    """An edge as it is drawn."""

    start: int
    stop: int
    path: str
    classes: str
    hue: int | None


def hues(graph: ModelGraph) -> tuple[int, ...]:
    """A hue for each group, 0 to 359 degrees: consecutive streams, and consecutive other groups, differ by the golden angle."""
    turns, streams, others = [], 0, 0
    for group in range(len(graph.groups.groups)):
        if group in graph.streams:
            turns.append(streams)
            streams += 1
        else:
            turns.append(others)
            others += 1
    return tuple(round(250 + 137.508 * turn) % 360 for turn in turns)


def boxes(graph: ModelGraph, placed: Layout, widths: Mapping[int, int] | None = None) -> list[Box]:
    """Every node with its place and looks; ``widths`` are the channels that each group keeps, where some were merged."""
    streams, hue = set(graph.streams), hues(graph)
    found = []
    for index, node in enumerate(graph.nodes):
        main, held = node.main_group, channels_of(graph, node, widths)
        kind = "plain" if not held else "frozen" if main is None else "stream" if main in streams else "inner"
        found.append(
            Box(
                placed.x[index],
                placed.y[index],
                label_of(node, graph.groups, held),
                held,
                f"{node.kind} {kind}",
                None if main is None else hue[main],
                stripes(graph, node, hue, widths),
                spoken(node, widths),
            )
        )
    return found


def channels_of(graph: ModelGraph, node: Operator, widths: Mapping[int, int] | None) -> str:
    """The number in a node: its channels, before and after where that differs and is known; nothing where it has none."""
    held = sum(node.groups.values()) + sum(node.frozen.values())
    kept = held if widths is None else graph.kept(node, widths)
    return f"{held}→{kept}" if kept not in (held, None) else str(held or "")


def label_of(node: Operator, groups: ChannelGroups, channels: str) -> str:
    """The function, and the size of its kernel where it has one and there is room beside the channels."""
    kernels = [groups.shapes[t][2:] for t in node.tensors if len(groups.shapes[t]) > 2 and "conv" in node.name]
    name = node.name.strip("_") or node.name
    label = name + (" " + "×".join(map(str, kernels[0])) if kernels else "")
    longest = _LETTERS - len(channels) + ("→" in channels)  # the text of two numbers is smaller
    label = name if "→" in channels and len(label) > longest else label
    return label if len(label) <= longest else label[: longest - 1] + "…"


def title_of(block: Block) -> str:
    """The module of a block, without its first parts where all of them are wider than the block.

    >>> title_of(Block("layer1.0", 0, 0, 148, 200)), title_of(Block("features.denseblock1.denselayer1", 0, 0, 148, 200))
    ('layer1.0', '…denselayer1')
    """
    longest, text = int((block.width - 8) / _LETTER), block.module
    if len(text) <= longest:
        return text
    ends = ["…" + text[at + 1 :] for at, letter in enumerate(text) if letter == "."]
    return next((end for end in ends if len(end) <= longest), "…" + text[1 - longest :])


def spoken(node: Operator, widths: Mapping[int, int] | None = None) -> str:
    """A node in words."""
    parts = [f"{node.name} {node.module}".strip()]
    for group, count in list(node.groups.items())[:_SPOKEN]:
        kept = "" if widths is None else f" that keeps {widths[group]}"
        parts.append(f"{number(count, 'channel')} of group {group}{kept}")
    if len(node.groups) > _SPOKEN:
        parts.append(f"{len(node.groups) - _SPOKEN} more groups")
    if node.frozen:
        parts.append(f"{number(sum(node.frozen.values()), 'channel')} frozen")
    return ", ".join(parts)


def stripes(
    graph: ModelGraph, node: Operator, hue: Sequence[int], widths: Mapping[int, int] | None = None
) -> tuple[Stripe, ...]:
    """The parts of a value of several groups, in proportion; nothing where it is all of one kind.

    With ``widths`` a stripe is as long as the part of the channels that is kept, and a value of one group has one, too.
    """
    parts: list[tuple[int | None, int]] = list(node.groups.items())
    if node.frozen:
        parts.append((None, sum(node.frozen.values())))
    if len(parts) < (2 if widths is None or not node.groups else 1):
        return ()
    if len(parts) > _STRIPES:
        parts = sorted(parts, key=lambda part: -part[1])[:_STRIPES]
    total, x, found = sum(count for _, count in parts), 0.0, []
    for group, count in parts:
        width = NODE_WIDTH * count / total
        kept = 1.0 if widths is None or group is None else widths[group] / graph.groups.groups[group].channels
        found.append(Stripe(round(x, 1), round(kept * width, 1), None if group is None else hue[group]))
        x += width
    return tuple(found)


def curves(graph: ModelGraph, placed: Layout) -> list[Curve]:
    """Every edge with its path; it has the colour of what it carries."""
    streams, hue = set(graph.streams), hues(graph)
    found = []
    for (start, stop), path, skip in zip(graph.edges, placed.paths, placed.skips, strict=True):
        main = graph.nodes[start].main_group
        classes = ["stream"] if main in streams else []
        found.append(
            Curve(start, stop, path, " ".join([*classes, *["skip"] * skip]), None if main is None else hue[main])
        )
    return found
