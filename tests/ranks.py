"""Tied training in two processes under DistributedDataParallel; prints one JSON object a case. Run by ``test_tie.py``."""

from __future__ import annotations

import json
import sys
import tempfile
from typing import Any

import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from pdc_fx.errors import PdcError, PlanError
from pdc_fx.ir import ClusterPlan
from pdc_fx.passes.axes import merged_axes, named_tensors
from pdc_fx.passes.random_plans import random_halves
from pdc_fx.passes.tie import Tying, agreed_plan
from pdc_fx.passes.tied import residual
from pdc_fx.pipeline import analyze

CASES: list[dict[str, Any]] = [
    {},
    {"gradient_as_bucket_view": True},
    {"static_graph": True},
    {"static_graph": True, "gradient_as_bucket_view": True},
    {"find_unused_parameters": True},
]


def train(rank: int, options: dict[str, Any]) -> dict[str, Any]:
    """Three steps on different images in each rank."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )  # fmt: skip
    plan = random_halves(analyze(model, torch.zeros(1, 3, 8, 8)), seed=1)
    tying = Tying(model, plan, "hard")
    # Small buckets, so that the first are reduced while others still wait for their gradients.
    parallel = DistributedDataParallel(model, bucket_cap_mb=0.001, **options)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    torch.manual_seed(rank)
    before_projection, after, untied = [], [], 0.0
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(parallel(torch.randn(4, 3, 8, 8)), torch.arange(4)).backward()  # type: ignore[no-untyped-call]
        gradients = {name: p.grad for name, p in model.named_parameters()}
        for axis in merged_axes(plan):
            gradient = gradients.get(axis.tensor)
            if axis.role != "consumer" and gradient is not None:
                stand_in = gradient.index_select(axis.dim, torch.as_tensor(axis.stand_in))
                untied = max(untied, float((gradient - stand_in).abs().max()))
        optimizer.step()
        found = residual(model, plan)
        before_projection.append("" if found.tensor.rpartition(".")[2].startswith("running") else found.tensor)
        tying.step()
        after.append(float(tying.residual()))
    weights = torch.cat([p.detach().flatten() for p in named_tensors(model).values() if p.requires_grad])
    both = [torch.zeros_like(weights) for _ in range(2)]
    distributed.all_gather(both, weights)
    return {
        "options": options,
        "rank": rank,
        "untied_gradient": untied,
        "untied_by_the_optimizer": [name for name in before_projection if name],
        "residuals": after,
        "equal_across_ranks": torch.equal(*both),
        "refused": refused(),
    }


def refused() -> str:
    """What is said where the first process alone cannot plan."""

    def fail() -> ClusterPlan:
        raise PlanError("no such widths")

    try:
        agreed_plan(fail)
    except PdcError as error:
        return str(error)
    return ""


def work(rank: int, directory: str) -> None:
    """All cases in one process of the two."""
    torch.set_num_threads(1)
    for number, options in enumerate(CASES):
        distributed.init_process_group("gloo", init_method=f"file://{directory}/{number}", rank=rank, world_size=2)
        found: list[Any] = [None, None]
        distributed.all_gather_object(found, train(rank, options))
        if rank == 0:
            print("\n".join(map(json.dumps, found)), flush=True)
        distributed.destroy_process_group()


if __name__ == "__main__":
    if not distributed.is_available() or not distributed.is_gloo_available():
        sys.exit(0)
    with tempfile.TemporaryDirectory() as directory:
        multiprocessing.spawn(work, (directory,), nprocs=2)  # type: ignore[no-untyped-call]
