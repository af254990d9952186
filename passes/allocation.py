"""Groups + weights + budget -> cluster plan: how wide each group stays.

``uniform`` keeps the same share of every group, residual streams included; what integer widths leave over is
given out one channel at a time by largest remainder. ``global`` takes, over all trees at once, the merge of the least price at the present
widths: the cost it adds per multiply-accumulate, or what else the budget counts, that it saves. The cost of a group is the within-cluster
sum of squares as a share of the whole, summed over its producers: what a narrow layer loses with a filter weighs more than what a wide one
does.

That cost tells what a merge spoils now. What a refit or training can mend afterwards lies in the weights that are left, of which layers on
small maps have many per multiply-accumulate: with a ``capacity`` c the price is ``cost added / saved * (weights removed / saved) ** c``.
"""

from __future__ import annotations

import copy
import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

from torch import nn

from pdc_fx.errors import InputError, NothingToMergeError, PlanError
from pdc_fx.ir import ChannelGroups, ClusterPlan, Integers
from pdc_fx.passes.axes import named_tensors
from pdc_fx.passes.base import Pass
from pdc_fx.passes.budget import TOLERANCE, UNROUNDED, Budget, Measure, Rounding, macs, params
from pdc_fx.passes.cluster import Bloc, blocs

Allocation = Literal["uniform", "global"]
ROUNDS = 4
"""The most networks that are measured for one plan."""
CLOSE, PROVED = 0.02, 0.05
"""How far from its target a measured reduction may lie: for another round to be saved, and for the plan to be given at all."""
LARGEST = 1.25
"""The largest factor by which an aim is corrected at once: a machine that is busy may be wrong by more than a forecast is."""
EXCHANGED = 4
"""The most steps that one group takes for another at the end of an allocation."""


def rounded(bloc: Bloc, rounding: Rounding, min_channels: int) -> Bloc:
    """The bloc with its rounded widths of at least ``min_channels``, and those it has."""

    def allowed(width: int, channels: int) -> bool:
        return width == channels or (width % rounding.step(channels) == 0 and width >= min_channels)

    return replace(bloc, widths=tuple(w for w in bloc.widths if all(map(allowed, w, bloc.widths[0]))))


def require_share(target: object) -> None:
    """Raise :class:`InputError` unless ``target`` is a share between 0 and 1, as a reduction is."""
    if isinstance(target, bool) or not isinstance(target, (int, float)):
        raise InputError(f"a reduction is a number between 0 and 1, not {target!a} ({type(target).__name__})")
    if not 0 < target < 1:
        percent = f"write {target / 100:g} for {target:g}%" if 1 < target < 100 else ""
        raise InputError(f"a reduction is a share between 0 and 1, not {target}", hint=percent)


