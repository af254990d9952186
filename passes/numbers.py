"""The numbers that a symbolic graph computes from sizes: what they were, and what they become under a plan.

``x.view(b, c, -1)`` follows the channels by itself where ``c`` is a size of ``x``, and must not where ``c`` is a size of another
tensor, or where it goes on to scale an attention. The graph is evaluated twice for that, its tensors being but shapes: those it
had and those that are foretold. Where a number becomes another one and must not, its computation is written once more with the sizes of
before: ``x / (b * c)`` becomes ``x / (b * 16)``, and holds for any ``b``.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from pdc_fx.passes.prediction import Prediction
from pdc_fx.rules import Channels, Weight

Shape = tuple[int, ...]
_UNKNOWN = object()


class Numbers:
    """The numbers of a graph, in a copy of it that is to be edited.

    Args:
        copies: node of the graph -> its copy.
        calls: node of the graph -> the recorded call that made its result.
        tensors: parameters and buffers of the smaller network by name.
    """

    def __init__(
        self,
        graph: fx.Graph,
        copies: Mapping[fx.Node, fx.Node],
        calls: Mapping[fx.Node, fx.Node],
        prediction: Prediction,
        tensors: Mapping[str, Tensor],
    ) -> None:
        def before(call: fx.Node) -> Shape | None:
            return call.meta.get("shape")

        def after(call: fx.Node) -> Shape | None:
            value = prediction.solution.flow.values.get(call)
            if isinstance(value, Weight):
                return tuple(tensors[value.name].shape[value.axis(d)] for d in range(len(value.shape)))
            block = prediction.block(value) if isinstance(value, Channels) else None
            return None if block is None else block[0]

        was, now = _numbers(graph, calls, before), _numbers(graph, calls, after)
        self._origin = {copy: node for node, copy in copies.items()}
        self._copies, self._was = copies, was
        self._changed = {node: number for node, number in was.items() if now.get(node, _UNKNOWN) != number}
        self._written: dict[fx.Node, Any] = {}
        self.now = {copies[node]: number for node, number in now.items() if node in copies}

    def write_out(self, node: fx.Node) -> None:
        """Let a call in the copy, of which numbers are arguments, have those from before."""
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self._as_it_was(self._origin.get(n), n))
        node.args, node.kwargs = args, kwargs

    def _as_it_was(self, node: fx.Node | None, copy: fx.Node) -> Any:
        """A number as it was before channels went, or a node of the copy that computes it from what else it depends on."""
        if node is None or node not in self._changed:
            return copy
        if node not in self._written:
            self._written[node] = self._recomputed(node, copy)
        return self._written[node]

    def _recomputed(self, node: fx.Node, copy: fx.Node) -> Any:
        was, now, graph = self._changed[node], self.now.get(copy), copy.graph
        if node.all_input_nodes and all(n in self._was for n in node.all_input_nodes):
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self._as_it_was(n, self._copies[n]))
            if not any(isinstance(leaf, fx.Node) for leaf in tree_leaves((args, kwargs))):
                return was
            with graph.inserting_after(copy):
                return graph.create_node(node.op, node.target, args, kwargs)
        if not isinstance(was, int) or not now:
            return was
        # a number of channels, or its product with other sizes (of a tensor that was flattened), which may be others next time
        with graph.inserting_after(copy):
            product = graph.call_function(operator.mul, (copy, was))
        with graph.inserting_after(product):
            return graph.call_function(operator.floordiv, (product, now))


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
