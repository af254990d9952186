"""The induction behind every merge, checked on real values.

The analysis claims more than that outputs agree: at *every* recorded call, positions that hold channels of one cluster, and that
came about in the same way (equal path), hold equal values once the model is tied. Here the tied model is recorded again
with all its intermediate results kept, and the claim is checked call by call. A wrong path is found even where no reader happens to
show it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, fx, nn

from pdc_fx.ir import ChannelGroups, ClusterPlan, Integers, first_appearance
from pdc_fx.passes.analysis import traced
from pdc_fx.passes.dependency import Solution, _places, flow_of, solve
from pdc_fx.rules import Channels
from pdc_fx.rules.channels import FIXED, mix
from pdc_fx.trace import Inputs, Recorder, function_name, record
from pdc_fx.trace import recording as recording_module

TOLERANCE = 1e-10  # relative to the largest magnitude in the tensor, or to SMALL where all of it is rounding noise
SMALL = 1e-4


def flow_with_values(tied: nn.Module, groups: ChannelGroups, inputs: Inputs) -> tuple[Solution, dict[fx.Node, Tensor]]:
    """The flow in which ``groups`` were found, and a copy of what each of its nodes held at the time.

    That is the recording, or where it has other groups the symbolic graph: a value that an in-place function changed behind its back
    is gone there by then.
    """
    kept: dict[fx.Node, Tensor] = {}

    class Keeping(Recorder):
        def _bind(self, tensor: Tensor, node: fx.Node) -> None:
            super()._bind(tensor, node)
            with torch._C.DisableTorchFunction(), self.unguarded():  # the copy is no work of the model's
                kept[node] = tensor.detach().clone()

    with patch.object(recording_module, "Recorder", Keeping):
        recording = record(tied, inputs)
        solution = solve(flow_of(recording), groups.frozen_names)
        if solution.groups.digest() != groups.digest() and (found := traced(tied, inputs, recording)) is not None:
            solution = solve(flow_of(found[1]), groups.frozen_names)
    return solution, kept


@dataclass(frozen=True)
class Difference:
    """One call at which two positions that should be equal are not."""

    call: str
    source: str
    shape: tuple[int, ...]
    error: float

    def __str__(self) -> str:
        return (
            f"{self.call} {self.shape} at {self.source}: positions of one cluster and path differ by {self.error:.3g}"
        )


@dataclass(frozen=True)
class Findings:
    """``differences``, and how many pairs of positions were compared in how many calls."""

    differences: tuple[Difference, ...]
    calls: int
    pairs: int


def differences_inside_clusters(tied: nn.Module, plan: ClusterPlan, inputs: Inputs) -> Findings:
    """Compare, in every intermediate result, the positions that the analysis takes to be equal."""
    solution, kept = flow_with_values(tied, plan.groups, inputs)
    cluster, tags = _clusters(solution, plan), _places(solution.flow)
    found, calls, pairs = [], 0, 0
    for node, value in solution.flow.values.items():
        if not isinstance(value, Channels) or node not in kept:
            continue
        error, compared = _deviation(value, kept[node], cluster, tags)
        calls, pairs = calls + bool(compared), pairs + compared
        if not error <= TOLERANCE:
            found.append(Difference(function_name(node.target), node.meta.get("source", node.name), value.shape, error))
    return Findings(tuple(found), calls, pairs)


def _clusters(solution: Solution, plan: ClusterPlan) -> Integers:
    """Label -> number of the cluster its channel is in, -1 where it is frozen."""
    of_unit = np.full(len(solution.group), -1, dtype=np.int64)
    start = 0
    for group, labels in zip(plan.groups.groups, plan.clusters, strict=True):
        for member in group.members:
            held = solution.flow.axes[member.tensor, member.dim].label.numpy()[member.positions]
            of_unit[solution.unit[held]] = start + labels[:, None]
        start += int(labels.max()) + 1
    return of_unit[solution.unit] if len(solution.unit) else np.zeros(0, dtype=np.int64)


def _deviation(value: Channels, tensor: Tensor, cluster: Integers, tags: Tensor) -> tuple[float, int]:
    """The largest relative difference between positions that should agree, and how many were compared."""
    shape = np.broadcast_shapes(value.label.shape, value.path.shape)
    label, path = value.label.expand(shape).reshape(-1), value.path.expand(shape).reshape(-1)
    at = torch.nonzero(label != FIXED).reshape(-1)
    numbers = torch.from_numpy(cluster)[label[at]]
    at, numbers = at[numbers >= 0], numbers[numbers >= 0]
    if not len(at):
        return 0.0, 0
    keys = torch.stack([numbers, mix(path[at], tags[label[at]])], 1)
    _, same = torch.unique(keys, dim=0, return_inverse=True)
    rows = _rows(tensor, shape)[at].to(torch.float64)
    first = torch.full((int(same.max()) + 1,), len(at)).scatter_reduce(0, same, torch.arange(len(at)), "amin")
    scale = max(float(rows.abs().max()), SMALL) if rows.numel() else 1.0
    error = float((rows - rows[first[same]]).abs().max()) / scale if rows.numel() else 0.0
    return error, len(at) - len(first)


def _rows(tensor: Tensor, label_shape: tuple[int, ...]) -> Tensor:
    """The values at each position of the label, along the axes in which the label does not vary: one row a position."""
    varying = [d for d, size in enumerate(label_shape) if size > 1]
    others = [d for d in range(tensor.dim()) if d not in varying]
    count = int(np.prod([label_shape[d] for d in varying], dtype=np.int64))
    return tensor.permute(*varying, *others).reshape(count, -1)


def random_partition(groups: ChannelGroups, seed: int) -> ClusterPlan:
    """A plan with a random number of random clusters in each group, at least one of which shrinks."""
    generator = np.random.default_rng(seed)

    sizes = {number: int(generator.choice(groups.cluster_sizes(number)[1:])) for number in groups.balanced}

    def clusters(index: int, channels: int, balance: int | None) -> Any:
        if balance is not None:
            return first_appearance(generator.permutation(np.arange(channels) // sizes[balance]))
        width = int(generator.integers(1, channels + (index > 0)))
        labels = np.concatenate([np.arange(width), generator.integers(0, width, channels - width)])
        return first_appearance(generator.permutation(labels))

    plans = tuple(clusters(i, g.channels, g.balance) for i, g in enumerate(groups.groups))
    return ClusterPlan(groups, plans, "random", {"seed": seed})
