"""Shrink the tensors of a module by a plan: channel addition.

For a consumer ``w`` and a cluster ``c`` of positions along its input axis, ``w'[:, c] = sum(w[:, i] for i in c)``; every other tensor keeps
the entry of the representative. Module attributes that repeat a size follow (:mod:`pdc_fx.rules.resize`).
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from math import prod
from typing import TypeVar

import torch
from torch import Tensor, nn

from pdc_fx.ir import ClusterPlan
from pdc_fx.passes.axes import MergedAxis, by_tensor, merged_axes, named_tensors, tensor_of
from pdc_fx.rules.resize import resize

Module = TypeVar("Module", bound=nn.Module)

BLOCK = 2**22  # entries


def merge_tensor(tensor: Tensor, axes: list[MergedAxis]) -> Tensor:
    """The tensor after channel addition along ``axes``; a large one is done a block of rows at a time, to need little memory."""
    tensor = tensor.detach()
    first, others = [a for a in axes if a.dim == 0], [a for a in axes if a.dim != 0]
    if tensor.numel() <= BLOCK or any(axis.role == "consumer" for axis in first):
        return _merged(tensor, axes)
    rows = torch.from_numpy(first[0].kept) if first else torch.arange(len(tensor))
    shape = [len(rows), *tensor.shape[1:]]
    for axis in others:
        shape[axis.dim] = len(axis.kept)
    result = tensor.new_empty(shape)
    blocks = -(-tensor.numel() // BLOCK)
    for part, block in zip(result.tensor_split(blocks), rows.tensor_split(blocks), strict=True):
        part.copy_(_merged(tensor.index_select(0, block.to(tensor.device)), others))
    return result


def _merged(tensor: Tensor, axes: list[MergedAxis]) -> Tensor:
    for axis in sorted(axes, key=lambda axis: axis.role == "consumer"):  # what merely goes, goes first: less to add up
        if axis.role == "consumer":
            tensor = _added(tensor, axis)
        else:
            tensor = tensor.index_select(axis.dim, torch.as_tensor(axis.kept, device=tensor.device))
    return tensor


def _added(tensor: Tensor, axis: MergedAxis) -> Tensor:
    """The slices of each cluster summed up. Seen as a matrix where it is one: ``index_add_`` is slow where axes have size 1."""
    before, (size, *behind) = tensor.shape[: axis.dim], tensor.shape[axis.dim :]
    flat = tensor.reshape(prod(before), size, prod(behind)).squeeze(2)
    total = flat.new_zeros(prod(before), len(axis.kept), *flat.shape[2:])
    total.index_add_(1, torch.as_tensor(axis.cluster, device=tensor.device), flat)
    return total.reshape(*before, len(axis.kept), *behind)


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
    _copy_into(memo, model)
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


def _copy_into(memo: dict[int, object], model: nn.Module) -> None:
    """Copy every module below ``model`` into the ``memo`` of a ``deepcopy``.

    What ``copy.deepcopy`` does, without its detours: it would spend most of its time on the dozen empty tables of hooks and the
    plain values that every module holds. Classes that say themselves how they are copied are left to it.
    """
    modules = list(model.modules())
    plain = {kind for kind in map(type, modules) if all(_same(kind, name) for name in _COPYING)}
    for module in reversed(modules):  # children before parents
        if type(module) not in plain or id(module) in memo:
            continue
        memo[id(module)] = new = nn.Module.__new__(type(module))
        state: dict[str, object] = {}
        for name, value in vars(module).items():
            if type(value) in _TABLES and not value:
                state[name] = memo.setdefault(id(value), type(value)())
            else:
                state[name] = value if type(value) in _ATOMS else copy.deepcopy(value, memo)
        new.__setstate__(state)  # type: ignore[no-untyped-call]


def _same(kind: type[nn.Module], name: str) -> bool:
    """Whether a class has a method, or the lack of it, from ``nn.Module``."""
    return getattr(kind, name, None) is getattr(nn.Module, name, None)


_COPYING = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__new__", "__slots__")
_TABLES = (dict, OrderedDict, set)
_ATOMS = (type(None), bool, int, float, str)
