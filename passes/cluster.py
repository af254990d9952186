"""Groups + weights + budget -> cluster plan.

**Features.** A channel of a group is described by its filters in every producer of the group, joined: the rows of each producer's
weight, divided by the root mean square of that layer's entries so that every layer counts alike, then by the square root of
the row's length so that a wide kernel does not drown a narrow one.

**Clusters.** Ward's method (1963; scikit-learn's ``ward_tree``) merges, one pair at a time, the two clusters whose union adds least
to the within-cluster sum of squares. One tree per group holds the clusters for every width.

**Allocation.** ``uniform`` keeps the same share of every group, residual streams included; what integer widths leave over is
given out one channel at a time by largest remainder. ``global`` takes, over all trees at once, the merge with the least added sum
of squares per multiply-accumulate saved at the present widths.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from pdc_fx.errors import InputError, NothingToMergeError, PlanError
from pdc_fx.ir import ChannelGroup, ChannelGroups, ClusterPlan, Integers, first_appearance
from pdc_fx.passes.axes import named_tensors
from pdc_fx.passes.base import Pass

Allocation = Literal["uniform", "global"]
Floats = npt.NDArray[np.float64]
TOLERANCE = 0.01  # of the multiply-accumulates: how close a budget must be met


@dataclass(frozen=True)
class Tree:
    """Ward's tree of one group.

    Attributes:
        children: shape ``(channels - 1, 2)``, as scikit-learn gives it.
        costs: shape ``(channels - 1,)``; what each merge adds to the within-cluster sum of squares, not decreasing.
    """

    channels: int
    children: Integers
    costs: Floats

    def cut(self, width: int) -> Integers:
        """The clusters when ``width`` remain."""
        parent = np.arange(2 * self.channels - 1)
        for i, pair in enumerate(self.children[: self.channels - width]):
            parent[pair] = self.channels + i
        for node in range(len(parent) - 1, -1, -1):
            parent[node] = parent[parent[node]]
        return first_appearance(parent[: self.channels])


def features(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Floats:
    """Shape ``(channels, d)``: what the clustering sees of each channel."""
    blocks = []
    for member in group.producers or group.tied:
        tensor = tensors[member.tensor].detach()
        rows = tensor.movedim(member.dim, 0).reshape(tensor.shape[member.dim], -1).double().cpu().numpy()
        block = rows[member.positions].reshape(group.channels, -1)
        scale = np.sqrt((block**2).mean()) * np.sqrt(block.shape[1])
        blocks.append(block / scale if scale > 0 else block)
    return np.concatenate(blocks, axis=1) if blocks else np.zeros((group.channels, 1))


def ward(group: ChannelGroup, tensors: Mapping[str, Tensor]) -> Tree:
    """Ward's tree over the group's channels."""
    from sklearn.cluster import ward_tree

    children, _, _, _, distances = ward_tree(features(group, tensors), return_distance=True)
    return Tree(group.channels, np.asarray(children, dtype=np.int64), distances**2 / 2)


class PlanClusters(Pass[ChannelGroups, ClusterPlan]):
    """Spread a budget over the groups and cut their trees there."""

    def __init__(
        self,
        model: nn.Module,
        *,
        flops_reduction: float | None = None,
        params_reduction: float | None = None,
        allocation: Allocation = "global",
        round_to: int = 1,
        min_channels: int = 1,
    ) -> None:
        if (flops_reduction is None) == (params_reduction is None):
            raise InputError("give exactly one of flops_reduction and params_reduction")
        target = flops_reduction if flops_reduction is not None else params_reduction
        if target is None or not 0 < target < 1:
            raise InputError(f"a reduction is a share between 0 and 1, not {target}")
        if allocation not in ("uniform", "global"):
            raise InputError(f"unknown allocation {allocation!r}", hint="use 'uniform' or 'global'")
        if round_to < 1 or min_channels < 1:
            raise InputError("round_to and min_channels are at least 1")
        self.model, self.target, self.allocation = model, target, allocation
        self.measure = "flops" if flops_reduction is not None else "params"
        self.round_to, self.min_channels = round_to, min_channels

    def requires(self, value: ChannelGroups) -> None:
        if not value.groups:
            raise NothingToMergeError(
                "no two channels of this model may be merged", hint="'pdc-fx inspect' lists the reasons"
            )

    def call(self, value: ChannelGroups) -> ClusterPlan:
        budget = _Budget(value, self.measure, self.target)
        smallest = {i: self._rounded(1, g.channels) for i, g in enumerate(value.groups)}
        budget.require_reachable(smallest)
        tensors = named_tensors(self.model)
        trees = [ward(group, tensors) for group in value.groups]
        widths = self._uniform(value, budget) if self.allocation == "uniform" else self._global(value, budget, trees)
        options = {
            f"{self.measure}_reduction": self.target,
            "round_to": self.round_to,
            "min_channels": self.min_channels,
        }
        return ClusterPlan(value, tuple(tree.cut(widths[i]) for i, tree in enumerate(trees)), self.allocation, options)

    def ensures(self, value: ChannelGroups, result: ClusterPlan) -> None:
        reached = _Budget(value, self.measure, self.target).reduction(result.widths)
        if abs(reached - self.target) > TOLERANCE:
            raise PlanError(
                f"a reduction of {self.target:.1%} can only be met at {reached:.1%} with these widths",
                hint="choose a reduction near that, a smaller --round-to, or allocation 'global'",
            )

    def _rounded(self, width: int, channels: int) -> int:
        return min(channels, -(-max(width, self.min_channels) // self.round_to) * self.round_to)

    def _uniform(self, groups: ChannelGroups, budget: _Budget) -> dict[int, int]:
        """The same share everywhere: the smallest removal that meets the budget, then whole channels by remainder."""
        sizes = {i: g.channels for i, g in enumerate(groups.groups)}

        def widths(rate: float) -> dict[int, int]:
            return {i: self._rounded(max(1, round(n * (1 - rate))), n) for i, n in sizes.items()}

        rates = sorted(
            {k / n for n in set(sizes.values()) for k in range(n + 1)}
            | {(k + 0.5) / n for n in set(sizes.values()) for k in range(n)}
        )
        low, high = 0, len(rates) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if budget.met(widths(rates[middle])) else (middle + 1, high)
        enough, short = widths(rates[low]), widths(rates[max(low - 1, 0)])
        # between two neighbouring rates: widen groups one by one as long as the budget holds
        best = dict(enough)
        remainder = sorted(
            (i for i in sizes if short[i] != enough[i]), key=lambda i: -(sizes[i] * (1 - rates[low]) % 1)
        )
        for i in remainder:
            tried = {**best, i: short[i]}
            if budget.met(tried):
                best = tried
        return best

    def _global(self, groups: ChannelGroups, budget: _Budget, trees: list[Tree]) -> dict[int, int]:
        """Greedy over all trees; a stale price is renewed when it comes up, since savings fall as neighbours shrink."""
        widths = {i: g.channels for i, g in enumerate(groups.groups)}

        def price(i: int) -> tuple[float, int] | None:
            lower = self._rounded(((widths[i] - 1) // self.round_to) * self.round_to, trees[i].channels)
            if lower >= widths[i]:
                return None
            saved = budget.measured(widths) - budget.measured({**widths, i: lower})
            first, last = trees[i].channels - widths[i], trees[i].channels - lower
            return float(trees[i].costs[first:last].sum()) / max(saved, 1), lower

        heap = [(p[0], i) for i in widths if (p := price(i)) is not None]
        heapq.heapify(heap)
        while heap and not budget.met(widths):
            _, i = heapq.heappop(heap)
            now = price(i)
            if now is None:
                continue
            if heap and now[0] > heap[0][0] * (1 + 1e-12):
                heapq.heappush(heap, (now[0], i))
                continue
            before = widths[i]
            widths[i] = now[1]
            if budget.reduction(widths) > self.target + TOLERANCE / 2:
                widths[i] = before  # too large a step so near the end: leave this group as it is
                continue
            if (again := price(i)) is not None:
                heapq.heappush(heap, (again[0], i))
        return widths


class _Budget:
    """How much of the multiply-accumulates, or of the parameters, goes at given widths."""

    def __init__(self, groups: ChannelGroups, measure: str, target: float) -> None:
        self.groups, self.target = groups, target
        self.measured = groups.macs if measure == "flops" else groups.params
        self.what = "multiply-accumulates" if measure == "flops" else "parameters"
        self.total = self.measured(None)

    def reduction(self, widths: Mapping[int, int]) -> float:
        return 1 - self.measured(widths) / self.total

    def met(self, widths: Mapping[int, int]) -> bool:
        return self.reduction(widths) >= self.target

    def require_reachable(self, smallest: Mapping[int, int]) -> None:
        most = self.reduction(smallest)
        if most < self.target - TOLERANCE:
            raise PlanError(
                f"a reduction of {self.target:.1%} of the {self.what} cannot be met",
                hint=f"the largest possible here is {most:.1%} (every group at its smallest width)",
            )


def recluster(model: nn.Module, plan: ClusterPlan, share: float) -> ClusterPlan:
    """The plan with clusters formed from the present weights, ``share`` (0 to 1) of the way to its final widths."""
    tensors = named_tensors(model)
    clusters = []
    for index, group in enumerate(plan.groups.groups):
        width = group.channels - round((group.channels - plan.widths[index]) * share)
        clusters.append(ward(group, tensors).cut(width))
    return plan.with_clusters(clusters)
