"""Shrink the tensors of a module by a plan: channel addition.

For a consumer ``w`` and a cluster ``c`` of positions along its input axis, ``w'[:, c] = sum(w[:, i] for i in c)``; every other tensor keeps
the entry of the representative. Module attributes that repeat a size follow (:mod:`pdc_fx.rules.resize`).
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from pdc_fx.ir import ClusterPlan
from pdc_fx.passes.axes import MergedAxis, by_tensor, merged_axes, named_tensors, tensor_of
from pdc_fx.rules.resize import resize

Module = TypeVar("Module", bound=nn.Module)


def merge_tensor(tensor: Tensor, axes: list[MergedAxis]) -> Tensor:
    """The tensor after channel addition along ``axes``."""
    result = tensor.detach()
    for axis in axes:
        kept = torch.as_tensor(axis.kept, device=tensor.device)
        merged = result.index_select(axis.dim, kept)
        if axis.role == "consumer":
            removed = torch.as_tensor([i for i, s in enumerate(axis.stand_in) if s != i], device=tensor.device)
            target = torch.as_tensor(axis.cluster, device=tensor.device).index_select(0, removed)
            merged.index_add_(axis.dim, target, result.index_select(axis.dim, removed))
        result = merged
    return result.clone() if result is tensor else result


def compacted(model: Module, plan: ClusterPlan) -> Module:
    """A copy of ``model`` with its tensors merged. Tensors that shrink are never copied at full size."""
    tensors = named_tensors(model)
    memo: dict[int, object] = {}
    before: dict[int, tuple[int, ...]] = {}
    for name, axes in by_tensor(merged_axes(plan)).items():
        old = tensors[name]
        for axis in axes:
            tensor_of(tensors, axis)
        new = merge_tensor(old, axes)
        memo[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new
        before[id(old)] = tuple(old.shape)
    compact = copy.deepcopy(model, memo)
    for old_module, new_module in zip(model.modules(), compact.modules(), strict=True):
        shapes = [
            before[id(t)]
            for t in (*old_module.parameters(recurse=False), *old_module.buffers(recurse=False))
            if id(t) in before
        ]
        if shapes:
            resize(new_module, max(shapes, key=len))
    return compact
