"""``folder:DIR``, the layout of ImageNet: ``train/CLASS/*.JPEG`` and ``val/CLASS/`` or ``test/CLASS/``."""

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
"""What an image's name ends with, in any case. What is in a file is told by its first bytes, not by its name."""


def open_folder(spec: str, directory: Path, input_shape: Shape | None, download: bool) -> ImageData:
    """Images in one folder a class; the folders' names are the classes.

    ``test`` is taken before ``val``, but only if it has class folders: ImageNet's test images have no labels.
    """
    train_directory = directory / "train"
    test_directories = [d for d in (directory / "test", directory / "val") if d.is_dir()]
    if not train_directory.is_dir() or not test_directories:
        raise InputError(
            "the folder must hold train/CLASS/ and test/CLASS/ (or val/CLASS/)",
            where=str(directory),
            hint=f"found {', '.join(sorted(p.name for p in directory.iterdir())[:8]) or 'nothing'}",
        )
    test_directory = next((d for d in test_directories if any(_folders(d))), test_directories[-1])
    classes, test_classes = (_class_folders(d) for d in (train_directory, test_directory))
    check_same_classes(spec, classes, test_classes)
    _require_several(classes, train_directory)
    train, test = (_read_folder(d, classes, input_shape) for d in (train_directory, test_directory))
    return image_data(spec, train, test, classes)


def _folders(directory: Path) -> Iterator[str]:
    """The folders in it, but for hidden ones (``.ipynb_checkpoints``)."""
    with os.scandir(directory) as entries:
        yield from (entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _class_folders(directory: Path) -> list[str]:
    classes = sorted(_folders(directory))
    if not classes:
        loose = sum(_is_image(entry.name) for entry in os.scandir(directory))
        found = f"{loose} images lie in it directly, as in ImageNet's validation archive: " if loose else ""
        raise InputError(
            "no class folders",
            where=str(directory),
            hint=f"{found}put the images of each class in a folder of its own, named as in train/",
        )
    return classes


def _require_several(classes: list[str], directory: Path) -> None:
    if len(classes) > 1:
        return
    inside = sorted(_folders(directory / classes[0]))
    found = f"it holds the folders {', '.join(inside[:4])}: move them up" if inside else ""
    raise InputError(
        f"there is one class, '{classes[0]}', where at least two are told apart",
        where=str(directory),
        hint=found or f"each folder in {directory.name}/ is a class",
    )


def _read_folder(directory: Path, classes: list[str], input_shape: Shape | None) -> ImageSet:
    counts: list[int] = []

    def names() -> Iterator[str]:
        for name in classes:
            found = sorted(_image_files(directory, name), key=lambda path: path.split(os.sep))
            if not found:
                raise InputError(
                    "a class folder without images",
                    where=str(directory / name),
                    hint=f"remove it, or add images ({' '.join(IMAGE_SUFFIXES)})",
                )
            counts.append(len(found))
            yield from found

    source = FileSource(directory, names())
    labels = torch.repeat_interleave(torch.arange(len(classes)), torch.tensor(counts))
    return image_set(source, labels, input_shape)


def _image_files(directory: Path, name: str) -> Iterator[str]:
    """The images in a class folder and the folders below it, relative to ``directory``."""
    start = len(os.path.join(directory, ""))
    for folder, folders, names in os.walk(directory / name, followlinks=True):
        folders[:] = [below for below in folders if not below.startswith(".")]  # .ipynb_checkpoints
        yield from (os.path.join(folder, file)[start:] for file in names if _is_image(file))


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")
