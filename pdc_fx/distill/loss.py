"""The loss of distillation, by name.

For labels ``y``, student logits ``s`` and teacher logits ``t``, each of shape ``(N, classes)``:

    (1 - alpha) * CE(s, y) + alpha * L(s, t, y)

``L`` is an entry of :data:`LOGIT_LOSSES`. ``alpha`` means the same for each: the share of ``L`` against the labels' cross entropy. So does
``temperature``: logits (with ``zscore`` the standardised ones) are divided by T, and the result is multiplied by T^2, so that the size of
gradients hardly depends on T. Other constants are the papers' and fixed. Every ``L`` is 0 where the student's logits are the teacher's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, layer_norm, log_softmax

from pdc_fx.errors import InputError
from pdc_fx.options import Distill

ZSCORE_WEIGHT = 10.0
DKD_BETA = 8.0


def distillation_loss(
    student: Tensor,
    teacher: Tensor | None,
    labels: Tensor,
    alpha: float,
    temperature: float,
    label_smoothing: float = 0.0,
    distill: Distill = "kl",
) -> Tensor:
    """The loss above, averaged over the batch.

    Args:
        student, teacher: logits, shape ``(N, classes)``; no teacher is needed where ``alpha`` is 0.
        labels: int64, shape ``(N,)``.
        distill: the name of ``L``.

    Raises:
        InputError: there is no teacher, and ``alpha`` is not 0.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> float(distillation_loss(logits, logits, torch.tensor([0]), alpha=1.0, temperature=4.0))
    0.0
    """
    hard = nn.functional.cross_entropy(student, labels, label_smoothing=label_smoothing)
    if alpha == 0:
        return hard
    if teacher is None:
        raise InputError(f"alpha is {alpha}, and there are no logits of a teacher", hint="give them, or alpha 0")
    soft = LOGIT_LOSSES[distill](student, teacher, labels, temperature)
    return (1 - alpha) * hard + alpha * soft


def kl(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """``T^2 KL(softmax(t / T) || softmax(s / T))`` (Hinton, Vinyals, Dean 2015, section 2)."""
    log_p, log_q = (log_softmax(x / temperature, dim=1) for x in (teacher, student))
    return _divergence(log_p, log_q) * temperature**2


def zscore(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """``10 T^2 KL`` of ``z(x) = (x - mean(x)) / std(x)`` over the classes of each image (Sun et al., CVPR 2024).

    With ``alpha`` 0.9 this is the paper's 0.1 CE + 9 KL; its T is 2. The student's logits may have any mean and scale.
    """
    s, t = (layer_norm(x, x.shape[1:], eps=1e-7) for x in (student, teacher))
    return ZSCORE_WEIGHT * kl(s, t, labels, temperature)


def dkd(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """``T^2 (KL(b_t || b_s) + 8 KL(r_t || r_s))`` (Zhao et al., CVPR 2022: alpha 1; beta 8, for the CIFAR-100 pair of its ablations; T 4).

    ``b`` is (probability of the label, of all other classes), ``r`` the softmax over the other classes alone. Plain ``kl`` weighs the
    second by the teacher's doubt, 1 - p(label). The paper's CE + DKD has the proportions of ``alpha`` 0.5.
    """
    (b_t, r_t), (b_s, r_s) = (_decoupled(x / temperature, labels) for x in (teacher, student))
    return (_divergence(b_t, b_s) + DKD_BETA * _divergence(r_t, r_s)) * temperature**2


def dist(student: Tensor, teacher: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """``T^2 (mean over images of 1 - r(p_t[n], p_s[n]) + mean over classes of 1 - r(p_t[:, c], p_s[:, c]))`` (Huang et al., NeurIPS 2022).

    ``p`` is ``softmax(x / T)``, ``r`` Pearson's correlation: between the classes of an image, and within a class over the batch.
    """
    p_t, p_s = (torch.softmax(x / temperature, dim=1) for x in (teacher, student))
    return (_uncorrelated(p_t, p_s, dim=1) + _uncorrelated(p_t, p_s, dim=0)) * temperature**2


LOGIT_LOSSES: dict[Distill, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "kl": kl,
    "zscore": zscore,
    "dkd": dkd,
    "dist": dist,
}
"""Name -> ``L(student, teacher, labels, temperature)``, a scalar averaged over the batch."""


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """``KL(p || q)``, averaged over the batch."""
    return kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _decoupled(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of (p(label), 1 - p(label)), shape ``(N, 2)``, and of the softmax over the others, ``(N, classes - 1)``."""
    others = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(logits), -1)
    rest = logits.gather(1, others + (others >= labels[:, None]))
    binary = torch.cat([logits.gather(1, labels[:, None]), rest.logsumexp(1, keepdim=True)], 1)
    return log_softmax(binary, dim=1), log_softmax(rest, dim=1)


def _uncorrelated(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """The mean of ``1 - r``, as half the squared distance of the centred unit vectors: exactly 0 for equal ones, 0 for constant ones."""
    centred = (x - x.mean(dim, keepdim=True) for x in (a, b))
    a, b = (x * (x.square().sum(dim, keepdim=True) + 1e-12).rsqrt() for x in centred)
    return (a - b).square().sum(dim).mean() / 2


def logits_of(output: Any) -> Tensor:
    """The class scores in whatever a classifier returns (auxiliary heads come after, or under other names)."""
    found = output
    if isinstance(output, dict):
        found = output.get("logits", output.get("out"))
    elif isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise InputError(
            f"expected logits of shape (N, classes), the model returned a {type(output).__name__}",
            hint="return a tensor, a tuple that begins with one, or a dict with 'logits' or 'out'",
        )
    return found
