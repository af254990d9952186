"""One text, one way to open any kind of data: :func:`open_data`."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from pathlib import Path

from pdc_fx.data.augment import Shape
from pdc_fx.data.bundled import TORCHVISION, open_digits, open_torchvision
from pdc_fx.data.folder import open_folder
from pdc_fx.data.images import ImageData
from pdc_fx.data.parquet import open_parquet
from pdc_fx.errors import InputError

_OPENERS: dict[str, Callable[[str, Path, Shape | None, bool], ImageData]] = {
    "parquet": open_parquet,
    "folder": open_folder,
    **dict.fromkeys(TORCHVISION, open_torchvision),
}


def open_data(spec: str, *, input_shape: Shape | None = None, download: bool = False) -> ImageData:
    """Open image classification data.

    Args:
        spec: one of

            - ``digits``: scikit-learn's bundled 8x8 grey digits, 1,437 to train and 360 to test in a fixed stratified split;
            - ``parquet:DIR``: ``train.parquet`` and ``test.parquet`` (or shards, ``train-00000-of-00005.parquet``; ``validation``
              or ``val`` for ``test``) with Hugging Face features, one ``Image`` and one ``ClassLabel`` column;
            - ``folder:DIR``: ``train/CLASS/*.JPEG`` and ``test/CLASS/`` or else ``val/CLASS/``, ImageNet's layout (files with
              other suffixes than :data:`pdc_fx.data.folder.IMAGE_SUFFIXES` are skipped);
            - ``cifar10:DIR``, ``cifar100:DIR``, ``fashionmnist:DIR``: what torchvision stores under ``DIR``.
        input_shape: channels (1 or 3), height and width that images are brought to where theirs differ, by
            :func:`resize_and_crop`. Without it all images must have the shape of the first.
        download: let torchvision fetch the three data sets it knows. Nothing is fetched otherwise.

    Returns:
        The data. ``digits`` and ``fashionmnist`` come with their own mean and std, everything else with ImageNet's. The
        augmentation is ``cifar`` for colour images of up to 64 pixels and for torchvision's three sets, ``imagenet`` for larger ones,
        ``digits`` for other grey ones; :meth:`ImageData.with_augmentation` sets another.

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
    if download and kind not in TORCHVISION:
        raise InputError(f"{kind} data cannot be downloaded", hint=f"only {', '.join(TORCHVISION)} can")
    if kind == "digits":
        if colon:
            raise InputError("digits comes with scikit-learn and takes no directory", where=spec, hint="write digits")
        return open_digits(input_shape)
    if not directory:
        raise InputError(f"{kind} needs a directory", where=spec, hint=f"write {kind}:DIR")
    path = Path(directory).expanduser()
    if not path.is_dir() and not download:
        raise InputError("no such directory", where=str(path), hint=f"{kind}:DIR takes the directory of the data")
    return _OPENERS[kind](spec, path, input_shape, download)


def _unknown_kind(spec: str, kind: str) -> InputError:
    forms = ("digits", *(f"{name}:DIR" for name in _OPENERS))
    close = difflib.get_close_matches(kind.lower(), ("digits", *_OPENERS), n=1)
    guess = f"did you mean folder:{spec}? " if Path(spec).is_dir() else f"did you mean {close[0]}? " if close else ""
    return InputError(f"no kind of data is called {kind!r}", where=spec, hint=f"{guess}known are {', '.join(forms)}")
