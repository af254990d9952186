"""Budgets of latency: roundings, the planner with a measure that is made up, the model of layer times, tables on disk.

Nothing here depends on how fast the machine is: times are made up, or only looked at for being there.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cli import options, run
from torch import Tensor, nn
from torch.nn import functional as F

import pdc_fx.export.timing.latency as latency_module
from pdc_fx.directory import CERTIFICATE
from pdc_fx.errors import ArtifactError, InputError, PdcError, PlanError
from pdc_fx.export.session import choose_provider
from pdc_fx.export.timing.latency import Latency
from pdc_fx.export.timing.latency_table import LatencyTable, Target, cache_directory, open_table, this_machine
from pdc_fx.export.timing.layer_times import time_layers
from pdc_fx.ir import ChannelGroups, ClusterPlan
from pdc_fx.models import build_model
from pdc_fx.passes.allocation import PlanClusters
from pdc_fx.passes.budget import Rounding, Widths
from pdc_fx.passes.latency import LatencyModel, Layer, layers_of
from pdc_fx.pipeline import analyze, plan
from pdc_fx.trace import record

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


# ------------------------------------------------------------------------------------------------------------- rounding
def small() -> nn.Module:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)]
    return nn.Sequential(*(part for c in convolutions for part in (c, nn.ReLU())), nn.Flatten(), nn.Linear(1024, 10))


@pytest.fixture(scope="module")
def resnet20() -> tuple[nn.Module, ChannelGroups]:
    torch.manual_seed(0)
    model = build_model(f"{EXAMPLES / 'cifar_resnet.py'}:resnet20").model
    return model, analyze(model, torch.zeros(1, 3, 32, 32))


@pytest.mark.parametrize("allocation", ["uniform", "global"])
@pytest.mark.parametrize("target", [0.3, 0.5, 0.62])
def test_auto_rounds_a_small_network_and_meets_its_budget(
    resnet20: tuple[nn.Module, ChannelGroups], allocation: Any, target: float
) -> None:
    made = plan(*resnet20, flops_reduction=target, allocation=allocation, round_to="auto")
    assert made.flops_reduction == pytest.approx(target, abs=0.01)
    rounding = Rounding(made.options["round_to"], shrinks=True)
    channels = [group.channels for group in made.groups.groups]
    assert all(made.widths[i] % rounding.step(n) == 0 for i, n in enumerate(channels))
    assert allocation == "uniform" or rounding.block == 16


def test_auto_is_the_provider_that_works_here(resnet20: tuple[nn.Module, ChannelGroups]) -> None:
    chosen, named = (
        plan(*resnet20, flops_reduction=0.5, round_to="auto", provider=provider)
        for provider in ("auto", choose_provider().name)
    )
    assert chosen.to_json() == named.to_json()


def test_auto_gives_way_where_rounded_widths_cannot_meet_the_budget() -> None:
    model = small()
    groups = analyze(model, torch.zeros(1, 1, 8, 8))
    assert plan(model, groups, flops_reduction=0.3, round_to="auto").options["round_to"] == 1
    with pytest.raises(PlanError, match="smaller --round-to"):
        plan(model, groups, flops_reduction=0.3, round_to=4)
    with pytest.raises(PlanError, match="largest possible here is 0"):
        plan(model, groups, flops_reduction=0.5, round_to=32)


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"round_to": "8"}, "at least 1, or 'auto'"),
        ({"round_to": -8}, "at least 1, or 'auto'"),
        ({"round_to": "auto", "provider": "gpu"}, "unknown provider 'gpu'; use one of .*cpu"),
    ],
)
def test_roundings_that_are_none(resnet20: tuple[nn.Module, ChannelGroups], chosen: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan(*resnet20, flops_reduction=0.5, **chosen)


# -------------------------------------------------------------------------------------------------------------- planner
class MadeUp:
    """A measure that counts multiply-accumulates, and a network that does not keep to it."""

    what = "latency"
    facts: Mapping[str, Any] = {"device": "none"}

    def __init__(self, groups: ChannelGroups, real: Callable[[float], float | None]) -> None:
        self.groups, self.real, self.proofs = groups, real, 0

    def cost(self, widths: Widths | None, /) -> float:
        return float(self.groups.macs(widths))

    def proof(self, made: ClusterPlan) -> float | None:
        self.proofs += 1
        return self.real(made.flops_reduction)


@pytest.mark.parametrize(
    ("real", "proofs"),
    [
        (lambda foretold: None, 1),  # cannot be measured
        (lambda foretold: foretold - 0.015, 1),  # close enough
        (lambda foretold: 0.8 * foretold, 2),
        (lambda foretold: 1.2 * foretold, 2),
        (lambda foretold: foretold - 0.1, 3),
        (lambda foretold: 0.5 * foretold, 4),
    ],
)
def test_a_plan_is_corrected_by_what_its_network_takes(
    resnet20: tuple[nn.Module, ChannelGroups], real: Callable[[float], float | None], proofs: int
) -> None:
    measure = MadeUp(resnet20[1], real)
    made = PlanClusters(resnet20[0], latency_reduction=0.4, latency=measure)(resnet20[1])
    assert made.options["predicted_reduction"] == pytest.approx(made.flops_reduction, abs=1e-4)
    assert made.options["latency"] == measure.facts
    assert measure.proofs <= proofs
    measured = real(made.flops_reduction)
    assert made.options.get("measured_reduction") == (
        measured if measured is None else pytest.approx(measured, abs=1e-4)
    )
    reached, allowed = (made.flops_reduction, 0.01) if measured is None else (measured, 0.02)
    assert reached == pytest.approx(0.4, abs=allowed)
    assert ClusterPlan.from_json(made.to_json()).options == made.options


def test_a_network_that_does_not_become_faster_is_refused(resnet20: tuple[nn.Module, ChannelGroups]) -> None:
    measure = MadeUp(resnet20[1], lambda foretold: 0.1 * foretold)
    with pytest.raises(PlanError, match=r"40\.0% the nearest that was found here is \d\.\d%; .*% were foretold"):
        PlanClusters(resnet20[0], latency_reduction=0.4, latency=measure)(resnet20[1])
    assert measure.proofs == 4
    measure = MadeUp(resnet20[1], lambda foretold: -0.044)
    with pytest.raises(PlanError, match=r"40\.0% less time was foretold, .* take 4\.4% more; the machine is busy"):
        PlanClusters(resnet20[0], latency_reduction=0.4, latency=measure)(resnet20[1])
    assert measure.proofs == 1


@pytest.mark.parametrize(
    ("chosen", "error", "words"),
    [
        ({"latency_reduction": 0.4}, InputError, "go together"),
        ({"latency_reduction": 0.4, "flops_reduction": 0.4}, InputError, "exactly one"),
        ({"latency_reduction": 1.4}, InputError, "between 0 and 1"),
        (
            {"latency_reduction": 0.9, "min_channels": 12},
            PlanError,
            "of the latency cannot be met; the largest possible",
        ),
    ],
)
def test_budgets_of_latency_that_are_refused(
    resnet20: tuple[nn.Module, ChannelGroups], chosen: dict[str, Any], error: type, words: str
) -> None:
    measure = MadeUp(resnet20[1], lambda foretold: None) if error is PlanError else None
    with pytest.raises(error, match=words):
        PlanClusters(resnet20[0], latency=measure, **chosen)(resnet20[1])


# ---------------------------------------------------------------------------------------------------------------- model
class Kinds(nn.Module):
    """A layer of each kind, and one whose weight is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 64, 3, stride=2, padding="valid")
        self.depthwise = nn.Conv2d(64, 128, (3, 1), padding=(1, 0), groups=64)
        self.pointwise = nn.Conv2d(128, 64, 1)
        self.grouped = nn.Conv2d(64, 64, 3, padding="same", dilation=2, groups=4)
        self.up = nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1)
        self.last, self.head = nn.Conv2d(32, 64, 1), nn.Linear(64, 10)
        self.scale = nn.Parameter(torch.ones(64, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.pointwise(self.depthwise(self.first(x)).relu())
        x = self.last(self.up(self.grouped(x).relu()).relu())
        x = F.conv2d(x, 2 * self.scale, groups=64)
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def kinds() -> tuple[ChannelGroups, LatencyModel]:
    torch.manual_seed(0)
    model, image = Kinds(), torch.zeros(2, 3, 17, 17)
    groups = analyze(model, image)
    return groups, LatencyModel(groups, layers_of(record(model, image)))


def counted(layer: Layer) -> float:
    """Multiply-accumulates of a layer, for want of a clock."""
    uses = layer.batch
    for i, size in enumerate(layer.space):
        k, s, d = layer.weight[2 + i], layer.stride[i], layer.dilation[i]
        pads = layer.pads[i] + layer.pads[i + len(layer.space)]
        uses *= size if layer.kind == "conv_transpose" else (size + pads - d * (k - 1) - 1) // s + 1
    return float(uses * torch.Size(layer.weight).numel())


def test_every_kind_of_layer_is_found(kinds: tuple[ChannelGroups, LatencyModel]) -> None:
    assert [use.layer.key() for use in kinds[1].uses] == [
        "conv 3 to 64, kernel 3x3, input 2x17x17, stride 2x2",
        "conv 64 to 128, kernel 3x1, input 2x8x8, pads 1x0x1x0, groups 64",
        "conv 128 to 64, kernel 1x1, input 2x8x8",
        "conv 64 to 64, kernel 3x3, input 2x8x8, pads 2x2x2x2, dilation 2x2, groups 4",
        "conv_transpose 64 to 32, kernel 4x4, input 2x8x8, stride 2x2, pads 1x1x1x1",
        "conv 32 to 64, kernel 1x1, input 2x16x16",
        "linear 64 to 10, input 2",
    ]
    assert len(kinds[1].needed) <= 25 * len(kinds[1].uses)


def test_what_is_no_layer_of_a_batch_is_not_timed() -> None:
    """A convolution that runs image by image, and a product with a single vector."""

    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.vector, self.head = nn.Conv2d(3, 4, 1), nn.Parameter(torch.ones(4)), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            rows = torch.stack([self.conv(image) for image in x]).mean((2, 3))
            return self.head(rows) + F.linear(rows, self.vector)[:, None]  # type: ignore[no-any-return]

    uses = layers_of(record(Single(), torch.zeros(2, 3, 4, 4)))
    assert [use.layer.key() for use in uses] == ["linear 4 to 2, input 2"]


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_time_that_is_bilinear_is_foretold_exactly(
    data: st.DataObject, kinds: tuple[ChannelGroups, LatencyModel]
) -> None:
    groups, model = kinds
    model.fill({key: counted(layer) for key, layer in model.needed.items()}, 0.0)
    widths = {
        i: data.draw(st.integers(min(16, g.channels), g.channels), label=g.name) for i, g in enumerate(groups.groups)
    }
    assert model(None) == pytest.approx(groups.macs() - groups.fixed_macs)
    assert model(widths) == pytest.approx(groups.macs(widths) - groups.fixed_macs)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_narrower_network_is_never_foretold_to_be_slower(
    data: st.DataObject, kinds: tuple[ChannelGroups, LatencyModel]
) -> None:
    groups, model = kinds
    noise = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    model.fill({key: float(torch.rand((), generator=noise)) for key in model.needed}, 5.0)
    wide = {i: data.draw(st.integers(1, g.channels)) for i, g in enumerate(groups.groups)}
    narrow = {i: data.draw(st.integers(1, width)) for i, width in wide.items()}
    assert model(narrow) <= model(wide) * (1 + 1e-12)


def test_what_layers_do_not_explain_goes_with_what_they_write(kinds: tuple[ChannelGroups, LatencyModel]) -> None:
    groups, model = kinds
    model.fill(dict.fromkeys(model.needed, 1.0), 100.0)
    dense = model(None)
    halves = {i: g.channels // 2 for i, g in enumerate(groups.groups)}
    assert dense == pytest.approx(100)
    layers = model.layers()

    def written(widths: Widths | None) -> int:
        shapes = [(use, groups.compact_shape(use.tensor, widths)) for use in model.uses]
        return sum(use.positions * shape[use.layer.kind == "conv_transpose"] for use, shape in shapes)

    assert model(halves) == pytest.approx(layers + (dense - layers) * written(halves) / written(None))
    model.fill(dict.fromkeys(model.needed, 1.0), 1.0)  # less than its layers: then there is no rest
    assert model(None) == layers


# --------------------------------------------------------------------------------------------------------------- tables
HERE = Target("a processor", "cpu", 2, "onnxruntime 1.2.3")


def test_a_table_says_what_it_is_and_survives_its_file(tmp_path: Path) -> None:
    table = LatencyTable(HERE, {"conv b": 2.5, "conv a": 1}, {"net": 9.0}, {"net, widths a": -0.1})
    table.save(tmp_path / "deep" / "table.json")
    assert open_table(tmp_path / "deep" / "table.json", HERE)[0] == table
    data = json.loads((tmp_path / "deep" / "table.json").read_text())
    assert list(data) == [
        *("format", "unit", "device", "provider", "threads", "runtime"),
        *("reductions", "networks", "layers"),
    ]
    assert open_table(tmp_path / "none.json", HERE) == (LatencyTable(HERE), tmp_path / "none.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: "{", "cannot be read"),
        (lambda data: b"\xff\xfe", "cannot be read"),
        (lambda data: [data], "not a JSON object"),
        (lambda data: data | {"format": 2}, "format 1"),
        (lambda data: data | {"threads": "2"}, "malformed: threads"),
        (lambda data: {k: v for k, v in data.items() if k != "device"}, "malformed: device"),
        (lambda data: data | {"layers": {"conv": -1.0}}, "malformed: layers"),
        (lambda data: data | {"networks": {"net": float("nan")}}, "malformed: networks"),
        (lambda data: data | {"layers": None}, "malformed: layers"),
        (lambda data: data | {"reductions": {"net": "0.4"}}, "malformed: reductions"),
    ],
)
def test_a_damaged_table_is_named(tmp_path: Path, change: Callable[[Any], Any], words: str) -> None:
    path = tmp_path / "table.json"
    LatencyTable(HERE, {"conv": 1.0}, {"net": 2.0}).save(path)
    damaged = change(json.loads(path.read_text()))
    raw = damaged if isinstance(damaged, (str, bytes)) else json.dumps(damaged)
    path.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    with pytest.raises(ArtifactError, match=f"{words}.*table.json.*delete it"):
        open_table(path, HERE)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Target("a processor", "cuda", 2, "onnxruntime 1.2.3"), "provider cuda, this is for provider cpu"),
        (Target("a processor", "cpu", 16, "onnxruntime 1.2.3"), "threads 16, this is for threads 2"),
    ],
)
def test_a_table_of_something_else_is_refused(tmp_path: Path, other: Target, words: str) -> None:
    LatencyTable(other).save(tmp_path / "table.json")
    with pytest.raises(InputError, match=words):
        open_table(tmp_path / "table.json", HERE)


