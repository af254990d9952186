"""What a deployed file may ask for: sizes that vary, half precision, names, weights beside it, and detections."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import Tensor, nn

from pdc_fx.errors import ExportError, InputError
from pdc_fx.export import half, store
from pdc_fx.export.onnx import export_onnx
from pdc_fx.export.rows import in_order
from pdc_fx.export.session import make_session, run_session
from pdc_fx.export.verify import verify_onnx


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


class Detector(nn.Module):
    """A list of images in, a dict for each out; objects are sorted by score and filtered by class."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.head = nn.Conv2d(16, 6, 1)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        found = []
        for image in images:
            rows = self.head(self.body(image[None]).relu()).flatten(2)[0].t()
            corner, score = rows[:, :2].abs(), rows[:, 4].sigmoid()
            boxes = torch.cat([corner, corner + rows[:, 2:4].abs() + 0.1], dim=1)
            some = torch.where(score > 0.5)[0]  # how many there are, only a run can tell
            boxes, score, label = boxes[some], score[some], (rows[some, 5] > 0).long()
            keep = torchvision.ops.batched_nms(boxes, score, label, 0.5)
            found.append({"boxes": boxes[keep], "scores": score[keep], "labels": label[keep]})
        return found


def net(*more: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), *more).eval()


def head(pool: nn.Module, features: int = 16) -> nn.Module:
    return net(pool, nn.Flatten(), nn.Linear(features, 5))


def image(batch: int = 1) -> Tensor:
    return torch.zeros(batch, 3, 16, 16)


# ------------------------------------------------------------------------------------------------------ images of any size
def test_what_is_no_image_keeps_its_size(tmp_path: Path) -> None:
    class Shifted(nn.Module):
        def forward(self, x: Tensor, shift: Tensor) -> Tensor:
            return x + shift[:, :, None, None]

    example = (image(), torch.zeros(1, 3))
    info = export_onnx(Shifted(), example, tmp_path / "m.onnx", dynamic_size=True)
    assert [spec.shape for spec in info.inputs] == [("batch", 3, "height", "width"), ("batch", 3)]
    found = verify_onnx(Shifted(), info.path, example)
    assert found.passed
    assert {result.shape[2:] for result in found.outputs} == {(16, 16), (48, 80)}


def test_height_and_width_vary(tmp_path: Path) -> None:
    model = head(nn.AdaptiveAvgPool2d(1))
    info = export_onnx(model, image(), tmp_path / "m.onnx", dynamic_size=True)
    assert info.inputs[0].shape == ("batch", 3, "height", "width")
    session = make_session(info.path)
    assert run_session(session, {"input": np.zeros((2, 3, 24, 40), np.float32)})["output"].shape == (2, 5)
    assert verify_onnx(model, info.path, image()).passed
    maps = export_onnx(net(nn.Upsample(scale_factor=2)), image(), tmp_path / "n.onnx", dynamic_size=True)
    assert maps.outputs[0].shape == ("batch", 16, "2*height", "2*width")


@pytest.mark.parametrize(
    ("model", "args", "error", "text"),
    [
        (head(nn.Identity(), 16 * 256), (image(),), ExportError, "cannot vary: .*dynamic-size"),
        (nn.Linear(3, 2), (torch.zeros(1, 3),), InputError, "no input is a batch of images"),
        (Detector(), ([image()[0]],), InputError, "images in a list"),
    ],
    ids=["flatten", "vectors", "listed"],
)
def test_where_the_model_fixes_the_size(
    model: nn.Module, args: tuple[Any, ...], error: type[Exception], text: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=text):
        export_onnx(model, args, tmp_path / "m.onnx", dynamic_size=True)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------------------------------------------- half precision
def test_half_precision(tmp_path: Path) -> None:
    model = head(nn.AdaptiveAvgPool2d(1))
    whole = export_onnx(model, image(), tmp_path / "m.onnx")
    half = export_onnx(model, image(), tmp_path / "h.onnx", fp16=True, metadata={"key": "value"})
    assert {spec.dtype for spec in (*half.inputs, *half.outputs)} == {"FLOAT"}
    assert half.bytes < whole.bytes
    proto = onnx.load(half.path)
    assert {tensor.data_type for tensor in proto.graph.initializer if len(tensor.dims) > 1} == {
        onnx.TensorProto.FLOAT16
    }
    assert {prop.key: prop.value for prop in proto.metadata_props} == {"key": "value", "pdc_fx.precision": "float16"}
    found = verify_onnx(model, half.path, image())
    assert (found.passed, found.precision, found.tolerance) == (True, "float16", 2e-2)
    assert found.max_rel_error > 1e-5
    assert not verify_onnx(model, half.path, image(), tolerance=1e-6).passed


