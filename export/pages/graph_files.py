"""The graph of operators for other programs: Graphviz, and whatever reads GraphML (yEd, Gephi, networkx itself)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from pdc_fx.words import visible

if TYPE_CHECKING:
    import networkx as nx


def to_graphml(graph: nx.DiGraph) -> str:
    """A graph whose attributes are texts and numbers as GraphML; what XML cannot hold is written as escapes."""
    import networkx as nx

    clean = nx.DiGraph()
    clean.add_nodes_from(
        (node, {key: _clean(value) for key, value in values.items()}) for node, values in graph.nodes(data=True)
    )
    clean.add_edges_from(graph.edges)
    file = io.BytesIO()
    nx.write_graphml(clean, file)
    return file.getvalue().decode().rstrip()


def to_dot(graph: nx.DiGraph) -> str:
    r"""The same for Graphviz. Its colour scheme ``paired12`` tells groups apart; operators without a group are grey.

    Written here, since networkx's way to Graphviz needs a further package, and every text quoted for it by the caller.

    >>> import networkx as nx
    >>> graph = nx.DiGraph([(0, 1)])
    >>> graph.nodes[0].update(label='a "b"', channel_group=3)
    >>> print(to_dot(graph))
    digraph model {
      node [shape=box style=filled colorscheme=paired12 fillcolor=lightgrey]
      0 [label="a \"b\"" channel_group="3" fillcolor=4]
      1 []
      0 -> 1
    }
    """
    lines = ["digraph model {", "  node [shape=box style=filled colorscheme=paired12 fillcolor=lightgrey]"]
    for node, values in graph.nodes(data=True):
        parts = [f"{key}={_quoted(value)}" for key, value in values.items()]
        if values.get("channel_group", -1) >= 0:
            parts.append(f"fillcolor={values['channel_group'] % 12 + 1}")
        lines.append(f"  {node} [{' '.join(parts)}]")
    lines += [f"  {start} -> {stop}" for start, stop in graph.edges]
    return "\n".join([*lines, "}"])


def _quoted(value: Any) -> str:
    text = str(_clean(value)).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'


def _clean(value: Any) -> Any:
    return visible(value) if isinstance(value, str) else value
