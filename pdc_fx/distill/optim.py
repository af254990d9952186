"""The optimizer and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pdc_fx.options import TrainOptions


def optimizer_for(model: nn.Module, options: TrainOptions) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum, or AdamW, over all parameters that are trained."""
    groups = _parameter_groups(model, options.weight_decay)
    if options.opt == "adamw":
        return torch.optim.AdamW(groups, options.lr)
    return torch.optim.SGD(groups, options.lr, options.momentum, nesterov=options.momentum > 0)


def learning_rate(options: TrainOptions, steps_per_epoch: int) -> Callable[[int], float]:
    """Step -> factor of the peak learning rate: a linear rise, then a half cosine down to 0 or a fall in steps.

    >>> factor = learning_rate(TrainOptions(epochs=2), 10)
    >>> factor(0), factor(5), round(factor(20), 3)
    (0.2, 1.0, 0.0)
    >>> factor = learning_rate(TrainOptions(epochs=4, sched="step", lr_step_size=2, warmup_epochs=0), 10)
    >>> factor(0), factor(19), factor(20)
    (1.0, 1.0, 0.1)
    """
    total = steps_per_epoch * options.epochs
    warm = min(round(steps_per_epoch * options.warmup_epochs), total // 4)

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        if options.sched == "step":
            return float(options.lr_gamma ** (step // (steps_per_epoch * options.lr_step_size)))
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    return factor


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights of two or more axes decay; biases and normalisation do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [([p for p in trained if p.dim() > 1], weight_decay), ([p for p in trained if p.dim() <= 1], 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]
