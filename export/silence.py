"""The exporters talk, warn and log a lot; their users asked for a file."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator

import torch

_STDERR = 2


@contextlib.contextmanager
def quiet() -> Iterator[list[warnings.WarningMessage]]:
    """Nothing printed, logged or warned about inside reaches the user; the warnings are handed over."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sink = io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(sink),
            contextlib.redirect_stderr(sink),
            warnings.catch_warnings(record=True) as caught,
        ):
            warnings.simplefilter("always")
            yield caught
    finally:
        logging.disable(disabled)


@contextlib.contextmanager
def without_graph_dump() -> Iterator[None]:
    """Keep the older exporter from printing its graph when it fails.

    It switches a log of PyTorch's C++ part on, whatever ``verbose`` says, and leaves it on. That log writes past
    Python's streams, so it is sent to the (unbuffered) standard error of the process and that to nowhere.
    """
    enabled = torch._C._jit_is_onnx_log_enabled()
    sys.stderr.flush()
    saved = os.dup(_STDERR)
    try:
        torch._C._jit_set_onnx_log_output_stream("stderr")
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), _STDERR)
        yield
    finally:
        os.dup2(saved, _STDERR)
        os.close(saved)
        torch._C._jit_set_onnx_log_output_stream("stdout")
        torch._C._jit_set_onnx_log_enabled(enabled)
