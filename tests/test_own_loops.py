"""The library in people's own loops: ties that come and go, states that belong elsewhere, wrapped models, threads."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import pdc_fx
from pdc_fx.artifacts import Compressed
from pdc_fx.errors import InputError, TraceError
from pdc_fx.ir import ClusterPlan
from pdc_fx.passes.compare import Comparison
from pdc_fx.passes.random_plans import random_widths

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(width: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, 16, 3), nn.ReLU(), nn.Conv2d(16, 4, 3)
    )  # fmt: skip


def plan_of(model: nn.Module, seed: int = 0) -> ClusterPlan:
    return random_widths(pdc_fx.analyze(model, X), seed)


def gradients(model: nn.Module) -> list[Tensor]:
    model.zero_grad()
    model(X).square().sum().backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_a_tied_model_is_freed() -> None:
    model = network()
    tying = pdc_fx.tie(model, plan_of(model), mode="hard")
    gradients(model)
    alive = weakref.ref(model)
    del model, tying
    gc.collect()
    assert alive() is None


def test_a_second_tie_takes_the_place_of_the_first() -> None:
    twice, once = network(), network()
    first = pdc_fx.tie(twice, plan_of(twice, 0), mode="hard")
    twice.load_state_dict(once.state_dict())
    both = [pdc_fx.tie(model, plan_of(model, 1), mode="hard") for model in (twice, once)]
    assert all(torch.equal(a, b) for a, b in zip(gradients(twice), gradients(once), strict=True))
    assert len(both) == 2
    assert not first._watched


def test_without_its_tying_a_model_is_trained_as_any_other() -> None:
    model, plain = network(), network()
    tying = pdc_fx.tie(model, plan_of(model), mode="hard")
    plain.load_state_dict(model.state_dict())
    assert not torch.equal(gradients(model)[0], gradients(plain)[0])
    del tying
    gc.collect()
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), gradients(plain), strict=True))


def test_a_backward_pass_that_raised_costs_nothing_of_the_next() -> None:
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(_: Any, *__: Tensor) -> Tensor:
            raise RuntimeError("out of memory")

    model, other = network(), network()
    tyings = [pdc_fx.tie(m, plan_of(m), mode="hard") for m in (model, other)]
    x = Fails.apply(X.clone().requires_grad_())
    with pytest.raises(RuntimeError, match="out of memory"):
        model(x).sum().backward()
    assert all(torch.equal(a, b) for a, b in zip(gradients(model), gradients(other), strict=True))
    assert len(tyings) == 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mode": "pdc"}, "of mode 'pdc'"),
        ({"total_steps": 60}, "and 60 steps"),
        ({"plan": None}, "no state of a tying"),
        (None, "no state of a tying: KeyError"),
        ({"plan": plan_of(network(8)).to_json()}, "belongs to another model"),
    ],
    ids=["mode", "steps", "plan", "empty", "model"],
)
def test_a_state_that_belongs_elsewhere_is_refused(change: dict[str, Any] | None, words: str) -> None:
    model = network()
    tying = pdc_fx.tie(model, plan_of(model), mode="progressive", total_steps=50)
    tying.step()
    state, before = tying.state_dict(), tying.state_dict()
    with pytest.raises(InputError, match=words):
        tying.load_state_dict({} if change is None else state | change)
    assert tying.state_dict() == before
    tying.load_state_dict(state)


def test_a_layer_that_was_replaced_is_named() -> None:
    model = network()
    tying = pdc_fx.tie(model, plan_of(model), mode="hard")
    model[2] = nn.Conv2d(16, 8, 3)
    with pytest.raises(InputError, match=r"does not belong to this model \['2\."):
        tying.step()


def test_one_name_is_a_pattern() -> None:
    model = network()
    for groups in (pdc_fx.analyze(model, X, frozen="0"), pdc_fx.analyze(model, X, frozen=["0"])):
        assert [g.name for g in groups.groups] == [g.name for g in pdc_fx.analyze(model, X).groups[1:]]
    with pytest.raises(InputError, match="no module is called '10'"):
        pdc_fx.analyze(model, X, frozen="10")


@pytest.mark.parametrize("how", [pdc_fx.fold, pdc_fx.calibrate])
def test_inference_mode_is_no_obstacle(how: Any) -> None:
    model = network()
    groups = pdc_fx.analyze(model, X)
    with torch.inference_mode():
        tied, plan = how(model, groups, *([X] if how is pdc_fx.calibrate else []), flops_reduction=0.4)
        compact = pdc_fx.rewrite(tied, plan, X)
    compact(X).sum().backward()
    assert compact[0].weight.grad is not None


def test_autocast_does_not_blur_the_proof(tmp_path: Path) -> None:
    model = network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pdc_fx.check(model, X, dtype=torch.float32).passed
        assert pdc_fx.export_onnx(model, X, tmp_path / "m.onnx").path.exists()


def test_wrapped_models_say_what_to_pass(tmp_path: Path) -> None:
    model = network()
    pdc_fx.export_onnx(torch.compile(model), X, tmp_path / "m.onnx")
    wrapped = nn.parallel.DistributedDataParallel.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    with pytest.raises(TraceError, match=r"pass model\.module"):
        pdc_fx.analyze(wrapped, X)


def test_tuples_among_arguments_are_exported(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return self.body(pair[0]) + self.body(pair[1])

    assert pdc_fx.export_onnx(Pair().eval(), ((X, X + 1),), tmp_path / "m.onnx").path.exists()


def test_what_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return self.body(batch["image"])

    model, example = Named(), ({"image": X},)
    plan = random_widths(pdc_fx.analyze(model, example), 0)
    compact = pdc_fx.rewrite(model, pdc_fx.tie(model, plan, mode="hard").snap(), example)
    found = Compressed(compact, model, plan, example, Comparison(True, 0.0, 0.0, 1e-9))
    with pytest.raises(InputError, match="called with more than tensors"):
        pdc_fx.save(found, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_threads_wait_for_each_other() -> None:
    def compressed(model: nn.Module) -> int:
        compact = pdc_fx.rewrite(model, pdc_fx.tie(model, plan_of(model), mode="hard").snap(), X)
        return int(compact[0].out_channels)

    models, again = ([network(width) for width in (8, 12, 16, 20)] for _ in range(2))
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(compressed, models))
    assert together == [compressed(model) for model in again]
    assert torch.get_default_dtype() is torch.float32


def test_a_network_of_ones_own_loop_is_saved(tmp_path: Path) -> None:
    model = network()
    plan = pdc_fx.tie(model, plan_of(model), mode="hard").snap()
    compact = pdc_fx.rewrite(model, plan, X)
    out = pdc_fx.save(Compressed(compact, model, plan, X), tmp_path / "out")
    assert torch.equal(pdc_fx.load(network, out)(X), compact.eval()(X))
    with torch.no_grad():
        compact[0].weight.mul_(2)
    with pytest.raises(InputError, match=r"is not the merge of the tied one \['0\.weight'\]"):
        pdc_fx.save(Compressed(compact, model, plan, X), tmp_path / "other")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
