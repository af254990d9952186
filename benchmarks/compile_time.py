"""How long the compiler takes, beside Torch-Pruning on the same models; how that grows with depth; and what memory a rewrite needs.

    python benchmarks/compile_time.py                      all of it, into benchmarks/results/compile-time.json
    python benchmarks/compile_time.py --models resnet18 resnet50 --skip-scaling --skip-memory

Three parts, each of which can be left out:

- *models*: for torchvision classifiers the seconds to trace, analyse and rewrite, each channel group halved, beside what Torch-Pruning
  (``pip install torch-pruning``, optional) takes to build its pruner and take its step at a pruning ratio of 0.5. One thread, float32,
  median of alternating repetitions. What each tool does not do in that time is left out of it: tying here, importance of the
  weights is part of the peer's step. Our verification is printed beside it, and is not part of the ratio.
- *scaling*: stacks of 50 to 400 small residual or dense blocks, and the exponent that fits: 1 where the cost is linear.
- *memory*: the peak of a process that holds one tied model and rewrites it, against 2.2 times its parameters plus 400 MB.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pdc_fx.ir import ClusterPlan
from pdc_fx.models import build_model, example_inputs
from pdc_fx.passes.analysis import Analysis, AnalyzeDependencies
from pdc_fx.passes.compare import compare
from pdc_fx.passes.random_plans import random_halves
from pdc_fx.passes.rewrite import merge_channels
from pdc_fx.passes.tied import tie_once
from pdc_fx.trace import Recording, record

MODELS = (
    "alexnet", "convnext_tiny", "densenet121", "densenet201", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3",
    "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_large", "regnet_x_800mf", "regnet_y_16gf", "resnet152", "resnet18", "resnet34",
    "resnet50", "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_1", "vgg16_bn", "wide_resnet50_2",
)  # fmt: skip
DEPTHS = (50, 100, 200, 400)
ALLOWED_FACTOR, ALLOWED_BYTES = 2.2, 400e6
DEFAULT_OUTPUT = Path(__file__).resolve().parent / "results" / "compile-time.json"
PEER = "torch-pruning"

Seconds = dict[str, float]
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@contextmanager
def clock(seconds: Seconds, phase: str) -> Iterator[None]:
    """Add a phase to ``seconds``; garbage of what came before is not part of it."""
    now = CLOCKS[chosen["clock"]]
    gc.collect()
    start = now()
    yield
    seconds[phase] = now() - start


chosen = {"clock": "wall"}


# ------------------------------------------------------------------------------------------------------------------ ours
def analysed(model: nn.Module, inputs: tuple[Any, ...], recording: Recording) -> Analysis:
    """The channel groups, and what the rewrite takes over of the analysis."""
    return AnalyzeDependencies(inputs, (), recording)(model)


def merged(tied: nn.Module, plan: ClusterPlan, inputs: tuple[Any, ...], analysis: Analysis) -> nn.Module:
    """The rewrite. This function and the one above are all that knows how the passes are called."""
    return merge_channels(tied, plan, inputs, analysis)


def ours(model: nn.Module, inputs: tuple[Any, ...], *, verify: bool = False) -> Seconds:
    """Trace, analyse and rewrite a model that is left as it is."""
    seconds: Seconds = {}
    with clock(seconds, "trace"):
        recording = record(model, inputs)
    with clock(seconds, "analyze"):
        analysis = analysed(model, inputs, recording)
    tied, plan = halved(model, random_halves(analysis.groups, 0))
    with clock(seconds, "rewrite"):
        compact = merged(tied, plan, inputs, analysis)
    if verify:
        with clock(seconds, "verify"):
            compare(tied, compact, inputs, tolerance=1e-4)
    return seconds


def halved(model: nn.Module, plan: ClusterPlan) -> tuple[nn.Module, ClusterPlan]:
    """A copy that is tied by the plan."""
    tied = copy.deepcopy(model)
    tie_once(tied, plan)
    return tied, plan


def total(seconds: Seconds) -> float:
    """What counts: all but the verification."""
    return sum(value for phase, value in seconds.items() if phase != "verify")


# ------------------------------------------------------------------------------------------------------------------ peer
def load_peer() -> Any:
    """The peer's module, or None with a message."""
    try:
        with quiet():
            return importlib.import_module("torch_pruning")
    except ImportError:
        say("torch-pruning is not installed: our side alone is measured (pip install torch-pruning)")
        return None


def peer(tp: Any, model: nn.Module, inputs: tuple[Any, ...]) -> Seconds:
    """Build a pruner for a copy of the model, and let it halve every layer but the output."""
    seconds: Seconds = {}
    pruned = copy.deepcopy(model).requires_grad_(True)
    outputs = [m for m in pruned.modules() if getattr(m, "out_features", getattr(m, "out_channels", 0)) == 1000]
    with quiet():
        with clock(seconds, "build"):
            pruner = tp.pruner.BasePruner(
                pruned,
                inputs,
                importance=tp.importance.MagnitudeImportance(p=1),
                pruning_ratio=0.5,
                global_pruning=False,
                ignored_layers=outputs,
            )
        with clock(seconds, "prune"):
            pruner.step()
        with torch.no_grad():
            pruned(*inputs)  # a network that does not run any more is no result
    return seconds


