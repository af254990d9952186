"""What tying adds to a training step: time against the same step of plain distillation, and memory against the parameters.

    python benchmarks/tying_overhead.py                    all of it, into benchmarks/results/tying-overhead.json
    python benchmarks/tying_overhead.py --models resnet20 --threads 1 --pairs 10

With two threads on a machine that has other things to do, set OMP_WAIT_POLICY=PASSIVE: threads that wait for one another then do not
spin, which can multiply the time of a step.

Both arms train a copy of one network with random weights under the loss of ``pdc_fx.distill``, by SGD with Nesterov momentum, in float32
and channels last, from the same teacher on the same images; one of them is tied, every group merged to half its width.

- *time*: one step of each arm in turn, the first of each pair changing over; the median of the ratios within the pairs.
- *memory*: from the allocations that torch's profiler counts, so that the figures repeat. *Step* is by how much the peak over two steps
  grows, everything that tying keeps included. *Alone* is the peak of tying by itself, with nothing else to hide behind: its index, the
  averaging of all gradients, and the projection.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from pdc_fx.distill import distillation_loss
from pdc_fx.ir import ClusterPlan
from pdc_fx.models import build_model
from pdc_fx.passes.random_plans import random_halves
from pdc_fx.passes.tie import Tying
from pdc_fx.pipeline import analyze

ROOT = Path(__file__).resolve().parent.parent
CIFAR = ROOT / "examples" / "cifar_resnet.py"
DEFAULT_OUTPUT = ROOT / "benchmarks" / "results" / "tying-overhead.json"
ALLOWED_RATIO, ALLOWED_MEMORY = 1.03, 1.2
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Setting:
    """A network, what it is fed, and how many pairs of steps give a steady median."""

    batch: int
    size: int
    pairs: int
    model: str


SETTINGS = {
    "resnet20": Setting(128, 32, 60, f"{CIFAR}:resnet20"),
    "resnet56": Setting(128, 32, 60, f"{CIFAR}:resnet56"),
    "resnet50": Setting(8, 224, 40, "torchvision:resnet50"),
}


class Arm:
    """A student with its optimizer, tied or not."""

    def __init__(self, teacher: nn.Module, plan: ClusterPlan | None, images: Tensor, labels: Tensor) -> None:
        self.teacher, self.plan, self.images, self.labels = teacher, plan, images, labels
        self.student = copy.deepcopy(teacher).train()
        self.optimizer = torch.optim.SGD(self.student.parameters(), 1e-3, 0.9, weight_decay=5e-4, nesterov=True)
        self.tying: Tying | None = None

    def tie(self) -> None:
        """Begin to tie, if this arm does."""
        self.tying = None if self.plan is None else Tying(self.student, self.plan, "hard")

    def step(self) -> None:
        """One step as in ``pdc_fx.distill``."""
        with torch.inference_mode():
            targets = self.teacher(self.images)
        loss = distillation_loss(self.student(self.images), targets.clone(), self.labels, alpha=0.9, temperature=4.0)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.tying is not None:
            self.tying.step()


def arms(setting: Setting, batch: int) -> tuple[Arm, Arm]:
    """Plain and tied."""
    torch.manual_seed(0)
    teacher = build_model(setting.model).model
    plan = random_halves(analyze(teacher, torch.zeros(1, 3, setting.size, setting.size)), 0)
    teacher = teacher.to(memory_format=torch.channels_last)
    images = torch.randn(batch, 3, setting.size, setting.size).contiguous(memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,))
    return Arm(teacher, None, images, labels), Arm(teacher, plan, images, labels)


# ------------------------------------------------------------------------------------------------------------------ time
def measure_time(setting: Setting, batch: int, pairs: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Medians over alternating steps, after two of each that do not count."""
    both = arms(setting, batch)
    for arm in both:
        arm.tie()
    seconds: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs + 2):
        for which in (0, 1) if pair % 2 else (1, 0):
            gc.collect()
            start = clock()
            both[which].step()
            if pair >= 2:
                seconds[which].append(clock() - start)
    ratios = [tied / plain for plain, tied in zip(*seconds, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4) if pairs > 1 else ratios * 3
    return {
        "plain": statistics.median(seconds[0]),
        "tied": statistics.median(seconds[1]),
        "ratio": middle,
        "quartiles": [low, high],
        "pairs": pairs,
        "passed": middle <= ALLOWED_RATIO,
    }


# ---------------------------------------------------------------------------------------------------------------- memory
def measure_memory(setting: Setting, batch: int) -> dict[str, Any]:
    """By what the peak grows, in bytes and over those of the parameters."""
    plain, tied = arms(setting, batch)

    def two_steps(arm: Arm) -> None:
        arm.tie()
        arm.step()
        arm.step()

    step = -peak(lambda: two_steps(plain)) + peak(lambda: two_steps(tied))
    assert tied.tying is not None
    tied.tying.close()
    own = peak(lambda: tie_alone(tied))
    parameters = sum(p.numel() * p.element_size() for p in tied.student.parameters())
    return {
        "parameters": parameters,
        "step": step,
        "alone": own,
        "step_over_parameters": step / parameters,
        "alone_over_parameters": own / parameters,
        "passed": max(step, own) <= ALLOWED_MEMORY * parameters,
    }


def tie_alone(arm: Arm) -> None:
    """Tying without the network: a backward pass that adds to gradients that are there already, and a step."""
    arm.tie()
    assert arm.tying is not None
    torch.autograd.backward([p.sum() for p in arm.student.parameters()])
    arm.tying.step()


def peak(work: Callable[[], None]) -> int:
    """Bytes that are held at most while ``work`` runs, beyond those held before."""
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    assert profiler.profiler is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())), default=0)


