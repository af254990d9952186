"""Every rule against brute force: random partition, tie, equal activations inside clusters, merge, compare in float64."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from samples import SAMPLES, Sample, between
from torch import nn

from pdc_fx import analyze
from pdc_fx.errors import NothingToMergeError
from pdc_fx.passes.check import check, randomize_statistics
from pdc_fx.passes.compare import compare
from pdc_fx.passes.random_plans import random_halves
from pdc_fx.passes.rewrite import merge_channels
from pdc_fx.passes.tie import Tying
from pdc_fx.rules import registered
from pdc_fx.rules.registry import functions, rule, rule_for
from pdc_fx.trace import record


def prepared(sample: Sample) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    model = sample.build().double().requires_grad_(False)
    randomize_statistics(model, 0)
    return model, torch.randn(sample.shape, dtype=torch.float64)


@pytest.mark.parametrize("sample", SAMPLES, ids=str)
def test_merges_what_it_should_and_exactly(sample: Sample) -> None:
    model, inputs = prepared(sample)
    groups = analyze(model, inputs)
    assert groups.mergeable_channels == sample.merges, groups.frozen
    assert all(entry.reason for entry in groups.frozen)
    if not sample.merges:
        with pytest.raises(NothingToMergeError, match="no two channels"):
            check(model, inputs)
        return
    for seed in range(3):
        certificate = check(model, inputs, seed=seed)
        assert certificate.passed
        assert certificate.max_rel_error < 1e-12
        assert certificate.macs_after < certificate.macs_before
        assert certificate.params_after < certificate.params_before


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.merges], ids=str)
def test_predicted_macs_are_those_of_the_compact_model(sample: Sample) -> None:
    model, inputs = prepared(sample)
    plan = random_halves(analyze(model, inputs), 1)
    tied = copy.deepcopy(model)
    Tying(tied, plan, "hard").snap()
    compact = merge_channels(tied, plan, inputs)
    measured = analyze(compact, inputs)
    # a product of two activations is counted at the width that it had
    assert plan.macs_after - plan.groups.fixed_macs == measured.macs() - measured.fixed_macs
    assert measured.fixed_macs <= plan.groups.fixed_macs
    assert plan.params_after == sum(p.numel() for p in compact.parameters())


@pytest.mark.parametrize("name", ["rolled_onto_itself", "three_cycles"])
def test_a_channel_that_meets_itself_is_refused_for_that(name: str) -> None:
    model, inputs = prepared(next(sample for sample in SAMPLES if sample.name == name))
    assert any("its places cannot be told apart" in entry.reason for entry in analyze(model, inputs).frozen)


def function_of(registered_rule: Any) -> Any:
    return getattr(registered_rule, "func", registered_rule)


def test_every_rule_has_a_sample() -> None:
    used = set()
    for sample in SAMPLES:
        model, inputs = prepared(sample)
        calls = [n.target for n in record(model, inputs).graph.nodes if n.op == "call_function"]
        used |= {function_of(found) for target in calls if (found := rule_for(target))}
    idle = {function_of(r) for r in registered().values()} - used
    assert not idle, f"rules without a sample: {idle}"


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.merges], ids=str)
def test_without_channel_addition_the_check_fails(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative: keep the representative's slice and drop the others' instead of summing them."""
    from pdc_fx.passes import surgery

    def dropped(tensor: torch.Tensor, axes: list[surgery.MergedAxis]) -> torch.Tensor:
        for axis in axes:
            tensor = tensor.detach().index_select(axis.dim, torch.as_tensor(axis.kept))
        return tensor

    model, inputs = prepared(sample)
    plan = random_halves(analyze(model, inputs), 1)
    Tying(model, plan, "hard").snap()
    monkeypatch.setattr(surgery, "merge_tensor", dropped)
    found = compare(model, merge_channels(model, plan, inputs), inputs, tolerance=1e-9)
    assert not found.passed


def test_a_wrong_rule_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Softmax over channels treated as element-wise: the dry run must not pass."""
    from pdc_fx.rules import elementwise, registry

    monkeypatch.setattr(registry, "_RULES", dict(registry._RULES))
    rule("softmax")(elementwise.unary)
    model = between(lambda m, x: x.softmax(1))()
    assert not check(model, torch.randn(2, 3, 8, 8)).passed


def test_an_unknown_operator_is_named_with_its_source_line() -> None:
    model = between(lambda m, x: torch.fft.fft(x).real)()
    groups = analyze(model, torch.randn(1, 3, 8, 8))
    assert groups.mergeable_channels == 0
    assert any("fft" in f.reason and "test_rules.py:" in f.reason for f in groups.frozen)


def test_misspelt_rule_names_are_refused() -> None:
    with pytest.raises(LookupError, match="no torch function"):
        functions("relu no_such_function")


def test_a_reason_names_the_line_of_the_model_or_of_the_layer() -> None:
    """Never that of whoever called us, which is the innermost outside of torch where a model is made of torch's layers alone."""

    class Cumulative(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.cumsum(1)

    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softmax(1), nn.Conv2d(8, 4, 3), Cumulative())
    reasons = [f.reason for f in analyze(layers, torch.zeros(1, 3, 8, 8)).frozen]
    assert any("softmax" in reason and "nn/modules/activation.py:" in reason for reason in reasons)
    assert any("cumsum" in reason and "tests/test_rules.py:" in reason for reason in reasons)