def test_half_precision_of_two_outputs_and_of_what_is_too_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = net(Function(lambda y: (y.relu(), y.sigmoid())))
    info = export_onnx(model, image(), tmp_path / "m.onnx", fp16=True)
    assert [(spec.name, spec.dtype) for spec in info.outputs] == [("output_0", "FLOAT"), ("output_1", "FLOAT")]
    assert verify_onnx(model, info.path, image()).passed
    monkeypatch.setattr(half, "EXTERNAL_ABOVE", 0)
    with pytest.raises(ExportError, match="too large to be converted to half precision; export it in float32"):
        half.to_half(onnx.load(info.path), {})


def test_values_that_overflow_stay_in_single_precision(tmp_path: Path) -> None:
    model = net(Function(lambda x: x * 3e4), nn.Conv2d(16, 4, 1), Function(lambda x: x / 3e4))
    info = export_onnx(model, image(), tmp_path / "m.onnx", fp16=True)
    assert 0 < len(info.float32_nodes) < sum(info.nodes.values())
    assert verify_onnx(model, info.path, image()).passed
    with torch.no_grad():
        model[0].weight[0] = 1e5  # type: ignore[index]
    with pytest.raises(ExportError, match=r"overflows.*1e\+05|overflows"):
        export_onnx(model, image(), tmp_path / "n.onnx", fp16=True)
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


# ------------------------------------------------------------------------------------------------------------------- names
def test_names_chosen(tmp_path: Path) -> None:
    names: dict[str, Any] = {"input_names": ["image"], "output_names": ["logits"]}
    model = head(nn.AdaptiveAvgPool2d(1))
    info = export_onnx(model, image(), tmp_path / "m.onnx", **names)
    assert (info.inputs[0].name, info.outputs[0].name) == ("image", "logits")
    assert verify_onnx(model, info.path, image(), **names).passed
    assert "not in the" in (verify_onnx(model, info.path, image(), input_names=["image"]).first_difference or "")


def test_a_chosen_name_may_be_that_of_a_value_inside(tmp_path: Path) -> None:
    """Without a choice the two activations are called ``relu`` and ``relu_1``."""
    model = net(nn.Conv2d(16, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    inside = {
        name
        for node in onnx.load(export_onnx(model, image(), tmp_path / "m.onnx").path).graph.node
        for name in node.output
    }
    assert {"relu", "relu_1"} <= inside
    names: dict[str, Any] = {"input_names": ["relu"], "output_names": ["relu_1"]}
    info = export_onnx(model, image(), tmp_path / "m.onnx", **names)
    assert (info.inputs[0].name, info.outputs[0].name) == ("relu", "relu_1")
    assert verify_onnx(model, info.path, image(), **names).passed


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ({"input_names": ["x"], "output_names": ["x"]}, "one name: 'x'"),
        ({"input_names": ["x", "y"]}, "the model has 1"),
        ({"output_names": [""]}, "has no name"),
    ],
)
def test_names_that_clash(names: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text):
        export_onnx(net(), image(), tmp_path / "m.onnx", **names)
    assert not list(tmp_path.iterdir())


def test_an_input_with_the_name_of_a_weight(tmp_path: Path) -> None:
    """PyTorch 2.9 gives the weight another name, later releases two things one name."""
    model, names = net(), {"input_names": ["0.weight"]}
    if torch.__version__ < (2, 10):
        assert verify_onnx(
            model, export_onnx(model, image(), tmp_path / "m.onnx", **names).path, image(), **names
        ).passed
        return
    with pytest.raises(InputError, match="name of a weight"):
        export_onnx(model, image(), tmp_path / "m.onnx", **names)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------- weights beside the file
def test_large_weights_go_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "EXTERNAL_ABOVE", 1000)
    model = head(nn.Flatten(), 16 * 256)
    first = export_onnx(model, image(), tmp_path / "m.onnx")
    assert first.data is not None
    assert first.bytes == first.path.stat().st_size + first.data.stat().st_size == store.bytes_of(first.path)
    assert first.data.stat().st_size > 1000 > first.path.stat().st_size - 4000
    assert verify_onnx(model, first.path, image()).passed
    with torch.no_grad():
        model[-1].weight.mul_(2)  # type: ignore[index]
    second = export_onnx(model, image(), tmp_path / "m.onnx")
    assert second.data not in (None, first.data)
    assert verify_onnx(model, second.path, image()).passed
    assert sorted(tmp_path.iterdir()) == sorted([second.path, second.data])  # type: ignore[list-item]

    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        export_onnx(net(), image(), tmp_path / "m.onnx")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_what_the_full_check_finds_is_not_written(tmp_path: Path) -> None:
    """An output whose declared shape is not the inferred one: only the check with shape inference sees it."""
    info = export_onnx(head(nn.AdaptiveAvgPool2d(1)), image(), tmp_path / "m.onnx")
    proto, before = onnx.load(info.path), info.path.read_bytes()
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    onnx.checker.check_model(proto)
    with pytest.raises(ExportError, match="not valid ONNX"):
        store.store(proto, info.path)
    assert info.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [info.path]


