"""What ordinary models do beside convolutions: they keep state, draw numbers, change their inputs, compute with sizes, hold masks.

Each is tied and rewritten, and must give what the tied model gives, on the example and beyond it; nothing of the user's changes.
"""

from __future__ import annotations

import copy
import functools
import math
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helper
import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import (
    adaptive_avg_pool2d,
    dropout,
    group_norm,
    interpolate,
    layer_norm,
    relu,
    scaled_dot_product_attention,
    unfold,
)
from torch.nn.utils import prune, weight_norm
from torch.utils._pytree import register_pytree_node, tree_leaves
from torchvision.ops import roi_align

import pdc_fx
from pdc_fx.errors import ExactnessError, PdcError, RewriteError, TraceError
from pdc_fx.passes import numbers, surgery
from pdc_fx.passes.compare import compare, difference
from pdc_fx.passes.random_plans import random_widths
from pdc_fx.trace import Inputs, as_arguments, fresh, named_outputs


class Net(nn.Module):
    """Two layers, something between them and the head, and a head in which the number of channels is written out where asked for."""

    def __init__(self, between: Callable[[Net, Tensor], Tensor] = lambda _, x: x, *, written: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.f = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 5)
        self.between, self.written = between, written

    def features(self, x: Tensor) -> Tensor:
        return self.between(self, relu(self.b(relu(self.a(x)))))

    def forward(self, x: Any) -> Tensor:
        pooled = adaptive_avg_pool2d(self.features(x), 1)
        return self.f(pooled.view(-1, 16) if self.written else pooled.flatten(1))


def holding(net: Net, **buffers: Tensor) -> Net:
    for name, buffer in buffers.items():
        net.register_buffer(name, buffer)
    return net


class Spectral(Net):
    """Multiplies a spectrum by complex numbers that it has learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(8, 5, dtype=torch.cfloat))

    def features(self, x: Tensor) -> Tensor:
        return relu(torch.fft.irfft2(torch.fft.rfft2(super().features(x)) * self.filter, s=(8, 8)))


class InPlace(Net):
    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        x /= 0.25
        return super().forward(x)


class Popping(Net):
    def forward(self, x: dict[str, Tensor]) -> Tensor:
        return super().forward(x.pop("image"))


class Loud(Net):
    """Of the logarithm of what must be positive."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.log(x + 1e-5))


class Barred(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).masked_fill(torch.arange(5) == 2, float("-inf"))


class Counting(Net):
    """Keeps a running mean, in place or by a new tensor, and looks at it."""

    def __init__(self, *, anew: bool) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))
        self.anew = anew

    def forward(self, x: Tensor) -> Tensor:
        now = 0.9 * self.mean + x.mean() + 1
        if self.anew:
            self.mean = now
        else:
            self.mean.copy_(now)
        return super().forward(x * self.mean)


class Keeping(Net):
    """Keeps a map of the last forward pass, as Grad-CAM does."""

    def features(self, x: Tensor) -> Tensor:
        self.last = {"maps": [super().features(x)]}
        return self.last["maps"][0]


class Checked(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float() if x.dtype != torch.float32 else x)


class Boxed(Net):
    """Looks at regions; a box names its image by number, and one out of range would be read out of bounds."""

    def forward(self, x: Tensor, boxes: Tensor) -> Tensor:
        return self.f(roi_align(self.features(x), boxes, 2).mean((2, 3)))


class Attending(Net):
    """Scales by a number that is computed from the width of the values, which is not that of queries and keys."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        v = self.features(x)
        q, k, v = (t.flatten(2).mT.unsqueeze(1) for t in (self.q(x), self.k(x), v))
        return self.f(scaled_dot_product_attention(q, k, v, scale=v.shape[-1] ** -0.5).squeeze(1).mean(1))


def sharing() -> Net:
    kernel = torch.ones(16, 1, 3, 3) / 9

    class Blur(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kernel", kernel)

        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.conv2d(x, self.kernel, padding=1, groups=x.shape[1])

    net = Net(lambda net, x: net.two(net.one(x)))
    net.one, net.two = Blur(), Blur()
    return net


def reparametrised(how: Callable[[nn.Module], Any]) -> Net:
    net = Net()
    with warnings.catch_warnings(action="ignore", category=FutureWarning):
        how(net.a)
    net(torch.zeros(1, 3, 8, 8))
    return net


class Sequence(Net):
    """Attention under a mask that is added, and that is infinite where nothing may be seen."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q = self.features(x).flatten(2).mT.unsqueeze(1)
        return self.f(scaled_dot_product_attention(q, q, relu(q), attn_mask=mask).mean((1, 2)))


X = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(16) % 3 > 0).view(1, -1, 1, 1)
BOXES = torch.tensor([[0.0, 1, 1, 6, 6], [0.0, 0, 2, 7, 5]])

MODELS: dict[str, tuple[Callable[[], nn.Module], Inputs]] = {
    "copied": (lambda: Net(lambda _, x: copy.copy(x)), X),
    "complex_parameter": (Spectral, X),
    "complex_buffer": (
        lambda: holding(Net(lambda net, x: relu(torch.fft.ifft2(torch.fft.fft2(x) * net.turn).real)), turn=torch.polar(
            torch.ones(8, 8), torch.rand(8, 8)
        )),
        X,
    ),
    "logarithm": (Loud, X.abs()),
    "logarithm_of_zeros": (Loud, torch.zeros(1, 3, 8, 8)),
    "minus_infinity": (Barred, X),
    "input_changed": (InPlace, X),
    "argument_popped": (Popping, ({"image": X},)),
    "mask_of_bools": (lambda: holding(Net(lambda net, x: x * net.mask), mask=MASK), X),
    "mask_of_integers": (lambda: holding(Net(lambda net, x: x * net.mask), mask=MASK.long()), X),
    "mask_that_chooses": (lambda: holding(Net(lambda net, x: torch.where(net.mask, x, 0.0)), mask=MASK), X),
    "mask_of_equals": (lambda: holding(Net(lambda net, x: x * net.mask), mask=torch.ones_like(MASK)), X),
    "buffer_of_two_modules": (sharing, X),
    "draws_noise": (lambda: Net(lambda _, x: x + torch.randn_like(x)), X),
    "draws_dropout": (lambda: Net(lambda _, x: dropout(x, 0.5, training=True)), X),
    "running_mean": (lambda: Counting(anew=False), X),
    "running_mean_anew": (lambda: Counting(anew=True), X),
    "keeps_a_map": (Keeping, X),
    "weight_norm": (lambda: reparametrised(weight_norm), X),
    "pruned": (lambda: reparametrised(lambda layer: prune.l1_unstructured(layer, "weight", 0.3)), X),
    "asks_for_the_dtype": (lambda: Checked(written=True), X),
    "regions": (Boxed, (X, BOXES)),
    "mask_that_is_added": (Sequence, (X, torch.full((1, 1, 64, 64), float("-inf")).triu(1))),
    "mask_over_positions": (
        lambda: holding(Net(lambda net, x: x * net.mask), mask=torch.rand(8, 8).gt(0.5).expand(1, 16, 8, 8).clone()),
        X,
    ),
    "attention_scale": (Attending, X),
    "tensor_of_a_size": (lambda: Net(lambda _, x: x / torch.sqrt(torch.tensor(x.shape[1]))), X),
    "number_of_groups": (lambda: Net(lambda _, x: group_norm(x, x.shape[1] // 8)), X),
}  # fmt: skip


def compressed(model: nn.Module, example: Inputs) -> tuple[nn.Module, nn.Module]:
    """The tied model and its compact form, with a random number of channels in each group."""
    plan = random_widths(pdc_fx.analyze(model, example), 0)
    return model, pdc_fx.rewrite(model, pdc_fx.tie(model, plan, mode="hard").snap(), example)


def outputs(model: nn.Module, inputs: Inputs) -> Tensor:
    torch.manual_seed(0)
    with torch.no_grad():
        return copy.deepcopy(model).eval()(*fresh(as_arguments(inputs)))


@pytest.mark.parametrize("name", MODELS)
def test_models_are_rewritten_and_left_alone(name: str) -> None:
    torch.manual_seed(0)
    make, example = MODELS[name]
    before = [leaf.clone() for leaf in tree_leaves(example)]
    model = make()
    tied, compact = compressed(model, example)
    torch.testing.assert_close(outputs(compact, example), outputs(tied, example), atol=1e-5, rtol=1e-4)
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in tied.parameters())
    after = tree_leaves(example)
    assert len(after) == len(before)
    assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True))


