"""The dependency report as a page: the network as a graph coloured by channel group, its groups, layers, and what stays and why.

The bars are table cells of a given width and the graph is plain SVG: a charting library in each page would weigh ten times
what a page of ResNet-50 does, and its bars could not be sorted, searched or reached with the keyboard as rows of a table can.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pdc_fx.export.pages.model_graph import ModelGraph
from pdc_fx.export.pages.network import frozen_rows, group_rows, network_values
from pdc_fx.export.pages.page import render
from pdc_fx.words import number, percent, quantity

SCRIPTS = ("page.js", "tables.js", "graph.js")

_NAMED = 3
"""A sentence names so many modules and counts the others."""


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
    layers, rest = layer_rows(graph)
    return render(
        "inspect.html.j2",
        scripts=SCRIPTS,
        **network_values(graph),
        title=title,
        command=command,
        sentences=summary(graph),
        figures=figures(graph),
        rows=group_rows(graph),
        layers=layers,
        rest=rest,
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
