"""What bypasses the recorder is noticed and frozen, never ignored; what lies beside it merges as before.

Each network has a second branch that nothing happens to. With the guard taken away, wrong channels are merged: the last test.
"""

# ruff: noqa: E501 - a table: one row an entry

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
import torch.utils.dlpack
from samples import conv
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import pdc_fx
from pdc_fx import trace
from pdc_fx.errors import PdcError
from pdc_fx.trace.guard import Guard

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*requires_grad=True:UserWarning"),
]


class Beside(nn.Module):
    """``head(middle(stem(x)))`` and a branch of eight channels beside it."""

    def __init__(self, middle: Callable[[Beside, Tensor], Tensor], **parts: object) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8), conv(8, 4)
        self.other, self.last = conv(3, 8), conv(8, 4)
        self.middle = middle
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self, self.stem(x))) + self.last(self.other(x).relu())  # type: ignore[no-any-return]


@cache
def scripted(function: Callable[..., Tensor], inputs: int = 1) -> Callable[..., Tensor]:
    traced: Callable[..., Tensor] = torch.jit.trace(function, (torch.randn(2, 8, 8, 8),) * inputs, check_trace=False)
    return traced


def softmax(x: Tensor) -> Tensor:
    return x.softmax(1)


def cumsum(x: Tensor) -> Tensor:
    return x.cumsum(1)


def write_softmax(y: Tensor, x: Tensor) -> Tensor:
    return y.copy_(x.softmax(1))


