"""What `pdc-fx export` costs beside the bare exporter, on the compact form of ResNet-50.

    python benchmarks/export_time.py                   into benchmarks/results/export-time.json

Three arms in alternation, each in a process of its own, with one thread; the time of a process starts when torch, the model and its
weights are there. *Bare* is ``torch.onnx.export(dynamo=True)`` with a dynamic batch and its ``save``. *Export* is ``export_onnx``: the
same exporter with names, folding, full check and an atomic write. *Verified* is what the command does: ``export_onnx`` and then
``verify_onnx`` on four random batches. The bound is on export against bare.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from pdc_fx.children import child_environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "export-time.json"
ARMS = ("bare", "export", "verified")
ALLOWED = 1.3


def measure(arm: str, name: str, size: int) -> dict[str, float]:
    """Seconds of one arm, on the clock and of the processor."""
    import torch

    from pdc_fx.models import build_model
    from pdc_fx.passes.analysis import AnalyzeDependencies
    from pdc_fx.passes.random_plans import random_halves
    from pdc_fx.passes.rewrite import merge_channels
    from pdc_fx.passes.tied import tie_once

    torch.manual_seed(0)
    model = build_model(f"torchvision:{name}").model.requires_grad_(False)
    inputs = (torch.zeros(1, 3, size, size),)
    analysis = AnalyzeDependencies(inputs)(model)
    plan = random_halves(analysis.groups, 0)
    tie_once(model, plan)
    compact = merge_channels(model, plan, inputs, analysis).eval()
    import onnx  # noqa: F401  # both arms need these
    import onnxscript  # noqa: F401

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "model.onnx"
        wall, cpu = time.perf_counter(), time.process_time()
        if arm == "bare":
            two = torch.zeros(2, 3, size, size)
            shapes = ({0: torch.export.Dim.DYNAMIC},)
            program = torch.onnx.export(compact, (two,), dynamo=True, dynamic_shapes=shapes, verbose=False)
            assert program is not None
            program.save(str(path))
        else:
            from pdc_fx.export.onnx import export_onnx
            from pdc_fx.export.verify import verify_onnx

            export_onnx(compact, inputs, path)
            if arm == "verified":
                verify_onnx(compact, path, inputs).ensure()
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def run_one(arm: str, args: argparse.Namespace) -> dict[str, float]:
    """``measure`` in a process of its own."""
    environment = child_environment(OMP_NUM_THREADS="1")
    command = [sys.executable, "-W", "ignore", __file__, "--arm", arm, "--model", args.model, "--size", str(args.size)]
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True
    )
    seconds: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return seconds


def summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Clock -> the median of each arm in seconds, and of the other arms over the bare exporter."""
    found = {}
    for clock in ("wall", "cpu"):
        median = {arm: statistics.median(run[clock] for run in runs[arm]) for arm in ARMS}
        ratios = {f"{arm}_over_bare": median[arm] / median["bare"] for arm in ARMS[1:]}
        found[clock] = {name: round(value, 3) for name, value in {**median, **ratios}.items()}
    return found


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="resnet50", help="of torchvision")
    parser.add_argument("--size", type=int, default=224, help="height and width")
    parser.add_argument("--rounds", type=int, default=5, help="runs of every arm")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--arm", choices=ARMS, help="measure one arm here and print it")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """All arms in turn; 1 if the processor time of an export is above the bound."""
    args = parse_args(arguments)
    if args.arm:
        print(json.dumps(measure(args.arm, args.model, args.size)))
        return 0
    runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for number in range(args.rounds):
        for arm in ARMS if number % 2 == 0 else ARMS[::-1]:
            runs[arm].append(run_one(arm, args))
            print(number, arm, runs[arm][-1], file=sys.stderr, flush=True)
    found = summary(runs)
    data = {
        "model": args.model,
        "size": args.size,
        "allowed": ALLOWED,
        "seconds": found,
        "runs": runs,
        "machine": {"processor": platform.machine(), "processors": os.cpu_count(), "load": os.getloadavg()},
        "versions": {package: version(package) for package in ("torch", "onnx", "onnxscript", "onnxruntime-gpu")},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=1))
    return int(found["cpu"]["export_over_bare"] > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
