"""How alike the filters were that were merged: cosine similarities in the network before compression, ordered by cluster.

The filter of a channel is the row that clustering sees, :func:`pdc_fx.passes.cluster.features`: the weights of all layers that make
it, one after the other. Clusters stand along the diagonal as squares, the largest first. Matrices grow with the square of the
channels, so that a page holds those of groups of up to :data:`LARGEST` channels, and no more than :data:`ROOM` values in all.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pdc_fx.ir import ClusterPlan, Integers
from pdc_fx.passes.cluster import features

LARGEST = 256
"""Channels of the largest group that is shown."""

ROOM = 400_000
"""Values in a page, of a byte each: half a megabyte."""


@dataclass(frozen=True)
class Similarity:
    """The filters of one group.

    Attributes:
        group: its number in the plan.
        order: its channels, those of a cluster one after the other.
        sizes: sizes of the clusters in that order.
        cosines: shape ``(channels, channels)``, in that order.
    """

    group: int
    order: Integers
    sizes: Integers
    cosines: npt.NDArray[np.float64]

    def means(self) -> tuple[float | None, float | None]:
        """The mean similarity of two channels of one cluster, and of two clusters; None where there are no such pairs."""
        label = np.repeat(np.arange(len(self.sizes)), self.sizes)
        same = label[:, None] == label
        inside, across = self.cosines[same & ~np.eye(len(label), dtype=bool)], self.cosines[~same]
        return float(inside.mean()) if inside.size else None, float(across.mean()) if across.size else None

    def to_dict(self) -> dict[str, Any]:
        """For the page's script; ``cosines`` is the upper triangle, row by row, in steps of 1/127 as signed bytes in base64."""
        upper = self.cosines[np.triu_indices(len(self.order))]
        return {
            "group": self.group,
            "order": self.order.tolist(),
            "sizes": self.sizes.tolist(),
            "cosines": base64.b64encode(np.rint(127 * upper).astype(np.int8).tobytes()).decode(),
            "means": self.means(),
        }


def similarity(plan: ClusterPlan, index: int, tensors: Mapping[str, Tensor]) -> Similarity:
    """That of one group; a filter of nothing but zeros is like no other.

    Args:
        tensors: the state dict of the network before compression.
    """
    labels = plan.clusters[index]
    sizes = np.bincount(labels)
    rank = np.argsort(np.argsort(-sizes, kind="stable"), kind="stable")
    order = np.argsort(rank[labels], kind="stable")
    rows = features(plan.groups.groups[index], tensors)[order]
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0)
    return Similarity(index, order, -np.sort(-sizes), np.clip(rows @ rows.T, -1, 1))


def similarities(
    plan: ClusterPlan, tensors: Mapping[str, Tensor], stakes: Sequence[tuple[int, int]]
) -> tuple[list[Similarity], int]:
    """Those of the groups in which something was merged, in the order of the plan, and how many were left out for their size.

    Where room is short, the groups with the most multiply-accumulates at stake are shown.
    """
    merged = [i for i, group in enumerate(plan.groups.groups) if plan.widths[i] < group.channels]
    chosen, room = [], ROOM
    for index in sorted(merged, key=lambda i: -stakes[i][0]):
        channels = plan.groups.groups[index].channels
        values = channels * (channels + 1) // 2
        if channels <= LARGEST and values <= room:
            chosen.append(index)
            room -= values
    return [similarity(plan, index, tensors) for index in sorted(chosen)], len(merged) - len(chosen)
