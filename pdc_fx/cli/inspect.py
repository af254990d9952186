"""``pdc-fx inspect``: the dependency report on the terminal, as a page, and for other programs."""

from __future__ import annotations

import json as jsonlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pdc_fx.cli.options import (
    Classes,
    Frozen,
    Model,
    Overwrite,
    Shapes,
    Weights,
    command_line,
    open_model,
    plain,
    reported,
    require_new,
)
from pdc_fx.errors import InputError

if TYPE_CHECKING:
    from pdc_fx.export.pages.model_graph import ModelGraph

FORMATS = {".html": "html", ".htm": "html", ".json": "json", ".dot": "dot", ".gv": "dot", ".graphml": "graphml"}
"""What ``-o`` writes, by the end of the file's name."""


@reported
def inspect(
    model: Model,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write a page (.html), or .json, .dot, .graphml."),
    ] = None,
    weights: Weights = None,
    num_classes: Classes = None,
    input: Shapes = None,
    freeze: Frozen = None,
    everything: Annotated[bool, typer.Option("--all", help="Show every group.")] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print groups and graph as one JSON object on standard output.")
    ] = False,
    dot: Annotated[bool, typer.Option("--dot", help="Print the graph of operators for Graphviz instead.")] = False,
    graphml: Annotated[bool, typer.Option("--graphml", help="Print the same as GraphML instead.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Show which channels are coupled, which can be merged, and what is frozen and why."""
    printed = [name for name, wanted in {"json": json, "dot": dot, "graphml": graphml}.items() if wanted]
    if len(printed) > 1:
        raise InputError(f"only one of {' and '.join('--' + name for name in printed)} can be printed")
    if output is not None:
        require_writable(output, overwrite)
    from pdc_fx.cli.render import err, print_graph, print_text
    from pdc_fx.files import replace_file
    from pdc_fx.pipeline import inspect as run_inspect

    loaded, example = open_model(model, weights, num_classes, input)
    graph = run_inspect(loaded.model, example, frozen=freeze or ())
    if output is not None:
        text = written(graph, FORMATS[output.suffix.lower()], plain(model), command_line())
        replace_file(output, text.encode())
        err.print(f"wrote {output} ({len(text.encode()) / 1000:,.0f} kB)", markup=False, soft_wrap=True)
    if printed:
        print_text(written(graph, printed[0], plain(model), ""))
    elif output is None:
        print_graph(model, graph, everything=everything)


def require_writable(path: Path, overwrite: bool) -> None:
    """Raise :class:`InputError` for a path that cannot be written, before anything takes time."""
    if path.suffix.lower() not in FORMATS:
        raise InputError(
            f"the end of the file's name says nothing of its format: '{path.suffix}'",
            where=str(path),
            hint=f"use one of {', '.join(FORMATS)}",
        )
    require_new(path, overwrite)
    above = next((folder for folder in path.absolute().parents if folder.exists()), None)
    if above is not None and not above.is_dir():
        raise InputError("its folder is a file", where=str(above), hint="choose another path")


def written(graph: ModelGraph, format: str, title: str, command: str) -> str:
    """The report in one of the formats."""
    if format == "html":
        from pdc_fx.export.inspection import render_inspection

        return render_inspection(graph, title=title, command=command)
    if format == "json":
        groups = graph.groups
        head = {"model": title, "macs": groups.macs(), "params": groups.params()}
        return jsonlib.dumps({**head, **groups.to_dict(), "graph": graph.to_dict()})
    from pdc_fx.export.pages.graph_files import to_dot, to_graphml

    return (to_dot if format == "dot" else to_graphml)(graph.to_networkx())
