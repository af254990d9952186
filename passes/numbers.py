"""The numbers that a symbolic graph computes from sizes: what they were, and what they become under a plan.

``x.view(b, c, -1)`` follows the channels by itself where ``c`` is a size of ``x``, and must not where ``c`` is a size of another
tensor, or where it goes on to scale an attention. The graph is evaluated twice for that, its tensors being but shapes: those it
had and those that are foretold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from pdc_fx.passes.prediction import Prediction
from pdc_fx.rules import Channels, Weight

Shape = tuple[int, ...]
_UNKNOWN = object()


def changed_numbers(
    graph: fx.Graph, calls: Mapping[fx.Node, fx.Node], prediction: Prediction, tensors: Mapping[str, Tensor]
) -> dict[fx.Node, Any]:
    """Node of the graph -> the number it gave, for the numbers that become others or that nothing foretells.

    Args:
        calls: node of the graph -> the recorded call that made its result.
        tensors: parameters and buffers of the smaller network by name.
    """

    def before(call: fx.Node) -> Shape | None:
        return call.meta.get("shape")

    def after(call: fx.Node) -> Shape | None:
        value = prediction.solution.flow.values.get(call)
        if isinstance(value, Weight):
            return tuple(tensors[value.name].shape[value.axis(d)] for d in range(len(value.shape)))
        block = prediction.block(value) if isinstance(value, Channels) else None
        return None if block is None else block[0]

    was, now = _numbers(graph, calls, before), _numbers(graph, calls, after)
    return {node: number for node, number in was.items() if now.get(node, _UNKNOWN) != number}


def _numbers(
    graph: fx.Graph, calls: Mapping[fx.Node, fx.Node], shape_of: Callable[[fx.Node], Shape | None]
) -> dict[fx.Node, Any]:
    """Every node of the graph that gives a number, evaluated on tensors of the shapes given."""
    values: dict[fx.Node, Any] = {}
    for node in graph.nodes:
        if (call := calls.get(node)) is not None:
            if (shape := shape_of(call)) is not None:
                values[node] = torch.empty(shape, device="meta")
        elif node.op in ("call_function", "call_method") and all(n in values for n in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            try:
                values[node] = _called(node.target, args, kwargs)
            except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
                continue  # nothing can be said of it, as where a smaller size does not divide
    return {n: v for n, v in values.items() if isinstance(v, (int, float)) and not isinstance(v, bool)}


def _called(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)
