"""Dense against compact on a GPU: PyTorch in bf16, channels last, eager and compiled; and ONNX Runtime with its CUDA provider.

    python benchmarks/gpu.py                            all of it, into benchmarks/results/gpu.json
    python benchmarks/gpu.py --models torchvision:resnet50=1x3x224x224 --batch-sizes 32

Weights are random: they do not matter for time. What cannot be run here (no GPU, no CUDA provider, no compiler) is a row that says so, and
no failure; a file of results is replaced only by one in which something was run.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pdc_fx
from pdc_fx.errors import InputError
from pdc_fx.export.benchmark import benchmark
from pdc_fx.export.session import choose_provider
from pdc_fx.export.timing.benchmark_torch import benchmark_torch
from pdc_fx.factories import factory
from pdc_fx.models import parse_shape

ROOT = Path(__file__).resolve().parents[1]
MODELS = (
    "torchvision:resnet50=1x3x224x224",
    "torchvision:mobilenet_v2=1x3x224x224",
    f"{ROOT}/examples/cifar_resnet.py:resnet56=1x3x32x32",
)
ENGINES = ("PyTorch eager", "PyTorch compile", "ONNX Runtime")
Row = dict[str, Any]


def halves(spec: str, example: Tensor, reduction: float, round_to: int) -> tuple[nn.Module, nn.Module, tuple[int, int]]:
    """Dense and compact network, and the multiply-accumulates of both."""
    torch.manual_seed(0)
    dense = factory(spec)().eval()
    groups = pdc_fx.analyze(dense, example)
    plan = pdc_fx.plan(dense, groups, flops_reduction=reduction, round_to=round_to)
    plan = pdc_fx.tie(dense, plan, mode="hard").snap()
    return dense, pdc_fx.rewrite(dense, plan, example), (plan.macs_before, plan.macs_after)


def measured(engine: str, pair: Any, example: Tensor, options: argparse.Namespace) -> Row:
    """One engine on one pair of networks; ``problem`` says why it was not run."""
    dense, compact, macs = pair
    counts = {"batch_sizes": options.batch_sizes, "runs": options.runs, "warmup": options.warmup, "macs": macs}
    if engine.startswith("PyTorch"):
        compiler: Callable[..., Any] | None = torch.compile if engine.endswith("compile") else None
        precise = {"device": options.device, "dtype": torch.bfloat16, "channels_last": True}
        return benchmark_torch(dense, compact, example, **counts, **precise, compiler=compiler).to_json()
    provider = "cuda" if options.device.startswith("cuda") else "cpu"
    try:
        choose_provider(provider)
    except InputError as error:
        return {"timings": [], "problem": str(error)}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "dense.onnx", Path(folder) / "compact.onnx"]
        for module, file in zip((dense, compact), files, strict=True):
            pdc_fx.export_onnx(module, example, file)
        report = benchmark(*files, **counts, provider=provider).to_json()
    return {**report, "dense": None, "compact": None, "problem": None}


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """A row for every model and engine, run or not."""
    there = options.device == "cpu" or torch.cuda.is_available()
    for text in options.models:
        spec, _, shape = text.rpartition("=")
        example = torch.zeros(parse_shape(shape))
        pair = halves(spec, example, options.reduction, options.round_to) if there else None
        for engine in ENGINES:
            found = {"timings": [], "problem": "PyTorch finds no GPU here"}
            if there:
                found = measured(engine, pair, example, options)
            yield found | {"model": spec.rpartition("/")[2], "engine": engine}


def show(row: Row) -> None:
    """A line for each batch size, or one that says why there is none."""
    name = f"{row['model'].rpartition(':')[2]:14}{row['engine']:17}"
    if row["problem"] is not None:
        print(f"{name}not run: {row['problem']}", flush=True)
    for timing in row["timings"]:
        dense, compact = (timing[side]["median_ms"] for side in ("dense", "compact"))
        print(
            f"{name}{timing['batch']:4}{dense:10.3f} ms ->{compact:9.3f} ms"
            f"{timing['speedup']:7.2f}x  efficiency {timing['efficiency']:.2f}",
            flush=True,
        )


def main() -> None:
    """Measure, print a row when it is there, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="MODEL=SHAPE")
    parser.add_argument("--reduction", type=float, default=0.5, help="share of the MACs to remove")
    parser.add_argument("--round-to", type=int, default=8, help="widths are multiples of this")
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 8, 32])
    parser.add_argument("--runs", type=int, default=50)
    parser.add_argument("--warmup", type=int, default=10)
    parser.add_argument("--device", default="cuda", help="cpu to try the script out")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    options = parser.parse_args()
    found = []
    for row in rows(options):
        show(row)
        found.append(row)
    ran = any(row["problem"] is None for row in found)
    device = torch.cuda.get_device_name() if ran and options.device.startswith("cuda") else "none"
    settings = {name: value for name, value in vars(options).items() if name not in ("models", "output")}
    if ran or not options.output.exists():
        options.output.write_text(json.dumps({"gpu": device, "options": settings, "rows": found}, indent=1) + "\n")
    if not ran:
        print("nothing was run: no GPU")


if __name__ == "__main__":
    main()
