"""Model specs and weights files: what each form gives, and one clear message for each kind of bad input."""

from __future__ import annotations

import random
import re
import sys
import types
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import Tensor, nn

from pdc_fx.errors import InputError
from pdc_fx.factories import collection, factory
from pdc_fx.models import LoadedModel, build_model, default_input, example_inputs, parse_shape
from pdc_fx.weights import _read_checkpoint, parse_normalization

FILE = """
import torch
from torch import nn

class Small(nn.Module):
    def __init__(self, num_classes=10, width=4):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 3, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)
    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).mean((2, 3)))

def small(num_classes=10):
    return Small(num_classes)
small.input_shape = (1, 3, 9, 9)

def wide(num_classes=10): return Small(num_classes, 6)
def anything(**options): return Small(**options)
def fixed(): return Small(7).double()
def broken(): return 1 / 0
def weights(): return Small().state_dict()

def tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model

def attribute(shape):
    model = Small()
    model.input_shape = shape
    return model

def shaped(): return attribute([2, 3, 8, 8])
def misshaped(): return attribute((3, "a"))
def without_batch(): return attribute(32)

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.module = nn.Linear(2, 2)

NUMBER = 3
INSTANCE = Small()
native = torch.relu

def other():
    from pdc_fx.factories import factory
    return factory("torchvision:resnet5O")()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "nets.py"
    path.write_text(FILE)
    return path


def small_state(path: Path, name: str = "small", **options: int) -> dict[str, Tensor]:
    """The state dict of a model of the file, each entry moved a little."""
    model = build_model(f"{path}:{name}", **options).model  # type: ignore[arg-type]
    return {key: value + 0.25 if value.is_floating_point() else value for key, value in model.state_dict().items()}


# ------------------------------------------------------------------------------------------------------------------ specs
@pytest.mark.parametrize(
    ("spec", "classes", "expected"),
    [
        ("torchvision:resnet18", None, 1000),
        ("torchvision:resnet18", 7, 7),
        ("torchvision:fcn_resnet50", 5, 5),  # its backbone would be downloaded if nobody said no
        ("torchvision:googlenet", 3, 3),
        ("FILE:small", None, 10),
        ("FILE:small", 3, 3),
        ("FILE:anything", 3, 3),
        ("FILE:Small", 3, 3),  # a class is a factory
        ("FILE:fixed", None, 7),
        ("torchvision.models:squeezenet1_1", 4, 4),
    ],
)
def test_spec(spec: str, classes: int | None, expected: int, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", lambda *_, **__: pytest.fail("downloads"))
    loaded = build_model(spec.replace("FILE", str(file)), num_classes=classes)
    assert not loaded.model.training
    assert loaded.num_classes == classes
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    outputs = [m for m in loaded.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    sizes = {getattr(m, "out_features", getattr(m, "out_channels", None)) for m in outputs}
    assert expected in sizes


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet50", r"'resnet50' is no model; did you mean torchvision:resnet50"),
        ("my_resnet", r"'my_resnet' is no model; write torchvision:NAME"),
        ("nets.py", r"'nets.py' is no model; write nets.py:NAME"),
        ("torchvision:", "is no model"),
        (":small", "is no model"),
        ("torchvision:resnet51", r"torchvision has no model 'resnet51'; did you mean resnet\d+"),
        ("torchvision:ResNet50", "did you mean resnet50"),
        ("torchvision:qqqqqqqq", "names are known, such as"),
        ("nowhere.py:small", r"there is no such file \[nowhere.py\]"),
        ("FILE:smal", r"there is no function 'smal' .*did you mean small"),
        ("FILE:NUMBER", "there is no function 'NUMBER'"),
        ("FILE:INSTANCE", "'INSTANCE' is a model, not a function that makes one .*nets.py:INSTANCE"),
        ("FILE:broken", r"the factory raised ZeroDivisionError: division by zero .*nets.py:broken, line \d+"),
        ("FILE:weights", "the factory gave a .*Dict instead of a torch.nn.Module"),
        ("no_such_package.nets:small", "the module cannot be imported: ModuleNotFoundError"),
        ("torchvision.models:resnet5O", "did you mean .*resnet50"),
        ("FILE:other", "^torchvision has no model 'resnet5O'; did you mean resnet50"),  # what it calls says it already
    ],
)
def test_bad_spec(spec: str, message: str, file: Path) -> None:
    with pytest.raises(InputError, match=message):
        build_model(spec.replace("FILE", str(file)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("\ndef small(:", r"the file raised SyntaxError .*bad.py:2\]"),
        ("import no_such_package", r"the file raised ModuleNotFoundError .*no_such_package.*bad.py:1\]"),
        ("import json\njson.loads('x')", r"the file raised JSONDecodeError .*bad.py:2\]"),
        ("raise SystemExit('usage')", "the file raised SystemExit when it was run: usage"),
        ("", "there is no function 'small' .*it defines none"),
    ],
)
def test_bad_file(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.py"
    path.write_text(content)
    before = set(sys.modules), list(sys.path)
    with pytest.raises(InputError, match=message):
        build_model(f"{path}:small")
    assert list(sys.path) == before[1]
    if content:
        assert not [name for name in set(sys.modules) - before[0] if "bad" in name]


def test_a_file_imports_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "pdc_fx_test_beside.py").write_text(FILE)
    (tmp_path / "pdc_fx_test_later.py").write_text(FILE)
    late = "def late():\n    import pdc_fx_test_later\n    return pdc_fx_test_later.small()\n"
    (tmp_path / "main.py").write_text(f"from pdc_fx_test_beside import small\n{late}")
    assert build_model(f"{tmp_path / 'main.py'}:small").input_shape == (1, 3, 9, 9)
    assert build_model(f"{tmp_path / 'main.py'}:late").model
    assert str(tmp_path) not in sys.path


def test_a_file_may_change_the_path_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "main.py").write_text(f"import sys\nsys.path.pop(0)\n{FILE}")
    before = list(sys.path)
    assert build_model(f"{tmp_path / 'main.py'}:small").input_shape == (1, 3, 9, 9)
    assert sys.path == before


@pytest.mark.parametrize(("name", "accepts"), [("small", True), ("anything", True), ("fixed", False)])
def test_number_of_classes_a_factory_takes(name: str, accepts: bool, file: Path) -> None:
    if accepts:
        assert build_model(f"{file}:{name}", num_classes=3).num_classes == 3
        return
    with pytest.raises(InputError, match=r"takes no num_classes .*leave --num-classes out"):
        build_model(f"{file}:{name}", num_classes=3)


def test_a_factory_written_in_c_has_no_signature(file: Path) -> None:
    with pytest.raises(InputError, match=r"no signature to read \[.*nets.py:native\]; leave --num-classes out"):
        build_model(f"{file}:native", num_classes=3)


def test_factory_makes_a_new_model_each_time(file: Path) -> None:
    make = factory(f"{file}:small", 3)
    first, second = make(), make()
    assert first is not second
    assert make.input_shape == (1, 3, 9, 9)  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------------------------- timm
@pytest.fixture
def fake_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two functions that are used of timm, so that this is tested where timm is not installed."""

    def create_model(name: str, pretrained: bool, num_classes: int = 1000) -> nn.Module:
        assert not pretrained
        model = nn.Sequential(nn.Conv2d(3, num_classes, 1))
        if name != "no_configuration":
            model.pretrained_cfg = {"input_size": (3, 160, 160)}  # type: ignore[assignment]
        return model

    timm: Any = types.ModuleType("timm")
    timm.list_models = lambda: ["convmixer_768_32", "no_configuration"]
    timm.create_model = create_model
    monkeypatch.setitem(sys.modules, "timm", timm)


