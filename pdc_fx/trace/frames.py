"""Which line of the model's own code is running."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from types import FrameType

import torch

_PACKAGE = Path(__file__).parent.parent
_FOLDERS = (Path(torch.__file__).parent, _PACKAGE, *(_PACKAGE.parent / name for name in ("passes", "export")))
_TORCH, *_OURS = (f"{folder}/" for folder in _FOLDERS)
_LAYERS = f"{_TORCH}nn/modules/"


def user_frame() -> str:
    """File and line of the innermost frame outside torch and pdc-fx, as the end of its path: ``torchvision/models/resnet.py:92``.

    That tells a person enough, is the same on every machine, and fits a line of a terminal. Where the model is made of torch's own
    layers alone, it is the line of the layer.
    """
    frame = sys._getframe(2)
    layer: FrameType | None = None
    while (outer := frame.f_back) is not None and (file := frame.f_code.co_filename).startswith((_TORCH, *_OURS)):
        if layer is None and file.startswith(_LAYERS) and frame.f_code.co_name == "forward":
            layer = frame
        if layer is not None and file.startswith(tuple(_OURS)):  # further out is who called us
            frame = layer
            break
        frame = outer
    return _shown(frame.f_code.co_filename, frame.f_lineno)


def place_of(error: BaseException) -> str:
    """The line outside of torch and pdc-fx at which ``error`` came up, shown alike; empty where there is none."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    return next(
        (_shown(file, line) for file, line in reversed(frames) if not file.startswith((_TORCH, *_OURS, "<"))), ""
    )


def _shown(file: str, line: int) -> str:
    path = file.replace("\\", "/").strip("/")
    return f"{'/'.join(path.split('/')[-3:])}:{line}"
