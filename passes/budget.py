"""What a plan may cost: the measures a budget can be a share of, and the widths that hardware likes.

**Widths.** Hardware works on channels in blocks. ONNX Runtime's convolutions (MLAS, ``NCHWc``) pad channels to multiples of 16 with AVX-512
and of 8 with AVX, AVX2 and NEON, and leave that layout altogether where a layer reads a number that is no multiple of 4; tensor cores of a
GPU take halves by 8. Widths in between cost as much as the next block and buy nothing but accuracy. ``auto`` rounds to the provider's block
where a group holds at least four of them, else to half of that, down to 4, and leaves narrower groups alone: a group needs a few widths to
choose from. Where a budget cannot be met so, 8, 4 and 1 are tried. For the CPU the block is 16 on any machine, so that the same
command gives the same plan; 16 is a multiple of 8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from pdc_fx.errors import InputError, PlanError
from pdc_fx.ir import ChannelGroups, ClusterPlan

Widths = Mapping[int, int]
"""Group number -> channels that remain."""

RoundTo = int | Literal["auto"]

TOLERANCE = 0.01  # of what a measure counts: how close a budget must be met

BLOCKS = {"cpu": 16, "cuda": 8, "tensorrt": 8}
"""Channels in a block of the hardware behind each provider."""

_FEWEST_BLOCKS = 4
_SMALLEST_BLOCK = 4


@dataclass(frozen=True)
class Rounding:
    """Which widths a group may have.

    Attributes:
        block: widths are multiples of this.
        shrinks: halve the block for groups that hold few of them.
    """

    block: int = 1
    shrinks: bool = False

    @classmethod
    def of(cls, round_to: int | str, provider: str = "cpu") -> Rounding:
        """The rounding a user names.

        Raises:
            InputError: neither ``auto`` nor a whole number from 1 on, or an unknown provider.

        >>> Rounding.of("auto", "cuda"), Rounding.of(16)
        (Rounding(block=8, shrinks=True), Rounding(block=16, shrinks=False))
        """
        if provider not in BLOCKS:
            raise InputError(f"unknown provider {provider!r}", hint=f"use one of {', '.join(BLOCKS)}")
        if round_to == "auto":
            return cls(BLOCKS[provider], shrinks=True)
        if not isinstance(round_to, int) or round_to < 1:
            raise InputError(f"round_to must be at least 1, or 'auto', not {round_to!r}")
        return cls(round_to)

    def finer(self) -> tuple[Rounding, ...]:
        """This, and what may take its place where a budget cannot be met with it, coarsest first.

        >>> [r.block for r in Rounding(16, shrinks=True).finer()], [r.block for r in Rounding(16).finer()]
        ([16, 8, 4, 1], [16])
        """
        if not self.shrinks:
            return (self,)
        blocks = (self.block, *(b for b in (8, 4, 1) if b < self.block))
        return tuple(replace(self, block=block) for block in blocks)

    def step(self, channels: int) -> int:
        """What the widths of a group of so many channels are multiples of.

        >>> [Rounding(16, shrinks=True).step(n) for n in (256, 64, 48, 24, 12)]
        [16, 16, 8, 4, 1]
        """
        if not self.shrinks:
            return self.block
        block = self.block
        while block >= _SMALLEST_BLOCK:
            if channels >= _FEWEST_BLOCKS * block:
                return block
            block //= 2
        return 1


UNROUNDED = Rounding()


class Measure(Protocol):
    """What a network costs at given widths.

    Attributes:
        what: in words.
        facts: where it comes from, for the plan's options: plain values.
    """

    @property
    def what(self) -> str: ...

    @property
    def facts(self) -> Mapping[str, Any]: ...

    def cost(self, widths: Widths | None, /) -> float:
        """The cost, in a unit of which one is little; of the whole network for None. It does not rise as widths fall."""
        ...

    def proof(self, plan: ClusterPlan) -> float | None:
        """The reduction that the plan's network was measured to have; None where ``cost`` is exact or nothing can be measured."""
        ...


@dataclass(frozen=True)
class Count:
    """A measure that is counted, and therefore exact."""

    what: str
    cost: Callable[[Widths | None], float]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def proof(self, plan: ClusterPlan) -> None:
        return None


def macs(groups: ChannelGroups) -> Count:
    """Multiply-accumulates."""
    return Count("multiply-accumulates", groups.macs)


def params(groups: ChannelGroups) -> Count:
    """Parameters."""
    return Count("parameters", groups.params)


class Budget:
    """The share of a measure that has to go."""

    def __init__(self, measure: Measure, target: float) -> None:
        self.measure, self.target = measure, target
        self.total = measure.cost(None)

    def reduction(self, widths: Widths) -> float:
        return 1 - self.measure.cost(widths) / self.total

    def met(self, widths: Widths) -> bool:
        return self.reduction(widths) >= self.target

    def require_reachable(self, smallest: Widths, rounding: Rounding = UNROUNDED) -> None:
        allowed = f" in steps of {rounding.block}: try a smaller --round-to" if rounding.block > 1 else ""
        most = self.reduction(smallest)
        if most < self.target - TOLERANCE:
            raise PlanError(
                f"a reduction of {self.target:.1%} of the {self.measure.what} cannot be met",
                hint=f"the largest possible here is {most:.1%} (every group at its smallest width{allowed})",
            )
