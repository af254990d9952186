"""pdc-fx: make a trained CNN smaller by clustering its filters under distillation and adding identical channels, exactly.

    groups = pdc_fx.analyze(model, example)            # which channels are coupled, and what is frozen and why
    plan = pdc_fx.plan(model, groups, flops_reduction=0.5)
    tying = pdc_fx.tie(model, plan, mode="hard")       # .step() after each optimizer step of your own loop
    plan = tying.snap()
    compact = pdc_fx.rewrite(model, plan, example)     # exact, and proved to be

Names are imported when they are first used, so that ``import pdc_fx`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pdc_fx.errors import PdcError

if TYPE_CHECKING:
    from pdc_fx.artifacts import Compressed, save
    from pdc_fx.distill import TrainOptions
    from pdc_fx.export.benchmark import benchmark
    from pdc_fx.export.inspection import render_inspection
    from pdc_fx.export.onnx import export_onnx
    from pdc_fx.export.verify import verify_onnx
    from pdc_fx.ir import Certificate, ChannelGroups, ClusterPlan
    from pdc_fx.loading import load
    from pdc_fx.passes.check import check
    from pdc_fx.passes.tie import Tying
    from pdc_fx.pipeline import analyze, calibrate, compress, fold, inspect, plan, rewrite, tie
    from pdc_fx.rules.registry import rule
    from pdc_fx.rules.resize import resize_rule

_HOMES = {
    "analyze": "pdc_fx.pipeline",
    "inspect": "pdc_fx.pipeline",
    "plan": "pdc_fx.pipeline",
    "tie": "pdc_fx.pipeline",
    "fold": "pdc_fx.pipeline",
    "calibrate": "pdc_fx.pipeline",
    "rewrite": "pdc_fx.pipeline",
    "compress": "pdc_fx.pipeline",
    "render_inspection": "pdc_fx.export.inspection",
    "check": "pdc_fx.passes.check",
    "export_onnx": "pdc_fx.export.onnx",
    "verify_onnx": "pdc_fx.export.verify",
    "benchmark": "pdc_fx.export.benchmark",
    "save": "pdc_fx.artifacts",
    "load": "pdc_fx.loading",
    "Compressed": "pdc_fx.artifacts",
    "Certificate": "pdc_fx.ir",
    "ChannelGroups": "pdc_fx.ir",
    "ClusterPlan": "pdc_fx.ir",
    "Tying": "pdc_fx.passes.tie",
    "TrainOptions": "pdc_fx.distill",
    "rule": "pdc_fx.rules.registry",
    "resize_rule": "pdc_fx.rules.resize",
}

__all__ = [
    "Certificate",
    "ChannelGroups",
    "ClusterPlan",
    "Compressed",
    "PdcError",
    "TrainOptions",
    "Tying",
    "analyze",
    "benchmark",
    "calibrate",
    "check",
    "compress",
    "export_onnx",
    "fold",
    "inspect",
    "load",
    "plan",
    "render_inspection",
    "resize_rule",
    "rewrite",
    "rule",
    "save",
    "tie",
    "verify_onnx",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pdc_fx' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
