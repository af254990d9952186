"""Export, verification and timing: models x properties, and everything that must not pass."""

from __future__ import annotations

import importlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import Tensor, nn

from pdc_fx.distill import logits_of
from pdc_fx.errors import ArtifactError, ExportError, InputError, TraceError, VerificationError
from pdc_fx.export import capture, older
from pdc_fx.export import session as session_module
from pdc_fx.export import verify as verify_module
from pdc_fx.export.benchmark import benchmark
from pdc_fx.export.difference import closest, first_difference, relative_error
from pdc_fx.export.onnx import OnnxInfo, export_onnx
from pdc_fx.export.session import make_session, run_session
from pdc_fx.export.store import store
from pdc_fx.export.verify import accuracy_onnx, verify_onnx

ONES = torch.ones(10, 10)


class Named(nn.Module):
    """A dict output; its convolution has an odd number of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 7, 3, bias=False), nn.BatchNorm2d(7), nn.Hardswish())
        self.head = nn.Linear(7, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.body(x)
        return {"features": features, "logits": self.head(features.mean((2, 3)))}


class Pair(nn.Module):
    """A tuple output, in-place operations, channels moved last."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.norm(self.first(x)).relu_()
        return y.permute(0, 2, 3, 1), y.add_(1).flatten(1)


class TwoInputs(nn.Module):
    """Two tensors and a constant; the second tensor has no batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: Tensor, bias: Tensor, scale: float) -> Tensor:
        y: Tensor = self.image(image) * scale + bias
        return y


class Maxima(NamedTuple):
    values: Tensor
    more: list[Tensor]


class Nested(nn.Module):
    """Two tensors in a dict, batched both; a list within a named tuple comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, pair: dict[str, Tensor]) -> Maxima:
        y = self.conv(pair["left"])
        return Maxima(y, [torch.cat([y, self.conv(pair["right"])])])


class SharedConvolution(nn.Module):
    """One convolution called twice, each time with a batch norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.first = nn.BatchNorm2d(3)
        self.second = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.conv(self.first(self.conv(x)).relu()))
        return y


class Unmoved(nn.Module):
    """A parameter and a buffer come out as they are, beside what is computed."""

    anchors: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("anchors", torch.arange(4.0))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.conv(x), self.conv.weight, self.anchors


class Function(nn.Module):
    """A function of one argument, as a module."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, bias=False),
        nn.BatchNorm2d(5),
        nn.ReLU(inplace=True),
        nn.Conv2d(5, 9, 3, stride=2),
        nn.BatchNorm2d(9),
        nn.ReLU(),
        nn.Dropout(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(9, 10),
    )


def image(size: int = 16) -> Tensor:
    return torch.zeros(1, 3, size, size)


MODELS: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "resnet18": (torchvision.models.resnet18, image(64)),
    "traced_resnet18": (lambda: torch.fx.symbolic_trace(torchvision.models.resnet18()), image(64)),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, image(64)),
    "squeezenet1_1": (torchvision.models.squeezenet1_1, image(64)),
    "small": (small, image()),
    "graph_module": (lambda: torch.fx.symbolic_trace(small()), image()),
    "dict_output": (Named, image()),
    "tuple_output": (Pair, image()),
    "two_inputs": (TwoInputs, (image(), torch.zeros(4, 1, 1), 0.5)),
    "nested": (Nested, ({"left": image(), "right": image()},)),
    "shared_convolution": (SharedConvolution, image()),
}


@dataclass(frozen=True)
class Exported:
    model: nn.Module
    example: Any
    info: OnnxInfo


