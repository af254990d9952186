"""The whole way in one call: train a teacher, compress it, save it, load it again.

python examples/compress_call.py
python examples/compress_call.py --data parquet:DIR --limit 5000 -o DIR
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from plain_loop import make_model, train_teacher

import pdc_fx
from pdc_fx.data import open_data
from pdc_fx.distill import TrainOptions, accuracy


def main() -> int:
    """Run the example; 0 if the compact network is the tied one, before and after it was saved."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="digits", help="as pdc_fx.data.open_data takes it")
    parser.add_argument("--limit", type=int, default=2000, help="use so many images to train, and to test")
    parser.add_argument("--epochs", type=int, default=12, help="of the teacher, and of tied training")
    parser.add_argument("-o", "--output", default="", help="keep the result here; it must not exist yet")
    args = parser.parse_args()

    torch.manual_seed(0)
    data = open_data(args.data)
    train, test = (images.subset(range(min(args.limit, len(images)))) for images in (data.train, data.test))
    data = replace(data, train=train, test=test)
    channels, height, width = data.image_shape
    teacher = train_teacher(make_model(channels, len(data.classes)), data, args.epochs)
    example = torch.zeros(1, channels, height, width)
    options = TrainOptions(epochs=args.epochs, batch_size=64, amp="no")
    made = pdc_fx.compress(teacher, example, data, flops_reduction=0.5, options=options)

    with tempfile.TemporaryDirectory() as scratch:
        directory = pdc_fx.save(made, args.output or Path(scratch) / "compact")
        loaded = pdc_fx.load(make_model(channels, len(data.classes)), directory)
        files = ", ".join(sorted(path.name for path in directory.iterdir()))

    for name, value in made.accuracy.items():
        print(f"{name:8} {value:.2%}")
    print(f"loaded   {accuracy(loaded, data.test, data):.2%}")
    print(f"MACs     {made.plan.macs_before / 1e6:.3f} M -> {made.plan.macs_after / 1e6:.3f} M")
    print(f"tied against compact: relative error {made.exactness.max_rel_error:.1e}; written: {files}")
    return 0 if made.exactness.passed else 1


if __name__ == "__main__":
    sys.exit(main())
