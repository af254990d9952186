"""Rules that are wrong on purpose: each must be caught, by the values inside the network or by the certificate.

The table says how: ``activations`` where two positions that the wrong rule takes to be equal are not, ``certificate`` where only the
compact model gives it away (a wrong reader, a mean that the merge shifts), ``trial`` where the analysis itself finds, by a trial merge, that
what the rule says does not come out, and freezes it, ``refused`` where the merged module does not even run.
"""

# ruff: noqa: E501 - a table: one row an entry

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from activations import differences_inside_clusters
from samples import between, conv, flattened, joined_parts, scale, two
from torch import nn

from pdc_fx import analyze
from pdc_fx.errors import PdcError
from pdc_fx.passes.check import randomize_statistics
from pdc_fx.passes.compare import compare
from pdc_fx.passes.random_plans import random_halves
from pdc_fx.passes.rewrite import merge_channels
from pdc_fx.passes.tie import Tying
from pdc_fx.rules import registry
from pdc_fx.rules.base import Rule, Site, Value
from pdc_fx.rules.channels import Channels, mix
from pdc_fx.rules.registry import rule, rule_for


def verdict(model: nn.Module, inputs: torch.Tensor, seeds: range = range(3)) -> str:
    """How a fault shows itself over a few random partitions, or ``passed``."""
    model = model.double().requires_grad_(False)
    randomize_statistics(model, 0)
    groups = analyze(model, inputs)
    if not groups.groups:
        return "nothing to merge"
    verdicts = [_once(model, random_halves(groups, seed), inputs) for seed in seeds]
    return next((v for v in ("activations", "certificate", "refused") if v in verdicts), "passed")


def _once(model: nn.Module, plan: object, inputs: torch.Tensor) -> str:
    tied = copy.deepcopy(model)
    try:
        Tying(tied, plan, "hard").snap()  # type: ignore[arg-type]
        if differences_inside_clusters(tied, plan, inputs).differences:  # type: ignore[arg-type]
            return "activations"
        compact = merge_channels(tied, plan, inputs)  # type: ignore[arg-type]
        return "passed" if compare(tied, compact, inputs, tolerance=1e-9).passed else "certificate"
    except (PdcError, RuntimeError, IndexError):
        return "refused"


# ------------------------------------------------------------------------------------------------ the wrong rules


def x_of(site: Site) -> Channels:
    return site.channels(site.argument(0, "input"))


def elementwise(site: Site) -> Value:
    """Takes any function for an element-wise one."""
    return x_of(site).then(site.key)


def untouched(site: Site) -> Value:
    """Forgets that anything was done."""
    return x_of(site)


def harmless(site: Site) -> Value:
    """A result without channels, although it was made of them."""
    return Channels.fixed(site.shape)


def first_operand(site: Site) -> Value:
    """The second operand is not coupled to the first."""
    return x_of(site).then(site.key)


def cat_backwards(site: Site) -> Value:
    parts = [site.channels(node) for node in site.argument(0, "tensors")][::-1]
    return Channels(site.shape, torch.cat([p.label for p in parts], 1), torch.cat([p.path for p in parts], 1))


def from_the_start(site: Site) -> Value:
    """A slice, wherever it begins."""
    x, size = x_of(site), site.shape[1]
    return Channels(site.shape, x.label[:, :size], x.path[:, :size])


def parts_from_the_start(site: Site) -> Value:
    x, shapes = x_of(site), [user.meta["shape"] for user in site.node.users]
    return [Channels(s, x.label[:, : s[1]], x.path[:, : s[1]]) for s in shapes]


def norm_without(missing: str) -> Rule:
    def wrong(site: Site) -> Value:
        x = x_of(site)
        label, path = site.along(x, 1)
        for i, name in enumerate(("running_mean", "running_var", "weight", "bias"), 1):
            if name != missing:
                site.ride(site.argument(i, name), 0, label, path)
        return x.then(site.key)

    return wrong


