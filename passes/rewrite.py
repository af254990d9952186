"""Tied module + plan -> compact module: channel addition, exactly.

The tensors are shrunk on a copy of the module. Where the module's own forward still works at the new widths the result keeps its
class and state-dict keys. Where a size is written into the program (``view(-1, 9216)``, a padded shortcut) the symbolic fx
graph is edited instead and the result is a ``GraphModule``. Which of the two is found out by running the copy: every
recorded call must have the shape that the plan predicts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, fx, nn

from pdc_fx.errors import ExactnessError, RewriteError, TraceError
from pdc_fx.ir import ClusterPlan
from pdc_fx.passes.base import Pass
from pdc_fx.passes.compare import Comparison, compare, in_float64
from pdc_fx.passes.dependency import Solution, flow_of, solve
from pdc_fx.passes.surgery import compacted
from pdc_fx.passes.tie import require_tied
from pdc_fx.rules import Channels
from pdc_fx.rules.base import FIXED, Edit, edit_for, rule_for
from pdc_fx.trace import Inputs, Recording, function_name, record, record_graph_module

TOLERANCE = 1e-9  # relative, in float64


@dataclass
class ChannelAddition(Pass[nn.Module, nn.Module]):
    """The rewrite as a pass.

    Attributes:
        plan: the clusters, to which the module must be tied.
        example_inputs: a tensor or tuple of call arguments.
        verify: measure tied against compact in float64; a relative error above 1e-9 is an :class:`ExactnessError`.
        comparison: what was measured, after the pass has run.
    """

    plan: ClusterPlan
    example_inputs: Inputs
    verify: bool = True
    comparison: Comparison | None = field(default=None, init=False)

    def requires(self, value: nn.Module) -> None:
        require_tied(value, self.plan)

    def call(self, value: nn.Module) -> nn.Module:
        if not self.verify:
            return merge_channels(value, self.plan, self.example_inputs)
        # proved in float64; the compact module then takes the dtypes of the one that came in, one rounding per entry
        tied, inputs = in_float64(value, self.example_inputs)
        compact = merge_channels(tied, self.plan, inputs)
        self.comparison = compare(tied, compact, inputs, tolerance=TOLERANCE)
        dtypes = {name: t.dtype for name, t in value.state_dict().items()}
        for name, tensor in (*compact.named_parameters(), *compact.named_buffers()):
            tensor.data = tensor.data.to(dtypes.get(name, tensor.dtype))
        compact.train(value.training)
        return compact

    def ensures(self, value: nn.Module, result: nn.Module) -> None:
        if self.comparison is not None and not self.comparison.passed:
            raise ExactnessError(
                f"the compact model is not the tied one: relative error {self.comparison.max_rel_error:.3g}, allowed {TOLERANCE:g}",
                where=self.comparison.first_difference or "output",
                hint="this is a fault of pdc-fx or of a registered rule; freeze the module named here and report it",
            )


def merge_channels(
    model: nn.Module, plan: ClusterPlan, example_inputs: Inputs, recording: Recording | None = None
) -> nn.Module:
    """The structural rewrite alone, whether or not the model is tied (used to rebuild a saved model, too)."""
    compact = compacted(model, plan)
    solution = solution_for(model, plan, example_inputs, recording)
    literals = [
        node
        for node, value in solution.flow.values.items()
        if edit_for(node.target) and _shrinks(value, solution, plan)
    ]
    if not literals:
        return compact
    difference = _shape_difference(compact, solution, plan, example_inputs)
    if difference is None:
        return compact
    return _edited_graph(model, plan, example_inputs, difference)


def solution_for(
    model: nn.Module, plan: ClusterPlan, example_inputs: Inputs, recording: Recording | None = None
) -> Solution:
    """Analyse ``model`` anew and make sure that the plan was made for it."""
    solution = solve(flow_of(recording or record(model, example_inputs)), plan.groups.frozen_names)
    if solution.groups.digest() != plan.groups.digest():
        raise RewriteError(
            "the plan was made for another model: its channel groups differ",
            hint="analyse this model, with these example inputs, and plan again",
        )
    return solution


def kept_masks(value: Channels, solution: Solution, plan: ClusterPlan) -> tuple[Tensor | None, ...]:
    """For each axis of a value a mask of the positions that remain, or None where it carries no channel."""
    kept = _kept_labels(solution, plan)
    label = value.label.numpy()
    alive = np.where(label == FIXED, True, kept[label])
    masks: list[Tensor | None] = []
    for dim in range(alive.ndim):
        others = tuple(d for d in range(alive.ndim) if d != dim)
        masks.append(torch.from_numpy(alive.any(axis=others)) if alive.shape[dim] > 1 else None)
    product = np.ones_like(alive)
    for dim, mask in enumerate(masks):
        if mask is not None:
            product &= mask.numpy().reshape([-1 if d == dim else 1 for d in range(alive.ndim)])
    if not np.array_equal(product, alive):
        raise RewriteError("the channels that remain do not form a block", where=f"shape {value.shape}")
    return tuple(masks)


def _kept_labels(solution: Solution, plan: ClusterPlan) -> np.ndarray:
    """For each label, and for FIXED at the end, whether its channel remains."""
    kept_units = np.ones(len(solution.group), dtype=bool)
    for index, clusters in enumerate(plan.clusters):
        representatives = np.unique(clusters, return_index=True)[1]
        units = np.flatnonzero(solution.group == index)
        kept_units[units] = np.isin(solution.row[units], representatives)
    return np.append(kept_units[solution.unit], True)


def _shrinks(value: object, solution: Solution, plan: ClusterPlan) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_shrinks(v, solution, plan) for v in value)
    return isinstance(value, Channels) and any(
        m is not None and not bool(m.all()) for m in kept_masks(value, solution, plan)
    )


def compact_shape(value: Channels, solution: Solution, plan: ClusterPlan) -> tuple[int, ...]:
    """The shape a value will have in the compact model."""
    masks = kept_masks(value, solution, plan)
    return tuple(size if mask is None else int(mask.sum()) for size, mask in zip(value.shape, masks, strict=True))


def _shape_difference(compact: nn.Module, solution: Solution, plan: ClusterPlan, inputs: Inputs) -> str | None:
    """Run the compact module; the first call whose shape is not as planned, or None."""
    try:
        calls = _calls(record(compact, inputs).graph)
    except TraceError as error:
        return str(error)
    planned = _calls(solution.flow.recording.graph)
    if [rule_for(n.target) for n in calls] != [rule_for(n.target) for n in planned]:
        return "its forward pass takes another way at the new widths"
    for now, before in zip(calls, planned, strict=True):
        value = solution.flow.values[before]
        if isinstance(value, Channels) and now.meta["shape"] != (expected := compact_shape(value, solution, plan)):
            return f"{function_name(before.target)} at {before.meta.get('source', '')} gives {now.meta['shape']} instead of {expected}"
    return None


def _calls(graph: fx.Graph) -> list[fx.Node]:
    return [n for n in graph.nodes if n.op == "call_function"]


def _edited_graph(model: nn.Module, plan: ClusterPlan, inputs: Inputs, why: str) -> fx.GraphModule:
    """The compact model as a GraphModule whose literals follow the plan."""
    try:
        graph_module = fx.symbolic_trace(model)
    except Exception as error:
        raise RewriteError(
            f"a size is written into the forward pass ({why}) and torch.fx cannot trace it to edit it: {error}",
            hint="compute the size from x.shape, or freeze the module (frozen=)",
        ) from error
    recording, recorded = record_graph_module(graph_module, inputs)
    solution = solution_for(graph_module, plan, inputs, recording)
    compact = compacted(graph_module, plan)
    for old, new in zip(graph_module.graph.nodes, compact.graph.nodes, strict=True):
        source = recorded.get(old)
        edit = edit_for(source.target) if source is not None else None
        if (
            source is None
            or edit is None
            or not isinstance(source.args[0], fx.Node)
            or old.op not in ("call_function", "call_method")
        ):
            continue
        value, argument = solution.flow.values[source], solution.flow.values[source.args[0]]
        if isinstance(argument, Channels) and _shrinks([value, argument], solution, plan):
            parts = tuple(v.shape for v in value) if isinstance(value, (list, tuple)) else ()
            kept_out = kept_masks(value, solution, plan) if isinstance(value, Channels) else ()
            edit(Edit(new, argument.shape, parts, kept_masks(argument, solution, plan), kept_out))
    compact.graph.lint()
    compact.recompile()
    difference = _shape_difference(compact, solution, plan, inputs)
    if difference is not None:
        raise RewriteError(
            f"a size written into the forward pass could not be edited: {difference}",
            hint="freeze the module (frozen=)",
        )
    return compact


def describe(result: nn.Module) -> str:
    """``result_type`` of a certificate: the class the compact model has."""
    return "GraphModule" if isinstance(result, fx.GraphModule) else type(result).__name__
