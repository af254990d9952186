"""Image classification data: one way to open it, batches as whole uint8 tensors, augmentation on whole batches.

:func:`open_data` turns a short text such as ``parquet:DIR`` into an :class:`ImageData`: a training and a test
:class:`ImageSet` with the same classes. An :class:`ImageSet` is a map-style dataset whose ``__getitems__`` returns a
whole batch at once, so a loader needs no per-image Python::

    loader = DataLoader(data.train, batch_size=128, shuffle=True, collate_fn=collate)
    augment = Augment(data.augmentation, seed=0)
    for images, labels in loader:  # uint8 [B, C, H, W], int64 [B]
        inputs = augment(normalize(images.to(device), data.mean, data.std))

Augmenting *after* :func:`normalize` makes the padding of a random crop the mean colour, which is zero there.

A set of at most :data:`IN_MEMORY_BYTES` is decoded once, when it is opened; a larger one is decoded batch by batch.
Nothing is fetched from a network unless ``download=True``, and nothing is written but a temporary folder (where the
environment's ``TMPDIR`` says), which is removed.
"""

from __future__ import annotations

import difflib
import io
import os
import shutil
import struct
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from pdc_fx.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

Shape = tuple[int, int, int]
"""Channels, height and width of one image."""

IN_MEMORY_BYTES = 2**30
"""A set whose uint8 images take no more than this is decoded once, into memory."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
GREY_MEAN, GREY_STD = (0.449,), (0.226,)  # the averages of ImageNet's over its three channels
DIGITS_MEAN, DIGITS_STD = (0.305,), (0.376,)  # of the training part of `digits`
FASHION_MNIST_MEAN, FASHION_MNIST_STD = (0.286,), (0.353,)  # of its training images

AUGMENTATIONS = {"none": (0, False), "digits": (1, False), "flip": (0, True), "cifar": (4, True)}
"""Name -> (pixels of zero padding before a random crop to the original size, random horizontal flip)."""

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SMALL_SIDE = 64  # up to this side a crop from 4 pixels of padding is the usual augmentation, above it is of no effect
CROP_RATIO = 0.875  # ImageNet evaluation: the shorter side to 256, the central 224 x 224
DIGITS_SEED = 0
SHAPE_HINT = "give the shape to bring all images to, as --input 1x3x224x224 or input_shape=(3, 224, 224)"


# ------------------------------------------------------------------------------------------------------ what users hold
class ImageSet(Dataset[tuple[Tensor, Tensor]]):
    """A map-style dataset of uint8 images of one shape, with labels.

    Indexing with one number gives ``(uint8 [C, H, W], int64 [])``; ``__getitems__``, which torch's ``DataLoader`` calls
    with the indices of a batch, gives ``(uint8 [B, C, H, W], int64 [B])``. Use :func:`collate` as its ``collate_fn``.

    Args:
        store: where the images are.
        labels: int64 [number of images in the store].
        rows: the images of the store that belong to this set, in order; all of them when not given.

    >>> images = ImageSet.of(torch.zeros(6, 3, 4, 4, dtype=torch.uint8), torch.arange(6))
    >>> len(images), images.image_shape, images.subset([4, 1]).labels.tolist()
    (6, (3, 4, 4), [4, 1])
    """

    def __init__(self, store: ImageStore, labels: Tensor, rows: Tensor | None = None) -> None:
        self._store, self._all_labels = store, labels
        self._rows = torch.arange(len(labels)) if rows is None else rows

    @classmethod
    def of(cls, images: Tensor, labels: Tensor) -> ImageSet:
        """Return the set of ``images`` (uint8 [N, C, H, W]) and ``labels`` (int64 [N]), which are not copied.

        Raises:
            InputError: another dtype or number of dimensions, or not one label an image.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or labels.dtype != torch.int64:
            raise InputError(
                "images must be uint8 [N, C, H, W] and labels int64 [N]",
                where=f"{images.dtype} {list(images.shape)} and {labels.dtype} {list(labels.shape)}",
            )
        if labels.shape != images.shape[:1]:
            raise InputError(
                "there must be one label an image", where=f"{len(images)} images, {list(labels.shape)} labels"
            )
        return cls(InMemoryStore(images), labels)

    @property
    def image_shape(self) -> Shape:
        """Channels, height and width."""
        return self._store.image_shape

    @property
    def labels(self) -> Tensor:
        """All labels, int64 [N]; reads no image."""
        return self._all_labels[self._rows]

    @property
    def in_memory(self) -> bool:
        """Whether the images are decoded already."""
        return isinstance(self._store, InMemoryStore)

    def subset(self, indices: Sequence[int] | Tensor) -> ImageSet:
        """Return the set of the images at ``indices``, in that order; images are shared, not copied."""
        return ImageSet(self._store, self._all_labels, self._rows[torch.as_tensor(indices, dtype=torch.int64)])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        rows = self._rows[torch.as_tensor(indices, dtype=torch.int64)]
        return self._store.fetch(rows), self._all_labels[rows]


