"""Groups + weights -> trees of clusters, from one for every channel to one for all.

**Features.** A channel of a group is described by its filters in every producer of the group, joined: the rows of each producer's
weight, divided by the root mean square of that layer's entries so that every layer counts alike, then by the square root of
the row's length so that a wide kernel does not drown a narrow one.

**Clusters.** Ward's method (1963; scikit-learn's ``ward_tree``) merges, one pair at a time, the two clusters whose union adds least
to the within-cluster sum of squares. One tree per group holds the clusters for every width.

Where a normalisation averages over channels (``ChannelGroup.balance``), all clusters are of one size ``m``: balanced k-means
(Malinen and Fraenti, 2014) starts from Ward's clusters and gives each channel one of ``m`` seats at a centroid, at the least sum
of squares (SciPy's ``linear_sum_assignment``), until nothing changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from pdc_fx.ir import ChannelGroup, ChannelGroups, ClusterPlan, Integers, first_appearance
from pdc_fx.passes.axes import named_tensors

Floats = npt.NDArray[np.float64]


class Hierarchy(Protocol):
    """Clusters of a group for every width. ``costs``: shape ``(channels - 1,)``; what each channel less adds."""

    @property
    def channels(self) -> int: ...
    @property
    def costs(self) -> Floats: ...
    def cut(self, width: int) -> Integers: ...


@dataclass(frozen=True)
class Tree:
    """Ward's tree of one group.

    Attributes:
        children: shape ``(channels - 1, 2)``, as scikit-learn gives it.
        costs: shape ``(channels - 1,)``; what each merge adds to the within-cluster sum of squares per channel, not decreasing.
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


def ward(data: Floats) -> Tree:
    """Ward's tree over the channels, the rows of ``data``."""
    from sklearn.cluster import ward_tree

    children, _, _, _, distances = ward_tree(data, return_distance=True)
    return Tree(len(data), np.asarray(children, dtype=np.int64), distances**2 / (2 * len(data)))


def balanced(data: Floats, start: Integers, size: int, rounds: int = 10) -> Integers:
    """Clusters of ``size`` channels each.

    Args:
        data: shape ``(channels, d)``.
        start: clusters to start from, ``channels / size`` of them.

    >>> balanced(np.asarray([[0.0], [0.1], [0.2], [5.0]]), np.asarray([0, 0, 0, 1]), 2).tolist()
    [0, 0, 1, 1]
    """
    from scipy.optimize import linear_sum_assignment

    clusters, width = start, len(start) // size
    for _ in range(rounds):
        centroids = np.stack([data[clusters == c].mean(0) for c in range(width)])
        squares = ((data**2).sum(1)[:, None] + (centroids**2).sum(1)) - 2 * data @ centroids.T
        _, seats = linear_sum_assignment(np.repeat(squares, size, axis=1))
        now = first_appearance(seats // size)
        if np.array_equal(now, clusters):
            break
        clusters = now
    return clusters


@dataclass(frozen=True)
class Bloc:
    """Groups whose widths are chosen together: one, or all that a normalisation averages over.

    Attributes:
        members: numbers of the groups.
        widths: the choices, from all channels downwards: the width of each member.
    """

    members: tuple[int, ...]
    widths: tuple[tuple[int, ...], ...]
    trees: tuple[Hierarchy, ...]
    data: tuple[Floats, ...]
    is_balanced: bool

    def clusters(self, level: int) -> list[Integers]:
        """The clusters of each member at a choice."""
        cuts = [tree.cut(width) for tree, width in zip(self.trees, self.widths[level], strict=True)]
        if not self.is_balanced:
            return cuts
        size = self.trees[0].channels // self.widths[level][0]
        return [balanced(data, cut, size) for data, cut in zip(self.data, cuts, strict=True)]

    @cached_property
    def _costs(self) -> dict[int, float]:
        return {}

    def cost(self, level: int) -> float:
        """The within-cluster sum of squares per channel at a choice, over all members."""
        if not self.is_balanced:
            removed = self.trees[0].channels - self.widths[level][0]
            return float(self.trees[0].costs[:removed].sum())
        if level not in self._costs:
            pairs = zip(self.data, self.clusters(level), strict=True)
            self._costs[level] = sum(_within(data, clusters) / len(data) for data, clusters in pairs)
        return self._costs[level]

    def nearest(self, share: float) -> int:
        """The choice that keeps the share of the channels nearest to ``share``."""
        kept = np.asarray([widths[0] / self.widths[0][0] for widths in self.widths])
        return int(np.abs(kept - share).argmin())


def _within(data: Floats, clusters: Integers) -> float:
    return float(
        sum(((data[clusters == c] - data[clusters == c].mean(0)) ** 2).sum() for c in range(clusters.max() + 1))
    )


def blocs(groups: ChannelGroups, tensors: Mapping[str, Tensor]) -> list[Bloc]:
    """All groups, each with the widths it can have."""
    single = [(i,) for i, g in enumerate(groups.groups) if g.balance is None]
    found = []
    for members in [*single, *groups.balanced.values()]:
        channels = [groups.groups[i].channels for i in members]
        number = groups.groups[members[0]].balance
        if number is None:
            choices: list[tuple[int, ...]] = [(width,) for width in range(channels[0], 0, -1)]
        else:
            choices = [tuple(n // size for n in channels) for size in groups.cluster_sizes(number)]
        data = tuple(features(groups.groups[i], tensors) for i in members)
        found.append(Bloc(members, tuple(choices), tuple(map(ward, data)), data, number is not None))
    return sorted(found, key=lambda bloc: bloc.members)


def recluster(model: nn.Module, plan: ClusterPlan, share: float) -> ClusterPlan:
    """The plan with clusters formed from the present weights, ``share`` (0 to 1) of the way to its final widths."""
    clusters: dict[int, Integers] = {}
    for bloc in blocs(plan.groups, named_tensors(model)):
        first = bloc.members[0]
        channels = plan.groups.groups[first].channels
        width = channels - round((channels - plan.widths[first]) * share)
        # the nearest choice that does not remove more
        level = max(i for i, widths in enumerate(bloc.widths) if widths[0] >= width)
        clusters.update(zip(bloc.members, bloc.clusters(level), strict=True))
    return plan.with_clusters(clusters[i] for i in range(len(clusters)))