@pytest.mark.usefixtures("fake_timm")
def test_timm() -> None:
    loaded = build_model("timm:convmixer_768_32", num_classes=6)
    assert (loaded.model[0].out_channels, default_input(loaded)) == (6, (1, 3, 160, 160))  # type: ignore[index,union-attr]
    with pytest.raises(InputError, match="pass --input"):
        default_input(build_model("timm:no_configuration"))
    with pytest.raises(InputError, match="timm has no model 'convmixer'; did you mean convmixer_768_32"):
        build_model("timm:convmixer")
    assert collection("timm") == ["convmixer_768_32", "no_configuration"]


def test_timm_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm is not installed \[timm:resnet50\]; pip install timm"):
        build_model("timm:resnet50")
    with pytest.raises(InputError, match=r"^timm is not installed; pip install timm$"):
        collection("timm")


# ----------------------------------------------------------------------------------------------------------------- inputs
@pytest.mark.parametrize(
    ("text", "shape"), [("1x3x224x224", (1, 3, 224, 224)), ("8x1x28x28", (8, 1, 28, 28)), ("2x64", (2, 64))]
)
def test_parse_shape(text: str, shape: tuple[int, ...]) -> None:
    assert parse_shape(text) == shape


@pytest.mark.parametrize(
    "text", ["", "224", "1x3x", "x3x4", "1x0x4", "1x-3x4", "1,3,224,224", "1x3x2.5", "1X3X4", "1 x 3"]
)
def test_bad_shape(text: str) -> None:
    with pytest.raises(InputError, match="is no input shape; write it as 1x3x224x224"):
        parse_shape(text)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet50", (1, 3, 224, 224)),
        ("inception_v3", (1, 3, 299, 299)),
        ("quantized_inception_v3", (1, 3, 299, 299)),
        ("deeplabv3_resnet50", (1, 3, 224, 224)),
        ("r3d_18", (1, 3, 16, 112, 112)),
        ("mvit_v2_s", (1, 3, 16, 224, 224)),
    ],
)
def test_default_input_of_torchvision(name: str, shape: tuple[int, ...]) -> None:
    assert default_input(LoadedModel(nn.Identity(), f"torchvision:{name}")) == shape


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("small", (1, 3, 9, 9)),
        ("shaped", (2, 3, 8, 8)),
        ("fixed", None),
        ("misshaped", None),  # something else that happens to have the name
        ("without_batch", None),
    ],
)
def test_default_input_of_a_file(name: str, shape: tuple[int, ...] | None, file: Path) -> None:
    loaded = build_model(f"{file}:{name}")
    assert loaded.input_shape == shape
    if shape is None:
        with pytest.raises(InputError, match=r"does not say what its input is .*pass --input, e.g. 1x3x224x224"):
            default_input(loaded)
    else:
        assert default_input(loaded) == shape
        assert loaded.model(torch.zeros(shape)).shape == (shape[0], 10)


