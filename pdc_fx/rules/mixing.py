"""Functions that mix channels, or make values that nothing can be said about: frozen, each with a reason that a person understands.

A function without any rule is frozen too, as one that has no rule; this table is for those whose reason is known.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from pdc_fx.rules.base import Declined, Site, Value
from pdc_fx.rules.registry import functions, rule

_RANDOM = """
rand_like randn_like randint_like bernoulli multinomial normal uniform_ exponential_ fractional_max_pool2d fractional_max_pool3d
"""
_REASONS: dict[str, list[Any]] = {
    "normalises over neighbouring channels": [F.local_response_norm],
    "compares whole vectors of channels": [F.cosine_similarity, F.pairwise_distance, torch.cdist],
    "draws random numbers": functions(_RANDOM),
    "turns channels into a transform of them": [torch.stft, torch.istft],
}
_WHY = {target: why for why, targets in _REASONS.items() for target in targets}
_OPERATORS = {
    "torchvision.nms": "chooses boxes by their overlap",
    "torchvision.ps_roi_align": "takes another channel at each place of a region",
    "torchvision.ps_roi_pool": "takes another channel at each place of a region",
}


@rule("lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell")
def recurrent(site: Site) -> Value:
    """Each matrix is used once at each step of each sequence: counted, and declined."""
    *steps, _ = site.argument(0, "input").meta["shape"]
    weights = [leaf.meta["shape"] for leaf in tree_leaves(site.node.args) if site.weight(leaf) is not None]
    site.flow.fixed_macs += prod(steps) * sum(prod(shape) for shape in weights if len(shape) == 2)
    raise Declined("carries its channels from step to step")


@rule(*_WHY)
@rule(*_OPERATORS)
def mixing(site: Site) -> Value:
    """Always declined."""
    raise Declined(_WHY.get(site.node.target) or _OPERATORS[str(site.node.target)])
