"""Random resized crops (Szegedy et al., "Going Deeper with Convolutions", 2015), each a pure function of one seed.

torchvision draws its crops from torch's global generator, which threads share and which the training loop draws from as
well. Here each image brings a seed of its own: the box is the one ``torchvision.transforms.v2.RandomResizedCrop`` would
take after ``torch.manual_seed(seed)``, and no global state is read or changed.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor

SCALE = (0.08, 1.0)  # of the image's area
RATIO = (3 / 4, 4 / 3)  # width by height
TRIES = 10

Picture = TypeVar("Picture")  # a Pillow image or a tensor [C, H, W]


def crop_box(height: int, width: int, seed: int) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a random part of an image, in pixels.

    The part has 0.08 to 1 of the area and 3/4 to 4/3 as aspect ratio; after ten tries that do not fit, it is the largest
    central part with such a ratio.

    >>> crop_box(375, 500, seed=0)
    (17, 80, 294, 343)
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float) -> Tensor:
        return torch.empty(1).uniform_(low, high, generator=generator)

    def up_to(limit: int) -> int:
        return int(torch.randint(0, limit + 1, (1,), generator=generator))

    low, high = torch.log(torch.tensor(RATIO)).tolist()
    for _ in range(TRIES):
        area = height * width * uniform(*SCALE).item()
        ratio = torch.exp(uniform(low, high)).item()
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return up_to(height - h), up_to(width - w), h, w
    h, w = min(height, round(width / RATIO[0])), min(width, round(height * RATIO[1]))
    return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop(image: Picture, height: int, width: int, seed: int) -> Picture:
    """Return a random part of ``image``, brought to ``height`` x ``width`` (bilinear, with antialiasing).

    >>> random_resized_crop(torch.zeros(3, 40, 50, dtype=torch.uint8), 32, 32, seed=1).shape
    torch.Size([3, 32, 32])
    """
    from torchvision.transforms.v2 import functional

    whole_height, whole_width = functional.get_size(image)
    result: Picture = functional.resized_crop(image, *crop_box(whole_height, whole_width, seed), [height, width])
    return result


def crop_batch(images: Tensor, seeds: Tensor) -> Tensor:
    """Return a random resized crop of each image, at the size it has.

    Args:
        images: [B, C, H, W], uint8 or floating point, on any device.
        seeds: int64 [B], one an image.

    >>> crop_batch(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])).shape
    torch.Size([2, 3, 8, 8])
    """
    if not len(images):
        return images
    height, width = images.shape[2:]
    pairs = zip(images, seeds.tolist(), strict=True)
    return torch.stack([random_resized_crop(image, height, width, seed) for image, seed in pairs])
