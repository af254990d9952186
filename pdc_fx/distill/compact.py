"""Training the compact network in place of the tied one.

Where clusters are final from the first step on, the tied network and its channel addition compute one function at every step. So the
smaller one is trained, at its own cost, and expanded at the end (:func:`pdc_fx.passes.surgery.expand`). Loss and gradient are the
same; what differs is the size of steps. With ``g`` a gradient in the compact network, the tied filters of a cluster of ``m`` move by
``lr g / m`` and the summed slice of a reader by ``m lr g``; here both move by ``lr g``.

Maps are compared at full width: each channel of the teacher with the one that stands for its counterpart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pdc_fx.distill.features import Pairs, captured, recorded
from pdc_fx.distill.loss import logits_of
from pdc_fx.errors import InputError
from pdc_fx.ir import ClusterPlan
from pdc_fx.passes.analysis import AnalyzeDependencies
from pdc_fx.passes.compare import EXACT, difference, in_precision, random_inputs
from pdc_fx.passes.dependency import flow_of, solve
from pdc_fx.passes.prediction import Prediction
from pdc_fx.passes.rewrite import ChannelAddition
from pdc_fx.passes.surgery import expand
from pdc_fx.passes.tied import tie_once
from pdc_fx.rules import Channels
from pdc_fx.trace import evaluating, in_mode, with_same_draws


class Untrainable(InputError):
    """The compact network cannot be trained in place of the tied one; the message says why."""


@dataclass(frozen=True)
class Spread:
    """A map of the compact network at full width: its position ``index[i]`` along an axis stands for position ``i``."""

    dim: int
    index: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        """By a matrix of zeros and ones, which is exact and, unlike a gather, keeps the memory format and is quick backwards."""
        width = values.shape[self.dim]
        if width == len(self.index):  # none went
            return values
        chosen = nn.functional.one_hot(self.index.to(values.device), width).to(values.dtype)
        return nn.functional.linear(values.movedim(self.dim, -1), chosen).movedim(-1, self.dim)


def as_it_is(values: Tensor) -> Tensor:
    """A map that is at full width."""
    return values


@dataclass(frozen=True)
class Compact:
    """The channel addition of a tied network, ready to be trained.

    Attributes:
        model: the compact network.
        tied: the network at full width, of which ``plan`` gives the clusters.
        maps: module of ``model`` and module of the teacher whose outputs are compared, the first once it is spread.
    """

    model: nn.Module
    tied: nn.Module
    plan: ClusterPlan
    maps: Sequence[tuple[str, str, Callable[[Tensor], Tensor]]] = ()

    def separate(self, images: Tensor) -> ClusterPlan:
        """A plan for ``model`` by which nothing is tied."""
        groups = AnalyzeDependencies(images)(self.model).groups
        return ClusterPlan(groups, tuple(np.arange(group.channels) for group in groups.groups))

    def expand(self) -> ClusterPlan:
        """Give ``tied`` the weights of ``model``; by the plan that is returned it is tied."""
        expand(self.model, self.tied, self.plan)
        return self.plan


def compact_for_training(model: nn.Module, plan: ClusterPlan, images: Tensor, compared: Pairs = ()) -> Compact:
    """Tie ``model`` in place and make its channel addition, proved to be the same function in eval *and* in training mode.

    Args:
        images: one image, shape ``(1, channels, height, width)``.
        compared: the modules of ``model`` whose outputs go into a loss, with those of the teacher.

    Raises:
        Untrainable: parts run in training only, the two differ in training mode, or a map cannot be followed.
        PdcError: the channel addition fails.
    """
    if plan.groups.unreached:
        raise Untrainable("parts of the model run in training only", where=", ".join(plan.groups.unreached[:3]))
    tie_once(model, plan)
    small = ChannelAddition(plan, images)(model)
    expand(small, model, plan)  # the same weights now in any precision
    (twin, example), (small_twin, _) = in_precision(model, images), in_precision(small, images)
    _require_same_in_training(twin, small_twin, example[0])
    spreads = _spreads(model, plan, images, [name for name, _ in compared])
    modules = {name: name for name in spreads}
    if isinstance(small, fx.GraphModule) and isinstance(small_twin, fx.GraphModule):
        modules = _tapped(small, _located(twin, small_twin, example[0], spreads))
    return Compact(small, model, plan, [(modules[name], teacher, spreads[name]) for name, teacher in compared])


def _tapped(graph: fx.GraphModule, nodes: Mapping[str, str]) -> dict[str, str]:
    """Modules that return the values of nodes, one for each name; a graph has no modules of its own to return them."""
    by_name = {node.name: node for node in graph.graph.nodes}
    taps = {}
    for number, (name, node) in enumerate(nodes.items()):
        taps[name] = f"_map{number}"
        graph.add_module(taps[name], nn.Identity())
        with graph.graph.inserting_after(by_name[node]):
            graph.graph.call_module(taps[name], (by_name[node],))
    graph.recompile()
    return taps


def _require_same_in_training(tied: nn.Module, compact: nn.Module, example: Tensor) -> None:
    """In float64 and training mode, on random images, with the same draws; but for dropout, which draws for each channel."""
    (images,) = random_inputs(example.repeat(4, *[1] * (example.dim() - 1)), 0)
    found = []
    for network in (tied, compact):
        with with_same_draws(network, (images,)), _training_without_dropout(network), torch.no_grad():
            try:
                found.append(logits_of(network(images)))
            except RuntimeError as problem:
                raise Untrainable(f"the small network does not run in training mode: {problem}") from problem
    apart = difference(found[0], found[1], EXACT)
    if not apart.passed:
        error = f"relative difference {apart.max_rel_error:.2g}"
        raise Untrainable(f"in training mode the small network is another function ({error})")


@contextmanager
def _training_without_dropout(network: nn.Module) -> Iterator[None]:
    with in_mode(network, training=True):
        for module in network.modules():
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.eval()
        yield


def _spreads(model: nn.Module, plan: ClusterPlan, images: Tensor, names: list[str]) -> dict[str, Spread]:
    """For each module of ``model`` how its output comes from that of the compact network."""
    if not names:
        return {}
    recording, _, modules = recorded(model, images)
    analysis = AnalyzeDependencies(images, plan.groups.frozen_names, recording)(model)
    solution = solve(flow_of(recording), plan.groups.frozen_names, stuck=analysis.stuck)
    if solution.groups.digest() != plan.groups.digest():
        raise Untrainable("the channels of its maps cannot be followed through a program that is edited (a shuffle)")
    prediction = Prediction(solution, plan)
    nodes = {module: node for node, module in modules.items()}
    found = {}
    for name in names:
        value = solution.flow.values[nodes[name]]
        spread = prediction.spread(value) if isinstance(value, Channels) else None
        if spread is None:
            raise Untrainable("the channels of a map cannot be followed", where=f"module '{name}'")
        found[name] = Spread(*spread)
    return found


def _located(
    tied: nn.Module, compact: fx.GraphModule, example: Tensor, spreads: Mapping[str, Spread]
) -> dict[str, str]:
    """For each module of ``tied`` the first node of ``compact`` that has its output, found by comparing values in float64."""
    (images,) = random_inputs(example, 0)
    found: dict[str, str] = {}
    with evaluating(tied), captured(tied, list(spreads)) as maps:
        tied(images)

    class Search(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            for name, spread in spreads.items():
                if name not in found and isinstance(result, Tensor) and _same(result, maps[name], spread):
                    found[name] = n.name
            return result

    with evaluating(compact):
        Search(compact).run(images)
    if absent := [name for name in spreads if name not in found]:
        raise Untrainable("the small network returns no such map", where=f"module '{absent[0]}'")
    return found


def _same(small: Tensor, whole: Tensor, spread: Spread) -> bool:
    """Whether a value is a map; one that does not vary tells nothing."""
    if small.dim() != whole.dim() or small.shape[spread.dim] != int(spread.index.max()) + 1:
        return False
    apart = difference(whole, spread(small), EXACT)
    return apart.passed and not apart.constant
