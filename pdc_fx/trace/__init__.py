"""Module and example inputs -> :class:`Recording`: one real forward pass as a ``torch.fx`` graph of torch functions."""

from __future__ import annotations

from pdc_fx.trace.copies import copied, fresh
from pdc_fx.trace.forward import (
    Inputs,
    as_arguments,
    evaluating,
    failed,
    in_mode,
    keeping_buffers,
    looking_at,
    own_precision,
    seed_all,
    with_same_draws,
)
from pdc_fx.trace.frames import user_frame
from pdc_fx.trace.outputs import named_outputs
from pdc_fx.trace.preconditions import require_usable, require_values
from pdc_fx.trace.recorder import Recorder, plain
from pdc_fx.trace.recording import Recording, record, record_graph_module, zeros_of
from pdc_fx.trace.storage import overlapping
from pdc_fx.trace.targets import LEAVES, function_name, leaf_class

__all__ = [
    "LEAVES",
    "Inputs",
    "Recorder",
    "Recording",
    "as_arguments",
    "copied",
    "evaluating",
    "failed",
    "fresh",
    "function_name",
    "in_mode",
    "keeping_buffers",
    "leaf_class",
    "looking_at",
    "named_outputs",
    "overlapping",
    "own_precision",
    "plain",
    "record",
    "record_graph_module",
    "require_usable",
    "require_values",
    "seed_all",
    "user_frame",
    "with_same_draws",
    "zeros_of",
]
