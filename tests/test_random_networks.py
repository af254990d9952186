"""Random programs: what the analysis says may be merged is merged exactly, and its claims hold for every intermediate value."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from networks import HEADS, INPUT, OPS, TWO, Interpreter, Program, Step
from random_programs import deliver_and_load, draw, examine, of_row, saved, shrink, to_row

from pdc_fx.errors import PdcError

# Once each of these showed a fault.
MENDED = {
    "a roll along the channels needs another shift, which no shape shows": Program((Step("conv", n=1), Step("roll"))),
    "narrow along the channels has no edit": Program((Step("conv", n=1), Step("narrow"))),
    "a strided slice takes other channels, which no shape shows": Program((Step("conv", n=3), Step("every_other"))),
    "an integer index takes another channel, which no shape shows": Program((Step("conv", n=3), Step("picked"))),
    "select takes another channel, which no shape shows": Program((Step("conv", n=3), Step("picked", n=1))),
    "a slice from the middle takes other channels, which no shape shows": Program(
        (Step("conv", n=3), Step("picked", n=2))
    ),
    "copies of the one channel that is left look like an expansion of it": Program(
        (Step("conv", n=1), Step("attention"), Step("conv", n=34), Step("repeat")), (Step("each_place"),)
    ),
    "the places of the one channel that is left look like channels": Program(
        (Step("conv", n=1), Step("bottleneck")), (Step("each_place"),)
    ),
    "a parameter by channel meets the input of the model": Program((Step("scale"),)),
    "one more recorded call changes the order of places, and so the digest": Program(
        (Step("permuted"), Step("conv")), (Step("flat", n=1),)
    ),
    "torch.fx turns 'a += b' into 'a = a + b'": Program(
        (Step("conv"), Step("add_in_place"), Step("grouped", 1, 0, 1)), (Step("flat", n=1),)
    ),
}


def steps(names: Collection[str]) -> st.SearchStrategy[Step]:
    def of(name: str) -> st.SearchStrategy[Step]:
        b = st.integers(0, 5) if name in TWO else st.just(0)
        return st.builds(Step, st.just(name), st.integers(0, 3), b, st.integers(0, 71))

    return st.sampled_from(sorted(names)).flatmap(of)


programs = st.builds(
    Program,
    st.lists(steps(OPS.keys()), min_size=1, max_size=8).map(lambda s: (Step("conv", n=1), *s)),
    st.lists(steps(HEADS), min_size=1, max_size=2).map(tuple),
)


@settings(
    max_examples=200,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
@given(programs, st.integers(0, 99))
def test_random_networks_merge_exactly(program: Program, seed: int) -> None:
    try:
        event(examine(program, seed))
    except Exception as error:  # an assertion as much as a crash anywhere on the way
        pytest.fail(f"{type(error).__name__}: {error}\nseed={seed}\n{program}\n{program.source()}")


@pytest.mark.parametrize("name", sorted(OPS.keys()))
def test_every_operation_alone(name: str) -> None:
    """Each operation with each of its first choices, between a convolution and a head."""
    for n in range(6):
        program = Program((Step("conv", n=1), Step(name, 0, 1, n)), (Step("point"),))
        examine(program, n)


@pytest.mark.parametrize("program", [pytest.param(p, id=name) for name, p in MENDED.items()])
def test_mended_faults_stay_mended(program: Program) -> None:
    for seed in range(10):
        examine(program, seed)


@pytest.mark.parametrize("row", [pytest.param(row, id=row["shows"]) for row in saved()])
def test_what_fuzzing_found_stays_mended(row: dict[str, Any], tmp_path: Path) -> None:
    """Exact, or refused with a reason that is no failed verification: what ``benchmarks/fuzz.py`` asks of a network."""
    try:
        if row["delivered"]:
            deliver_and_load(of_row(row), row["seed"], tmp_path)
        else:
            examine(of_row(row), row["seed"])
    except PdcError as error:
        if error.exit_code == 1:
            raise


def test_a_network_survives_its_directory(tmp_path: Path) -> None:
    assert deliver_and_load(draw(0), 0, tmp_path) == "delivered"


def test_a_failing_program_shrinks_to_what_fails() -> None:
    """Whatever holds two of three given steps 'fails': these two remain, with the plainest choices."""
    large = Program(
        (*draw(3).steps, Step("glu", 3, 0, 50), *draw(4).steps, Step("cat", 1, 5, 7)), (Step("flat", 2, 0, 9),)
    )
    small = shrink(large, lambda p: {"glu", "cat"} <= {step.op for step in p.steps})
    assert small == Program((Step("glu"), Step("cat")))
    assert of_row(to_row(large, 1, "", False)) == large


def test_a_program_is_reproducible() -> None:
    program = Program((Step("conv", n=1), Step("split", n=24), Step("add", 0, 1)), (Step("flat", n=1),))
    assert eval(repr(program)) == program
    torch.manual_seed(0)
    first = Interpreter(program)(torch.ones(INPUT))
    torch.manual_seed(0)
    assert torch.equal(first, Interpreter(program)(torch.ones(INPUT)))
    assert "split" in program.source()
