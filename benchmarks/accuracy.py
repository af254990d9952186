"""Top-1 accuracy at an equal budget: tied training and its ablations beside Torch-Pruning.

    python benchmarks/accuracy.py                                ResNet-20, half of the MACs, all arms, seeds 0 to 2
    python benchmarks/accuracy.py --arms calibrate+match tp-l1 --seeds 0 --epochs 2

All arms start from one trained network, which is also the teacher of all, and train by the same loop of ``pdc_fx.distill``: images,
their order and augmentation, optimizer, schedule and distillation of the logits are equal for equal seeds. 5,000 training images are
held out from every arm; test images are looked at once, after the last epoch. Multiply-accumulates are counted on the physically small
network, by one counter.

Rows that are in the file already are not run again. Each arm runs in a process of its own with one thread, ``--jobs`` of them side by
side, and leaves checkpoints under ``runs/``, from which it goes on. The teacher's answers are kept there as well, for arms that see the
same images: times of arms cannot be compared.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import peer
import torch
from torch import Tensor, nn

from pdc_fx.data import ImageData, open_data, sample_images
from pdc_fx.distill import TiedTraining, TrainOptions, accuracy, muon
from pdc_fx.distill.precision import half_precision
from pdc_fx.files import replace_file
from pdc_fx.ir import ClusterPlan
from pdc_fx.models import build_model
from pdc_fx.passes.calibrate import RIDGE, UNFITTED
from pdc_fx.pipeline import analyze, calibrate, plan, rewrite

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
HELD_OUT = 5000
AMP = "no" if half_precision("auto", torch.device("cpu")) is None else "bf16"
SAME = {"opt": "sgd", "compile": True, "cutmix_alpha": 0.0, "teacher_flip": False}
"""Options of all arms where they say nothing else."""
MATCH = {"features": "match", "compile": False}
MUON = {"opt": "muon"}
FLIP = {"teacher_flip": True}
CUTMIX = {"cutmix_alpha": 1.0, "mixup_prob": 0.5}


@dataclass(frozen=True)
class Task:
    """What all arms are given."""

    model: nn.Module
    data: ImageData
    example: Tensor
    reduction: float


Start = Callable[[Task], tuple[nn.Module, ClusterPlan]]


@dataclass(frozen=True)
class Arm:
    """A network to train and the plan to tie it by, a mode, training options that differ from those of all (with SGD), Muon's share."""

    what: str
    start: Start
    mode: str = "hard"
    options: Mapping[str, Any] = field(default_factory=dict)
    share: float = muon.SHARE

    def begin(self, task: Task) -> tuple[nn.Module, ClusterPlan]:
        """The network and its plan; from now on Muon takes this arm's share of the learning rate, for the rest of the process."""
        muon.SHARE = self.share
        return self.start(task)


# ---------------------------------------------------------------------------------------------------------------- starts
def clustered(task: Task) -> tuple[nn.Module, ClusterPlan]:
    """Ward's clusters of the filters' weights."""
    model = copy.deepcopy(task.model)
    return model, plan(model, analyze(model, task.example), flops_reduction=task.reduction)


def calibrated(ridge: float = UNFITTED) -> Start:
    """Channels chosen on 512 training images without labels; their readers refitted where the ridge lets them change."""

    def start(task: Task) -> tuple[nn.Module, ClusterPlan]:
        groups = analyze(task.model, task.example)
        images = sample_images(task.data, 512)
        return calibrate(task.model, groups, images, flops_reduction=task.reduction, ridge=ridge)

    return start


def pruned(importance: str, *, everywhere: bool = False) -> Start:
    """Torch-Pruning."""

    def start(task: Task) -> tuple[nn.Module, ClusterPlan]:
        small = peer.pruned(task.model, task.example, task.reduction, importance, everywhere=everywhere)
        return as_it_is(small, task.example)

    return start


def from_scratch(task: Task) -> tuple[nn.Module, ClusterPlan]:
    """The network that L1 pruning leaves, initialised anew."""
    model, separate = pruned("L1")(task)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm2d)):
            module.reset_parameters()
    return model, separate


def as_it_is(model: nn.Module, example: Tensor) -> tuple[nn.Module, ClusterPlan]:
    """A network of which nothing is tied."""
    groups = analyze(model, example)
    return model, ClusterPlan(groups, tuple(np.arange(g.channels) for g in groups.groups), "uniform", {})