def randomize(model: nn.Module) -> nn.Module:
    """Statistics and affine parameters of batch norms that a wrong fold would not survive."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                assert tensor is not None
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
            for tensor in (module.bias.data, module.running_mean):
                assert tensor is not None
                tensor.copy_(torch.randn(tensor.shape, generator=generator) / 4)
    return model


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads of PyTorch that wait for each other on a busy machine take 40 times as long as one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Exported]]:
    """Each model of the table, exported once."""
    cache: dict[str, Exported] = {}
    directory = tmp_path_factory.mktemp("onnx")

    def get(name: str) -> Exported:
        if name not in cache:
            torch.manual_seed(0)
            build, example = MODELS[name]
            model = randomize(build())
            cache[name] = Exported(model, example, export_onnx(model, example, directory / f"{name}.onnx"))
        return cache[name]

    yield get
    cache.clear()


# ------------------------------------------------------------------------------------------------ what must hold


@pytest.mark.parametrize("name", MODELS)
def test_export_is_valid_folded_and_equal(name: str, exported: Callable[[str], Exported]) -> None:
    case = exported(name)
    info = case.info
    proto = onnx.load(info.path)
    onnx.checker.check_model(proto, full_check=True)
    assert info.exporter == "torch.export"
    assert info.notes == ()
    assert "BatchNormalization" not in info.nodes
    assert sum(info.nodes.values()) == len(proto.graph.node)
    assert info.bytes == info.path.stat().st_size
    assert info.inputs[0].shape[0] == "batch"
    assert all(output.shape[0] in ("batch", "2*batch") for output in info.outputs)
    comparison = verify_onnx(case.model, info.path, case.example, batch_sizes=(1, 3))
    assert comparison.ensure() is comparison
    assert comparison.max_rel_error < 1e-5
    assert comparison.first_difference is None
    assert {output.name for output in comparison.outputs} == {output.name for output in info.outputs}
    assert {output.batch for output in comparison.outputs} == {1, 3}


@pytest.mark.parametrize("fp16", [False, True])
def test_outputs_that_nothing_computes(fp16: bool, tmp_path: Path) -> None:
    model = Unmoved()
    info = export_onnx(model, image(), tmp_path / "model.onnx", fp16=fp16)
    assert [output.shape[0] for output in info.outputs] == ["batch", 4, 4]
    assert verify_onnx(model, info.path, image()).passed


def test_names(exported: Callable[[str], Exported]) -> None:
    names = {
        name: ([t.name for t in exported(name).info.inputs], [t.name for t in exported(name).info.outputs])
        for name in ("small", "graph_module", "dict_output", "tuple_output", "two_inputs", "nested")
    }
    assert names == {
        "small": (["input"], ["output"]),
        "graph_module": (["input"], ["output"]),
        "dict_output": (["input"], ["features", "logits"]),
        "tuple_output": (["input"], ["output_0", "output_1"]),
        "two_inputs": (["image", "bias"], ["output"]),
        "nested": (["pair_left", "pair_right"], ["values", "more_0"]),
    }
    nested = exported("nested").info
    assert [tensor.shape[0] for tensor in (*nested.inputs, *nested.outputs)] == ["batch", "batch", "batch", "2*batch"]


def test_model_is_left_alone_and_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = small().train()
    model[1].eval()  # type: ignore[index]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        info = export_onnx(model, image(), tmp_path / "model.onnx")
        verify_onnx(model, info.path, image())
    assert capfd.readouterr() == ("", "")
    assert [module.training for module in model] == [index != 1 for index in range(10)]  # type: ignore[attr-defined]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_file_is_reproducible_carries_metadata_and_no_paths(tmp_path: Path) -> None:
    model = small()
    metadata = {"pdc_fx.macs": "123"}
    infos = [export_onnx(model, image(), tmp_path / f"{k}.onnx", opset=20, metadata=metadata) for k in range(2)]
    assert infos[0].sha256 == infos[1].sha256
    assert infos[0].opset == 20
    assert {prop.key: prop.value for prop in onnx.load(infos[0].path).metadata_props} == metadata
    data = infos[0].path.read_bytes()
    assert b".py" not in data
    assert str(Path.home()).encode() not in data
    assert json.loads(json.dumps(infos[0].to_json()))["nodes"] == infos[0].nodes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.onnx", "1.onnx"]


def test_fixed_batch(tmp_path: Path) -> None:
    model = small()
    info = export_onnx(model, torch.zeros(2, 3, 16, 16), tmp_path / "model.onnx", dynamic_batch=False)
    assert info.inputs[0].shape == (2, 3, 16, 16)
    assert verify_onnx(model, info.path, torch.zeros(2, 3, 16, 16), batch_sizes=(2,)).passed
    wrong = verify_onnx(model, info.path, image(), batch_sizes=(3,))
    assert not wrong.passed
    assert "input: 3x3x16x16" in (wrong.first_difference or "")


def test_older_exporter_where_only_it_knows_the_operator(tmp_path: Path) -> None:
    def distance(x: Tensor) -> Tensor:
        for _ in range(x.shape[1]):  # a loop over a size
            x = x + 1
        return torch.cdist(x[:, :, 0], x[:, :, 1])

    distances = nn.Sequential(nn.Conv2d(3, 4, 3), Function(distance))
    info = export_onnx(distances, image(), tmp_path / "model.onnx")
    assert info.exporter == "torchscript"
    assert "cdist" in info.notes[0]
    assert b".py" not in info.path.read_bytes()
    assert verify_onnx(distances, info.path, image()).passed


def test_a_size_that_torch_itself_takes_for_a_number_is_not_fixed(tmp_path: Path) -> None:
    """``split`` makes a Python number of it, in a file of torch: who called that is looked at."""

    def distance(x: Tensor) -> Tensor:
        left, right = x.split(x.shape[1] // 2, 1)
        return torch.cdist(left[:, :, 0], right[:, :, 1])

    with pytest.raises(ExportError, match=r"would have fixed a value .*: Converting a tensor to a Python integer"):
        export_onnx(nn.Sequential(nn.Conv2d(3, 4, 3), Function(distance)), image(), tmp_path / "model.onnx")


def test_a_package_that_is_written_to_be_traced_may_make_a_number_of_a_size_in_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``split`` warns of a file of torch: it is the package that called it, and only so is it safe."""
    (tmp_path / "traceable").mkdir()
    (tmp_path / "traceable" / "__init__.py").write_text("def halves(x):\n    return x.split(x.shape[1] // 2, 1)\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(older, "TRACEABLE", ("traceable",))
    halves = importlib.import_module("traceable").halves

    def distance(x: Tensor) -> Tensor:
        left, right = halves(x)
        return torch.cdist(left[:, :, 0], right[:, :, 1])

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Function(distance))
    info = export_onnx(model, image(), tmp_path / "model.onnx", dynamic_batch=False)
    assert info.notes[-1] == "traced, as traceable is written to be, for inputs of this size"
    assert verify_onnx(model, info.path, image(), batch_sizes=(1,)).passed


