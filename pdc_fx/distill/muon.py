"""Muon for weights whose scale means nothing, SGD for all others.

Behind a weight ``W`` (filters by what each reads) that a batch norm follows, only the direction of ``W`` counts. So its norm stays as it
is, and a step is measured by it. With ``n`` such weights, all together, each in units of its norm, move by half of the learning rate:

    M  <-  momentum M + G
    W  <-  W - lr / (2 sqrt(n)) |W| O / |O|,    O = polar(G + momentum M),    scaled back to |W|

The polar factor ``U V^T`` of ``U S V^T`` is the steepest way down by the spectral norm: all directions move alike, where plain descent
spends its step on the few that are loud. That is Muon (Jordan et al., 2024; Bernstein and Newhouse, 2024), with Nesterov's correction.
What five steps of a quintic Newton-Schulz iteration give is near enough to it: singular values of about 0.7 to 1.2.

Groups of a convolution are matrices of their own. All other weights, where a step has to fit the scale, take SGD with Nesterov momentum and
weight decay.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

ITERATION = (3.4445, -4.7750, 2.0315)
"""Coefficients of ``X``, ``X X^T X`` and ``X X^T X X^T X``, by Jordan: few steps, since the slope at 0 is steep."""
STEPS = 5
SHARE = 0.5
"""Of the learning rate, which is SGD's. Of 1, 1/2 and 1/4 the one that ended nearest to its teacher on images that neither had seen. With 1
a student was more often right there, trained on half of the images, and less often on images held out from it alone: docs/limits.md."""


def polar(matrices: Tensor) -> Tensor:
    """About ``U V^T`` for each ``U S V^T``; zeros stay zeros.

    Args:
        matrices: shape ``(.., rows, columns)``.

    >>> _ = torch.manual_seed(0)
    >>> values = torch.linalg.svdvals(polar(torch.randn(8, 20)))
    >>> bool((values > 0.6).all() and (values < 1.3).all())
    True
    """
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x: Tensor = matrices if wide else matrices.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    a, b, c = ITERATION
    for _ in range(STEPS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Steps as said above.

    Args:
        groups: as of any optimizer. Where one has ``blocks``, numbers of matrices in each of its weights (the groups of a convolution), its
            weights are scale-free; the others take SGD and have a ``weight_decay``.
        lr: of SGD; :data:`SHARE` of it is how far all scale-free weights together move.

    >>> weight = torch.nn.Parameter(torch.eye(2))
    >>> optimizer = Muon([{"params": [weight], "blocks": [1]}], lr=0.5, momentum=0.9)
    >>> weight.grad = torch.tensor([[0.0, 10.0], [0.1, 0.0]])
    >>> optimizer.step()
    >>> weight = weight.detach()  # its norm stayed, and both directions moved alike
    >>> abs(float(weight.norm()) - 2**0.5) < 1e-6, 0.5 < float(weight[0, 1] / weight[1, 0]) < 2
    (True, True)
    """

    def __init__(self, groups: Iterable[dict[str, Any]], lr: float, momentum: float) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "blocks": None, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step. ``closure``, if given, computes the loss and its gradients anew."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved = sum(len(group["params"]) for group in self.param_groups if group["blocks"] is not None)
        for group in self.param_groups:
            for i, weight in enumerate(group["params"]):
                if weight.grad is None:
                    continue
                gradient = weight.grad.add(weight, alpha=group["weight_decay"])
                state = self.state[weight]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
                change = gradient.add(momentum, alpha=group["momentum"])
                if group["blocks"] is None:
                    weight.sub_(change, alpha=group["lr"])
                else:
                    matrices = change.reshape(group["blocks"][i], -1, change[0].numel())
                    _move(weight, polar(matrices), SHARE * group["lr"] / math.sqrt(moved))
        return loss


def _move(weight: Tensor, change: Tensor, rate: float) -> None:
    """By ``rate`` of its norm, which stays."""
    tiny = torch.finfo(weight.dtype).tiny
    norm = weight.norm()
    weight.sub_(change.reshape(weight.shape) / change.norm().clamp_min(tiny) * (rate * norm))
    weight.mul_(norm / weight.norm().clamp_min(tiny))
