"""Random programs at scale: draw one from a seed, examine it, make a failing one smaller, keep it for good.

``tests/test_random_networks.py`` does this with Hypothesis for a few hundred programs, ``benchmarks/fuzz.py`` with plain random numbers for
thousands; both examine in the same way.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import more_operations  # noqa: F401 - fills the table of operations
import torch
from activations import differences_inside_clusters, random_partition
from networks import HEADS, INPUT, OPS, TWO, Interpreter, Program, Step
from torch import nn

from pdc_fx import analyze, load, save
from pdc_fx.artifacts import Compressed
from pdc_fx.ir import ClusterPlan
from pdc_fx.passes.check import randomize_statistics
from pdc_fx.passes.compare import compare
from pdc_fx.passes.random_plans import random_halves
from pdc_fx.passes.rewrite import ChannelAddition, describe, merge_channels
from pdc_fx.passes.tie import Tying
from pdc_fx.rules import registered
from pdc_fx.rules.registry import rule_for
from pdc_fx.trace import record

SAVED = Path(__file__).with_name("random_programs.json")
"""Programs that once failed, with the seed: a list of objects ``{"shows", "seed", "delivered", "program"}``."""


def draw(seed: int) -> Program:
    """The program of a seed: a convolution, one to ten operations, one or two heads."""
    chance = random.Random(seed)

    def step(name: str) -> Step:
        return Step(name, chance.randrange(4), chance.randrange(6) if name in TWO else 0, chance.randrange(72))

    steps = [step(chance.choice(sorted(OPS))) for _ in range(chance.randint(1, 10))]
    heads = [step(chance.choice(sorted(HEADS))) for _ in range(chance.choice((1, 1, 2)))]
    return Program((Step("conv", n=chance.randrange(72)), *steps), tuple(heads))


def made(program: Program, seed: int) -> tuple[Interpreter, torch.Tensor]:
    """The network in float64 with statistics at random, and an input."""
    torch.manual_seed(0)
    model = Interpreter(program).double().requires_grad_(False)
    inputs = torch.randn(INPUT, dtype=torch.float64)
    randomize_statistics(model, seed)
    return model, inputs


def rules_of(model: nn.Module, inputs: Any) -> set[str]:
    """Names of the rules that serve the calls of ``model``, with the file each is in."""
    calls = [node.target for node in record(model, inputs).graph.nodes if node.op == "call_function"]
    return {_name(rule) for target in calls if (rule := rule_for(target))}


def rules_in_all() -> list[str]:
    """The names of all rules there are."""
    return sorted({_name(rule) for rule in registered().values()})


def _name(rule: Any) -> str:
    rule = getattr(rule, "func", rule)
    return f"{rule.__module__.rpartition('.')[2]}.{rule.__name__}"


def examine(program: Program, seed: int) -> str:
    """Raise an AssertionError where the analysis of ``program`` is wrong; otherwise say what came out.

    An even seed draws any partition, an odd one merges half of the channels.
    """
    model, inputs = made(program, seed)
    groups = analyze(model, inputs)
    if not groups.groups:
        return "nothing to merge"
    plan = random_halves(groups, seed) if seed % 2 else random_partition(groups, seed)
    tied = copy.deepcopy(model)
    Tying(tied, plan, "hard").snap()
    found = differences_inside_clusters(tied, plan, inputs)
    assert not found.differences, "\n".join(map(str, found.differences))
    compact = merge_channels(tied, plan, inputs)
    comparison = compare(tied, compact, inputs, tolerance=1e-9)
    assert comparison.passed, comparison
    assert plan.params_after == sum(p.numel() for p in compact.parameters())
    measured = analyze(compact, inputs)
    if any(step.op == "over_places" for step in program.steps):
        # a layer along an axis of the image is counted with as many rows as there were channels
        assert measured.macs() <= plan.macs_after
        return describe(compact)
    # a product of two activations is counted at the width that it had
    expected, counted = plan.macs_after - groups.fixed_macs, measured.macs() - measured.fixed_macs
    # and a graph that was edited leaves out layers whose results nothing uses
    assert counted == expected or (describe(compact) == "GraphModule" and counted < expected)
    return describe(compact)


def deliver_and_load(program: Program, seed: int, folder: Path) -> str:
    """Save in float32 (which exports to ONNX and verifies), load into a network with other weights, compare."""
    model, inputs = made(program, seed)
    model, inputs = model.float().eval(), inputs.float()
    groups = analyze(model, inputs)
    if not groups.groups:
        return "nothing to merge"
    plan: ClusterPlan = random_halves(groups, seed)
    tied = copy.deepcopy(model)
    Tying(tied, plan, "hard").snap()
    addition = ChannelAddition(plan, inputs)
    compact = addition(tied).eval()
    assert addition.comparison is not None
    save(Compressed(compact, tied, plan, (inputs,), addition.comparison), folder / "saved")
    torch.manual_seed(seed + 1)
    again = load(lambda: Interpreter(program).requires_grad_(False).eval(), folder / "saved")
    comparison = compare(compact, again, inputs, tolerance=0.0)
    assert comparison.passed, comparison
    return "delivered"


def smaller(program: Program) -> Iterator[Program]:
    """Programs a little simpler: without a step or a head, or with smaller numbers."""
    steps, heads = program.steps, program.heads
    for i in reversed(range(len(steps))):
        yield Program(steps[:i] + steps[i + 1 :], heads)
    if len(heads) > 1:
        for head in heads:
            yield Program(steps, (head,))
    if heads != (Step("point"),):
        yield Program(steps, (Step("point"),))
    for kind, row in (("steps", steps), ("heads", heads)):
        for i, step in enumerate(row):
            for name in ("n", "a", "b"):
                value = getattr(step, name)
                for less in sorted({0, value // 6, value // 2, value - 1}):
                    if 0 <= less < value:
                        other = Step(**{**vars(step), name: less})
                        changed = (*row[:i], other, *row[i + 1 :])
                        yield Program(changed, heads) if kind == "steps" else Program(steps, changed)


def shrink(program: Program, fails: Callable[[Program], bool], tries: int = 400) -> Program:
    """The first simpler program that fails, again and again, until none does."""
    while True:
        for candidate in smaller(program):
            tries -= 1
            if tries < 0:
                return program
            if candidate.steps and fails(candidate):
                program = candidate
                break
        else:
            return program


def saved() -> list[dict[str, Any]]:
    """The rows of :data:`SAVED`."""
    rows: list[dict[str, Any]] = json.loads(SAVED.read_text(encoding="utf-8"))
    return rows


def to_row(program: Program, seed: int, shows: str, delivered: bool) -> dict[str, Any]:
    """A failing program as a row of :data:`SAVED`."""
    plain = {kind: [[s.op, s.a, s.b, s.n] for s in getattr(program, kind)] for kind in ("steps", "heads")}
    return {"shows": shows, "seed": seed, "delivered": delivered, "program": plain}


def of_row(row: dict[str, Any]) -> Program:
    """The program of a row."""
    steps, heads = (tuple(Step(*step) for step in row["program"][kind]) for kind in ("steps", "heads"))
    return Program(steps, heads)
