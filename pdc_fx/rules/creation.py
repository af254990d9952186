"""Tensors made in the forward pass, which read no values of the tensors that are handed to them.

What repeats one value (zeros, ones) has no channel and may be laid beside channels or under them. What is made in the likeness of a
tensor has as many channels as this one, all alike: ``zeros_like(x)`` shrinks with ``x``.
"""

from __future__ import annotations

import torch
from torch import fx

from pdc_fx.rules.base import Site, Value, fixed_result
from pdc_fx.rules.channels import Channels
from pdc_fx.rules.elementwise import same_values
from pdc_fx.rules.registry import rule

_SEQUENCES = """
arange range linspace logspace eye from_numpy tril_indices triu_indices hann_window hamming_window
blackman_window bartlett_window kaiser_window
"""


@rule("zeros ones empty scalar_tensor new_zeros new_ones new_empty", traits=("repeats",))
@rule("full new_full", traits=("repeats", "fills"))
def one_value(site: Site) -> Value:
    """The same value everywhere."""
    site.freeze([*site.node.args[1:], *site.node.kwargs.values()], "fills a tensor")
    constant = Channels.fixed(site.shape, same=range(len(site.shape)))
    return constant.then(site.key)


@rule("zeros_like ones_like empty_like", traits=("repeats",))
@rule("full_like", traits=("repeats", "fills"))
def one_value_like(site: Site) -> Value:
    """The same value everywhere, on as many channels as ``x`` has."""
    site.freeze([*site.node.args[1:], *site.node.kwargs.values()], "fills a tensor")
    x = site.value(site.argument(0, "input"))
    constant = Channels.fixed(site.shape, same=range(len(site.shape))).then(site.key)
    if not isinstance(x, Channels) or not x.varying:
        return constant
    label = x.label
    return Channels(site.shape, label, constant.path.expand(label.shape), constant.same)


@rule("tensor as_tensor asarray", traits=("arithmetic",))
def made_of(site: Site) -> Value:
    """The values of one tensor, where it is handed one; else those that are written into the program."""
    return same_values(site) if isinstance(site.argument(0, "data"), fx.Node) else sequence(site)


@rule("new_tensor", traits=("arithmetic",))
@rule(*(getattr(torch, name) for name in _SEQUENCES.split()))
def sequence(site: Site) -> Value:
    """Values that are written into the program; tensors among them become part of one that has no channels."""
    site.freeze([list(site.node.args), dict(site.node.kwargs)], "becomes part of a constant")
    return fixed_result(site.node)


@rule("meshgrid cartesian_prod combinations")
def grid(site: Site) -> Value:
    """Coordinates."""
    site.freeze(list(site.node.args), "spans a grid")
    return fixed_result(site.node)
