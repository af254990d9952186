"""Orthogonal steps of weights without a scale, against the algebra written out; plain steps of all others."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pdc_fx.data import open_data
from pdc_fx.distill import TiedTraining, TrainOptions, optimizer_for
from pdc_fx.distill.muon import Muon, polar
from pdc_fx.errors import InputError
from pdc_fx.passes.statistics import Watch, run_watched
from pdc_fx.pipeline import analyze, plan


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5), (3, 4, 9), (1, 9)])
def test_polar_keeps_directions_and_levels_sizes(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    u, s, vt = torch.linalg.svd(torch.randn(shape, dtype=torch.float64), full_matrices=False)
    sizes = u.mT @ polar(u @ torch.diag_embed(s) @ vt) @ vt.mT
    levels = sizes.diagonal(dim1=-2, dim2=-1)
    assert ((levels > 0.65) & (levels < 1.25)).all()
    torch.testing.assert_close(sizes, torch.diag_embed(levels), rtol=0, atol=1e-9)


def test_polar_of_nothing_is_nothing() -> None:
    assert not polar(torch.zeros(2, 3, 4)).any()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("weights", [1, 3])
def test_steps_are_those_of_the_formula(groups: int, weights: int) -> None:
    """Three steps, in float64; each group of a convolution is a matrix of its own, norms stay, and all weights share the rate."""
    torch.manual_seed(0)
    shape = (4, 3, 2, 2)
    found = [nn.Parameter(torch.randn(shape, dtype=torch.float64)) for _ in range(weights)]
    optimizer = Muon([{"params": found, "blocks": [groups] * weights}], lr=0.5, momentum=0.9)
    expected = [weight.detach().clone() for weight in found]
    momenta = [torch.zeros(shape, dtype=torch.float64) for _ in found]
    for _ in range(3):
        for i, weight in enumerate(found):
            weight.grad = torch.randn_like(weight).contiguous(memory_format=torch.channels_last)
            momenta[i] = 0.9 * momenta[i] + weight.grad
            parts = (weight.grad + 0.9 * momenta[i]).flatten(1).chunk(groups)
            step = torch.cat([polar(part) for part in parts]).reshape(shape)
            norm = expected[i].norm()
            moved = expected[i] - 0.25 / weights**0.5 * norm * step / step.norm()
            expected[i] = moved * norm / moved.norm()
        optimizer.step()
        for weight, value in zip(found, expected, strict=True):
            torch.testing.assert_close(weight.detach(), value)


def test_a_weight_without_a_gradient_stays_finite() -> None:
    """Behind a batch norm whose gamma is 0, say: at a high rate 0 would be multiplied by infinity."""
    weight = nn.Parameter(torch.full((64, 64), 3.0))
    weight.grad = torch.zeros_like(weight)
    Muon([{"params": [weight], "blocks": [1]}], lr=1.0, momentum=0.9).step()
    assert torch.equal(weight, torch.full((64, 64), 3.0))


def test_the_others_take_sgd() -> None:
    torch.manual_seed(0)
    ours = nn.Linear(5, 3)
    theirs = copy.deepcopy(ours)
    muon = Muon([{"params": list(ours.parameters()), "weight_decay": 0.1}], lr=0.3, momentum=0.9)
    sgd = torch.optim.SGD(theirs.parameters(), 0.3, 0.9, weight_decay=0.1, nesterov=True)
    for _ in range(4):
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        muon.step()
        sgd.step()
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()))


class Beside(nn.Module):
    """What the first convolution makes is added further on, as in networks that normalise first; the second one's is not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.second = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y: Tensor = x + self.second(self.conv(self.first(x).relu()))
        return y


def test_a_weight_has_a_scale_where_anything_but_the_norm_looks_at_what_it_makes() -> None:
    watch = Watch(model := Beside(), 1)
    run_watched(model, torch.randn(2, 3, 6, 6), watch)
    assert watch.scale_free == {"conv.weight"}


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(self.norm(self.conv(x)))
        return y


IMAGE = (1, 2, 4, 4)
NETWORKS = {
    "a norm behind": (nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)), {"0.weight": 1}),
    "groups": (nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4)), {"0.weight": 2}),
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(32, 5), nn.BatchNorm1d(5)), {"1.weight": 1}),
    "no norm": (nn.Sequential(nn.Conv2d(2, 3, 1)), {}),
    "the norm before": (nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 3, 1)), {}),
    "a ReLU between": (nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)), {}),
    "one in place": (nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(inplace=True), nn.BatchNorm2d(3)), {}),
    "a second use": (Twice(), {}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_is_moved_without_a_scale(name: str) -> None:
    model, expected = NETWORKS[name]
    model.train()
    before = copy.deepcopy(model.state_dict())
    optimizer = optimizer_for(model, TrainOptions(opt="muon"), torch.zeros(IMAGE), final=True)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {
        names[id(p)]: blocks
        for group in optimizer.param_groups
        for p, blocks in zip(group["params"], group["blocks"] or (), strict=bool(group["blocks"]))
    }
    assert found == expected
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    images = torch.randn(8, *IMAGE[1:], dtype=torch.float64)
    model = copy.deepcopy(model).double()
    given = model(images)
    with torch.no_grad():
        for key in found:
            model.get_parameter(key).mul_(3)
    torch.testing.assert_close(model(images), given, rtol=1e-3, atol=1e-3)  # up to the epsilon of the norm


def test_weights_stand_in_the_order_of_the_model() -> None:
    """A checkpoint tells momenta by their place; hashes of names, by which a set is ordered, differ from process to process."""
    layers = [layer for _ in range(12) for layer in (nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2))]
    model = nn.Sequential(*layers)
    optimizer = optimizer_for(model, TrainOptions(opt="muon"), torch.zeros(IMAGE), final=True)
    (moved,) = (group["params"] for group in optimizer.param_groups if group["blocks"])
    assert [id(weight) for weight in moved] == [id(layer.weight) for layer in layers[::2]]


def test_members_of_a_cluster_move_alike() -> None:
    """Equal rows stay equal, as do equal columns, up to rounding: the projection after each step has nothing to do."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 5, dtype=torch.float64)[[0, 1, 1, 2]][:, [0, 0, 1, 2, 3, 4]])
    optimizer = Muon([{"params": [weight], "blocks": [1]}], lr=1.0, momentum=0.9)
    for _ in range(3):
        weight.grad = torch.randn(3, 5, dtype=torch.float64)[[0, 1, 1, 2]][:, [0, 0, 1, 2, 3, 4]]
        optimizer.step()
    torch.testing.assert_close(weight[1], weight[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(weight[:, 0], weight[:, 1], rtol=0, atol=1e-12)


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


def test_a_run_that_was_stopped_goes_on_alike(tmp_path: Path) -> None:
    whole = trained(opt="muon")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop=True, opt="muon")
    again = trained(tmp_path, resume=True, opt="muon")
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True))


@pytest.mark.parametrize(("by_default", "mode"), [("muon", "hard"), ("sgd", "progressive"), ("sgd", "csgd")])
def test_muon_is_the_default_where_it_was_measured(by_default: str, mode: str) -> None:
    weights = {opt: trained(mode=mode, opt=opt)[0].weight for opt in ("auto", "muon", "sgd")}
    assert not torch.equal(weights["muon"], weights["sgd"])
    assert torch.equal(weights["auto"], weights[by_default])


def test_another_name_is_refused() -> None:
    with pytest.raises(InputError, match="opt must be one of auto, muon, sgd, adamw"):
        TrainOptions(opt="adam")  # type: ignore[arg-type]
