"""What a method of tying is: data that :class:`~pdc_fx.passes.tie.Tying` goes by."""

from __future__ import annotations

from dataclasses import dataclass

from pdc_fx.errors import InputError


@dataclass(frozen=True)
class Method:
    """How filters of one cluster become identical in the course of a run.

    Attributes:
        rounds: how often clusters are formed anew from the present weights, at a rising rate, and each filter set to the centroid of
            its cluster; 0 for the clusters of the plan, from the first step to the last.
        settled: share of the run after which the last of these rounds has been.
        held: members stay identical between rounds: gradients are averaged inside clusters, weights projected after each step. After
            the last round they always are.
        pull: strength with which members that are not held are drawn to their centroid.
        rest: share of that strength for what rides on a channel.
    """

    name: str
    rounds: int = 0
    settled: float = 0.0
    held: bool = True
    pull: float = 0.0
    rest: float = 1.0

    def __post_init__(self) -> None:
        if self.rounds < 0 or not 0 <= self.settled <= 1 or not 0 <= self.pull < float("inf"):
            raise InputError(
                f"method '{self.name}': rounds and pull are not negative, settled is a share of the run from 0 to 1",
                where=f"rounds={self.rounds}, settled={self.settled}, pull={self.pull}",
            )

    def schedule(self, total_steps: int | None) -> dict[int, float]:
        """Step -> share of the channels to remove then.

        Raises:
            InputError: there are rounds, and the length of the run is not known.

        >>> Method("any", rounds=4, settled=0.4).schedule(100)
        {10: 0.25, 20: 0.5, 30: 0.75, 40: 1.0}
        """
        if not self.rounds:
            return {}
        if total_steps is None or total_steps < 1:
            raise InputError(
                f"mode '{self.name}' spreads its rounds over the run and needs its length", hint="pass total_steps="
            )
        last = max(1, round(total_steps * self.settled))
        return {max(1, round(last * i / self.rounds)): i / self.rounds for i in range(1, self.rounds + 1)}
