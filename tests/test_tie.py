"""Tied modules stay tied under any optimizer; untied ones are refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from samples import between, conv
from torch import nn

from pdc_fx.errors import ExactnessError, InputError, RewriteError
from pdc_fx.ir import ClusterPlan
from pdc_fx.passes.check import random_halves
from pdc_fx.passes.tie import residual
from pdc_fx.pipeline import analyze, rewrite, tie

EXAMPLE = torch.zeros(1, 3, 8, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = between(
        lambda m, x: x + m.b(m.a(x).relu()), a=conv(8, 12), b=nn.Sequential(conv(12, 8), nn.BatchNorm2d(8))
    )()
    return nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def planned(model: nn.Module) -> ClusterPlan:
    return random_halves(analyze(model, EXAMPLE), seed=1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, tying: Any, steps: int = 6) -> None:
    model.train()
    for step in range(steps):
        torch.manual_seed(step)
        loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        tying.step()


@pytest.mark.parametrize(
    "optimizer",
    [lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True), lambda p: torch.optim.AdamW(p, 1e-2)],
    ids=["sgd", "adamw"],
)
@pytest.mark.parametrize("mode", ["hard", "pdc"])
def test_members_stay_identical_bit_for_bit(optimizer: Any, mode: Any) -> None:
    model = network()
    tying = tie(model, planned(model), mode=mode, total_steps=10)
    train(model, optimizer(model.parameters()), tying)
    assert tying.final
    assert float(tying.residual()) == 0.0
    final = tying.snap()
    compact = rewrite(model, final, EXAMPLE)
    assert sum(p.numel() for p in compact.parameters()) == final.params_after


def test_hard_tying_is_gradient_averaging() -> None:
    """One step of plain SGD on the tied network moves each cluster by the mean of its gradients."""
    model = network()
    clusters = planned(model)
    tying = tie(model, clusters, mode="hard")
    before = copy.deepcopy(model)
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    nn.functional.cross_entropy(before(images), labels).backward()  # type: ignore[no-untyped-call]
    nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(model.parameters(), 0.1).step()
    tying.step()
    index = next(i for i, g in enumerate(clusters.groups.groups) if g.name == "0.a")
    labels_of = torch.as_tensor(clusters.clusters[index])
    weight, start, gradient = (m[0].a.weight for m in (model, before, before))  # type: ignore[index]
    for cluster in labels_of.unique():
        members = labels_of == cluster
        expected = start[members][0] - 0.1 * gradient.grad[members].mean(0)
        assert torch.allclose(weight[members], expected.expand_as(weight[members]), atol=1e-6)


def test_pdc_reconstructs_step_by_step() -> None:
    model = network()
    tying = tie(model, planned(model), total_steps=100)
    seen = [tying.current.macs_after]
    for _ in range(40):
        tying.step()
        seen.append(tying.current.macs_after)
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == tying.plan.macs_before
    assert seen[-1] == tying.plan.macs_after
    assert len(set(seen)) > 5
    assert tying.final


def test_a_nudged_filter_is_refused_by_name() -> None:
    model = network()
    final = tie(model, planned(model), mode="hard").snap()
    rewrite(model, final, EXAMPLE)
    index = next(i for i, g in enumerate(final.groups.groups) if g.name == "0.a")
    labels = final.clusters[index].tolist()
    member = next(i for i, c in enumerate(labels) if labels.index(c) != i)
    with torch.no_grad():
        model[0].a.weight[member, 0, 0, 0] += 1e-6  # type: ignore[index]
    with pytest.raises(ExactnessError, match=rf"residual .* in group '0\.a' \['0\.a\.weight', position {member}\]"):
        rewrite(model, final, EXAMPLE)
    assert residual(model, final).tensor == "0.a.weight"


@pytest.mark.parametrize("entry", ["running_mean", "running_var", "weight", "bias"])
def test_every_batch_norm_entry_counts(entry: str) -> None:
    model = network()
    final = tie(model, planned(model), mode="hard").snap()
    with torch.no_grad():
        getattr(model[0].b[1], entry)[:] += torch.rand(8)  # type: ignore[index]
    with pytest.raises(ExactnessError, match=entry):
        rewrite(model, final, EXAMPLE)


def test_a_plan_for_another_model_is_refused() -> None:
    model, other = network(), nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3))
    with pytest.raises(InputError, match="does not belong to this model"):
        tie(other, planned(model), mode="hard")
    wider = between(
        lambda m, x: x + m.b(m.a(x).relu()), a=conv(8, 12), b=nn.Sequential(conv(12, 8), nn.BatchNorm2d(8))
    )()
    reordered = nn.Sequential(wider, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    clusters = planned(model)
    tie(reordered, clusters, mode="hard").snap()
    with pytest.raises(RewriteError, match="another model"):
        rewrite(reordered, clusters, EXAMPLE)


@pytest.mark.parametrize(
    ("options", "words"), [({"mode": "soft"}, "unknown tying mode"), ({"mode": "pdc"}, "total_steps")]
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    model = network()
    with pytest.raises(InputError, match=words):
        tie(model, planned(model), **options)


def test_the_model_that_is_rewritten_is_not_changed() -> None:
    model = network()
    final = tie(model, planned(model), mode="hard").snap()
    before = copy.deepcopy(model.state_dict())
    compact = rewrite(model, final, EXAMPLE)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training
    assert type(compact) is type(model)
    assert compact.state_dict().keys() == model.state_dict().keys()
    assert {p.dtype for p in compact.parameters()} == {torch.float32}