@pytest.mark.parametrize(
    ("system", "variables", "expected"),
    [
        ("linux", {"XDG_CACHE_HOME": "/c"}, "/c/pdc-fx"),
        ("linux", {}, "/h/.cache/pdc-fx"),
        ("darwin", {}, "/h/Library/Caches/pdc-fx"),
        ("win32", {"LOCALAPPDATA": "/l"}, "/l/pdc-fx"),
    ],
)
def test_the_cache_is_where_the_platform_has_it(
    system: str, variables: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(Path, "home", lambda: Path("/h"))
    assert cache_directory() == Path(expected)


# ------------------------------------------------------------------------------------------------------------- together
@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """In place of one: layers take as long as they have multiply-accumulates, every network is as much faster as asked.

    Its attributes count what was timed.
    """
    counts = SimpleNamespace(layers=0, networks=0)

    def times(layers: Mapping[str, Layer], **target: Any) -> dict[str, float]:
        counts.layers += len(layers)
        return {key: 1e3 * counted(layer) for key, layer in layers.items()}

    def timed(self: Latency, path: Path) -> Any:
        counts.networks += 1
        return SimpleNamespace(dense=SimpleNamespace(p10_ms=1.0), compact=SimpleNamespace(p10_ms=0.6))

    monkeypatch.setattr(latency_module, "time_layers", times)
    monkeypatch.setattr(latency_module, "time_network", lambda path, **target: 1e6)
    monkeypatch.setattr(latency_module, "export_onnx", lambda model, inputs, path, **options: None)
    monkeypatch.setattr(Latency, "_timed", timed)
    return counts


def test_a_table_is_made_once_and_serves_another_machine(tmp_path: Path, clock: SimpleNamespace) -> None:
    model, file = small(), tmp_path / "table.json"
    groups = analyze(model, torch.zeros(1, 1, 8, 8))
    options: dict[str, Any] = {"latency_reduction": 0.4, "latency_table": file}
    first, second = plan(model, groups, **options), plan(model, groups, **options)
    table = json.loads(file.read_text())
    assert (clock.layers, clock.networks) == (len(table["layers"]), 1)
    assert first.widths == second.widths
    assert first.options == second.options
    assert first.options["measured_reduction"] == 0.4
    assert table["device"] == first.options["latency"]["device"]

    file.write_text(json.dumps(table | {"device": "another machine", "reductions": {}}))
    foreign = plan(model, groups, **options)
    assert foreign.widths == first.widths
    assert foreign.options["latency"]["device"] == "another machine"
    assert "measured_reduction" not in foreign.options
    before = file.read_bytes()
    with pytest.raises(InputError, match=r"lacks .* times that this model needs.*another machine"):
        plan(model, analyze(model, torch.zeros(2, 1, 8, 8)), **options)
    assert file.read_bytes() == before
    assert (clock.layers, clock.networks) == (len(table["layers"]), 1)


def test_a_real_clock(tmp_path: Path) -> None:
    """Each kind of layer once in ONNX Runtime, and a network against its half."""
    model, image = Kinds().eval(), torch.zeros(1, 3, 9, 9)
    layers = {use.layer.key(): use.layer for use in layers_of(record(model, image))}
    times = time_layers(layers, provider="cpu", threads=1, runs=3)
    assert times.keys() == layers.keys()
    assert all(time >= 0 for time in times.values())
    with pytest.raises(InputError, match="cannot be timed one by one on cuda"):
        time_layers(layers, provider="cuda", threads=1)
    net = small()
    groups = analyze(net, torch.zeros(1, 1, 8, 8))
    with Latency(net, groups, table=tmp_path / "table.json", threads=1) as latency:
        half = plan(net, groups, flops_reduction=0.5)
        assert 0 < latency.cost(half.widths) <= latency.cost(None)
        assert -5 < (latency.proof(half) or 0.0) < 1
    assert open_table(tmp_path / "table.json", this_machine("cpu", 1))[0].layers


def test_a_budget_of_latency_is_certified_and_said(tmp_path: Path, clock: SimpleNamespace) -> None:
    """Measured on this machine, and from the table of another one."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef net(num_classes=10):\n"
        "    return nn.Sequential(nn.Conv2d(1, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, num_classes))\n\n"
        "net.input_shape = (1, 1, 8, 8)\n"
    )
    file = tmp_path / "table.json"
    given = {"flops-reduction": None, "latency-reduction": 0.406, "latency-table": file, "round-to": 1, "epochs": 0}
    for place, measured, words in (("here", 0.4, "measured 40.0%"), ("there", None, "not measured on this machine")):
        if place == "there":
            file.write_text(json.dumps(json.loads(file.read_text()) | {"device": "another machine", "reductions": {}}))
        result = run("compress", f"{tmp_path / 'net.py'}:net", *options(tmp_path / place, **given))
        assert result.exit_code == 0, result.stderr
        found = json.loads((tmp_path / place / CERTIFICATE).read_text())["latency"]
        assert (found["latency_reduction"], found["measured_reduction"]) == (0.406, measured)
        assert found["predicted_reduction"] == pytest.approx(13 / 32, abs=0.01)
        assert (found["device"] == "another machine") == (place == "there")
        said = " ".join(result.stdout.split())
        assert re.search(rf"time of a run, batch 1, \d+ threads: 40\.6% less asked, 40\.\d% foretold, {words}", said), (
            said
        )


def test_layers_that_do_not_fit_together_are_timed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = {f"linear {n}": Layer("linear", (4, 8), n) for n in (1, 2, 3)}
    monkeypatch.setattr("pdc_fx.export.timing.layer_times._BYTES", 400)  # of two
    times = time_layers(layers, provider="cpu", threads=1, runs=1)
    assert times.keys() == layers.keys()
    assert time_layers({}, provider="cpu", threads=1) == {}


def test_what_cannot_be_timed_is_refused() -> None:
    class Drawn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = small()

        def forward(self, count: int) -> Tensor:
            return self.net(torch.ones(count, 1, 8, 8))  # type: ignore[no-any-return]

    model = Drawn()
    groups = analyze(model, (2,))
    words = r"^a model whose inputs are no tensors cannot be timed; give --flops-reduction"
    with pytest.raises(InputError, match=words):
        plan(model, groups, latency_reduction=0.4)
    with pytest.raises(InputError, match=r"^unknown provider 'abacus'; use one of tensorrt, cuda, cpu"):
        plan(model, groups, latency_reduction=0.4, provider="abacus")


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ({"latency-table": "damaged.json"}, "this is no table of layer times"),
        ({"provider": "abacus"}, "'abacus' is not one of"),
        ({"flops-reduction": 0.5}, "give one of"),
    ],
)
def test_bad_input_on_the_command_line(tmp_path: Path, chosen: dict[str, Any], words: str) -> None:
    (tmp_path / "damaged.json").write_text("{")
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef net(num_classes=10):\n"
        "    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, num_classes))\n\n"
        "net.input_shape = (1, 1, 8, 8)\n"
    )
    given = {"flops-reduction": None, "latency-reduction": 0.4, **chosen}
    if "latency-table" in given:
        given["latency-table"] = tmp_path / given["latency-table"]
    result = run("compress", f"{tmp_path / 'net.py'}:net", *options(tmp_path / "out", **given))
    assert result.exit_code == 2, result.stderr
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "__pycache__") == ["damaged.json", "net.py"]


def test_a_table_of_another_machine_is_not_mixed_with_this_one(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    LatencyTable(Target("cpu A", "cpu", 1, "onnxruntime"), {"a": 1.0}).save(file)
    LatencyTable(Target("cpu B", "cpu", 1, "onnxruntime"), {"b": 2.0}).save(file)
    assert LatencyTable.load(file).layers == {"b": 2.0}
    (tmp_path / "no folder").touch()
    with pytest.raises(PdcError, match="cannot be written"):
        LatencyTable(Target("cpu", "cpu", 1, "onnxruntime")).save(tmp_path / "no folder" / "table.json")


def test_two_writers_of_a_table_keep_each_others_times(tmp_path: Path) -> None:
    here = Target("cpu", "cpu", 1, "onnxruntime")
    (one, file), (two, _) = (open_table(tmp_path / "deeper" / "table.json", here) for _ in range(2))
    one.layers["a"], one.networks["n"], one.reductions["n, widths 1"] = 1.0, 2.0, 0.4
    one.save(file)
    two.layers |= {"b": 3.0}
    two.save(file)
    again, _ = open_table(file, here)
    assert (again.layers, again.networks, again.reductions) == ({"a": 1.0, "b": 3.0}, {"n": 2.0}, {"n, widths 1": 0.4})
    assert two.layers == again.layers
    assert [path.name for path in file.parent.iterdir()] == [file.name]
