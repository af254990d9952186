"""The samples, one by one: positions that the analysis takes to be equal are equal in a tied model."""

from __future__ import annotations

import copy

import pytest
import torch
from activations import differences_inside_clusters, random_partition
from samples import SAMPLES, Sample

from pdc_fx import analyze
from pdc_fx.passes.check import randomize_statistics
from pdc_fx.passes.tie import Tying


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.merges], ids=str)
def test_positions_of_one_cluster_and_path_hold_equal_values(sample: Sample) -> None:
    torch.manual_seed(0)
    model, inputs = sample.build().double().requires_grad_(False), torch.randn(sample.shape, dtype=torch.float64)
    randomize_statistics(model, 0)
    groups = analyze(model, inputs)
    for seed in range(3):
        plan, tied = random_partition(groups, seed), copy.deepcopy(model)
        Tying(tied, plan, "hard").snap()
        found = differences_inside_clusters(tied, plan, inputs)
        assert not found.differences, "\n".join(map(str, found.differences))
        assert found.pairs >= found.calls > 0


def test_an_untied_model_does_not_agree() -> None:
    """The negative: without tying, the helper finds the differences from the first convolution on."""
    sample = next(s for s in SAMPLES if s.name == "residual")
    model, inputs = sample.build().double().requires_grad_(False), torch.randn(sample.shape, dtype=torch.float64)
    plan = random_partition(analyze(model, inputs), 0)
    found = differences_inside_clusters(model, plan, inputs)
    assert any("conv2d" in d.call for d in found.differences)
