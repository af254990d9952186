"""The optimizer, its learning rate, and the moving average of what it makes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pdc_fx.distill.muon import Muon
from pdc_fx.options import TrainOptions
from pdc_fx.passes.statistics import Watch, run_watched

Tensors = list[Tensor] | tuple[Tensor, ...]


def optimizer_for(model: nn.Module, options: TrainOptions, example: Tensor, *, final: bool) -> torch.optim.Optimizer:
    """Muon, SGD with Nesterov momentum, or AdamW, over all parameters that are trained.

    Args:
        example: an image, shape ``(1, C, H, W)``; the model runs on it once, to see which weights are scale-free.
        final: whether clusters are final from the first step, which is where ``auto`` takes Muon.
    """
    muon = options.opt == "muon" or (options.opt == "auto" and final)
    groups = _parameter_groups(model, options.weight_decay, _scale_free(model, example) if muon else {})
    if muon:
        return Muon(groups, options.lr, options.momentum)
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


def averaged(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average; what are no numbers on a scale (a table of positions, counts) is taken as it is."""
    moved = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]

    def update(averages: Tensors, current: Tensors, steps: Any) -> None:
        if averages[0].is_floating_point() or averages[0].is_complex():
            moved(averages, current, steps)
        else:
            torch._foreach_copy_(averages, current)

    return AveragedModel(model, multi_avg_fn=update, use_buffers=True)


def _scale_free(model: nn.Module, example: Tensor) -> dict[str, int]:
    """Weights with a batch norm right behind -> groups of their convolution."""
    watch = Watch(model, 1)
    run_watched(model, example, watch)
    return {name: watch.groups[name] for name in watch.scale_free}


def _parameter_groups(model: nn.Module, weight_decay: float, scale_free: dict[str, int]) -> list[dict[str, Any]]:
    """Weights of two or more axes decay; biases and normalisation do not, nor does what has no scale."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    moved = {name: scale_free[name] for name in trained if name in scale_free}
    scaled = [p for name, p in trained.items() if name not in moved]
    groups = [([p for p in scaled if p.dim() > 1], weight_decay), ([p for p in scaled if p.dim() <= 1], 0.0)]
    found: list[dict[str, Any]] = [{"params": params, "weight_decay": decay} for params, decay in groups if params]
    if moved:
        found.append({"params": [trained[name] for name in moved], "weight_decay": 0.0, "blocks": list(moved.values())})
    return found
