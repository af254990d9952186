"""Each logit loss against its formula, written out image by image in float64."""

from __future__ import annotations

import math
from collections import namedtuple
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from pdc_fx.distill import LOGIT_LOSSES, TrainOptions, distillation_loss
from pdc_fx.distill.loss import logits_of
from pdc_fx.errors import InputError
from pdc_fx.options import Distill

NAMES = list(LOGIT_LOSSES)
T = 3.0


def probabilities(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return e / e.sum()


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))


def kl(s: np.ndarray, t: np.ndarray, y: int) -> float:
    return T**2 * divergence(probabilities(t / T), probabilities(s / T))


def zscore(s: np.ndarray, t: np.ndarray, y: int) -> float:
    return 10 * kl((s - s.mean()) / s.std(), (t - t.mean()) / t.std(), y)


def dkd(s: np.ndarray, t: np.ndarray, y: int) -> float:
    p, q = probabilities(t / T), probabilities(s / T)
    target = divergence(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
    p, q = (np.delete(x, y) / (1 - x[y]) for x in (p, q))
    return T**2 * (target + 8 * divergence(p, q))


def dist(s: np.ndarray, t: np.ndarray) -> float:
    p, q = (np.stack([probabilities(row / T) for row in x]) for x in (t, s))
    between = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p, q, strict=True)]
    within = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T, strict=True)]
    return float(T**2 * (np.mean(between) + np.mean(within)))


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    s, t = (2 * torch.randn(16, 7, generator=random, dtype=dtype) for _ in range(2))
    return s, t, torch.randint(7, (16,), generator=random)


def plain(name: str, s: Tensor, t: Tensor, y: Tensor) -> float:
    if name == "dist":
        return dist(s.numpy(), t.numpy())
    one = {"kl": kl, "zscore": zscore, "dkd": dkd}[name]
    return float(np.mean([one(*row) for row in zip(s.numpy(), t.numpy(), y.tolist(), strict=True)]))


def test_options_and_registry_have_the_same_names() -> None:
    assert tuple(LOGIT_LOSSES) == get_args(Distill)
    with pytest.raises(InputError, match="distill must be one of kl, zscore, dkd, dist"):
        TrainOptions.of({"distill": "mse"})


def test_without_a_teacher_only_labels_teach() -> None:
    s, _, y = batch()
    alone = distillation_loss(s, None, y, alpha=0.0, temperature=T)
    torch.testing.assert_close(alone, torch.nn.functional.cross_entropy(s, y))
    with pytest.raises(InputError, match=r"alpha is 0\.5"):
        distillation_loss(s, None, y, alpha=0.5, temperature=T)


@pytest.mark.parametrize("name", NAMES)
def test_a_loss_is_its_formula(name: Distill) -> None:
    s, t, y = batch()
    expected = plain(name, s, t, y)
    assert float(LOGIT_LOSSES[name](s, t, y, T)) == pytest.approx(expected, rel=1e-6)
    hard = -float(np.mean([math.log(probabilities(row)[label]) for row, label in zip(s.numpy(), y, strict=True)]))
    total = distillation_loss(s, t, y, alpha=0.7, temperature=T, distill=name)
    assert float(total) == pytest.approx(0.3 * hard + 0.7 * expected, rel=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_no_formula_is_another_one(name: Distill) -> None:
    s, t, y = batch()
    value = float(LOGIT_LOSSES[name](s, t, y, T))
    others = [plain(other, s, t, y) for other in NAMES if other != name]
    assert all(abs(value - other) > 0.01 * value for other in others)
    assert (
        abs(float(LOGIT_LOSSES[name](t, s, y, T)) - value) > 1e-3 * value or name == "dist"
    )  # a correlation is symmetric


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_equal_logits_give_zero_and_others_more(name: Distill, dtype: torch.dtype) -> None:
    s, t, y = batch(dtype)
    student = t.clone().requires_grad_()
    loss = LOGIT_LOSSES[name](student, t, y, T)
    loss.backward()  # type: ignore[no-untyped-call]
    assert float(loss.detach()) == 0
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-5
    assert float(LOGIT_LOSSES[name](s, t, y, T)) > 0.1


@pytest.mark.parametrize("name", NAMES)
def test_all_ignore_a_shift_and_zscore_alone_the_scale(name: Distill) -> None:
    _, t, y = batch()
    assert float(LOGIT_LOSSES[name](t + 3, t, y, T)) == pytest.approx(0, abs=1e-9)
    assert (float(LOGIT_LOSSES[name](2 * t, t, y, T)) < 1e-9) == (name == "zscore")


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ([[1e4, 0, 0], [0, 1e4, 0]], [[0, 1e4, 0], [1e4, 0, 0]]),
        ([[-1e4, 1e4, 0], [0, 0, -1e4]], [[0, 0, 0], [0, 0, 0]]),
        ([[0, 0, 0], [0, 0, 0]], [[1e4, -1e4, 0], [0, 0, 1e4]]),
        ([[0, 0, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_have_finite_gradients(
    name: Distill, student: list[list[float]], teacher: list[list[float]]
) -> None:
    s = torch.tensor(student, dtype=torch.float32).requires_grad_()
    loss = LOGIT_LOSSES[name](s, torch.tensor(teacher, dtype=torch.float32), torch.tensor([2, 0]), 1.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert s.grad is not None
    assert bool(loss.isfinite())
    assert bool(s.grad.isfinite().all())


SCORES = torch.zeros(2, 3)


@pytest.mark.parametrize(
    "output",
    [
        SCORES,
        {"logits": SCORES, "out": 1},
        {"out": SCORES, "aux": 1},  # torchvision's segmentation models
        (SCORES, 1),
        [SCORES],
        namedtuple("Outputs", "logits aux_logits")(SCORES, None),
    ],
    ids=lambda o: type(o).__name__,
)
def test_logits_are_found_in_what_a_classifier_returns(output: Any) -> None:
    assert logits_of(output) is SCORES


@pytest.mark.parametrize(
    ("output", "kind"),
    [("a cat", "str"), (None, "NoneType"), ((), "tuple"), (["a cat"], "list"), ({"scores": 1}, "dict")],
)
def test_what_holds_no_logits_is_refused(output: Any, kind: str) -> None:
    with pytest.raises(
        InputError, match=rf"^expected logits of shape \(N, classes\), the model returned a {kind}; return a tensor"
    ):
        logits_of(output)
