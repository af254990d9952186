"""Classify images with an ONNX file, with nothing but ONNX Runtime and NumPy: what a server needs.

    python examples/serve_onnx.py DIR/model.onnx images.npy

``images.npy`` holds numbers of 0 to 255, ``N x height x width x channels``. How they are prepared and what the classes are called is
read from the file's metadata where ``pdc-fx`` knew it; otherwise images are scaled to 0..1 and classes are numbered.
"""

import argparse
import json
import sys

import numpy as np
import onnxruntime

KEYS = ("pdc_fx.mean", "pdc_fx.std", "pdc_fx.classes")


def main() -> None:
    """Print the most likely class of each image and its probability."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="the ONNX file")
    parser.add_argument("images", help="an array of NumPy")
    parser.add_argument("--cuda", action="store_true", help="run on a GPU")
    options = parser.parse_args()
    providers = ["CPUExecutionProvider"]
    if options.cuda:
        onnxruntime.preload_dlls()  # CUDA's libraries, where they came with PyTorch's wheels
        providers.insert(0, "CUDAExecutionProvider")
    session = onnxruntime.InferenceSession(options.model, providers=providers)
    if session.get_providers()[0] != providers[0]:
        sys.exit("error: CUDA does not work here; ONNX Runtime would run on the CPU")
    (entry,) = session.get_inputs()
    known = {
        key: json.loads(value) for key, value in session.get_modelmeta().custom_metadata_map.items() if key in KEYS
    }
    mean, std, classes = (known.get(key) for key in KEYS)
    images = np.load(options.images)
    batch, channels, height, width = entry.shape
    wanted = (height, width, channels)  # a size that is left open has a name
    if images.ndim != 4 or any(isinstance(n, int) and n != m for n, m in zip(wanted, images.shape[1:], strict=True)):
        sys.exit(f"error: the model takes images of N x {height} x {width} x {channels}, not {images.shape}")
    values = (images.astype(np.float32) / 255 - np.float32(mean or 0)) / np.float32(std or 1)
    step = batch if isinstance(batch, int) else 32
    for start in range(0, len(values), step):
        part = np.ascontiguousarray(values[start : start + step].transpose(0, 3, 1, 2))
        scores = session.run(None, {entry.name: part})[0]
        odds = np.exp(scores - scores.max(axis=1, keepdims=True))
        for number, row in enumerate(odds / odds.sum(axis=1, keepdims=True), start):
            best = int(row.argmax())
            print(f"image {number}: {classes[best] if classes else best} {row[best]:.1%}")


if __name__ == "__main__":
    main()
