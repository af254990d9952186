"""Model -> channel groups, and how its program can follow when channels go.

The dependency analysis looks at the functions that ran. Whether the *program* still runs with fewer channels is another question:
sizes may be written into it (``view(-1, 9216)``, a channel shuffle, a ``chunk``). Where such a call meets channels that could go,

1. ``torch.fx`` traces the model symbolically; the graph can be edited, so those channels stay free;
2. where it cannot, a trial decides: channels are merged at random, the module runs, and whatever meets a call whose result is
   not as foretold stays, with the line as the reason. The trial is repeated until it passes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from pdc_fx.errors import InputError, TraceError, require_kind
from pdc_fx.ir import ChannelGroups, ClusterPlan, Integers, first_appearance
from pdc_fx.passes.base import Pass
from pdc_fx.passes.compare import attempted, called, larger_batch, random_inputs
from pdc_fx.passes.dependency import Solution, Stuck, flow_of, matches, places_of, solve, spread
from pdc_fx.passes.gathers import Gather, gathers
from pdc_fx.passes.literals import Program, edited
from pdc_fx.passes.prediction import Mismatch, Prediction, lie_alike, of_shape, takes_numbers
from pdc_fx.passes.random_plans import random_widths
from pdc_fx.passes.surgery import compacted
from pdc_fx.passes.tied import tie_once
from pdc_fx.rules import Channels, Flow, Weight
from pdc_fx.rules.base import beside_first
from pdc_fx.rules.channels import FIXED
from pdc_fx.rules.indexing import is_mask
from pdc_fx.rules.literals import literal_of
from pdc_fx.rules.registry import functions, moves, rule_for
from pdc_fx.rules.resize import follows
from pdc_fx.symbolic import symbolic_trace
from pdc_fx.trace import (
    Inputs,
    Recording,
    as_arguments,
    copied,
    fresh,
    function_name,
    looking_at,
    named_outputs,
    record,
    record_graph_module,
    with_same_draws,
)


@dataclass(frozen=True)
class Analysis:
    """What is known of a model: its channels and, where sizes are written into it, its program."""

    solution: Solution
    program: Program | None = None
    stuck: tuple[Stuck, ...] = ()

    @property
    def groups(self) -> ChannelGroups:
        return self.solution.groups


class AnalyzeDependencies(Pass[nn.Module, Analysis]):
    """The analysis as a pass; ``recording`` saves it the forward pass where one was recorded already."""

    def __init__(
        self, example_inputs: Inputs, frozen: str | Iterable[str] = (), recording: Recording | None = None
    ) -> None:
        self.example_inputs, self.recording = example_inputs, recording
        require_kind(
            frozen, Iterable, "a name of a module, or a list of names,", "names are those of model.named_modules()"
        )
        self.frozen = (frozen,) if isinstance(frozen, str) else tuple(frozen)
        for name in self.frozen:
            require_kind(name, str, "a name of a module to freeze", "names are those of model.named_modules()")

    def call(self, value: nn.Module) -> Analysis:
        recording = self.recording or record(value, self.example_inputs)
        _require_modules(value, self.frozen)
        _require_one_way(recording)
        solution = solve(flow_of(recording), self.frozen)
        if not solution.groups.groups and not _spread(solution):
            return Analysis(solution)
        plan = random_widths(solution.groups, 0)
        prediction = Prediction(solution, plan)
        fits = not _ordered(prediction) and (
            not follows_sizes(value, prediction)
            or trial(compacted(value, prediction), prediction, self.example_inputs) is None
        )
        if fits and not _spread(solution):
            return Analysis(solution)
        program = traced(value, self.example_inputs, recording)
        if program is not None:
            return self._edited(value, *program)
        return Analysis(solution) if fits else self._tried(value, solution)

    def _edited(self, model: nn.Module, program: Program, recording: Recording) -> Analysis:
        """The analysis of the symbolic graph, with what no edit can mend frozen."""
        flow, users = flow_of(recording), _users(program)

        def analyzed(stuck: list[Stuck]) -> Analysis:
            found: list[Gather] = []

            def movable(flow: Flow, unit: Integers) -> frozenset[fx.Node]:
                nodes, chains = gathers(flow, unit, users)
                found.extend(chains)
                return nodes

            solution = solve(flow, self.frozen, stuck=stuck, movable=movable)
            return Analysis(solution, replace(program, gathers=tuple(found)))

        def attempt(analysis: Analysis, plan: ClusterPlan) -> Mismatch | None:
            assert analysis.program is not None
            prediction = Prediction(analysis.solution, plan)
            result = edited(compacted(model, prediction), analysis.program, prediction, self.example_inputs)
            return result if isinstance(result, Mismatch) else None

        return _until_it_fits(analyzed, attempt)[0]

    def _tried(self, model: nn.Module, solution: Solution) -> Analysis:
        """Freeze what trial merges show to be written into the program.

        The reference is a tied copy, since a program that branches on the data must take the same way in both.
        """
        tied = copied(model).requires_grad_(False)
        tie_once(tied, random_widths(solution.groups, 0))
        flow = flow_of(record(tied, self.example_inputs))

        def analyzed(stuck: list[Stuck]) -> Analysis:
            return Analysis(solve(flow, self.frozen, stuck=stuck))

        def attempt(analysis: Analysis, plan: ClusterPlan) -> Mismatch | None:
            prediction = Prediction(analysis.solution, plan)
            return _ordered(prediction) or trial(compacted(tied, prediction), prediction, self.example_inputs)

        _, stuck = _until_it_fits(analyzed, attempt)
        return Analysis(solve(solution.flow, self.frozen, stuck=stuck), stuck=tuple(stuck))


def _until_it_fits(
    analyzed: Callable[[list[Stuck]], Analysis], attempt: Callable[[Analysis, ClusterPlan], Mismatch | None]
) -> tuple[Analysis, list[Stuck]]:
    """Merge at random and freeze the channels at whatever does not come out as foretold, until all does."""
    stuck: list[Stuck] = []
    analysis = analyzed(stuck)
    plan = random_widths(analysis.groups, 0)
    while analysis.groups.groups and (mismatch := attempt(analysis, plan)) is not None:
        stuck.append(_blamed(mismatch, analysis.solution))
        analysis = analyzed(stuck)
        plan = restricted(plan, analysis.groups)
    return analysis, stuck


def traced(model: nn.Module, example_inputs: Inputs, recording: Recording) -> tuple[Program, Recording] | None:
    """The model as a symbolic graph, and what the graph does; None where ``torch.fx`` cannot give one that does the same on any batch."""
    try:
        module = symbolic_trace(model, example_inputs)
        now, calls = record_graph_module(module, example_inputs, model)
    except TraceError:
        return None  # the channels concerned will stay, with the reason
    if not _same_outputs(recording.output, now.output) or not _fits_other_batches(model, module, example_inputs):
        return None
    if _remembers(model, example_inputs):
        return None
    own = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    constants = {name: tensor for name, tensor in module.named_buffers() if name not in own}
    return Program(module.graph, constants, calls), now


def _fits_other_batches(model: nn.Module, module: nn.Module, example_inputs: Inputs) -> bool:
    """Whether the graph runs on batches of one more, if the model does: a forward pass may read the size of the batch as a number."""
    inputs = larger_batch(example_inputs)
    expected = None if inputs is None else attempted(model, inputs)
    if inputs is None or expected is None:
        return True
    actual = attempted(module, inputs)
    return actual is not None and _same_outputs(expected, actual)


def _remembers(model: nn.Module, example_inputs: Inputs) -> bool:
    """Whether a forward pass gives something else after another one: what it keeps on its modules would be lost in a graph."""
    others = random_inputs(example_inputs, 1)
    expected = attempted(model, others)
    if expected is None:
        return False
    with looking_at(model, *as_arguments(example_inputs)) as args:
        called(model, args)
        with with_same_draws(model, args):
            return not _same_outputs(expected, called(model, fresh(others)))


def _users(program: Program) -> dict[fx.Node, set[fx.Node]]:
    """Recorded call -> the recorded calls that use its result in the program, or numbers that are computed from its sizes.

    What was not recorded and leads to no call stands for itself.
    """
    users: dict[fx.Node, set[fx.Node]] = defaultdict(set)
    calls: dict[fx.Node, set[fx.Node]] = {}
    for node in reversed(program.graph.nodes):
        found = {c for user in node.users for c in calls[user]}
        if node in program.calls:
            users[program.calls[node]] |= found
            found = {program.calls[node]}
        calls[node] = found or {node}
    return users


def _same_outputs(one: object, other: object) -> bool:
    a, b = (list(named_outputs(value).values()) for value in (one, other))
    return len(a) == len(b) and all(
        torch.equal(x, y) or (x.shape == y.shape and x.dtype == y.dtype and torch.allclose(x, y, equal_nan=True))
        for x, y in zip(a, b, strict=True)
    )


def _spread(solution: Solution) -> bool:
    return any(len(spread(value, solution.unit)) for value in solution.flow.values.values())


def follows_sizes(model: nn.Module, prediction: Prediction) -> bool:
    """Whether the program may do something else with fewer channels: it reads their number, or has it written out."""
    solution = prediction.solution
    for node, dim in solution.flow.recording.sized:
        value = solution.flow.values[node]
        if isinstance(value, Channels) and prediction.shrinks(value):
            read = value.varying if dim is None else {dim % len(value.shape)} & set(value.varying)
            if read:
                return True
    if any(
        isinstance(n.target, type) and prediction.shrinks([v, *_sources(n, solution)])
        for n, v in solution.flow.values.items()
    ):
        return True  # a leaf module, of which nobody knows what it does inside
    if any(
        _meets_constant(value, _sources(node, solution), prediction) for node, value in solution.flow.values.items()
    ):
        return True
    return any(
        (literal_of(node) or takes_numbers(node))
        and prediction.shrinks([value, *_sources(node, solution)])
        and (takes_numbers(node) or _unfit(node, prediction, model))
        for node, value in solution.flow.values.items()
    )


def _meets_constant(value: object, sources: list[object], prediction: Prediction) -> bool:
    """Whether channels that go meet a constant with one place for each of them: its size may be written out (``zeros(1, 16, 1, 1)``)."""
    if not isinstance(value, Channels) or not prediction.shrinks(value):
        return False
    constants = [s for s in sources if isinstance(s, Channels) and s.same and len(s.shape) <= len(value.shape)]
    axes = {d + len(value.shape) - len(s.shape) for s in constants for d in s.same if s.shape[d] > 1}
    return not axes.isdisjoint(value.varying)


def _ordered(prediction: Prediction) -> Mismatch | None:
    """The first call that names channels by their position, some of which go."""
    solution = prediction.solution
    for node, value in solution.flow.values.items():
        written = literal_of(node)
        if written and written.ordered and prediction.shrinks([value, *_sources(node, solution)]):
            source = solution.flow.values[node.all_input_nodes[0]]
            if not isinstance(source, Weight) and not lie_alike(value, source):
                return Mismatch(node, "names channels by their position")
    return None


def _sources(node: fx.Node, solution: Solution) -> list[object]:
    return [solution.flow.values[n] for n in node.all_input_nodes]


def _unfit(node: fx.Node, prediction: Prediction, model: nn.Module) -> bool:
    """Whether a call, with its arguments as they were, does not give the labels foretold when it is run on those foretold."""
    flow = prediction.solution.flow
    value, argument = flow.values[node], flow.first(node)
    if not isinstance(argument, Channels):
        return True
    given, inside = prediction.block(argument), model.get_submodule(node.meta["module"])
    if follows(inside) and not moves(node.target):
        return False
    if given is None:
        return True
    if lie_alike(value, argument):  # still, a normalisation or a reshape writes out how many there are
        return not _shaped(_run(node, torch.empty(given[0], device="meta")), value, prediction)
    expected = prediction.block(value) if isinstance(value, Channels) else None
    if expected is None or any(isinstance(a, fx.Node) for a in tree_leaves(node.args[1:])):
        return True
    result = _run(node, given[1].expand(given[0]).contiguous())
    return result is None or tuple(result.shape) != expected[0] or bool((result != expected[1]).any())


def _shaped(result: Any, value: object, prediction: Prediction) -> bool:
    """Whether a result, or each of several, has the shape foretold."""
    results, values = (list(v) if isinstance(v, (list, tuple)) else [v] for v in (result, value))
    blocks = [prediction.block(v) if isinstance(v, Channels) else None for v in values]
    return len(results) == len(values) and all(
        r is not None and block is not None and of_shape(r.shape, block[0], v)
        for r, v, block in zip(results, values, blocks, strict=True)
    )


def _run(node: fx.Node, argument: Tensor) -> Any:
    """A recorded call on another first argument, and without tensors beside it; None where sizes do not fit."""
    rest, named = fx.node.map_arg(beside_first(node), lambda _: None)
    assert callable(node.target)
    try:
        return node.target(argument, *rest, **named)
    except (RuntimeError, IndexError, TypeError):
        return None


def trial(compact: nn.Module, prediction: Prediction, inputs: Inputs) -> Mismatch | None:
    """Run a compact module; the first call whose result is not as foretold, or None."""
    planned = calls_of(prediction.solution.flow.recording)
    try:
        recording = record(compact, inputs)
    except TraceError as error:
        return Mismatch(planned[min(error.calls, len(planned) - 1)], f"is not reached: {error}")
    calls = calls_of(recording)
    for before, now in zip(planned, calls, strict=False):
        if rule_for(before.target) != rule_for(now.target):
            return Mismatch(before, f"is not reached: {function_name(now.target)} is called instead")
    if len(calls) != len(planned):
        return Mismatch(planned[min(len(calls), len(planned) - 1)], "is reached another number of times")
    return prediction.difference(zip(planned, calls, strict=True), flow_of(recording, prediction.solution.flow))


def calls_of(recording: Recording) -> list[fx.Node]:
    """The functions that ran, in order."""
    return [n for n in recording.graph.nodes if n.op == "call_function"]


def _blamed(mismatch: Mismatch, solution: Solution) -> Stuck:
    """The channels at a call, or at the nearest one before it that holds any that could go."""
    nodes = calls_of(solution.flow.recording)
    for node in reversed(nodes[: nodes.index(mismatch.node) + 1]):
        units = _free_units([solution.flow.values[node], *_sources(node, solution)], solution)
        if len(units):
            break
    else:
        units = np.flatnonzero(solution.group >= 0)
    source = mismatch.node.meta.get("source", "")
    reason = f"{function_name(mismatch.node.target)} {mismatch.reason} ({source})"
    return Stuck(places_of(units, solution), reason, str(mismatch.node.meta.get("module", "")))


def _free_units(value: object, solution: Solution) -> Integers:
    if isinstance(value, (list, tuple)):
        return np.concatenate([_free_units(v, solution) for v in value] or [np.zeros(0, dtype=np.int64)])
    if not isinstance(value, Channels):
        return np.zeros(0, dtype=np.int64)
    units: Integers = np.unique(solution.unit[value.label[value.label != FIXED].numpy()])
    free: Integers = units[solution.group[units] >= 0]
    return free


def restricted(plan: ClusterPlan, groups: ChannelGroups) -> ClusterPlan:
    """The clusters of ``plan`` among the channels of ``groups``, those that it does not know each by itself."""
    known: dict[tuple[str, int, int], tuple[int, int]] = {}
    for index, (group, clusters) in enumerate(zip(plan.groups.groups, plan.clusters, strict=True)):
        first = group.members[0]
        known.update(
            ((first.tensor, first.dim, int(p)), (index, int(c)))
            for p, c in zip(first.positions[:, 0], clusters, strict=True)
        )
    chosen = []
    for group in groups.groups:
        first = group.members[0]
        places = [(first.tensor, first.dim, int(p)) for p in first.positions[:, 0]]
        known_as: dict[tuple[int, int], int] = {}
        numbers = [known_as.setdefault(known.get(place, (-1, row)), row) for row, place in enumerate(places)]
        chosen.append(first_appearance(np.asarray(numbers)))
    return ClusterPlan(groups, tuple(chosen), plan.allocation, plan.options)


_VALUES: set[Any] = {
    *(getattr(Tensor, name) for name in ("__bool__", "__int__", "__float__", "__index__", "item", "tolist", "numpy")),
    *functions("equal allclose is_nonzero nonzero argwhere masked_select unique unique_consecutive"),
}
"""Functions that make a number of a tensor, or a tensor whose size hangs on values: by both Python may decide."""


_WHERE = functions("where")


def _reads_values(node: fx.Node) -> bool:
    masked = node.target is Tensor.__getitem__ and any(map(is_mask, tree_leaves(node.args[1])))
    found = node.target in _WHERE and len(node.args) + len(node.kwargs) == 1
    return node.target in _VALUES or masked or found


def _require_one_way(recording: Recording) -> None:
    """Refuse a program that reads values of its input and of which parts did not run: others may run on other images.

    Such parts would keep their widths while what they read loses channels.
    """
    depends: set[fx.Node] = set()
    for node in recording.graph.nodes:
        if node.op == "placeholder" or not depends.isdisjoint(node.all_input_nodes):
            depends.add(node)
        if recording.unreached and node in depends and _reads_values(node):
            skipped = ", ".join(map(repr, recording.unreached[:3]))
            raise TraceError(
                f"the model reads values of its input, and {skipped} did not run: on other "
                "inputs it may take another way, which would not fit the merged channels",
                where=node.meta["source"],
                hint="compute both ways and choose by torch.where, or remove what is never taken",
            )


def _require_modules(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Refuse a pattern that meets no module: what was to be kept would be merged in silence."""
    names = [name for name, _ in model.named_modules()]
    for pattern in patterns:
        if not any(matches(name, pattern) for name in names):
            near = get_close_matches(pattern, names, n=3)
            raise InputError(
                f"no module is called {pattern!r}, which was to be frozen",
                hint=f"did you mean {', '.join(near)}?" if near else "names are those of model.named_modules()",
            )
