"""ONNX Runtime sessions, all made here: quiet, with a stated number of threads and stated execution providers.

A new target (``cuda``, ``tensorrt``, ``auto``) is one more entry in :data:`PROVIDERS`; nothing else has to change.
Whether an entry works on a machine must be asked by making a session: ``onnxruntime-gpu`` lists its CUDA provider on
machines without a driver, too.
"""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pdc_fx.errors import ArtifactError, InputError

PROVIDERS = MappingProxyType({"cpu": ("CPUExecutionProvider",)})
"""Execution providers of ONNX Runtime, in order of preference, by the name a user gives."""

_LOG_ERRORS_ONLY = 3
_LOG_FATAL_ONLY = 4


def default_threads() -> int:
    """The number of processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_session(
    model: str | os.PathLike[str] | bytes,
    *,
    provider: str = "cpu",
    threads: int | None = None,
    optimize: bool = True,
    profile: Path | None = None,
) -> Any:
    """An ``onnxruntime.InferenceSession`` for a file or a serialised model.

    Args:
        model: path of an ONNX file, or its bytes.
        provider: a key of :data:`PROVIDERS`.
        threads: threads within one operator; None for all processors of this process.
        optimize: let ONNX Runtime rewrite the graph; without it each node's own value is computed.
        profile: write what each node takes to a file whose name starts so; ``session.end_profiling()`` gives the whole name.

    Raises:
        InputError: an unknown provider or a number of threads below one.
        ArtifactError: the file is missing, damaged, or not an ONNX model this ONNX Runtime can run.

    >>> make_session(b"no model")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    pdc_fx.errors.ArtifactError: ONNX Runtime cannot load the model...
    """
    import onnxruntime as ort

    if provider not in PROVIDERS:
        raise InputError(f"unknown provider {provider!r}", hint=f"use one of {', '.join(PROVIDERS)}")
    threads = default_threads() if threads is None else threads
    if threads < 1:
        raise InputError("the number of threads must be at least 1", where=f"threads={threads}")
    where = "model in memory" if isinstance(model, bytes) else str(model)
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise ArtifactError("there is no such ONNX file", where=where)
    try:
        return ort.InferenceSession(
            model if isinstance(model, bytes) else os.fspath(model),
            _options(threads, optimize, profile),
            providers=list(PROVIDERS[provider]),
        )
    except Exception as error:  # ONNX Runtime's own errors have no common base class
        reason = _first_line(error)
        hint = "export the model in float32 (model.float())" if "NOT_IMPLEMENTED" in reason else "export it again"
        raise ArtifactError(f"ONNX Runtime cannot load the model: {reason}", where=where, hint=hint) from error


def _options(threads: int, optimize: bool, profile: Path | None = None) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")  # idle sessions leave the processors alone
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def run_session(session: Any, feed: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """All outputs of ``session`` by name.

    Raises:
        InputError: ONNX Runtime does not run the model on these inputs (an unexpected name, type or shape).
    """
    import onnxruntime as ort

    options = ort.RunOptions()
    options.log_severity_level = _LOG_FATAL_ONLY  # what goes wrong is raised, and must not be printed as well
    names = [output.name for output in session.get_outputs()]
    try:
        values = session.run(names, feed, options)
    except Exception as error:  # ONNX Runtime's own errors have no common base class
        shapes = ", ".join(f"{name}: {'x'.join(map(str, np.shape(value)))}" for name, value in feed.items())
        raise InputError(f"ONNX Runtime does not run the model: {_first_line(error)}", where=shapes) from error
    return dict(zip(names, (np.asarray(value) for value in values), strict=True))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
