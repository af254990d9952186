"""Edit the sizes that are written into a symbolic graph, so that it runs on the smaller network.

Three kinds of nodes change: a call whose sizes follow the channels that went is edited by its own rule (``@literal``), a movement whose
order is written out becomes a gather, and so does the end of a chain of movements that leaves no block in between.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from pdc_fx.errors import RewriteError, TraceError
from pdc_fx.passes.analysis import Program
from pdc_fx.passes.dependency import flow_of
from pdc_fx.passes.gathers import Gather, moved_by
from pdc_fx.passes.prediction import Prediction
from pdc_fx.rules import Channels
from pdc_fx.rules.base import Edit, as_gather, edit_for
from pdc_fx.trace import Inputs, as_arguments, evaluating, record_graph_module


def edited(compact: nn.Module, program: Program, prediction: Prediction, example_inputs: Inputs) -> fx.GraphModule:
    """The smaller network as a graph module whose literals follow the plan.

    Args:
        compact: the module with its tensors already merged; the result takes them over.

    Raises:
        RewriteError: the edited graph does not do what was foretold.
    """
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(program.graph, copies))
    made_by = {call: copies[node] for node, call in program.calls.items() if node in copies}
    chains = {gather.node: gather for gather in program.gathers}
    indices: dict[str, Tensor] = {}
    for node, call in program.calls.items():
        if node.op not in ("call_function", "call_method") or node not in copies:
            continue
        gather = chains.get(call)
        if gather is None and edit_for(call.target) is as_gather and prediction.shrinks(_argument(call, prediction)):
            gather = moved_by([call])
        if gather is not None:
            name = f"gather_{len(indices)}"
            indices[name] = _remaining(gather, prediction)
            _replace(copies[node], made_by[gather.source], gather.dim, name)
        else:
            _edit(copies[node], call, prediction)
    return _checked(
        _module(compact, graph, program, indices, example_inputs), program, copies, prediction, compact, example_inputs
    )


def _argument(call: fx.Node, prediction: Prediction) -> object:
    source = call.args[0] if call.args else None
    return prediction.solution.flow.values.get(source) if isinstance(source, fx.Node) else None


def _edit(node: fx.Node, call: fx.Node, prediction: Prediction) -> None:
    edit, argument = edit_for(call.target), _argument(call, prediction)
    value = prediction.solution.flow.values[call]
    if edit is None or not isinstance(argument, Channels) or not prediction.shrinks([value, argument]):
        return
    kept_in = prediction.masks(argument)
    kept_out = prediction.masks(value) if isinstance(value, Channels) else ()
    if kept_in is not None and kept_out is not None:  # else it is in the middle of a gather
        parts = tuple(v.shape for v in value if isinstance(v, Channels)) if isinstance(value, (list, tuple)) else ()
        edit(Edit(node, argument.shape, parts, kept_in, kept_out))


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


def _replace(node: fx.Node, source: fx.Node, dim: int, name: str) -> None:
    with node.graph.inserting_before(node):
        index = node.graph.get_attr(name)
        gathered = node.graph.call_function(torch.index_select, (source, dim, index))
    node.replace_all_uses_with(gathered)
    node.graph.erase_node(node)


def _module(
    compact: nn.Module, graph: fx.Graph, program: Program, indices: dict[str, Tensor], example_inputs: Inputs
) -> fx.GraphModule:
    for name, tensor in {**program.constants, **indices}.items():
        compact.register_buffer(name, tensor, persistent=name not in indices)
    module = fx.GraphModule(compact, graph, type(compact).__name__)
    _drop_outdated_assertions(module, example_inputs)
    for name, tensor in indices.items():  # fx makes all buffers part of the state dict
        delattr(module, name)
        module.register_buffer(name, tensor, persistent=False)
    module.graph.eliminate_dead_code()  # the calls that gathers stand for
    module.graph.lint()
    module.recompile()
    return module


def _drop_outdated_assertions(module: fx.GraphModule, example_inputs: Inputs) -> None:
    """Remove the assertions that fail on the example inputs, and so speak of numbers of channels, which have changed."""

    class Lenient(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n.target is torch._assert and not self.fetch_args_kwargs_from_env(n)[0][0]:
                outdated.append(n)
                return None
            return super().run_node(n)

    outdated: list[fx.Node] = []
    if any(n.target is torch._assert for n in module.graph.nodes):
        try:
            with evaluating(module):
                Lenient(module).run(*as_arguments(example_inputs))
        except Exception as error:
            raise RewriteError(
                f"a size written into the forward pass could not be edited: {error}", hint="freeze the module (frozen=)"
            ) from error
    for node in outdated:
        module.graph.erase_node(node)


def _checked(
    module: fx.GraphModule,
    program: Program,
    copies: dict[fx.Node, fx.Node],
    prediction: Prediction,
    owner: nn.Module,
    inputs: Inputs,
) -> fx.GraphModule:
    hint = "freeze the module (frozen=)"
    try:
        recording, calls = record_graph_module(module, inputs, owner)
    except TraceError as error:
        raise RewriteError(f"a size written into the forward pass could not be edited: {error}", hint=hint) from error
    by_name = {node.name: call for node, call in calls.items()}
    pairs = [
        (call, by_name[copies[n].name])
        for n, call in program.calls.items()
        if n in copies and copies[n].name in by_name
    ]
    mismatch = prediction.difference(pairs, flow_of(recording))
    if mismatch is not None:
        raise RewriteError(f"a size written into the forward pass could not be edited: {mismatch}", hint=hint)
    return module
