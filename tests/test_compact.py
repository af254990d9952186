"""The compact network trained in place of the tied one: the way back is exact, losses and gradients are the same, and refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from samples import SAMPLES, Net, Sample, conv
from torch import Tensor, fx, nn

from pdc_fx.data import open_data
from pdc_fx.distill import Processes, TiedTraining, TrainOptions, accuracy
from pdc_fx.distill.compact import Untrainable, compact_for_training
from pdc_fx.distill.features import captured, feature_loss, feature_pairs
from pdc_fx.export.pages.charts import epochs_of
from pdc_fx.passes.axes import by_tensor, merged_axes
from pdc_fx.passes.random_plans import random_halves
from pdc_fx.passes.rewrite import merge_channels
from pdc_fx.passes.surgery import expand
from pdc_fx.pipeline import analyze, plan, rewrite, tie

IMAGE = torch.zeros(1, 1, 8, 8)


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.merges], ids=str)
def test_what_is_expanded_is_tied_and_comes_to_the_same_bits(sample: Sample) -> None:
    torch.manual_seed(0)
    model, inputs = sample.build().float(), torch.randn(sample.shape)
    clusters = random_halves(analyze(model, inputs), seed=0)
    compact = merge_channels(model, clusters, inputs)
    with torch.no_grad():
        for name, tensor in compact.state_dict().items():
            if name in model.state_dict() and tensor.is_floating_point():  # a graph has its constants beside them
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    expand(compact, model, clusters)
    again = rewrite(model, clusters, inputs)  # refuses what is not tied
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in compact.state_dict().items())


def test_what_no_call_uses_stays_as_it_was() -> None:
    """The smaller network is a graph, which has neither the spare layer nor the buffer."""
    torch.manual_seed(0)
    model = Net(
        lambda m, x: m.head(m.stem(x).view(2, 2, 4, 8, 8).transpose(1, 2).reshape(2, 8, 8, 8)),
        **{"stem": conv(3, 8), "head": conv(8, 4), "spare": nn.Linear(3, 3)},
    )
    model.register_buffer("old", torch.ones(2))
    example, before = torch.zeros(2, 3, 8, 8), copy.deepcopy(model.state_dict())
    clusters = random_halves(analyze(model, example), seed=0)
    compact = merge_channels(model, clusters, example)
    assert isinstance(compact, fx.GraphModule)
    assert set(before) - set(compact.state_dict()) == {"spare.weight", "spare.bias", "old"}
    expand(compact, model, clusters)
    rewrite(model, clusters, example)  # refuses what is not tied
    same = {name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])}
    assert same == {"spare.weight", "spare.bias", "old", "head.bias"}


def joined(channels: int = 8) -> nn.Module:
    """A residual block, a map beside its negative, and a batch norm."""

    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.norm(m.stem(x)).relu()
        x = m.block(x + m.inner(x))
        x = m.pool(torch.cat([x, -x], 1))
        return m.head(x.flatten(1))

    return Net(
        forward,
        stem=conv(1, channels),
        norm=nn.BatchNorm2d(channels),
        inner=nn.Sequential(conv(channels, 6), nn.ReLU(), conv(6, channels)),
        block=nn.ReLU(),
        pool=nn.AvgPool2d(2),
        head=nn.Linear(channels * 32, 10),
    )


def with_a_literal() -> nn.Module:
    """Its compact form is a graph."""
    net = nn.Sequential(conv(1, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 6), nn.ReLU())
    return Net(lambda m, x: m.head(m.net(x).view(-1, 384)), net=net, head=nn.Linear(384, 10))


@pytest.mark.parametrize("build", [joined, with_a_literal])
def test_loss_and_gradients_are_those_of_the_tied_network(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = build().double()
    images, labels = torch.randn(16, 1, 8, 8, dtype=torch.float64), torch.arange(16) % 10
    teacher = copy.deepcopy(model)
    clusters = random_halves(analyze(model, images[:1]), seed=0)
    pairs = feature_pairs("match", model, teacher, images[:1])
    compact = compact_for_training(model, clusters, images[:1], pairs)
    assert isinstance(compact.model, fx.GraphModule) == (build is with_a_literal)
    losses = []
    for network, maps in ((model, [(*pair, lambda f: f) for pair in pairs]), (compact.model, compact.maps)):
        network.train()
        with (
            captured(network, [name for name, _, _ in maps]) as ours,
            captured(teacher, [n for _, n, _ in maps]) as theirs,
        ):
            logits = network(images)
            with torch.no_grad():
                teacher(images)
        features = feature_loss("match", [(spread(ours[name]), theirs[other]) for name, other, spread in maps])
        loss = F.cross_entropy(logits, labels) + features
        loss.backward()
        losses.append(float(loss.detach()))
    assert losses[1] == pytest.approx(losses[0], rel=1e-12)
    full, axes = dict(model.named_parameters()), by_tensor(merged_axes(clusters))
    for name, parameter in compact.model.named_parameters():
        expected = full[name].grad
        assert expected is not None
        for axis in axes.get(name, []):
            if axis.role == "consumer":  # any slice of a cluster has the gradient of the sum
                expected = expected.index_select(axis.dim, torch.as_tensor(axis.kept))
            else:  # the filter that is left has the sum of all gradients
                shape = list(expected.shape)
                shape[axis.dim] = len(axis.kept)
                expected = expected.new_zeros(shape).index_add_(axis.dim, torch.as_tensor(axis.cluster), expected)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-9, atol=1e-12)


def noisy(m: Net, x: Tensor) -> Tensor:
    x = m.stem(x)
    return m.head((x + torch.rand_like(x) if m.training else x).relu().mean((2, 3)))


def with_another_head(m: Net, x: Tensor) -> Tensor:
    x = m.stem(x).relu()
    return m.head(x.mean((2, 3))) + (m.aux(x.amax((2, 3))) if m.training else 0)


def two_ways(m: Net, x: Tensor) -> Tensor:
    x = m.stem(x)
    return m.head((x.view(-1, 8, 8, 8) if m.training else x).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (noisy, "in training mode the small network is another function"),
        (with_another_head, r"run in training only \[aux\]"),
        (two_ways, "does not run in training mode"),
    ],
)
def test_a_network_that_trains_in_another_way_is_trained_at_full_width(
    forward: Callable[[Net, Tensor], Tensor], reason: str
) -> None:
    torch.manual_seed(0)
    model = Net(forward, stem=conv(1, 8), head=nn.Linear(8, 10), aux=nn.Linear(8, 10))
    if forward is not with_another_head:
        del model.aux
    digits, _ = open_data("digits").hold_out(1200)
    clusters = plan(model, analyze(model, IMAGE), flops_reduction=0.5, allocation="uniform")
    with pytest.raises(Untrainable, match=reason):
        compact_for_training(copy.deepcopy(model), clusters, IMAGE)
    options = TrainOptions(epochs=1, batch_size=32, features="none", amp="no")
    training = TiedTraining(model, copy.deepcopy(model), clusters, digits, None, options, "hard", processes=Processes())
    final, metrics = training.run()
    assert (metrics[0]["kind"], metrics[0]["trained"]) == ("network", "tied")
    rewrite(model, final, IMAGE)


class Split(nn.Module):
    """Its channels lie along two axes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(1, (2, -1)).flatten(3)


