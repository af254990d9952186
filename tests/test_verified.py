"""What is wrong is refused without anybody asking for it: a merge, a directory, a file of one."""

from __future__ import annotations

import json
import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from samples import between, conv
from torch import Tensor, fx, nn

import pdc_fx
from pdc_fx.artifacts import Compressed, package_version, save
from pdc_fx.directory import CERTIFICATE, RECIPE, WEIGHTS
from pdc_fx.errors import (
    ArtifactError,
    ExactnessError,
    ExportError,
    InputError,
    PdcError,
    RewriteError,
    TraceError,
    VerificationError,
)
from pdc_fx.export import store
from pdc_fx.files import replace_file, sha256
from pdc_fx.ir import ClusterPlan
from pdc_fx.loading import load
from pdc_fx.passes import surgery
from pdc_fx.passes.analysis import AnalyzeDependencies
from pdc_fx.passes.check import check
from pdc_fx.passes.compare import compare
from pdc_fx.passes.random_plans import random_halves
from pdc_fx.passes.rewrite import ChannelAddition, merge_channels


def network(bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, bias=bias), nn.ReLU(), nn.Conv2d(8, 4, 3, bias=bias))


def tied(model: nn.Module, example: Tensor) -> tuple[nn.Module, ClusterPlan]:
    groups = pdc_fx.analyze(model, example)
    return model, pdc_fx.tie(model, random_halves(groups, 0), mode="hard").snap()


def scaled(factor: float) -> Any:
    right = surgery.merge_tensor
    return lambda tensor, axes: right(tensor, axes) * factor