@contextmanager
def quiet() -> Iterator[None]:
    """Warnings and prints of others are not our output."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield


# ---------------------------------------------------------------------------------------------------------------- models
def measure_models(names: Sequence[str], repeats: int) -> dict[str, Any]:
    """One row per model, and the geometric mean of the ratios."""
    tp = load_peer()
    rows = []
    for name in names:
        loaded = build_model(f"torchvision:{name}")
        row = measure_model(tp, loaded.model, example_inputs(loaded), repeats)
        rows.append({"model": name, **row})
        say(f"{name}: {row}")
    ratios = [row["ratio"] for row in rows if "ratio" in row]
    mean = statistics.geometric_mean(ratios) if ratios else None
    return {"repeats": repeats, "rows": rows, "compared": len(ratios), "geometric_mean_ratio": mean}


def measure_model(tp: Any, model: nn.Module, inputs: tuple[Any, ...], repeats: int) -> dict[str, Any]:
    """Medians of both sides in alternation, after one run of each that does not count."""
    own: list[Seconds] = []
    theirs: list[Seconds] = []
    failure = "" if tp is not None else "not installed"
    for repeat in range(repeats + 1):
        own.append(ours(model, inputs, verify=repeat == repeats))
        if failure:
            continue
        try:
            theirs.append(peer(tp, model, inputs))
        except Exception as error:  # whatever the peer raises, the next model is measured
            failure = f"{type(error).__name__}: {error}".splitlines()[0][:200]
    row: dict[str, Any] = {"ours": medians(own[1:])}
    if failure:
        return row | {"peer_failure": failure}
    row["peer"] = medians(theirs[1:])
    return row | {"ratio": row["ours"]["total"] / row["peer"]["total"]}


def medians(runs: list[Seconds]) -> Seconds:
    """The median of each phase and of the totals."""
    phases = dict.fromkeys(phase for run in runs for phase in run)
    found = {phase: statistics.median(run[phase] for run in runs if phase in run) for phase in phases}
    return {**found, "total": statistics.median(total(run) for run in runs)}


# --------------------------------------------------------------------------------------------------------------- scaling
def normalised(source: int, target: int, size: int) -> nn.Sequential:
    """Batch norm, ReLU and a convolution."""
    convolution = nn.Conv2d(source, target, size, padding=size // 2, bias=False)
    return nn.Sequential(nn.BatchNorm2d(source), nn.ReLU(), convolution)


class Residual(nn.Module):
    """Two convolutions around which the input is added."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(normalised(channels, channels, 3), normalised(channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)  # type: ignore[no-any-return]


class Dense(nn.Module):
    """Four layers that each read all before them, and a transition back to the width that came in."""

    def __init__(self, channels: int, growth: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(normalised(channels + i * growth, growth, 3) for i in range(layers))
        self.transition = normalised(channels + layers * growth, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.transition(torch.cat(features, 1))  # type: ignore[no-any-return]


def stack(block: Callable[[int], nn.Module], depth: int, channels: int = 8) -> nn.Module:
    """``depth`` blocks between a stem and a head."""
    stem = nn.Conv2d(3, channels, 3, padding=1)
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))
    return nn.Sequential(stem, *(block(channels) for _ in range(depth)), *head).eval()


def measure_scaling(repeats: int, depths: tuple[int, ...] = DEPTHS) -> list[dict[str, Any]]:
    """Times by depth for both kinds of block, and the slope of each phase in a log-log plot."""
    found = []
    inputs = (torch.zeros(1, 3, 16, 16),)
    for block in (Residual, Dense):
        rows = []
        for depth in depths:
            model = stack(block, depth)
            ours(model, inputs)
            rows.append({"blocks": depth, **medians([ours(model, inputs) for _ in range(repeats)])})
            say(f"{depth} {block.__name__.lower()} blocks: {rows[-1]}")
        phases = [phase for phase in rows[0] if phase != "blocks"]
        exponents = {phase: slope(depths, [float(row[phase]) for row in rows]) for phase in phases}
        found.append({"block": block.__name__.lower(), "rows": rows, "exponents": exponents})
    return found


