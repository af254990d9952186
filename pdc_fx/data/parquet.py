"""``parquet:DIR``: Parquet files with Hugging Face features, read through ``datasets``."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pdc_fx.data.assemble import check_same_classes, image_data, image_set
from pdc_fx.data.augment import Shape
from pdc_fx.data.decode import decode
from pdc_fx.data.images import ImageData, ImageSet
from pdc_fx.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image


def open_parquet(spec: str, directory: Path, input_shape: Shape | None, download: bool) -> ImageData:
    """``train`` and ``test`` files with one ``Image`` and one ``ClassLabel`` column."""
    train_files, test_files = _parquet_files(directory, "train"), _parquet_files(directory, "test", "validation", "val")
    train, classes = _read_parquet(train_files, input_shape)
    test, test_classes = _read_parquet(test_files, input_shape)
    check_same_classes(spec, classes, test_classes)
    return image_data(spec, train, test, classes)


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
    source = RowSource(dataset, image, files)
    weakref.finalize(source, _remove_cache, cache, os.getpid())
    return image_set(source, labels, input_shape), list(dataset.features[label].names)


def _remove_cache(cache: str, owner: int) -> None:
    if os.getpid() == owner:  # not when a forked loader worker drops its copy
        shutil.rmtree(cache, ignore_errors=True)


def _load_parquet(files: list[Path], cache: str) -> Any:
    import datasets
    import pyarrow

    try:
        with _no_progress_bars():
            return datasets.Dataset.from_parquet([str(file) for file in _with_rows(files)], cache_dir=cache)
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


def _with_rows(files: list[Path]) -> list[Path]:
    """The files that hold rows: ``datasets`` stops at an empty one, and logs what it says of a damaged one."""
    from pyarrow import parquet

    found = [file for file in files if parquet.read_metadata(file).num_rows]
    if not found:
        raise InputError("no rows", where=", ".join(map(str, files)), hint="every part needs at least one image")
    return found


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
    if column.null_count:
        raise InputError("labels are missing", where=", ".join(map(str, files)), hint="every row needs one")
    return torch.from_numpy(column.to_numpy().astype(np.int64))


class RowSource:
    """The image column of a ``datasets.Dataset``, read from its Arrow table: much quicker than ``dataset[row]``."""

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
        return decode(cell["bytes"])
