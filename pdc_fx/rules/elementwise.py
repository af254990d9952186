"""Element-wise operations: channels that meet are one channel.

``y[n, c, ...] = f(a[n, c, ...], b[n, c, ...])`` equals ``y[n, c', ...]`` whenever ``a`` and ``b`` do so, hence the labels of all
operands are unified position by position. An operand that is broadcast along the channel axis (a spatial gate, a scalar)
gives every channel the same and couples nothing; which gate it was goes into the path.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor, fx

from pdc_fx.rules.base import Declined, Site, Value
from pdc_fx.rules.channels import Channels, Shape, mix
from pdc_fx.rules.registry import getter, rule

UNARY = """
relu relu6 leaky_relu elu selu celu gelu silu mish hardswish hardsigmoid hardtanh sigmoid logsigmoid softplus softsign tanh
tanhshrink softshrink hardshrink threshold abs neg sign exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square sin cos tan
asin acos atan sinh cosh asinh acosh atanh erf erfc floor ceil round trunc frac reciprocal positive nan_to_num isnan isinf
isfinite logical_not bitwise_not invert clamp clamp_min clamp_max clip zero_ bool byte char short int long
negative absolute fix sgn logit sinc erfinv arcsin arccos arctan arcsinh arccosh arctanh
"""
SAME = "detach to type float double half bfloat16 type_as cpu cuda"
BINARY = """
add sub rsub mul div true_divide floor_divide floordiv truediv pow remainder fmod maximum minimum fmax fmin atan2 eq ne lt le gt ge
logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor where lerp addcmul addcdiv masked_fill and or xor copy_ fill
subtract multiply divide arctan2 not_equal less less_equal greater greater_equal xlogy logaddexp logaddexp2 hypot copysign heaviside
"""


@rule(UNARY, traits=("keeps_positions", "bounds"))
def unary(site: Site) -> Value:
    """``f(x)``; a bound that is a tensor (``clamp(x, min=y)``) is an operand like any other."""
    if len(site.node.all_input_nodes) > 1:
        return nary(site)
    return site.channels(site.argument(0, "input")).then(site.key)


@rule(SAME, getter("data"), traits=("keeps_positions",))
@rule("contiguous clone", moves=True, traits=("keeps_positions",))
def same_values(site: Site) -> Value:
    """A copy, a cast, another device or layout: a parameter stays one."""
    return site.weight(site.argument(0, "input")) or site.channels(site.argument(0, "input")).then(site.key)


@rule(
    "dropout alpha_dropout feature_alpha_dropout dropout1d dropout2d dropout3d rrelu",
    traits=("keeps_positions", "random"),
)
def random_in_training(site: Site) -> Value:
    """The identity in eval mode."""
    if site.node.kwargs.get("training", site.node.args[2:3] == (True,)):
        raise Declined("draws random numbers although the model is in eval mode")
    return unary(site)


@rule(BINARY, traits=("keeps_positions", "arithmetic"))
def nary(site: Site) -> Value:
    """``f(a, b, ...)`` with broadcasting."""
    return combine(site, [a for a in (*site.node.args, *site.node.kwargs.values()) if isinstance(a, fx.Node)])


@rule("prelu", traits=("keeps_positions",))
def prelu(site: Site) -> Value:
    """``max(0, x) + slope[c] * min(0, x)``; one slope in all, or one per channel."""
    x = site.channels(site.argument(0, "input"))
    slope = site.argument(1, "weight")
    if (weight := site.weight(slope)) is None or weight.shape != (1,):
        label, path = site.along(x, 1)
        site.ride(slope, 0, label, path)
    return x.then(site.key)


def combine(site: Site, nodes: list[fx.Node]) -> Channels:
    """The element-wise combination of tensors that broadcast against each other."""
    rank = len(site.shape)
    known = [lifted(v, rank - len(v.shape)) for v in map(site.value, nodes) if isinstance(v, Channels)]
    varying = {d for value in known for d in value.varying}
    branches = _branches(site, known)
    return met(site, site.shape, [aligned(site, node, rank, varying, branches) for node in nodes])


def met(site: Site, shape: Shape, operands: list[Channels]) -> Channels:
    """The element-wise combination of values that have as many axes as the result."""
    if any(not value.label.numel() or 0 in (value.shape[d] for d in value.varying) for value in operands):
        raise Declined("works on an empty tensor")
    carriers = [set(value.varying) for value in operands if value.varying]
    common = set.intersection(*carriers) if carriers else set()
    # channels that differ only along axes along which others do not vary are versions of one channel
    if common - _branches(site, operands):
        operands = [site.without(value, set(value.varying) - common) for value in operands]
    varying = {d for value in operands for d in value.varying}
    sizes = [size if d in varying else 1 for d, size in enumerate(shape)]
    joined: Tensor | None = None
    path = torch.tensor(site.key)
    for value in operands:
        differing = {d for d in varying if value.size(d) > 1}
        if set(value.varying) == varying and (varying or not value.same.issuperset(range(len(shape)))):
            if joined is not None:
                _meet(site, joined, value.label)
                if joined.shape == value.label.shape:
                    site.flow.meet((joined, path.expand_as(joined)), (value.label, value.path))
            joined = value.label if joined is None else joined
            path = mix(path, value.path)
            continue
        # not every channel has a position of its own here: a gate, a scalar, a constant
        site.flow.freeze(value.label, "is shared by channels that vary in another direction", site.module)
        # along these it tells positions apart, and no channels that lie along others
        places = differing - set(value.varying)
        for other in operands:
            if places and other.varying and places.issuperset(other.varying):
                site.flow.freeze(
                    other.label, "is combined with values that differ by channel and cannot shrink", site.module
                )
        path = mix(path, value.path, value.label)
        for d in sorted(places):
            path = mix(path, torch.arange(shape[d]).reshape([-1 if e == d else 1 for e in range(len(shape))]))
    if joined is None:
        return Channels.fixed(shape)
    return Channels(shape, joined.expand(sizes), path.expand(sizes))


def _branches(site: Site, operands: list[Channels]) -> set[int]:
    """Axes along which channels of several layers lie side by side, as ``stack`` lays them, beside an axis of each layer's own.

    Some of them may follow each other, as the tokens of an image do behind one that was learnt.
    """
    found = set()
    for value in operands:
        if len(value.varying) > 1:
            maker = site.flow.makers_of(value.label)
            apart = {
                dim
                for dim in value.varying
                if bool(((maker.diff(dim=dim) != 0) | (value.label.diff(dim=dim) == 0)).all())
            }
            found |= apart if apart < set(value.varying) else set()
    return found


def _meet(site: Site, a: Tensor, b: Tensor) -> None:
    """Channels that meet are one. Where two parts of what one layer made meet (``chunk`` and multiply), each is a place of it."""
    both = torch.cat([a.reshape(-1), b.reshape(-1)])
    if a.numel() == b.numel() and site.flow.made_together(both) and not bool((both.sort().values.diff() == 0).any()):
        site.flow.bundle(torch.stack([a.reshape(-1), b.reshape(-1)], 1), site.module)
    else:
        site.flow.unify(a, b, site.module, "is combined with")


def aligned(site: Site, node: fx.Node, rank: int, varying: Collection[int], beside: Collection[int] = ()) -> Channels:
    """The operand with as many axes as the result; a parameter takes part along the axis in which channels vary."""
    missing = rank - len(node.meta["shape"])
    inner, aside = ({d - missing for d in axes} for axes in (varying, beside))
    return lifted(site.meeting(node, inner, aside), missing)


def lifted(value: Channels, missing: int) -> Channels:
    """The value with ``missing`` axes of size 1 in front, as broadcasting adds them."""
    ones = (1,) * missing
    return Channels(
        ones + value.shape,
        value.label.reshape(ones + value.label.shape),
        value.path.reshape(ones + value.path.shape),
        frozenset({*range(missing), *(d + missing for d in value.same)}),
    )