def test_an_input_that_the_older_exporter_drops_is_missed(tmp_path: Path) -> None:
    class Unused(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return torch.cdist(x[:, :, 0], x[:, :, 1])

    with pytest.raises(ExportError, match=r"^the exported model's inputs are \['x'\], expected \['x', 'y'\]$"):
        export_onnx(Unused(), (image(), torch.zeros(1, 2)), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ exports refused


@pytest.mark.parametrize(
    "error", [AssertionError(), KeyError("dim"), AttributeError("no such"), IndexError("out of range")]
)
def test_whatever_the_older_exporter_raises_is_a_reason(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(*_: Any, **__: Any) -> Any:
        raise error

    monkeypatch.setattr(capture, "by_torchscript", raises)
    distances = nn.Sequential(nn.Conv2d(3, 4, 3), Function(lambda x: torch.cdist(x[:, :, 0], x[:, :, 1])))
    with pytest.raises(ExportError, match=f"cdist.*The older exporter: {str(error) or 'AssertionError'}"):
        export_onnx(distances, image(), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (lambda x: torch.linalg.qr(x)[0], r"aten\.linalg_qr.* in 1\]"),  # no translation, in either exporter
        (
            lambda x: x if x.sum() > 0 else -x,
            r"data-dependent.*forward of 1\]; let tensors decide",
        ),  # the older exporter would fix one branch
        (lambda x: x if x.shape[0] == 2 else -x, "dynamic_batch=False"),
        (
            lambda x: torch.cat(x.chunk(2), 1),
            r"dynamic_batch=False \(--static\)",
        ),  # the exporter's own error names no size
    ],
    ids=["unknown_operator", "control_flow", "batch_size_in_control_flow", "halves_of_a_batch"],
)
def test_what_cannot_be_exported_is_named(
    function: Callable[[Tensor], Tensor], text: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "model.onnx"
    target.write_bytes(b"the file before")
    with pytest.raises(ExportError, match=text):
        export_onnx(nn.Sequential(nn.Conv2d(3, 4, 3), Function(function)), image(), target)
    assert target.read_bytes() == b"the file before"
    assert list(tmp_path.iterdir()) == [target]
    assert capfd.readouterr() == ("", "")


def test_failing_write_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    target = tmp_path / "model.onnx"
    target.write_bytes(b"the file before")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        export_onnx(small(), image(), target)
    assert target.read_bytes() == b"the file before"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("opset", [-1, 9, 17, 26, 1000])
def test_opset_out_of_range(opset: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"opset {opset} is out of range"):
        export_onnx(small(), image(), tmp_path / "model.onnx", opset=opset)


def test_paths_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    for path in (tmp_path / "missing" / "model.onnx", tmp_path / "file" / "model.onnx"):
        with pytest.raises(InputError, match="does not exist"):
            export_onnx(small(), image(), path)
    os.mkfifo(tmp_path / "pipe")  # a rename would put a file in the place of a pipe or a device
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="cannot be written"):
            export_onnx(small(), image(), path)
    assert (tmp_path / "pipe").is_fifo()
    with pytest.raises(InputError, match=r"^the ONNX file cannot be written: File name too long"):
        store(onnx.ModelProto(), tmp_path / f"{'m' * 245}.onnx")  # whose folder beside would have a longer name still
    monkeypatch.setattr("os.access", lambda *_: False)  # the tests may run as root, who may write anywhere
    with pytest.raises(InputError, match="cannot be written"):
        export_onnx(small(), image(), tmp_path / "model.onnx")


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="2x4x16x16"):
        export_onnx(small(), torch.zeros(1, 4, 16, 16), tmp_path / "model.onnx")
    with pytest.raises(InputError, match="no tensor"):
        export_onnx(small(), (1.0,), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="no tensors: int"):
        export_onnx(Function(lambda x: (x, 3)), image(), tmp_path / "model.onnx")
    with pytest.raises(ExportError, match="returns no tensor"):
        export_onnx(Function(lambda x: None), image(), tmp_path / "model.onnx")


# ------------------------------------------------------------------------------------------------ differences found


def nudge(path: Path, initializer: str, target: Path) -> Path:
    """A copy of an ONNX file with one weight moved."""
    proto = onnx.load(path)
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == initializer)
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[values.size // 3] += 0.5
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, initializer))
    onnx.save(proto, target)
    return target


