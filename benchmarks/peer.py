"""Torch-Pruning on the CIFAR ResNets of ``examples/``, and the one counter of multiply-accumulates for all networks.

It does not follow channels through the padded shortcuts of these networks (what it makes no longer runs), so that the convolutions that end
in a residual stream are among its ``ignored_layers``: the inner widths of the blocks are pruned.
"""

from __future__ import annotations

import copy

from torch import Tensor, nn

from pdc_fx.pipeline import analyze

IMPORTANCES = ("L1", "group norm")


def macs(model: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates of one forward pass."""
    return analyze(model, image).macs()


def pruned(
    model: nn.Module, image: Tensor, reduction: float, importance: str, *, everywhere: bool = False
) -> nn.Module:
    """What Torch-Pruning makes of ``model``, by its defaults, at the ratio that comes nearest to the reduction.

    Args:
        importance: one of :data:`IMPORTANCES`.
        everywhere: one ranking over all layers in place of an equal share of each.
    """
    dense, low, high = macs(model, image), 0.0, 1.0
    found: list[tuple[float, nn.Module]] = []
    for _ in range(10):
        ratio = (low + high) / 2
        small = _pruned_at(model, image, ratio, importance, everywhere)
        removed = 1 - macs(small, image) / dense
        found.append((abs(removed - reduction), small))
        low, high = (ratio, high) if removed < reduction else (low, ratio)
    return min(found, key=lambda pair: pair[0])[1]


def _pruned_at(model: nn.Module, image: Tensor, ratio: float, importance: str, everywhere: bool) -> nn.Module:
    import torch_pruning as tp

    scores = {"L1": tp.importance.MagnitudeImportance, "group norm": tp.importance.GroupMagnitudeImportance}
    small = copy.deepcopy(model)
    stream = [m for name, m in small.named_modules() if name in ("conv1", "linear") or name.endswith(".conv2")]
    tp.pruner.BasePruner(
        small,
        image,
        importance=scores[importance](p=1 if importance == "L1" else 2),
        pruning_ratio=ratio,
        global_pruning=everywhere,
        ignored_layers=stream,
    ).step()
    return small