def pad_on_one_side(site: Site) -> Value:
    """All new channels are taken to stand behind the old ones."""
    x, more = x_of(site), site.shape[1] - x_of(site).label.shape[1]
    label = site.flow.mint(more, site.module).reshape(1, more, 1, 1)
    path = mix(torch.zeros_like(label), site.key)
    return Channels(site.shape, torch.cat([x.label, label], 1), torch.cat([x.path, path], 1))


def dense(*, read: bool = True, bias: bool = True, ordered: bool = True) -> Rule:
    """A linear layer or full convolution with one thing missing."""

    def wrong(site: Site) -> Value:
        weight = site.weight(site.argument(1, "weight"))
        assert weight is not None
        axis = 1 if len(weight.shape) > 2 else len(site.shape) - 1
        label, path = site.along(x_of(site), axis)
        if read:
            site.read(weight, 1, *((label, path) if ordered else (label.flip(0), path.flip(0))))
        label, path = site.produce(weight, 0)
        if bias:
            site.ride(site.argument(2, "bias"), 0, label, path)
        return site.laid(label, path, axis)

    return wrong


def depthwise_untied(site: Site) -> Value:
    """Depthwise filters are left free."""
    if site.argument(6, "groups", 1) == 1:
        return RIGHT_CONVOLUTION(site)
    x = x_of(site)
    label, path = site.along(x, 1)
    site.ride(site.argument(2, "bias"), 0, label, path)
    return x.then(site.key)


def groups_apart(site: Site) -> Value:
    """Grouped convolution: outputs of all groups are independent, and only the first group reads."""
    weight = site.weight(site.argument(1, "weight"))
    assert weight is not None
    label, path = site.along(x_of(site), 1)
    size = weight.shape[1]
    site.read(weight, 1, label[:size], path[:size])
    label, path = site.produce(weight, 0)
    site.ride(site.argument(2, "bias"), 0, label, path)
    return site.laid(label, path, 1)


def channels_last_flatten(site: Site) -> Value:
    """A flatten taken in the wrong order."""
    x = x_of(site)
    space = site.shape[1] // x.label.shape[1]
    label = x.label.reshape(1, 1, -1).expand(1, space, -1).reshape(1, -1)
    path = mix(x.path.reshape(1, 1, -1), torch.arange(space).reshape(1, -1, 1)).reshape(1, -1)
    return Channels(site.shape, label, path)


def gate_without_trace(site: Site) -> Value:
    """Which gate it was does not go into the path."""
    return replace(x_of(site), path=mix(x_of(site).path, 17))


def whole_gate(site: Site) -> Value:
    """A gate by channel is taken for one number."""
    return x_of(site).then(site.key)


RIGHT_CONVOLUTION = rule_for(F.conv2d)
assert RIGHT_CONVOLUTION is not None
Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Wrong:
    """What is replaced by what, a network that shows it, and how it is caught."""

    name: str
    targets: object
    rule: Rule
    build: Build
    how: str = "activations"

    def __str__(self) -> str:
        return self.name


def halves(f: Callable[[nn.Module, torch.Tensor], torch.Tensor], **layers: nn.Module | nn.Parameter) -> Build:
    """One half of the channels is treated by ``f``, the other is not."""
    return between(lambda m, x: torch.cat([f(m, x[:, :4]), x[:, 4:]], 1), **layers)


