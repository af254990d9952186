"""Shrink the tensors of a module by a plan: channel addition. And back.

For a consumer ``w`` and a cluster ``c`` of positions along its input axis, ``w'[:, c] = sum(w[:, i] for i in c)``; every other tensor keeps
the entry of the representative. Module attributes that repeat a size follow (:mod:`pdc_fx.rules.resize`).

The way back gives each member the representative's entry and, in a consumer, the representative the whole slice and the others zeros:
of all tied networks whose channel addition is the small one, that whose sums are exact in any precision.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from math import prod
from typing import TypeVar

import torch
from torch import Tensor, nn

from pdc_fx.ir import ClusterPlan
from pdc_fx.passes.axes import MergedAxis, by_tensor, merged_axes, named_tensors, tensor_of
from pdc_fx.passes.prediction import Prediction
from pdc_fx.rules.resize import resize, resize_bare
from pdc_fx.trace import copied

Module = TypeVar("Module", bound=nn.Module)

BLOCK = 2**22  # entries


def merge_tensor(tensor: Tensor, axes: list[MergedAxis]) -> Tensor:
    """The tensor after channel addition along ``axes``, in the same memory format."""
    return _merged_in_blocks(tensor.detach(), axes).contiguous(memory_format=_format_of(tensor))


def _format_of(tensor: Tensor) -> torch.memory_format:
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim(), torch.contiguous_format)
    return last if tensor.is_contiguous(memory_format=last) and not tensor.is_contiguous() else torch.contiguous_format


def _merged_in_blocks(tensor: Tensor, axes: list[MergedAxis]) -> Tensor:
    """A large tensor is done a block of rows at a time, to need little memory."""
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


def expanded_tensor(tensor: Tensor, axes: list[MergedAxis]) -> Tensor:
    """What :func:`merge_tensor` makes ``tensor`` of, bit for bit.

    >>> import numpy as np
    >>> axes = [MergedAxis("w", 0, "producer", "a", np.array([0, 1, 0])), MergedAxis("w", 1, "consumer", "b", np.array([0, 0, 2]))]
    >>> expanded_tensor(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), axes).tolist()
    [[1.0, 0.0, 2.0], [3.0, 0.0, 4.0], [1.0, 0.0, 2.0]]
    """
    tensor = tensor.detach()
    for axis in axes:
        if axis.role == "consumer":
            shape = list(tensor.shape)
            shape[axis.dim] = len(axis.stand_in)
            kept = torch.as_tensor(axis.kept, device=tensor.device)
            tensor = tensor.new_zeros(shape).index_copy_(axis.dim, kept, tensor)
        else:
            tensor = tensor.index_select(axis.dim, torch.as_tensor(axis.cluster, device=tensor.device))
    return tensor


@torch.no_grad()
def expand(compact: nn.Module, model: nn.Module, plan: ClusterPlan) -> None:
    """Give ``model``, of which ``compact`` is the channel addition by ``plan``, weights that are tied and come to those of ``compact``.

    What no call of the model uses may be missing in ``compact``, and stays.
    """
    small, axes = named_tensors(compact), by_tensor(merged_axes(plan))
    for name, tensor in named_tensors(model).items():
        if name in small or name in axes:
            tensor.copy_(expanded_tensor(small[name], axes.get(name, [])))


def compacted(model: Module, prediction: Prediction) -> Module:
    """A copy of ``model`` with its tensors merged. Tensors that shrink are never copied at full size."""
    plan = prediction.plan
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
    compact = copied(model, memo | _empty_tables(model))
    given = prediction.shapes_in()
    for (name, old_module), new_module in zip(model.named_modules(), compact.modules(), strict=True):
        shapes = [before[id(t)] for t in tensors_of(old_module) if id(t) in before]
        if shapes:
            resize(new_module, max(shapes, key=len))
        elif name in given and not any(True for _ in tensors_of(old_module)):
            resize_bare(new_module, given[name])
    return compact


def tensors_of(module: nn.Module) -> Iterator[Tensor]:
    """The parameters and buffers of a module itself."""
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def _empty_tables(model: nn.Module) -> dict[int, object]:
    """Copies, by id, of the empty tables of hooks that a module has a dozen of: ``deepcopy`` would spend most of its time there."""
    tables = (value for module in model.modules() for value in vars(module).values())
    return {id(table): type(table)() for table in tables if type(table) in (dict, OrderedDict) and not table}