@pytest.mark.parametrize("name", ["googlenet", "quantized_googlenet", "quantized_inception_v3"])
def test_a_model_is_made_without_a_warning(name: str) -> None:
    with torch.device("meta"):
        assert isinstance(factory(f"torchvision:{name}")(), nn.Module)


@pytest.mark.parametrize("name", ["raft_small", "ssd300_vgg16", "maskrcnn_resnet50_fpn"])
def test_several_images_are_no_default_input(name: str) -> None:
    with pytest.raises(InputError, match=r"one tensor is needed.*pass --input"):
        default_input(LoadedModel(nn.Identity(), f"torchvision:{name}"))


@pytest.mark.parametrize(
    ("name", "shapes", "expected"),
    [
        ("resnet18", [], [(1, 3, 224, 224)]),
        ("resnet18", [(2, 3, 64, 64)], [(2, 3, 64, 64)]),
        ("fcn_resnet50", [], [(1, 3, 224, 224)]),
        ("raft_large", [], [(1, 3, 128, 128)] * 2),
        ("raft_large", [(1, 3, 136, 128)] * 2, [(1, 3, 136, 128)] * 2),
        ("ssdlite320_mobilenet_v3_large", [], [[(3, 320, 320)]]),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", [], [[(3, 320, 320)]]),
        ("fasterrcnn_mobilenet_v3_large_fpn", [], [[(3, 64, 640)]]),
        ("fcos_resnet50_fpn", [(3, 64, 64), (3, 32, 96)], [[(3, 64, 64), (3, 32, 96)]]),
        ("fcos_resnet50_fpn", [(2, 3, 64, 64)], [[(3, 64, 64)] * 2]),
    ],
)
def test_example_inputs_of_torchvision(name: str, shapes: list[tuple[int, ...]], expected: list[object]) -> None:
    def shape(value: Any) -> object:
        return [shape(item) for item in value] if isinstance(value, list) else tuple(value.shape)

    arguments = example_inputs(LoadedModel(nn.Identity(), f"torchvision:{name}"), shapes)
    assert [shape(argument) for argument in arguments] == expected