def widened(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return F.pad(x, (0, 0, 0, 0, 2, 2))


WRONG = (
    Wrong("softmax_is_elementwise", "softmax", elementwise, between(lambda m, x: x.softmax(1)), "certificate"),
    Wrong("cumsum_is_elementwise", "cumsum", elementwise, between(lambda m, x: x.cumsum(1))),
    Wrong("flip_ignores_channels", "flip", elementwise, between(lambda m, x: torch.cat([x[:, :4].relu(), x[:, 4:]], 1).flip(1))),
    Wrong("mean_over_channels_is_harmless", "mean", harmless, between(lambda m, x: x * x.mean(1, keepdim=True)), "certificate"),
    Wrong("roll_ignores_channels", "roll", elementwise, between(lambda m, x: x + x.roll(1, 1))),
    Wrong("cat_backwards", "cat", cat_backwards, between(lambda m, x: torch.cat([x, m.a(x)], 1), a=conv(8, 6), head=14)),
    Wrong("slice_from_the_start", torch.Tensor.__getitem__, from_the_start, between(lambda m, x: m.a(x[:, 4:]) + m.b(x), a=conv(4, 8), b=conv(8, 8)), "trial"),
    Wrong("parts_from_the_start", "chunk", parts_from_the_start, between(lambda m, x: joined_parts(*two(x.chunk(2, 1)))), "trial"),
    Wrong("norm_without_variance", torch.nn.functional.batch_norm, norm_without("running_var"), between(lambda m, x: m.a(x), a=nn.BatchNorm2d(8))),
    Wrong("norm_without_bias", torch.nn.functional.batch_norm, norm_without("bias"), between(lambda m, x: m.a(x), a=nn.BatchNorm2d(8))),
    Wrong("prelu_slopes_untied", "prelu", elementwise, between(lambda m, x: m.a(x), a=nn.PReLU(8))),
    Wrong("depthwise_filters_untied", "conv2d", depthwise_untied, between(lambda m, x: m.a(x), a=conv(8, 8, groups=8))),
    Wrong("grouped_without_bundling", "conv2d", groups_apart, between(lambda m, x: m.a(x), a=conv(8, 8, groups=2))),
    Wrong("pad_on_one_side", "pad", pad_on_one_side, between(lambda m, x: widened(m, x) + m.a(x), a=conv(8, 12), head=12)),
    Wrong("add_does_not_couple", "add", first_operand, between(lambda m, x: x + m.a(x), a=conv(8, 8))),
    Wrong("gate_by_channel_is_a_number", "mul", whole_gate, between(lambda m, x: x * m.g, g=scale(8, 1, 1))),
    Wrong("linear_bias_untied", "linear", dense(bias=False), lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4))),
    Wrong("convolution_reads_backwards", "conv2d", dense(ordered=False), between(lambda m, x: x), "certificate"),
    Wrong("convolution_does_not_read", "conv2d", dense(read=False), between(lambda m, x: x), "refused"),
    Wrong("flatten_in_the_wrong_order", "flatten", channels_last_flatten, flattened(lambda x: torch.cat([x[:, :4].relu(), x[:, 4:]], 1).flatten(1), 512)),
    Wrong("activation_leaves_no_trace", "relu", untouched, halves(lambda m, x: x.relu())),
    Wrong("flip_leaves_no_trace", "flip", untouched, halves(lambda m, x: x.flip(3))),
    Wrong("gate_leaves_no_trace", "mul", gate_without_trace, between(lambda m, x: torch.cat([x[:, :4] * m.a(x).sigmoid(), x[:, 4:] * m.b(x).sigmoid()], 1), a=conv(8, 1), b=conv(8, 1))),
    Wrong("pool_leaves_no_trace", "max_pool2d", untouched, halves(lambda m, x: F.max_pool2d(x, 3, 1, 1))),
)  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_a_wrong_rule_is_caught(wrong: Wrong, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = wrong.build()
    assert verdict(copy.deepcopy(model), inputs) in ("passed", "nothing to merge"), "the right rule must not be caught"
    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    rule(wrong.targets)(wrong.rule)
    if wrong.how == "trial":
        assert verdict(copy.deepcopy(model), inputs) in ("passed", "nothing to merge")
        assert any("holds sizes" in f.reason for f in analyze(model.double(), inputs).frozen)
    else:
        assert verdict(model, inputs) == wrong.how
