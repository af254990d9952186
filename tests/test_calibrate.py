"""Calibration ties exactly, reproduces what is redundant, and never crashes on what it does not know."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from samples import Net, conv
from torch import Tensor, nn

import pdc_fx
from pdc_fx.data import open_data
from pdc_fx.errors import InputError
from pdc_fx.ir import ChannelGroups, Integers
from pdc_fx.passes.calibrate import Elimination, eliminate, ridge_regression
from pdc_fx.passes.statistics import Reader, Watch, run_watched
from pdc_fx.passes.tied import residual

IMAGES = (48, 3, 8, 8)


def residual_net() -> nn.Module:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.stem(x).relu()
        x = (x + m.norm(m.second(m.first(x).relu()))).relu()
        return m.head(x.mean((2, 3)))  # type: ignore[no-any-return]

    layers = {"stem": conv(3, 12), "first": conv(12, 16), "second": conv(16, 12, bias=False)}
    return Net(forward, **layers, norm=nn.BatchNorm2d(12), head=nn.Linear(12, 4))


def concatenated() -> nn.Module:
    def forward(m: Net, x: Tensor) -> Tensor:
        return m.head(torch.cat([m.a(x).relu(), m.b(x).relu()], 1))  # type: ignore[no-any-return]

    return Net(forward, a=conv(3, 8), b=conv(3, 12), head=conv(20, 4, stride=2))


def grouped() -> nn.Module:
    return nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 12, groups=2), nn.ReLU(), conv(12, 4, dilation=2))


def flattened() -> nn.Module:
    return nn.Sequential(conv(3, 8), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(32, 10))


def transposed() -> nn.Module:
    """A reader that calibration does not refit."""
    return nn.Sequential(conv(3, 8), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, 2), nn.ReLU(), conv(8, 4))


def layer_norm() -> nn.Module:
    """Clusters of one size."""
    return Net(
        lambda m, x: m.head(m.norm(m.stem(x).mean((2, 3)))),
        stem=conv(3, 16),
        norm=nn.LayerNorm(16),
        head=nn.Linear(16, 4),
    )


def used_twice() -> nn.Module:
    return Net(lambda m, x: m.head(m.a(m.a(m.stem(x)).relu())), stem=conv(3, 8), a=conv(8, 8), head=conv(8, 4))


def out_of_the_ordinary() -> nn.Module:
    """A norm before any layer and one without statistics, a layer that runs image by image, and a bias that is computed."""

    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.free(m.a(m.first(x))).relu()
        x = m.late(torch.stack([m.b(image) for image in x]).relu())
        return F.conv2d(x, m.head.weight, 2 * m.head.bias, padding=1)

    norms = {
        "first": nn.BatchNorm2d(3),
        "free": nn.BatchNorm2d(8, track_running_stats=False),
        "late": nn.BatchNorm2d(8),
    }
    return Net(forward, a=conv(3, 8), b=conv(8, 8), head=conv(8, 4), **norms)


NETS = [residual_net, concatenated, grouped, flattened, transposed, layer_norm, used_twice, out_of_the_ordinary]


def made(build: Callable[[], nn.Module]) -> tuple[nn.Module, Tensor, ChannelGroups]:
    torch.manual_seed(0)
    model, images = build().eval(), torch.randn(IMAGES)
    return model, images, pdc_fx.analyze(model, images[:1])


@pytest.mark.parametrize("build", NETS)
def test_a_calibrated_model_is_tied_and_rewritten_exactly(build: Callable[[], nn.Module]) -> None:
    model, images, groups = made(build)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    halves = {i: g.channels // 2 for i, g in enumerate(groups.groups)}
    target = 1 - groups.macs(halves) / groups.macs()
    tied, plan = pdc_fx.calibrate(model, groups, images, flops_reduction=target, allocation="uniform")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert residual(tied, plan).value == 0
    compact = pdc_fx.rewrite(tied, plan, images[:2])  # raises above 1e-9
    torch.testing.assert_close(compact(images), tied(images), rtol=1e-4, atol=1e-5)
    again, _ = pdc_fx.calibrate(model, groups, images, flops_reduction=target, allocation="uniform")
    assert all(torch.equal(t, again.state_dict()[name]) for name, t in tied.state_dict().items())


@pytest.mark.parametrize("build", [concatenated, grouped, flattened])
def test_duplicates_are_removed_without_loss(build: Callable[[], nn.Module]) -> None:
    """Every second half repeats the first, up to a factor that ReLU lets through: no clusters of equal filters, all the same."""
    model, images, groups = made(build)
    model, images = model.double(), images.double()
    tensors = dict(model.named_parameters())
    with torch.no_grad():
        for group in groups.groups:
            half = group.channels // 2
            for member in group.tied:
                p = tensors[member.tensor].movedim(member.dim, 0)
                p[member.positions[half:]] = p[member.positions[:half]] * 3
    halves = {i: g.channels // 2 for i, g in enumerate(groups.groups)}
    target = 1 - groups.macs(halves) / groups.macs()
    groups = pdc_fx.analyze(model, images[:1])
    tied, plan = pdc_fx.calibrate(model, groups, images, flops_reduction=target, allocation="uniform", ridge=1e-12)
    assert plan.widths == halves
    torch.testing.assert_close(tied(images), model(images), rtol=1e-6, atol=1e-6)


def test_linear_combinations_are_removed_without_loss() -> None:
    model, images, _ = made(lambda: nn.Sequential(conv(3, 8), conv(8, 4)))
    model, images = model.double(), images.double()
    with torch.no_grad():
        mixing = torch.randn(4, 4, dtype=torch.float64)
        for p in model[0].parameters():  # type: ignore[index, union-attr]
            p[4:] = torch.einsum("ij,j...->i...", mixing, p[:4])
    groups = pdc_fx.analyze(model, images[:1])
    tied, plan = pdc_fx.calibrate(model, groups, images, flops_reduction=0.5, ridge=1e-12)
    assert plan.widths == {0: 4}
    torch.testing.assert_close(tied(images), model(images), rtol=1e-6, atol=1e-6)


def test_better_than_plain_tying() -> None:
    model, images, groups = made(residual_net)
    with torch.no_grad():
        for _ in range(50):
            model.train()(torch.randn(IMAGES))
    model.eval()
    tied, _ = pdc_fx.calibrate(model, groups, images, flops_reduction=0.4)
    folded, _ = pdc_fx.fold(model, groups, flops_reduction=0.4)
    fresh = torch.randn(IMAGES)
    with torch.no_grad():
        errors = [float((m(fresh) - model(fresh)).square().mean()) for m in (tied, folded)]
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (torch.zeros(0, 3, 8, 8), "needs images"),
        (torch.zeros(4, 3, 9, 9), "the images are 3x9x9"),
        (torch.full((4, 3, 8, 8), float("nan")), "not finite"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), "one float tensor"),
    ],
)
def test_refusals(images: Tensor, words: str) -> None:
    model, _, groups = made(grouped)
    with pytest.raises(InputError, match=words):
        pdc_fx.calibrate(model, groups, images, flops_reduction=0.5)


def test_models_of_two_tensors_are_refused() -> None:
    net = Net(lambda m, x: m.head(m.stem(x[0]).relu()) + x[1], stem=conv(3, 8), head=conv(8, 4))
    groups = pdc_fx.analyze(net, ((torch.zeros(1, 3, 8, 8), torch.zeros(1, 4, 8, 8)),))
    with pytest.raises(InputError, match=r"(?m)^calibration works for models of one tensor, this one takes 2$"):
        pdc_fx.calibrate(net, groups, torch.zeros(IMAGES), flops_reduction=0.5)


@pytest.mark.parametrize("build", [residual_net, concatenated, grouped, flattened])
def test_an_infinite_ridge_keeps_the_filters_that_stay(build: Callable[[], nn.Module]) -> None:
    """Each weight of the small network is one of the large; a bias makes up for the mean of what went."""
    model, images, groups = made(build)
    tied, plan = pdc_fx.calibrate(model, groups, images, flops_reduction=0.5, ridge=float("inf"))
    small = pdc_fx.rewrite(tied, plan, images[:2])
    dense = dict(model.named_parameters())
    for name, weight in small.named_parameters():
        if weight.dim() > 1:
            assert set(weight.flatten().tolist()) <= set(dense[name].flatten().tolist())
    with torch.no_grad():
        given, wanted = (m(images).transpose(0, 1).flatten(1).mean(1) for m in (small, model))
    torch.testing.assert_close(given, wanted, rtol=1e-3, atol=1e-4)


def test_where_nothing_is_removed_nothing_changes() -> None:
    model, images, groups = made(residual_net)
    tied, plan = pdc_fx.calibrate(model, groups, images, flops_reduction=1e-5)
    assert plan.widths == {i: group.channels for i, group in enumerate(groups.groups)}
    assert all(torch.equal(t, tied.state_dict()[name]) for name, t in model.state_dict().items())


def test_a_ridge_must_be_positive() -> None:
    model, images, groups = made(grouped)
    with pytest.raises(InputError, match="ridge"):
        pdc_fx.calibrate(model, groups, images, flops_reduction=0.5, ridge=0)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
        nn.Conv2d(4, 6, (3, 2), padding="same", dilation=2),
        nn.Conv2d(4, 6, 3, groups=2, padding=(0, 1), padding_mode="reflect"),
        nn.Conv2d(4, 6, 2, padding="valid"),
    ],
)
def test_patches_are_what_a_convolution_reads(layer: nn.Module) -> None:
    """Weight times patches plus bias is the output at the same places."""
    torch.manual_seed(0)
    seen: list[Reader] = []

    class See(Watch):
        def after(self, reader: Reader, output: Tensor) -> None:
            product = torch.einsum("sgnt,gont->sgo", reader.patches(), reader.matrix())
            bias = layer.bias.reshape(reader.groups, -1)  # type: ignore[union-attr, operator]
            torch.testing.assert_close(product + bias, reader.outputs(output), rtol=1e-4, atol=1e-5)
            seen.append(reader)

    run_watched(layer, torch.randn(5, 4, 9, 7), See(layer, 40))
    assert len(seen) == 1
    assert len(seen[0].patches()) == 40


def test_elimination_error_is_that_of_least_squares() -> None:
    """The sum of the costs up to a width is the error of the best refit on what is left."""
    torch.manual_seed(0)
    x = torch.randn(200, 7, dtype=torch.float64) @ torch.randn(7, 7, dtype=torch.float64)
    weight = torch.randn(5, 7, dtype=torch.float64)
    order, costs = eliminate([(x.T @ x / 200, weight)], 1e-12)
    assert sorted(order.tolist()) == list(range(7))
    y = x @ weight.T
    for gone in range(1, 7):
        kept = x[:, order[gone:].copy()]
        error = (y - kept @ torch.linalg.lstsq(kept, y).solution).square().sum() / y.square().sum()
        assert float(error) == pytest.approx(costs[:gone].sum(), rel=1e-6, abs=1e-9)


def test_clusters_of_an_elimination() -> None:
    likeness: Integers = np.eye(4)
    likeness[0, 2] = likeness[2, 0] = 0.9
    found = Elimination(np.asarray([0, 3, 2, 1]), np.zeros(3), likeness)
    assert found.stand_in(3).tolist() == [2, 1, 2, 3]
    assert found.cut(3).tolist() == [0, 1, 0, 2]
    assert found.cut(4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("samples", "d"), [(50, 6), (6, 50)])
def test_ridge_regression_is_stationary(samples: int, d: int) -> None:
    """The gradient of what it minimises is zero, in the primal and in the dual form."""
    torch.manual_seed(0)
    x, y, start = (torch.randn(s, dtype=torch.float64) for s in ((samples, d), (samples, 3), (3, d)))
    weight = ridge_regression(x, y, start, 0.1).requires_grad_()
    damping = 0.1 * x.square().sum() / d
    (F.mse_loss(x @ weight.T, y, reduction="sum") + damping * (weight - start).square().sum()).backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) < 1e-10


def test_a_model_without_a_tensor_to_calibrate_on_is_refused() -> None:
    class Numbered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
            self.register_buffer("image", torch.randn(1, 3, 8, 8))

        def forward(self, n: int) -> torch.Tensor:
            y: torch.Tensor = self.body(self.image) * n
            return y

    model = Numbered()
    with pytest.raises(InputError, match="works for models of one tensor, this one takes 0"):
        pdc_fx.calibrate(model, pdc_fx.analyze(model, (2,)), torch.randn(8, 3, 8, 8), flops_reduction=0.4)


def test_a_small_set_of_images_is_enough_and_nothing_given_is_changed() -> None:
    """Fewer images than ``calibrate`` looks at by default; the teacher is in training mode, and stays so."""
    data = open_data("digits")
    few = replace(data, train=data.train.subset(range(0, 1000, 25)))
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    teacher = copy.deepcopy(network)
    state = copy.deepcopy(teacher.state_dict())
    options = pdc_fx.TrainOptions(epochs=1, batch_size=8, amp="no")
    pdc_fx.compress(network, torch.zeros(1, 1, 8, 8), few, flops_reduction=0.5, teacher=teacher, options=options)
    assert all(module.training for module in (*teacher.modules(), *network.modules()))
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
    assert teacher[0].weight.is_contiguous()