class PlanClusters(Pass[ChannelGroups, ClusterPlan]):
    """Spread a budget over the groups and cut their trees there."""

    def __init__(
        self,
        model: nn.Module,
        *,
        flops_reduction: float | None = None,
        params_reduction: float | None = None,
        latency_reduction: float | None = None,
        latency: Measure | None = None,
        allocation: Allocation = "global",
        rounding: Rounding = UNROUNDED,
        min_channels: int = 1,
    ) -> None:
        targets = {"flops": flops_reduction, "params": params_reduction, "latency": latency_reduction}
        given = {name: target for name, target in targets.items() if target is not None}
        if len(given) != 1:
            raise InputError(f"give exactly one of {', '.join(f'{name}_reduction' for name in targets)}")
        self.option, self.target = next(iter(given.items()))
        require_share(self.target)
        if (self.option == "latency") != (latency is not None):
            raise InputError("latency_reduction and a measure of latency go together")
        if allocation not in ("uniform", "global"):
            raise InputError(f"unknown allocation {allocation!r}", hint="use 'uniform' or 'global'")
        least: object = min_channels
        if not isinstance(least, int) or least < 1:
            raise InputError(f"min_channels is a whole number from 1 on, not {least!r}")
        self.model, self.latency, self.allocation = model, latency, allocation
        self.rounding, self.min_channels = rounding, min_channels
        self._choices: Callable[[list[Bloc]], list[Bloc]] = list
        self._capacity = 0.0

    def over(self, choices: Callable[[list[Bloc]], list[Bloc]], capacity: float = 0.0) -> PlanClusters:
        """A planner of the same budget over other hierarchies: ``choices`` takes the blocs with Ward's trees."""
        other = copy.copy(self)
        other._choices, other._capacity = choices, capacity
        return other

    def requires(self, value: ChannelGroups) -> None:
        if not value.groups:
            raise NothingToMergeError(
                "no two channels of this model may be merged", hint="'pdc-fx inspect' lists the reasons"
            )
        tensors = named_tensors(self.model)
        for name in dict.fromkeys(member.tensor for group in value.groups for member in group.members):
            found = tuple(tensors[name].shape) if name in tensors else None
            if found != value.shapes[name]:
                here = "has none" if found is None else f"has {'x'.join(map(str, found))}"
                raise InputError(
                    f"the groups belong to another model: '{name}' is {'x'.join(map(str, value.shapes[name]))} there, and this one {here}",
                    hint="analyze the model that is planned for",
                )
            if not bool(tensors[name].detach().isfinite().all()):
                raise InputError(
                    "the weights hold values that are not finite, so that filters cannot be compared",
                    where=f"'{name}'",
                    hint="load weights from before the training went wrong",
                )

    def call(self, value: ChannelGroups) -> ClusterPlan:
        measure = self._measure(value)
        tensors = named_tensors(self.model)
        found = self._choices(blocs(value, tensors))
        choices = {r: [rounded(bloc, r, self.min_channels) for bloc in found] for r in self.rounding.finer()}
        finest = list(choices.values())[-1]
        smallest = _widths(finest, [len(bloc.widths) - 1 for bloc in finest])
        Budget(measure, self.target).require_reachable(smallest, list(choices)[-1])
        return self._proved(measure, lambda aim: self._planned(value, choices, Budget(measure, aim)))

    def ensures(self, value: ChannelGroups, result: ClusterPlan) -> None:
        measured = result.options.get("measured_reduction")
        predicted = Budget(self._measure(value), self.target).reduction(result.widths)
        reached, allowed = (predicted, TOLERANCE) if measured is None else (measured, PROVED)
        if abs(reached - self.target) > allowed:
            raise PlanError(
                f"for a reduction of {self.target:.1%} the nearest that was found here is {reached:.1%}",
                hint=f"{predicted:.1%} were foretold; try again while the machine does nothing else",
            )

    def _measure(self, groups: ChannelGroups) -> Measure:
        return self.latency or (macs(groups) if self.option == "flops" else params(groups))

    def _proved(self, measure: Measure, planned: Callable[[float], ClusterPlan]) -> ClusterPlan:
        """The plan for the target; where its network is measured to miss it, for an aim that is corrected by the miss."""
        aim, found = self.target, dict[float, ClusterPlan]()
        for _ in range(ROUNDS):
            plan = planned(aim)
            measured = measure.proof(plan)
            if measured is None:
                return plan
            if measured <= 0:  # no correction of what was foretold leads anywhere from here
                raise PlanError(
                    f"{aim:.1%} less time was foretold, and the network was measured to take {-measured:.1%} more",
                    hint="the machine is busy, or starting operators takes most of the time: try again, or give --flops-reduction",
                )
            options = {**plan.options, "measured_reduction": round(measured, 4)}
            found[abs(measured - self.target)] = replace(plan, options=options)
            if min(found) <= CLOSE:
                break
            factor = self.target / max(measured, self.target / LARGEST)
            aim = min(aim * max(factor, 1 / LARGEST), (1 + aim) / 2)
        return found[min(found)]

    def _planned(self, groups: ChannelGroups, choices: Mapping[Rounding, list[Bloc]], budget: Budget) -> ClusterPlan:
        """With the coarsest rounding that meets the budget, or the finest."""
        for rounding, chosen in choices.items():
            plan = self._spread(groups, rounding, chosen, budget)
            if abs(budget.reduction(plan.widths) - budget.target) <= TOLERANCE:
                return plan
        if self.latency is None:
            raise self._missed(chosen, plan.widths, budget)
        return plan  # and a measurement decides

    def _missed(self, choices: list[Bloc], widths: Mapping[int, int], budget: Budget) -> PlanError:
        """What to say where no plan meets the budget: the reductions on both sides of it, one step of one bloc away."""
        levels = [bloc.widths.index(tuple(widths[i] for i in bloc.members)) for bloc in choices]
        steps = [
            _widths(choices, [*levels[:i], level, *levels[i + 1 :]])
            for i, bloc in enumerate(choices)
            for level in (levels[i] - 1, levels[i] + 1)
            if 0 <= level < len(bloc.widths)
        ]
        reached = sorted(budget.reduction(found) for found in (widths, *steps))
        below = [r for r in reached if 0 < r < budget.target][-1:]
        near = " and ".join(f"{r:.1%}" for r in (*below, *[r for r in reached if r > budget.target][:1]))
        ways = ["one of these" if "and" in near else "that"]
        ways += ["a smaller --round-to"] if self.rounding.block > 1 else []
        ways += ["allocation 'global'"] if self.allocation == "uniform" else []
        return PlanError(
            f"widths come in whole channels: around a reduction of {budget.target:.1%} there {'are' if 'and' in near else 'is'} {near}",
            hint=f"choose {' or '.join(ways)}",
        )

    def _spread(self, groups: ChannelGroups, rounding: Rounding, choices: list[Bloc], budget: Budget) -> ClusterPlan:
        uniform = self.allocation == "uniform"
        levels = self._uniform(choices, budget) if uniform else self._global(choices, budget, params(groups))
        clusters: dict[int, Integers] = {}
        for bloc, level in zip(choices, levels, strict=True):
            clusters.update(zip(bloc.members, bloc.clusters(level), strict=True))
        options: dict[str, Any] = {
            f"{self.option}_reduction": self.target,
            "round_to": rounding.block,
            "min_channels": self.min_channels,
        }
        if self.latency is not None:
            predicted = round(budget.reduction(_widths(choices, levels)), 4)
            options |= {"predicted_reduction": predicted, "latency": dict(self.latency.facts)}
        return ClusterPlan(groups, tuple(clusters[i] for i in range(len(clusters))), self.allocation, options)

    def _uniform(self, choices: list[Bloc], budget: Budget) -> list[int]:
        """The same share everywhere: the smallest removal that meets the budget, then whole steps by remainder."""

        def levels(share: float) -> list[int]:
            return [bloc.nearest(share) for bloc in choices]

        kept = {widths[0] / bloc.widths[0][0] for bloc in choices for widths in bloc.widths}
        between = {(a + b) / 2 for a, b in pairwise(sorted(kept))}
        shares = sorted(kept | between, reverse=True)
        low, high = 0, len(shares) - 1
        while low < high:
            middle = (low + high) // 2
            met = budget.met(_widths(choices, levels(shares[middle])))
            low, high = (low, middle) if met else (middle + 1, high)
        best, short = levels(shares[low]), levels(shares[max(low - 1, 0)])
        # between two neighbouring shares: widen one after the other as long as the budget holds
        remainder = [i for i in range(len(choices)) if short[i] != best[i]]
        for i in sorted(remainder, key=lambda i: -(choices[i].widths[0][0] * shares[low] % 1)):
            tried = [*best[:i], short[i], *best[i + 1 :]]
            if budget.met(_widths(choices, tried)):
                best = tried
        return best

    def _global(self, choices: list[Bloc], budget: Budget, weights: Measure) -> list[int]:
        """Greedy over all blocs; a stale price is renewed when it comes up, since savings fall as neighbours shrink."""
        levels = [0] * len(choices)
        widths = _widths(choices, levels)

        def shrinks(i: int) -> bool:
            return levels[i] + 1 < len(choices[i].widths)

        def lower(i: int) -> dict[int, int]:
            return {**widths, **dict(zip(choices[i].members, choices[i].widths[levels[i] + 1], strict=True))}

        def price(i: int) -> float:
            after = lower(i)
            saved = saving(budget.measure, after)
            added = choices[i].cost(levels[i] + 1) - choices[i].cost(levels[i])
            return added / saved * (math.pow(saving(weights, after) / saved, self._capacity) if self._capacity else 1)

        def saving(measure: Measure, after: dict[int, int]) -> float:
            return max(measure.cost(widths) - measure.cost(after), 1)

        heap = [(price(i), i) for i in range(len(choices)) if shrinks(i)]
        heapq.heapify(heap)
        while heap and not budget.met(widths):
            _, i = heapq.heappop(heap)
            now = price(i)
            if heap and now > heap[0][0] * (1 + 1e-12):
                heapq.heappush(heap, (now, i))
                continue
            if budget.reduction(lower(i)) > budget.target + TOLERANCE / 2:
                continue  # too large a step so near the end: leave it as it is
            widths = lower(i)
            levels[i] += 1
            if shrinks(i):
                heapq.heappush(heap, (price(i), i))
        return levels if budget.met(widths) else _exchanged(choices, levels, budget)


