"""Operations over space or over one axis: each channel is treated alone and alike, as long as the axis is not the channel's.

``y[n, c] = f(x[n, c])`` with the same ``f`` for every channel: pooling, interpolation, means over space.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import fx

from pdc_fx.rules.base import Declined, Site, Value
from pdc_fx.rules.channels import Channels
from pdc_fx.rules.elementwise import combine, met
from pdc_fx.rules.normalization import averaged
from pdc_fx.rules.registry import functions, rule


def per_map(site: Site, spatial: int) -> Value:
    """An operation on the last ``spatial`` axes; the result may be several tensors (values and indices)."""
    x = site.channels(site.argument(0, "input"))
    axis = len(x.shape) - spatial - 1
    done = _along(site, x, axis).then(site.key, _result_shape(site))
    return done if "shape" in site.node.meta else [done, done.then(1)]


def _along(site: Site, x: Channels, axis: int) -> Channels:
    """One channel for each position along ``axis``, whatever varies beside it being its places."""
    return site.laid(*site.along(x, axis), axis, x.shape)


def unpool(site: Site, spatial: int) -> Value:
    """``max_unpool(x, indices, ...)``: the values of each map go where indices of its own say."""
    values = [site.channels(site.argument(i, name)) for i, name in enumerate(("input", "indices"))]
    shape = values[0].shape
    return met(site, shape, [_along(site, x, len(shape) - spatial - 1) for x in values]).then(site.key, site.shape)


for _spatial in (1, 2, 3):
    _kinds = ("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool")
    rule(" ".join(f"{kind}{_spatial}d" for kind in _kinds))(partial(per_map, spatial=_spatial))
    rule(f"max_unpool{_spatial}d")(partial(unpool, spatial=_spatial))
    for _kind in ("max_pool", "adaptive_max_pool"):
        if hasattr(torch.nn.functional, f"{_kind}{_spatial}d_with_indices"):
            rule(f"{_kind}{_spatial}d_with_indices")(partial(per_map, spatial=_spatial))


@rule("interpolate upsample")
def interpolate(site: Site) -> Value:
    """All axes behind the channel's are space."""
    return per_map(site, len(site.shape) - 2)


_NAMED_ONLY = functions("aminmax")
_BINARY = functions("max min")
_SECOND = [*functions("norm"), torch.linalg.vector_norm, torch.linalg.norm]


@rule("mean sum amax amin prod std var logsumexp all any max min argmax argmin median")
@rule(
    "std_mean var_mean aminmax nanmean nansum nanmedian count_nonzero mode norm",
    torch.linalg.vector_norm,
    torch.linalg.norm,
)
def reduction(site: Site) -> Value:
    """``mean(x, dim, keepdim)`` over axes along which the channel does not vary; ``max(a, b)`` is element-wise."""
    if site.node.target in _BINARY and isinstance(site.argument(1, "other"), fx.Node):
        return combine(site, [site.argument(0, "input"), site.argument(1, "other")])
    x = site.channels(site.argument(0, "input"))
    place = 2 if site.node.target in _SECOND else len(site.node.args) if site.node.target in _NAMED_ONLY else 1
    dim: Any = site.argument(place, "dim")
    if isinstance(dim, bool):  # ``var(x, unbiased)``
        dim = None
    if dim is not None and not isinstance(dim, (int, tuple, list)):
        raise Declined("has an axis that is not an integer")
    dims = _dims_of(dim, len(x.shape))
    if not dims:
        raise Declined("runs over all channels at once")
    if set(x.varying) <= set(dims):
        x = _over_channels(site, x, dims)
    x = site.without(x, dims)  # versions of a channel, side by side along an axis of their own
    keep = len(_result_shape(site)) == len(x.shape)
    label, path = x.label, x.path
    if not keep:
        label, path = label.squeeze(dims), path.squeeze(dims)
    result = Channels(_result_shape(site), label, path).then(site.key)
    return result if "shape" in site.node.meta else [result, result.then(1)]


