"""Where the images of a set are: decoded in memory, or encoded and decoded each time they are asked for."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from pdc_fx.data.augment import Shape
from pdc_fx.data.decode import SHAPE_HINT, as_channels, decode, guarded, resize_and_crop
from pdc_fx.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageStore(Protocol):
    """Where the images of an :class:`ImageSet` are."""

    @property
    def image_shape(self) -> Shape:
        """Channels, height and width."""

    def fetch(self, rows: Tensor) -> Tensor:
        """Return the images of ``rows`` (int64 [B]) as uint8 [B, C, H, W]."""


class InMemoryStore:
    """Images decoded already, uint8 [N, C, H, W]."""

    def __init__(self, images: Tensor) -> None:
        self._images = images

    @property
    def image_shape(self) -> Shape:
        """Channels, height and width."""
        channels, height, width = self._images.shape[1:]
        return channels, height, width

    def fetch(self, rows: Tensor) -> Tensor:
        """Return a copy of the images of ``rows``."""
        return self._images.index_select(0, rows)


class LazyStore:
    """Images decoded each time they are asked for."""

    def __init__(self, source: ImageSource, shape: Shape, *, fit: bool) -> None:
        self._source, self._shape, self._fit = source, shape, fit

    @property
    def image_shape(self) -> Shape:
        """Channels, height and width."""
        return self._shape

    def fetch(self, rows: Tensor) -> Tensor:
        """Decode the images of ``rows`` on a few threads; the first that cannot be read is named in the error."""
        numbers = rows.tolist()
        out = np.empty((len(numbers), *self._shape), dtype=np.uint8)

        def decode(start: int, stop: int) -> None:
            for i in range(start, stop):
                out[i] = self._pixels(numbers[i])

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

    def _pixels(self, row: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        name = self._source.name(row)
        image = as_channels(guarded(self._source.image, row, name), self._shape[0], name, convert=self._fit)
        if (image.height, image.width) != self._shape[1:]:
            if not self._fit:
                raise InputError(
                    f"image sizes differ: {image.height}x{image.width} here, {self._shape[1]}x{self._shape[2]} before",
                    where=name,
                    hint=SHAPE_HINT,
                )
            image = resize_and_crop(image, self._shape[1], self._shape[2])
        pixels = np.asarray(image)
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


class ImageSource(Protocol):
    """Encoded images, by number."""

    def __len__(self) -> int: ...

    def name(self, row: int) -> str:
        """Return what to call the image in an error."""

    def image(self, row: int) -> Image:
        """Open and decode the image; may raise what Pillow raises."""


class FileSource:
    """Image files."""

    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, row: int) -> str:
        return str(self._paths[row])

    def image(self, row: int) -> Image:
        return decode(self._paths[row].read_bytes())


class PixelSource:
    """Decoded images [N, H, W] or [N, H, W, 3] that have to be brought to another size."""

    def __init__(self, pixels: np.ndarray[Any, Any], name: str) -> None:
        self._pixels, self._name = pixels, name

    def __len__(self) -> int:
        return len(self._pixels)

    def name(self, row: int) -> str:
        return f"{self._name}: image {row}"

    def image(self, row: int) -> Image:
        from PIL import Image

        return Image.fromarray(self._pixels[row])


def _decoding_threads() -> int:
    """One in a loader's worker process, else one a core, eight at most."""
    return 1 if get_worker_info() is not None else min(8, os.cpu_count() or 1)
