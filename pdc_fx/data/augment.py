"""Whole batches of images: scaling to what a model was trained on, random crops and mirroring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pdc_fx.data.crops import crop_batch
from pdc_fx.errors import InputError

Shape = tuple[int, int, int]
"""Channels, height and width of one image."""


@dataclass(frozen=True)
class Preset:
    """What an augmentation does to a training image.

    Attributes:
        padding: pixels of zeros around an image before a random crop to its own size.
        flip: mirror half of the images left to right.
        resized_crop: take a random part of the whole image first and bring it to size (:mod:`pdc_fx.data.crops`).
    """

    padding: int = 0
    flip: bool = False
    resized_crop: bool = False


AUGMENTATIONS = {
    "none": Preset(),
    "digits": Preset(padding=1),
    "flip": Preset(flip=True),
    "cifar": Preset(padding=4, flip=True),
    "imagenet": Preset(flip=True, resized_crop=True),
}
"""Name -> what it does in training. Evaluation never augments: images are brought to size by ``resize_and_crop``."""

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


@dataclass(frozen=True)
class Draws:
    """The random numbers that augment one batch, one of each an image; slicing gives those of some of the images.

    >>> draws = Draws.of("cifar", 8, torch.Generator().manual_seed(0))
    >>> draws.offsets.shape, draws[2:4].flipped.shape, draws.crops is None
    (torch.Size([2, 8]), torch.Size([2]), True)
    """

    padding: int
    offsets: Tensor
    flipped: Tensor
    crops: Tensor | None
    """int64 [B], the seed of each image's resized crop; None where the preset takes none."""

    @classmethod
    def of(cls, preset: str, count: int, generator: torch.Generator) -> Draws:
        """Draw for ``count`` images.

        Raises:
            InputError: an unknown preset.
        """
        check_augmentation(preset)
        does = AUGMENTATIONS[preset]
        offsets = torch.randint(2 * does.padding + 1, (2, count), generator=generator)
        flipped = torch.rand(count, generator=generator) < (0.5 if does.flip else 0.0)
        crops = torch.randint(2**63 - 1, (count,), generator=generator) if does.resized_crop else None
        return cls(does.padding, offsets, flipped, crops)

    def __getitem__(self, part: slice) -> Draws:
        crops = None if self.crops is None else self.crops[part]
        return Draws(self.padding, self.offsets[:, part], self.flipped[part], crops)

    def crop_and_flip(self, images: Tensor) -> Tensor:
        """Apply all but the resized crop, which belongs on the whole image, to ``images`` [B, C, H, W]."""
        if not self.padding and not self.flipped.any():
            return images
        return crop_and_flip(images, self.padding, self.offsets, self.flipped)


class Augment:
    """A preset for whole batches, in a training loop of one's own; :func:`training_batches` needs no such object.

    The random numbers come from the object's own generator on the CPU, so the same seed gives the same crops on every
    device. ``generator`` is public: save and restore its state to continue a run exactly. The resized crop of
    ``imagenet`` is taken of the images given, at the size they have.

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
        if self.preset == "none":
            return images
        draws = Draws.of(self.preset, len(images), self.generator)
        return draws.crop_and_flip(images if draws.crops is None else crop_batch(images, draws.crops))


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
    return "cifar" if max(shape[1:]) <= SMALL_SIDE else "imagenet"
