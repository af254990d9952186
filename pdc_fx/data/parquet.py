"""``parquet:DIR``: Parquet files with Hugging Face features.

Labels are read when the data is opened, images when they are asked for (:mod:`pdc_fx.data.rowgroups`). Nothing is copied to
disk.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pdc_fx.data.assemble import check_same_classes, image_data, image_set
from pdc_fx.data.augment import Shape
from pdc_fx.data.decode import decode
from pdc_fx.data.images import ImageData, ImageSet
from pdc_fx.data.order import Blocks
from pdc_fx.data.rowgroups import RowGroups, unreadable
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
        if whole.is_file():
            return [whole]
        if shards := sorted(directory.glob(f"{split}-*.parquet")):
            return _complete(shards)
    names = ", ".join(sorted(path.name for path in directory.iterdir())[:8])
    raise InputError(
        f"no {splits[0]}.parquet and no {splits[0]}-*.parquet", where=str(directory), hint=f"found {names or 'nothing'}"
    )


def _complete(shards: list[Path]) -> list[Path]:
    """Return ``shards`` unless names such as ``train-00002-of-00005.parquet`` say that some are missing."""
    ends = (path.stem.rpartition("-of-")[2] for path in shards if "-of-" in path.stem)
    counts = sorted({int(end) for end in ends if end.isdecimal()})
    if counts and counts != [len(shards)]:
        raise InputError(
            f"found {len(shards)} parquet file(s) where the names speak of {' and '.join(map(str, counts))}",
            where=f"{shards[0]} ... {shards[-1].name}",
            hint="fetch what is missing and remove what is of another version, or rename them to use these alone",
        )
    return shards


def _read_parquet(files: list[Path], input_shape: Shape | None) -> tuple[ImageSet, list[str]]:
    opened = [(file, metadata) for file in files if (metadata := _metadata(file)).num_rows]
    if not opened:
        raise InputError("no rows", where=_names(files), hint="every part needs at least one image")
    features = [_features(file, metadata) for file, metadata in opened]
    image, label = _image_and_label(features[0], opened[0][0])
    for (file, _), found in zip(opened, features, strict=True):
        if any(found.get(name) != features[0][name] for name in (image, label)):
            raise InputError(
                f"columns {image!r} and {label!r} differ between parquet files",
                where=f"{opened[0][0]} and {file}",
                hint="write them all with the same features",
            )
    labels = torch.cat([_labels(file, label) for file, _ in opened])
    return image_set(RowSource(opened, image), labels, input_shape), list(features[0][label].names)


def _names(files: list[Path]) -> str:
    return ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def _metadata(file: Path) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        return parquet.read_metadata(file)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise unreadable(str(file), error) from error


def _features(file: Path, metadata: Any) -> Any:
    import datasets

    try:
        return datasets.Features.from_arrow_schema(metadata.schema.to_arrow_schema())
    except (ValueError, TypeError, KeyError) as error:
        raise unreadable(str(file), error) from error


def _labels(file: Path, column: str) -> Tensor:
    import pyarrow
    from pyarrow import parquet

    try:
        labels = parquet.ParquetFile(file).read(columns=[column], use_threads=False).column(0)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise unreadable(str(file), error) from error
    if labels.null_count:
        raise InputError("labels are missing", where=str(file), hint="every row needs one")
    return torch.from_numpy(labels.to_numpy().astype(np.int64))


def _image_and_label(features: Any, file: Path) -> tuple[str, str]:
    """Return the names of the image column and of the class column (``label`` or ``fine_label`` among several)."""
    import datasets

    images = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if len(labels) > 1:
        labels = [name for name in ("label", "labels", "fine_label") if name in labels][:1]
    if len(images) != 1 or len(labels) != 1:
        raise InputError(
            "one Image and one ClassLabel column are needed",
            where=f"{file}: {', '.join(f'{name}: {type(kind).__name__}' for name, kind in features.items())}",
            hint="write the file with datasets.Dataset.to_parquet, which records the features",
        )
    return images[0], labels[0]


class RowSource:
    """The image column of Parquet files (each with its metadata), decoded row by row."""

    def __init__(self, files: list[tuple[Path, Any]], column: str) -> None:
        self._rows = RowGroups(files, f"{column}.bytes")

    @property
    def blocks(self) -> Blocks | None:
        """The row groups."""
        return self._rows.blocks

    def __len__(self) -> int:
        return len(self._rows)

    def name(self, row: int) -> str:
        return self._rows.name(row)

    def image(self, row: int) -> Image:
        data = self._rows.cell(row)
        if not data:
            raise ValueError("the row holds no image bytes")
        return decode(data)

    def release(self) -> None:
        """Let go of the row groups that were kept."""
        self._rows.release()