RESNET_LAYERS = ["conv1", "layer1.1.conv2", "layer2.0.conv1", "layer2.0.downsample.0", "layer3.1.conv1", "fc"]


@pytest.mark.parametrize("layer", RESNET_LAYERS)
@pytest.mark.parametrize("side", ["onnx", "torch"])
@pytest.mark.parametrize("form", ["resnet18", "traced_resnet18"])
def test_the_very_layer_with_a_nudged_weight_is_named(
    layer: str, side: str, form: str, exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    case = exported(form)
    path = case.info.path
    weight = case.model.get_parameter(f"{layer}.weight").data.flatten()
    original = weight[weight.numel() // 3].item()
    try:
        if side == "onnx":
            path = nudge(path, f"{layer}.weight", tmp_path / "nudged.onnx")
        else:
            weight[weight.numel() // 3] += 0.5
        comparison = verify_onnx(case.model, path, case.example, batch_sizes=(2,))
    finally:
        weight[weight.numel() // 3] = original
    assert not comparison.passed
    assert comparison.max_rel_error > comparison.tolerance
    assert f" of {layer}" in (comparison.first_difference or "")
    with pytest.raises(VerificationError, match=layer):
        comparison.ensure()


def test_a_changed_batch_norm_is_named_by_the_convolution_it_was_folded_into(
    exported: Callable[[str], Exported],
) -> None:
    case = exported("resnet18")
    mean = case.model.get_buffer("layer3.0.bn2.running_mean")
    original = mean[7].item()
    try:
        mean[7] += 0.3
        comparison = verify_onnx(case.model, case.info.path, case.example, batch_sizes=(1,))
    finally:
        mean[7] = original
    assert "Conv node" in (comparison.first_difference or "")
    assert "layer3.0.conv2 + layer3.0.bn2" in (comparison.first_difference or "")


def test_a_failure_tells_how_exact_float32_itself_is(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    """1e4 takes 3 of the 7 digits that float32 has."""
    small_model = exported("small")
    damaged = nudge(small_model.info.path, "9.bias", tmp_path / "nudged.onnx")
    assert verify_onnx(small_model.model, damaged, image()).notes == ()
    lossy = nn.Sequential(small_model.model, Function(lambda y: (y + 1e4) - 1e4))
    (note,) = verify_onnx(lossy, damaged, image()).notes
    assert 1e-5 < float(re.findall(r"relative ([\d.e-]+) from its float64", note)[0]) < 1e-1


@pytest.mark.parametrize(
    "function",
    [
        lambda y: y @ ONES,  # does not run in float64
        lambda y: y.repeat(1, 1 if y.dtype == torch.float32 else 2),  # gives something else there
    ],
)
def test_where_float64_says_nothing_about_float32_nothing_is_said(
    function: Callable[[Tensor], Tensor], exported: Callable[[str], Exported]
) -> None:
    case = exported("small")
    found = verify_onnx(
        nn.Sequential(case.model, Function(function), Function(lambda y: y + 1)), case.info.path, image()
    )
    assert not found.passed
    assert found.notes == ()


def test_a_file_that_is_too_large_is_not_searched(
    exported: Callable[[str], Exported], monkeypatch: pytest.MonkeyPatch
) -> None:
    case = exported("dict_output")
    monkeypatch.setattr(verify_module, "EXTERNAL_ABOVE", 0)
    changed = nn.Sequential(case.model, Function(lambda y: {**y, "more": y["logits"] + 1}))
    found = verify_onnx(changed, case.info.path, image(), batch_sizes=(1,))
    words = "output 'more': not in the ONNX file; the file is too large to look for the first node"
    assert found.first_difference == words


def test_rows_that_stand_in_another_order_are_told(tmp_path: Path) -> None:
    """The file returns them from the last to the first."""
    text = """<ir_version: 8, opset_import: ["" : 18]>
    g (float[batch, 3] input) => (float[rows, 3] boxes, float[rows] scores) <int64[1] end = {-1}, int64[1] far = {-99},
        int64[1] axis = {0}, int64[1] back = {-1}, float zero = {0.0}, int64[1] columns = {1}>
    { boxes = Slice (input, end, far, axis, back)
      sums = ReduceSum <keepdims = 0> (boxes, columns)
      scores = Mul (sums, zero) }"""
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    model = Function(lambda x: {"boxes": x, "scores": 0 * x.sum(1)})
    found = verify_onnx(model, tmp_path / "m.onnx", torch.zeros(4, 3), batch_sizes=(4,))
    assert found.passed, found
    assert found.notes == ("up to 4 rows of equal score stand in another order than in PyTorch",)


def test_a_node_behind_a_branch_in_the_file_is_named(tmp_path: Path) -> None:
    def choose(y: Tensor) -> Tensor:
        return torch.cond(y.sum() > -1e9, lambda t: (t * 2 + 1,), lambda t: (t - 1,), (y,))[0]  # type: ignore[no-any-return]

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Function(choose), nn.Conv2d(4, 5, 1))
    info = export_onnx(model, image(), tmp_path / "m.onnx")
    assert info.nodes["If"] == 1
    assert verify_onnx(model, info.path, image()).passed
    with torch.no_grad():
        model[2].weight += 1.0  # type: ignore[operator]
    found = verify_onnx(model, info.path, image()).first_difference or ""
    assert found.startswith("Conv node")
    assert " of 2" in found


def test_what_only_another_provider_computes_is_said(exported: Callable[[str], Exported]) -> None:
    case = exported("small")
    session = SimpleNamespace(get_providers=lambda: ["CUDAExecutionProvider"])
    pair = verify_module._Pair(case.model, session, None, None)
    told = verify_module._explain(pair, case.info.path, (torch.randn(2, 3, 16, 16),), [], 1e-4)
    assert told == "every node agrees on the CPU: it is the CUDAExecutionProvider that computes something else"


def test_double_precision_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model, example = nn.Conv2d(3, 4, 3).double(), image().double()
    info = export_onnx(model, example, tmp_path / "model.onnx")
    with pytest.raises(ArtifactError, match=r"model\.float\(\)"):
        verify_onnx(model, info.path, example)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_finite_is_a_failure_on_either_side(
    value: float, exported: Callable[[str], Exported], tmp_path: Path
) -> None:
    case = exported("small")
    proto = onnx.load(case.info.path)
    name = "9.bias"
    tensor = next(tensor for tensor in proto.graph.initializer if tensor.name == name)
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(10, value, np.float32), name))
    onnx.save(proto, tmp_path / "model.onnx")
    comparison = verify_onnx(case.model, tmp_path / "model.onnx", case.example, batch_sizes=(1,))
    assert not comparison.passed
    assert "Gemm" in (comparison.first_difference or "")
    assert "ONNX Runtime returns no finite number" in (comparison.first_difference or "")
    assert json.loads(json.dumps(comparison.to_json(), allow_nan=False))["max_rel_error"] is None
    broken = nn.Sequential(case.model, Function(lambda y: y + value))
    comparison = verify_onnx(broken, case.info.path, case.example, batch_sizes=(1,))
    assert not comparison.passed
    assert "PyTorch returns no finite number" in (comparison.first_difference or "")


@pytest.mark.parametrize("value", [float("-inf"), float("nan")])
def test_what_a_model_leaves_out_is_not_finite_in_both(value: float, tmp_path: Path) -> None:
    def masked(where: int) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), Function(lambda y: y.masked_fill(torch.arange(6) == where, value))).eval()

    info = export_onnx(masked(2), torch.randn(1, 4), tmp_path / "model.onnx")
    found = verify_onnx(masked(2), info.path, torch.randn(1, 4))
    assert found.passed
    assert found.max_rel_error < 1e-6
    other = verify_onnx(masked(3), info.path, torch.randn(1, 4))
    assert not other.passed
    assert "PyTorch returns values that are not finite" in (other.first_difference or "")
    nudged = masked(2)
    nn.init.zeros_(nudged[0].bias)
    assert not verify_onnx(nudged, info.path, torch.randn(1, 4)).passed


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda y: {"features": y["features"]}, "'logits': not in the model"),
        (lambda y: {**y, "more": y["logits"]}, "'more': not in the ONNX file"),
        (lambda y: {**y, "logits": y["logits"][:, :4]}, "shape (1, 5), expected (1, 4)"),
    ],
    ids=["missing", "extra", "shape"],
)
def test_outputs_must_correspond(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], text: str, exported: Callable[[str], Exported]
) -> None:
    case = exported("dict_output")
    changed = nn.Sequential(case.model, Function(change))
    comparison = verify_onnx(changed, case.info.path, image(), batch_sizes=(1,))
    assert not comparison.passed
    assert text in (comparison.first_difference or "")


