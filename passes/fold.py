"""Groups + weights -> tied module + plan, without data: model folding.

Filters are clustered jointly over all coupled layers (:mod:`pdc_fx.passes.cluster`) and set to their centroids. The mean of ``m``
filters gives a signal that varies less than theirs, layer by layer, until nothing is left. Where a batch norm follows, its statistics are
repaired (Wang et al., "Forget the Data and Fine-Tuning! Just Fold the Network to Compress", ICLR 2025). Its mean is the mean of the
means, since a convolution is linear. Its variance follows from that of each filter and their correlation, for which the cosine of the
filters stands, as it would be on white inputs:

    var(y_1 + .. + y_m) / m^2 = sum_ij cos(w_i, w_j) s_i s_j / m^2

With images the statistics are estimated from them instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from pdc_fx.errors import TraceError
from pdc_fx.ir import ChannelGroups, ClusterPlan
from pdc_fx.passes.allocation import PlanClusters
from pdc_fx.passes.axes import merged_axes, named_tensors
from pdc_fx.passes.base import Pass
from pdc_fx.passes.statistics import ReestimateNorms, Watch, require_images, run_watched
from pdc_fx.passes.tied import require_tied, tie_once
from pdc_fx.trace import copied, require_usable, zeros_of


def folded_variance(weight: Tensor, variance: Tensor, clusters: Tensor) -> Tensor:
    """The variance of the mean of each cluster's filters, at each of its channels.

    Args:
        weight: shape ``(out, ..)``; variance: ``(out,)``, of each filter's output; clusters: ``(out,)``.

    >>> folded_variance(torch.eye(3), torch.ones(3), torch.tensor([0, 0, 1])).tolist()
    [0.5, 0.5, 1.0]
    """
    rows = nn.functional.normalize(weight.flatten(1).double(), dim=1)
    signals = rows * variance.double().sqrt()[:, None]
    count = int(clusters.max()) + 1
    sums = signals.new_zeros(count, signals.shape[1]).index_add_(0, clusters, signals)
    sizes = torch.bincount(clusters, minlength=count).to(signals)
    return (sums.square().sum(1) / sizes**2)[clusters].to(variance)


@dataclass(frozen=True)
class Fold(Pass[nn.Module, tuple[nn.Module, ClusterPlan]]):
    """Folding as a pass: module -> a tied copy of it, and the plan.

    Attributes:
        planner: forms the clusters.
        images: ``(N, C, H, W)`` for the statistics of batch norms, or None to repair these from the weights.
    """

    groups: ChannelGroups
    planner: PlanClusters
    images: Tensor | None = None

    def requires(self, value: nn.Module) -> None:
        require_usable(value)
        self.planner.requires(self.groups)
        if self.images is not None:
            require_images(self.images, self.groups)

    def call(self, value: nn.Module) -> tuple[nn.Module, ClusterPlan]:
        tied, plan = copied(value), self.planner(self.groups)
        repaired = {} if self.images is not None else _repaired(tied, plan)
        tie_once(tied, plan)
        tensors = named_tensors(tied)
        if self.images is not None:
            device = next(iter(tensors.values())).device
            run_watched(tied, self.images.to(device), ReestimateNorms(tied, 1))
        with torch.no_grad():
            for name, variance in repaired.items():
                tensors[name].copy_(variance)
        tie_once(tied, plan)
        return tied, plan

    def ensures(self, value: nn.Module, result: tuple[nn.Module, ClusterPlan]) -> None:
        require_tied(*result)


@torch.no_grad()
def _repaired(model: nn.Module, plan: ClusterPlan) -> dict[str, Tensor]:
    """The running variances that change, found by running the structure once on zeros."""
    tensors = named_tensors(model)
    device = next(iter(tensors.values())).device
    watch = Watch(model, 1)
    try:
        run_watched(model, zeros_of(plan.groups.inputs, device), watch)
    except Exception as error:
        raise TraceError(
            f"folding runs the model on its tensors alone, one after the other, which {type(model).__name__} does not take: {error}",
            hint="wrap it in a module that takes tensors and calls it as it wants",
        ) from error
    axes = {axis.tensor: axis for axis in merged_axes(plan) if axis.dim == 0 and axis.role != "consumer"}
    repaired = {}
    for name, weight in watch.normed.items():
        if name in axes:
            clusters = torch.as_tensor(np.asarray(axes[name].cluster), device=device)
            repaired[name] = folded_variance(tensors[weight], tensors[name], clusters)
    return repaired
