"""Normalisation. Over positions only (batch and instance norm) it acts on each channel alone: its entries ride along.

``y[n, c] = (x[n, c] - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c]``: equal channels stay equal if the four entries agree.

Over channels (layer, group and RMS norm) it takes means over sets of channels. A mean over ``n`` channels in clusters of ``m`` members is

    1/n * sum over channels x_c = m/n * sum over clusters x_c,

the mean over the ``n/m`` that remain: exact if all clusters inside a set have one size. Which set a channel is in becomes part of its
path, for what it is divided by differs from set to set.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

import torch
from torch.nn import functional as F

from pdc_fx.rules.base import Declined, Site, Value
from pdc_fx.rules.channels import Channels, mix
from pdc_fx.rules.literals import Edit, literal
from pdc_fx.rules.registry import functions, rule


def _per_channel(site: Site, entries: list[object]) -> Value:
    x = site.channels(site.argument(0, "input"))
    label, path = site.along(x, 1)
    for entry in entries:
        site.ride(entry, 0, label, path)
    return x.then(site.key)


@rule(F.batch_norm, F.instance_norm, traits=("keeps_positions",))
def functional_norm(site: Site) -> Value:
    """``batch_norm(input, running_mean, running_var, weight, bias, ...)``."""
    return _per_channel(
        site, [site.argument(i, name) for i, name in enumerate(("running_mean", "running_var", "weight", "bias"), 1)]
    )


@rule(torch.batch_norm, torch.instance_norm, traits=("keeps_positions",))
def aten_norm(site: Site) -> Value:
    """``batch_norm(input, weight, bias, running_mean, running_var, ...)``."""
    return _per_channel(
        site, [site.argument(i, name) for i, name in enumerate(("weight", "bias", "running_mean", "running_var"), 1)]
    )


def averaged(site: Site, x: Channels, dims: Iterable[int]) -> Channels:
    """State that the values of ``x`` are averaged over ``dims``; each of the sets gets a path of its own."""
    inner = [d for d in x.varying if d in set(dims)]
    outer = [d for d in x.varying if d not in inner]
    if not inner:
        return x
    order = [*outer, *inner]
    sets = prod(x.label.shape[d] for d in outer)
    flat = x.label.permute(*order, *(d for d in range(x.label.dim()) if d not in order))
    site.flow.balance(flat.reshape(sets, -1), site.module)
    sizes = [x.label.shape[d] if d in outer else 1 for d in range(x.label.dim())]
    return replace(x, path=mix(x.path, torch.arange(sets).reshape(sizes)))


def _normalized(site: Site, x: Channels, dims: list[int], entries: Iterable[object]) -> Value:
    """Normalise over ``dims``, the last ones; entries have the shape of these."""
    result = averaged(site, x, dims)
    inner = [d for d in x.varying if d in dims]
    if len(inner) > 1:
        raise Declined("normalises over channels that lie along several axes")
    for entry in entries:
        if inner:
            site.ride(entry, inner[0] - dims[0], *site.along(result, inner[0]))
        elif (weight := site.weight(entry)) is not None and set(x.varying) - set(dims):
            site.freeze_weight(weight, "scales positions, not channels")
    return result.then(site.key)


@rule("layer_norm rms_norm", traits=("keeps_positions",))
def layer_norm(site: Site) -> Value:
    """``layer_norm(input, normalized_shape, weight, bias, eps)`` over the last axes."""
    x = site.channels(site.argument(0, "input"))
    rank = len(x.shape)
    normalized = site.argument(1, "normalized_shape")
    dims = list(range(rank - (1 if isinstance(normalized, int) else len(normalized)), rank))
    bias = [site.argument(3, "bias")] if site.node.target in _SHIFTED else []  # rms_norm has an eps there
    return _normalized(site, x, dims, [site.argument(2, "weight"), *bias])


_SHIFTED = functions("layer_norm")


@literal("layer_norm rms_norm")
def edit_normalized_shape(edit: Edit) -> None:
    """The sizes of the last axes are written out."""
    sizes = [
        int(mask.sum()) if mask is not None else size for mask, size in zip(edit.kept_in, edit.source, strict=True)
    ]
    written = edit.get(1, "normalized_shape")
    edit.set(1, "normalized_shape", tuple(sizes[len(sizes) - (1 if isinstance(written, int) else len(written)) :]))


@rule("group_norm", traits=("keeps_positions", "counts_sets"))
def group_norm(site: Site) -> Value:
    """``group_norm(input, num_groups, ...)``: as many sets of neighbouring channels. One channel to a set is an instance norm."""
    x = site.channels(site.argument(0, "input"))
    groups, channels = int(site.argument(1, "num_groups")), x.shape[1]
    label, path = site.along(x, 1)
    if 1 in x.varying and groups < channels:
        site.flow.balance(label.reshape(groups, -1), site.module)
        path = mix(path, torch.arange(groups).repeat_interleave(channels // groups))
    for entry in (site.argument(2, "weight"), site.argument(3, "bias")):
        site.ride(entry, 0, label, path)
    return site.laid(label, path, 1, x.shape).then(site.key)


@literal("group_norm")
def edit_groups(edit: Edit) -> None:
    """Where each channel is normalised alone, there are as many sets as channels."""
    kept = edit.kept_in[1]
    if kept is not None and edit.get(1, "num_groups") == edit.source[1]:
        edit.set(1, "num_groups", int(kept.sum()))
