"""Operations over space or over one axis: each channel is treated alone and alike, as long as the axis is not the channel's.

``y[n, c] = f(x[n, c])`` with the same ``f`` for every channel: pooling, interpolation, means over space.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from pdc_fx.rules.base import Channels, Declined, Site, Value, dims_of, rule


def per_map(site: Site, spatial: int) -> Value:
    """An operation on the last ``spatial`` axes; the result may be several tensors (values and indices)."""
    x = site.channels(site.argument(0, "input"))
    axis = len(x.shape) - spatial - 1
    label, path = site.along(x, axis)
    done = site.laid(label, path, axis, x.shape).then(site.key)
    if "shape" in site.node.meta:
        return Channels(site.shape, done.label, done.path)
    return [done, done]


for _spatial in (1, 2, 3):
    _kinds = ("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool")
    rule(" ".join(f"{kind}{_spatial}d" for kind in _kinds))(partial(per_map, spatial=_spatial))
    for _kind in ("max_pool", "adaptive_max_pool", "fractional_max_pool"):
        if hasattr(torch.nn.functional, f"{_kind}{_spatial}d_with_indices"):
            rule(f"{_kind}{_spatial}d_with_indices")(partial(per_map, spatial=_spatial))


@rule("interpolate upsample")
def interpolate(site: Site) -> Value:
    """All axes behind the channel's are space."""
    return per_map(site, len(site.shape) - 2)


@rule("mean sum amax amin prod std var logsumexp norm all any max min argmax argmin median")
def reduction(site: Site) -> Value:
    """``mean(x, dim, keepdim)`` over axes along which the channel does not vary."""
    x = site.channels(site.argument(0, "input"))
    dim: Any = site.argument(1, "dim", site.node.kwargs.get("axis"))
    if dim is not None and not isinstance(dim, (int, tuple, list)):
        raise Declined("has an axis that is not an integer")
    dims = dims_of(dim, len(x.shape))
    if set(dims) & set(x.varying) or not dims:
        raise Declined("runs over all channels at once")
    keep = len(_result_shape(site)) == len(x.shape)
    label, path = x.label, x.path
    if not keep:
        label, path = label.squeeze(dims), path.squeeze(dims)
    result = Channels(_result_shape(site), label, path).then(site.key)
    return result if "shape" in site.node.meta else [result, result]


def _result_shape(site: Site) -> tuple[int, ...]:
    if "shape" in site.node.meta:
        return site.shape
    shape: tuple[int, ...] = next(iter(site.node.users)).meta["shape"]
    return shape


@rule("softmax log_softmax softmin normalize cumsum cumprod")
def along_an_axis(site: Site) -> Value:
    """The result at one position depends on all positions along ``dim``, and on nothing else."""
    x = site.channels(site.argument(0, "input"))
    default = 1 if site.node.target is torch.nn.functional.normalize else None
    dim = site.argument(2 if default else 1, "dim", default)
    if not isinstance(dim, int) or dim % len(x.shape) in x.varying:
        raise Declined("mixes all channels")
    return x.then(site.key)
