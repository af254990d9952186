"""Parameters and buffers as rules see them: as they are stored, and moved about before they meet channels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pdc_fx.rules.channels import FIXED, Channels, Shape


@dataclass(frozen=True)
class Weight:
    """A parameter or buffer of the model, used as it is or with its axes in another ``order``."""

    name: str
    shape: Shape
    order: Shape | None = None

    def axis(self, dim: int) -> int:
        """The axis of the stored tensor that is axis ``dim`` here."""
        return dim if self.order is None else self.order[dim]

    def permuted(self, order: Sequence[int]) -> Weight:
        """The same parameter with its axes in another order: ``w.t()``."""
        return Weight(self.name, tuple(self.shape[d] for d in order), tuple(self.axis(d) for d in order))

    @property
    def wide(self) -> tuple[int, ...]:
        """Its axes of more than one entry."""
        return tuple(d for d, size in enumerate(self.shape) if size > 1)


@dataclass(frozen=True)
class View:
    """What was computed from one parameter alone: a part of it, a copy for each image, another shape.

    Which axis of the parameter holds channels, only what it meets can tell: of position embeddings ``(1, tokens, channels)`` the last,
    of a gate that was learnt for each channel and row another. Until then every axis is followed, as if it were that one.

    Attributes:
        weight: the parameter.
        along: for each axis that might, where its entries lie in the result; labels are their numbers. An axis is missing where its
            entries do not stay apart.
        moved: false of the parameter itself.
    """

    weight: Weight
    along: Mapping[int, Channels]
    moved: bool = True

    @staticmethod
    def of(weight: Weight, dims: Iterable[int]) -> View:
        """The parameter itself, of which these axes might hold channels."""
        along = {}
        for dim in dims:
            label = torch.arange(weight.shape[dim]).reshape([-1 if d == dim else 1 for d in range(len(weight.shape))])
            along[dim] = Channels(weight.shape, label, torch.zeros_like(label))
        return View(weight, along, moved=False)

    @property
    def shape(self) -> Shape:
        return next(iter(self.along.values())).shape if self.along else self.weight.shape

    def holding(self, dim: int, label: Tensor) -> Channels:
        """The view if the channels ``label`` lie along axis ``dim`` of the parameter."""
        along = self.along[dim]
        found = torch.where(along.label == FIXED, FIXED, label[along.label.clamp(min=0)])
        return replace(along, label=found).collapsed()
