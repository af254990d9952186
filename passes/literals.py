"""Edit the sizes that are written into a symbolic graph, so that it runs on the smaller network.

Three kinds of nodes change: a call whose sizes follow the channels that went is edited by its own rule (``@literal``), a movement whose
order is written out becomes a gather, and so does the end of a chain of movements that leaves no block in between. Beforehand,
every number that is computed from a size which changes is computed from what that size was (:mod:`pdc_fx.passes.numbers`).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn

from pdc_fx.errors import TraceError
from pdc_fx.passes.axes import named_tensors
from pdc_fx.passes.dependency import flow_of
from pdc_fx.passes.gathers import Gather, moved_by
from pdc_fx.passes.numbers import Numbers
from pdc_fx.passes.prediction import Mismatch, Prediction, lie_alike
from pdc_fx.rules import Channels, Weight
from pdc_fx.rules.literals import Edit, Written, literal_of
from pdc_fx.rules.registry import has_trait
from pdc_fx.symbolic import settled_at
from pdc_fx.trace import Inputs, as_arguments, evaluating, record_graph_module


@dataclass(frozen=True)
class Program:
    """A model as a symbolic graph that can be edited.

    Attributes:
        graph: what ``torch.fx`` traced.
        constants: tensors that the graph holds and the model does not.
        calls: node of ``graph`` -> the recorded call that made its result.
        gathers: movements that are to be written as gathers.
    """

    graph: fx.Graph
    constants: Mapping[str, Tensor]
    calls: Mapping[fx.Node, fx.Node]
    gathers: tuple[Gather, ...] = ()


def edited(
    compact: nn.Module, program: Program, prediction: Prediction, example_inputs: Inputs
) -> fx.GraphModule | Mismatch:
    """The smaller network as a graph module whose literals follow the plan; or the call that still is not as foretold.

    Args:
        compact: the module with its tensors already merged; the result takes them over.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, copies))
    made_by: dict[fx.Node, fx.Node] = {}
    for node, call in program.calls.items():
        if node in copies:
            made_by.setdefault(call, copies[node])  # the first: an identity after it gives the same result once more
    chains = {gather.node: gather for gather in program.gathers}
    indices: dict[str, Tensor] = {}
    numbers = Numbers(program.graph, copies, program.calls, prediction, named_tensors(compact))
    for node, call in program.calls.items():
        if not node.op.startswith("call") or node not in copies:
            continue
        written_as = copies[node].args, copies[node].kwargs
        if not has_trait(call.target, "repeats"):
            numbers.write_out(copies[node])
        if node.op == "call_module":
            continue
        gather, written, source = chains.get(call), literal_of(call), prediction.solution.flow.first(call)
        if gather is None and written and written.edit is None and prediction.shrinks(source):
            if lie_alike(prediction.solution.flow.values[call], source):
                continue
            gather = moved_by([call], source.varying) if isinstance(source, Channels) else None
            if gather is None:
                return Mismatch(call, "cannot be written as a gather")
        if gather is not None:
            name = _free(f"gather_{len(indices)}", compact, indices)
            indices[name] = _remaining(gather, prediction)
            # what follows starts from the gather: it may be the source of another chain
            copies[node] = made_by[call] = _replace(copies[node], made_by[gather.source], gather.dim, name)
        else:
            _edit(copies[node], call, prediction, Written(*written_as, numbers.now))
    module = _module(compact, graph, program, indices)
    by_name = {copies[node].name: call for node, call in program.calls.items() if node in copies}
    try:
        _drop_unused(module)  # the calls that gathers stand for
        _renew_assertions(module, example_inputs)
        _drop_unused(module)
        recording, calls = record_graph_module(module, example_inputs, compact)
    except TraceError as error:
        names = [node.name for node in module.graph.nodes]
        ran = [by_name[name] for name in names[: names.index(error.node) + 1] if name in by_name]
        return Mismatch(ran[-1], f"cannot be edited: {error}")
    pairs = [(by_name[node.name], call) for node, call in calls.items() if node.name in by_name]
    return prediction.difference(pairs, flow_of(recording, prediction.solution.flow)) or module


