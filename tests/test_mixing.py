"""Mixup and CutMix: what comes out is the share it says, drawn anew each time, and goes into the loss."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pdc_fx.data import open_data
from pdc_fx.data.mixing import mixed
from pdc_fx.distill import Processes, TiedTraining, TrainOptions
from pdc_fx.options import MIXED_FROM
from pdc_fx.pipeline import analyze, plan

LABELS = torch.arange(6)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([(0.2, 0.0), (0.0, 1.0), (0.8, 1.0)]), st.integers(0, 99))
def test_each_image_is_the_share_of_itself(height: int, width: int, alphas: tuple[float, float], seed: int) -> None:
    images = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 2, height, width)
    torch.manual_seed(seed)
    made = mixed(images, LABELS, *alphas, prob=1.0)
    assert torch.equal(made.labels, LABELS)
    assert torch.equal(made.others, LABELS.roll(1))
    expected = made.share * LABELS + (1 - made.share) * made.others
    torch.testing.assert_close(made.images.mean((1, 2, 3)), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(images[:, 0, 0, 0], LABELS.float())
    if not alphas[0]:  # every pixel is of one image or of the other
        assert set(made.images[2].unique().tolist()) <= {1.0, 2.0}


def test_as_many_batches_are_mixed_as_was_said_and_both_ways_occur() -> None:
    images = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 1, 8, 8)
    torch.manual_seed(0)
    batches = [mixed(images, LABELS, 1.0, 1.0, 0.25) for _ in range(400)]
    plain = [batch.images is images for batch in batches]
    assert 70 < plain.count(False) < 130
    pasted = [batch.images[1].unique().numel() == 2 for batch, same in zip(batches, plain, strict=True) if not same]
    assert 0.3 < sum(pasted) / len(pasted) < 0.7
    assert all(mixed(images, LABELS, 0.0, 0.0, 1.0).images is images for _ in range(9))


def trained(**options: Any) -> list[dict[str, Any]]:
    """The metrics of a run of one epoch over a few digits."""
    digits, _ = open_data("digits").hold_out(1200)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    clusters = plan(net, analyze(net, torch.zeros(1, 1, 8, 8)), flops_reduction=0.5)
    chosen = TrainOptions.of({"epochs": 1, "batch_size": 32, "amp": "no", "alpha": 0.5, **options})
    return TiedTraining(net, copy.deepcopy(net), clusters, digits, None, chosen, "hard", processes=Processes()).run()[1]


def losses(metrics: list[dict[str, Any]]) -> list[float]:
    return [record["loss"] for record in metrics if record["kind"] == "epoch"]


def test_training_with_it_is_another_training_and_repeats() -> None:
    plain, first, again = (losses(trained(cutmix_alpha=alpha)) for alpha in (0.0, 1.0, 1.0))
    assert first == again
    assert abs(first[0] - plain[0]) > 1e-4
    assert losses(trained(cutmix_alpha=1.0, mixup_prob=0.0)) == pytest.approx(plain)


NOTHING = {"epochs": MIXED_FROM}


@pytest.mark.parametrize(
    ("options", "mirrored", "cutmix", "flip"),
    [
        (NOTHING, True, 1.0, True),
        (NOTHING, False, 0.0, False),
        ({"epochs": MIXED_FROM - 1}, True, 0.0, False),
        (NOTHING | {"alpha": 0.0}, True, 0.0, False),  # nobody to learn from
        (NOTHING | {"cutmix_alpha": 0.0}, True, 0.0, False),
        (NOTHING | {"mixup_alpha": 0.2}, True, 0.0, True),
        (NOTHING | {"mixup_prob": 0.0}, True, 0.0, False),
        (NOTHING | {"teacher_flip": False}, True, 1.0, False),
        ({"epochs": 1, "cutmix_alpha": 0.5}, True, 0.5, True),
        ({"epochs": 1, "cutmix_alpha": 0.5}, False, 0.5, False),
        ({"epochs": 1, "cutmix_alpha": 0.5, "alpha": 0.0}, True, 0.5, False),
        ({"epochs": 1, "teacher_flip": True}, True, 0.0, True),
    ],
)
def test_what_is_left_open_is_settled(options: dict[str, Any], mirrored: bool, cutmix: float, flip: bool) -> None:
    made = TrainOptions.of(options).settled(mirrored=mirrored)
    assert (made.cutmix_alpha, made.teacher_flip) == (cutmix, flip)
    assert made == made.settled(mirrored=not mirrored)
    assert made.to_dict() == TrainOptions.of(options).to_dict() | {"cutmix_alpha": cutmix, "teacher_flip": flip}


@pytest.mark.parametrize(
    ("augment", "same"), [("flip", {"cutmix_alpha": 1.0, "teacher_flip": True}), ("none", {"cutmix_alpha": 0.0})]
)
def test_a_long_run_mixes_images_that_are_mirrored_and_says_so(
    augment: str, same: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdc_fx.options.MIXED_FROM", 1)
    metrics = trained(augment=augment)
    assert losses(metrics) == losses(trained(augment=augment, **same))
    said = [record["mixed"] for record in metrics if record["kind"] == "images"]
    assert said == ([0.5] if augment == "flip" else [])