def _exchanged(choices: list[Bloc], levels: list[int], budget: Budget) -> list[int]:
    """Where the next step of any bloc is too large: the cheapest few in one bloc, for some back in another or none, that meet it."""
    found: list[tuple[float, list[int]]] = []

    def excess(tried: list[int]) -> float:
        more = budget.reduction(_widths(choices, tried)) - budget.target
        if abs(more) <= TOLERANCE:
            found.append(
                (sum(c.cost(new) - c.cost(old) for c, new, old in zip(choices, tried, levels, strict=True)), tried)
            )
        return more

    for i, bloc in enumerate(choices):
        for lower in range(levels[i] + 1, min(levels[i] + EXCHANGED, len(bloc.widths) - 1) + 1):
            fewer = [*levels[:i], lower, *levels[i + 1 :]]
            if excess(fewer) <= 0:
                continue
            for j in range(len(choices)):
                for upper in range(levels[j] - 1, -1, -1) if j != i else ():
                    if excess([*fewer[:j], upper, *fewer[j + 1 :]]) <= 0:
                        break
    return min(found, default=(0.0, levels))[1]


def _widths(choices: list[Bloc], levels: list[int]) -> dict[int, int]:
    """Group number -> width at the given choices."""
    widths: dict[int, int] = {}
    for bloc, level in zip(choices, levels, strict=True):
        widths.update(zip(bloc.members, bloc.widths[level], strict=True))
    return widths
