"""Tied modules stay tied under any optimizer; untied ones are refused by name."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import between, conv
from torch import Tensor, nn

from pdc_fx.errors import ExactnessError, InputError, RewriteError
from pdc_fx.ir import ClusterPlan
from pdc_fx.passes import means
from pdc_fx.passes.axes import MergedAxis, merged_axes, named_tensors
from pdc_fx.passes.means import ClusterMeans
from pdc_fx.passes.random_plans import random_halves
from pdc_fx.passes.tie import Tying
from pdc_fx.passes.tied import residual
from pdc_fx.pipeline import analyze, rewrite, tie

EXAMPLE = torch.zeros(1, 3, 8, 8)


def network() -> nn.Module:
    torch.manual_seed(0)
    model = between(
        lambda m, x: x + m.b(m.a(x).relu()), a=conv(8, 12), b=nn.Sequential(conv(12, 8), nn.BatchNorm2d(8))
    )()
    return nn.Sequential(model, nn.AdaptiveAvgPool2d(1), nn.Flatten())


def planned(model: nn.Module) -> ClusterPlan:
    return random_halves(analyze(model, EXAMPLE), seed=1)


def test_nan_is_not_tied_wherever_it_stands() -> None:
    """Its residual is no number, which no later one may take the place of."""
    model = network()
    plan = tie(model, planned(model), mode="hard").snap()
    tied = [axis.tensor for axis in merged_axes(plan) if axis.role != "consumer"]
    for name in tied:
        broken = copy.deepcopy(model)
        with torch.no_grad():
            named_tensors(broken)[name].fill_(torch.nan)
        with pytest.raises(ExactnessError, match=rf"the weights hold NaN.*'{name}'"):
            rewrite(broken, plan, EXAMPLE, verify=False)


def backward(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    parameter = next(model.parameters())
    logits = model(torch.randn(4, 3, 8, 8, dtype=parameter.dtype)).float()
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, tying: Any, steps: int = 6) -> None:
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        backward(model, step)
        optimizer.step()
        tying.step()


def untied(tensors: dict[str, Tensor | None], clusters: ClusterPlan) -> list[str]:
    """Those in which two members of a cluster differ by as much as a bit."""
    found = []
    for axis in merged_axes(clusters):
        tensor = tensors.get(axis.tensor)
        if axis.role != "consumer" and tensor is not None:
            members = tensor.index_select(axis.dim, torch.as_tensor(axis.stand_in))
            if not torch.equal(tensor, members):
                found.append(axis.tensor)
    return found


def gradients(model: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True, weight_decay=1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, 1e-2),
    "amsgrad": lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9, centered=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, 1e-2),
    "adafactor": lambda p: torch.optim.Adafactor(p, 1e-2),
    "lbfgs": lambda p: torch.optim.LBFGS(p, 1e-2),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["hard", "pdc"])
def test_members_stay_identical_bit_for_bit(optimizer: str, mode: Any) -> None:
    model = network()
    tying = tie(model, planned(model), mode=mode, total_steps=10)
    made = OPTIMIZERS[optimizer](model.parameters())
    if optimizer == "lbfgs":
        for seed in range(6):
            made.step(lambda: (made.zero_grad(), backward(model, seed), torch.tensor(1.0))[-1])  # noqa: B023
            tying.step()
    else:
        train(model, made, tying)
    assert tying.final
    assert float(tying.residual()) == 0.0
    final = tying.snap()
    compact = rewrite(model, final, EXAMPLE)
    assert sum(p.numel() for p in compact.parameters()) == final.params_after


@pytest.mark.parametrize("optimizer", ["sgd", "adamw", "amsgrad", "rmsprop", "adagrad"])
def test_gradients_and_state_of_the_optimizer_are_tied(optimizer: str) -> None:
    """So that an optimizer of separate elements leaves nothing to project."""
    model = network()
    clusters = planned(model)
    tying = tie(model, clusters, mode="hard")
    made = OPTIMIZERS[optimizer](model.parameters())
    train(model, made, tying)
    backward(model, 9)
    made.step()
    assert untied(gradients(model), clusters) == []
    assert untied(dict(model.named_parameters()), clusters) == []
    for key in {key for state in made.state.values() for key in state} - {"step"}:
        assert untied({n: made.state[p][key] for n, p in model.named_parameters()}, clusters) == []


def test_the_projection_catches_what_the_optimizer_unties() -> None:
    model = network()
    clusters = planned(model)
    tying = tie(model, clusters, mode="hard")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)  # no backward pass: nothing was averaged
    optimizer.step()
    expected = copy.deepcopy(model)
    tying.step()
    assert untied(dict(expected.named_parameters()), clusters) != []
    assert float(tying.residual()) == 0.0
    axis = next(a for a in merged_axes(clusters) if a.tensor == "0.a.weight" and a.role == "producer")
    for members in (np.flatnonzero(axis.stand_in == kept) for kept in axis.kept):
        mean = expected.get_parameter(axis.tensor)[members].double().mean(0).float()
        assert torch.allclose(model.get_parameter(axis.tensor)[members], mean, atol=1e-6)


def test_accumulation_and_clipping_see_the_gradient_of_the_tied_network() -> None:
    model, whole = network(), network()
    clusters = planned(model)
    tying, _ = tie(model, clusters, mode="hard"), tie(whole, clusters, mode="hard")
    for seed in (0, 1):
        backward(model, seed)
    assert untied(gradients(model), clusters) == []
    before = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    assert norm == pytest.approx(float(before.norm()), rel=1e-5)
    assert untied(gradients(model), clusters) == []
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert untied(dict(model.named_parameters()), clusters) == []
    tying.step()
    assert float(tying.residual()) == 0.0


def test_a_step_that_the_scaler_skips_changes_nothing() -> None:
    model = network()
    clusters = planned(model)
    tying = tie(model, clusters, mode="hard")
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)  # type: ignore[attr-defined]
    before = copy.deepcopy(list(model.parameters()))
    for bad in (True, False):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.arange(4))
        scaler.scale(loss * (float("inf") if bad else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        tying.step()
        same = [torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True)]
        assert all(same) if bad else not any(same[:2])
        assert float(tying.residual()) == 0.0


def test_an_average_of_the_weights_is_tied_too() -> None:
    model = network()
    clusters = planned(model)
    tying = tie(model, clusters, mode="hard")
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9), use_buffers=True
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for _ in range(3):
        train(model, optimizer, tying, steps=1)
        average.update_parameters(model)
    assert float(residual(average.module, clusters)) == 0.0


def test_frozen_parameters_stay_and_are_taken_up_when_they_thaw() -> None:
    model = network()
    clusters = planned(model)
    frozen = model[0].a.weight.requires_grad_(False)  # type: ignore[index,union-attr]
    tying = tie(model, clusters, mode="hard")
    before = frozen.clone()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    train(model, optimizer, tying, steps=2)
    assert torch.equal(frozen, before)
    frozen.requires_grad_(True)
    tying.step()
    model.requires_grad_(False)
    frozen.requires_grad_(True)
    optimizer.zero_grad()
    backward(model, 0)
    assert frozen.grad is not None
    assert untied({"0.a.weight": frozen.grad}, clusters) == []


def test_parameters_without_a_gradient_are_left_alone() -> None:
    model = network()
    clusters = planned(model)
    tying = tie(model, clusters, mode="hard")
    (model[0].a.bias * torch.arange(12.0)).sum().backward()  # type: ignore[index,union-attr,operator]
    with_gradient = [name for name, gradient in gradients(model).items() if gradient is not None]
    assert with_gradient == ["0.a.bias"]
    assert untied(gradients(model), clusters) == []
    tying.step()
    assert float(tying.residual()) == 0.0


def test_a_backward_pass_that_fails_does_not_end_the_averaging() -> None:
    model = network()
    clusters = planned(model)
    tying = tie(model, clusters, mode="hard")

    def fail(gradient: Tensor) -> None:
        raise ValueError("stop")

    images = torch.randn(4, 3, 8, 8, requires_grad=True)
    images.register_hook(fail)  # the last gradient of all
    with pytest.raises(ValueError, match="stop"):
        model(images).sum().backward()
    tying.step()
    model.zero_grad()
    backward(model, 0)
    assert untied(gradients(model), clusters) == []


class Shared(nn.Module):
    """One convolution under two names, run twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 8), conv(8, 4)
        self.once = self.again = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.again(self.once(self.stem(x)).relu()).relu()).mean((2, 3))  # type: ignore[no-any-return]


