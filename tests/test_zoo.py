"""Networks as other people write them: exact in float64, with as many channels merged as can be, or a reasoned refusal."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
from activations import differences_inside_clusters, random_partition
from zoo import ZOO, Entry

from pdc_fx import analyze
from pdc_fx.errors import NothingToMergeError
from pdc_fx.passes.check import check, randomize_statistics
from pdc_fx.passes.rewrite import merge_channels
from pdc_fx.passes.tie import Tying

# What does not work yet, and why. Fewer channels than could be merged, unless it says otherwise.
PENDING = {
    "unet_transposed": "conv_transpose has no rule",
    "autoencoder": "conv_transpose has no rule",
    "sub_pixel": "pixel_shuffle has no rule",
    "shuffle": "a two-axis view of channels is 'spread' although a gather could stand in for it",
    "ghost": "a channel that meets itself through a depthwise copy has two places that could be told apart",
    "audio": "gates: the two halves of a convolution multiply each other",
    "glu": "glu has no rule",
    "maxout": "torch.max(a, b), and a channel at two places of one convolution",
    "split_attention": "a sum over the two versions of each channel",
    "selective": "a sum over stacked versions of each channel",
    "map_attention": "CRASH: a size taken from a map that shrinks is used to view one that does not",
    "non_local": "bmm has no rule",
    "temporal_shift": "RewriteError: 'view(-1, frames, 8)', and __setitem__ cannot be traced",
    "conv_lstm": "lstm has no rule, though its input weights could read",
    "functional": "matmul with a parameter has no rule",
    "spatial_transformer": "grid_sample has no rule",
    "zeros_by_cat": "torch.zeros has no rule",
    "channel_shuffle": "channel_shuffle has no rule",
    "instance_norm_style": "num_features of a norm without entries is not updated, and torch warns in every forward pass",
}  # fmt: skip

# Where the clusters of the two halves of a split differ in number, which `check` never draws for these.
PENDING_UNEVEN = dict.fromkeys(
    ("yolo_c2f", "yolo_c2f_joined"), "RewriteError: torch.fx cannot trace 'list(x.chunk(2, 1))' to edit it"
)


def parameters(pending: Mapping[str, str]) -> list[object]:
    def marks(name: str) -> list[pytest.MarkDecorator]:
        return [pytest.mark.xfail(reason=pending[name])] if name in pending else []

    return [pytest.param(e, id=e.name, marks=marks(e.name)) for e in ZOO]


@pytest.mark.parametrize("entry", parameters(PENDING))
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
        if not groups.groups:
            pytest.skip("nothing to merge yet")
        plan, tied = random_partition(groups, seed), copy.deepcopy(model)
        Tying(tied, plan, "hard").snap()
        found = differences_inside_clusters(tied, plan, inputs)
        assert not found.differences, "\n".join(map(str, found.differences))
        assert found.pairs


@pytest.mark.parametrize("entry", parameters({**PENDING, **PENDING_UNEVEN}))
def test_predictions_are_measured(entry: Entry) -> None:
    model, inputs = entry.made()
    groups = analyze(model, inputs)
    if not entry.merges:
        return
    assert groups.mergeable_channels >= entry.merges
    plan, tied = random_partition(groups, 3), copy.deepcopy(model)
    Tying(tied, plan, "hard").snap()
    compact = merge_channels(tied, plan, inputs)
    assert plan.macs_after == analyze(compact, inputs).macs()
    assert plan.params_after == sum(p.numel() for p in compact.parameters())


def test_pending_names_are_in_the_zoo() -> None:
    assert PENDING.keys() | PENDING_UNEVEN.keys() <= {e.name for e in ZOO}
    assert len({e.name for e in ZOO}) == len(ZOO)
