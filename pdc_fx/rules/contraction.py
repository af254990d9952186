"""Contractions: einsum and all that can be written as one (linear layers, matmul, bmm, addmm, tensordot, bilinear forms).

``y[out letters] = sum over the other letters of the product of the operands``. First the activations are multiplied, element by
element over all their letters; then the weight, if there is one, is met letter by letter:

- contracted, carries channels: the weight *reads* them: ``sum_i w[i, o] x[i]`` with ``x[i] == x[j]`` needs only ``w[i, o] + w[j, o]``;
- only the weight has it: the weight *makes* channels there (along the last such letter, where it has several);
- kept, carries channels, and none is read: they *ride*: ``y[c, o] = sum_i w[c, i, o] x[c, i]`` treats each ``c`` alone, with the
  weight's slices tied; a weight without ``c`` (one that mixes tokens) does the same to all of them;
- kept, carries channels, while others are read (groups, heads): places of the channels that are read, as in a grouped convolution.

Without a weight, channels along a kept letter ride on what has not this letter (``softmax(q k) v``); those along a contracted letter
are frozen: their sum would need to know how often each counts.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from math import prod
from typing import Any

import torch
from torch import fx

from pdc_fx.rules.base import Declined, Site, Value, weightless
from pdc_fx.rules.channels import Channels, Shape
from pdc_fx.rules.elementwise import aligned, met
from pdc_fx.rules.registry import rule
from pdc_fx.rules.weights import Weight

Letters = tuple[Hashable, ...]
Operand = tuple[Any, Letters]


def contract(site: Site, operands: Sequence[Operand], out: Letters) -> Channels:
    """``einsum`` with one letter per axis of each operand; a letter is any hashable."""
    if any(len(set(letters)) < len(letters) for _, letters in operands):
        raise Declined("takes a diagonal")
    sizes: dict[Hashable, int] = {}
    for node, letters in operands:
        for letter, size in zip(letters, node.meta["shape"], strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    weights = [(weight, letters) for node, letters in operands if (weight := site.weight(node)) is not None]
    activations = [(site.channels(node), letters) for node, letters in operands if site.weight(node) is None]
    if len(weights) > 1:
        raise Declined("multiplies parameters with each other")
    total = prod(sizes.values())
    order = list(sizes)
    product = _product(site, [_spread_out(x, letters, sizes) for x, letters in activations], tuple(sizes.values()))
    if weights and site.flow.is_frozen(product.label):
        product = Channels.fixed(product.shape)  # channels that stay anyway must not keep the weight from making some
    contracted = {order[d] for d in product.varying if order[d] not in out}
    if not weights:
        many = len(activations) > 1
        if many:
            site.flow.fixed_macs += total
        if contracted:
            raise Declined("contracts its channels with another activation" if many else "sums over all channels")
        return _picked(product, order, out).then(site.key, site.shape)
    weight, present = weights[0][0], {letter for _, own in activations for letter in own}
    # an axis of size 1 that is broadcast is no axis of the weight
    letters = tuple(
        letter if weight.shape[dim] == sizes[letter] else ("broadcast", dim) for dim, letter in enumerate(weights[0][1])
    )
    if contracted - set(letters):
        raise Declined("sums over all channels")
    if contracted or not product.varying:
        site.multiply_accumulates(weight, total // prod(weight.shape))
        return _produced(site, product, order, weight, letters, present, out)
    return _carried(site, product, order, weight, letters, out, total)


def _product(site: Site, values: list[Channels], shape: Shape) -> Channels:
    """The activations multiplied. Along an axis in which only some of those that have it carry channels (the heads of
    attention), they are places of the channels along the other axes."""
    if len(values) == 1:
        return values[0]
    narrowed = []
    for value in values:
        spoiled = {d for d in value.varying if any(d not in other.varying and other.size(d) > 1 for other in values)}
        narrowed.append(site.without(value, spoiled) if spoiled < set(value.varying) else value)
    return met(site, shape, narrowed)


def _spread_out(x: Channels, letters: Letters, sizes: dict[Hashable, int]) -> Channels:
    """``x`` with an axis for every letter, of size 1 where it has not this letter."""
    order = [letters.index(letter) for letter in sizes if letter in letters]
    missing = [d for d, letter in enumerate(sizes) if letter not in letters]
    label, path = x.label.permute(order), x.path.permute(order)
    shape = [x.shape[d] for d in order]
    same = {list(sizes).index(letters[d]) for d in x.same} | set(missing)
    for d in missing:
        label, path = label.unsqueeze(d), path.unsqueeze(d)
        shape.insert(d, 1)
    return Channels(tuple(shape), label, path, frozenset(same))


def _picked(x: Channels, order: Sequence[Hashable], out: Letters) -> Channels:
    """The axes named in ``out``; along the others nothing varies."""
    gone = [d for d, letter in enumerate(order) if letter not in out]
    rest = [letter for letter in order if letter in out]
    moved = [rest.index(letter) for letter in out]
    label, path = (t.squeeze(gone).permute(moved) for t in (x.label, x.path))
    shape = tuple(x.shape[order.index(letter)] for letter in out)
    return Channels(shape, label, path)


def _produced(
    site: Site,
    x: Channels,
    order: Sequence[Hashable],
    weight: Weight,
    letters: Letters,
    present: set[Hashable],
    out: Letters,
) -> Channels:
    """The weight reads the channels and makes new ones along the last letter that it alone has."""
    own = [dim for dim, letter in enumerate(letters) if letter in out and letter not in present]
    made = max(own, key=lambda dim: (weight.shape[dim] > 1, dim), default=None)
    result = Channels.fixed(site.shape)
    for dim, letter in enumerate(letters):
        if letter in present and letter not in out:
            at = order.index(letter)
            if at in x.varying:
                site.read(weight, dim, *site.along(x, at))
            else:
                site.hold(weight, dim, "consumer")
        elif dim == made:
            result = site.laid(*site.produce(weight, dim), out.index(letter))
        else:
            site.hold(weight, dim, "channelwise")
    return result


def _carried(
    site: Site,
    x: Channels,
    order: Sequence[Hashable],
    weight: Weight,
    letters: Letters,
    out: Letters,
    total: int,
) -> Channels:
    """No channel is summed: each is treated alone, by its own slice of the weight or by the whole of it."""
    shared = [dim for dim, letter in enumerate(letters) if letter in order and order.index(letter) in x.varying]
    if len(shared) > 1:
        raise Declined("multiplies a parameter with channels along several of its axes")
    for dim in shared:
        at = order.index(letters[dim])
        x = site.without(x, set(x.varying) - {at})
        site.ride(weight, dim, *site.along(x, at))
    for dim in range(len(letters)):
        if dim not in shared:
            site.hold(weight, dim, "channelwise")
    if shared:
        site.multiply_accumulates(weight, total // prod(weight.shape))
    else:
        site.flow.fixed_macs += total
    return _picked(x, order, out).then(site.key, site.shape)


def plus(site: Site, result: Channels, bias: Any) -> Channels:
    """``result + bias``, the bias being a parameter, an activation, a number or None."""
    if not isinstance(bias, fx.Node):
        return result
    rank = len(result.shape)
    return met(site, result.shape, [result, aligned(site, bias, rank, set(result.varying))])


@rule("linear")
def linear(site: Site) -> Value:
    """``x: (..., in)``, ``weight: (out, in)`` or ``(in,)``."""
    x, weight = site.argument(0, "input"), site.argument(1, "weight")
    rows: Letters = tuple(range(len(x.meta["shape"]) - 1))
    made: Letters = ("out",) if len(weight.meta["shape"]) > 1 else ()
    if made and site.weight(weight) is None and not site.channels(weight).varying:
        site.flow.fixed_macs += prod(site.shape) * weight.meta["shape"][1]
        raise weightless(weight, site.shape[-1])
    result = contract(site, [(x, (*rows, "in")), (weight, (*made, "in"))], (*rows, *made))
    bias, last = site.argument(2, "bias"), len(site.shape) - 1
    if (own := site.weight(bias)) is not None and own.shape == site.shape[-1:] and set(result.varying) == {last}:
        site.ride(own, 0, *site.along(result, last))  # as a convolution's: part of the channel that the weight makes
        return result
    return plus(site, result, bias)


@rule("bilinear")
def bilinear(site: Site) -> Value:
    """``a: (..., i)``, ``b: (..., j)``, ``weight: (out, i, j)``."""
    a, b, weight, bias = (site.argument(i, name) for i, name in enumerate(("input1", "input2", "weight", "bias")))
    rows: Letters = tuple(range(len(site.shape) - 1))
    operands = [(a, (*rows, "i")), (b, (*rows, "j")), (weight, ("out", "i", "j"))]
    return plus(site, contract(site, operands, (*rows, "out")), bias)


def _multiplied(site: Site, a: Any, b: Any) -> Channels:
    """``a: (..., n, k)`` or ``(k,)`` times ``b: (..., k, m)`` or ``(k,)``."""
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node):
        raise Declined("expects two tensors")
    left, right = len(a.meta["shape"]), len(b.meta["shape"])

    def batch(rank: int) -> Letters:
        return tuple(range(rank - 2))[::-1]

    rows: Letters = ("n",) if left > 1 else ()
    columns: Letters = ("m",) if right > 1 else ()
    return contract(
        site,
        [(a, (*batch(left), *rows, "k")), (b, (*batch(right), "k", *columns))],
        (*batch(max(left, right)), *rows, *columns),
    )


@rule("matmul mm bmm mv dot", torch.linalg.matmul)
def matmul(site: Site) -> Value:
    """``a @ b``."""
    a, b = site.argument(0, "input"), site.argument(1, "other", site.node.kwargs.get("mat2"))
    if site.node.target is torch.Tensor.__rmatmul__:
        a, b = b, a
    return _multiplied(site, a, b)


@rule("addmm addmv baddbmm", traits=("arithmetic",))
def matmul_added(site: Site) -> Value:
    """``addmm(c, a, b) = c + a @ b``, each term perhaps times a number."""
    c, a, b = site.argument(0, "input"), *_factors(site)
    return plus(site, _multiplied(site, a, b), c)


def _factors(site: Site) -> tuple[Any, Any]:
    named = site.node.kwargs
    return (
        site.argument(1, "mat1", named.get("mat", named.get("batch1"))),
        site.argument(2, "mat2", named.get("vec", named.get("batch2"))),
    )


@rule("tensordot")
def tensordot(site: Site) -> Value:
    """``tensordot(a, b, n)``: the last ``n`` axes of ``a`` with the first of ``b``; or two lists of axes."""
    a, b, dims = (site.argument(i, name) for i, name in enumerate(("a", "b", "dims")))
    left, right = len(a.meta["shape"]), len(b.meta["shape"])
    if isinstance(dims, int):
        dims = [list(range(left - dims, left)), list(range(dims))]
    if not isinstance(dims, (list, tuple)) or not all(isinstance(own, (list, tuple)) for own in dims):
        raise Declined("is given its axes as a tensor")
    first: list[Hashable] = [("a", d) for d in range(left)]
    second: list[Hashable] = [("b", d) for d in range(right)]
    for i, j in zip(*dims, strict=True):
        second[j] = first[i]
    out = [letter for letter in (*first, *second) if (letter in first) != (letter in second)]
    return contract(site, [(a, tuple(first)), (b, tuple(second))], tuple(out))


@rule("einsum")
def einsum(site: Site) -> Value:
    """``einsum("nchw,oc->nohw", x, w)``, also in the form ``einsum(x, [0, 1], w, [2, 1], [0, 2])``."""
    operands, subscripts, result = _subscripts(site.node.args)
    ranks = [len(node.meta["shape"]) for node in operands]
    spare = [rank - sum(token is not Ellipsis for token in own) for rank, own in zip(ranks, subscripts, strict=True)]

    def letters(tokens: Sequence[Hashable], hidden: int) -> Letters:
        wide = [[("...", i) for i in reversed(range(hidden))] if token is Ellipsis else [token] for token in tokens]
        return tuple(letter for part in wide for letter in part)

    terms = [(node, letters(own, n)) for node, own, n in zip(operands, subscripts, spare, strict=True)]
    if result is None:  # letters that occur once, in alphabetical order, behind those of the ellipsis
        counted = [token for own in subscripts for token in own]
        once = sorted((t for t in counted if t is not Ellipsis and counted.count(t) == 1), key=str)
        result = [Ellipsis, *once]
    return contract(site, terms, letters(result, max(spare)))


def _subscripts(args: tuple[Any, ...]) -> tuple[list[fx.Node], list[list[Hashable]], list[Hashable] | None]:
    """Operands, the tokens of each, and those of the result where they are written out."""
    if not isinstance(args[0], str):
        given = [list(own) for own in args[1::2]]
        return list(args[: 2 * len(given) : 2]), given, list(args[-1]) if len(args) % 2 else None
    left, arrow, right = args[0].replace(" ", "").partition("->")
    nodes = list(args[1:]) if isinstance(args[1], fx.Node) else list(args[1])
    return nodes, [_tokens(own) for own in left.split(",")], _tokens(right) if arrow else None


def _tokens(text: str) -> list[Hashable]:
    """
    >>> _tokens("b...c")
    ['b', Ellipsis, 'c']
    """
    return [Ellipsis if token == "." else token for token in text.replace("...", ".")]


@rule("scaled_dot_product_attention", traits=("arithmetic",))
def attention(site: Site) -> Value:
    """``softmax(q k^T) v``, each ``(..., tokens, channels)``: every channel of ``v`` is averaged over the tokens by itself.

    The averages differ from head to head, hence the i-th channels of all heads are one channel with a place in each.
    """
    q, k, v = (site.argument(i, name) for i, name in enumerate(("query", "key", "value")))
    site.freeze([q, k, site.argument(3, "attn_mask")], "decides where attention looks")
    label, path = site.along(site.channels(v), -1)
    rows = prod(site.shape[:-1]) * v.meta["shape"][-2]
    site.flow.fixed_macs += rows * (q.meta["shape"][-1] + v.meta["shape"][-1])
    return site.laid(label, path, len(site.shape) - 1).then(site.key)


@rule("multi_head_attention_forward")
def multi_head_attention(site: Site) -> Value:
    """Queries, keys and values, each ``(tokens, .., channels)``, are made inside, from parts of one parameter: counted, and declined."""
    query, key, value = (site.argument(i, name).meta["shape"] for i, name in enumerate(("query", "key", "value")))
    width = query[-1]
    made = 2 * prod(query) + prod(key) + prod(value)  # the queries, the result, the keys and the values
    site.flow.fixed_macs += width * made + 2 * prod(query) * key[0]
    raise Declined("couples its channels in attention heads")