@pytest.mark.parametrize("name", ["raft_small", "ssdlite320_mobilenet_v3_large"])
def test_a_model_of_several_images_runs_on_its_example_inputs(name: str) -> None:
    loaded = build_model(f"torchvision:{name}")
    with torch.inference_mode():
        assert len(loaded.model(*example_inputs(loaded))) > 0


# ---------------------------------------------------------------------------------------------------------------- weights
Writer = Callable[[dict[str, Tensor], Path], Path]


def as_safetensors(state: dict[str, Tensor], folder: Path) -> Path:
    save_file(state, folder / "w.safetensors")
    return folder / "w.safetensors"


def as_checkpoint(wrap: Callable[[dict[str, Tensor]], object], **options: bool) -> Writer:
    def write(state: dict[str, Tensor], folder: Path) -> Path:
        torch.save(wrap(state), folder / "w.pth", **options)
        return folder / "w.pth"

    return write


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + key: value for key, value in state.items()}


WRITERS: dict[str, Writer] = {
    "safetensors": as_safetensors,
    "safetensors of DistributedDataParallel": lambda s, f: as_safetensors(prefixed("module.", s), f),
    "state dict": as_checkpoint(lambda s: s),
    "old format": as_checkpoint(lambda s: s, _use_new_zipfile_serialization=False),
    "state_dict": as_checkpoint(lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"lr": 0.1}}),
    "model_state_dict": as_checkpoint(lambda s: {"model_state_dict": s, "optimizer": {"state": {}}}),
    "model": as_checkpoint(lambda s: {"model": s, "args": [1, 2]}),
    "DataParallel": as_checkpoint(lambda s: {"state_dict": prefixed("module.", s)}),
    "compiled": as_checkpoint(lambda s: prefixed("_orig_mod.", s)),
    "DataParallel, compiled": as_checkpoint(lambda s: prefixed("module._orig_mod.", s)),
    "compiled, of DataParallel": as_checkpoint(lambda s: prefixed("_orig_mod.module.", s)),
    "Lightning": as_checkpoint(lambda s: {"epoch": 3, "state_dict": prefixed("model.", s), "hparams_name": "kwargs"}),
    "half precision": as_checkpoint(lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()}),
    "no counters": as_checkpoint(lambda s: {k: v for k, v in s.items() if "num_batches" not in k}),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_weights(write: Writer, file: Path) -> None:
    state = small_state(file)
    loaded = build_model(f"{file}:small", weights=write(state, file.parent))
    for key, value in loaded.model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=1e-3, atol=1e-3)
        assert value.dtype == state[key].dtype
    assert loaded.normalization is None


def test_a_tensor_with_two_names_is_stored_once(file: Path) -> None:
    original = build_model(f"{file}:tied").model
    save_model(original, str(file.parent / "w.safetensors"))
    loaded = build_model(f"{file}:tied", weights=file.parent / "w.safetensors").model
    assert all(torch.equal(a, b) for a, b in zip(original.parameters(), loaded.parameters(), strict=True))


def test_a_model_with_a_submodule_called_module_keeps_it(file: Path) -> None:
    state = small_state(file, "Wrapped")
    assert set(state) == {"module.weight", "module.bias"}
    loaded = build_model(f"{file}:Wrapped", weights=as_safetensors(state, file.parent))
    assert torch.equal(loaded.model.state_dict()["module.weight"], state["module.weight"])


