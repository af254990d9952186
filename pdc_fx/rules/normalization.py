"""Normalisation. Over positions only (batch and instance norm) it acts on each channel alone: its entries ride along.

``y[n, c] = (x[n, c] - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c]``: equal channels stay equal if the four entries agree.
"""

from __future__ import annotations

import torch

from pdc_fx.rules.base import Site, Value, rule


def _per_channel(site: Site, entries: list[object]) -> Value:
    x = site.channels(site.argument(0, "input"))
    label, path = site.along(x, 1)
    for entry in entries:
        site.ride(entry, 0, label, path)
    return x.then(site.key)


@rule(torch.nn.functional.batch_norm, torch.nn.functional.instance_norm)
def functional_norm(site: Site) -> Value:
    """``batch_norm(input, running_mean, running_var, weight, bias, ...)``."""
    return _per_channel(
        site, [site.argument(i, name) for i, name in enumerate(("running_mean", "running_var", "weight", "bias"), 1)]
    )


@rule(torch.batch_norm, torch.instance_norm)
def aten_norm(site: Site) -> Value:
    """``batch_norm(input, weight, bias, running_mean, running_var, ...)``."""
    return _per_channel(
        site, [site.argument(i, name) for i, name in enumerate(("weight", "bias", "running_mean", "running_var"), 1)]
    )
