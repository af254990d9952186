"""Which tensors cannot change, entry by entry: they share memory, or have no mean."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def overlapping(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Tensors of which one cannot change without another one, or one entry without another, and why.

    >>> weight = torch.zeros(8, 3)
    >>> sorted(overlapping({"a": weight, "b": weight[:4], "c": torch.zeros(2), "d": torch.zeros(1).expand(8)}))
    ['a', 'b', 'd']
    """
    found: dict[str, str] = {}
    by_storage: dict[int, list[tuple[int, int, str]]] = {}
    for name, tensor in {id(tensor): (name, tensor) for name, tensor in reversed(list(tensors.items()))}.values():
        pointer = pointer_of(tensor)
        if not pointer or not tensor.numel():
            continue
        reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
        if reach + 1 < tensor.numel():
            found[name] = f"several entries of '{name}' are one number in memory (an expanded tensor)"
        start = int(tensor.storage_offset())
        by_storage.setdefault(pointer, []).append((start, start + int(reach), name))
    for spans in by_storage.values():
        spans.sort()
        for index, (_, stop, name) in enumerate(spans):
            for start, _, other in spans[index + 1 :]:
                if start <= stop:
                    found.setdefault(other, f"'{other}' shares memory with '{name}', without being the same tensor")
                    found.setdefault(name, f"'{name}' shares memory with '{other}', without being the same tensor")
    return found


def unequal(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Masks and counts, and the axes along which they differ: of truth values and whole numbers there is no mean.

    >>> unequal({"mask": torch.tensor([[True, False], [True, False]]), "weight": torch.zeros(2)})
    {'mask': (1,)}
    """
    found = {}
    for name, tensor in tensors.items():
        whole = not (tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized)
        if whole and tensor.layout is torch.strided and tensor.numel():
            axes = tuple(d for d in range(tensor.dim()) if bool((tensor != tensor.narrow(d, 0, 1)).any()))
            found.update({name: axes} if axes else {})
    return found


def pointer_of(tensor: Tensor) -> int:
    """Where the memory of a tensor lies; 0 where it has none of its own to look at."""
    with torch._C.DisableTorchFunction():
        while torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            tensor = torch._C._functorch.get_unwrapped(tensor)
        try:
            return tensor.untyped_storage().data_ptr()
        except (NotImplementedError, RuntimeError):  # sparse, opaque and fake tensors
            return 0


def disjoint(one: Tensor, other: Tensor) -> bool:
    """Whether two views of one tensor certainly have no number in common, as the parts of a split.

    They do not where both step alike through memory and lie behind each other along one axis of what they are parts of.

    >>> x = torch.zeros(2, 6, 3)
    >>> (a, b), (c, d) = x.chunk(2, 1), x.chunk(2, 2)
    >>> disjoint(a, b), disjoint(c, d), disjoint(a, c), disjoint(x, a), disjoint(x[:, :4], x[:, 3:])
    (True, True, False, False, False)
    """
    if torch._C._get_tracing_state() is not None:  # TorchScript traces, and takes sizes for tensors
        return False
    if one.stride() != other.stride() or one.dtype != other.dtype or not (one.numel() and other.numel()):
        return False
    first, last = sorted((one, other), key=Tensor.storage_offset)
    apart = int(last.storage_offset() - first.storage_offset())
    strides = first.stride()
    for axis, stride in enumerate(strides):
        if stride < 1 or apart % stride or first.shape[axis] * stride > apart:
            continue
        longest = [max(a, b) - 1 for a, b in zip(first.shape, last.shape, strict=True)]
        inside = sum(longest[d] * strides[d] for d in range(len(strides)) if 0 <= strides[d] < stride and d != axis)
        beyond = [strides[d] for d in range(len(strides)) if d != axis and strides[d] >= stride and longest[d]]
        if inside < stride and apart + last.shape[axis] * stride <= min(
            beyond, default=apart + last.shape[axis] * stride
        ):
            return True
    return False
