"""Each method keeps the equation and the schedule that its file states."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
import torch
from test_tie import network, planned, train, untied
from torch import nn

from pdc_fx.errors import InputError
from pdc_fx.options import Mode
from pdc_fx.passes.axes import merged_axes, named_tensors
from pdc_fx.passes.methods import METHODS, Method
from pdc_fx.passes.tie import Tying
from pdc_fx.passes.tied import residual
from pdc_fx.pipeline import rewrite, tie


def test_the_command_line_knows_every_method() -> None:
    assert get_args(Mode) == tuple(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_ends_tied_at_the_planned_widths(name: str) -> None:
    model = network()
    plan = planned(model)
    tying = tie(model, plan, mode=name, total_steps=8)
    train(model, torch.optim.SGD(model.parameters(), 0.05, 0.9), tying, steps=8)
    final = tying.snap()
    assert final.widths == plan.widths
    assert float(residual(model, final)) == 0.0
    rewrite(model, final, torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (METHODS["hard"], {}),
        (METHODS["csgd"], {}),
        (Method("m", rounds=4, settled=0.4), {10: 0.25, 20: 0.5, 30: 0.75, 40: 1.0}),
        (Method("m", rounds=1, settled=0.0), {1: 1.0}),
        (Method("m", rounds=3, settled=1.0), {33: 1 / 3, 67: 2 / 3, 100: 1.0}),
    ],
)
def test_when_rounds_take_place(method: Method, expected: dict[int, float]) -> None:
    assert method.schedule(100) == expected


@pytest.mark.parametrize("name", METHODS)
def test_only_methods_with_rounds_need_the_length_of_the_run(name: str) -> None:
    if METHODS[name].rounds:
        with pytest.raises(InputError, match=f"'{name}'.*total_steps"):
            tie(network(), planned(network()), mode=name)
    else:
        tie(network(), planned(network()), mode=name)


@pytest.mark.parametrize(
    "wrong", [{"rounds": -1}, {"settled": 1.5}, {"pull": -0.1}, {"pull": float("inf")}, {"settled": float("nan")}]
)
def test_impossible_methods_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"method 'm'.*{next(iter(wrong))}"):
        Method("m", **wrong)  # type: ignore[arg-type]


def test_an_unknown_mode_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"'soft'.*'pdc', 'csgd', 'hard', 'progressive'"):
        tie(network(), planned(network()), mode="soft")


def test_csgd_is_the_equation_of_the_paper() -> None:
    """One step of plain SGD with decay, against dF = - mean(dL/dF) - eta F + eps (mean F - F) in float64."""
    model = network()
    plan = planned(model)
    model.double()
    rate, decay, method = 0.1, 0.01, METHODS["csgd"]
    tying = Tying(model, plan, method)
    free = copy.deepcopy(model)
    for each in (model, free):
        torch.manual_seed(3)
        images = torch.randn(4, 3, 8, 8, dtype=torch.float64)
        nn.functional.cross_entropy(each(images), torch.arange(4)).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    torch.optim.SGD(model.parameters(), rate, weight_decay=decay).step()
    tying.step()
    axes = {axis.tensor: axis for axis in merged_axes(plan) if axis.role != "consumer"}
    assert {"producer", "channelwise"} <= {axis.role for axis in axes.values()}
    gradients = {name: p.grad for name, p in free.named_parameters()}
    for name, after in model.named_parameters():
        axis, weight, gradient = axes.get(name), before[name], gradients[name]
        assert gradient is not None
        if axis is None:
            expected = weight - rate * (gradient + decay * weight)
        else:
            assert axis.dim == 0
            strength = method.pull * (1.0 if axis.role == "producer" else method.rest)
            expected = torch.empty_like(weight)
            for first in set(axis.stand_in.tolist()):
                rows = torch.as_tensor(np.flatnonzero(axis.stand_in == first))
                pull = weight[rows].mean(0) - weight[rows]
                expected[rows] = weight[rows] + rate * (
                    -gradient[rows].mean(0) - decay * weight[rows] + strength * pull
                )
        assert torch.allclose(after, expected, rtol=0, atol=1e-14), name


def test_csgd_shrinks_deviations_at_its_rate_whatever_the_loss_does() -> None:
    model = network()
    tying = Tying(model, planned(model), Method("strong", held=False, pull=2.0))
    weight = named_tensors(model)["0.a.weight"]
    axis = next(a for a in merged_axes(tying.plan) if a.tensor == "0.a.weight")
    rows = torch.as_tensor(np.flatnonzero(axis.stand_in == np.bincount(axis.stand_in).argmax()))

    def deviation() -> torch.Tensor:
        return (weight[rows] - weight[rows].mean(0)).detach().clone()

    start = deviation()
    train(model, torch.optim.SGD(model.parameters(), 0.05, weight_decay=0.1), tying, steps=10)
    assert torch.allclose(deviation(), start * (1 - 0.05 * (0.1 + 2.0)) ** 10, rtol=1e-3, atol=1e-6)
    assert not tying.final


def test_progressive_stays_tied_and_only_joins_clusters() -> None:
    model = network()
    tying = tie(model, planned(model), mode="progressive", total_steps=40)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    clusters = [tying.current]
    for _ in range(40):
        train(model, optimizer, tying, steps=1)
        assert untied(dict(named_tensors(model)), tying.current) == []
        clusters.append(tying.current)
    assert tying.final
    widths = [plan.widths[0] for plan in clusters]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) > 3
    for before, after in pairwise(clusters):
        for old, new in zip(before.clusters, after.clusters, strict=True):
            assert len(set(zip(old.tolist(), new.tolist(), strict=True))) == len(set(old.tolist()))


def test_pdc_is_free_between_rounds() -> None:
    model = network()
    tying = tie(model, planned(model), mode="pdc", total_steps=100)
    train(model, torch.optim.SGD(model.parameters(), 0.1), tying, steps=25)
    assert not tying.final
    assert untied(dict(named_tensors(model)), tying.current) != []
