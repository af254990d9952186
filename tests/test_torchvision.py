"""Random half merges of ordinary torchvision networks are exact, and nothing but the output stays behind."""

from __future__ import annotations

import pytest
import torch
import torchvision

from pdc_fx.passes.check import check

PLAIN = (
    "alexnet",
    "densenet121",
    "efficientnet_b0",
    "mobilenet_v2",
    "regnet_y_400mf",
    "resnet18",
    pytest.param("resnet152", marks=pytest.mark.slow),
    "resnet50",
    "resnext50_32x4d",
    "squeezenet1_1",
    pytest.param("vgg16", marks=pytest.mark.slow),
    pytest.param("vgg16_bn", marks=pytest.mark.slow),
    "wide_resnet50_2",
)


@pytest.mark.parametrize("name", PLAIN)
def test_check(name: str) -> None:
    model = torchvision.models.get_model(name, num_classes=7)
    side = 224 if name.startswith(("alexnet", "squeezenet", "vgg")) else 64
    certificate = check(model, torch.zeros(1, 3, side, side), name=name)
    assert certificate.passed
    assert certificate.max_rel_error < 1e-12
    assert certificate.channels - certificate.mergeable_channels == 7
    assert certificate.result_type == type(model).__name__
    assert all("output of the model" in entry.reason for entry in certificate.frozen)