def test_no_difference_where_all_nodes_agree(exported: Callable[[str], Exported]) -> None:
    case = exported("resnet18")
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert first_difference(case.model, onnx.load(case.info.path), (x,), {"input": x.numpy()}, 1e-5) is None


@pytest.mark.parametrize("damage", ["truncated", "text", "empty", "missing"])
def test_damaged_files(damage: str, exported: Callable[[str], Exported], tmp_path: Path) -> None:
    case = exported("small")
    path = tmp_path / "model.onnx"
    whole = case.info.path.read_bytes()
    contents = {"truncated": whole[: len(whole) // 2], "text": b"not a model at all", "empty": b""}
    if damage in contents:
        path.write_bytes(contents[damage])
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        verify_onnx(case.model, path, case.example)
    with pytest.raises(ArtifactError, match=r"model\.onnx"):
        benchmark(case.info.path, path)


def test_options_out_of_range(exported: Callable[[str], Exported]) -> None:
    case = exported("small")
    for options in ({"batch_sizes": ()}, {"batch_sizes": (0,)}, {"tolerance": -1.0}, {"tolerance": float("nan")}):
        with pytest.raises(InputError):
            verify_onnx(case.model, case.info.path, case.example, **options)
    for bad in ({"batch_sizes": ()}, {"runs": 0}, {"warmup": -1}, {"threads": 0}, {"provider": "abacus"}):
        with pytest.raises(InputError):
            benchmark(case.info.path, case.info.path, **bad)


def test_closest_compares_every_element() -> None:
    reference = np.arange(1000, dtype=np.float32)
    value = reference.copy()
    value[501] += 99.9  # an element the sample does not hold
    assert closest(value, {1000: [reference]}) == pytest.approx(0.1)
    assert closest(value, {999: [reference[1:]]}) is None
    assert relative_error(np.ones(2), np.zeros(2)) == float("inf")
    assert relative_error(np.array([np.nan]), np.ones(1)) == float("inf")


# ------------------------------------------------------------------------------------------------ accuracy and time


def test_accuracy(exported: Callable[[str], Exported]) -> None:
    case = exported("small")
    images = np.random.default_rng(0).standard_normal((12, 3, 16, 16), dtype=np.float32)
    with torch.no_grad():
        labels = case.model.eval()(torch.from_numpy(images)).argmax(1).numpy()
    wrong = labels.copy()
    wrong[:3] = (wrong[:3] + 1) % 10
    batches = [(images[:8], wrong[:8]), (images[8:], wrong[8:])]
    assert accuracy_onnx(case.info.path, batches) == 0.75
    assert accuracy_onnx(case.info.path, [(images, labels)], threads=1) == 1.0
    with pytest.raises(InputError, match="no images"):
        accuracy_onnx(case.info.path, [])
    with pytest.raises(InputError, match="one label"):
        accuracy_onnx(case.info.path, [(images, labels[:5])])
    with pytest.raises(InputError, match="does not run"):
        accuracy_onnx(case.info.path, [(images[:, :2], labels)])
    with pytest.raises(ArtifactError, match=r"^the model takes more than one input \[.*two_inputs\.onnx\]"):
        accuracy_onnx(exported("two_inputs").info.path, [(images, labels)])


def test_accuracy_is_taken_of_what_training_takes_for_logits(exported: Callable[[str], Exported]) -> None:
    case = exported("dict_output")
    images = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        labels = logits_of(case.model.eval()(images)).argmax(1).numpy()
    assert case.info.outputs[0].name != "logits"
    assert accuracy_onnx(case.info.path, [(images.numpy(), labels)]) == 1.0


def test_benchmark(exported: Callable[[str], Exported], tmp_path: Path) -> None:
    dense = exported("small").info.path
    narrow = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2 * 14 * 14, 10))
    compact = export_onnx(narrow, image(), tmp_path / "compact.onnx").path
    report = benchmark(dense, compact, batch_sizes=(1, 4), runs=6, threads=1, warmup=1)
    assert [timing.batch for timing in report.timings] == [1, 4]
    for timing in report.timings:
        for side in (timing.dense, timing.compact):
            assert 0 < side.p10_ms <= side.median_ms <= side.p90_ms
            assert side.throughput == pytest.approx(timing.batch / side.median_ms * 1000)
        assert timing.speedup == pytest.approx(timing.dense.median_ms / timing.compact.median_ms)
    assert report.size_ratio == dense.stat().st_size / compact.stat().st_size
    assert report.threads == 1
    assert json.loads(json.dumps(report.to_json()))["providers"] == ["CPUExecutionProvider"]


def test_benchmark_needs_equal_inputs(exported: Callable[[str], Exported]) -> None:
    with pytest.raises(InputError, match="different inputs"):
        benchmark(exported("small").info.path, exported("two_inputs").info.path)


def test_sessions_are_quiet(exported: Callable[[str], Exported], capfd: pytest.CaptureFixture[str]) -> None:
    session = make_session(exported("small").info.path, threads=1)
    with pytest.raises(InputError, match="nothing"):
        run_session(session, {"nothing": np.zeros(1, np.float32)})
    with pytest.raises(InputError):
        run_session(session, {"input": np.zeros((1, 3, 1, 1), np.float32)})
    assert capfd.readouterr() == ("", "")
    assert session_module.default_threads() >= 1