def split() -> nn.Module:
    return nn.Sequential(conv(1, 8), nn.ReLU(), Split(), nn.Flatten(), nn.Linear(512, 10))


def shuffled() -> nn.Module:
    """Its compact form is a graph in which the channels are put in order by an index."""

    def forward(m: Net, x: Tensor) -> Tensor:
        x = m.first(x)
        x = x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2)
        return m.head(m.relu(m.second(x)).mean((2, 3)))

    return Net(forward, first=conv(1, 8), second=conv(8, 8), relu=nn.ReLU(), head=nn.Linear(8, 10))


def never_firing() -> nn.Module:
    """Its last map is zero everywhere, as others in the graph may be."""
    model = with_a_literal()
    nn.init.constant_(model.net[3].bias, -100.0)  # type: ignore[index, union-attr, operator, arg-type]
    return model


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (shuffled, r"the channels of its maps cannot be followed through a program that is edited \(a shuffle\)"),
        (split, r"the channels of a map cannot be followed \[module '2'\]"),
        (never_firing, r"the small network returns no such map \[module 'net.4'\]"),
    ],
)
def test_maps_that_the_small_network_does_not_return(build: Callable[[], nn.Module], reason: str) -> None:
    torch.manual_seed(0)
    model = build()
    clusters = random_halves(analyze(model, IMAGE), seed=0)
    pairs = feature_pairs("match", model, copy.deepcopy(model), IMAGE)
    with pytest.raises(Untrainable, match=f"^{reason}$"):
        compact_for_training(copy.deepcopy(model), clusters, IMAGE, pairs)
    assert compact_for_training(model, clusters, IMAGE).maps == []


def test_dropout_and_other_modules_do_not_stand_in_the_way() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(conv(1, 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(512, 10))
    modes = [module.training for module in model.eval().modules()]
    compact = compact_for_training(
        model, plan(model, analyze(model, IMAGE), flops_reduction=0.5, allocation="uniform"), IMAGE
    )
    assert [module.training for module in model.modules()] == modes
    assert [module.training for module in compact.model.modules()] == modes


def test_the_tied_network_is_left_as_good_as_the_one_that_was_trained() -> None:
    torch.manual_seed(0)
    model = joined()
    digits, held_out = open_data("digits").hold_out(500)
    teacher = copy.deepcopy(model)
    clusters = random_halves(analyze(model, IMAGE), seed=0)
    options = TrainOptions(epochs=3, batch_size=32, amp="no", alpha=0.0)
    training = TiedTraining(model, teacher, clusters, digits, held_out, options, "hard", processes=Processes())
    final, metrics = training.run()
    assert metrics[0] == {"kind": "network", "trained": "compact", "reason": ""}
    assert {(record["macs"], record["precision"]) for record in epochs_of(metrics)} == {
        (clusters.macs_after, "float32")
    }
    found = [accuracy(network.eval(), held_out, digits) for network in (model, rewrite(model, final, IMAGE))]
    assert found[0] == found[1] == metrics[-1]["accuracy"]
    assert found[0] > 0.8
    assert tie(model, final, mode="hard").residual().value == 0