_AVERAGES = functions("mean")
_SPREADS = functions("var std var_mean std_mean")
_EXTREMES = functions("amax amin max min any all")


def _over_channels(site: Site, x: Channels, dims: tuple[int, ...]) -> Channels:
    """One value for all channels: a mean stays what it is if clusters are of one size, a maximum in any case."""
    if site.node.target in _AVERAGES or (site.node.target in _SPREADS and _is_biased(site)):
        averaged(site, x, dims)
    elif x.varying and (site.node.target not in _EXTREMES or _place_is_used(site)):
        raise Declined("runs over all channels at once")
    return Channels.fixed(x.shape, x.same)


def _is_biased(site: Site) -> bool:
    """Whether a variance is the mean of squares, not divided by one less."""
    unbiased = site.argument(2, "unbiased")
    return not (site.node.kwargs.get("correction", 1) if unbiased is None else unbiased)


def _place_is_used(site: Site) -> bool:
    """Whether the index of a maximum, beside its value, is used."""
    return any(user.target is operator.getitem and user.args[1] == 1 and user.users for user in site.node.users)


def _result_shape(site: Site) -> tuple[int, ...]:
    if "shape" in site.node.meta:
        return site.shape
    shape: tuple[int, ...] = next(iter(site.node.users)).meta["shape"]
    return shape


@rule("softmax log_softmax softmin normalize cumsum cumprod logcumsumexp sort argsort msort topk cummax cummin diff")
def along_an_axis(site: Site) -> Value:
    """The result at one position depends on all positions along ``dim``, and on nothing else."""
    if len(site.node.all_input_nodes) > 1:
        raise Declined("takes several tensors")
    x = site.channels(site.argument(0, "input"))
    place, default = _AXES.get(site.node.target, (1, None))
    dim = site.argument(place, "dim", default)
    dims = [d % len(x.shape) for d in (dim if isinstance(dim, (tuple, list)) else [dim]) if isinstance(d, int)]
    if not dims or (x.varying and set(x.varying) <= set(dims)):
        raise Declined("mixes all channels")
    x = site.without(x, dims)
    done = x.then(site.key, _result_shape(site))
    return done if "shape" in site.node.meta else [done, done.then(1)]


_AXES: dict[Any, tuple[int, int | None]] = {
    torch.nn.functional.normalize: (2, 1),
    **dict.fromkeys(functions("sort argsort"), (1, -1)),
    **dict.fromkeys(functions("topk diff"), (2, -1)),
    **dict.fromkeys(functions("msort"), (9, 0)),
}


@rule("grid_sample")
def grid_sample(site: Site) -> Value:
    """``grid_sample(x, grid)``: all channels are read at the positions that the grid holds."""
    site.freeze(site.argument(1, "grid"), "decides where to sample")
    x = site.channels(site.argument(0, "input"))
    return _along(site, x, 1).then(site.key, site.shape)


@rule("affine_grid")
def affine_grid(site: Site) -> Value:
    """Positions to sample at."""
    site.freeze(site.argument(0, "theta"), "decides where to sample")
    return Channels.fixed(site.shape)


@rule("torchvision.roi_align", "torchvision.roi_pool")
def regions(site: Site) -> Value:
    """``roi_align(x, boxes, ...)``: the regions of all maps, along the first axis."""
    site.freeze(site.node.args[1], "decides where to look")
    label, path = site.along(site.channels(site.node.args[0]), 1)
    done = site.laid(label, path, 1, _result_shape(site)).then(site.key)
    return done if "shape" in site.node.meta else [done, done.then(1)]


def _dims_of(argument: Any, rank: int) -> tuple[int, ...]:
    """An axis argument (None for all, an integer, or several) as sorted non-negative axes."""
    if argument is None:
        return tuple(range(rank))
    dims: Sequence[int] = [argument] if isinstance(argument, int) else list(argument)
    return tuple(sorted({d % rank for d in dims})) if rank else ()
