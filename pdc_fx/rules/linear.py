"""Contractions with a weight: convolution and linear layers, the producers and readers of channels.

``y[n, o] = sum_i w[o, i] * x[n, i] + b[o]``. If ``x[:, i] == x[:, j]``, the two terms may be replaced by one whose weight is
``w[o, i] + w[o, j]``: *channel addition*. If ``w[o, :] == w[p, :]`` and ``b[o] == b[p]``, the outputs ``o`` and ``p`` are equal.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from pdc_fx.rules.base import Channels, Declined, Site, Value, Weight, mix, rule


def _weight(site: Site) -> Weight:
    weight = site.weight(site.argument(1, "weight"))
    if weight is None:
        raise Declined("has a weight that is computed in the forward pass")
    return weight


@rule("linear")
def linear(site: Site) -> Value:
    """``x: (..., in)``, ``weight: (out, in)``."""
    x, weight = site.channels(site.argument(0, "input")), _weight(site)
    site.read(weight, 1, *site.along(x, -1))
    label, path = site.produce(weight, 0)
    site.ride(site.argument(2, "bias"), 0, label, path)
    site.multiply_accumulates(weight, prod(x.shape[:-1]))
    return site.laid(label, path, len(site.shape) - 1)


@rule("conv1d conv2d conv3d")
def convolution(site: Site) -> Value:
    """``x: (N, in, *space)`` or ``(in, *space)``, ``weight: (out, in / groups, *kernel)``."""
    x, weight = site.channels(site.argument(0, "input")), _weight(site)
    axis = len(site.shape) - len(weight.shape) + 1
    inputs = site.along(x, axis)
    groups = int(site.argument(6, "groups", 1))
    site.multiply_accumulates(weight, prod(site.shape) // weight.shape[0])
    return _convolved(site, weight, inputs, groups, axis)


def _convolved(site: Site, weight: Weight, inputs: tuple[Tensor, Tensor], groups: int, axis: int) -> Channels:
    label, path = inputs
    if groups == 1:
        site.read(weight, 1, label, path)
        label, path = site.produce(weight, 0)
    elif groups == len(label):
        label, path = _depthwise(site, weight, label, path)
    else:
        label, path = _grouped(site, weight, label, path, groups)
    site.ride(site.argument(2, "bias"), 0, label, path)
    return site.laid(label, path, axis)


def _grouped(site: Site, weight: Weight, label: Tensor, path: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """``y[g, o] = sum_i w[g, o, i] * x[g, i]``: all groups share the weight's input axis ``i``, so the i-th inputs of all groups
    are one channel with a place in each, and likewise the o-th outputs. Every group then keeps the same number.
    """
    site.read(weight, 1, *site.bundled(label.reshape(groups, -1).T, path.reshape(groups, -1).T))
    label, path = site.produce(weight, 0)
    site.bundled(label.reshape(groups, -1).T, path.reshape(groups, -1).T)
    return label, path


def _depthwise(site: Site, weight: Weight, label: Tensor, path: Tensor) -> tuple[Tensor, Tensor]:
    """Each channel has ``m`` filters of its own; its outputs are the same channel at ``m`` places."""
    multiplier = weight.shape[0] // len(label)
    place = torch.arange(multiplier).repeat(len(label))
    label = label.repeat_interleave(multiplier)
    path = mix(path.repeat_interleave(multiplier), place, site.key)
    site.ride(site.node.args[1] if len(site.node.args) > 1 else site.node.kwargs["weight"], 0, label, path)
    return label, path