@pytest.mark.parametrize("change", ["shared", "channels_last", "bfloat16", "float64", "replaced", "transposed"])
def test_kinds_of_tensors(change: str) -> None:
    torch.manual_seed(0)
    model: nn.Module = Shared() if change == "shared" else network()
    if change == "transposed":
        upwards = nn.ConvTranspose2d(8, 12, 3, padding=1)
        model[0].a = upwards  # type: ignore[index]
    clusters = planned(model)
    tying = tie(model, clusters, mode="hard")
    if change == "channels_last":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    elif change in ("bfloat16", "float64"):
        model.to(getattr(torch, change))
    elif change == "replaced":
        model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
        tying.step()
    train(model, torch.optim.AdamW(model.parameters(), 1e-2), tying, steps=3)
    backward(model, 7)
    assert untied(gradients(model), clusters) == []
    assert float(tying.residual()) == 0.0


def test_state_goes_through_json() -> None:
    model = network()
    tying = tie(model, planned(model), total_steps=10)
    train(model, torch.optim.SGD(model.parameters(), 0.1), tying, steps=4)
    assert tying.final
    state = json.loads(json.dumps(tying.state_dict()))
    other = copy.deepcopy(model)
    resumed = Tying(other, planned(network()), total_steps=10)
    resumed.load_state_dict(state)
    assert resumed.final
    assert resumed.current.to_json() == tying.current.to_json()
    for each, its in ((model, tying), (other, resumed)):
        train(each, torch.optim.SGD(each.parameters(), 0.1), its, steps=2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "strided": lambda t: t.repeat_interleave(2, dim=3)[..., ::2],
}


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 2, 3, 5, 7]), min_size=1, max_size=5),
    seed=st.integers(0, 99),
    dtype=st.sampled_from(DTYPES),
    layout=st.sampled_from(sorted(LAYOUTS)),
    dim=st.integers(0, 1),
    limit=st.sampled_from([64, 1000, 4 << 20]),
)
def test_projecting_twice_is_projecting_once(
    sizes: list[int], seed: int, dtype: torch.dtype, layout: str, dim: int, limit: int
) -> None:
    """Members are equal bit for bit, near the mean in float64, and a second projection changes no bit."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    stand_in = np.unique(labels, return_index=True)[1][labels]
    generator = torch.Generator().manual_seed(seed)
    shape = (len(labels), 6) if dim == 0 else (6, len(labels))
    weight = LAYOUTS[layout](torch.randn(*shape, 3, 3, generator=generator).to(dtype))
    bias = torch.randn(len(labels), generator=generator).to(dtype)
    tensors = {"weight": weight, "bias": bias}
    project = ClusterMeans([MergedAxis(n, d, "producer", "g", stand_in) for n, d in (("weight", dim), ("bias", 0))])
    expected = {name: tensor.double() for name, tensor in tensors.items()}
    averaged = {name: tensor.clone(memory_format=torch.preserve_format) for name, tensor in tensors.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(means, "TABLE_BYTES", limit)
        project.average(averaged)
        project.project(tensors)
        once = {name: tensor.clone() for name, tensor in tensors.items()}
        project.project(tensors)
    for name, axis in (("weight", dim), ("bias", 0)):
        assert torch.equal(tensors[name], once[name])
        assert torch.allclose(averaged[name], once[name], rtol=0, atol=8 * torch.finfo(dtype).eps)
        for found in (averaged[name], once[name]):
            assert torch.equal(found, found.index_select(axis, torch.as_tensor(stand_in)))
        for first in set(stand_in.tolist()):
            members = torch.as_tensor(np.flatnonzero(stand_in == first))
            mean = expected[name].index_select(axis, members).mean(axis, keepdim=True)
            got = once[name].index_select(axis, members[:1]).double()
            assert torch.allclose(got, mean, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_a_tied_module_keeps_every_bit() -> None:
    """A seventh of the sum of seven equal numbers is not always that number."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 14, 3), nn.ReLU(), nn.Conv2d(14, 4, 3))
    groups = analyze(net, torch.zeros(1, 3, 8, 8))
    tying = tie(net, ClusterPlan(groups, (np.arange(14) // 7,)), mode="hard")
    before = copy.deepcopy(net.state_dict())
    tying.step()
    tying.snap()
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_tied_tensor_keeps_its_zeros_and_their_signs() -> None:
    weight = torch.tensor([-0.0, -0.0, 0.0, 0.1, 0.1, 0.1, 0.0])
    before = weight.view(torch.int32).clone()
    stand_in = np.array([0, 0, 2, 3, 3, 3, 2])
    ClusterMeans([MergedAxis("w", 0, "producer", "g", stand_in)]).project({"w": weight})
    assert torch.equal(weight.view(torch.int32), before)


def test_deviations_that_cancel_are_seen() -> None:
    """Members at x, x + d and x - d: their mean is that of the first, and the others move."""
    weight = torch.tensor([[2.0, 1.0], [4.0, 3.0], [0.0, -1.0], [5.0, 6.0]])
    ClusterMeans([MergedAxis("w", 0, "producer", "g", np.array([0, 0, 0, 3]))]).project({"w": weight})
    assert weight.tolist() == [[2.0, 1.0]] * 3 + [[5.0, 6.0]]


def test_a_tensor_tied_along_two_axes() -> None:
    """Among others of its width, so that the axes would come to lie in one table."""
    stand_in = np.array([0, 1, 0, 1, 0, 5])
    axes = [MergedAxis(f"w{n}", dim, "producer", "g", stand_in) for n in range(20) for dim in (0, 1)]
    squares = {axis.tensor: torch.randn(6, 6) for axis in axes}
    expected = copy.deepcopy(squares)
    ClusterMeans(axes).project(squares)
    kept = torch.as_tensor(stand_in)
    for name, square in squares.items():
        for rows in ([0, 2, 4], [1, 3]):
            expected[name][rows] = expected[name][rows].mean(0)
        for columns in ([0, 2, 4], [1, 3]):
            expected[name][:, columns] = expected[name][:, columns].mean(1, keepdim=True)
        assert torch.equal(square, square[kept][:, kept])
        assert torch.allclose(square, expected[name], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_accumulated_in_float32(dtype: torch.dtype) -> None:
    """The mean in float64, rounded once; a sum of the differences would overflow or lose places in half precision."""
    weight = (torch.randn(2000, 64, generator=torch.Generator().manual_seed(0)) * 100 + 100).to(dtype)
    weight[0] = 0
    expected, original = weight.double().mean(0).to(dtype), weight.clone()
    axis = MergedAxis("w", 0, "producer", "g", np.zeros(2000, dtype=np.int64))
    ClusterMeans([axis]).project({"w": weight})
    assert torch.equal(weight, expected.expand_as(weight))
    averaged = original.clone()
    ClusterMeans([axis]).average({"w": averaged})
    assert torch.equal(averaged, expected.expand_as(averaged))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1 + 2j, 3 - 2j, 7j], [2 + 0j, 2 + 0j, 7j]),
        ([2**40, 2**40 + 4, 7], [2**40 + 2, 2**40 + 2, 7]),
        ([True, True, False], [True, True, False]),
    ],
)
def test_tensors_of_other_kinds(values: list[Any], expected: list[Any]) -> None:
    tensor = torch.tensor(values)
    ClusterMeans([MergedAxis("w", 0, "producer", "g", np.array([0, 0, 2]))]).project({"w": tensor})
    assert tensor.tolist() == expected


