"""Classify images with an ONNX file, with nothing but ONNX Runtime and NumPy: ``python serve_onnx.py DIR/model.onnx images.npy``.

The images are numbers of 0 to 255, ``N x height x width x channels``. How they are prepared and what the classes are called is read from
the file's metadata where ``pdc-fx`` knew it; otherwise images are scaled to 0..1 and classes are numbered.
"""

import argparse
import json
import sys

import numpy as np
import onnxruntime

parser = argparse.ArgumentParser(description="classify images with an ONNX file")
parser.add_argument("model", help="the ONNX file")
parser.add_argument("images", help="an array of NumPy")
parser.add_argument("--cuda", action="store_true", help="run on a GPU")
options = parser.parse_args()
if options.cuda:
    onnxruntime.preload_dlls()  # CUDA's libraries, where they came with PyTorch's wheels
provider = "CUDAExecutionProvider" if options.cuda else "CPUExecutionProvider"
session = onnxruntime.InferenceSession(options.model, providers=[provider])
if session.get_providers()[0] != provider:
    sys.exit("error: CUDA does not work here; ONNX Runtime would run on the CPU")
(entry,) = session.get_inputs()
known = session.get_modelmeta().custom_metadata_map
mean, std, classes = (json.loads(known.get(f"pdc_fx.{key}", "null")) for key in ("mean", "std", "classes"))
batch, channels, height, width = entry.shape  # a size that is left open has a name
images = np.load(options.images)
fits = (n == m or isinstance(n, str) for n, m in zip((height, width, channels), images.shape[1:], strict=False))
if images.ndim != 4 or not all(fits):
    sys.exit(f"error: the model takes images of N x {height} x {width} x {channels}, not {images.shape}")
values = (images.astype(np.float32) / 255 - np.float32(mean or 0)) / np.float32(std or 1)
step = batch if isinstance(batch, int) else 32
for start in range(0, len(values), step):
    part = np.ascontiguousarray(values[start : start + step].transpose(0, 3, 1, 2))
    scores = session.run(None, {entry.name: part})[0]
    odds = np.exp(scores - scores.max(axis=1, keepdims=True))
    for number, row in enumerate(odds / odds.sum(axis=1, keepdims=True), start):
        print(f"image {number}: {classes[row.argmax()] if classes else row.argmax()} {row.max():.1%}")
