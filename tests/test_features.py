"""Losses on intermediate maps: where they are taken, what they are, and that nothing of them stays."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torchvision
from extension import registry_restored
from torch import Tensor, nn

import pdc_fx
from pdc_fx.data import open_data
from pdc_fx.distill import FEATURE_LOSSES, Processes, TiedTraining, TrainOptions, cut_points
from pdc_fx.distill.features import captured, compared, feature_loss, feature_pairs
from pdc_fx.errors import InputError
from pdc_fx.export.pages.charts import epochs_of
from pdc_fx.options import Features
from pdc_fx.pipeline import analyze, plan
from pdc_fx.rules.registry import functions, rule_for

IMAGE = torch.zeros(1, 1, 8, 8)
VGG11 = (1, 2, 4, 5, 7, 9, 10, 12, 14, 15, 17, 19, 20)
EXPECTED = {
    "resnet18": ["relu", "maxpool", *(f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1))],
    "vgg11": [*(f"features.{number}" for number in VGG11), "avgpool"],
    "densenet121": [
        *("features.relu0", "features.pool0"),
        *(f"features.transition{n}.{part}" for n in (1, 2, 3) for part in ("relu", "conv", "pool")),
        "features.norm5",
    ],
    "googlenet": [
        *("conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a", "inception3b", "maxpool3"),
        *(f"inception4{letter}" for letter in "abcde"),
        *("maxpool4", "inception5a", "inception5b"),
    ],
}


def net(width: int = 8, classes: int = 10) -> nn.Sequential:
    """Three stretches, of which the last ends with dropout."""
    return nn.Sequential(
        *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(width, width, 3), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(), nn.Linear(4 * width, classes)),
    )


@pytest.mark.parametrize("name", EXPECTED)
def test_cut_points_of_known_networks(name: str) -> None:
    options: dict[str, Any] = {"init_weights": False} if name == "googlenet" else {}
    model = getattr(torchvision.models, name)(num_classes=10, **options)
    assert list(cut_points(model, torch.zeros(1, 3, 64, 64))) == EXPECTED[name]
    assert not any(module._forward_hooks for module in model.modules())


def test_in_a_mobilenet_residual_blocks_count_whole_and_others_by_their_layers() -> None:
    points = cut_points(torchvision.models.mobilenet_v2(num_classes=10), torch.zeros(1, 3, 64, 64))
    residual = {f"features.{n}" for n in (3, 5, 6, 8, 9, 10, 12, 13, 15, 16)}
    inside = {name for name in points if name.removeprefix("features.").split(".")[0] in {"3", "5", "16"}}
    assert residual <= points.keys()
    assert inside == {"features.3", "features.5", "features.16"}
    assert [name for name in points if name.startswith("features.2.")] == [
        "features.2.conv.0.2",
        "features.2.conv.1.2",
        "features.2.conv.3",
    ]


class Parts(nn.Module):
    """Four convolutions and one ReLU; how they are put together is the subclass's matter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(i, 4, 3, padding=1) for i in (1, 4, 4, 4))
        self.relu, self.head = nn.ReLU(), nn.Linear(4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.maps(self.a(x)).mean((2, 3)))  # type: ignore[no-any-return]

    def maps(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class Chain(Parts):
    def maps(self, x: Tensor) -> Tensor:
        return self.c(self.relu(self.b(self.relu(x))))  # type: ignore[no-any-return]


class Shortcut(Parts):
    def maps(self, x: Tensor) -> Tensor:
        return self.d(x + self.c(self.b(x)))  # type: ignore[no-any-return]


class ShortcutToTheEnd(Parts):
    def maps(self, x: Tensor) -> Tensor:
        return x + self.d(self.c(self.b(x)))  # type: ignore[no-any-return]


class Unseen(Parts):
    """numpy carries ``a`` past ``b`` where no recorder sees it."""

    def maps(self, x: Tensor) -> Tensor:
        beside = torch.from_numpy(x.detach().numpy() * 2)
        return self.d(self.b(x) + beside)  # type: ignore[no-any-return]


class ByNumpy(nn.Module):
    """Hands out what no recorder has seen made."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.detach().numpy() * 2)


class UnseenInside(Parts):
    def __init__(self) -> None:
        super().__init__()
        self.own = ByNumpy()

    def maps(self, x: Tensor) -> Tensor:
        return self.d(self.own(self.b(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (net, ["2", "3", "5"]),
        (Chain, ["a", "b", "c"]),  # the shared ReLU is called twice
        (Shortcut, ["a", "d"]),
        (ShortcutToTheEnd, ["a"]),
        (Unseen, ["d"]),
        (UnseenInside, ["d"]),
        (
            lambda: nn.Sequential(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Identity()), nn.Flatten(), nn.Linear(144, 2)),
            ["0.0"],
        ),
        (lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2)), []),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.ReLU(), nn.Linear(4, 2)), []),
    ],
)
def test_cut_points(model: Any, expected: list[str]) -> None:
    assert list(cut_points(model(), IMAGE)) == expected


def test_rules_of_users_do_not_change_where_maps_are_taken() -> None:
    """What a function does to a map is known of the function, not of its rule."""
    with registry_restored():
        for name in ("relu", "batch_norm", "dropout"):
            for key in functions(name):
                standard = rule_for(key)
                assert standard is not None
                pdc_fx.rule(key)(partial(standard))
        assert list(cut_points(net(), IMAGE)) == ["2", "3", "5"]


def maps(channels: int = 5, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(3, channels, 4, 2, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_losses_are_their_formulas() -> None:
    s, t = maps(), maps(seed=1)
    assert float(FEATURE_LOSSES["match"](s, t)) == pytest.approx(np.mean((s - t).numpy() ** 2) / np.var(t[::8].numpy()))
    distances = []
    for one, other in zip(s.numpy(), t.numpy(), strict=True):
        a, b = ((f**2).sum(0).reshape(-1) for f in (one, other))
        distances.append(np.sum((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2))
    assert float(FEATURE_LOSSES["attention"](s, t)) == pytest.approx(np.mean(distances))
    tokens = [f.flatten(2).transpose(1, 2) for f in (s, t)]
    assert float(FEATURE_LOSSES["attention"](*tokens)) == pytest.approx(np.mean(distances))
    assert set(FEATURE_LOSSES) | {"auto", "none"} == set(get_args(Features))


@pytest.mark.parametrize("name", FEATURE_LOSSES)
def test_equal_maps_give_zero_and_others_more(name: str) -> None:
    loss = FEATURE_LOSSES[name]
    assert float(loss(maps(), maps())) == 0
    assert float(loss(maps(), maps(seed=1))) > 0.1
    for s, t in ((maps(), maps()), (0 * maps(), maps()), (0 * maps(), 0 * maps()), (maps(), 0 * maps())):
        student = s.clone().requires_grad_()
        loss(student, t).backward()  # type: ignore[no-untyped-call]
        assert student.grad is not None
        assert bool(student.grad.isfinite().all())


def test_attention_sees_no_width_and_no_scale_and_match_sees_both() -> None:
    f = maps()
    doubled = torch.cat([f, f], 1)
    assert float(FEATURE_LOSSES["attention"](3 * doubled, f)) == pytest.approx(0, abs=1e-12)
    assert float(FEATURE_LOSSES["match"](3 * f, f)) > 1


def test_the_loss_is_a_mean_in_float32() -> None:
    pairs = [(maps(dtype=torch.bfloat16), maps(dtype=torch.bfloat16, seed=seed)) for seed in (1, 2)]
    loss = feature_loss("match", pairs)
    single = [feature_loss("match", [pair]) for pair in pairs]
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(float(sum(single)) / 2)


def test_pairs() -> None:
    assert feature_pairs("none", net(), net(), IMAGE) == ()
    assert feature_pairs("match", net(), net(), IMAGE) == (("2", "2"), ("3", "3"), ("5", "5"))
    deeper = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Conv2d(3, 9, 3, padding=1), nn.ReLU(), *head(9))
    assert feature_pairs("attention", net(), deeper, IMAGE) == (("2", "3"), ("3", "4"))


def head(width: int) -> list[nn.Module]:
    return [nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16 * width, 10)]


@pytest.mark.parametrize(
    ("name", "student", "teacher", "words"),
    [
        ("match", net(), net(6), r"\(6, 8, 8\) in the teacher \[module '2'\]; pass --features attention or none"),
        ("match", net(), nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), *head(8)), "student, no such map in the teacher"),
        ("attention", nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), net(), "no module of this model returns one; pass --features none"),
        ("attention", net(), nn.Sequential(nn.Conv2d(1, 4, 4), nn.Flatten(), nn.Linear(100, 10)), "no map of one resolution"),
        ("match", nn.Sequential(*net(), ByNumpy()), net(), "^how the logits come about cannot be followed; pass --features none"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared_is_refused(name: Features, student: nn.Module, teacher: nn.Module, words: str) -> None:
    with pytest.raises(InputError, match=words):
        feature_pairs(name, student, teacher, IMAGE)


@pytest.mark.parametrize(
    ("student", "teacher", "obstacle", "loss", "reason"),
    [
        (net(), net(), "", "match", ""),
        (net(), net(6), "", "none", "(6, 8, 8) in the teacher"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), net(), "", "none", "no module of this model"),
        (net(), net(), "no teacher", "none", "no teacher"),
        (net(), nn.Sequential(*net(), ByNumpy()), "", "none", "how the logits come about cannot be followed"),
    ],
)
def test_auto_matches_where_it_can_and_says_why_not(
    student: nn.Module, teacher: nn.Module, obstacle: str, loss: str, reason: str
) -> None:
    found = compared("auto", student, teacher, IMAGE, obstacle=obstacle)
    assert (found.loss, bool(found.modules)) == (loss, loss == "match")
    assert reason in found.reason


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"features": "hints"}, "features must be one of auto, match, attention, none"),
        ({"features_weight": -1.0}, "features_weight must be positive"),
        ({"features": "match", "compile": True}, "features do not work with compile"),
        ({"features": "attention", "alpha": 0.0}, "features need a teacher"),
        ({"epoch": 3}, "^no training option is called 'epoch'; did you mean 'epochs'\\?$"),
        ({"zzz": 3}, "^no training option is called 'zzz'; known are epochs, batch_size, "),
        ({"epochs": 2.5}, "^'epochs' takes a whole number, not 2.5$"),
        ({"epochs": True}, "^'epochs' takes a whole number, not True$"),
        ({"lr": "small"}, "^'lr' takes a number, not 'small'$"),
        ({"compile": 1}, "^'compile' takes a true or false, not 1$"),
        ({"opt": 3}, "^'opt' takes a word, not 3$"),
        ({"augment": 3}, "^'augment' takes a word, not 3$"),
        ({"cutmix_alpha": "much"}, "^'cutmix_alpha' takes a number, not 'much'$"),
        ({"cutmix_alpha": -1.0}, "^mixup_alpha and cutmix_alpha must not be negative$"),
        ({"teacher_flip": 1}, "^'teacher_flip' takes a true or false, not 1$"),
        ({"epochs": None}, "^'epochs' takes a whole number, not None$"),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        TrainOptions.of(options)
    if options.keys() <= TrainOptions().to_dict().keys():
        with pytest.raises(InputError, match=words):
            TrainOptions(**options)


def test_maps_are_taken_of_the_module_inside_ddp_and_no_hook_remains(tmp_path: Path) -> None:
    model = net()
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        with captured(model, ["2", "5"]) as found:
            wrapped(torch.zeros(4, 1, 8, 8))
    finally:
        torch.distributed.destroy_process_group()
    assert {name: tuple(f.shape) for name, f in found.items()} == {"2": (4, 8, 8, 8), "5": (4, 8, 2, 2)}
    model(torch.ones(1, 1, 8, 8))
    assert len(found["2"]) == 4
    with pytest.raises(InputError, match="a module does not run in training"), captured(model, ["2", "5"]):
        model[:3](torch.zeros(4, 1, 8, 8))
    assert not any(module._forward_hooks for module in model.modules())


def trained(features: Features) -> tuple[float, list[dict[str, Any]]]:
    """The distance ``match`` sees between student and teacher on other images after training, and the metrics."""
    torch.manual_seed(0)
    model = net()
    teacher = copy.deepcopy(model)
    digits, _ = open_data("digits").hold_out(1000)
    clusters = plan(model, analyze(model, IMAGE), flops_reduction=0.358)
    chosen = TrainOptions(epochs=2, batch_size=32, amp="no", alpha=0.5, features=features)
    training = TiedTraining(model, teacher, clusters, digits, None, chosen, "hard", processes=Processes())
    _, metrics = training.run()
    assert not any(m._forward_hooks for network in (model, teacher) for m in network.modules())
    images = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    names = ["2", "3", "5"]
    with torch.no_grad(), captured(model.eval(), names) as ours, captured(teacher.eval(), names) as theirs:
        model(images)
        teacher(images)
    return float(feature_loss("match", [(ours[name], theirs[name]) for name in names])), metrics


def test_training_with_match_brings_the_maps_nearer() -> None:
    without, plain = trained("none")
    near, metrics = trained("match")
    assert near < 0.7 * without
    assert [record["kind"] for record in plain] == ["network", "start", "epoch", "epoch", "final"]
    assert metrics[0] == {
        "kind": "features",
        "loss": "match",
        "modules": (("2", "2"), ("3", "3"), ("5", "5")),
        "reason": "",
    }
    assert epochs_of(metrics)[-1]["residual"] == 0


def test_attention_trains_in_half_precision_under_another_teacher() -> None:
    wide = net(12)
    before = copy.deepcopy(wide.state_dict())
    torch.manual_seed(0)
    model = net()
    digits, _ = open_data("digits").hold_out(1200)
    clusters = plan(model, analyze(model, IMAGE), flops_reduction=0.358)
    options = TrainOptions(epochs=1, batch_size=32, amp="bf16", features="attention", features_weight=10.0)
    _, metrics = TiedTraining(model, wide, clusters, digits, None, options, "pdc", processes=Processes()).run()
    assert metrics[0]["modules"] == (("2", "2"), ("3", "3"), ("5", "5"))
    assert epochs_of(metrics)[-1]["residual"] >= 0
    assert all(torch.equal(value, before[name]) for name, value in wide.state_dict().items())


class ChannelsLast(nn.Module):
    """Normalises maps over their channels, which lie along the last axis there, as ConvNeXt and Swin do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(1, 8, 3), nn.LayerNorm(8), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.stem(x).permute(0, 2, 3, 1)).relu().mean((1, 2)))  # type: ignore[no-any-return]


def test_attention_refuses_maps_with_channels_last() -> None:
    model, image = ChannelsLast(), torch.zeros(1, 1, 8, 8)
    assert list(cut_points(model, image).values())[-1] == (6, 6, 8)
    with pytest.raises(InputError, match=r"channels lie along axis 1, not along 3 \[module 'norm'\]"):
        feature_pairs("attention", model, model, image)
    assert feature_pairs("match", model, model, image)