# ---------------------------------------------------------------------------------------------------------------- merges
@pytest.mark.parametrize("factor", [0.5, 1 + 1e-6, float("nan")], ids=["half", "nearly", "no_number"])
def test_a_wrong_merge_is_refused_by_default(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    example = torch.zeros(1, 3, 8, 8)
    model, plan = tied(network(), example)
    assert isinstance(pdc_fx.rewrite(model, plan, example), nn.Module)
    monkeypatch.setattr(surgery, "merge_tensor", scaled(factor))
    for attempt in (lambda: pdc_fx.rewrite(model, plan, example), lambda: ChannelAddition(plan, example)(model)):
        with pytest.raises(ExactnessError, match="the compact model is not the tied one"):
            attempt()


def test_examples_of_zeros_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without biases any two of these networks agree on zeros."""
    example = torch.zeros(1, 3, 8, 8)
    model, plan = tied(network(bias=False), example)
    monkeypatch.setattr(surgery, "merge_tensor", scaled(0.5))
    with pytest.raises(ExactnessError, match="the compact model is not the tied one"):
        pdc_fx.rewrite(model, plan, example)


class Fixed(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_never_agrees(value: float) -> None:
    example = torch.zeros(1, 3)
    assert not compare(Fixed(1.0), Fixed(value), example, tolerance=1e-9).passed
    for other in (1.0, value):
        with pytest.raises(TraceError, match="no finite number"):
            compare(Fixed(value), Fixed(other), example, tolerance=1e-9)


class Barred(nn.Module):
    """Some classes are ruled out."""

    def __init__(self, *barred: int, value: float = float("-inf")) -> None:
        super().__init__()
        self.barred, self.value = barred, value

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x[:, self.barred] = self.value
        return x


def test_what_is_infinite_by_design_must_be_so_in_both() -> None:
    example = torch.zeros(1, 3)
    assert compare(Barred(0, 2), Barred(0, 2), example, tolerance=1e-9).passed
    for other in (Barred(0), Barred(1, 2), Barred(0, 2, value=float("inf")), Barred(0, 2, value=float("nan"))):
        assert not compare(Barred(0, 2), other, example, tolerance=1e-9).passed


def test_a_check_that_would_say_nothing_is_an_error() -> None:
    class Deaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, x: Tensor) -> Tensor:
            return x.mean() + 0 * self.body(x)

    with pytest.raises(ExactnessError, match="the check says nothing"):
        check(Deaf(), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_check_in_half_precision_is_refused(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(InputError, match=f"^a check runs in float64 or float32, not in {name}$"):
        check(network(), torch.zeros(1, 3, 8, 8), dtype=dtype)


def test_a_norm_of_a_single_value_is_checked() -> None:
    """Of one image, and of one entry of it, there is no variance."""
    layers = [nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)]
    certificate = check(nn.Sequential(*layers), torch.zeros(1, 3, 8, 8))
    assert certificate.passed
    assert certificate.mergeable_channels == 8


def test_outputs_that_are_empty_or_named_otherwise() -> None:
    """An output may hold nothing; one whose name follows the width is another output in the smaller network."""

    class Beside(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.body, self.name = network(), name

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            y = self.body[0](x)  # type: ignore[index]
            return {"y": self.body[2](y.relu()), self.name.format(len(self.body[0].weight)): x[:0]}  # type: ignore[index]

    example = torch.zeros(1, 3, 8, 8)
    model, plan = tied(Beside("none"), example)
    addition = ChannelAddition(plan, example)
    addition(model)
    assert addition.comparison is not None
    assert addition.comparison.passed
    assert 0 <= addition.comparison.max_rel_error < 1e-9
    model, plan = tied(Beside("of_{}"), example)
    words = r"outputs \[\"output\['y'\]\", \"output\['of_4'\]\"\] instead of .*'of_8'"
    with pytest.raises(ExactnessError, match=f"relative error inf, allowed 1e-09 .*{words}"):
        pdc_fx.rewrite(model, plan, example)


def test_without_the_proof_the_same_network_comes_out() -> None:
    example = torch.randn(2, 3, 8, 8)
    model, plan = tied(network(), example)
    proved, plain = pdc_fx.rewrite(model, plan, example), pdc_fx.rewrite(model, plan, example, verify=False)
    unproved = ChannelAddition(plan, example, verify=False)
    unproved(model)
    assert unproved.comparison is None
    assert [t.shape for t in plain.state_dict().values()] == [t.shape for t in proved.state_dict().values()]
    torch.testing.assert_close(plain(example), proved(example))


@pytest.mark.parametrize("written", [False, True])
def test_what_is_not_saved_keeps_its_precision(written: bool) -> None:
    """A buffer that is no part of the state dict, and a constant of the forward pass, in a network that stays and in one that is edited."""

    class Blurred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()
            self.register_buffer("kernel", torch.rand(1, 1, 3, 3), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            y = self.body[0](x) * torch.tensor([0.1, 0.7]).repeat(3)  # type: ignore[index]
            y = y.view(-1, 8, 36).view(-1, 8, 6, 6) if written else y
            y = self.body[2](self.body[1](y))  # type: ignore[index]
            return nn.functional.conv2d(y.mean(1, keepdim=True), self.kernel)  # type: ignore[arg-type]

    example = torch.randn(2, 3, 8, 8)
    model, plan = tied(Blurred(), example)
    compact = pdc_fx.rewrite(model, plan, example)
    assert isinstance(compact, fx.GraphModule) == written
    assert compact(example).dtype == torch.float32
    torch.testing.assert_close(compact(example), model(example))


def test_one_channel_that_is_left_of_three_is_padded_like_three() -> None:
    """It looks like any other channel in the small network, and the sum with it like the other summand."""
    model = between(lambda m, x: nn.functional.pad(m.a(x), (0, 0, 0, 0, 0, 5)) + x, a=conv(8, 3))()
    assert check(model, torch.zeros(2, 3, 8, 8)).passed


def test_a_size_that_cannot_be_followed_is_refused_with_the_call() -> None:
    """With one channel left to read for each half, a grouped convolution looks depthwise: too late to freeze it, but loud."""
    layers = {"a": conv(8, 6), "b": conv(6, 12, groups=2), "c": nn.Linear(12 * 64, 8 * 64)}
    model = between(lambda m, x: m.c(m.b(m.a(x)).reshape(-1, 12 * 64)).reshape(-1, 8, 8, 8), **layers)()
    words = (
        r"^a size is written into the forward pass where it cannot be edited: torch\.nn\.functional\.conv2d at "
        r".*tests/test_verified\.py:\d+ takes other channels than it should; compute the size from x\.shape, or freeze"
    )
    with pytest.raises(RewriteError, match=words):
        check(model, torch.zeros(2, 3, 8, 8))


def test_a_way_that_the_dense_network_does_not_take_is_looked_at_again() -> None:
    """The analysis saw a pooling where the tied network, with other weights, has none."""

    class Ways(nn.Module):
        def __init__(self, gate: float) -> None:
            super().__init__()
            self.stem, self.head, self.gate = conv(3, 8), conv(8, 4), nn.Parameter(torch.tensor(gate))

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            x = x.view(x.shape[0], x.shape[1], 64).view(x.shape[0], -1, 8, 8)
            y: Tensor = self.head(nn.functional.avg_pool2d(x, 3, 1, 1) if self.gate > 0 else x.relu())
            return y

    example = torch.zeros(2, 3, 8, 8)
    analysis = AnalyzeDependencies(example)(Ways(1.0).eval())
    assert analysis.program is None
    plan = random_halves(analysis.groups, 0)
    compact: Any = merge_channels(Ways(-1.0).eval(), plan, example, analysis)
    assert compact.stem.out_channels == compact.head.in_channels == 4


def test_sizes_that_modules_repeat_follow() -> None:
    """Other code reads them, although no forward pass of these does."""
    layers = [
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.PReLU(8),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Flatten(),
        nn.Linear(128, 4),
    ]
    example = torch.zeros(1, 3, 8, 8)
    model, plan = tied(nn.Sequential(*layers), example)
    compact: Any = pdc_fx.rewrite(model, plan, example)
    assert compact[0].out_channels == compact[1].num_features == compact[2].num_parameters == 4
    assert (compact[3].in_channels, compact[3].out_channels, compact[3].groups) == (4, 4, 4)
    assert compact[5].in_features == 64


# ----------------------------------------------------------------------------------------------------------- directories
@pytest.fixture(scope="module")
def result() -> Compressed:
    torch.manual_seed(0)
    example = torch.zeros(1, 3, 8, 8)
    model, plan = tied(network(), example)
    compact = pdc_fx.rewrite(model, plan, example)
    return Compressed(compact, model, plan, example, compare(model, compact, example, tolerance=1e-6))


@pytest.fixture(scope="module")
def written(result: Compressed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(result, tmp_path_factory.mktemp("saved") / "out")


@pytest.fixture
def copied(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "out"))


def recertify(folder: Path, *names: str) -> None:
    """As somebody would who knows what the certificate lists."""
    certificate = json.loads((folder / CERTIFICATE).read_text())
    certificate["files"].update({name: sha256(folder / name) for name in names})
    (folder / CERTIFICATE).write_text(json.dumps(certificate))


def test_what_was_saved_is_loaded(result: Compressed, written: Path) -> None:
    loaded, images = load(network, written), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(images), result.model.eval()(images))


class Views(nn.Module):
    """Buffers that are parts of larger ones, repeat a number, or are one."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)
        whole = torch.rand(6, 1, 1)
        self.register_buffer("first", whole[:3])
        self.register_buffer("last", whole[3:])
        self.register_buffer("repeated", torch.rand(1, 1, 1).expand(3, 1, 1))
        self.register_buffer("again", self.first)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a((x - self.first) * self.last + self.repeated * self.again).relu())  # type: ignore[no-any-return]