# ---------------------------------------------------------------------------------------------------------------- output
def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "wait_policy": os.environ.get("OMP_WAIT_POLICY"),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in ("torch", "torchvision")}},
    }


def table(result: dict[str, Any]) -> str:
    """All of it in at most 80 columns."""
    lines = [f"{'model':<10}{'batch':>6}{'threads':>8} |{'plain s':>9}{'tied s':>9}{'ratio':>7}{'quartiles':>14}"]
    for row in result["rows"]:
        for threads, found in row["time"].items():
            quartiles = "{:.3f}-{:.3f}".format(*found["quartiles"])
            lines.append(
                f"{row['model']:<10}{row['batch']:>6}{threads:>8} |"
                f"{found['plain']:>9.3f}{found['tied']:>9.3f}{found['ratio']:>7.3f}{quartiles:>14}"
            )
    lines += ["", f"{'extra peak memory':<18}{'parameters MB':>14} |{'step':>7}{'alone':>7}  times the parameters"]
    for row in result["rows"]:
        found = row["memory"]
        lines.append(
            f"{row['model']:<18}{found['parameters'] / 1e6:>14.2f} |"
            f"{found['step_over_parameters']:>7.2f}{found['alone_over_parameters']:>7.2f}"
        )
    failed = [
        row["model"] for row in result["rows"] if not all(f["passed"] for f in (*row["time"].values(), row["memory"]))
    ]
    lines.append(f"allowed: ratio {ALLOWED_RATIO}, memory {ALLOWED_MEMORY}; failed: {', '.join(failed) or 'none'}")
    return "\n".join(lines)


def measure(
    names: Sequence[str], threads: Sequence[int], pairs: int | None, clock: str, batch: int | None
) -> dict[str, Any]:
    """One row per model."""
    rows = []
    for name in names:
        setting = SETTINGS[name]
        size = batch or setting.batch
        times = {}
        for count in threads:
            torch.set_num_threads(count)
            times[str(count)] = measure_time(setting, size, pairs or setting.pairs, CLOCKS[clock])
            print(f"{name}, {count} threads: {times[str(count)]}", file=sys.stderr, flush=True)
        rows.append({"model": name, "batch": size, "time": times, "memory": measure_memory(setting, size)})
    return {"machine": machine(), "clock": clock, "rows": rows}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=list(SETTINGS), choices=SETTINGS, metavar="NAME", help=", ".join(SETTINGS)
    )
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2], metavar="N", help="default: 1 2")
    parser.add_argument("--pairs", type=int, help="pairs of steps that count (default: 60, 60 and 40)")
    parser.add_argument("--batch", type=int, help="images per step (default: 128, or 8 for resnet50)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu on a machine that has other things to do")
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT_OUTPUT, help="the JSON file")
    options = parser.parse_args()
    result = measure(options.models, options.threads, options.pairs, options.clock, options.batch)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