def slope(sizes: tuple[int, ...], seconds: list[float]) -> float:
    """The exponent ``e`` of ``seconds ~ sizes ** e``."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


# ---------------------------------------------------------------------------------------------------------------- memory
def measure_memory(name: str) -> dict[str, Any]:
    """The peak of a rewrite, in a process of its own."""
    command = [sys.executable, __file__, "--rewrite-alone", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["killed, most likely because memory ran out"])[-1]
        return {"model": name, "failure": last}
    found: dict[str, Any] = json.loads(done.stdout)
    found["allowed"] = int(ALLOWED_FACTOR * found["parameter_bytes"] + ALLOWED_BYTES)
    found["passed"] = found["peak"] <= found["allowed"]
    return found


def rewrite_alone(name: str) -> dict[str, Any]:
    """What the process above does: hold one tied model, rewrite it, and read the peak of its resident memory meanwhile."""
    importlib.import_module("torchvision.models")
    without_model = memory("VmRSS")
    loaded = build_model(f"torchvision:{name}")
    inputs = example_inputs(loaded)
    analysis = analysed(loaded.model, inputs, record(loaded.model, inputs))
    plan = random_halves(analysis.groups, 0)
    tie_once(loaded.model, plan)
    gc.collect()
    before = memory("VmRSS")
    reset = forget_peak()
    compact = merged(loaded.model, plan, inputs, analysis)
    return {
        "model": name,
        "parameter_bytes": size_of(loaded.model),
        "compact_bytes": size_of(compact),
        "resident_without_model": without_model,
        "resident_before": before,
        "peak": memory("VmHWM"),
        "peak_since": "the rewrite began" if reset else "the process began",
    }


def size_of(model: nn.Module) -> int:
    """Bytes of the parameters."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def memory(field: str) -> int:
    """A size in bytes from Linux's status of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) * 1024


def forget_peak() -> bool:
    """Let the peak of the resident memory start anew; False where the kernel refuses."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------- output
def machine() -> dict[str, Any]:
    """What the times were taken on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return {
        "cpu": cpu or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **{p: version_of(p) for p in ("torch", "torchvision", PEER)}},
    }


def version_of(package: str) -> str | None:
    """Of what is installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def table(result: dict[str, Any]) -> str:
    """All of it in at most 80 columns; times in seconds."""
    lines = []
    if "models" in result:
        lines.append(
            f"{'model':<18}{'trace':>7}{'analyze':>8}{'rewrite':>8}{'total':>7} |{'build':>7}{'prune':>7} |{'ratio':>6} |{'verify':>6}"
        )
        for row in result["models"]["rows"]:
            own, other = row["ours"], row.get("peer", {})
            phases = f"{own['trace']:>7.2f}{own['analyze']:>8.2f}{own['rewrite']:>8.2f}{own['total']:>7.2f}"
            theirs = (
                f"{other['build']:>7.2f}{other['prune']:>7.2f} |{row['ratio']:>6.2f}"
                if other
                else f"{'-':>14} |{'-':>6}"
            )
            lines.append(f"{row['model']:<18}{phases} |{theirs} |{own['verify']:>6.2f}")
        mean = result["models"]["geometric_mean_ratio"]
        if mean is not None:
            lines.append(
                f"geometric mean of our time over the peer's, {result['models']['compared']} models: {mean:.2f}"
            )
        failures = [
            row for row in result["models"]["rows"] if row.get("peer_failure", "not installed") != "not installed"
        ]
        lines += [f"the peer on {row['model']}: {row['peer_failure']}"[:80] for row in failures]
    for part in result.get("scaling", ()):
        lines += ["", f"{part['block'] + ' blocks':<20}{'trace':>8}{'analyze':>8}{'rewrite':>8}{'total':>8}"]
        for row in part["rows"]:
            lines.append(f"{row['blocks']:<20}" + "".join(f"{row[p]:>8.2f}" for p in part["exponents"]))
        lines.append(f"{'exponent':<20}" + "".join(f"{value:>8.2f}" for value in part["exponents"].values()))
    if "memory" in result:
        found = result["memory"]
        lines.append("")
        if "failure" in found:
            lines.append(f"memory, {found['model']}: {found['failure']}"[:80])
        else:
            verdict = "passed" if found["passed"] else "FAILED"
            libraries = found["resident_without_model"] / 1e6
            lines.append(
                f"memory, {found['model']}: peak {found['peak'] / 1e6:.0f} MB (libraries alone: {libraries:.0f} MB)"
            )
            lines.append(f"allowed {found['allowed'] / 1e6:.0f} MB: {verdict}")
    return "\n".join(lines)


def say(message: str) -> None:
    """Progress."""
    print(message, file=sys.stderr, flush=True)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS, metavar="NAME", help="torchvision classifiers")
    parser.add_argument("--repeats", type=int, default=3, help="repetitions that count (default: 3)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu on a machine that has other things to do")
    parser.add_argument("--memory-model", default="vgg16", metavar="NAME", help="a large one (default: vgg16)")
    for part in ("models", "scaling", "memory"):
        parser.add_argument(f"--skip-{part}", action="store_true", help=f"leave the part '{part}' out")
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT_OUTPUT, help="the JSON file")
    parser.add_argument("--rewrite-alone", metavar="NAME", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chosen["clock"] = options.clock
    if options.rewrite_alone:
        print(json.dumps(rewrite_alone(options.rewrite_alone)))
        return
    result: dict[str, Any] = {"machine": machine(), "clock": options.clock}
    if not options.skip_models:
        result["models"] = measure_models(options.models, options.repeats)
    if not options.skip_scaling:
        result["scaling"] = measure_scaling(options.repeats)
    if not options.skip_memory:
        result["memory"] = measure_memory(options.memory_model)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