def without(key: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if k != key}


MISFITS: dict[str, tuple[Callable[[Path], dict[str, Tensor]], str]] = {
    "classes": (
        lambda f: small_state(f, num_classes=100),
        r"fc.weight: 100x4 in the file, 10x4 in the model; fc.bias: 100 in the file, 10 in the model \[.*w.safetensors\]; "
        r"pass --num-classes 100$",
    ),
    "width": (
        lambda f: small_state(f, "wide"),
        r"conv.weight: 6x3x3x3 in the file, 4x3x3x3 .*; and 3 more .*another model$",
    ),
    "missing": (lambda f: without("conv.weight", small_state(f)), r"conv.weight \(4x3x3x3\) is missing in the file"),
    "unexpected": (lambda f: {**small_state(f), "x": torch.zeros(2, 3)}, r"x \(2x3\) is not in the model"),
    "partly wrapped": (
        lambda f: {**without("fc.bias", small_state(f)), "module.fc.bias": torch.zeros(10)},
        r"fc.bias \(10\) is missing in the file; module.fc.bias \(10\) is not in the model",
    ),
    "two networks": (
        lambda f: prefixed("student.", small_state(f)) | prefixed("teacher.", small_state(f)),
        r"conv.weight \(4x3x3x3\) is missing in the file; .*under 'student.': write out that part alone$",
    ),
    "part of a network": (
        lambda f: prefixed("student.", without("fc.bias", small_state(f))) | {"x": torch.zeros(1)},
        "; and .*another model$",
    ),
    "another model": (lambda f: {"a.b.c": torch.zeros(2)}, r"a.b.c \(2\) is not in the model; .*another model$"),
    "integers": (
        lambda f: {**small_state(f), "fc.bias": torch.zeros(10, dtype=torch.int8)},
        "fc.bias: torch.int8 in the file, torch.float32 in the model",
    ),
    "nothing": (lambda f: {}, "is missing in the file.*and 4 more"),
}


