"""The abstract value: where the channels of a tensor live, and how their values came about.

For a tensor of shape ``s`` a rule sees :class:`Channels`: two integer tensors ``label`` and ``path`` of
the rank of ``s``, with size 1 along every axis in which the channel does not vary (``1 x C x 1 x 1`` for a feature map).

- ``label`` says *which* channel lives at a position. Producers mint labels; element-wise operations unify them; data movement
  is executed on them. ``FIXED`` (-1) marks what is no channel: an input image, a constant.
- ``path`` says *how* the value there came about: a 64-bit hash of the operations from the producer on. Two positions with
  equal paths were treated alike. A channel is known by the paths at which each tensor axis meets it, its *signature*:
  channels of equal signature may replace each other, and the places of one are matched to the places of another by path.

This is why merging is exact for channels of one signature, by induction over the graph: if producers and channel-wise
parameters agree inside a cluster, then two positions of equal path hold equal values, and a reader may sum their slices.
What could break the induction makes the path differ: another operation on a part of the channels, a gate that is a different
channel, another place in a flattened map.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

FIXED = -1
Shape = tuple[int, ...]


def mix(*parts: Tensor | int) -> Tensor:
    """Hash integers and integer tensors (broadcast) into one int64 tensor; order matters."""
    result: Tensor | int = 0x1234567
    for part in parts:
        mixed = result ^ part
        if isinstance(mixed, int):  # what an int64 would hold
            mixed = (mixed * 0x9E3779B97F4A7C1 + 0x7F4A7C15 + 2**63) % 2**64 - 2**63
            result = mixed ^ (mixed >> 29)
        else:  # a tensor of our own, so that it may be changed in place
            mixed.mul_(0x9E3779B97F4A7C1).add_(0x7F4A7C15)
            result = mixed.bitwise_xor_(mixed >> 29)
    return torch.as_tensor(result)


@dataclass(frozen=True)
class Channels:
    """Where the channels of one tensor live.

    Attributes:
        shape: the tensor's shape on the example inputs.
        label: int64, of the same rank; size 1 or the full size along each axis.
        path: int64, same shape as ``label``.
        same: axes along which the tensor is known to repeat one value (expanded, or zeros made in the forward pass).
    """

    shape: Shape
    label: Tensor
    path: Tensor
    same: frozenset[int] = frozenset()

    @staticmethod
    def fixed(shape: Shape, same: Iterable[int] = ()) -> Channels:
        """No channel at all."""
        one = torch.full([1] * len(shape), FIXED)
        return Channels(shape, one, torch.zeros_like(one), frozenset(same))

    @property
    def varying(self) -> tuple[int, ...]:
        """The axes along which the channel varies."""
        return tuple(d for d, size in enumerate(self.label.shape) if size > 1)

    def size(self, dim: int) -> int:
        """Along how many positions of ``dim`` the value may differ."""
        return 1 if dim in self.same else self.shape[dim]

    def then(self, key: int | Tensor, shape: Shape | None = None) -> Channels:
        """The same channels after an operation that treats all positions alike."""
        same = self.same if shape is None else frozenset[int]()
        return Channels(self.shape if shape is None else shape, self.label, mix(self.path, key), same)

    def expanded(self, dims: Iterable[int]) -> Channels:
        """Write the label out along ``dims``; positions that were one now differ in their path."""
        label, path = self.label, self.path
        for dim in dims:
            size = self.shape[dim]
            if label.shape[dim] == 1 and size != 1:
                sizes = [-1] * label.dim()
                sizes[dim] = size
                index = torch.arange(size).reshape([size if d == dim else 1 for d in range(label.dim())])
                label, path = label.expand(sizes), mix(path, index)
        return replace(self, label=label, path=path)

    def collapsed(self) -> Channels:
        """Shrink axes along which the label turns out not to vary to size 1, hashing their paths together."""
        label, path = self.label, self.path
        for dim, size in enumerate(label.shape):
            if size > 1 and bool((label == label.narrow(dim, 0, 1)).all()):
                index = torch.arange(size).reshape([size if d == dim else 1 for d in range(label.dim())])
                label, path = label.narrow(dim, 0, 1), mix(path, index).sum(dim, keepdim=True)
        return replace(self, label=label, path=path)
