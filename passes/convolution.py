"""What a call of a convolution, its transpose or a linear layer was given, however it was written.

Options may be given by position or by name, as one number or as one for each axis, and padding as a word:

    padding="same"     d (k - 1) positions for a kernel of k taps at dilation d: half of them before, the odd one behind
    padding="valid"    none
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

Shape = tuple[int, ...]
Kind = Literal["conv", "conv_transpose", "linear"]

_NAMES: dict[Kind, tuple[str, ...]] = {
    "conv": ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    "conv_transpose": ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation"),
    "linear": ("input", "weight", "bias"),
}
_KINDS: dict[Any, Kind] = {
    torch.conv1d: "conv",
    torch.conv2d: "conv",
    torch.conv3d: "conv",
    torch.conv_transpose1d: "conv_transpose",
    torch.conv_transpose2d: "conv_transpose",
    torch.conv_transpose3d: "conv_transpose",
    F.linear: "linear",
}


def layer_call(function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Kind, dict[str, Any]] | None:
    """The kind of layer that a torch function is, and its arguments by name; None for any other function.

    >>> layer_call(torch.conv2d, ("x", "w"), {"stride": 2})
    ('conv', {'input': 'x', 'weight': 'w', 'stride': 2})
    """
    kind = _KINDS.get(function)
    return None if kind is None else (kind, {**dict(zip(_NAMES[kind], args, strict=False)), **kwargs})


@dataclass(frozen=True)
class Window:
    """How a kernel moves over its input; one number for each axis of space.

    Attributes:
        before, behind: positions of padding at the two ends of each axis.
    """

    stride: Shape
    before: Shape
    behind: Shape
    dilation: Shape
    output_padding: Shape


def window(given: Mapping[str, Any], kernel: Shape) -> Window:
    """The options of a convolution (its arguments by name) whose kernel has this shape.

    >>> window({"padding": "same", "dilation": (3,)}, (4, 3))
    Window(stride=(1, 1), before=(4, 3), behind=(5, 3), dilation=(3, 3), output_padding=(0, 0))
    """

    def each(name: str, default: int) -> Shape:
        value = given.get(name, default)
        return (value,) * len(kernel) if isinstance(value, int) else tuple(value) * (len(kernel) // len(value))

    dilation = each("dilation", 1)
    if isinstance(padding := given.get("padding"), str):
        span = [d * (k - 1) if padding == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        before, behind = tuple(s // 2 for s in span), tuple(s - s // 2 for s in span)
    else:
        before = behind = each("padding", 0)
    return Window(each("stride", 1), before, behind, dilation, each("output_padding", 0))
