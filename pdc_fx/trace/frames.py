"""Which line of the model's own code is running."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import torch

_PACKAGE = Path(__file__).parent.parent
_TORCH, *_OURS = (f"{folder}/" for folder in (Path(torch.__file__).parent, _PACKAGE, _PACKAGE.parent / "passes"))
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
    path = frame.f_code.co_filename.replace("\\", "/").strip("/")
    return f"{'/'.join(path.split('/')[-3:])}:{frame.f_lineno}"