ARMS = {
    "hard": Arm("clusters of weights, tied from the start", clustered),
    "hard+match": Arm("clusters of weights, tied from the start, maps matched", clustered, options=MATCH),
    "calibrate": Arm("channels chosen on images, then tied", calibrated()),
    "calibrate+muon": Arm("channels chosen on images, then tied, with Muon", calibrated(), options=MUON),
    "calibrate+muon+flip": Arm(
        "channels chosen on images, then tied, with Muon, from a teacher that sees mirror images as well",
        calibrated(),
        options=MUON | FLIP,
    ),
    "calibrate+muon+mixed": Arm(
        "channels chosen on images, then tied, with Muon and CutMix in half of the batches, from a teacher that sees mirror images as well",
        calibrated(),
        options=MUON | FLIP | CUTMIX,
    ),
    "refit+muon": Arm(
        "channels chosen on images, their readers refitted, then tied, with Muon", calibrated(RIDGE), options=MUON
    ),
    "calibrate+match": Arm("channels chosen on images, then tied, maps matched", calibrated(), options=MATCH),
    "calibrate+cutmix": Arm(
        "channels chosen on images, then tied, half of the batches mixed", calibrated(), options=CUTMIX
    ),
    "pdc": Arm("clusters of weights, reconstructed at intervals", clustered, mode="pdc"),
    "csgd": Arm("clusters of weights, centripetal SGD", clustered, mode="csgd"),
    "progressive": Arm("clusters of weights, merged step by step", clustered, mode="progressive"),
    "progressive+match": Arm(
        "clusters of weights, merged step by step, maps matched", clustered, mode="progressive", options=MATCH
    ),
    "no-teacher": Arm("clusters of weights, tied from the start, labels alone", clustered, options={"alpha": 0.0}),
    "tp-l1": Arm("Torch-Pruning by L1 norms", pruned("L1")),
    "tp-l1+slow": Arm("Torch-Pruning by L1 norms, at a peak rate of 0.02", pruned("L1"), options={"lr": 0.02}),
    "tp-group": Arm("Torch-Pruning by group norms", pruned("group norm")),
    "tp-l1-global": Arm("Torch-Pruning by L1 norms across layers", pruned("L1", everywhere=True)),
    "tp-group-global": Arm("Torch-Pruning by group norms across layers", pruned("group norm", everywhere=True)),
    "tp-l1+cutmix": Arm("Torch-Pruning by L1 norms, half of the batches mixed", pruned("L1"), options=CUTMIX),
    "tp-l1+mixed": Arm(
        "Torch-Pruning by L1 norms, with CutMix in half of the batches, from a teacher that sees mirror images as well",
        pruned("L1"),
        options=FLIP | CUTMIX,
    ),
    "tp-l1+muon": Arm("Torch-Pruning by L1 norms, with Muon", pruned("L1"), options=MUON),
    "tp-l1+muon+flip": Arm(
        "Torch-Pruning by L1 norms, with Muon, from a teacher that sees mirror images as well",
        pruned("L1"),
        options=MUON | FLIP,
    ),
    "tp-l1+muon+mixed": Arm(
        "Torch-Pruning by L1 norms, with Muon and CutMix in half of the batches, from a teacher that sees mirror images as well",
        pruned("L1"),
        options=MUON | FLIP | CUTMIX,
    ),
    "tp-l1+match": Arm("Torch-Pruning by L1 norms, and our matched maps", pruned("L1"), options=MATCH),
    "scratch": Arm("the network that L1 pruning leaves, from scratch", from_scratch),
}
ARMS |= {
    f"{name}+double": replace(arm, what=f"{arm.what}, at twice Muon's rate", share=2 * muon.SHARE)
    for name, arm in ARMS.items()
    if arm.options.get("opt") == "muon"
}


# ------------------------------------------------------------------------------------------------------------------ runs
class Remembered(nn.Module):
    """A teacher that answers from ``directory`` what it, or another run, was asked before: arms of one seed see the same images."""

    def __init__(self, teacher: nn.Module, directory: Path) -> None:
        super().__init__()
        self.teacher, self.directory = teacher, directory
        directory.mkdir(parents=True, exist_ok=True)

    @torch.compiler.disable
    def forward(self, images: Tensor) -> Tensor:
        file = self.directory / f"{hashlib.sha256(images.numpy().tobytes()).hexdigest()}.npy"
        if not file.exists():
            mine = file.with_suffix(f".{os.getpid()}.npy")
            np.save(mine, self.teacher(images).float().numpy())  # there is no bfloat16 in NumPy
            mine.replace(file)
        return torch.from_numpy(np.load(file))


def run(name: str, model: str, reduction: float, options: TrainOptions, data_spec: str) -> dict[str, Any]:
    """One row."""
    arm = ARMS[name]
    torch.set_num_threads(1)
    weights = SHARED / "weights" / f"{model}-cifar10.safetensors"
    loaded = build_model(f"{ROOT / 'examples' / 'cifar_resnet.py'}:{model}", weights=weights)
    data, held_out = open_data(data_spec).hold_out(HELD_OUT)
    task = Task(loaded.model, data, torch.zeros(1, *data.image_shape), reduction)
    started = time.perf_counter()
    student, clusters = arm.begin(task)
    directory = ROOT / "runs" / "accuracy" / f"{model}-{name}-{options.epochs}-{options.seed}-{options.amp}"
    directory.mkdir(parents=True, exist_ok=True)
    teacher = copy.deepcopy(task.model)
    if options.features == "none":
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        teacher = Remembered(teacher, directory.parent / f"teacher-{digest[:16]}-{options.amp}")
    training = TiedTraining(student, teacher, clusters, data, held_out, options, arm.mode, directory)
    final, metrics = training.run(resume=True)
    seconds = time.perf_counter() - started
    compact = rewrite(student.eval(), final, task.example).eval()
    before, after = (peer.macs(m, task.example) for m in (task.model, compact))
    return {
        "model": model,
        "arm": name,
        "seed": options.seed,
        "epochs": options.epochs,
        "macs_before": before,
        "macs_after": after,
        "loss": [record["loss"] for record in metrics if record["kind"] == "epoch"],
        "held_out": [record["accuracy"] for record in metrics if record["kind"] == "epoch"],
        "held_out_final": accuracy(compact, held_out, data),
        "test": accuracy(compact, data.test, data),
        "teacher_test": accuracy(task.model, data.test, data),
        "seconds": seconds,
        "mode": arm.mode,
        "options": options.to_dict(),
    }


