"""Rules of users: for their own operators and for module classes that are recorded as one call."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from types import MethodType

import pytest
import torch
from extension import registry_restored
from samples import Net, between, conv, joined_parts, two
from torch import Tensor, nn

import pdc_fx
from pdc_fx.rules import Channels, Declined, Site, Value, literal, mix
from pdc_fx.rules.base import Rule
from pdc_fx.rules.registry import functions, rule_for
from pdc_fx.trace import LEAVES, leaf_class, record


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    with registry_restored():
        yield


@torch.library.custom_op("pdc_fx_tests::scale_shift", mutates_args=())
def scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return x * scale[:, None, None] + shift[:, None, None]


class ScaleShift(nn.Module):
    """Its size is an attribute that the forward pass insists on."""

    def __init__(self, channels: int, *, shift: bool = True) -> None:
        super().__init__()
        self.channels = channels
        self.scale = nn.Parameter(torch.randn(channels))
        self.register_parameter("shift", nn.Parameter(torch.randn(channels)) if shift else None)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        flat = x.numpy().reshape(n, self.channels, h * w)  # nothing that could be followed
        y = torch.from_numpy(flat * self.scale.numpy()[:, None]).view(n, self.channels, h, w)
        return y if self.shift is None else y + self.shift[:, None, None]


class Projection(nn.Module):
    """A 1x1 convolution by a library that torch knows nothing of."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numpy().reshape(x.shape[0], self.weight.shape[1], -1)
        return torch.from_numpy(self.weight.numpy() @ rows).reshape(x.shape[0], -1, *x.shape[2:])


