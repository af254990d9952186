"""Networks as other people write them: exact in float64, with as many channels merged as can be, or a reasoned refusal."""

from __future__ import annotations

import copy

import pytest
from activations import differences_inside_clusters, random_partition
from zoo import ZOO, Entry

from pdc_fx import analyze
from pdc_fx.errors import NothingToMergeError
from pdc_fx.passes.analysis import AnalyzeDependencies
from pdc_fx.passes.check import check, randomize_statistics
from pdc_fx.passes.dependency import flow_of, solve
from pdc_fx.passes.rewrite import merge_channels
from pdc_fx.passes.tie import Tying
from pdc_fx.trace import record


@pytest.mark.parametrize("entry", ZOO, ids=str)
def test_merges_as_much_as_can_be_and_exactly(entry: Entry) -> None:
    model, inputs = entry.made()
    if not entry.merges:
        with pytest.raises(NothingToMergeError, match="no two channels"):
            check(model, inputs)
        return
    for seed in range(2):
        certificate = check(model, inputs, seed=seed)
        assert certificate.passed, certificate.first_difference
        assert certificate.max_rel_error < 1e-11
        assert certificate.mergeable_channels >= entry.merges, certificate.frozen
        assert not entry.keeps_class or certificate.result_type == type(model).__name__
        assert all(f.reason for f in certificate.frozen)


@pytest.mark.parametrize("entry", [e for e in ZOO if e.merges], ids=str)
def test_activations_agree_inside_clusters(entry: Entry) -> None:
    model, inputs = entry.made()
    randomize_statistics(model, 1)
    groups = analyze(model, inputs)
    for seed in range(2):
        plan, tied = random_partition(groups, seed), copy.deepcopy(model)
        Tying(tied, plan, "hard").snap()
        found = differences_inside_clusters(tied, plan, inputs)
        assert not found.differences, "\n".join(map(str, found.differences))
        assert found.pairs


@pytest.mark.parametrize("entry", [e for e in ZOO if e.merges], ids=str)
def test_predictions_are_measured(entry: Entry) -> None:
    model, inputs = entry.made()
    groups = analyze(model, inputs)
    assert groups.mergeable_channels >= entry.merges
    plan, tied = random_partition(groups, 3), copy.deepcopy(model)
    Tying(tied, plan, "hard").snap()
    compact = merge_channels(tied, plan, inputs)
    measured = solve(flow_of(record(compact, inputs), AnalyzeDependencies(inputs)(model).solution.flow)).groups
    # a product of two activations is counted at the width that it had
    assert plan.macs_after - groups.fixed_macs == measured.macs() - measured.fixed_macs
    assert plan.params_after == sum(p.numel() for p in compact.parameters())


def test_names_are_unique() -> None:
    assert len({e.name for e in ZOO}) == len(ZOO)