COMPUTED: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "batch_times_channels": lambda _, x: torch.softmax(x.reshape(x.shape[0] * x.shape[1], -1), -1).reshape(x.shape),
    "spread_over_rows": lambda _, x: torch.softmax(
        x.reshape(x.shape[0] * x.shape[1], x.shape[2] * x.shape[3]), -1
    ).view(*x.shape),
    "channels_times_rows": lambda _, x: x / (x.shape[1] * x.shape[2] * x.shape[3]),
    "all_entries": lambda _, x: x / x.numel(),
    "entries_of_a_size": lambda _, x: x / x.shape.numel(),
    "product_of_a_size": lambda _, x: x / math.prod(x.shape),
    "sum_of_a_size": lambda _, x: x / sum(x.shape),
    "root": lambda _, x: x / math.sqrt(x.shape[0] * x.shape[1]),
    "size_of_a_flattened_batch": lambda _, x: (x.flatten(0, 1) / x.flatten(0, 1).shape[0]).view(x.shape),
    "size_of_a_flattened_map": lambda _, x: x / x.flatten(1).shape[1],
    "view_of_a_size": lambda _, x: x * torch.softmax(x.flatten(2), -1).view(x.size()),
    "expanded": lambda net, x: x * net.b.bias.reshape(1, -1, 1, 1).expand(x.size()),
    "norm_over_a_size": lambda _, x: layer_norm(x, x.shape[1:]),
    "unfolded": lambda _, x: unfold(x.reshape(1, -1, x.shape[2], x.shape[3]), 1).reshape(x.shape),
}


