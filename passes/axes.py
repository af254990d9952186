"""Plan -> tensor axes: which position of which axis stands for which.

Tying, rewriting and the residual all read the plan through this table, so they cannot disagree about it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor, nn

from pdc_fx.errors import InputError
from pdc_fx.ir import ChannelGroups, ClusterPlan, Integers, Role


@dataclass(frozen=True)
class MergedAxis:
    """One axis of one tensor under a plan.

    Attributes:
        stand_in: shape ``(size,)``; the position that represents each position. Those that represent themselves remain.
        group: name of the group that owns the axis (the first, where several do).
    """

    tensor: str
    dim: int
    role: Role
    group: str
    stand_in: Integers

    @cached_property
    def kept(self) -> Integers:
        """The positions that remain."""
        return np.flatnonzero(self.stand_in == np.arange(len(self.stand_in)))

    @property
    def cluster(self) -> Integers:
        """Shape ``(size,)``; the position of each one's representative among those kept."""
        index = np.zeros(len(self.stand_in), dtype=np.int64)
        index[self.kept] = np.arange(len(self.kept))
        return index[self.stand_in]


def merged_axes(plan: ClusterPlan) -> list[MergedAxis]:
    """Every axis on which at least two positions become one, in the order of tensors and axes."""
    owner: dict[tuple[str, int], tuple[Role, str]] = {}
    for group in plan.groups.groups:
        for member in group.members:
            owner.setdefault((member.tensor, member.dim), (member.role, group.name))
    positions = stand_ins(plan.groups, plan.representatives)
    axes = [MergedAxis(*place, *owner[place], positions[place]) for place in sorted(positions)]
    return [axis for axis in axes if len(axis.kept) < len(axis.stand_in)]


def stand_ins(groups: ChannelGroups, chosen: Sequence[Integers]) -> dict[tuple[str, int], Integers]:
    """(tensor, axis) -> the position that stands for each, where ``chosen[g][i]`` stands for channel ``i`` of group ``g``."""
    table: dict[tuple[str, int], Integers] = {}
    for group, channels in zip(groups.groups, chosen, strict=True):
        for member in group.members:
            size = groups.shapes[member.tensor][member.dim]
            place = table.setdefault((member.tensor, member.dim), np.arange(size))
            place[member.positions] = member.positions[channels]
    return table


def by_tensor(axes: list[MergedAxis]) -> dict[str, list[MergedAxis]]:
    """The axes of each tensor."""
    table: dict[str, list[MergedAxis]] = defaultdict(list)
    for axis in axes:
        table[axis.tensor].append(axis)
    return dict(table)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by every name they have."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def tensor_of(tensors: Mapping[str, Tensor], axis: MergedAxis) -> Tensor:
    """The tensor of an axis; :class:`InputError` if the model has none of that shape."""
    tensor = tensors.get(axis.tensor)
    if tensor is None or tensor.dim() <= axis.dim or tensor.shape[axis.dim] != len(axis.stand_in):
        shape = "missing" if tensor is None else tuple(tensor.shape)
        raise InputError(
            "the plan does not belong to this model",
            where=f"'{axis.tensor}': {shape}, axis {axis.dim} should hold {len(axis.stand_in)}",
        )
    return tensor
