"""Steps in the metric of what convolutions read, against the algebra written out with unfolded patches."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pdc_fx.data import open_data
from pdc_fx.distill import Processes, TiedTraining, TrainOptions
from pdc_fx.distill.metric import DAMPING, EVERY, IMAGES, InputMetric
from pdc_fx.errors import InputError
from pdc_fx.pipeline import analyze, plan

CONVOLUTIONS = {
    "plain": nn.Conv2d(3, 5, 3, padding=1, bias=False),
    "1x1": nn.Conv2d(3, 5, 1),
    "stride": nn.Conv2d(3, 5, (3, 2), stride=2, padding=1),
    "dilation": nn.Conv2d(3, 5, 3, padding=2, dilation=2),
    "groups": nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4),
}


def changed(conv: nn.Conv2d, images: Tensor, gradient: Tensor) -> Tensor:
    """``c G (A + damping tr(A) / d I)^(-1/2)``, group by group, in float64."""
    given = images.double().chunk(conv.groups, 1)
    rows = []
    for x, g in zip(given, gradient.double().chunk(conv.groups, 0), strict=True):
        patches = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
        x = patches.transpose(1, 2).flatten(0, 1)
        a = x.T @ x / len(x)
        whole = torch.linalg.inv(a + DAMPING * a.trace() / len(a) * torch.eye(len(a)))
        rows.append(g.flatten(1) @ torch.from_numpy(np.real(scipy.linalg.sqrtm(whole.numpy()))))
    moved = torch.cat(rows).reshape(gradient.shape)
    return moved * gradient.double().norm() / moved.norm()


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_gradients_are_those_of_the_formula(name: str) -> None:
    torch.manual_seed(0)
    conv = copy.deepcopy(CONVOLUTIONS[name])
    images = torch.rand(IMAGES, conv.in_channels, 6, 6) ** 2
    gradient = torch.randn_like(conv.weight)
    conv.weight.grad = gradient.clone().contiguous(memory_format=torch.channels_last)
    InputMetric(nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels)), Processes()).step(0, images)
    assert conv.weight.grad is not None
    torch.testing.assert_close(conv.weight.grad.double(), changed(conv, images, gradient), rtol=1e-3, atol=1e-4)


def test_moments_are_taken_at_intervals_and_without_a_trace() -> None:
    torch.manual_seed(0)
    convs = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
    model = nn.Sequential(convs[0], nn.BatchNorm2d(4), nn.Dropout(), convs[1], nn.BatchNorm2d(4)).train()
    images = torch.rand(3, 8, 3, 8, 8)
    before, draws = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    metric = InputMetric(model, Processes())
    metric.step(0, images[0])
    first = dict(metric.roots)
    assert set(first) == {"0.weight", "3.weight"}
    metric.step(EVERY - 1, images[1])
    assert all(metric.roots[name] is first[name] for name in first)
    metric.step(EVERY, images[2])
    assert not any(torch.equal(metric.roots[name], first[name]) for name in first)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(draws, torch.get_rng_state())


@pytest.mark.parametrize(
    ("model", "images"),
    [
        (nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)), torch.zeros(4, 2, 2, 2)),
        (nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.BatchNorm1d(5)), torch.rand(4, 2, 2, 2)),
        (nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)), torch.rand(4, 2, 2, 2)),
        (nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(3)), torch.rand(4, 2, 2, 2)),
        (nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1)), torch.rand(4, 2, 2, 2)),
    ],
    ids=["zeros", "linear", "a ReLU before the norm", "one in place", "the norm before"],
)
def test_what_keeps_its_gradient(model: nn.Sequential, images: Tensor) -> None:
    before = [torch.randn_like(weight) for weight in model.parameters()]
    for weight, gradient in zip(model.parameters(), before, strict=True):
        weight.grad = gradient.clone()
    InputMetric(model, Processes()).step(0, images)
    torch.testing.assert_close([weight.grad for weight in model.parameters()], before)


def test_tied_slices_stay_equal() -> None:
    """Inputs that are copies of each other: their slices of a reader's gradient are equal, before and after."""
    torch.manual_seed(0)
    conv = nn.Conv2d(4, 3, 3)
    images = torch.rand(8, 2, 6, 6)[:, [0, 0, 1, 1]]
    conv(images).square().sum().backward()
    InputMetric(nn.Sequential(conv, nn.BatchNorm2d(3)), Processes()).step(0, images)
    assert conv.weight.grad is not None
    torch.testing.assert_close(conv.weight.grad[:, ::2], conv.weight.grad[:, 1::2], rtol=1e-3, atol=1e-4)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )


def trained(
    directory: Path | None = None, resume: bool = False, stop: bool = False, mode: str = "hard", **options: Any
) -> nn.Module:
    model, data = small(), open_data("digits")
    clusters = plan(model, analyze(model, torch.zeros(1, 1, 8, 8)), flops_reduction=0.375)
    chosen = TrainOptions(epochs=3, batch_size=256, amp="no", features="none", checkpoint_every=2, **options)
    training = TiedTraining(model, small(), clusters, data, None, chosen, mode, directory)

    class Stop:
        def on_start(self, records: Any) -> None:
            return None

        def on_step(self, report: Any) -> None:
            if stop and report.epoch == 1:
                raise KeyboardInterrupt

        def on_epoch(self, record: dict[str, Any]) -> None:
            return None

    training.observer = Stop()
    training.run(resume=resume)
    return model


def test_a_run_that_was_stopped_goes_on_with_the_same_metric(tmp_path: Path) -> None:
    whole = trained(precondition="inputs")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop=True, precondition="inputs")
    again = trained(tmp_path, resume=True, precondition="inputs")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("by_default", "options"),
    [
        ("inputs", {}),
        ("none", {"opt": "adamw", "lr": 1e-3}),
        ("none", {"mode": "progressive"}),
        ("none", {"mode": "csgd"}),
    ],
)
def test_the_metric_is_the_default_where_it_was_measured(by_default: str, options: dict[str, Any]) -> None:
    weights = {name: trained(precondition=name, **options)[0].weight for name in ("auto", "inputs", "none")}
    assert not torch.equal(weights["inputs"], weights["none"])
    assert torch.equal(weights["auto"], weights[by_default])


def test_another_name_is_refused() -> None:
    with pytest.raises(InputError, match="precondition must be one of auto, inputs, none"):
        TrainOptions(precondition="outputs")  # type: ignore[arg-type]