@pytest.mark.parametrize(("state", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_weights_that_do_not_fit(state: Callable[[Path], dict[str, Tensor]], message: str, file: Path) -> None:
    with pytest.raises(InputError, match=f"the weights do not fit: .*{message}"):
        build_model(f"{file}:small", weights=as_safetensors(state(file), file.parent))


class Code:
    """Its pickle calls a function when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was run",))


def truncated(write: Writer) -> Writer:
    def cut(state: dict[str, Tensor], folder: Path) -> Path:
        path = write(state, folder)
        path.write_bytes(path.read_bytes()[:-200])
        return path

    return cut


def holding(name: str, content: bytes) -> Writer:
    def write(_: dict[str, Tensor], folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return write


def as_torchscript(_: dict[str, Tensor], folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(str(folder / "w.pt"))
    return folder / "w.pt"


DAMAGE: dict[str, tuple[Writer, str]] = {
    "absent": (lambda _, f: f / "absent.safetensors", r"there is no such weights file \[.*absent.safetensors\]"),
    "a directory": (lambda _, f: f, "are a directory, not a file"),
    "cut safetensors": (truncated(as_safetensors), "the weights file cannot be read: .*cut short"),
    "empty safetensors": (holding("w.safetensors", b""), "the weights file cannot be read"),
    "text as safetensors": (
        holding("w.safetensors", b"hello, this is no weights file"),
        "the weights file cannot be read",
    ),
    "checkpoint as safetensors": (
        lambda s, f: as_checkpoint(lambda s: s)(s, f).rename(f / "w.safetensors"),
        "the weights file cannot be read",
    ),
    "cut checkpoint": (truncated(WRITERS["state dict"]), "cannot be read as plain weights"),
    "cut old checkpoint": (truncated(WRITERS["old format"]), "cannot be read as plain weights"),
    "empty checkpoint": (holding("w.pth", b""), "cannot be read as plain weights"),
    "text as checkpoint": (holding("w.pth", b"hello"), "as plain weights: this is no file of torch.save"),
    "code": (as_checkpoint(lambda _: Code()), "cannot be read as plain weights: .*holds code, which is never run"),
    "code in a state dict": (as_checkpoint(lambda s: {**s, "x": Code()}), "holds code, which is never run"),
    "a whole module": (as_checkpoint(lambda _: nn.Linear(2, 2)), "holds code, .*save model.state_dict()"),
    "torchscript": (as_torchscript, "cannot be read as plain weights"),
    "numbers": (as_checkpoint(lambda _: {"state_dict": {"epoch": 3}}), "holds no state dict"),
    "a list": (as_checkpoint(lambda s: list(s.values())), "holds no state dict"),
    "another key": (as_checkpoint(lambda s: {"epoch": 3, "net": s}), "holds no state dict, but 'epoch', 'net'"),
    "an empty dict": (as_checkpoint(lambda _: {}), "holds no state dict"),
    "not a number": (
        lambda s, f: as_safetensors({**s, "fc.bias": torch.full((10,), float("nan"))}, f),
        r"weights are NaN: fc.bias \[.*w.safetensors\]; .*an earlier checkpoint",
    ),
}


@pytest.mark.parametrize(("write", "message"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_weights(write: Writer, message: str, file: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        build_model(f"{file}:small", weights=write(small_state(file), file.parent))
    assert "\n" not in str(caught.value)
    assert "set to `False`" not in str(caught.value)  # torch's advice: to run the code


def test_a_checkpoint_with_wrong_bytes_is_read_or_refused(tmp_path: Path) -> None:
    """Whatever the unpickler makes of it, only an ``InputError`` leaves (``TypeError`` and ``IndexError`` did)."""
    path, generator = tmp_path / "w.pth", random.Random(0)
    torch.save({"a": torch.zeros(3)}, path)
    whole, refused = path.read_bytes(), 0
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 6)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        try:
            _read_checkpoint(path)
        except InputError:
            refused += 1
    assert refused > 100


# ---------------------------------------------------------------------------------------------------------- normalisation
def test_normalisation_in_the_metadata(file: Path) -> None:
    path = file.parent / "w.safetensors"
    text = "mean 0.485 0.456 0.406 std 0.229 0.224 0.225"
    save_file(small_state(file), path, metadata={"normalisation": text})
    assert build_model(f"{file}:small", weights=path).normalization == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    save_file(small_state(file), path, metadata={"normalisation": "as usual"})
    with pytest.raises(InputError, match="the metadata's normalisation 'as usual' is not understood"):
        build_model(f"{file}:small", weights=path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mean 0.5 std 0.25", ((0.5,), (0.25,))),
        (" mean  1e-1 0 std 1 .5 ", ((0.1, 0.0), (1.0, 0.5))),
        ("mean 127 std 58", None),  # of pixels up to 255
        ("mean 0.5 std", None),
        ("std 0.5 mean 0.5", None),
        ("mean 0.5 0.5 std 0.5", None),
        ("mean 0.5 std --1", None),
        ("mean 0.5 std 0", None),
        ("mean nan std 1", None),
    ],
)
def test_parse_normalization(text: str, expected: tuple[tuple[float, ...], ...] | None) -> None:
    path = Path("w.safetensors")
    if expected is not None:
        assert parse_normalization(text, path) == expected
        return
    with pytest.raises(InputError, match=re.escape(f"normalisation {text!r} is not understood")):
        parse_normalization(text, path)


def test_a_file_of_a_package_is_told_how_to_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "nets" / "small"
    inner.mkdir(parents=True)
    for folder in (inner.parent, inner):
        (folder / "__init__.py").touch()
    (inner / "net.py").write_text("from . import other\n")
    with pytest.raises(InputError, match=rf"write nets\.small\.net:FACTORY, with PYTHONPATH={tmp_path}"):
        build_model(f"{inner / 'net.py'}:net")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"set PYTHONPATH=\. before the command"):
        build_model("nets.small:net")
