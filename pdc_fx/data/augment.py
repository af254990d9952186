"""Whole batches of images: scaling to what a model was trained on, random crops and mirroring."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pdc_fx.errors import InputError

Shape = tuple[int, int, int]
"""Channels, height and width of one image."""

AUGMENTATIONS = {"none": (0, False), "digits": (1, False), "flip": (0, True), "cifar": (4, True)}
"""Name -> (pixels of zero padding before a random crop to the original size, random horizontal flip)."""

SMALL_SIDE = 64  # up to this side a crop from 4 pixels of padding is the usual augmentation, above it is of no effect


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return ``(images / 255 - mean) / std`` as float32, on the device and in the memory format of ``images``.

    Args:
        images: uint8 [B, C, H, W].
        mean, std: C numbers each, for inputs scaled to [0, 1].

    Raises:
        InputError: another dtype or number of dimensions, or not one number a channel.

    >>> normalize(torch.full((1, 1, 1, 2), 255, dtype=torch.uint8), (0.5,), (0.25,)).flatten().tolist()
    [2.0, 2.0]
    """
    if images.dtype != torch.uint8 or images.dim() != 4 or not len(mean) == len(std) == images.shape[1]:
        raise InputError(
            "normalize takes uint8 images [B, C, H, W] with one mean and std a channel",
            where=f"{images.dtype} {list(images.shape)}, {len(mean)} mean(s), {len(std)} std(s)",
        )
    shift, scale = (
        torch.tensor(values, dtype=torch.float32, device=images.device).mul_(255).view(1, -1, 1, 1)
        for values in (mean, std)
    )
    return images.to(torch.float32).sub_(shift).div_(scale)


class Augment:
    """Random crop from zero padding and random horizontal flip, of whole batches, on any device and dtype.

    The random numbers come from the object's own generator on the CPU, so the same seed gives the same crops on every
    device. :attr:`generator` is public: save and restore its state to continue a run exactly.

    Args:
        preset: a name in :data:`AUGMENTATIONS`.
        seed: of the generator.

    Raises:
        InputError: an unknown preset, or images that are not a batch [B, C, H, W].

    >>> Augment("cifar", seed=0)(torch.zeros(8, 3, 32, 32)).shape
    torch.Size([8, 3, 32, 32])
    """

    def __init__(self, preset: str, seed: int = 0) -> None:
        check_augmentation(preset)
        self.preset = preset
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, images: Tensor) -> Tensor:
        """Return augmented images of the same shape, dtype and device; ``images`` [B, C, H, W] are left as they are."""
        if images.dim() != 4:
            raise InputError("augmentation takes a batch of images [B, C, H, W]", where=f"shape {list(images.shape)}")
        padding, flip = AUGMENTATIONS[self.preset]
        if not padding and not flip:
            return images
        batch = len(images)
        offsets = torch.randint(2 * padding + 1, (2, batch), generator=self.generator)
        flipped = torch.rand(batch, generator=self.generator) < (0.5 if flip else 0.0)
        return crop_and_flip(images, padding, offsets, flipped)


def crop_and_flip(images: Tensor, padding: int, offsets: Tensor, flipped: Tensor) -> Tensor:
    """Crop each image at its own offset from zero padding, and mirror some.

    Args:
        images: [B, C, H, W], any dtype and device.
        padding: pixels of zeros added on every side.
        offsets: int64 [2, B], the first row and column of each crop in the padded image, 0 to ``2 * padding``.
        flipped: bool [B], the images to mirror left to right, after the crop.

    Returns:
        [B, C, H, W], in channels-last memory format.

    >>> image, centre = torch.tensor([[[[1, 2, 3]]]]), torch.tensor([[0], [0]])
    >>> crop_and_flip(image, 0, centre, torch.tensor([True])).flatten().tolist()
    [3, 2, 1]
    """
    height, width = images.shape[2:]
    padded = torch.nn.functional.pad(images, (padding,) * 4).permute(0, 2, 3, 1)  # B, H, W, C: pixels stay together
    columns = torch.arange(width)
    columns = torch.where(flipped[:, None], columns.flip(0), columns) + offsets[1, :, None]  # B, W
    rows = torch.arange(height) + offsets[0, :, None]  # B, H
    which = torch.arange(len(images))
    index = [i.to(images.device) for i in (which[:, None, None], rows[:, :, None], columns[:, None, :])]
    return padded[index[0], index[1], index[2]].permute(0, 3, 1, 2)


def check_augmentation(name: str) -> None:
    """Raise :class:`InputError` unless ``name`` is in :data:`AUGMENTATIONS`."""
    if name not in AUGMENTATIONS:
        raise InputError(f"no augmentation is called {name!r}", hint=f"known are {', '.join(AUGMENTATIONS)}")


def default_augmentation(shape: Shape) -> str:
    """Grey images may be characters, which must not be mirrored; colour images are taken for photographs."""
    if shape[0] == 1:
        return "digits"
    return "cifar" if max(shape[1:]) <= SMALL_SIDE else "flip"
