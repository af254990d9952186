"""Convolutions and their transposes, the producers and readers of channels (linear layers: :mod:`pdc_fx.rules.contraction`).

``y[n, o] = sum_i w[o, i] * x[n, i] + b[o]`` at every position.
If ``x[:, i] == x[:, j]``, the two terms may be replaced by one whose weight is
``w[o, i] + w[o, j]``: *channel addition*. If ``w[o, :] == w[p, :]`` and ``b[o] == b[p]``, the outputs ``o`` and ``p`` are equal.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from pdc_fx.rules.base import Site, Value, weightless
from pdc_fx.rules.channels import Channels, mix
from pdc_fx.rules.literals import Edit, literal
from pdc_fx.rules.places import in_a_row, spread
from pdc_fx.rules.registry import rule
from pdc_fx.rules.weights import Weight


def _weight(site: Site, positions: int) -> Weight:
    """The weight, whose every entry is used at ``positions // len(weight)`` places."""
    given = site.argument(1, "weight")
    weight = site.weight(given)
    if weight is None:
        shape = given.meta["shape"]
        site.flow.fixed_macs += positions * prod(shape[1:])
        raise weightless(given, site.shape[len(site.shape) - len(shape) + 1])
    site.multiply_accumulates(weight, positions // weight.shape[0])
    return weight


@rule("conv1d conv2d conv3d")
def convolution(site: Site) -> Value:
    """``x: (N, in, *space)`` or ``(in, *space)``, ``weight: (out, in / groups, *kernel)``."""
    x, weight = site.channels(site.argument(0, "input")), _weight(site, prod(site.shape))
    axis = len(site.shape) - len(weight.shape) + 1
    inputs = site.along(x, axis)
    groups = int(site.argument(6, "groups", 1))
    return _convolved(site, weight, inputs, groups, axis, site.argument(2, "bias"))


def _convolved(
    site: Site, weight: Weight, inputs: tuple[Tensor, Tensor], groups: int, axis: int, bias: Any
) -> Channels:
    label, path = inputs
    if groups == 1:
        site.read(weight, 1, label, path)
        label, path = site.produce(weight, 0)
    elif groups == len(label):
        label, path = _depthwise(site, weight, label, path)
    else:
        label, path = _grouped(site, weight, label, path, groups)
    site.ride(bias, 0, label, path)
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
    label, path = in_a_row(site, label, path, weight.shape[0] // len(label))
    site.ride(weight, 0, label, path)
    return label, path


@rule("torchvision.deform_conv2d")
def deformable_convolution(site: Site) -> Value:
    """``deform_conv2d(x, weight, offset, mask, bias, stride, padding, dilation, groups, offset_groups, use_mask)``.

    The offsets say where a convolution looks. Where they differ from one part of the channels to another, these stay.
    """
    x, weight = site.channels(site.node.args[0]), _weight(site, prod(site.shape))
    site.freeze(list(site.node.args[2:4]), "decides where a deformable convolution looks")
    if site.argument(12, "offset_groups") != 1:
        site.flow.freeze(x.label, "is read at offsets that differ by channel", site.module)
    return _convolved(site, weight, site.along(x, 1), int(site.argument(11, "groups")), 1, site.argument(4, "bias"))


def _written_groups(call: fx.Node) -> bool:
    groups = call.args[6] if len(call.args) > 6 else call.kwargs.get("groups", 1)
    return bool(groups != 1)


@literal("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", concerns=_written_groups)
def edit_groups(edit: Edit) -> None:
    """A depthwise convolution has as many groups as channels."""
    groups = edit.get(6, "groups")
    for size, kept in zip(edit.source, edit.kept_in, strict=True):
        if kept is not None and size == groups:
            edit.set(6, "groups", int(kept.sum()))


@rule("conv_transpose1d conv_transpose2d conv_transpose3d")
def transposed_convolution(site: Site) -> Value:
    """``x: (N, in, *space)`` or ``(in, *space)``, ``weight: (in, out / groups, *kernel)``."""
    x = site.channels(site.argument(0, "input"))
    weight = _weight(site, prod(x.shape))
    axis = len(site.shape) - len(weight.shape) + 1
    label, path = site.along(x, axis)
    groups = int(site.argument(6, "groups", 1))
    if groups == len(label) > 1:
        site.ride(weight, 0, label, path)
        site.hold(weight, 1, "channelwise")
        label, path = in_a_row(site, label, path, weight.shape[1])
    else:
        # ``y[g, o] = sum_i w[g, i, o] * x[g, i]``: the rows of a group lie behind those of the one before
        site.bundled(label.reshape(groups, -1).T, path.reshape(groups, -1).T)
        site.read(weight, 0, label, mix(path, torch.arange(groups).repeat_interleave(len(label) // groups)))
        label, path = (t.T.flatten() for t in spread(site, *site.produce(weight, 1), 0, groups))
    site.ride(site.argument(2, "bias"), 0, label, path)
    return site.laid(label, path, axis)