class Quiet(TorchDispatchMode):
    """A mode of the model's own."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def in_a_mode(m: Beside, x: Tensor) -> Tensor:
    with Quiet():
        return x.relu()


class Mixed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.softmax(1)


class MixedInNumpy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy().cumsum(1))


@torch.library.custom_op("pdc_fx_tests::mixed", mutates_args=())
def mixed(x: Tensor) -> Tensor:
    return x.softmax(1)


@torch.library.custom_op("pdc_fx_tests::mix", mutates_args=("x",))
def mix_in_place(x: Tensor) -> None:
    x.copy_(x.softmax(1))


def script_writes(m: Beside, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)  # which is known to repeat one number, until a script writes there
    scripted(write_softmax, 2)(y, x)
    return m.inner(x).relu() + y  # type: ignore[no-any-return, operator]


def numpy_writes(m: Beside, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y.numpy()[:] = np.arange(8.0)[None, :, None, None]
    return x + y


def memory_writes(m: Beside, x: Tensor) -> Tensor:
    """As a kernel in C does that is given an address."""
    import ctypes

    y = torch.zeros_like(x)
    values = np.random.default_rng(0).random(tuple(y.shape)).astype(str(y.dtype).removeprefix("torch."))
    ctypes.memmove(y.data_ptr(), values.ctypes.data, values.nbytes)
    return x + y


Parts = Callable[[], dict[str, object]]
CASES: dict[str, tuple[Callable[[Beside, Tensor], Tensor], Parts, str]] = {
    "script": (lambda m, x: scripted(softmax)(x), dict, "softmax"),
    "script_gives_a_gate": (lambda m, x: x * scripted(cumsum)(x)[:, :1], dict, "cumsum"),
    "script_module": (lambda m, x: m.f(x), lambda: {"f": torch.jit.trace(nn.Sequential(nn.Conv2d(8, 8, 1), nn.Softmax(1)), torch.randn(1, 8, 4, 4), check_trace=False)}, "convolution"),  # type: ignore[operator]
    "script_writes": (script_writes, lambda: {"inner": conv(8, 8)}, "softmax"),
    "autograd_function": (lambda m, x: Mixed.apply(x), dict, "softmax"),  # type: ignore[no-any-return]
    "autograd_function_in_numpy": (lambda m, x: MixedInNumpy.apply(x), dict, "numpy"),  # type: ignore[no-any-return]
    "custom_operator": (lambda m, x: mixed(x), dict, "pdc_fx_tests.mixed"),
    "custom_operator_in_place": (lambda m, x: (mix_in_place(x), x)[1], dict, "pdc_fx_tests.mix"),
    "numpy": (lambda m, x: torch.from_numpy(x.numpy().cumsum(1)), dict, "numpy"),
    "numpy_writes": (numpy_writes, dict, "numpy"),
    "memory_writes": (memory_writes, dict, "data_ptr"),
    "list": (lambda m, x: torch.tensor(x.tolist(), dtype=x.dtype).cumsum(1), dict, "tolist"),
    "dlpack": (lambda m, x: torch.from_dlpack(torch.utils.dlpack.to_dlpack(x)).cumsum(1), dict, "memory"),
    "vmap": (lambda m, x: torch.vmap(lambda t: t.cumsum(0))(x), dict, "memory"),
    "vmap_of_a_layer": (lambda m, x: torch.vmap(lambda t: nn.functional.conv2d(t[None], m.inner.weight).softmax(1)[0])(x), lambda: {"inner": nn.Conv2d(8, 8, 1)}, "memory"),  # type: ignore[union-attr, arg-type]
    "plain_attribute": (lambda m, x: x * m.plain[0], lambda: {"plain": (torch.randn(8, 1, 1),)}, "cannot shrink"),  # type: ignore[index]
    "weights_by_the_back_door": (lambda m, x: m.inner(x).cumsum(1) + m.plain[0].sum(), lambda: (lambda inner: {"inner": inner, "plain": (inner.weight.data,)})(conv(8, 8)), "cumsum"),  # type: ignore[operator, index]
}  # fmt: skip

SEEN_THROUGH: dict[str, tuple[Callable[[Beside, Tensor], Tensor], Parts]] = {
    "checkpoint": (lambda m, x: torch.utils.checkpoint.checkpoint(torch.relu, x, use_reentrant=False), dict),  # type: ignore[no-any-return]
    "checkpoint_reentrant": (lambda m, x: torch.utils.checkpoint.checkpoint(torch.relu, x, use_reentrant=True), dict),  # type: ignore[no-any-return]
    "detached": (lambda m, x: x.detach().relu(), dict),
    "printed": (lambda m, x: (repr(x), x)[1], dict),
    "in_a_mode": (in_a_mode, dict),
    "kept_on_the_module": (lambda m, x: (setattr(m, "kept", x), m.kept)[1], dict),  # type: ignore[return-value]
    "compiled_submodule": (lambda m, x: m.f(x), lambda: {"f": torch.compile(nn.Sequential(nn.ReLU()), backend="eager")}),  # type: ignore[operator]
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_is_frozen_with_a_reason_and_the_rest_merges(name: str) -> None:
    torch.manual_seed(0)
    middle, parts, reason = CASES[name]
    model, inputs = Beside(middle, **parts()), torch.randn(2, 3, 8, 8)
    groups = pdc_fx.analyze(model, inputs)
    assert [g.name for g in groups.groups] == ["other"]
    stuck = [f for f in groups.frozen if f.module != "head" and f.module != "last"]
    assert any(reason in f.reason for f in stuck), stuck
    assert all("test_bypass.py:" in f.reason for f in stuck if "cannot be followed" in f.reason)
    assert not any(str(Path(__file__).parent.parent) in f.reason for f in stuck)  # the end of the path is enough
    for seed in range(3):
        assert pdc_fx.check(model, inputs, seed=seed).passed


@pytest.mark.parametrize("name", SEEN_THROUGH)
def test_is_no_obstacle(name: str) -> None:
    middle, parts = SEEN_THROUGH[name]
    model, inputs = Beside(middle, **parts()), torch.randn(2, 3, 8, 8)
    certificate = pdc_fx.check(model, inputs)
    assert certificate.passed
    assert certificate.mergeable_channels == 16


@pytest.mark.parametrize("name", ["script", "script_module", "script_writes"])
def test_without_the_guard_wrong_channels_are_merged(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(trace.Recorder, "guarded", False)
    middle, parts, _ = CASES[name]
    model, inputs = Beside(middle, **parts()), torch.randn(2, 3, 8, 8)
    assert pdc_fx.analyze(model, inputs).mergeable_channels > 8
    try:
        passed = pdc_fx.check(model, inputs).passed
    except PdcError:
        passed = False
    assert not passed


def test_the_guard_is_off_while_recorded_functions_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs some 30 microseconds an operator where it is on; a resnet50 has 230 of them."""
    import torchvision

    seen: list[object] = []
    monkeypatch.setattr(Guard, "_noticed", lambda self, func, args, kwargs: seen.append(func))
    trace.record(torchvision.models.resnet50().eval(), torch.randn(1, 3, 32, 32))
    assert seen == []