@pytest.mark.parametrize("name", COMPUTED)
@pytest.mark.parametrize("batch", [1, 2])
def test_numbers_computed_from_sizes_follow_batches_and_images(name: str, batch: int) -> None:
    torch.manual_seed(0)
    tied, compact = compressed(Net(COMPUTED[name], written=True), torch.randn(batch, 3, 8, 8))
    assert pdc_fx.passes.rewrite.describe(compact) == "GraphModule"
    for shape in ((batch, 3, 8, 8), (4, 3, 8, 8), (1, 3, 8, 8), (2, 3, 12, 10)):
        other = torch.randn(shape)
        torch.testing.assert_close(outputs(compact, other), outputs(tied, other), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("name", ["batch_times_channels", "channels_times_rows"])
def test_a_number_that_would_hold_for_the_example_alone_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def as_in_the_example(self: numbers.Numbers, node: fx.Node, copy: fx.Node) -> Any:
        self.now.clear()
        return self._changed[node]

    monkeypatch.setattr(numbers.Numbers, "_recomputed", as_in_the_example)
    torch.manual_seed(0)
    with pytest.raises(RewriteError, match="of another size come out wrong"):
        compressed(Net(COMPUTED[name], written=True), torch.randn(1, 3, 8, 8))


def test_a_view_that_turns_larger_images_into_rows_is_no_reason_to_refuse() -> None:
    class Written(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[2](relu(self[1](relu(self[0](x)))).view(-1, 16 * 8 * 8))

    torch.manual_seed(0)
    model = Written(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Linear(16 * 64, 5))
    tied, compact = compressed(model, X)
    assert len(tied(torch.zeros(1, 3, 40, 72))) > 1  # it runs on these, and gives what nobody wants
    torch.testing.assert_close(outputs(compact, X), outputs(tied, X), atol=1e-5, rtol=1e-4)


class Filled(Net):
    """Rules one class out by a number that is no infinity."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).masked_fill(torch.arange(5) == 2, self.filler)


@pytest.mark.parametrize("filler", [torch.finfo(torch.float32).min, -1e9])
def test_a_filler_hides_no_fault(filler: float) -> None:
    """It is far larger than what matters, and the same in both networks."""
    torch.manual_seed(0)
    model = Filled()
    model.filler = filler
    tied, compact = compressed(model, X)
    assert pdc_fx.check(model, X).passed
    with torch.no_grad():
        compact.f.weight[0] += 1e-3
    assert not compare(
        *(copy.deepcopy(network).double() for network in (tied, compact)), X.double(), tolerance=1e-9
    ).passed
    same = torch.full((4,), 3.0, dtype=torch.float64)
    assert difference({"y": same}, {"y": same + 1e-3}, 1e-9).max_rel_error == pytest.approx(1e-3 / 3)


def test_a_regression_of_one_number_is_checked() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Net(), nn.Linear(5, 1))
    assert pdc_fx.check(model, torch.zeros(1, 3, 8, 8)).passed
    tied, compact = compressed(model, torch.zeros(1, 3, 8, 8))
    torch.testing.assert_close(outputs(compact, X), outputs(tied, X), atol=1e-5, rtol=1e-4)


class Detector(Net):
    """Gives what is beyond a threshold: nothing, in noise."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.clamp(super().forward(x) - 1e3, min=0.0)


@pytest.mark.parametrize("example", [X, torch.full((1, 3, 8, 8), 1e6)])
def test_a_comparison_that_shows_nothing_is_none(example: Tensor) -> None:
    """The example is tried where random numbers leave the outputs constant."""
    torch.manual_seed(0)
    if float(example.max()) > 1e3:
        tied, compact = compressed(Detector(), example)
        torch.testing.assert_close(outputs(compact, example), outputs(tied, example), rtol=1e-4, atol=1.0)
        return
    with pytest.raises(ExactnessError, match="nothing could be shown: the outputs do not vary"):
        compressed(Detector(), example)


def test_another_way_for_larger_images_is_refused() -> None:
    """Over other channels it would be another softmax, and nothing of that shows at the size of the example."""
    torch.manual_seed(0)
    small = Net(lambda _, x: x.softmax(1) if x.shape[-1] > 16 else x)
    for attempt in (compressed, pdc_fx.check):
        with pytest.raises(RewriteError, match=r"inputs of another size come out wrong.*takes another way"):
            attempt(small, X)


class Caching(nn.Module):
    """Computes where anchors lie once for each size of images, as detectors do, and masks once for all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(16, 6, 1)
        self.shape: Any = None
        self.mask: Any = None

    def forward(self, x: Tensor) -> Tensor:
        one, two = relu(self.a(x)).chunk(2, 1)
        y = relu(self.b(one * two))
        if self.shape != x.shape:
            self.shape, self.anchors = x.shape, torch.arange(x.shape[-1], dtype=x.dtype) + 0.5
        if self.mask is None:
            self.mask = torch.ones_like(y) * 0.5
        return self.o(y * self.mask) + self.anchors


def test_what_a_forward_pass_caches_is_forgotten() -> None:
    torch.manual_seed(0)
    model = Caching().eval()
    assert pdc_fx.analyze(model, X).mergeable_channels == 24
    assert model.shape is None
    assert not hasattr(model, "anchors")
    tied, compact = compressed(model, X)
    torch.testing.assert_close(outputs(compact, X), outputs(tied, X), atol=1e-5, rtol=1e-4)


class Recurrent(nn.Module):
    """Adds what came out before, which it keeps on itself; widths are written out, so that a graph would be needed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 6, 1)
        self.before: Any = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.b(torch.cat([x[:, 7:].sigmoid(), x[:, :7]], 1))
        if self.before is not None:
            y = y + 0.5 * self.before
        self.before = y.detach()
        return self.o(relu(y))


class Hooked(nn.Module):
    """Takes what a hook has put into a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.o = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 6, 1)
        self.maps: dict[str, Tensor] = {}
        self.b.register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.maps["b"] = output

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.a(x).chunk(2, 1)
        self.b(torch.cat([one.sigmoid(), two], 1))
        return self.o(relu(self.maps["b"]))


@pytest.mark.parametrize(("kind", "mergeable"), [(Recurrent, 16), (Hooked, 16)])
def test_what_a_forward_pass_keeps_for_the_next_is_kept_by_the_compact_network(kind: type[Any], mergeable: int) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    assert pdc_fx.analyze(model, X).mergeable_channels == mergeable
    assert not getattr(model, "maps", None)
    tied, compact = (network.eval() for network in compressed(model, X))
    for seed in range(3):
        x = torch.randn(X.shape, generator=torch.Generator().manual_seed(seed))
        torch.testing.assert_close(compact(x), tied(x), atol=1e-5, rtol=1e-4)


def closing_over_itself(how: str) -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 16, 1), nn.Conv2d(16, 6, 1))
    if how == "a lambda":
        model[1].forward = lambda x: model[0].bias.sum() + nn.Conv2d.forward(model[1], x)  # type: ignore[method-assign]
    else:
        model[1].register_forward_hook(lambda module, args, output: output + model[0].bias.sum())
    return model.eval()


@pytest.mark.parametrize("how", ["a lambda", "a hook"])
def test_a_function_that_reaches_the_model_itself_is_named(how: str) -> None:
    model = closing_over_itself(how)
    with pytest.raises(TraceError, match=r"reaches the model through 'model'.*\[module '1'\]; make it a method"):
        pdc_fx.check(model, X)

    def later() -> object:
        return unset

    met: list[nn.Module] = []
    plain = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 6, 1))
    plain[0].register_forward_hook(lambda module, args, output: met.append(module))  # it closes over a list
    plain.later = later  # type: ignore[assignment]  # and this over what has no value yet
    assert pdc_fx.check(plain, X).passed
    unset = None


class Average(nn.Sequential):
    """A mean by hand, with a product of sizes as a number of Python's own, which no graph can follow."""

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self[1](relu(self[0](x))))
        return self[2](x.flatten(2).sum(2) / float(x.shape[1] * x.shape[2]))