def _edit(node: fx.Node, call: fx.Node, prediction: Prediction, written_as: Written) -> None:
    written, argument = literal_of(call), prediction.solution.flow.first(call)
    value = prediction.solution.flow.values[call]
    if written is None or written.edit is None or not prediction.shrinks([value, argument]):
        return
    if isinstance(argument, Weight) and isinstance(value, Channels):  # a parameter that is viewed
        argument = Channels.fixed(argument.shape)
    if not isinstance(argument, Channels):
        return
    kept_in = prediction.masks(argument)
    kept_out = prediction.masks(value) if isinstance(value, Channels) else ()
    if kept_in is not None and kept_out is not None:  # else it is in the middle of a gather
        parts = tuple(v.shape for v in value if isinstance(v, Channels)) if isinstance(value, (list, tuple)) else ()
        written.edit(Edit(node, call, argument.shape, parts, kept_in, kept_out, written_as))


def _remaining(gather: Gather, prediction: Prediction) -> Tensor:
    """The index among the positions that remain."""
    values = prediction.solution.flow.values
    source, result = values[gather.source], values[gather.node]
    assert isinstance(source, Channels)
    assert isinstance(result, Channels)
    kept_in, kept_out = (
        masks[gather.dim] if (masks := prediction.masks(value)) is not None else None for value in (source, result)
    )
    index = gather.index if kept_out is None else gather.index[kept_out]
    return index if kept_in is None else (torch.cumsum(kept_in, 0) - 1)[index]


def _replace(node: fx.Node, source: fx.Node, dim: int, name: str) -> fx.Node:
    with node.graph.inserting_before(node):
        index = node.graph.get_attr(name)
        gathered = node.graph.call_function(torch.index_select, (source, dim, index))
    node.replace_all_uses_with(gathered)
    node.graph.erase_node(node)
    return gathered


def _module(compact: nn.Module, graph: fx.Graph, program: Program, indices: dict[str, Tensor]) -> fx.GraphModule:
    device = next((tensor.device for tensor in named_tensors(compact).values()), None)
    indices = {name: index.to(device) for name, index in indices.items()}
    # under names of their own: a tensor that is a plain attribute has that name in the network, too
    constants: dict[str, Tensor] = {}
    for name, tensor in program.constants.items():
        constants[free := _free(name.replace(".", "_"), compact, {**constants, **indices})] = tensor
        for node in graph.find_nodes(op="get_attr", target=name):
            node.target = free
    for name, tensor in {**constants, **indices}.items():
        compact.register_buffer(name, tensor, persistent=name not in indices)
    module = fx.GraphModule(compact, graph, type(compact).__name__)
    for name, tensor in indices.items():  # fx makes all buffers part of the state dict
        delattr(module, name)
        module.register_buffer(name, tensor, persistent=False)
    for name in constants:  # which stay constants: they are no buffers of the network that was analysed
        delattr(compact, name)
    return module


def _free(name: str, model: nn.Module, taken: Mapping[str, Tensor]) -> str:
    """``name``, with a number behind it if the model has it already."""
    candidates = (name if n == 0 else f"{name}_{n}" for n in count())
    return next(free for free in candidates if free not in taken and not hasattr(model, free))


def _drop_unused(module: fx.GraphModule) -> None:
    """Remove what nothing reads, unless it changes something in place."""
    module.graph.eliminate_dead_code(lambda node: node.is_impure() or bool(node.meta.get("changes")))
    module.graph.lint()
    module.recompile()


def _renew_assertions(module: fx.GraphModule, example_inputs: Inputs) -> None:
    """Let assertions that fail, and so speak of numbers of channels, say what these are now; they fail where other sizes are others.

    One that is no comparison for equality goes.
    """
    outdated: list[fx.Node] = []
    now: dict[fx.Node, Any] = {}

    class Lenient(fx.Interpreter):
        running = ""

        def run_node(self, n: fx.Node) -> Any:
            self.running = n.name
            if n in compared:
                now[n] = self.fetch_args_kwargs_from_env(n)[0][0]
            if n.target is torch._assert and not self.fetch_args_kwargs_from_env(n)[0][0]:
                outdated.append(n)
                return None
            return super().run_node(n)

    assertions = [node for node in module.graph.nodes if node.target is torch._assert]
    compared = {node.args[0] for node in assertions if getattr(node.args[0], "target", None) is operator.eq}
    if not assertions:
        return
    interpreter = Lenient(module)
    try:
        with evaluating(module):
            interpreter.run(*as_arguments(example_inputs))
    except Exception as error:  # whatever torch or the model raises where sizes do not fit
        raise TraceError(str(error), node=interpreter.running) from error
    for node in outdated:
        comparison = node.args[0]
        if isinstance(comparison, fx.Node) and isinstance(now.get(comparison), (int, float, tuple)):
            comparison.args = (comparison.args[0], now[comparison])
            node.args = (comparison, settled_at(now[comparison]))
        else:
            module.graph.erase_node(node)
