"""Calls that a rule declines: each reason that a rule can give, on a network in which it is the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from samples import Forward, between, scale, weight
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from pdc_fx import analyze


@dataclass(frozen=True)
class Case:
    """What the stem's eight channels go through, and what is said of it."""

    reason: str
    middle: Forward
    head: int = 8
    layers: dict[str, Any] | None = None

    def __str__(self) -> str:
        return self.reason

    def build(self) -> nn.Module:
        return between(self.middle, head=self.head, **self.layers or {})()


def assigned(x: Tensor, index: Any, values: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y[index] = values
    return y


CASES = (
    # products
    Case("einsum takes a diagonal", lambda m, x: torch.einsum("nchh->nch", x)[..., None]),
    Case(
        "einsum multiplies parameters with each other",
        lambda m, x: torch.einsum("nchw,cd,de->nehw", x, m.a, m.b),
        layers={"a": weight(8, 8), "b": weight(8, 8)},
    ),
    Case(
        "einsum sums over all channels",
        lambda m, x: torch.einsum("nchw,hk->nk", x, m.a).view(2, 4, 1, 1),
        4,
        {"a": weight(8, 4)},
    ),
    Case(
        "einsum multiplies a parameter with channels along several of its axes",
        lambda m, x: torch.einsum("nabhw,ab->nabhw", x.view(2, 2, 4, 8, 8), m.a).flatten(1, 2),
        layers={"a": weight(2, 4)},
    ),
    Case(
        "tensordot is given its axes as a tensor",
        lambda m, x: torch.tensordot(x, m.a, torch.tensor([[1], [0]])).movedim(3, 1),
        layers={"a": weight(8, 8)},
    ),
    # indices
    Case(
        "__getitem__ indexes with a list of tensors, lists or truth values",
        lambda m, x: x[:, [True] * 4 + [False] * 4],
        4,
    ),
    Case("__getitem__ slices at a position that is computed", lambda m, x: x[:, : torch.tensor(4)], 4),
    Case("__getitem__ slices at a position that is computed", lambda m, x: x[[0, 1], : torch.tensor(4)], 4),
    Case("__getitem__ has an index of an unknown kind", lambda m, x: x[True][0]),
    Case("__getitem__ has an index of an unknown kind", lambda m, x: x[torch.tensor([0, 1]), True]),
    Case("narrow starts at a position that is computed", lambda m, x: x.narrow(1, torch.tensor(0), 4), 4),
    Case(
        "__setitem__ assigns channels along an axis that is indexed",
        lambda m, x: assigned(x, (slice(None), [*range(8)]), x),
    ),
    Case(
        "__setitem__ assigns to a part of the channels",
        lambda m, x: assigned(torch.zeros_like(x), (slice(None), slice(None, torch.tensor(8))), x),
    ),
    Case("gather picks some of the channels", lambda m, x: x.gather(2, torch.zeros(2, 4, 8, 8, dtype=torch.int64)), 4),
    Case("gather picks channels by a tensor", lambda m, x: x.gather(1, torch.zeros(2, 8, 8, 8, dtype=torch.int64))),
    Case(
        "take_along_dim picks from a flattened tensor",
        lambda m, x: x.take_along_dim(torch.arange(1024)).view(2, 8, 8, 8),
    ),
    Case("index_select picks channels by a tensor", lambda m, x: x.index_select(1, torch.arange(8))),
    # movement
    Case("reshape works on an empty tensor", lambda m, x: torch.cat([x, x[:0].reshape(0, 3).reshape(0, 8, 8, 8)])),
    Case("view reinterprets its elements", lambda m, x: x.view(torch.int32).view(x.dtype)),
    Case(
        "hstack adds axes to what it concatenates",
        lambda m, x: x * torch.vstack([torch.hstack([x[0, :, 0, 0], m.a])[:8]] * 2)[..., None, None],
        layers={"a": scale(4)},
    ),
    Case("pad pads along the channels with copies of them", lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 1), "circular"), 10),
    Case("pad crops the channels with a negative padding", lambda m, x: F.pad(x, (0, 0, 0, 0, -2, -2)), 4),
    Case(
        "repeat_interleave repeats a flattened tensor, or by numbers that are computed",
        lambda m, x: x.repeat_interleave(2).view(2, 16, 8, 8),
        16,
    ),
    # modules
    Case(
        "lstm carries its channels from step to step",
        lambda m, x: m.a(x.flatten(2).mT)[0].mT.view(2, 8, 8, 8),
        layers={"a": nn.LSTM(8, 8, batch_first=True)},
    ),
    # over an axis
    Case(
        "layer_norm normalises over channels that lie along several axes",
        lambda m, x: (
            F.layer_norm(x.view(2, 2, 4, 8, 8).permute(0, 3, 4, 1, 2), (2, 4)).permute(0, 3, 4, 1, 2).flatten(1, 2)
        ),
    ),
    Case("prod has an axis that is not an integer", lambda m, x: x.prod(torch.tensor(2))[..., None]),
    Case("sum runs over all channels at once", lambda m, x: x * x.sum()),
    Case("diff takes several tensors", lambda m, x: x.diff(dim=2, prepend=x[:, :, :1])),
    Case("fractional_max_pool2d draws random numbers", lambda m, x: F.fractional_max_pool2d(x, 2, output_size=4)),
    # weights
    Case(
        "axis 0 of 'a' both makes and reads channels",
        lambda m, x: F.conv2d(F.conv2d(x, m.a), m.a.transpose(0, 1)),
        layers={"a": weight(8, 8, 1, 1)},
    ),
    Case(
        "'a' torch.vstack adds axes to what it concatenates",
        lambda m, x: x * torch.vstack([m.a, m.a]).view(8, 1, 1),
        layers={"a": scale(4)},
    ),
)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_declined_call_is_frozen_for_its_reason(case: Case) -> None:
    torch.manual_seed(0)
    model, inputs = case.build().double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    model(inputs)  # it is a network that runs
    groups = analyze(model, inputs)
    assert groups.mergeable_channels == 0
    assert any(case.reason in entry.reason for entry in groups.frozen), [entry.reason for entry in groups.frozen]