def collate(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return ``batch`` as it is: an :class:`ImageSet` fetches whole batches (a ``collate_fn`` for ``DataLoader``)."""
    return batch


@dataclass(frozen=True, eq=False)
class ImageData:
    """Training and test images with the same classes, and how to prepare them.

    Attributes:
        name: the text it was opened with.
        train, test: the two sets. Decide nothing on ``test``; take :meth:`hold_out` for that.
        classes: the names of the classes, by label.
        mean, std: one number a channel, for inputs scaled to [0, 1]; see :func:`normalize`.
        augmentation: the name of the preset in :data:`AUGMENTATIONS` that suits the images; see :class:`Augment`.

    Raises:
        InputError: an unknown preset, or ``mean`` and ``std`` that do not fit the number of channels.
    """

    name: str
    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augmentation: str = "none"

    def __post_init__(self) -> None:
        _check_augmentation(self.augmentation)
        channels = self.image_shape[0]
        if len(self.mean) != channels or len(self.std) != channels or not all(0 < s < float("inf") for s in self.std):
            raise InputError(
                f"mean and std need {channels} number(s), one a channel, and std must be positive",
                where=f"{self.name}: mean {self.mean}, std {self.std}",
            )

    @property
    def image_shape(self) -> Shape:
        """Channels, height and width of every image."""
        return self.train.image_shape

    def with_normalization(self, mean: Sequence[float], std: Sequence[float]) -> ImageData:
        """Return the same data with the mean and std a model was trained with (inputs in [0, 1], one a channel)."""
        return replace(self, mean=tuple(mean), std=tuple(std))

    def with_augmentation(self, name: str) -> ImageData:
        """Return the same data with another default augmentation, a name in :data:`AUGMENTATIONS`."""
        return replace(self, augmentation=name)

    def hold_out(self, n: int, seed: int = 0) -> tuple[ImageData, ImageSet]:
        """Take ``n`` training images away, for decisions that must not see the test set.

        Every class gives in proportion to its size (largest remainders, so the parts add up to ``n``). The same ``n``
        and ``seed`` always give the same images; both parts keep the original order.

        Returns:
            The data with the smaller training set, and the images held out.

        Raises:
            InputError: ``n`` is not between 1 and the number of training images less one.

        >>> data, held_out = open_data("digits").hold_out(100)
        >>> len(data.train), len(held_out), torch.bincount(held_out.labels).tolist()
        (1337, 100, [10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
        """
        total = len(self.train)
        if not 0 < n < total:
            raise InputError(
                f"cannot hold out {n} of {total} training images", hint=f"choose between 1 and {total - 1}"
            )
        labels = self.train.labels
        generator = torch.Generator().manual_seed(seed)
        held = torch.zeros(total, dtype=torch.bool)
        for label, share in enumerate(_proportional_shares(torch.bincount(labels).tolist(), n)):
            members = (labels == label).nonzero().flatten()
            held[members[torch.randperm(len(members), generator=generator)[:share]]] = True
        rest, taken = self.train.subset((~held).nonzero().flatten()), self.train.subset(held.nonzero().flatten())
        return replace(self, train=rest), taken


def _proportional_shares(counts: list[int], n: int) -> list[int]:
    """Split ``n`` in proportion to ``counts`` by largest remainders (ties go to the smaller index)."""
    total = sum(counts)
    shares = [n * count // total for count in counts]
    by_remainder = sorted(range(len(counts)), key=lambda i: (-(n * counts[i] % total), i))
    for i in by_remainder[: n - sum(shares)]:
        shares[i] += 1
    return shares


# -------------------------------------------------------------------------------------------------- whole-batch tensors
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
        _check_augmentation(preset)
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


def _check_augmentation(name: str) -> None:
    if name not in AUGMENTATIONS:
        raise InputError(f"no augmentation is called {name!r}", hint=f"known are {', '.join(AUGMENTATIONS)}")


def _default_augmentation(shape: Shape) -> str:
    """Grey images may be characters, which must not be mirrored; colour images are taken for photographs."""
    if shape[0] == 1:
        return "digits"
    return "cifar" if max(shape[1:]) <= SMALL_SIDE else "flip"


# ------------------------------------------------------------------------------------------------- where the images are
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
        image = _as_channels(_guarded(self._source.image, row, name), self._shape[0], name, convert=self._fit)
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


class _Files:
    def __init__(self, paths: list[Path]) -> None:
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def name(self, row: int) -> str:
        return str(self._paths[row])

    def image(self, row: int) -> Image:
        return _decode(self._paths[row].read_bytes())


class _Rows:
    """The image column of a ``datasets.Dataset``, read from its Arrow table, which is much quicker than ``dataset[i]``."""

    def __init__(self, dataset: Any, column: str, files: list[Path]) -> None:
        self._dataset, self._column, self._files = dataset, column, files

    def __len__(self) -> int:
        return int(self._dataset.num_rows)

    def name(self, row: int) -> str:
        return f"{', '.join(map(str, self._files))}: row {row}, column {self._column!r}"

    def image(self, row: int) -> Image:
        cell = self._dataset.data.column(self._column)[row].as_py()
        if not cell or not cell["bytes"]:
            raise ValueError("the row holds no image bytes")
        return _decode(cell["bytes"])


class _Pixels:
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


def _decode(data: bytes) -> Image:
    from PIL import Image

    # Pillow tries seven formats before WebP, which costs as much as decoding a small image; the first bytes tell.
    formats = {b"RIFF": ("WEBP",), b"\x89PNG": ("PNG",), b"\xff\xd8\xff\xe0": ("JPEG",)}.get(data[:4])
    image = Image.open(io.BytesIO(data), formats=formats)
    image.load()
    return image


def _guarded(read: Callable[[int], Image], row: int, name: str) -> Image:
    from PIL import Image

    try:
        return read(row)
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise InputError("an image cannot be read", where=name, hint=f"replace or remove it ({error})") from error


def _channels_of(image: Image, name: str) -> int:
    """1 for a grey image, 3 for colour."""
    if image.mode in ("1", "L", "LA", "La"):
        return 1
    if image.mode in ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"):
        return 3
    raise InputError(
        f"an image of mode {image.mode!r} has more than 8 bits a channel",
        where=name,
        hint="convert the images to 8 bits",
    )


def _as_channels(image: Image, channels: int, name: str, *, convert: bool) -> Image:
    """Grey to colour is always right; colour to grey only where one channel was asked for."""
    if _channels_of(image, name) > channels and not convert:
        raise InputError(
            "a colour image among grey ones (the first image is grey)",
            where=name,
            hint=SHAPE_HINT,
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def resize_and_crop(image: Image, height: int, width: int) -> Image:
    """Return the centre of ``image`` as in ImageNet evaluation (224: the shorter side to 256, then the central crop).

    Bilinear with antialiasing; for a square target it is torchvision's ``Resize`` and ``CenterCrop``.
    """
    from PIL import Image

    covers = max(round(height / CROP_RATIO) / image.height, round(width / CROP_RATIO) / image.width)
    resized = (max(width, int(covers * image.width + 1e-6)), max(height, int(covers * image.height + 1e-6)))
    left, top = round((resized[0] - width) / 2), round((resized[1] - height) / 2)
    return image.resize(resized, Image.Resampling.BILINEAR).crop((left, top, left + width, top + height))


def _image_set(source: ImageSource, labels: Tensor, input_shape: Shape | None) -> ImageSet:
    """Decode the images now if they are small together, else keep the source."""
    if input_shape is None:
        name = source.name(0)
        first = _guarded(source.image, 0, name)
        shape = (_channels_of(first, name), first.height, first.width)
    else:
        shape = input_shape
    store = LazyStore(source, shape, fit=input_shape is not None)
    if len(source) * shape[0] * shape[1] * shape[2] > IN_MEMORY_BYTES:
        return ImageSet(store, labels)
    return ImageSet.of(store.fetch(torch.arange(len(source))), labels)


# --------------------------------------------------------------------------------------------------------- opening data
def open_data(spec: str, *, input_shape: Shape | None = None, download: bool = False) -> ImageData:
    """Open image classification data.

    Args:
        spec: one of

            - ``digits``: scikit-learn's bundled 8x8 grey digits, 1,437 to train and 360 to test, a fixed stratified split;
            - ``parquet:DIR``: ``train.parquet`` and ``test.parquet`` (or ``train-*.parquet``; ``validation`` or ``val``
              for ``test``) with Hugging Face features, one ``Image`` and one ``ClassLabel`` column;
            - ``folder:DIR``: ``train/CLASS/*.png`` and ``test/`` or else ``val/``, ImageNet's layout (files with other
              suffixes than :data:`IMAGE_SUFFIXES` are skipped);
            - ``cifar10:DIR``, ``cifar100:DIR``, ``fashionmnist:DIR``: what torchvision stores under ``DIR``.
        input_shape: channels (1 or 3), height and width that images are brought to where theirs differ, by
            :func:`resize_and_crop`. Without it all images must have the shape of the first.
        download: let torchvision fetch the three data sets it knows. Nothing is fetched otherwise.

    Returns:
        The data. ``digits`` and ``fashionmnist`` come with their own mean and std, everything else with ImageNet's.

    Raises:
        InputError: an unknown kind, a missing or damaged file, an image that cannot be read, labels out of range,
            classes that differ between training and test, sizes that differ.

    >>> data = open_data("digits")
    >>> data.image_shape, len(data.train), len(data.test), data.classes[:3]
    ((1, 8, 8), 1437, 360, ('0', '1', '2'))
    """
    kind, colon, directory = spec.partition(":")
    if kind not in ("digits", *_OPENERS):
        raise _unknown_kind(spec, kind)
    if input_shape is not None and (input_shape[0] not in (1, 3) or min(input_shape) < 1):
        raise InputError("images have 1 or 3 channels, a height and a width", where=f"input shape {input_shape}")
    if download and kind not in _TORCHVISION:
        raise InputError(f"{kind} data cannot be downloaded", hint=f"only {', '.join(_TORCHVISION)} can")
    if kind == "digits":
        if colon:
            raise InputError("digits comes with scikit-learn and takes no directory", where=spec, hint="write digits")
        return _open_digits(input_shape)
    if not directory:
        raise InputError(f"{kind} needs a directory", where=spec, hint=f"write {kind}:DIR")
    path = Path(directory).expanduser()
    if not path.is_dir() and not download:
        raise InputError("no such directory", where=str(path), hint=f"{kind}:DIR takes the directory of the data")
    return _OPENERS[kind](spec, path, input_shape, download)


def _unknown_kind(spec: str, kind: str) -> InputError:
    forms = ("digits", *(f"{name}:DIR" for name in _OPENERS))
    close = difflib.get_close_matches(kind.lower(), ("digits", *_OPENERS), n=1)
    guess = f"did you mean {close[0]}? " if close else ""
    return InputError(f"no kind of data is called {kind!r}", where=spec, hint=f"{guess}known are {', '.join(forms)}")


def _image_data(
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
    preset = augmentation or _default_augmentation(train.image_shape)
    return ImageData(name, train, test, tuple(classes), *statistics, preset)


def _from_pixels(pixels: np.ndarray[Any, Any], labels: Sequence[int], name: str, input_shape: Shape | None) -> ImageSet:
    """Return the set of uint8 pixels [N, H, W] or [N, H, W, 3]."""
    targets = torch.as_tensor(labels, dtype=torch.int64)
    channels_first = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
    if input_shape is None or input_shape == channels_first.shape[1:]:
        return ImageSet.of(torch.from_numpy(np.ascontiguousarray(channels_first)), targets)
    return _image_set(_Pixels(pixels, name), targets, input_shape)


def _open_digits(input_shape: Shape | None) -> ImageData:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # 17 grey levels
    rows = np.arange(len(pixels))
    parts = train_test_split(rows, test_size=0.2, random_state=DIGITS_SEED, stratify=bunch.target)
    train, test = (_from_pixels(pixels[part], bunch.target[part], "digits", input_shape) for part in parts)
    classes = [str(name) for name in bunch.target_names]
    return _image_data("digits", train, test, classes, (DIGITS_MEAN, DIGITS_STD), "digits")


# ---------------------------------------------------------------------------------------------------------- torchvision
_TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashionmnist": "FashionMNIST"}
_SUBFOLDER = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "fashionmnist": "FashionMNIST/raw"}


def _open_torchvision(spec: str, directory: Path, input_shape: Shape | None, download: bool) -> ImageData:
    kind = spec.partition(":")[0]
    parts = [_torchvision_part(kind, directory, train, download) for train in (True, False)]
    train, test = (_from_pixels(np.asarray(p.data), p.targets, spec, input_shape) for p in parts)
    statistics = (FASHION_MNIST_MEAN, FASHION_MNIST_STD) if kind == "fashionmnist" else None
    return _image_data(spec, train, test, parts[0].classes, statistics, "cifar")


def _torchvision_part(kind: str, directory: Path, train: bool, download: bool) -> Any:
    """Read one part with torchvision, which checks the MD5 of CIFAR's files before it unpickles them."""
    from torchvision import datasets

    try:
        return getattr(datasets, _TORCHVISION[kind])(str(directory), train=train, download=download)
    except (RuntimeError, ValueError, OSError, TypeError, AssertionError) as error:
        if download:
            raise InputError(f"{kind} could not be downloaded", where=str(directory), hint=str(error)) from error
        raise InputError(
            f"{kind} was not found or is damaged",
            where=str(directory / _SUBFOLDER[kind]),
            hint=f"give the directory that holds {_SUBFOLDER[kind]}, or fetch the data with --download ({error})",
        ) from error


# --------------------------------------------------------------------------------------------------------------- folder
def _open_folder(spec: str, directory: Path, input_shape: Shape | None, download: bool) -> ImageData:
    train_directory = directory / "train"
    test_directory = next((d for d in (directory / "test", directory / "val") if d.is_dir()), None)
    if not train_directory.is_dir() or test_directory is None:
        raise InputError(
            "the folder must hold train/CLASS/ and test/CLASS/ (or val/CLASS/)",
            where=str(directory),
            hint=f"found {', '.join(sorted(p.name for p in directory.iterdir())[:8]) or 'nothing'}",
        )
    classes, test_classes = (_class_folders(d) for d in (train_directory, test_directory))
    _check_same_classes(spec, classes, test_classes)
    train, test = (_read_folder(d, classes, input_shape) for d in (train_directory, test_directory))
    return _image_data(spec, train, test, classes)


def _class_folders(directory: Path) -> list[str]:
    classes = sorted(entry.name for entry in directory.iterdir() if entry.is_dir())
    if not classes:
        raise InputError(
            "no class folders", where=str(directory), hint="put the images of each class in a folder of its own"
        )
    return classes


def _read_folder(directory: Path, classes: list[str], input_shape: Shape | None) -> ImageSet:
    paths: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_image_files(directory / name))
        if not found:
            raise InputError(
                "a class folder without images",
                where=str(directory / name),
                hint=f"remove it, or add images ({' '.join(IMAGE_SUFFIXES)})",
            )
        paths += found
        labels += [label] * len(found)
    return _image_set(_Files(paths), torch.tensor(labels), input_shape)


def _image_files(directory: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(directory, followlinks=True):
        yield from (Path(folder, name) for name in names if name.lower().endswith(IMAGE_SUFFIXES))


def _check_same_classes(spec: str, train: Sequence[str], test: Sequence[str]) -> None:
    if list(train) == list(test):
        return
    only_train, only_test = ([c for c in a if c not in b] for a, b in ((train, test), (test, train)))
    found = [f"only in {part}: {', '.join(c[:5])}" for part, c in (("train", only_train), ("test", only_test)) if c]
    raise InputError("training and test classes differ", where=spec, hint="; ".join(found) or "their order differs")


# -------------------------------------------------------------------------------------------------------------- parquet
def _open_parquet(spec: str, directory: Path, input_shape: Shape | None, download: bool) -> ImageData:
    train_files, test_files = _parquet_files(directory, "train"), _parquet_files(directory, "test", "validation", "val")
    train, classes = _read_parquet(train_files, input_shape)
    test, test_classes = _read_parquet(test_files, input_shape)
    _check_same_classes(spec, classes, test_classes)
    return _image_data(spec, train, test, classes)


def _parquet_files(directory: Path, *splits: str) -> list[Path]:
    """Return ``SPLIT.parquet``, or the sorted ``SPLIT-*.parquet``, of the first split that is there."""
    for split in splits:
        whole = directory / f"{split}.parquet"
        if files := [whole] if whole.is_file() else sorted(directory.glob(f"{split}-*.parquet")):
            return files
    names = ", ".join(sorted(path.name for path in directory.iterdir())[:8])
    raise InputError(
        f"no {splits[0]}.parquet and no {splits[0]}-*.parquet", where=str(directory), hint=f"found {names or 'nothing'}"
    )


def _read_parquet(files: list[Path], input_shape: Shape | None) -> tuple[ImageSet, list[str]]:
    """Read through ``datasets``, whose Arrow cache goes to a temporary folder that lives as long as it is read from."""
    import datasets

    cache = tempfile.mkdtemp(prefix="pdc-fx-")
    try:
        dataset = _load_parquet(files, cache)
        image, label = _image_and_label(dataset.features, files)
        dataset = dataset.select_columns([image, label]).cast_column(image, datasets.Image(decode=False))
        labels = _labels(dataset.data.column(label), files)
    except BaseException:
        shutil.rmtree(cache, ignore_errors=True)
        raise
    source = _Rows(dataset, image, files)
    weakref.finalize(source, _remove_cache, cache, os.getpid())
    return _image_set(source, labels, input_shape), list(dataset.features[label].names)


def _remove_cache(cache: str, owner: int) -> None:
    if os.getpid() == owner:  # not when a forked loader worker drops its copy
        shutil.rmtree(cache, ignore_errors=True)


def _load_parquet(files: list[Path], cache: str) -> Any:
    import datasets
    import pyarrow

    try:
        with _no_progress_bars():
            return datasets.Dataset.from_parquet([str(file) for file in files], cache_dir=cache)
    except (
        datasets.exceptions.DatasetGenerationError,
        pyarrow.ArrowException,
        OSError,
        ValueError,
        TypeError,
    ) as error:
        raise InputError(
            "a parquet file cannot be read", where=", ".join(map(str, files)), hint=str(error.__cause__ or error)
        ) from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def _image_and_label(features: Any, files: list[Path]) -> tuple[str, str]:
    """Return the names of the image column and of the class column (``label`` or ``fine_label`` among several)."""
    import datasets

    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(labels) > 1:
        labels = [name for name in ("label", "labels", "fine_label") if name in labels][:1]
    if len(images) != 1 or len(labels) != 1:
        raise InputError(
            "one Image and one ClassLabel column are needed",
            where=f"{files[0]}: {', '.join(f'{name}: {type(kind).__name__}' for name, kind in features.items())}",
            hint="write the file with datasets.Dataset.to_parquet, which records the features",
        )
    return images[0], labels[0]


def _labels(column: Any, files: list[Path]) -> Tensor:
    if not len(column) or column.null_count:
        raise InputError(
            "labels are missing" if len(column) else "no rows",
            where=", ".join(map(str, files)),
            hint="every row needs one",
        )
    return torch.from_numpy(column.to_numpy().astype(np.int64))


_OPENERS: dict[str, Callable[[str, Path, Shape | None, bool], ImageData]] = {
    "parquet": _open_parquet,
    "folder": _open_folder,
    **dict.fromkeys(_TORCHVISION, _open_torchvision),
}
