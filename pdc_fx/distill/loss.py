"""The loss of distillation.

For labels ``y``, student logits ``s`` and teacher logits ``t`` (Hinton, Vinyals, Dean 2015, section 2):

    (1 - alpha) * CE(s, y) + alpha * T^2 * KL(softmax(t / T) || softmax(s / T))
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pdc_fx.errors import InputError


def distillation_loss(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, temperature: float, label_smoothing: float = 0.0
) -> Tensor:
    """The loss above, averaged over the batch.

    Args:
        student, teacher: logits, shape ``(N, classes)``.
        labels: int64, shape ``(N,)``.

    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0]])
    >>> float(distillation_loss(logits, logits, torch.tensor([0]), alpha=1.0, temperature=4.0))
    0.0
    """
    hard = nn.functional.cross_entropy(student, labels, label_smoothing=label_smoothing)
    log_p, log_q = (nn.functional.log_softmax(x / temperature, dim=1) for x in (teacher, student))
    soft = nn.functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2
    return (1 - alpha) * hard + alpha * soft


def logits_of(output: Any) -> Tensor:
    """The class scores in whatever a classifier returns (auxiliary heads come after, or under other names)."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        output = output.get("logits", output.get("out"))
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor):
        raise InputError(f"expected logits of shape (N, classes), the model returned a {type(output).__name__}")
    return output
