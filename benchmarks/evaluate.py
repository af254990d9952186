"""Measure committed artifacts again: ONNX Runtime on all test images, with nothing of pdc-fx in between.

    python benchmarks/evaluate.py benchmarks/artifacts/resnet20-cifar10 --data ../shared/data/cifar10

DIR is an output directory of ``pdc-fx compress`` (or the part of it that is committed). The data are Parquet files in Hugging Face's image
format, of which those with ``test`` in their name are read. Images are only scaled and normalised, as the directory's recipe says.
Exits with 1 where a file or the accuracy is not what the certificate says.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pyarrow.parquet as parquet
from numpy.typing import NDArray
from PIL import Image

BATCH = 500


def test_images(directory: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images ``(N, H, W, 3)`` and labels ``(N,)``."""
    files = sorted(directory.rglob("*test*.parquet"))
    if not files:
        raise SystemExit(f"there is no Parquet file with 'test' in its name under {directory}")
    images, labels = [], []
    for file in files:
        table = parquet.read_table(file)
        (column,) = {"img", "image"} & set(table.column_names)
        for cell in table[column].to_pylist():
            images.append(np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")))
        labels += table["label"].to_pylist()
    return np.stack(images), np.asarray(labels)


def measure(directory: Path, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> dict[str, Any]:
    """What is measured, beside what is certified."""
    certificate = json.loads((directory / "certificate.json").read_text(encoding="utf-8"))
    recipe = json.loads((directory / "recipe.json").read_text(encoding="utf-8"))
    changed = [
        name
        for name, digest in certificate["files"].items()
        if hashlib.sha256((directory / name).read_bytes()).hexdigest() != digest
    ]
    mean, std = (np.asarray(recipe[name], dtype=np.float32) for name in ("mean", "std"))
    session = onnxruntime.InferenceSession(directory / "model.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    right = 0
    for start in range(0, len(images), BATCH):
        batch = (images[start : start + BATCH].astype(np.float32) / 255 - mean) / std
        scores = session.run(None, {name: np.ascontiguousarray(batch.transpose(0, 3, 1, 2))})[0]
        right += int((scores.argmax(1) == labels[start : start + BATCH]).sum())
    return {
        "directory": str(directory),
        "images": len(images),
        "right": right,
        "accuracy": right / len(images),
        "certified": certificate["accuracy"],
        "macs_removed": 1 - certificate["macs_after"] / certificate["macs_before"],
        "params_removed": 1 - certificate["params_after"] / certificate["params_before"],
        "changed": changed,
    }


def main() -> None:
    """Measure, print, and compare with the certificates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directories", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--data", type=Path, required=True, help="a directory of Parquet files")
    parser.add_argument("--json", action="store_true", help="print one JSON object per directory")
    options = parser.parse_args()
    images, labels = test_images(options.data)
    failed = False
    for directory in options.directories:
        found = measure(directory, images, labels)
        # a score that is nearly tied may fall either way on another processor
        agrees = abs(found["accuracy"] - found["certified"]["onnx"]) <= 0.0005
        failed |= bool(found["changed"]) or not agrees
        if options.json:
            print(json.dumps(found))
            continue
        print(
            f"{directory.name}: {found['right']} of {found['images']} right, {found['accuracy']:.2%} "
            f"(certified {found['certified']['onnx']:.2%}, teacher {found['certified']['teacher']:.2%}), "
            f"MACs -{found['macs_removed']:.1%}, parameters -{found['params_removed']:.1%}"
        )
        if found["changed"]:
            print(f"  changed since it was certified: {', '.join(found['changed'])}")
        if not agrees:
            print("  this is not the certified accuracy")
    sys.exit(failed)


if __name__ == "__main__":
    main()
