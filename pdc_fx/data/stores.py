"""Where the images of a set are: decoded in memory, or encoded and decoded each time they are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from pdc_fx.data.augment import Shape
from pdc_fx.data.crops import crop_batch, random_resized_crop
from pdc_fx.data.decode import SHAPE_HINT, as_channels, channels_of, decode, guarded, resize_and_crop
from pdc_fx.data.order import Blocks
from pdc_fx.data.workers import in_worker
from pdc_fx.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageStore(Protocol):
    """Where the images of an :class:`ImageSet` are."""

    @property
    def image_shape(self) -> Shape:
        """Channels, height and width."""

    @property
    def stored_shape(self) -> Shape:
        """The same of the first image before it was brought to size."""

    @property
    def blocks(self) -> Blocks | None:
        """The stretches of rows that are read together, where reading one row means reading others."""

    def decodes(self, resized_crop: bool) -> bool:
        """Whether images are decoded when they are fetched, with or without crops."""

    def fetch(self, rows: Tensor, crops: Tensor | None = None) -> Tensor:
        """Return the images of ``rows`` (int64 [B]) as uint8 [B, C, H, W].

        ``crops`` (int64 [B]) are the seeds of random resized crops, each of the whole image as it is stored.
        """


class InMemoryStore:
    """Images decoded already, uint8 [N, C, H, W]; ``whole`` has them before they were brought to size, for crops."""

    def __init__(self, images: Tensor, whole: ImageStore | None = None) -> None:
        self._images, self._whole = images, whole

    @property
    def image_shape(self) -> Shape:
        """Channels, height and width."""
        channels, height, width = self._images.shape[1:]
        return channels, height, width

    @property
    def stored_shape(self) -> Shape:
        """That of the images they were decoded from."""
        return self.image_shape if self._whole is None else self._whole.stored_shape

    @property
    def blocks(self) -> Blocks | None:
        """Any row is as near as any other, but for crops."""
        return None if self._whole is None else self._whole.blocks

    def decodes(self, resized_crop: bool) -> bool:
        """Only for crops of whole images."""
        return resized_crop and self._whole is not None

    def fetch(self, rows: Tensor, crops: Tensor | None = None) -> Tensor:
        """Return a copy of the images of ``rows``."""
        if crops is not None and self._whole is not None:
            return self._whole.fetch(rows, crops)
        images = self._images.index_select(0, rows)
        return images if crops is None else crop_batch(images, crops)


class LazyStore:
    """Images decoded each time they are asked for."""

    def __init__(self, source: ImageSource, shape: Shape, *, fit: bool) -> None:
        self._source, self._shape, self._fit = source, shape, fit

    @property
    def image_shape(self) -> Shape:
        """Channels, height and width."""
        return self._shape

    @property
    def stored_shape(self) -> Shape:
        """Decodes the first image where images are brought to size."""
        return first_shape(self._source) if self._fit else self._shape

    @property
    def blocks(self) -> Blocks | None:
        """Those of the source."""
        return self._source.blocks

    def decodes(self, resized_crop: bool) -> bool:
        """Always."""
        return True

    def fetch(self, rows: Tensor, crops: Tensor | None = None) -> Tensor:
        """Decode the images of ``rows`` on a few threads; the first that cannot be read is named in the error."""
        numbers = rows.tolist()
        seeds = [None] * len(numbers) if crops is None else crops.tolist()
        out = np.empty((len(numbers), *self._shape), dtype=np.uint8)

        def decode(start: int, stop: int) -> None:
            for i in range(start, stop):
                out[i] = self._pixels(numbers[i], seeds[i])

        threads = _decoding_threads()
        step = max(8, min(500, len(numbers) // threads + 1))
        pool = ThreadPoolExecutor(threads)
        try:
            starts = range(0, len(numbers), step)
            for _ in pool.map(decode, starts, (min(s + step, len(numbers)) for s in starts)):
                pass
        finally:
            pool.shutdown(cancel_futures=True)
        return torch.from_numpy(out)

    def _pixels(self, row: int, crop: int | None) -> np.ndarray[Any, np.dtype[np.uint8]]:
        name = self._source.name(row)
        channels, height, width = self._shape
        image = guarded(lambda row: as_channels(self._source.image(row), channels, name, convert=self._fit), row, name)
        same = (image.height, image.width) == (height, width)
        if not same and not self._fit:
            raise InputError(
                f"image sizes differ: {image.height}x{image.width} here, {height}x{width} before",
                where=name,
                hint=SHAPE_HINT,
            )
        if crop is not None:
            image = random_resized_crop(image, height, width, crop)
        elif not same:
            image = resize_and_crop(image, height, width)
        pixels = np.asarray(image)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def first_shape(source: ImageSource) -> Shape:
    """Channels, height and width of the first image."""
    name = source.name(0)
    first = guarded(source.image, 0, name)
    return channels_of(first, name), first.height, first.width


class ImageSource(Protocol):
    """Encoded images, by number."""

    @property
    def blocks(self) -> Blocks | None:
        """The stretches of images that are read together, if any are."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """Return what to call the image in an error."""

    def image(self, row: int) -> Image:
        """Open and decode the image; may raise what Pillow raises."""

    def release(self) -> None:
        """Let go of what was read ahead: nothing will be asked for soon."""


class FileSource:
    """Image files, whose names are kept as one piece of bytes: 8 bytes a file and its name, not some 400 for a ``Path``.

    Args:
        root: the folder they are in.
        names: their paths relative to it, in order.

    >>> FileSource(Path("train"), ["cat/0.png", "dog/1.png"]).name(1).replace(os.sep, "/")
    'train/dog/1.png'
    """

    def __init__(self, root: Path, names: Iterable[str]) -> None:
        self._root = os.fspath(root)
        joined, ends = bytearray(), [0]
        for name in names:
            joined += os.fsencode(name)
            ends.append(len(joined))
        self._names, self._ends = bytes(joined), np.array(ends, dtype=np.int64)

    @property
    def blocks(self) -> Blocks | None:
        """Each file is read alone."""
        return None

    def __len__(self) -> int:
        return len(self._ends) - 1

    def name(self, row: int) -> str:
        return os.path.join(self._root, os.fsdecode(self._names[self._ends[row] : self._ends[row + 1]]))

    def image(self, row: int) -> Image:
        with open(self.name(row), "rb") as file:
            return decode(file.read())

    def release(self) -> None:
        """Nothing is read ahead."""


class PixelSource:
    """Decoded images [N, H, W] or [N, H, W, 3] that have to be brought to another size."""

    def __init__(self, pixels: np.ndarray[Any, Any], name: str) -> None:
        self._pixels, self._name = pixels, name

    @property
    def blocks(self) -> Blocks | None:
        """All are in memory."""
        return None

    def __len__(self) -> int:
        return len(self._pixels)

    def name(self, row: int) -> str:
        return f"{self._name}: image {row}"

    def image(self, row: int) -> Image:
        from PIL import Image

        return Image.fromarray(self._pixels[row])

    def release(self) -> None:
        """Nothing is read ahead."""


def _decoding_threads() -> int:
    """One in a worker process, ours or a loader's, else one a core, eight at most."""
    return 1 if in_worker() or get_worker_info() is not None else min(8, os.cpu_count() or 1)