class AnotherWay(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        x = relu(self[0](x))
        return self[1](x.softmax(1) if x.shape[-1] > 16 and x.shape[1] == 16 else x)


LAYERS = {1: nn.Conv1d, 3: nn.Conv3d}


@pytest.mark.parametrize("axes", LAYERS)
def test_a_number_of_the_example_is_not_taken_for_that_of_others(axes: int) -> None:
    torch.manual_seed(0)
    conv = LAYERS[axes]
    model = Average(conv(2, 16, 3, padding=1), conv(16, 16, 3, padding=1), nn.Linear(16, 5))
    example = torch.randn(2, 2, *[8] * axes)
    tied, compact = compressed(model, example)
    torch.testing.assert_close(outputs(compact, example), outputs(tied, example), atol=1e-6, rtol=1e-4)
    with pytest.raises(AssertionError, match="fit for no other"):
        compact(torch.randn(2, 2, *[16] * axes))


@pytest.mark.parametrize("axes", LAYERS)
def test_another_way_for_longer_sounds_and_videos_is_refused(axes: int) -> None:
    torch.manual_seed(0)
    model = AnotherWay(LAYERS[axes](2, 16, 3, padding=1), LAYERS[axes](16, 5, 3, padding=1))
    with pytest.raises(RewriteError, match="inputs of another size come out wrong"):
        compressed(model, torch.randn(2, 2, *[8] * axes))


@pytest.mark.parametrize("written", [True, False])
def test_a_norm_with_a_forward_of_its_own_is_looked_into(written: bool) -> None:
    """What a subclass writes out is not brought in line with the rest."""

    class OverChannels(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            shape = (16,) if written else self.normalized_shape
            return layer_norm(x.movedim(1, 3), shape, self.weight, self.bias).movedim(3, 1)

    torch.manual_seed(0)
    model = Net(lambda net, x: net.norm(x))
    model.norm = OverChannels(16)
    tied, compact = compressed(model, X)
    torch.testing.assert_close(outputs(compact, X), outputs(tied, X), atol=1e-5, rtol=1e-4)
    assert isinstance(compact, fx.GraphModule) == written


class Adapter(nn.Linear):
    """Merges what it has learnt into its weight for inference, as LoRA does."""

    def __init__(self) -> None:
        super().__init__(16, 5)
        self.up, self.down, self.merged = nn.Parameter(torch.randn(5, 2)), nn.Parameter(torch.randn(2, 16)), False

    def train(self, mode: bool = True) -> Adapter:
        super().train(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * self.up.data @ self.down.data
            self.merged = not mode
        return self


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize(("mode", "own"), [(False, False), (True, False), (True, True)])
def test_a_module_that_merges_weights_for_inference_is_left_as_it_is(mode: bool, own: bool, written: bool) -> None:
    torch.manual_seed(0)
    model = Net(written=written)
    model.f = Adapter()
    model.train(mode)
    model.f.train(own)
    before = model.f.weight.detach().clone()
    if own:
        with pytest.raises(TraceError, match="Adapter changes its 'weight' when it is put in eval mode"):
            pdc_fx.analyze(model, X)
    else:
        tied, compact = compressed(model, X)
        torch.testing.assert_close(outputs(compact, X), outputs(tied, X), atol=1e-5, rtol=1e-4)
        before = model.f.weight.detach().clone()
        pdc_fx.analyze(model, X)
    assert (model.training, model.f.training, model.f.merged) == (mode, own, not own)
    torch.testing.assert_close(model.f.weight.detach(), before)


def test_a_module_that_cannot_be_put_in_eval_mode_is_told_so() -> None:
    class Stuck(nn.ReLU):
        def train(self, mode: bool = True) -> Stuck:
            if not mode:
                raise RuntimeError("not now")
            return self

    model = Net()
    model.stuck = Stuck()
    with pytest.raises(TraceError, match="raised RuntimeError when it was put in eval mode: not now"):
        pdc_fx.analyze(model, X)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("how", [pdc_fx.fold, pdc_fx.calibrate])
def test_what_keeps_a_map_is_compressed_without_training(how: Callable[..., Any]) -> None:
    model = Keeping()
    groups = pdc_fx.analyze(model, X)
    model(X).sum().backward()
    images = [] if how is pdc_fx.fold else [torch.randn(4, 3, 8, 8)]
    _, plan = how(model, groups, *images, flops_reduction=0.3)
    assert plan.flops_reduction > 0.25


def test_what_holds_a_lock_is_told_so() -> None:
    model = Net(written=True)
    model.lock = threading.Lock()
    with pytest.raises(TraceError, match=r"cannot be copied.*lock.*outside of the module"):
        pdc_fx.analyze(model, X)


@pytest.mark.parametrize("name", ["input_changed", "logarithm_of_zeros", "draws_noise", "minus_infinity"])
def test_the_dry_run_takes_them_too(name: str) -> None:
    torch.manual_seed(0)
    make, example = MODELS[name]
    assert pdc_fx.check(make(), example).passed


def test_a_model_without_finite_outputs_is_not_called_a_fault() -> None:
    model = Net(lambda _, x: x * float("nan"))
    with pytest.raises(PdcError, match="no finite number"):
        compressed(model, X)


@pytest.mark.parametrize("name", ["mask_of_bools", "mask_of_integers", "mask_that_chooses"])
def test_masks_that_differ_keep_their_channels(name: str) -> None:
    model = MODELS[name][0]()
    before = model.mask.clone()
    groups = pdc_fx.analyze(model, X)
    assert [f.channels for f in groups.frozen if "of which there is no mean" in f.reason] == [16]
    compressed(model, X)
    assert torch.equal(model.mask, before)


@pytest.mark.parametrize(
    ("layer", "last"), [(nn.Conv2d, torch.channels_last), (nn.Conv3d, torch.channels_last_3d)], ids=["2d", "3d"]
)
def test_the_memory_format_stays(layer: type[nn.Module], last: torch.memory_format) -> None:
    for memory_format in (last, torch.contiguous_format):
        model = nn.Sequential(layer(3, 16, 3), nn.ReLU(), layer(16, 8, 3)).to(memory_format=memory_format)
        _, compact = compressed(model, torch.randn(1, 3, *[8] * (2 if layer is nn.Conv2d else 3)))
        assert compact[2].weight.shape[1] < 16
        assert compact[2].weight.is_contiguous(memory_format=memory_format)


def test_calibration_in_another_precision_is_refused() -> None:
    model = Net().half()
    groups = pdc_fx.analyze(model, X.half())
    with pytest.raises(PdcError, match="the images are float32, the groups were found with float16"):
        pdc_fx.calibrate(model, groups, torch.randn(4, 3, 8, 8), flops_reduction=0.3)


def with_options(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As transformers decorates forward passes: what the wrapper takes out of the options, the inner function does not see."""

    @functools.wraps(forward)
    def wrapper(self: Net, *args: Any, **kwargs: Any) -> Any:
        doubled = kwargs.pop("doubled", True)
        return forward(self, *args, **kwargs) * (2 if doubled else 1)

    return wrapper


class Decorated(Net):
    @with_options
    def forward(self, x: Tensor, scale: float = 0.5, **kwargs: Any) -> Tensor:
        return super().forward(x) * scale


class OfSeveral(Net):
    def forward(self, *inputs: Tensor, scale: float = 0.5) -> Tensor:
        return super().forward(inputs[0] + inputs[1]) * scale


def half_only(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def cleared(net: Net, x: Tensor) -> Tensor:
    x = x.clone()
    x[..., 0] = 0.5
    x[:, :, 1:3] = 2 * x[:, :, 3:5]
    return x


def ensured(net: Net, x: Tensor) -> Tensor:
    """As transformers asks: for a value, or for a function that gives it."""
    holds = x.shape[2] > 4
    torch._check(holds() if callable(holds) else holds, lambda: "too small")
    return x


def frozen_norm(net: Net, x: Tensor) -> Tensor:
    """A batch norm whose statistics and weights are buffers, as detectors have it."""
    scale = net.weight * (net.variance + 1e-5).rsqrt()
    return x * scale.reshape(1, -1, 1, 1) + (net.bias - net.mean * scale).reshape(1, -1, 1, 1)


def normed() -> Net:
    return holding(
        Net(frozen_norm, written=True),
        **{name: torch.rand(16) + 0.5 for name in ("weight", "variance", "bias", "mean")},
    )


def resized(net: Net, x: Tensor) -> Tensor:
    return interpolate(x, size=[int(side) for side in net.sides]) if net.wanted and (net.sides > 1).all() else x


class Sliced(Net):
    """Runs parts of a sequence, and an activation that is made on the spot: modules that the model does not hold."""

    def __init__(self) -> None:
        super().__init__(written=True)
        self.sequence = nn.Sequential(nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))

    def features(self, x: Tensor) -> Tensor:
        return nn.Hardtanh(0, 3)(self.sequence[:2](super().features(x)))


def asking(net: Net, x: Tensor) -> Tensor:
    """What tensors and sizes are asked, also by functions of another file."""
    if not (torch.is_tensor(x) and torch.jit.isinstance(x, Tensor)):  # type: ignore[no-untyped-call]
        x = x[0]
    x = torch.as_tensor(helper.one_of(x)).flatten(1).view(-1, int(np.prod(x.shape[1:]))).view(x.shape)
    half, rest = divmod(x.shape[3], 2)
    return {4: x[..., : round(half / 1.5) + rest]}[x.ndim]


EDITED: dict[str, tuple[Callable[[], Net], Inputs]] = {
    "decorated": (lambda: Decorated(written=True), X),
    "several_inputs": (lambda: OfSeveral(written=True), (X, X.flip(0))),
    "asks_for_half_precision": (lambda: Net(lambda _, x: half_only(x), written=True), X),
    "assigns_to_parts": (lambda: Net(cleared, written=True), X),
    "frozen_batch_norm": (normed, X),
    "numbers_in_buffers": (
        lambda: holding(Net(resized, written=True), wanted=torch.tensor(True), sides=torch.tensor([4, 4])),
        X,
    ),
    "checks_a_size": (lambda: Net(ensured, written=True), X),
    "slices_of_a_sequence": (Sliced, X),
    "asks_for_the_least_number": (
        lambda: Net(lambda _, x: x.masked_fill(x == 0, torch.finfo(x.dtype).min).clamp(min=-1), written=True),
        X,
    ),
    "asks_of_tensors_and_sizes": (lambda: Net(asking, written=True), X),
}


def test_a_file_may_be_called_like_one_of_python() -> None:
    names: dict[str, Any] = {"__name__": "statistics", "Net": Net, "Tensor": Tensor}
    forward = "def forward(self, x): return Net.forward(self, x if isinstance(x, Tensor) else x[0])"
    exec(f"class Named(Net):\n    {forward}", names)
    assert [group.channels for group in pdc_fx.analyze(names["Named"](written=True), X).groups] == [16, 16]


@pytest.mark.parametrize("name", EDITED)
def test_a_written_size_is_edited_whatever_else_the_forward_pass_does(name: str) -> None:
    torch.manual_seed(0)
    make, example = EDITED[name]
    model = make()
    assert [group.channels for group in pdc_fx.analyze(model, example).groups] == [16, 16]
    tied, compact = compressed(model, example)
    assert isinstance(compact, fx.GraphModule)
    torch.testing.assert_close(outputs(compact, example), outputs(tied, example))


def test_a_check_of_a_size_still_holds_in_an_edited_graph() -> None:
    _, compact = compressed(Net(ensured, written=True), X)
    outputs(compact, torch.randn(3, 3, 6, 6))
    with pytest.raises(AssertionError, match="fit for no other"):
        outputs(compact, torch.randn(3, 3, 4, 4))


class Unnamed(dict[str, Tensor]):
    """What a model returns, as diffusers makes it known to torch: without a word on what its parts are called."""


register_pytree_node(
    Unnamed, lambda d: (list(d.values()), list(d)), lambda values, keys: Unnamed(zip(keys, values, strict=True))
)


def test_outputs_that_torch_cannot_name_are_found() -> None:
    assert list(named_outputs([Unnamed(sample=torch.zeros(1))])) == ["output[0]['sample']"]


@pytest.mark.parametrize("written", [True, False])
@pytest.mark.parametrize(
    ("dtype", "asked"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)],
)
def test_a_branch_by_dtype_is_that_of_the_network_itself(dtype: torch.dtype, asked: torch.dtype, written: bool) -> None:
    torch.manual_seed(0)
    model = Net(lambda _, x: x * 3 if x.dtype == asked else x / 3, written=written).to(dtype)
    tied, compact = compressed(model, X.to(dtype))
    torch.testing.assert_close(outputs(compact, X.to(dtype)), outputs(tied, X.to(dtype)), atol=1e-2, rtol=2e-2)


def test_a_branch_that_half_precision_alone_takes_is_not_edited() -> None:
    model = Net(lambda _, x: x * 3 if x.dtype == torch.bfloat16 else x / 3, written=True).to(torch.bfloat16)
    with pytest.raises(RewriteError, match="its channel groups differ"):  # in double precision, where it is proved
        compressed(model, X.bfloat16())


@pytest.mark.parametrize("anew", [True, False])
def test_a_graph_does_not_take_the_place_of_a_module_with_state(anew: bool) -> None:
    model = Counting(anew=anew)
    model.written = True
    tied, compact = compressed(model, X)
    assert float(tied.mean) == float(compact.mean) == 0
    for _ in range(3):
        torch.testing.assert_close(compact.eval()(X), tied.eval()(X), atol=1e-5, rtol=1e-4)
    assert float(compact.mean) == pytest.approx(float(tied.mean))
    assert float(tied.mean) > 0


def test_a_signal_that_varies_little_hides_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the example is nothing but zeros, on which a fault in what reads them would not show."""

    def faulty(tensor: Tensor, axes: Any) -> Tensor:
        merged = merge_tensor(tensor, axes)
        if tensor.shape == (8, 2, 3):
            merged[:, 1] *= 1.1
        return merged

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3))
    example = torch.cat([torch.randn(1, 1, 12), torch.zeros(1, 1, 12)], 1)
    compressed(model, example)
    merge_tensor = surgery.merge_tensor
    monkeypatch.setattr(surgery, "merge_tensor", faulty)
    with pytest.raises(ExactnessError):
        compressed(model, example)


def test_seeds_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Net()
    torch.manual_seed(1234)
    draw = torch.rand(3)
    torch.manual_seed(1234)
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)  # a seed may wait there for a device
    pdc_fx.analyze(model, X)
    assert torch.equal(torch.rand(3), draw)
    assert seeded == []


def test_a_file_of_a_model_that_changes_its_input_is_verified(tmp_path: Path) -> None:
    model, example = InPlace().eval(), X.clone()
    file = pdc_fx.export_onnx(model, example, tmp_path / "m.onnx").path
    assert pdc_fx.verify_onnx(model, file, example).passed
    assert torch.equal(example, X)


def test_sparse_buffers_are_no_masks() -> None:
    model = holding(Net(), links=torch.eye(4, dtype=torch.int64).to_sparse())
    assert pdc_fx.analyze(model, X).mergeable_channels == 32


def test_a_view_of_a_weight_that_is_kept_is_told() -> None:
    model = Net(lambda net, x: x * net.scale)
    model.gain = nn.Parameter(torch.rand(16))
    model.scale = model.gain.view(1, -1, 1, 1)
    with pytest.raises(TraceError, match="keeps a view of a parameter"):
        compressed(model, X)


class Attributes(dict[str, Any]):
    __getattr__ = dict.__getitem__


@dataclass
class Holder:
    logits: Tensor
    extra: Any


@dataclass(slots=True)
class Slots:
    logits: Tensor
    extra: Any


PACKED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda a, b: (a, b),
    "object in an object": lambda a, b: Holder(a, Holder(b, None)),
    "dict of a class of its own": lambda a, b: Attributes(logits=a, boxes=b),
    "in a tuple": lambda a, b: (a, Attributes(boxes=b)),
    "slots": Slots,
    "list in slots in a dict": lambda a, b: {"all": Slots(a, [b])},
    "set": lambda a, b: (a, {b}),
}


class Packed(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.a, self.one, self.two, self.pack = nn.Conv2d(3, 16, 3), nn.Linear(16, 6), nn.Linear(16, 4), PACKED[name]

    def forward(self, x: Tensor) -> Any:
        x = relu(self.a(x)).mean((2, 3))
        return self.pack(self.one(x), self.two(x))


class Once(Net):
    def forward(self, x: Tensor) -> Any:
        return (part for part in super().forward(x).chunk(2, 1))


@pytest.mark.parametrize("name", PACKED)
def test_outputs_keep_their_shapes_however_they_are_packed(name: str) -> None:
    model = Packed(name)
    assert pdc_fx.analyze(model, X).mergeable_channels == 16
    _, compact = compressed(model, X)
    assert compact.a.out_channels < 16
    shapes = [[tuple(t.shape) for t in named_outputs(network(X)).values()] for network in (model, compact)]
    assert shapes[0] == shapes[1] == [(len(X), 6), (len(X), 4)]


def test_an_output_that_can_be_read_once_is_refused() -> None:
    with pytest.raises(TraceError, match=r"returns a generator, which can be read once only.*return a list"):
        pdc_fx.analyze(Once(), X)
