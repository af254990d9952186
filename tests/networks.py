"""Random convolutional networks: a program as data, and a module that runs it.

A :class:`Program` is a list of :class:`Step`, each of which names an operation, one or two earlier maps (counted from the latest, modulo
how many there are) and a number from which the operation takes its choices. Every program is valid, zero is the plainest
choice throughout, and ``repr`` of a program is Python that makes it again, so a failing example of Hypothesis can be pasted:

>>> print(Program((Step("conv"), Step("add", 0, 1))).source())
x0 = input
x1 = conv(x0, n=0)
x2 = add(x1, x0, n=0)
output point(x2, n=0)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

T = TypeVar("T")
WIDTHS = (4, 6, 2, 8, 3, 5)
INPUT = (2, 3, 6, 6)


@dataclass(frozen=True)
class Step:
    """One operation: its name, its operands counted from the latest map, and the number behind its choices."""

    op: str
    a: int = 0
    b: int = 0
    n: int = 0


@dataclass(frozen=True)
class Program:
    """Steps, then the heads that make the outputs."""

    steps: tuple[Step, ...]
    heads: tuple[Step, ...] = (Step("point"),)

    def source(self) -> str:
        """The program as lines to read; names assume that every step gives one map (a split gives several)."""
        lines, net = ["x0 = input"], Interpreter(self)
        for step, made in zip(self.steps, net.made, strict=True):
            count, names = made[0], ", ".join(f"x{i}" for i in range(made[0], made[1]))
            lines.append(f"{names or '_'} = {_call(step, count)}")
        return "\n".join(
            [*lines, *(f"output {_call(head, net.made[-1][1] if net.made else 1)}" for head in self.heads)]
        )


def _call(step: Step, count: int) -> str:
    operands = [f"x{count - 1 - step.a % count}"]
    if step.op in TWO:
        operands.append(f"x{count - 1 - step.b % count}")
    return f"{step.op}({', '.join(operands)}, n={step.n})"


class Choice:
    """Takes choices from a number, digit by digit; the first options for zero."""

    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, *options: T) -> T:
        self.n, index = divmod(self.n, len(options))
        return options[index]


class Interpreter(nn.Module):
    """Runs a program. Layers and sizes are made on the first run, in the constructor, and looked up afterwards.

    Attributes:
        made: for each step how many maps there were before and after it.
    """

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program
        self.layers, self.weights = nn.ModuleDict(), nn.ParameterDict()
        self.constants: dict[str, Any] = {}
        self.made: list[tuple[int, int]] = []
        self.key = ""
        with torch.no_grad():
            self.building = True
            self.forward(torch.randn(INPUT))
            self.building = False

    def layer(self, make: Callable[[], nn.Module], name: str = "") -> Any:
        """The layer of this step called ``name``; with a leading underscore, one that all steps share."""
        key = name if name.startswith("_") else self.key + name
        if key not in self.layers:
            self.layers[key] = make()
        return self.layers[key]

    def weight(self, make: Callable[[], Tensor], name: str = "") -> Any:
        key = name if name.startswith("_") else self.key + name
        if key not in self.weights:
            self.weights[key] = nn.Parameter(make())
        return self.weights[key]

    def shape(self, x: Tensor, name: str = "") -> tuple[int, ...]:
        """The shape of ``x`` as plain numbers, as it was on the first run."""
        key = self.key + name
        if key not in self.constants:
            self.constants[key] = tuple(x.shape)
        shape: tuple[int, ...] = self.constants[key]
        return shape

    def forward(self, x: Tensor) -> Any:
        pool = [x.clone()]
        for index, step in enumerate(self.program.steps):
            self.key, before = f"{step.op}{index}", len(pool)
            made = OPS[step.op](self, Choice(step.n), *self._operands(step, pool))
            pool += list(made) if isinstance(made, (tuple, list)) else [made]
            if self.building:
                self.made.append((before, len(pool)))
        outputs = []
        for index, head in enumerate(self.program.heads):
            self.key = f"head{index}"
            outputs.append(HEADS[head.op](self, Choice(head.n), *self._operands(head, pool)))
        return outputs[0] if len(outputs) == 1 else outputs

    @staticmethod
    def _operands(step: Step, pool: Sequence[Tensor]) -> list[Tensor]:
        places = (step.a, step.b) if step.op in TWO else (step.a,)
        return [pool[-1 - place % len(pool)] for place in places]


Op = Callable[..., Any]
OPS: dict[str, Op] = {}
HEADS: dict[str, Op] = {}
TWO: set[str] = set()


def op(function: Op) -> Op:
    OPS[function.__name__.rstrip("_")] = function
    return function


def two(function: Op) -> Op:
    TWO.add(function.__name__.rstrip("_"))
    return op(function)


def head(function: Op) -> Op:
    HEADS[function.__name__] = function
    return function


def fitted(m: Interpreter, b: Tensor, a: Tensor, channels: bool = True) -> Tensor:
    """``b`` in the shape of ``a``, by interpolation and a 1x1 convolution where needed."""
    to, of = m.shape(a, "to"), m.shape(b, "of")
    if of[2:] != to[2:]:
        b = F.interpolate(b, size=to[2:])
    if channels and of[1] != to[1]:
        b = m.layer(lambda: nn.Conv2d(of[1], to[1], 1), "fit")(b)
    return b


# ---------------------------------------------------------------------------------------- layers with weights


@op
def conv(m: Interpreter, c: Choice, x: Tensor) -> Any:
    out, kernel, bias = c(*WIDTHS), c(1, 3), c(True, False)
    stride, dilation = c(1, 2), c(1, 2)
    width = m.shape(x)[1]
    return m.layer(lambda: nn.Conv2d(width, out, kernel, stride, kernel // 2 * dilation, dilation, bias=bias))(x)


@op
def grouped(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width = m.shape(x)[1]
    groups, out = next(g for g in (2, 3, 1) if width % g == 0), c(6, 12)
    return m.layer(lambda: nn.Conv2d(width, out, 3, padding=1, groups=groups))(x)


@op
def depthwise(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width, multiplier = m.shape(x)[1], c(1, 2)
    return m.layer(lambda: nn.Conv2d(width, width * multiplier, 3, padding=1, groups=width))(x)


@op
def norm(m: Interpreter, c: Choice, x: Tensor) -> Any:
    kind, width = c("batch", "instance", "plain"), m.shape(x)[1]
    if kind == "instance":
        return m.layer(lambda: nn.InstanceNorm2d(width, affine=True))(F.pad(x, (0, 1, 1, 0)))
    return m.layer(lambda: nn.BatchNorm2d(width, affine=kind == "batch"))(x)


@op
def prelu(m: Interpreter, c: Choice, x: Tensor) -> Any:
    slopes = c(m.shape(x)[1], 1)
    return m.layer(lambda: nn.PReLU(slopes))(x)


@op
def shared_conv(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width = m.shape(x)[1]
    return m.layer(lambda: nn.Conv2d(width, width, 3, padding=1), f"_conv{width}")(x)


@op
def shared_weight(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width = m.shape(x)[1]
    w = m.weight(lambda: torch.randn(width, width, 1, 1) * 0.4, f"_w{width}")
    b = m.weight(lambda: torch.randn(width), f"_b{width}") if c(True, False) else None
    return F.conv2d(x, w, b)


@op
def shared_norm(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width = m.shape(x)[1]
    return m.layer(lambda: nn.BatchNorm2d(width), f"_norm{width}")(x)


@op
def shared_prelu(m: Interpreter, c: Choice, x: Tensor) -> Any:
    return m.layer(nn.PReLU, "_prelu")(x)


@op
def scale(m: Interpreter, c: Choice, x: Tensor) -> Any:
    shape = c((-1, 1, 1), (1, -1, 1, 1))
    width = m.shape(x)[1]
    g = m.weight(lambda: torch.rand(width).add(0.5).reshape(shape))
    return c(lambda: x * g, lambda: x + g, lambda: g - x)()


@op
def squeeze_excite(m: Interpreter, c: Choice, x: Tensor) -> Any:
    batch, width = m.shape(x)[:2]
    if c(True, False):
        gate = m.layer(lambda: nn.Conv2d(width, 3, 1), "a")(x.mean((2, 3), keepdim=True))
        return x * torch.sigmoid(m.layer(lambda: nn.Conv2d(3, width, 1), "b")(F.relu(gate)))
    gate = m.layer(lambda: nn.Linear(width, 3), "a")(F.adaptive_avg_pool2d(x, 1).flatten(1))
    gate = m.layer(lambda: nn.Linear(3, width), "b")(gate).sigmoid()
    return x * (gate.view(batch, width, 1, 1) if c(True, False) else gate[:, :, None, None].expand_as(x))


@op
def spatial_gate(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width = m.shape(x)[1]
    return x * torch.sigmoid(m.layer(lambda: nn.Conv2d(width, 1, 3, padding=1))(x))


@op
def channels_last(m: Interpreter, c: Choice, x: Tensor) -> Any:
    batch, width, height, wide = m.shape(x)
    layer, way = m.layer(lambda: nn.Linear(width, 5)), c("permute", "tokens")
    if way == "permute":
        return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(batch, 5, height, wide)


@op
def bottleneck(m: Interpreter, c: Choice, x: Tensor) -> Any:
    """Through one vector and back to a map."""
    batch, width, height, wide = m.shape(x)
    code = m.layer(lambda: nn.Linear(width * height * wide, 5), "a")(
        x.flatten(1) if c(True, False) else x.reshape(batch, width * height * wide)
    )
    y = m.layer(lambda: nn.Linear(5, 4 * 3 * 3), "b")(code)
    return c(lambda: y.view(-1, 4, 3, 3), lambda: y.reshape(batch, 3, 3, 4).permute(0, 3, 1, 2))()


# ---------------------------------------------------------------------------------------- element by element


@op
def act(m: Interpreter, c: Choice, x: Tensor) -> Any:
    return c(F.relu, torch.sigmoid, F.gelu, torch.abs, F.hardswish, lambda t: 2 * t - 1, lambda t: t.clamp(-1, 1))(x)


@op
def act_in_place(m: Interpreter, c: Choice, x: Tensor) -> Any:
    return c(lambda: F.relu(x, inplace=True), x.sigmoid_, lambda: x.mul_(0.5))()


@two
def add(m: Interpreter, c: Choice, a: Tensor, b: Tensor) -> Any:
    return c(torch.add, torch.sub)(a, fitted(m, b, a))


@two
def add_in_place(m: Interpreter, c: Choice, a: Tensor, b: Tensor) -> Any:
    b = fitted(m, b, a).clone()  # it may be a view of the same memory
    a += b
    return a


@two
def mul(m: Interpreter, c: Choice, a: Tensor, b: Tensor) -> Any:
    b = fitted(m, b, a)
    return c(lambda: a * b, lambda: torch.maximum(a, b), lambda: torch.where(a > 0, a, b))()


@op
def residual(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width = m.shape(x)[1]
    return x + m.layer(lambda: nn.Conv2d(width, width, 3, padding=1))(F.relu(x))


@op
def centred(m: Interpreter, c: Choice, x: Tensor) -> Any:
    mean = x.mean((2, 3), keepdim=True)
    return x - (mean if c(True, False) else mean.expand_as(x))


@op
def over_channels(m: Interpreter, c: Choice, x: Tensor) -> Any:
    """What mixes the channels must freeze them."""
    return c(lambda: x * x.mean(1, keepdim=True), lambda: x.softmax(1), lambda: x.sort(1).values, lambda: x.cumsum(1))()


@op
def gated_halves(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width = m.shape(x)[1] // 2 * 2
    if not width:
        return x.tanh()
    a, b = x[:, :width].chunk(2, 1)
    return c(lambda: a.tanh() * b.sigmoid(), lambda: a + b, lambda: a * b)()


# ---------------------------------------------------------------------------------------- data movement


@two
def cat(m: Interpreter, c: Choice, a: Tensor, b: Tensor) -> Any:
    b = fitted(m, b, a, channels=False)
    return torch.cat(c([a, b], [b, a], [a, b, a], [a, b.relu()]), 1)


@two
def stack(m: Interpreter, c: Choice, a: Tensor, b: Tensor) -> Any:
    both = torch.stack([a, fitted(m, b, a)], c(1, 2))
    return both.flatten(1, 2) if c(True, False) else both.unbind(1)[0].flatten(1, -3)


@op
def split(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width = m.shape(x)[1]
    if width < 2:
        return x * 0.5
    at = c(width // 2, 1, width - 1)
    way = c("chunk", "split", "slices")
    if way == "chunk":
        a, b = x[:, : width // 2 * 2].chunk(2, 1)
    elif way == "split":
        a, b = x.split([at, width - at], dim=1)
    else:
        a, b = x[:, :at], x[:, at:]
    joined = c((a, b), (b, a), (a.relu(), b), (a, b.flip(3)), (b, a, b))
    return [a, b] if c(False, True) else torch.cat(joined, 1)


@op
def every_other(m: Interpreter, c: Choice, x: Tensor) -> Any:
    even, odd = x[:, ::2], x[:, 1::2]
    return torch.cat([odd, even], 1) if c(True, False) else even


@op
def shuffle(m: Interpreter, c: Choice, x: Tensor) -> Any:
    batch, width, height, wide = m.shape(x)
    groups = next(g for g in (2, 3, 1) if width % g == 0)
    if c(True, False):
        return x.view(batch, groups, width // groups, height, wide).transpose(1, 2).reshape(batch, width, height, wide)
    n, k, h, w = x.shape
    return x.reshape(n, groups, k // groups, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


@op
def move(m: Interpreter, c: Choice, x: Tensor) -> Any:
    return c(lambda: x.flip(1), lambda: x.flip(2), lambda: x.roll(1, 3), lambda: x.transpose(2, 3))()


@op
def roll(m: Interpreter, c: Choice, x: Tensor) -> Any:
    return x.roll(c(1, -2), 1)


@op
def picked(m: Interpreter, c: Choice, x: Tensor) -> Any:
    """One channel, or a few from the middle, beside the whole."""
    at, width = 2, m.shape(x)[1]
    if width < 4:
        return x.neg()
    part = c(x[:, at], x.select(1, at), x[:, at : at + 2], x[:, -at])
    return torch.cat([x, part if part.dim() == 4 else part.unsqueeze(1)], 1)


@op
def narrow(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width = m.shape(x)[1]
    at = width // 2
    return torch.cat([x.narrow(1, at, width - at), x.narrow(1, 0, at)], 1) if at else x.narrow(2, 0, 1)


@op
def permuted(m: Interpreter, c: Choice, x: Tensor) -> Any:
    order = torch.randperm(m.shape(x)[1], generator=torch.Generator().manual_seed(c.n)).tolist()
    return x[:, order]


@op
def pad(m: Interpreter, c: Choice, x: Tensor) -> Any:
    return c(
        lambda: F.pad(x, (1, 0, 0, 1)),
        lambda: F.pad(x, (0, 0, 0, 0, 1, 2)),
        lambda: F.pad(x, (1, 1, 0, 0), mode="replicate"),
    )()


@op
def shortcut(m: Interpreter, c: Choice, x: Tensor) -> Any:
    """A padded, subsampled shortcut around a wider convolution."""
    width, more = m.shape(x)[1], c(2, 4)
    y = m.layer(lambda: nn.Conv2d(width, width + more, 3, 2, 1))(x)
    s = x[:, :, ::2, ::2]
    if c(True, False):
        return y + F.pad(s, (0, 0, 0, 0, more // 2, more // 2))
    return y + torch.cat([s, s[:, :1].expand(-1, more, -1, -1) * 0], 1)


@op
def focus(m: Interpreter, c: Choice, x: Tensor) -> Any:
    x = F.adaptive_avg_pool2d(x, 4)
    return torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., 1::2, 1::2]], 1)


@op
def there_and_back(m: Interpreter, c: Choice, x: Tensor) -> Any:
    """Views that change nothing in the end, with an activation in between."""
    batch, width, height, wide = m.shape(x)
    if c(True, False):
        return x.reshape(batch, width * height, wide).relu().view(batch, width, height, wide)
    return (
        x.permute(0, 2, 3, 1).reshape(batch, -1, width).sigmoid().view(batch, height, wide, width).permute(0, 3, 1, 2)
    )


# ---------------------------------------------------------------------------------------- over space


@op
def pool(m: Interpreter, c: Choice, x: Tensor) -> Any:
    pooled: Tensor = c(
        lambda: F.max_pool2d(x, 3, 1, 1), lambda: F.adaptive_avg_pool2d(x, 3), lambda: F.avg_pool2d(x, 3, 1, 1)
    )()
    return pooled


@op
def resize(m: Interpreter, c: Choice, x: Tensor) -> Any:
    return (
        F.interpolate(x, size=c((6, 6), (3, 4))) if c(True, False) else F.interpolate(x, size=(4, 4), mode="bilinear")
    )


# ---------------------------------------------------------------------------------------- heads


@head
def point(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width = m.shape(x)[1]
    return m.layer(lambda: nn.Conv2d(width, 2, 1))(x)


@head
def pooled(m: Interpreter, c: Choice, x: Tensor) -> Any:
    width = m.shape(x)[1]
    return m.layer(lambda: nn.Linear(width, 3))(
        c(lambda: x.mean((2, 3)), lambda: F.adaptive_max_pool2d(x, 1).flatten(1))()
    )


@head
def flat(m: Interpreter, c: Choice, x: Tensor) -> Any:
    batch, width, height, wide = m.shape(x)
    size = width * height * wide
    y = c(
        lambda: x.flatten(1),
        lambda: x.reshape(-1, size),
        lambda: x.reshape(batch, -1),
        lambda: x.permute(0, 2, 3, 1).flatten(1),
    )()
    return m.layer(lambda: nn.Linear(size, 3))(y)


@head
def raw(m: Interpreter, c: Choice, x: Tensor) -> Any:
    return {"map": x, "largest": x.amax((2, 3))}