def test_buffers_that_are_views_are_loaded(tmp_path: Path) -> None:
    example = torch.randn(1, 3, 8, 8)
    model, plan = tied(Views().eval(), example)
    compact = pdc_fx.rewrite(model, plan, example).eval()
    out = save(Compressed(compact, model, plan, example), tmp_path / "out")
    loaded = load(Views, out)
    with torch.no_grad():
        assert torch.equal(loaded(example), compact(example))


def test_a_flipped_byte_is_refused(copied: Path) -> None:
    data = bytearray((copied / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (copied / WEIGHTS).write_bytes(data)
    with pytest.raises(ArtifactError, match=r"changed since the directory was certified: model\.safetensors"):
        load(network, copied)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_weights_with_other_names_are_refused(change: str, copied: Path) -> None:
    weights = load_file(copied / WEIGHTS)
    kept = weights.pop("2.bias")
    save_file(weights if change == "missing" else {**weights, "2.bias": kept, "3.bias": kept + 0}, copied / WEIGHTS)
    recertify(copied, WEIGHTS)
    with pytest.raises(ArtifactError, match=rf"do not fit the recipe: .*{change} \['[23]\.bias'\]"):
        load(network, copied)


def test_a_recipe_of_another_format_is_refused(copied: Path) -> None:
    recipe = json.loads((copied / RECIPE).read_text())
    (copied / RECIPE).write_text(json.dumps({**recipe, "format": 2}))
    recertify(copied, RECIPE)
    with pytest.raises(ArtifactError, match="recipe format 2 is not known"):
        load(network, copied)


def test_no_room_for_the_weights(result: Compressed, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(InputError, match=rf"^the weights cannot be written: .* \[.*{WEIGHTS}\]; make room there$"):
            save(result, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_the_version_of_a_tree_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if "editable" not in repr(finder)])
    assert package_version() == "0+source"


def test_a_directory_that_fails_gets_no_name(
    result: Compressed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ONNX file is that of another network."""
    from pdc_fx.export import onnx as exporting

    right = exporting.export_onnx

    def wrong(model: nn.Module, *args: Any, **options: Any) -> Any:
        torch.manual_seed(1)
        widths = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
        return right(nn.Sequential(nn.Conv2d(3, widths[0], 3), nn.ReLU(), nn.Conv2d(widths[0], 4, 3)), *args, **options)

    monkeypatch.setattr(exporting, "export_onnx", wrong)
    with pytest.raises(VerificationError, match="the verification failed"):
        save(result, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_onnx_is_not_written(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Relu", ["nowhere"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [], [onnx.helper.make_tensor_value_info("y", 1, [1])])
    with pytest.raises(ExportError, match="not valid ONNX"):
        store.store(onnx.helper.make_model(graph), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_upsampling_in_half_precision(tmp_path: Path) -> None:
    """The factors of its node stay in single precision: ONNX knows no others."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(8, 4, 1))
    example = torch.zeros(1, 3, 8, 8)
    info = pdc_fx.export_onnx(model, example, tmp_path / "model.onnx", fp16=True)
    assert "Resize" in info.nodes
    assert pdc_fx.verify_onnx(model, info.path, example).passed


class Bytes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.float() / 255).relu())  # type: ignore[no-any-return]


def test_images_of_bytes_are_no_longer_all_zeros_where_they_are_compared(tmp_path: Path) -> None:
    """On zeros a convolution shows its bias alone."""
    model, example = Bytes().eval(), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    path = pdc_fx.export_onnx(model, example, tmp_path / "m.onnx").path
    assert pdc_fx.verify_onnx(model, path, example).passed
    with torch.no_grad():
        model.a.weight.mul_(-3)
    assert not pdc_fx.verify_onnx(model, path, example).passed


def test_a_network_in_half_precision_is_compared_as_one(tmp_path: Path) -> None:
    model, example = network().eval().half(), torch.randn(2, 3, 8, 8).half()
    path = pdc_fx.export_onnx(model, example, tmp_path / "m.onnx").path
    assert pdc_fx.verify_onnx(model, path, example).passed
    with torch.no_grad():
        next(model.parameters()).mul_(1.2)
    assert not pdc_fx.verify_onnx(model, path, example).passed


def test_a_node_that_is_only_written_in_another_way_is_not_blamed(tmp_path: Path) -> None:
    """ONNX computes a SiLU in two nodes, of which the first gives what PyTorch never returns."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 3))
    example = torch.zeros(1, 3, 8, 8)
    info = pdc_fx.export_onnx(model, example, tmp_path / "model.onnx")
    assert "Sigmoid" in info.nodes
    with torch.no_grad():
        model[2].weight[0] += 1.0  # type: ignore[operator, index]
    found = pdc_fx.verify_onnx(model, info.path, example)
    assert found.first_difference is not None
    assert found.first_difference.startswith("Conv node")


def test_a_write_that_fails_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    replace_file(path, b"before")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PdcError, match="No space left on device"):
        replace_file(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_another_writer_puts_there_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, looked = tmp_path / "file", Path.is_file

    def looks_then_waits(self: Path, **options: Any) -> bool:
        found = looked(self, **options)
        path.touch()
        return found

    monkeypatch.setattr(Path, "is_file", looks_then_waits)
    replace_file(path, b"x")
    assert path.read_bytes() == b"x"


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: replace_file(path, bytes([i]) * 10000), range(100)))
    assert len(set(path.read_bytes())) == 1
    assert list(tmp_path.iterdir()) == [path]


class Named(nn.Module):
    """Returns an object that holds its tensors as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: torch.Tensor) -> Any:
        return SimpleNamespace(y=self.body(x), kind="scores")


def test_outputs_that_are_attributes_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    example = torch.randn(2, 3, 8, 8)
    model, plan = tied(Named(), example)
    addition = ChannelAddition(plan, example)
    addition(model)
    assert addition.comparison is not None
    assert not addition.comparison.constant
    monkeypatch.setattr(surgery, "merge_tensor", scaled(0.5))
    with pytest.raises(ExactnessError):
        ChannelAddition(plan, example)(model)


def test_what_holds_no_tensor_is_no_proof() -> None:
    found = compare(nn.Identity(), nn.Identity(), (1,), tolerance=1e-9)
    assert not found.passed