class Gated(nn.Module):
    """A leaf that holds a module, takes two tensors and gives two."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = ScaleShift(8)

    def forward(self, x: Tensor, *, other: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x) + other, x * other


def ride(site: Site, x: Channels, *entries: object) -> Value:
    label, path = site.along(x, 1)
    for entry in entries:
        site.ride(entry, 0, label, path)
    return x.then(site.key)


def scale_shift_rule(site: Site) -> Value:
    x = site.channels(site.argument(0, "x"))
    return ride(site, x, site.argument(1, "scale"), site.argument(2, "shift"))


def module_rule(site: Site) -> Value:
    return ride(site, site.channels(site.argument(0, "x")), site.own("scale"), site.optional("shift"))


def projection_rule(site: Site) -> Value:
    x, weight = site.channels(site.argument(0, "x")), site.own("weight")
    site.read(weight, 1, *site.along(x, 1))
    site.multiply_accumulates(weight, x.shape[0] * x.shape[2] * x.shape[3])
    return site.laid(*site.produce(weight, 0), 1)


def gated_rule(site: Site) -> Value:
    x, other = site.channels(site.argument(0, "x")), site.channels(site.argument(1, "other"))
    site.flow.unify(x.label, other.label, site.module, "meets")
    both = Channels(x.shape, x.label, mix(x.path, other.path, site.key))
    ride(site, x, site.own("inner.scale"), site.own("inner.shift"))
    return [both.then(1), both.then(2)]


def resized(module: nn.Module, before: tuple[int, ...]) -> None:
    assert isinstance(module, ScaleShift)
    assert len(before) == 1
    module.channels = module.scale.shape[0]


def register_all() -> None:
    pdc_fx.rule(ScaleShift)(module_rule)
    pdc_fx.resize_rule(ScaleShift)(resized)
    pdc_fx.rule(Projection)(projection_rule)
    pdc_fx.rule(Gated)(gated_rule)


MODULES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "scale_shift": (between(lambda m, x: m.a(x.relu()), a=ScaleShift(8)), 8),
    "without_shift": (between(lambda m, x: m.a(x.relu()), a=ScaleShift(8, shift=False)), 8),
    "twice": (between(lambda m, x: m.a(m.a(x)), a=ScaleShift(8)), 8),
    "projection": (between(lambda m, x: m.a(x).relu(), a=Projection(8, 6), head=6), 14),
    "residual": (between(lambda m, x: x + m.a(x), a=Projection(8, 8)), 8),
    "two_results": (
        between(lambda m, x: joined_parts(*two(m.a(x, other=m.b(x)))), a=Gated(), b=conv(8, 8), head=16),
        8,
    ),
    "graph_to_edit": (between(lambda m, x: shuffled(m.a(x)), a=ScaleShift(8)), 4),
}


def test_a_leaf_that_was_given_a_forward_keeps_it() -> None:
    """As libraries do that move parameters about."""
    register_all()
    model = copy.deepcopy(MODULES["scale_shift"][0]())
    model.a.forward = given = MethodType(ScaleShift.forward, model.a)  # type: ignore[method-assign, assignment, union-attr]
    assert pdc_fx.analyze(model, torch.randn(2, 3, 8, 8)).mergeable_channels == 8
    assert vars(model.a)["forward"] is given


def shuffled(x: Tensor) -> Tensor:
    return x.view(2, 2, 4, 8, 8).transpose(1, 2).reshape(2, 8, 8, 8)


@pytest.mark.parametrize("name", MODULES)
def test_leaf_modules_merge_exactly(name: str) -> None:
    register_all()
    build, merges = MODULES[name]
    model, inputs = build(), torch.randn(2, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    groups = pdc_fx.analyze(model, inputs)
    assert groups.mergeable_channels >= merges, groups.frozen
    assert not groups.unreached
    for seed in range(3):
        certificate = pdc_fx.check(model, inputs, seed=seed)
        assert certificate.passed
        assert certificate.max_rel_error < 1e-12
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not any("forward" in vars(module) for module in model.modules()), "the module is as it was"


@pytest.mark.parametrize("name", MODULES)
def test_without_the_rule_nothing_at_the_module_merges(name: str) -> None:
    groups = pdc_fx.analyze(MODULES[name][0](), torch.randn(2, 3, 8, 8))
    assert groups.mergeable_channels == 0
    assert any("numpy" in entry.reason for entry in groups.frozen)


def test_a_whole_compression_with_a_leaf() -> None:
    register_all()
    model, inputs = MODULES["scale_shift"][0]().eval(), torch.randn(2, 3, 8, 8)
    plan = pdc_fx.plan(model, pdc_fx.analyze(model, inputs), flops_reduction=0.5)
    plan = pdc_fx.tie(model, plan, mode="hard").snap()
    with torch.no_grad():
        compact = pdc_fx.rewrite(model, plan, inputs)
        assert compact.a.channels == 4  # type: ignore[union-attr]
        assert torch.allclose(compact(inputs), model(inputs), atol=1e-5)


def test_without_a_resize_rule_the_channels_stay_and_the_reason_names_the_class() -> None:
    pdc_fx.rule(ScaleShift)(module_rule)
    groups = pdc_fx.analyze(MODULES["scale_shift"][0](), torch.randn(2, 3, 8, 8))
    assert groups.mergeable_channels == 0
    assert any("ScaleShift" in entry.reason for entry in groups.frozen)


@pytest.mark.parametrize(
    "target",
    [
        scale_shift,
        torch.ops.pdc_fx_tests.scale_shift,
        torch.ops.pdc_fx_tests.scale_shift.default,
        "pdc_fx_tests::scale_shift",
        "pdc_fx_tests.scale_shift",
    ],
    ids=["custom_op", "packet", "overload", "name", "dotted"],
)
def test_every_way_to_name_an_operator(target: object) -> None:
    def build() -> nn.Module:
        parameters = {name: nn.Parameter(torch.randn(8)) for name in ("scale", "shift")}
        return between(lambda m, x: scale_shift(x, m.scale, m.shift), **parameters)()

    inputs = torch.randn(2, 3, 8, 8)
    groups = pdc_fx.analyze(build(), inputs)
    assert groups.mergeable_channels == 0
    assert any("scale_shift" in entry.reason and "has no rule" in entry.reason for entry in groups.frozen)
    pdc_fx.rule(target)(scale_shift_rule)
    certificate = pdc_fx.check(build(), inputs)
    assert certificate.passed
    assert certificate.mergeable_channels == 8


class Wider(ScaleShift):
    """Computes as its base does."""


class Other(ScaleShift):
    """Computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(1)