def test_sparse_gradients_are_left_to_the_projection() -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 4))
    clusters = random_halves(analyze(model, torch.zeros(1, 3)), seed=1)
    tying = tie(model, clusters, mode="hard")
    nn.functional.embedding(torch.tensor([0, 5]), model[0].weight, sparse=True).sum().backward()  # type: ignore[arg-type]
    torch.optim.SGD(model.parameters(), 0.1).step()
    assert untied(dict(model.named_parameters()), clusters) == ["0.weight"]
    tying.step()
    assert float(tying.residual()) == 0.0


def test_the_number_of_operations_does_not_grow_with_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of a quarter of all, and one more for each of three widths."""
    set_table, tables = ClusterMeans._set, []
    monkeypatch.setattr(
        ClusterMeans, "_set", lambda self, table, means: (tables.append(table), set_table(self, table, means))
    )
    blocks = (nn.Sequential(conv(8, 8), nn.BatchNorm2d(8)) for _ in range(20))
    model = nn.Sequential(conv(3, 8), *blocks, conv(8, 4))
    tie(model, planned(model), mode="hard")
    assert sum(map(len, tables)) > 100
    assert len(tables) <= 2 * 4 + 3


@pytest.mark.slow
def test_two_processes_under_data_parallelism() -> None:
    root = Path(__file__).resolve().parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(root / "ranks.py")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if not found:
        pytest.skip("torch was built without gloo")
    assert len(found) == 10
    for case in found:
        assert case["untied_gradient"] == 0.0, case
        assert case["untied_by_the_optimizer"] == [], case
        assert case["residuals"] == [0.0, 0.0, 0.0], case
        assert case["equal_across_ranks"], case
        other = "the first process ended with an error: " if case["rank"] else ""
        assert case["refused"] == f"{other}no such widths", case


def test_hard_tying_is_gradient_averaging() -> None:
    """One step of plain SGD on the tied network moves each cluster by the mean of its gradients."""
    model = network()
    clusters = planned(model)
    tying = tie(model, clusters, mode="hard")
    before = copy.deepcopy(model)
    images, labels = torch.randn(4, 3, 8, 8), torch.arange(4)
    nn.functional.cross_entropy(before(images), labels).backward()  # type: ignore[no-untyped-call]
    nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
    torch.optim.SGD(model.parameters(), 0.1).step()
    tying.step()
    index = next(i for i, g in enumerate(clusters.groups.groups) if g.name == "0.a")
    labels_of = torch.as_tensor(clusters.clusters[index])
    weight, start, gradient = (m[0].a.weight for m in (model, before, before))  # type: ignore[index]
    for cluster in labels_of.unique():
        members = labels_of == cluster
        expected = start[members][0] - 0.1 * gradient.grad[members].mean(0)
        assert torch.allclose(weight[members], expected.expand_as(weight[members]), atol=1e-6)


def test_pdc_reconstructs_step_by_step() -> None:
    model = network()
    tying = tie(model, planned(model), total_steps=100)
    seen = [tying.current.macs_after]
    for _ in range(40):
        tying.step()
        seen.append(tying.current.macs_after)
    assert seen == sorted(seen, reverse=True)
    assert seen[0] == tying.plan.macs_before
    assert seen[-1] == tying.plan.macs_after
    assert len(set(seen)) > 5
    assert tying.final


def test_a_nudged_filter_is_refused_by_name() -> None:
    model = network()
    final = tie(model, planned(model), mode="hard").snap()
    rewrite(model, final, EXAMPLE)
    assert str(residual(model, final)) == "0"
    index = next(i for i, g in enumerate(final.groups.groups) if g.name == "0.a")
    labels = final.clusters[index].tolist()
    member = next(i for i, c in enumerate(labels) if labels.index(c) != i)
    with torch.no_grad():
        model[0].a.weight[member, 0, 0, 0] += 1e-6  # type: ignore[index]
    with pytest.raises(ExactnessError, match=rf"residual .* in group '0\.a' \['0\.a\.weight', position {member}\]"):
        rewrite(model, final, EXAMPLE)
    assert re.fullmatch(
        rf"\S+e-0[67] at position {member} of '0\.a\.weight' in group '0\.a'", str(residual(model, final))
    )


@pytest.mark.parametrize("entry", ["running_mean", "running_var", "weight", "bias"])
def test_every_batch_norm_entry_counts(entry: str) -> None:
    model = network()
    final = tie(model, planned(model), mode="hard").snap()
    with torch.no_grad():
        getattr(model[0].b[1], entry)[:] += torch.rand(8)  # type: ignore[index]
    with pytest.raises(ExactnessError, match=entry):
        rewrite(model, final, EXAMPLE)


def test_a_plan_for_another_model_is_refused() -> None:
    model, other = network(), nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3))
    with pytest.raises(InputError, match="does not belong to this model"):
        tie(other, planned(model), mode="hard")
    wider = between(
        lambda m, x: x + m.b(m.a(x).relu()), a=conv(8, 12), b=nn.Sequential(conv(12, 8), nn.BatchNorm2d(8))
    )()
    reordered = nn.Sequential(wider, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    clusters = planned(model)
    tie(reordered, clusters, mode="hard").snap()
    with pytest.raises(RewriteError, match="another model"):
        rewrite(reordered, clusters, EXAMPLE)


@pytest.mark.parametrize(
    ("options", "words"), [({"mode": "soft"}, "unknown tying mode"), ({"mode": "pdc"}, "total_steps")]
)
def test_refusals(options: dict[str, Any], words: str) -> None:
    model = network()
    with pytest.raises(InputError, match=words):
        tie(model, planned(model), **options)


def test_the_model_that_is_rewritten_is_not_changed() -> None:
    model = network()
    final = tie(model, planned(model), mode="hard").snap()
    before = copy.deepcopy(model.state_dict())
    compact = rewrite(model, final, EXAMPLE)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert model.training
    assert type(compact) is type(model)
    assert compact.state_dict().keys() == model.state_dict().keys()
    assert {p.dtype for p in compact.parameters()} == {torch.float32}
