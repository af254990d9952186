"""Folding needs no data, ties exactly, and repairs batch norms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pdc_fx
from pdc_fx.errors import InputError, PlanError, TraceError
from pdc_fx.passes.fold import folded_variance
from pdc_fx.passes.statistics import Watch, run_watched
from pdc_fx.passes.tied import residual


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.BatchNorm2d(12), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4),
    )  # fmt: skip
    model.train()(torch.randn(64, 3, 12, 12))
    return model.eval()


@pytest.mark.parametrize("with_images", [False, True])
def test_a_folded_model_is_tied_and_rewritten_exactly(with_images: bool) -> None:
    model, images = net(), torch.randn(32, 3, 12, 12)
    groups = pdc_fx.analyze(model, images[:1])
    before = {name: t.clone() for name, t in model.state_dict().items()}
    tied, plan = pdc_fx.fold(model, groups, flops_reduction=0.5, images=images if with_images else None)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert residual(tied, plan).value == 0
    compact = pdc_fx.rewrite(tied, plan, images[:2])  # raises above 1e-9
    torch.testing.assert_close(compact(images), tied(images), rtol=1e-4, atol=1e-5)


def test_a_norm_before_any_layer_keeps_its_statistics() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3))
    model.train()(torch.randn(8, 3, 12, 12))
    groups = pdc_fx.analyze(model.eval(), torch.zeros(1, 3, 12, 12))
    tied, plan = pdc_fx.fold(model, groups, flops_reduction=0.5)
    assert plan.widths == {0: 8}
    assert residual(tied, plan).value == 0
    assert torch.equal(tied.get_buffer("0.running_var"), model[0].running_var)  # type: ignore[arg-type]


class InPart(nn.Module):
    """Normalises the first half of what a convolution makes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(8), nn.Conv2d(16, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.conv(x).chunk(2, 1)
        return self.head(torch.cat([self.norm(a), b], 1).relu())  # type: ignore[no-any-return]


NOT_OF_ALL = {
    "of places": nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.BatchNorm1d(800), nn.Linear(800, 4)),
    "of a part": InPart(),
    "behind a ReLU": nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(16), nn.Conv2d(16, 4, 3)),
}


@pytest.mark.parametrize("name", NOT_OF_ALL)
def test_a_norm_that_is_not_of_all_filters_is_not_repaired_by_them(name: str) -> None:
    model, images = NOT_OF_ALL[name], torch.randn(8, 3, 12, 12)
    groups = pdc_fx.analyze(model.eval(), images[:1])
    tied, plan = pdc_fx.fold(model, groups, flops_reduction=0.25)
    assert residual(tied, plan).value == 0
    watch = Watch(model, 1)
    run_watched(model, images, watch)
    assert watch.normed == {}


def test_a_model_of_more_than_tensors_is_not_folded_without_images() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, given: dict[str, Tensor]) -> Tensor:
            return self.net(given["image"])  # type: ignore[no-any-return]

    groups = pdc_fx.analyze(Named(), ({"image": torch.randn(1, 3, 12, 12)},))
    with pytest.raises(TraceError, match="folding runs the model on its tensors alone"):
        pdc_fx.fold(Named(), groups, flops_reduction=0.25)


def test_variance_of_a_mean_of_filters() -> None:
    """On white inputs the formula is the variance that is measured."""
    torch.manual_seed(0)
    weight = torch.randn(6, 5, dtype=torch.float64)
    clusters = torch.tensor([0, 1, 0, 0, 1, 2])
    signals = weight @ torch.randn(5, 400_000, dtype=torch.float64)
    found = folded_variance(weight, signals.var(1), clusters)
    for c in range(3):
        measured = signals[clusters == c].mean(0).var()
        assert float(found[clusters == c][0] / measured) == pytest.approx(1, abs=0.02)


def test_identical_filters_fold_to_the_same_function() -> None:
    model, images = net(), torch.randn(8, 3, 12, 12)
    groups = pdc_fx.analyze(model, images[:1])
    with torch.no_grad():
        for group in groups.groups:
            half = group.channels // 2
            for member in group.tied:
                tensor = dict(model.state_dict())[member.tensor]
                tensor[half:] = tensor[:half]
    halves = {i: g.channels // 2 for i, g in enumerate(groups.groups)}
    tied, plan = pdc_fx.fold(
        model, groups, flops_reduction=1 - groups.macs(halves) / groups.macs(), allocation="uniform"
    )
    assert plan.widths == halves
    torch.testing.assert_close(tied(images), model(images), rtol=1e-5, atol=1e-6)


def test_refusals() -> None:
    model = net()
    groups = pdc_fx.analyze(model, torch.zeros(1, 3, 12, 12))
    with pytest.raises(PlanError, match="cannot be met"):
        pdc_fx.fold(model, groups, flops_reduction=0.999)
    with pytest.raises(InputError, match="not finite"):
        pdc_fx.fold(model, groups, flops_reduction=0.5, images=torch.full((4, 3, 12, 12), float("nan")))


def test_statistics_are_those_of_the_images() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3))
    images = torch.randn(16, 3, 8, 8)
    tied, _ = pdc_fx.fold(net, pdc_fx.analyze(net, images[:1]), flops_reduction=0.5, images=images)
    layer: Any = tied
    with torch.no_grad():
        maps = layer[0](images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(layer[1].running_mean, maps.mean(1), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(layer[1].running_var, maps.var(1), rtol=1e-4, atol=1e-5)