def key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes a row the same as another."""
    return row["model"], row["arm"], row["seed"], row["epochs"]


def run_all(arms: Sequence[str], seeds: Sequence[int], options: argparse.Namespace) -> dict[str, Any]:
    """The rows that are missing, some side by side; the file is written after each."""
    result = {"rows": []}
    if options.output.exists():
        result = json.loads(options.output.read_text(encoding="utf-8"))
    if any(row["options"]["amp"] != options.amp for row in result["rows"]):
        raise SystemExit(
            f"error: {options.output} has rows of another precision than --amp {options.amp}; give another -o"
        )
    result["versions"] = {p: version(p) for p in ("torch", "torch-pruning")}
    known = {key(row) for row in result["rows"]}
    wanted = [(arm, seed) for seed in seeds for arm in arms if (options.model, arm, seed, options.epochs) not in known]

    def one(job: tuple[str, int]) -> None:
        command = [sys.executable, __file__, "--one", "--arms", job[0], "--seeds", str(job[1])]
        command += ["--model", options.model, "--epochs", str(options.epochs), "--data", options.data]
        command += ["--flops-reduction", str(options.flops_reduction), "--amp", options.amp]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        if done.returncode:
            print(f"{job[0]}, seed {job[1]}: failed with code {done.returncode}", file=sys.stderr, flush=True)
            return
        result["rows"].append(json.loads(done.stdout.splitlines()[-1]))
        shown = {row["arm"] for row in result["rows"]}
        result["arms"] = {name: arm.what for name, arm in ARMS.items() if name in shown}
        replace_file(options.output, (json.dumps(result, indent=1) + "\n").encode())
        row = result["rows"][-1]
        print(f"{job[0]}, seed {job[1]}: test {row['test']:.4f}, {row['seconds']:.0f} s", file=sys.stderr, flush=True)

    options.output.parent.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(one, wanted))
    return result


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All of it in at most 80 columns."""
    lines = [f"{'model':<9} {'arm':<27}{'epochs':>7}{'MACs':>7}{'test':>7}{'spread':>7}{'runs':>5}{'held out':>9}"]
    cells: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for row in rows:
        cells.setdefault((row["model"], row["arm"], row["epochs"]), []).append(row)
    for (model, arm, epochs), found in sorted(cells.items()):
        test = [100 * row["test"] for row in found]
        held = [100 * row["held_out_final"] for row in found]
        gone = 100 * (found[0]["macs_after"] / found[0]["macs_before"] - 1)
        lines.append(
            f"{model:<9} {arm:<27}{epochs:>7}{gone:>6.1f}%{statistics.mean(test):>7.2f}"
            f"{max(test) - min(test):>7.2f}{len(test):>5}{statistics.mean(held):>9.2f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--arms", nargs="+", default=list(ARMS), choices=ARMS, metavar="ARM",
        help="; ".join(f"{name}: {arm.what}" for name, arm in ARMS.items()),
    )  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="default: 0 1 2")
    parser.add_argument("--model", default="resnet20", help="of examples/cifar_resnet.py; default: resnet20")
    parser.add_argument("--epochs", type=int, default=10, help="default: 10")
    parser.add_argument("--flops-reduction", type=float, default=0.5, help="default: 0.5")
    parser.add_argument("--data", default=f"parquet:{SHARED / 'data' / 'cifar10'}", help="as pdc-fx compress takes it")
    parser.add_argument(
        "--amp", choices=("bf16", "no"), default=AMP, help="one for all rows of a file; default on this processor: %(default)s"
    )  # fmt: skip
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="runs side by side; default: one a core")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument(
        "-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "accuracy.json", help="the JSON file"
    )
    options = parser.parse_args()
    if options.one:
        (name,), (seed,) = options.arms, options.seeds
        chosen = {**SAME, **ARMS[name].options, "epochs": options.epochs, "seed": seed, "amp": options.amp}
        print(json.dumps(run(name, options.model, options.flops_reduction, TrainOptions.of(chosen), options.data)))
        return
    print(table(run_all(options.arms, options.seeds, options)["rows"]))


if __name__ == "__main__":
    main()