TOKENS, WIDTH = 64, 8
PROJECTIONS, SCORES = 4 * TOKENS * WIDTH**2, 2 * TOKENS**2 * WIDTH
COUNTED: dict[str, tuple[Forward, nn.Module | None, int]] = {
    "attention, a module": (
        lambda m, y: m.a(y, y, y)[0],
        nn.MultiheadAttention(WIDTH, 2, batch_first=True),
        PROJECTIONS + SCORES,
    ),
    "attention, written out": (lambda m, y: (y @ y.mT).softmax(-1) @ y, None, SCORES),
    "LSTM, both ways, two layers": (
        lambda m, y: m.a(y)[0],
        nn.LSTM(WIDTH, 4, 2, batch_first=True, bidirectional=True),
        TOKENS * 2 * 2 * 4 * 4 * (WIDTH + 4),
    ),
    "GRU": (lambda m, y: m.a(y)[0], nn.GRU(WIDTH, WIDTH, batch_first=True), TOKENS * 3 * WIDTH * 2 * WIDTH),
    "a cell": (lambda m, y: m.a(y[0])[0][None], nn.LSTMCell(WIDTH, WIDTH), TOKENS * 4 * WIDTH * 2 * WIDTH),
}


@pytest.mark.parametrize("case", COUNTED.values(), ids=COUNTED)
def test_what_stays_as_it_is_is_counted(case: tuple[Forward, nn.Module | None, int]) -> None:
    """By hand; attention has four projections and two products, of queries with keys and of scores with values."""
    middle, module, expected = case
    network = between(
        lambda m, x: middle(m, x.flatten(2).mT).mT.reshape(1, 8, 8, 8), **{"a": module} if module else {}
    )()
    plain = between(lambda m, x: x)()
    image = torch.zeros(1, 3, 8, 8)
    assert analyze(network, image).macs() - analyze(plain, image).macs() == expected


COMPUTED, HIDDEN = "has a weight that is computed", nn.Conv2d(8, 6, 1)
UNHELD: dict[str, tuple[Forward, dict[str, Any], str, str]] = {
    "scaled": (lambda m, x: F.conv2d(x, m.a.weight * 0.5, m.a.bias), {"a": nn.Conv2d(8, 6, 1)}, "", COMPUTED),
    "transposed": (lambda m, x: F.conv_transpose2d(x, m.a.sin()), {"a": weight(8, 6, 1, 1)}, "", COMPUTED),
    "linear": (
        lambda m, x: F.linear(x.movedim(1, -1), m.a.tanh()).movedim(-1, 1),
        {"a": weight(6, 8)},
        "",
        COMPUTED,
    ),
    "spectral norm": (lambda m, x: m.a(x), {"a": parametrizations.spectral_norm(nn.Conv2d(8, 6, 1))}, "a", COMPUTED),
    "not registered": (lambda m, x: [HIDDEN][0](x), {}, "", "no parameter of the model; register its layer"),
}


@pytest.mark.parametrize("name", UNHELD)
def test_channels_that_no_parameter_holds_are_counted_with_their_reason(name: str) -> None:
    middle, layers, module, reason = UNHELD[name]
    groups = analyze(between(middle, head=6, **layers)(), torch.randn(1, 3, 8, 8))
    assert groups.channels == 8 + 6 + 4
    assert [entry.channels for entry in groups.frozen if entry.module == module and reason in entry.reason] == [6]
