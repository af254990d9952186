"""Pairs of images of one batch made into one: mixup and CutMix.

A teacher knows its training images by heart, and on these it tells little more than the labels do. Between them it has to generalise, and
a student that follows it there learns the function in place of the answers (Beyer et al., "Knowledge distillation: A good teacher is
patient and consistent", CVPR 2022).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Mixed(NamedTuple):
    """A batch in which image ``i`` is ``share`` of itself, the rest being of its neighbour, whose label is ``others[i]``."""

    images: Tensor
    labels: Tensor
    others: Tensor
    share: float

    def right(self, predicted: Tensor) -> Tensor:
        """How many images are classified rightly; a mixed one counts by the share of the class that was found.

        >>> found = torch.tensor([3, 5, 0])
        >>> float(Mixed(torch.zeros(3, 1, 8, 8), torch.tensor([3, 3, 3]), torch.tensor([5, 5, 5]), 0.75).right(found))
        1.0
        """
        ours, theirs = ((predicted == labels).sum() for labels in (self.labels, self.others))
        return self.share * ours + (1 - self.share) * theirs


def mixed(images: Tensor, labels: Tensor, mixup_alpha: float, cutmix_alpha: float, prob: float) -> Mixed:
    """A batch mixed with itself, shifted by one; drawn by torch's global generator.

    With one share for the batch, from Beta(alpha, alpha): mixup adds the images (Zhang et al., ICLR 2018), CutMix replaces a rectangle (Yun
    et al., ICCV 2019). Where both have an alpha, either is as likely.

    Args:
        images: shape ``(N, C, H, W)``, normalised; not changed.
        labels: shape ``(N,)``.
        mixup_alpha, cutmix_alpha: 0 for never.
        prob: share of the batches that are mixed.

    >>> images = torch.arange(2.0).reshape(2, 1, 1, 1).expand(2, 1, 8, 8)
    >>> made = mixed(images, torch.tensor([3, 5]), 0.0, 1.0, 1.0)
    >>> bool(torch.isclose(made.images[1].mean(), torch.tensor(made.share))), made.others.tolist()
    (True, [5, 3])
    """
    alphas = [(mixup_alpha, _added), (cutmix_alpha, _pasted)]
    methods = [(alpha, method) for alpha, method in alphas if alpha > 0]
    if not methods or float(torch.rand(())) >= prob:
        return Mixed(images, labels, labels, 1.0)
    alpha, method = methods[int(torch.randint(len(methods), ()))]
    share = float(torch.distributions.Beta(alpha, alpha).sample())
    blend, share = method(images, images.roll(1, 0), share)
    return Mixed(blend, labels, labels.roll(1, 0), share)


def _added(images: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    return torch.lerp(others, images, share), share


def _pasted(images: Tensor, others: Tensor, share: float) -> tuple[Tensor, float]:
    """The rectangle lies wholly inside; the share that comes out is that of its pixels."""
    size = images.shape[-2:]
    sides = [round(side * math.sqrt(1 - share)) for side in size]
    rows, columns = (
        slice(start, start + side)
        for side, whole in zip(sides, size, strict=True)
        for start in [int(torch.randint(whole - side + 1, ()))]
    )
    result = images.clone()
    result[..., rows, columns] = others[..., rows, columns]
    return result, 1 - math.prod(sides) / math.prod(size)
