"""Whether a module is tied by a plan, and making it so once.

To be tied is what a rewrite asks for: the members of each cluster are identical, bit for bit, in all that is made or rides on a channel.
What reads a channel is free, for its slices are summed. :mod:`pdc_fx.passes.tie` keeps a module tied while it trains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pdc_fx.errors import ExactnessError
from pdc_fx.ir import ClusterPlan
from pdc_fx.passes.axes import MergedAxis, merged_axes, named_tensors, tensor_of
from pdc_fx.passes.means import ClusterMeans


def tied_axes(plan: ClusterPlan) -> list[MergedAxis]:
    """The axes whose positions are to be identical inside clusters: all but those of readers."""
    return [axis for axis in merged_axes(plan) if axis.role != "consumer"]


def tie_once(model: nn.Module, plan: ClusterPlan) -> None:
    """Set each filter of ``model`` to the centroid of its cluster.

    Raises:
        InputError: the plan is of another model.
        ExactnessError: the weights hold NaN.
    """
    axes, tensors = tied_axes(plan), named_tensors(model)
    for axis in axes:
        tensor_of(tensors, axis)
    ClusterMeans(axes).project(tensors)
    require_tied(model, plan)


@dataclass(frozen=True)
class Residual:
    """The largest deviation inside any cluster: relative to the tensor's largest magnitude, and where it is."""

    value: float
    group: str = ""
    tensor: str = ""
    index: int = -1

    def __str__(self) -> str:
        return (
            f"{self.value:.3g} at position {self.index} of '{self.tensor}' in group '{self.group}'"
            if self.tensor
            else "0"
        )

    def __float__(self) -> float:
        return self.value


def residual(model: nn.Module, plan: ClusterPlan) -> Residual:
    """How far ``model`` is from being tied by ``plan``; exactly 0 where it is."""
    tensors = named_tensors(model)
    worst = Residual(0.0)
    for axis in tied_axes(plan):
        tensor = tensor_of(tensors, axis).detach()
        if not (tensor.is_floating_point() or tensor.is_complex()):
            tensor = tensor.double()  # a mask, or counts
        deviation = (tensor - tensor.index_select(axis.dim, _index(axis.stand_in, tensor))).abs()
        scale = max(float(tensor.abs().max()), torch.finfo(tensor.dtype).tiny)
        per_position = deviation.movedim(axis.dim, 0).reshape(len(axis.stand_in), -1).amax(1)
        value = float(per_position.max()) / scale
        if not value <= worst.value:
            worst = Residual(value, axis.group, axis.tensor, int(per_position.argmax()))
        if math.isnan(value):
            break
    return worst


def require_tied(model: nn.Module, plan: ClusterPlan) -> None:
    """Raise :class:`ExactnessError` unless the members of every cluster are identical, bit for bit."""
    found = residual(model, plan)
    if math.isnan(found.value):
        raise ExactnessError(
            "the weights hold NaN, of which none is equal to another",
            where=f"'{found.tensor}', position {found.index}",
            hint="take weights from before the training went wrong",
        )
    if found.value != 0:
        raise ExactnessError(
            f"the model is not tied: relative residual {found.value:.3g} in group '{found.group}'",
            where=f"'{found.tensor}', position {found.index}",
            hint="call tying.snap() before the rewrite, and change no weight in between",
        )


def _index(values: object, like: Tensor) -> Tensor:
    return torch.as_tensor(values, dtype=torch.int64, device=like.device)
