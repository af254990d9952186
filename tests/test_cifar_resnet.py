"""The example networks against the weights that others trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pdc_fx.data import ImageData, open_data
from pdc_fx.distill import accuracy
from pdc_fx.factories import factory
from pdc_fx.models import build_model, default_input
from pdc_fx.passes.check import check

PAPER = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}  # table 6 of the paper: millions of parameters


def parameters(depth: int, classes: int) -> int:
    """Counted by hand: 3x3 convolutions, two numbers a channel for batch norms, the linear layer."""
    later = 2 * ((depth - 2) // 6) - 1  # convolutions of a stage after its first
    count = 9 * 3 * 16 + 2 * 16
    for inputs, outputs in ((16, 16), (16, 32), (32, 64)):
        count += 9 * outputs * (inputs + later * outputs) + (later + 1) * 2 * outputs
    return count + 64 * classes + classes


@pytest.mark.parametrize("depth", PAPER)
@pytest.mark.parametrize("classes", [None, 100])
def test_layers_and_parameters(depth: int, classes: int | None, root: Path) -> None:
    loaded = build_model(f"{root}/examples/cifar_resnet.py:resnet{depth}", num_classes=classes)
    layers = [m for m in loaded.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    count = sum(p.numel() for p in loaded.model.parameters())
    assert len(layers) == depth
    assert count == parameters(depth, classes or 10)
    if classes is None:
        assert count / 1e6 == pytest.approx(PAPER[depth], abs=0.04)
    assert default_input(loaded) == (1, 3, 32, 32)


@pytest.mark.parametrize("depth", [20, 110])
def test_symbolic_trace_computes_the_same(depth: int, root: Path) -> None:
    make = factory(f"{root}/examples/cifar_resnet.py:resnet{depth}")
    assert make.input_shape == (1, 3, 32, 32)  # type: ignore[attr-defined]
    model, images = make().eval(), torch.randn(3, 3, 32, 32)
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        assert torch.equal(traced(images), model(images))
    assert {n.target for n in traced.graph.nodes if n.op == "call_function"} >= {torch.nn.functional.pad}


def test_shortcuts_are_option_a(root: Path) -> None:
    """Every second pixel, its channels in the middle, zeros around them; elsewhere nothing at all."""
    model = factory(f"{root}/examples/cifar_resnet.py:resnet20")()
    x = torch.randn(2, 16, 8, 8)
    first, second = model.layer2[0], model.layer2[1]  # type: ignore[index,union-attr]
    y: Tensor = first.shortcut(x)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert not y[:, :8].any()
    assert not y[:, 24:].any()
    assert second.shortcut(y) is y
    assert not list(first.children())[4:]  # no convolution of its own


@pytest.fixture(scope="module")
def cifar(shared_dir: Path) -> ImageData:
    return open_data(f"parquet:{shared_dir / 'data/cifar10'}")


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "expected"), [(20, 0.9173), (56, 0.9339)])
def test_teacher_accuracy(depth: int, expected: float, root: Path, shared_dir: Path, cifar: ImageData) -> None:
    loaded = build_model(
        f"{root}/examples/cifar_resnet.py:resnet{depth}",
        weights=shared_dir / f"weights/resnet{depth}-cifar10.safetensors",
    )
    assert loaded.normalization is not None
    model = loaded.model.to(memory_format=torch.channels_last)
    measured = accuracy(model, cifar.test, cifar.with_normalization(*loaded.normalization))
    assert len(cifar.test) == 10_000
    assert abs(measured - expected) < 0.0005


@pytest.mark.parametrize(("depth", "mergeable"), [(20, 400), (56, 1072)])
def test_residual_stream_merges_too(depth: int, mergeable: int, root: Path) -> None:
    """All channels but the ten scores: 64 of the stream's last stage, 32 and 16 of those that start earlier."""
    loaded = build_model(f"{root}/examples/cifar_resnet.py:resnet{depth}")
    certificate = check(loaded.model, torch.zeros(default_input(loaded)))
    assert certificate.passed
    assert certificate.result_type == "GraphModule"  # the zero padding of a shortcut is a literal
    assert certificate.mergeable_channels == mergeable
    assert certificate.channels == mergeable + 10
