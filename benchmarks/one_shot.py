"""One-shot compression of CIFAR ResNets: calibration and folding beside Torch-Pruning, no training anywhere.

    python benchmarks/one_shot.py --weights DIR --data DIR          all of it, into benchmarks/results/one-shot.json

DIR of the weights holds ``resnet20-cifar10.safetensors`` and ``resnet56-cifar10.safetensors``, that of the data CIFAR-10's two
parquet files. All arms get the same unlabelled images, 512 training images of all classes. Multiply-accumulates are counted by one
function on the small model.

Torch-Pruning (``pip install torch-pruning``) runs with its defaults, uniform and global, with L1 and with group-norm importance
(``benchmarks/peer.py``); calibration is free to thin streams. Each of its arms is measured as it comes, and with batch-norm statistics
estimated anew.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import peer
import torch
from torch import Tensor, nn

import pdc_fx
from pdc_fx.data import open_data, sample_images
from pdc_fx.distill import accuracy
from pdc_fx.distill.evaluation import reestimate_batch_norm
from pdc_fx.models import build_model

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]


def arms(model: nn.Module, images: Tensor, target: float) -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Name -> what makes the small network."""
    groups = pdc_fx.analyze(model, images[:1])

    def ours(make: Callable[..., Any], *given: Any, **options: Any) -> Callable[[], nn.Module]:
        return lambda: pdc_fx.rewrite(*make(model, groups, *given, flops_reduction=target, **options), images[:2])

    yield "calibrate", ours(pdc_fx.calibrate, images)
    yield "fold", ours(pdc_fx.fold)
    yield "fold, batch norm re-estimated", ours(pdc_fx.fold, images=images)
    for importance in peer.IMPORTANCES:
        for everywhere in (False, True):
            kept: list[nn.Module] = []

            def prune(
                importance: str = importance, everywhere: bool = everywhere, kept: list[nn.Module] = kept
            ) -> nn.Module:
                kept.append(peer.pruned(model, images[:1], target, importance, everywhere=everywhere))
                return kept[0]

            def repaired(kept: list[nn.Module] = kept) -> nn.Module:
                reestimate_batch_norm(kept[0], iter([images]))
                return kept[0]

            label = f"Torch-Pruning {importance}, {'global' if everywhere else 'uniform'}"
            yield label, prune
            yield f"{label}, batch norm re-estimated", repaired


def measure(name: str, arguments: argparse.Namespace, save: Callable[[Row], None]) -> None:
    """Every arm of one network at every budget."""
    loaded = build_model(
        f"{ROOT}/examples/cifar_resnet.py:{name}", weights=arguments.weights / f"{name}-cifar10.safetensors"
    )
    data = open_data(f"parquet:{arguments.data}")
    data = data.with_normalization(*loaded.normalization) if loaded.normalization else data
    model, test = loaded.model.eval(), data.test.subset(range(arguments.test_images or len(data.test)))
    images = sample_images(data, arguments.images)
    dense = peer.macs(model, images[:1])
    save({"model": name, "arm": "dense", "macs": dense, "accuracy": accuracy(model, test, data)})
    for target in arguments.reductions:
        for arm, make in arms(model, images, target):
            start = time.perf_counter()
            small = make().eval()
            seconds = time.perf_counter() - start
            count = peer.macs(small, images[:1])
            row = {"model": name, "target": target, "arm": arm, "macs": count, "reduction": 1 - count / dense}
            save({**row, "accuracy": accuracy(small, test, data), "seconds": seconds})


def main() -> None:
    """Measure, print a row when it is there, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--models", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--reductions", nargs="+", type=float, default=[0.3, 0.5])
    parser.add_argument("--images", type=int, default=512, help="unlabelled training images that every arm may look at")
    parser.add_argument("--test-images", type=int, help="the first so many test images (all of them by default)")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "one-shot.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    options = {
        k: str(v) if isinstance(v, Path) else v
        for k, v in vars(arguments).items()
        if k not in ("weights", "data", "output")
    }
    result: dict[str, Any] = {
        "options": options,
        "versions": {name: version(name) for name in ("torch", "torch-pruning")},
        "complete": False,
        "rows": [],
    }
    print(f"{'model':9}{'removed':>8}  {'arm':44}{'top-1':>7}")

    def save(row: Row) -> None:
        result["rows"].append(row)
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
        arm = row["arm"].replace("Torch-Pruning", "TP").replace("batch norm", "BN")
        print(f"{row['model']:9}{row.get('reduction', 0):8.1%}  {arm:44}{row['accuracy']:7.2%}", flush=True)

    for name in arguments.models:
        measure(name, arguments, save)
    result["complete"] = True
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
