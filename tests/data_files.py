"""Small data sets on disk, for the tests of data."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

CLASSES = ["cat", "dog"]


def picture(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray[Any, np.dtype[np.uint8]]:
    shape = (height, width, 3) if channels == 3 else (height, width)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(pixels: np.ndarray[Any, Any], kind: str = "png") -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, kind, **({"lossless": True} if kind == "webp" else {}))
    return out.getvalue()


def write_parquet(
    path: Path,
    images: Sequence[bytes | None],
    labels: Sequence[int | None],
    classes: list[str] = CLASSES,
    rows: int | None = None,
) -> None:
    """Write Hugging Face features; ``rows`` are those of a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import ClassLabel, Features
    from datasets import Image as ImageFeature

    features = Features({"img": ImageFeature(), "label": ClassLabel(names=classes)})
    cells = [{"bytes": image, "path": None} for image in images]
    table = pa.table({"img": cells, "label": labels}, schema=features.arrow_schema)
    pq.write_table(table, path, row_group_size=rows)


def different_sizes(root: Path, kind: str, images: int = 26) -> str:
    """Photographs of several sizes as a folder or in two Parquet shards of small row groups; returns the spec."""
    pictures = [encoded(picture(i, 20 + i % 5, 24 + i % 7), "jpeg") for i in range(images)]
    labels = [i % 2 for i in range(images)]
    if kind == "parquet":
        half = images // 2
        for shard, part in enumerate((slice(0, half), slice(half, None))):
            write_parquet(root / f"train-0000{shard}-of-00002.parquet", pictures[part], labels[part], rows=3)
        write_parquet(root / "test.parquet", pictures[:6], labels[:6], rows=2)
    else:
        for part, some in (("train", pictures), ("val", pictures[:6])):
            for i, content in enumerate(some):
                file = root / part / CLASSES[labels[i]] / f"{i:03}.JPEG"
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
    return f"{kind}:{root}"
