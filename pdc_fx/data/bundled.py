"""Data that other libraries bring: scikit-learn's digits and the data sets torchvision stores on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pdc_fx.data.assemble import from_pixels, image_data
from pdc_fx.data.augment import Shape
from pdc_fx.data.images import ImageData
from pdc_fx.errors import InputError

DIGITS_MEAN, DIGITS_STD = (0.305,), (0.376,)  # of the training part of `digits`
FASHION_MNIST_MEAN, FASHION_MNIST_STD = (0.286,), (0.353,)  # of its training images
DIGITS_SEED = 0

TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100", "fashionmnist": "FashionMNIST"}
_SUBFOLDER = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python", "fashionmnist": "FashionMNIST/raw"}


def open_digits(input_shape: Shape | None) -> ImageData:
    """Scikit-learn's 8x8 grey digits: 1,437 to train and 360 to test, the same split every time."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # 17 grey levels
    rows = np.arange(len(pixels))
    parts = train_test_split(rows, test_size=0.2, random_state=DIGITS_SEED, stratify=bunch.target)
    train, test = (from_pixels(pixels[part], bunch.target[part], "digits", input_shape) for part in parts)
    classes = [str(name) for name in bunch.target_names]
    return image_data("digits", train, test, classes, (DIGITS_MEAN, DIGITS_STD), "digits")


def open_torchvision(spec: str, directory: Path, input_shape: Shape | None, download: bool) -> ImageData:
    """``cifar10:DIR``, ``cifar100:DIR`` or ``fashionmnist:DIR``, in torchvision's own formats."""
    kind = spec.partition(":")[0]
    parts = [_torchvision_part(kind, directory, train, download) for train in (True, False)]
    train, test = (from_pixels(np.asarray(p.data), p.targets, spec, input_shape) for p in parts)
    statistics = (FASHION_MNIST_MEAN, FASHION_MNIST_STD) if kind == "fashionmnist" else None
    return image_data(spec, train, test, parts[0].classes, statistics, "cifar")


def _torchvision_part(kind: str, directory: Path, train: bool, download: bool) -> Any:
    """Read one part with torchvision, which checks the MD5 of CIFAR's files before it unpickles them."""
    from torchvision import datasets

    try:
        return getattr(datasets, TORCHVISION[kind])(str(directory), train=train, download=download)
    except (RuntimeError, ValueError, OSError, TypeError, KeyError, AssertionError) as error:
        if download:
            raise InputError(f"{kind} could not be downloaded", where=str(directory), hint=str(error)) from error
        raise InputError(
            f"{kind} was not found or is damaged",
            where=str(directory / _SUBFOLDER[kind]),
            hint=f"give the directory that holds {_SUBFOLDER[kind]}, or fetch the data with --download ({error})",
        ) from error
