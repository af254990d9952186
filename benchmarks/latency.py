"""Is a network with half of the multiply-accumulates twice as fast? In ONNX Runtime on this machine's processor.

    python benchmarks/latency.py                       all of it, into benchmarks/results/latency.json
    python benchmarks/latency.py --models resnet50 --skip-latency

- *rounding*: 50% of the MACs removed, with any widths (``--round-to 1``), multiples of 8, of 16, and the default of ``compress``.
  Efficiency is the speed-up divided by the ratio of MACs: 1 where time falls as much as they do.
- *latency*: 40% of the time removed, by ``latency_reduction=0.4``; foretold, and measured on the ONNX files that a user gets.

Weights are random and the allocation is global: which filters are alike does not matter for time, how many remain in each layer does. Dense
and compact file run by turns, as ``pdc-fx bench`` has it; times are medians. Where the default rounding's efficiency is below 0.95, ONNX
Runtime's profile says where the time goes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import pdc_fx
from pdc_fx.errors import PlanError
from pdc_fx.export.session import default_threads
from pdc_fx.export.timing.latency_table import this_machine
from pdc_fx.files import replace_file
from pdc_fx.ir import ChannelGroups, ClusterPlan
from pdc_fx.models import build_model
from pdc_fx.passes.rewrite import merge_channels

ROOT = Path(__file__).resolve().parents[1]
MODELS = {
    "resnet50": ("torchvision:resnet50", (3, 224, 224), (1, 8)),
    "mobilenet_v2": ("torchvision:mobilenet_v2", (3, 224, 224), (1, 8)),
    "resnet56": (f"{ROOT / 'examples' / 'cifar_resnet.py'}:resnet56", (3, 32, 32), (1, 8, 32)),
}
ROUNDINGS: dict[str, Any] = {"1": 1, "8": 8, "16": 16, "default": "auto"}
REMOVED, FASTER, ENOUGH = 0.5, 0.4, 0.95
LATENCY_MODELS = ("resnet50", "mobilenet_v2")
Row = dict[str, Any]


def rows_of_roundings(name: str, folder: Path, runs: int) -> Iterator[Row]:
    """One row for each rounding and batch size; one in all for a rounding that cannot meet the budget."""
    spec, shape, batches = MODELS[name]
    torch.manual_seed(0)
    model, image = build_model(spec).model.eval(), torch.zeros(1, *shape)
    groups = pdc_fx.analyze(model, image)
    dense = pdc_fx.export_onnx(model, image, folder / f"{name}.onnx").path
    for label, round_to in ROUNDINGS.items():
        try:
            plan = pdc_fx.plan(model, groups, flops_reduction=REMOVED, round_to=round_to)
        except PlanError as error:
            yield {"model": name, "round_to": label, "refused": str(error).splitlines()[0]}
            continue
        compact = exported(model, plan, image, folder / f"{name}-{label}.onnx")
        macs = plan.macs_before, plan.macs_after
        report = pdc_fx.benchmark(dense, compact, batch_sizes=batches, runs=runs, macs=macs, details=label == "default")
        for timing in report.timings:
            row = {"model": name, "round_to": label, "batch": timing.batch, "mac_ratio": macs[0] / macs[1]}
            row |= {"dense_ms": timing.dense.median_ms, "compact_ms": timing.compact.median_ms}
            row |= {"speedup": timing.speedup, "efficiency": timing.efficiency, "reasons": timing.reasons}
            yield row


def exported(model: nn.Module, plan: ClusterPlan, image: Tensor, path: Path) -> Path:
    """The ONNX file of the network that a plan leads to; its weights are of no account."""
    return pdc_fx.export_onnx(merge_channels(model, plan, image), image, path).path


def row_of_latency(name: str, batch: int, folder: Path, runs: int, table: Path) -> Row:
    """A plan by layer times, and what its network takes, measured once more on files of its own."""
    spec, shape, _ = MODELS[name]
    torch.manual_seed(0)
    model, image = build_model(spec).model.eval(), torch.zeros(batch, *shape)
    groups: ChannelGroups = pdc_fx.analyze(model, image)
    start = time.perf_counter()
    plan = pdc_fx.plan(model, groups, latency_reduction=FASTER, round_to="auto", latency_table=table)
    seconds = time.perf_counter() - start
    dense = pdc_fx.export_onnx(model, image, folder / f"{name}-{batch}.onnx").path
    compact = exported(model, plan, image, folder / f"{name}-{batch}-faster.onnx")
    timing = pdc_fx.benchmark(dense, compact, batch_sizes=(batch,), runs=runs).timings[0]
    return {
        "model": name,
        "batch": batch,
        "latency_reduction": FASTER,
        "foretold": plan.options["predicted_reduction"],
        "measured_while_planning": plan.options.get("measured_reduction"),
        "measured": 1 - 1 / timing.speedup,
        "dense_ms": timing.dense.median_ms,
        "compact_ms": timing.compact.median_ms,
        "flops_reduction": plan.flops_reduction,
        "planning_seconds": seconds,
    }


def main() -> int:
    """Measure, print a row when it is there, and write the file; 1 if a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--runs", type=int, default=20, help="timed calls of each file")
    parser.add_argument("--skip-rounding", action="store_true")
    parser.add_argument("--skip-latency", action="store_true")
    parser.add_argument("--batch", type=int, default=1, help="of the plans by latency")
    parser.add_argument("--latency-table", type=Path, help="layer times; measured anew, and not kept, by default")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "latency.json")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("pdc_fx.export").setLevel(logging.INFO)
    target = this_machine("cpu", default_threads())
    result: dict[str, Any] = {
        "device": target.device,
        "threads": target.threads,
        "runtime": target.runtime,
        "avx512": "avx512f" in _flags(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "runs": arguments.runs,
        "weights": "random",
        "allocation": "global",
        "rounding": [],
        "notes": [],
        "latency": [],
        "complete": False,
    }

    def save(part: str, row: Row) -> None:
        result[part].append({k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()})
        replace_file(arguments.output, (json.dumps(result, indent=1) + "\n").encode())

    print(f"{target}, {REMOVED:.0%} of the MACs removed")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        table = arguments.latency_table or folder / "layer-times.json"
        if not arguments.skip_rounding:
            print(f"{'model':14}{'round to':>9}{'batch':>6}{'dense':>11}{'compact':>11}{'faster':>8}{'efficiency':>12}")
            for name in arguments.models:
                for row in rows_of_roundings(name, folder, arguments.runs):
                    where = f"{name}, widths rounded to {row['round_to']}"
                    if "refused" in row:
                        result["notes"].append(f"{where}: {row['refused']}")
                        continue
                    result["notes"] += [f"{where}, batch {row['batch']}: {reason}" for reason in row.pop("reasons")]
                    save("rounding", row)
                    print(
                        f"{row['model']:14}{row['round_to']:>9}{row['batch']:6}{row['dense_ms']:8.2f} ms"
                        f"{row['compact_ms']:8.2f} ms{row['speedup']:7.2f}x{row['efficiency']:12.2f}",
                        flush=True,
                    )
        if not arguments.skip_latency:
            print(
                f"\n{'model':14}{'batch':>6}{'asked':>8}{'foretold':>10}{'measured':>10}{'MACs':>8}{'planned in':>12}"
            )
            for name in (name for name in LATENCY_MODELS if name in arguments.models):
                try:
                    row = row_of_latency(name, arguments.batch, folder, arguments.runs, table)
                except PlanError as error:
                    save("latency", {"model": name, "batch": arguments.batch, "measured": 0.0, "error": str(error)})
                    print(f"{name:14}{arguments.batch:6}  {error}")
                    continue
                save("latency", row)
                print(
                    f"{row['model']:14}{row['batch']:6}{FASTER:8.0%}{row['foretold']:10.1%}{row['measured']:10.1%}"
                    f"{row['flops_reduction']:8.1%}{row['planning_seconds']:10.0f} s",
                    flush=True,
                )
    result["complete"] = True
    replace_file(arguments.output, (json.dumps(result, indent=1) + "\n").encode())
    for note in result["notes"]:
        print(note)
    failed = objections(result)
    for line in failed:
        print(f"does not hold: {line}")
    return bool(failed)


def objections(result: dict[str, Any]) -> list[str]:
    """What was to be shown and was not."""
    found = [
        f"resnet50 at batch 8 with the default rounding: efficiency {row['efficiency']:.2f}, at least {ENOUGH}"
        for row in result["rounding"]
        if (row["model"], row["batch"], row["round_to"]) == ("resnet50", 8, "default") and row["efficiency"] < ENOUGH
    ]
    found += [
        f"{row['model']}: {row['measured']:.1%} less time, {FASTER:.0%} asked"
        for row in result["latency"]
        if abs(row["measured"] - FASTER) > 0.05
    ]
    return found


def _flags() -> str:
    """What the processor can do, where the system says so."""
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8") if path.exists() else ""


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    raise SystemExit(main())