# -------------------------------------------------------------------------------------------------------------- detections
def test_a_detector_that_takes_a_list_of_images(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, images = Detector().eval(), [torch.zeros(3, 80, 80)]
    info = export_onnx(model, (images,), tmp_path / "m.onnx")
    assert [spec.name for spec in info.outputs] == ["output_0_boxes", "output_0_scores", "output_0_labels"]
    assert info.inputs[0].shape == (3, 80, 80)
    assert info.exporter == "torchscript"
    assert any("torchvision" in note for note in info.notes)
    assert any("1 image" in note for note in info.notes)
    found = verify_onnx(model, info.path, (images,))
    assert found.passed, found
    assert found.batches == (1,)
    assert len(found.outputs) == 4 * 3
    assert all(result.shape[0] > 3 for result in found.outputs)
    with torch.no_grad():
        model.head.weight[4] *= 1.1  # other scores
    assert not verify_onnx(model, info.path, (images,)).passed


def test_what_torchvision_traces_holds_for_one_size(tmp_path: Path) -> None:
    def kept(x: Tensor) -> Tensor:
        rows = x.flatten(2).permute(0, 2, 1).flatten(0, 1)
        rows = rows[rows[:, 0] > 0]
        return torchvision.ops.batched_nms(rows, rows[:, 0], (rows[:, 1] > 0).long(), 0.5)

    model = nn.Sequential(nn.Conv2d(3, 4, 3), Function(kept)).eval()
    with pytest.raises(ExportError, match=r"one size.*dynamic_batch=False"):
        export_onnx(model, image(), tmp_path / "m.onnx")
    assert export_onnx(model, image(), tmp_path / "m.onnx", dynamic_batch=False).exporter == "torchscript"


def test_nothing_found_is_said(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Function(lambda x: x.flatten()[x.flatten() > 1e9]))
    info = export_onnx(model, image(), tmp_path / "m.onnx", dynamic_batch=False)
    found = verify_onnx(model, info.path, image(), batch_sizes=(1,))
    assert found.passed
    assert any("no values were compared" in note for note in found.notes)
    assert json.loads(json.dumps(found.to_json()))["notes"]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + sum(range((x > 0).sum())),
        lambda x: x * [1.0, 2.0, 3.0, 4.0][x.flatten(1).sum(0)[:4].argmax()],
        lambda x: x if x.sum() > 0 else -x,
        lambda x: x * x.mean().item() if x.mean().item() > 0 else x,
    ],
    ids=["range", "index", "branch", "item"],
)
def test_control_flow_on_values_is_never_fixed(function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    with pytest.raises(ExportError):
        export_onnx(
            nn.Sequential(nn.Conv2d(3, 4, 3), Function(function)), image(), tmp_path / "m.onnx", dynamic_batch=False
        )
    assert not list(tmp_path.iterdir())


BOXES = np.array([[0.0, 1.0], [4.0, 6.0], [8.0, 9.0]], np.float32)


@pytest.mark.parametrize(
    ("scores", "order", "moved"),
    [
        ([0.9, 0.8, 0.8], [0, 2, 1], 2),  # tied
        ([0.9, 0.8, 0.7], [0, 2, 1], 0),  # not tied: the scores came out in another order, too
        ([0.9, 0.8, 0.8], [0, 1, 2], 0),  # nothing to do
    ],
)
def test_rows_change_places_only_where_scores_tie(scores: list[float], order: list[int], moved: int) -> None:
    expected = {"boxes": BOXES, "scores": np.array(scores, np.float32)}
    placed, count = in_order(expected, {name: array[order] for name, array in expected.items()}, 1e-4)
    assert count == moved
    assert np.array_equal(placed["boxes"], BOXES) == (moved > 0 or order == [0, 1, 2])


def test_rows_that_hold_no_numbers_stay_where_they_are() -> None:
    expected = {"boxes": BOXES, "scores": np.ones(3, np.float32)}
    actual = {"boxes": np.where(BOXES > 8.5, np.float32("nan"), BOXES), "scores": np.ones(3, np.float32)}
    placed, moved = in_order(expected, actual, 1e-4)
    assert moved == 0
    assert placed["boxes"] is actual["boxes"]


def test_rows_that_differ_are_not_made_equal() -> None:
    expected = {"boxes": BOXES, "scores": np.ones(3, np.float32)}
    placed, _ = in_order(expected, {"boxes": BOXES[[1, 0, 2]] + [[0.5, 0.0]], "scores": np.ones(3, np.float32)}, 1e-4)
    assert np.abs(placed["boxes"] - BOXES).max() == 0.5
    fewer = {"boxes": BOXES[:2], "scores": np.ones(2, np.float32)}
    assert in_order(expected, fewer, 1e-4) == (fewer, 0)
