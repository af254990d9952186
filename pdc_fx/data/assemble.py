"""From images and labels, wherever they come from, to an :class:`~pdc_fx.data.images.ImageData`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pdc_fx.data.augment import Shape, default_augmentation
from pdc_fx.data.decode import SHAPE_HINT
from pdc_fx.data.images import ImageData, ImageSet
from pdc_fx.data.stores import ImageSource, InMemoryStore, LazyStore, PixelSource, first_shape
from pdc_fx.errors import InputError

IN_MEMORY_BYTES = 2**30
"""A set whose uint8 images take no more than this is decoded once, into memory."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.449,), (0.226,)  # the averages of ImageNet's over its three channels


def image_set(source: ImageSource, labels: Tensor, input_shape: Shape | None) -> ImageSet:
    """Decode the images now if they are small together; keep the source for the rest, and for crops of whole images."""
    shape = input_shape or first_shape(source)
    store = LazyStore(source, shape, fit=input_shape is not None)
    if len(source) * shape[0] * shape[1] * shape[2] > IN_MEMORY_BYTES:
        return ImageSet(store, labels)
    pixels = store.fetch(torch.arange(len(source)))
    source.release()
    return ImageSet(InMemoryStore(pixels, store), labels)


def image_data(
    name: str,
    train: ImageSet,
    test: ImageSet,
    classes: Sequence[str],
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    augmentation: str | None = None,
) -> ImageData:
    """Put the parts together; ``statistics`` (mean, std) are used only if they have one number a channel."""
    for part, images in (("train", train), ("test", test)):
        if images.image_shape != train.image_shape:
            raise InputError(
                "training and test images differ in shape",
                where=f"{name}: {train.image_shape} and {images.image_shape}",
                hint=SHAPE_HINT,
            )
        low, high = int(images.labels.min()), int(images.labels.max())
        if low < 0 or high >= len(classes):
            raise InputError(
                f"labels must be 0 to {len(classes) - 1}", where=f"{name}, {part}: found {low if low < 0 else high}"
            )
    channels = train.image_shape[0]
    if statistics is None or len(statistics[0]) != channels:
        statistics = (GREY_MEAN, GREY_STD) if channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)
    preset = augmentation or default_augmentation(train.image_shape)
    return ImageData(name, train, test, tuple(classes), *statistics, preset)


def from_pixels(pixels: np.ndarray[Any, Any], labels: Sequence[int], name: str, input_shape: Shape | None) -> ImageSet:
    """Return the set of uint8 pixels [N, H, W] or [N, H, W, 3].

    >>> from_pixels(np.zeros((2, 8, 8, 3), np.uint8), [0, 1], "zeros", None).image_shape
    (3, 8, 8)
    """
    targets = torch.as_tensor(labels, dtype=torch.int64)
    channels_first = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    if input_shape is None or input_shape == channels_first.shape[1:]:
        return ImageSet.of(torch.from_numpy(np.ascontiguousarray(channels_first)), targets)
    return image_set(PixelSource(pixels, name), targets, input_shape)


def check_same_classes(spec: str, train: Sequence[str], test: Sequence[str]) -> None:
    """Raise :class:`InputError` unless both parts name the same classes in the same order."""
    if list(train) == list(test):
        return
    only_train, only_test = ([c for c in a if c not in b] for a, b in ((train, test), (test, train)))
    found = [f"only in {part}: {', '.join(c[:5])}" for part, c in (("train", only_train), ("test", only_test)) if c]
    raise InputError("training and test classes differ", where=spec, hint="; ".join(found) or "their order differs")
