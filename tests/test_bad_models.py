"""Models and inputs that cannot be taken as they are: each gives a message that says what, where and the way out, or just works."""

from __future__ import annotations

import copy
import re
import threading
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from samples import conv
from torch import Tensor, nn
from zoo_other import EarlyExit

import pdc_fx
from pdc_fx.data import open_data
from pdc_fx.errors import InputError, TraceError
from pdc_fx.trace import record

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*non-leaf Tensor:UserWarning"),
]

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Sequential:
    return nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 4)).eval()


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.net(x) + y  # type: ignore[no-any-return]


class Raises(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ValueError("not today")


class Words(nn.Module):
    def forward(self, x: Tensor) -> str:
        return "a cat"


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, 4))
        model: nn.Module = torch.ao.quantization.quantize_dynamic(layers, {nn.Linear}, dtype=torch.qint8)
        return model


class Misspelt(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return y  # type: ignore[name-defined]  # noqa: F821


def exported() -> Any:
    return torch.export.export(net(), (X,)).module()


REFUSED: dict[str, tuple[Callable[[], Any], Any, str]] = {
    "function": (lambda: torch.relu, X, "expected a torch.nn.Module.*pass the module"),
    "class": (lambda: nn.ReLU, X, "got ReLU; make an instance"),
    "none": (lambda: None, X, "got NoneType"),
    "too_few_inputs": (Two, X, "missing 1 required positional argument: 'y'.*a tuple with every argument"),
    "too_many_inputs": (net, (X, X), "takes 2 positional arguments.*a tuple with every argument"),
    "list_of_inputs": (net, [X], "(?s)invalid combination of arguments.*a tuple with every argument"),
    "wrong_channels": (net, torch.randn(2, 4, 8, 8), "to have 3 channels, but got 4.*check the shape"),
    "raises": (Raises, X, r"raised ValueError in its forward pass: not today \(.*test_bad_models.py:\d+\)"),
    "misspelt": (Misspelt, X, r"NameError.*\(.*test_bad_models.py:\d+\).*; mend that line"),
    "no_tensor": (Words, X, "returned no tensor but a str"),
    "meta": (lambda: net().to("meta"), X, "meta device.*'0.weight'.*to_empty"),
    "meta_in_part": (lambda: nn.Sequential(net(), nn.Conv2d(4, 4, 1, device="meta")), X, "meta device.*'1.weight'"),
    "meta_input": (net, X.to("meta"), "example input is on the meta device.*torch.randn"),
    "empty_input": (net, X[:0], "example input is empty.*torch.randn"),
    "lazy": (lambda: nn.Sequential(nn.LazyConv2d(8, 3), conv(8, 4)), X, "lazy.*'0.weight'.*call it once"),
    "traced": (lambda: torch.jit.trace(net(), X), X, "TorchScript.*the module it was scripted from"),
    "exported": (exported, X, "torch.export.*the module it was exported from"),
    "quantized": (quantized, X, "quantized.*'1'.*compress the float model"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules:UserWarning")
@pytest.mark.parametrize("function", [pdc_fx.analyze, pdc_fx.check])
@pytest.mark.parametrize("name", REFUSED)
def test_is_refused_with_a_way_out(name: str, function: Callable[..., object]) -> None:
    build, inputs, text = REFUSED[name]
    with pytest.raises(TraceError, match=text):
        function(build(), inputs)


def planned(model: nn.Module, inputs: Any = X) -> Any:
    groups = pdc_fx.analyze(model, inputs)
    size = min(g.channels for g in groups.groups)
    assert size > 1
    return pdc_fx.plan(model, groups, flops_reduction=0.092)


GROUPS = "pdc_fx.analyze(model, example_inputs) gives them"
MISTAKES: dict[str, tuple[Callable[[nn.Module, Any], Any], str]] = {
    "data set of torch": (
        lambda m, _: pdc_fx.compress(m, X, torch.utils.data.TensorDataset(X), flops_reduction=0.5),  # type: ignore[arg-type]
        "an ImageData is asked for, and a TensorDataset was given; pdc_fx.data.open_data",
    ),
    "model and groups swapped": (lambda m, plan: pdc_fx.plan(plan.groups, m, flops_reduction=0.5), GROUPS),
    "groups as text": (lambda m, plan: pdc_fx.plan(m, plan.groups.to_json(), flops_reduction=0.5), GROUPS),
    "plan as text": (lambda m, plan: pdc_fx.tie(m, plan.to_json()), "ClusterPlan.from_json reads one"),
    "steps as text": (lambda m, plan: pdc_fx.tie(m, plan, total_steps="9"), "total_steps is asked for, and a str"),  # type: ignore[arg-type]
    "frozen number": (lambda m, _: pdc_fx.analyze(m, X, frozen=3), "a list of names, is asked for"),  # type: ignore[arg-type]
    "frozen module": (lambda m, _: pdc_fx.analyze(m, X, frozen=[m]), "a name of a module to freeze is asked for"),  # type: ignore[list-item]
}


@pytest.mark.parametrize("name", MISTAKES)
def test_an_argument_of_another_kind_is_answered_with_what_to_give(name: str) -> None:
    call, words = MISTAKES[name]
    model = net()
    with pytest.raises(InputError, match=re.escape(words) if "(" in words else words):
        call(model, planned(model))


def test_an_unknown_start_is_refused() -> None:
    data = open_data("digits")
    with pytest.raises(InputError, match=r"^unknown start 'prune'; use 'model', 'fold', 'calibrate'$"):
        pdc_fx.compress(net(), X[:1, :1], data, flops_reduction=0.5, start="prune")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["function", "meta", "traced", "quantized"])
def test_tie_and_rewrite_refuse_it_too(name: str) -> None:
    plan, model = planned(net()), REFUSED[name][0]()
    with pytest.raises(TraceError, match=REFUSED[name][2]):
        pdc_fx.tie(model, plan, mode="hard")
    with pytest.raises(TraceError, match=REFUSED[name][2]):
        pdc_fx.rewrite(model, plan, X)


def test_a_model_made_in_inference_mode_cannot_be_tied() -> None:
    with torch.inference_mode():
        model = net()
    assert pdc_fx.check(model, X).passed
    with pytest.raises(InputError, match=r"inference mode.*deepcopy"):
        pdc_fx.tie(model, planned(model), mode="hard")
    assert pdc_fx.tie(copy.deepcopy(model), planned(model), mode="hard").final


class Branches(nn.Module):
    """One branch that is out of the ordinary, and one beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.other, self.last = (conv(i, o) for i, o in [(3, 8), (8, 4)] * 3)
        self.gain = nn.Parameter(torch.rand(1, 8, 1, 1) + 1)

    def forward(self, x: Tensor) -> Tensor:
        beside = self.last(self.other(x).relu())
        return self.b(self.a(x) * self.gain) + self.d(self.c(x)) + beside  # type: ignore[no-any-return]


def overlapping() -> nn.Module:
    model = Branches()
    model.a.weight = nn.Parameter(torch.randn(12, 3, 3, 3))
    whole = torch.randn(12, 3, 3, 3)
    model.a.weight, model.c.weight = nn.Parameter(whole[:8]), nn.Parameter(whole[4:])
    return model


def same_memory() -> nn.Module:
    model = Branches()
    model.c.weight = nn.Parameter(model.a.weight.data)
    return model


def expanded() -> nn.Module:
    model = Branches()
    model.gain = nn.Parameter(torch.full((1, 1, 1, 1), 1.5).expand(1, 8, 1, 1))
    return model


@pytest.mark.parametrize(
    ("build", "frozen", "reason"),
    [
        (overlapping, {"a", "c"}, "'c.weight' shares memory with 'a.weight'"),
        (same_memory, {"a", "c"}, "shares memory"),
        (expanded, {"a"}, "several entries of 'gain' are one number in memory"),
    ],
)
def test_tensors_that_share_memory_stay(build: Callable[[], nn.Module], frozen: set[str], reason: str) -> None:
    torch.manual_seed(0)
    model = build().eval()
    groups = pdc_fx.analyze(model, X)
    assert {f.module for f in groups.frozen} >= frozen
    assert "other" in {g.name for g in groups.groups}
    assert any(reason in f.reason for f in groups.frozen)
    certificate = pdc_fx.check(model, X)
    assert certificate.passed
    assert certificate.mergeable_channels == groups.mergeable_channels
    plan = pdc_fx.tie(model, pdc_fx.plan(model, groups, flops_reduction=0.08), mode="hard").snap()
    with torch.no_grad():
        assert torch.allclose(pdc_fx.rewrite(model, plan, X)(X), model(X), atol=1e-5)


@pytest.mark.parametrize("tensor", [torch.empty(0), torch.eye(3).to_sparse()], ids=["empty", "sparse"])
def test_a_tensor_without_memory_to_look_at_shares_none(tensor: Tensor) -> None:
    model = net()
    model.register_buffer("one", tensor)
    model.register_buffer("other", tensor.clone())
    assert record(model, X).overlapping == {}
    assert pdc_fx.analyze(model, X).mergeable_channels == 16


def test_an_output_in_an_object_is_one() -> None:
    """It is no tuple and no dict: its attributes are looked at."""

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor) -> SimpleNamespace:
            return SimpleNamespace(scores=self.net(x), names=("a", "b"))

    groups = pdc_fx.analyze(Holder(), X)
    assert groups.mergeable_channels == 16
    assert [(f.module, f.reason) for f in groups.frozen] == [("net.5", "is an output of the model")]


def test_disjoint_views_of_one_buffer_are_fine() -> None:
    model, flat = net(), torch.randn(8 * 3 * 9 + 8)
    model[0].weight = nn.Parameter(flat[: 8 * 3 * 9].view(8, 3, 3, 3))
    model[0].bias = nn.Parameter(flat[8 * 3 * 9 :])
    assert pdc_fx.analyze(model, X).mergeable_channels == 16
    assert pdc_fx.check(model, X).passed


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_works(dtype: torch.dtype) -> None:
    model = net().to(dtype)
    assert pdc_fx.check(model, X.to(dtype)).passed
    plan = pdc_fx.tie(model, planned(model, X.to(dtype)), mode="hard").snap()
    compact = pdc_fx.rewrite(model, plan, X.to(dtype))
    assert next(compact.parameters()).dtype is dtype
    with torch.no_grad():
        assert torch.allclose(compact(X.to(dtype)), model(X.to(dtype)), atol=0.05)


def in_place() -> nn.Module:
    model = net()
    model.compile(backend="eager")
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "build", [lambda: torch.compile(net(), backend="eager"), in_place, lambda: nn.DataParallel(net())]
)
def test_wrapped_models_work(build: Callable[[], nn.Module]) -> None:
    model = build()
    assert pdc_fx.analyze(model, X).mergeable_channels == 16
    assert pdc_fx.check(model, X).passed
    plan = pdc_fx.tie(model, planned(model), mode="hard").snap()
    compact = pdc_fx.rewrite(model, plan, X)
    assert sum(p.numel() for p in compact.parameters()) < sum(p.numel() for p in model.parameters())


def test_each_module_keeps_its_mode() -> None:
    model = net().train()
    model[1].eval()  # as with frozen statistics
    plan = pdc_fx.tie(model, planned(model), mode="hard").snap()
    compact = pdc_fx.rewrite(model, plan, X)
    assert [m.training for m in compact.modules()] == [m.training for m in model.modules()]


def test_a_model_that_cannot_be_copied_is_named() -> None:
    model = net()
    model.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(TraceError, match=r"Sequential cannot be copied.*lock.*__deepcopy__"):
        pdc_fx.check(model, X)


class Gate(nn.Module):
    def forward(self, x: Tensor) -> bool:
        return bool(x.mean() > -100)


class Chooses(nn.Module):
    """Decides by what ``value`` makes of the image whether ``bright`` or ``dark`` runs."""

    def __init__(self, value: Callable[[nn.Module, Tensor], object], dark: nn.Module | None = None) -> None:
        super().__init__()
        self.stem, self.bright, self.head = conv(3, 8), conv(8, 8), conv(8, 4)
        self.dark, self.gate = dark or conv(8, 8), Gate()
        self.register_buffer("limit", torch.tensor(-100.0))
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.bright(x) if self.value(self, x) else self.dark(x)
        return self.head(x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "value",
    [
        lambda _, x: x.mean() > -100,
        lambda _, x: x.mean().item() > -100,
        lambda _, x: int(x.sum()) > -1e6,
        lambda self, x: self.gate(x),  # decided in another module than the one that acts on it
        lambda _, x: len(torch.nonzero(x > -100)) > 0,  # by how many there are
        lambda _, x: x[x > -100].numel() > 0,
        lambda _, x: len(torch.where(x > -100)[0]) > 0,
        lambda _, x: not torch.equal(x, x + 1),
    ],
)
def test_a_model_that_chooses_by_values_is_refused(value: Callable[[nn.Module, Tensor], object]) -> None:
    with pytest.raises(TraceError, match=r"'dark' did not run") as caught:
        pdc_fx.analyze(Chooses(value), X)
    assert "test_bad_models.py" in caught.value.where
    assert "torch.where" in caught.value.hint


@pytest.mark.parametrize("value", [lambda self, _: self.limit < 0, lambda *_: True])
def test_parts_that_no_value_of_the_image_decides_about_are_only_named(value: Callable[..., object]) -> None:
    assert pdc_fx.analyze(Chooses(value), X).unreached == ("dark",)


def test_a_parameter_of_the_forward_pass_is_named() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head, self.scale = conv(3, 8), conv(8, 4), None

        def forward(self, x: Tensor) -> Tensor:
            if self.scale is None:
                self.scale = nn.Parameter(torch.ones(1, 8, 1, 1))
            return self.head(self.stem(x) * self.scale)  # type: ignore[no-any-return]

    with pytest.raises(TraceError, match="makes a parameter in its forward pass"):
        pdc_fx.analyze(Late(), X)


def test_an_early_exit_that_is_taken_is_refused() -> None:
    with pytest.raises(TraceError, match=r"'second.conv', .* did not run"):
        pdc_fx.analyze(EarlyExit(0.0), X)


def test_a_model_that_reads_values_and_runs_whole_is_taken() -> None:
    assert pdc_fx.analyze(Chooses(lambda _, x: x.mean() > -100, nn.Identity()), X).groups


def test_a_model_without_parameters_has_nothing_to_merge() -> None:
    assert pdc_fx.analyze(nn.ReLU(), X).groups == ()