def test_a_subclass_is_a_leaf_as_long_as_it_computes_the_same() -> None:
    pdc_fx.rule(ScaleShift)(module_rule)
    assert leaf_class(Wider(8)) is ScaleShift
    assert leaf_class(Other(8)) is None
    assert leaf_class(nn.ReLU()) is None


def test_the_recording_has_one_call_for_a_leaf() -> None:
    register_all()
    model = MODULES["scale_shift"][0]()
    calls = [n for n in record(model, torch.randn(2, 3, 8, 8)).graph.nodes if n.op == "call_function"]
    assert [n.target for n in calls] == [torch.conv2d, Tensor.relu, ScaleShift, torch.conv2d]
    assert calls[2].meta["leaf"] is model.a
    assert calls[2].meta["module"] == "a"
    assert sorted(calls[2].meta["own"]) == ["scale", "shift"]


def test_a_leaf_that_raises_leaves_the_module_as_it_was() -> None:
    register_all()
    model = between(lambda m, x: m.a(x), a=ScaleShift(7))()
    with pytest.raises(pdc_fx.PdcError, match="raised"):
        pdc_fx.analyze(model, torch.randn(2, 3, 8, 8))
    assert "forward" not in vars(model.a)


def forgets_shift(site: Site) -> Value:
    return ride(site, site.channels(site.argument(0, "x")), site.own("scale"))


def wrong_shape(site: Site) -> Value:
    module_rule(site)
    return Channels.fixed((1, 2, 3))


def gives_nothing(site: Site) -> Value:
    module_rule(site)  # and no return
    return None


def declines(site: Site) -> Value:
    raise Declined("is too clever")


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (forgets_shift, "says nothing about the parameter 'shift'"),
        (wrong_shape, "gives the shape"),
        (gives_nothing, "says nothing about its result"),
        (declines, "is too clever"),
    ],
)
def test_a_rule_that_cannot_be_right_freezes(rule: Rule, reason: str) -> None:
    pdc_fx.rule(ScaleShift)(rule)
    pdc_fx.resize_rule(ScaleShift)(resized)
    groups = pdc_fx.analyze(MODULES["scale_shift"][0](), torch.randn(2, 3, 8, 8))
    assert groups.mergeable_channels == 0
    assert any(reason in entry.reason and "ScaleShift" in entry.reason for entry in groups.frozen)


def test_a_parameter_name_that_does_not_exist_is_an_error_of_the_rule() -> None:
    pdc_fx.rule(ScaleShift)(lambda site: ride(site, site.channels(site.argument(0, "x")), site.own("scael")))
    with pytest.raises(LookupError, match="scael"):
        pdc_fx.analyze(MODULES["scale_shift"][0](), torch.randn(2, 3, 8, 8))


def test_a_leaf_that_reads_tensors_of_others_freezes_them() -> None:
    register_all()

    class Thief(ScaleShift):
        def forward(self, x: Tensor) -> Tensor:
            return x * self.scale[:, None, None] + self.shift[:, None, None] * self.seen[0].mean()  # type: ignore[index]

    def run(m: nn.Module, x: Tensor) -> Tensor:
        m.a.seen = (m.b(x),)  # type: ignore[union-attr]
        return m.a(x)  # type: ignore[no-any-return, operator]

    pdc_fx.rule(Thief)(module_rule)
    pdc_fx.resize_rule(Thief)(resized)
    groups = pdc_fx.analyze(between(run, a=Thief(8), b=conv(8, 8))(), torch.randn(2, 3, 8, 8))
    assert groups.mergeable_channels == 8
    assert any(entry.module == "b" and "cannot be followed" in entry.reason for entry in groups.frozen)


