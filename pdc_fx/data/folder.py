"""``folder:DIR``, the layout of ImageNet: ``train/CLASS/*.png`` and ``test/CLASS/`` or ``val/CLASS/``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

from pdc_fx.data.assemble import check_same_classes, image_data, image_set
from pdc_fx.data.augment import Shape
from pdc_fx.data.images import ImageData, ImageSet
from pdc_fx.data.stores import FileSource
from pdc_fx.errors import InputError

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def open_folder(spec: str, directory: Path, input_shape: Shape | None, download: bool) -> ImageData:
    """Images in one folder a class; the folders' names are the classes."""
    train_directory = directory / "train"
    test_directory = next((d for d in (directory / "test", directory / "val") if d.is_dir()), None)
    if not train_directory.is_dir() or test_directory is None:
        raise InputError(
            "the folder must hold train/CLASS/ and test/CLASS/ (or val/CLASS/)",
            where=str(directory),
            hint=f"found {', '.join(sorted(p.name for p in directory.iterdir())[:8]) or 'nothing'}",
        )
    classes, test_classes = (_class_folders(d) for d in (train_directory, test_directory))
    check_same_classes(spec, classes, test_classes)
    train, test = (_read_folder(d, classes, input_shape) for d in (train_directory, test_directory))
    return image_data(spec, train, test, classes)


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
    return image_set(FileSource(paths), torch.tensor(labels), input_shape)


def _image_files(directory: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(directory, followlinks=True):
        yield from (Path(folder, name) for name in names if name.lower().endswith(IMAGE_SUFFIXES))
