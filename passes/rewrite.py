"""Tied module + plan -> compact module: channel addition, exactly.

The tensors are shrunk on a copy of the module. Where the module's own forward still works at the new widths the result keeps its
class and state-dict keys. Where a size is written into the program (``view(-1, 9216)``, a padded shortcut) the symbolic fx
graph is edited instead and the result is a ``GraphModule``. Where a size may be written down, which of the two is found out by running the
copy: the channels must lie at every recorded call where the plan foretells them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from pdc_fx.errors import ExactnessError, RewriteError
from pdc_fx.ir import ClusterPlan
from pdc_fx.passes.analysis import Analysis, AnalyzeDependencies, follows_sizes, restricted, trial
from pdc_fx.passes.axes import named_tensors
from pdc_fx.passes.base import Pass
from pdc_fx.passes.compare import (
    EXACT,
    Comparison,
    attempted,
    compare,
    difference,
    in_precision,
    larger_batch,
    other_sizes,
    precise,
    random_inputs,
)
from pdc_fx.passes.dependency import flow_of, solve
from pdc_fx.passes.literals import edited
from pdc_fx.passes.prediction import Mismatch, Prediction
from pdc_fx.passes.surgery import compacted
from pdc_fx.passes.tied import require_tied
from pdc_fx.trace import Inputs, as_arguments, named_outputs, record, require_usable


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
        require_usable(value)
        require_tied(value, self.plan)

    def call(self, value: nn.Module) -> nn.Module:
        if not self.verify:
            return merge_channels(value, self.plan, self.example_inputs)
        # proved in float64; the compact module then takes the dtypes of the one that came in, one rounding per entry
        tied, inputs = in_precision(value, self.example_inputs)
        compact = merge_channels(tied, self.plan, inputs)
        self.comparison = compare(tied, compact, inputs, tolerance=EXACT)
        if self.comparison.passed:
            require_other_sizes(tied, compact, inputs, EXACT)
        _take_types(compact, value)
        if isinstance(compact, fx.GraphModule):  # else it is a copy, each module in the mode of its original
            compact.train(value.training)
        return compact

    def ensures(self, value: nn.Module, result: nn.Module) -> None:
        if self.comparison is not None and not self.comparison.passed:
            raise ExactnessError(
                f"the compact model is not the tied one: relative error {self.comparison.max_rel_error:.3g}, allowed {EXACT:g}",
                where=self.comparison.first_difference or "output",
                hint="this is a fault of pdc-fx or of a registered rule; freeze the module named here and report it",
            )
        if self.comparison is not None and self.comparison.constant:
            raise ExactnessError(
                "nothing could be shown: the outputs do not vary, neither on random inputs nor on the example",
                hint="load trained weights, or give an example as in use (a detector finds nothing in noise)",
            )


def require_other_sizes(tied: nn.Module, compact: nn.Module, inputs: Inputs, tolerance: float) -> None:
    """Refuse a graph into which the example's batch was written, and a network that takes another way for inputs of another size."""
    rows = _rows(attempted(tied, as_arguments(inputs)))

    def taken(changed: tuple[Any, ...], what: str) -> bool:
        """Whether the tied network takes these inputs; both then give the same."""
        given = random_inputs(changed, 0)
        expected = attempted(tied, given)
        if expected is None:
            return False
        if what == "inputs" and _rows(expected) != rows:
            return False  # a size that is written into a view turns larger images into more rows
        actual = attempted(compact, given)
        if what == "inputs" and actual is None:
            return True  # an assertion in the graph says so
        if actual is None or not difference(expected, actual, tolerance).passed:
            raise RewriteError(
                f"{what} of another size come out wrong: a size that the forward pass computes was written out, or it takes another way",
                hint="take each size from x.shape by itself, choose no way by it, or freeze the module that does (frozen=)",
            )
        return True

    if (larger := larger_batch(inputs)) is not None:
        taken(larger, "batches")
    for changed in other_sizes(inputs):
        if taken(changed, "inputs"):
            break


def _rows(output: Any) -> list[torch.Size]:
    return [tensor.shape[:1] for tensor in named_outputs(output).values()]


def _take_types(compact: nn.Module, value: nn.Module) -> None:
    """Give each tensor the dtype it has in ``value``; constants of the forward pass, which are only in the graph, that of new tensors."""
    own = named_tensors(value)
    double = any(tensor.dtype in (torch.float64, torch.complex128) for tensor in own.values())
    for name, tensor in named_tensors(compact).items():
        if name in own:
            tensor.data = tensor.data.to(own[name].dtype)
        elif not double and tensor.dtype in (torch.float64, torch.complex128):
            tensor.data = precise(tensor.data, torch.get_default_dtype())


def merge_channels(
    model: nn.Module, plan: ClusterPlan, example_inputs: Inputs, analysis: Analysis | None = None
) -> nn.Module:
    """The structural rewrite alone, whether or not the model is tied (used to rebuild a saved model, too).

    Args:
        analysis: that of a module with the same structure, for which the plan was made; done anew where it is not given.
    """
    analysis = analysis or analysis_for(model, plan, example_inputs)
    prediction = Prediction(analysis.solution, plan)
    compact = compacted(model, prediction)
    if not follows_sizes(model, prediction):
        return compact
    mismatch = trial(compact, prediction, example_inputs)
    if mismatch is not None and analysis.program is None:
        # a program that branches on the data may have taken another way with other weights: look at these
        solution = solve(flow_of(record(model, example_inputs)), plan.groups.frozen_names, stuck=analysis.stuck)
        mismatch = trial(compact, Prediction(solution, restricted(plan, solution.groups)), example_inputs)
    if mismatch is None:
        return compact
    if analysis.program is not None:
        result = edited(compact, analysis.program, prediction, example_inputs)
        if not isinstance(result, Mismatch):
            return result
        mismatch = result
    raise RewriteError(
        f"a size is written into the forward pass where it cannot be edited: {mismatch}",
        hint="compute the size from x.shape, or freeze the module (frozen=)",
    )


def analysis_for(model: nn.Module, plan: ClusterPlan, example_inputs: Inputs) -> Analysis:
    """Analyse ``model`` and make sure that the plan was made for it."""
    analysis = AnalyzeDependencies(example_inputs, plan.groups.frozen_names)(model)
    if analysis.groups.digest() != plan.groups.digest():
        raise RewriteError(
            "the plan was made for another model: its channel groups differ",
            hint="analyse this model, with these example inputs, and plan again; one that branches on its dtype can be merged in float32",
        )
    return analysis


def describe(result: nn.Module) -> str:
    """``result_type`` of a certificate: the class the compact model has."""
    return "GraphModule" if isinstance(result, fx.GraphModule) else type(result).__name__