class Apply(torch.autograd.Function):
    """Never recorded itself."""


@pytest.mark.parametrize(
    ("target", "error", "text"),
    [
        (nn.ReLU(), TypeError, "give its class"),
        (nn.Sequential, TypeError, "only holds other modules"),
        (Apply, TypeError, "autograd function"),
        (3, TypeError, "expected a function"),
        ("no_such_function", LookupError, "no torch function"),
    ],
)
def test_targets_that_nothing_could_come_of_are_refused(target: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        pdc_fx.rule(target)


def test_what_makes_no_sense_for_a_class_is_refused() -> None:
    with pytest.raises(TypeError, match="gather"):
        pdc_fx.rule(ScaleShift, moves=True)
    with pytest.raises(TypeError, match="resize_rule"):
        literal(ScaleShift)
    with pytest.raises(TypeError, match="subclasses"):
        pdc_fx.resize_rule(3)  # type: ignore[arg-type]
    assert ScaleShift not in LEAVES


WIDTH_AS_A_NUMBER: dict[str, Callable[[Tensor], Tensor]] = {
    "add": lambda x: x.relu() + x.shape[1],
    "clamp": lambda x: x.clamp(max=x.shape[1] / 8),
    "full": lambda x: x * torch.full((1,), x.shape[1], dtype=x.dtype),
    "new_full": lambda x: x * x.new_full((1,), x.shape[1]),
    "full_like": lambda x: x * torch.full_like(x, x.shape[1]),
}


def what_happens_to(function: Callable[[Tensor], Tensor]) -> tuple[object, ...]:
    model = between(lambda m, x: function(x))()
    try:
        found = pdc_fx.check(model, torch.randn(2, 3, 8, 8))
    except pdc_fx.PdcError as error:
        return type(error), str(error)
    return found.passed, found.mergeable_channels, [entry.reason for entry in found.frozen]


@pytest.mark.parametrize("name", WIDTH_AS_A_NUMBER)
def test_another_rule_for_a_function_does_not_change_what_is_known_of_it(name: str) -> None:
    """A number that follows the width is an operand whoever wrote the rule."""
    before = what_happens_to(WIDTH_AS_A_NUMBER[name])
    assert before[0] is not False
    for key in functions(name):
        standard = rule_for(key)
        assert standard is not None
        pdc_fx.rule(key)(partial(standard))
    assert what_happens_to(WIDTH_AS_A_NUMBER[name]) == before


@torch.library.custom_op("pdc_fx_tests::plus", mutates_args=())
def plus(x: Tensor, number: float) -> Tensor:
    return x + number


def test_a_trait_of_a_function_of_ones_own() -> None:
    """Without it the smaller network adds another number, and the certificate says so."""
    pdc_fx.rule("pdc_fx_tests::plus")(lambda site: site.channels(site.argument(0, "x")).then(site.key))
    passed, *_ = what_happens_to(lambda x: plus(x, x.shape[1]))
    assert passed is False
    pdc_fx.rule("pdc_fx_tests::plus", traits=("arithmetic",))(
        lambda site: site.channels(site.argument(0, "x")).then(site.key)
    )
    assert what_happens_to(lambda x: plus(x, x.shape[1])) == (True, 8, ["is an output of the model"])


def test_a_trait_that_is_none_is_named() -> None:
    with pytest.raises(LookupError, match="no trait is called 'arithmetics': there are keeps_positions, arithmetic, "):
        pdc_fx.rule("pdc_fx_tests::plus", traits=("arithmetics",))  # type: ignore[arg-type]
    assert rule_for("pdc_fx_tests.plus") is None


def test_a_leaf_inside_a_leaf_is_part_of_it() -> None:
    register_all()
    model = Net(lambda m, x: m.a(x, other=x)[0], a=Gated())
    calls = [n.target for n in record(model, torch.randn(2, 8, 4, 4)).graph.nodes if n.op == "call_function"]
    assert ScaleShift not in calls
    assert Gated in calls
