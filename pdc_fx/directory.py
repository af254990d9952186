"""The names in an output directory, and the keys under which its ONNX file speaks of itself.

model.safetensors   weights of the compact model
recipe.json         how to rebuild its shapes: model spec, inputs, cluster plan
model.onnx          for deployment
certificate.json    what was measured, and the SHA-256 of the files
metrics.jsonl       one line per epoch, below what was trained and how
report.html         all of it for people
benchmark.json      what was timed last, by ``pdc-fx bench`` or the demonstration; the page shows it, too
config.yaml         the options of the run, where it was ``pdc-fx compress``
checkpoint/         the state of training, until the directory is complete
"""

from __future__ import annotations

WEIGHTS = "model.safetensors"
RECIPE = "recipe.json"
"""Also the file by which a directory of ours is known."""
FORMAT = 1
"""Of recipes."""
ONNX = "model.onnx"
CERTIFICATE = "certificate.json"
METRICS = "metrics.jsonl"
"""Records by their ``kind``: ``features`` (maps that were compared), ``images`` (mixed or not), ``layout`` (of memory), ``network`` (which
one was trained), ``start`` (accuracy before training), ``epoch``, ``final`` (accuracy of what is delivered) and ``untrained`` (that which a
short run is compared with)."""
REPORT = "report.html"
BENCHMARK = "benchmark.json"
CONFIG = "config.yaml"
CHECKPOINT = "checkpoint"

KEYS = "pdc_fx."
"""What all keys of ours in an ONNX file's metadata begin with; ``mean``, ``std`` and ``classes`` follow it as they are."""
VERSION_KEY = f"{KEYS}version"
RECIPE_KEY = f"{KEYS}recipe_sha256"
"""The SHA-256 of the recipe that the file was made from."""
MACS_KEY, DENSE_MACS_KEY = f"{KEYS}macs", f"{KEYS}dense_macs"
"""Multiply-accumulates of one sample, of the file and of what it was made from."""
CERTIFICATE_KEY = f"{KEYS}certificate"
PRECISION_KEY = f"{KEYS}precision"
"""``float16`` where the file computes in it."""
