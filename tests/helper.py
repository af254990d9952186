"""What forward passes call and is written in another file than any of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def one_of(value: Tensor | Sequence[Tensor]) -> Tensor:
    """The tensor itself, or the first of several."""
    return value if isinstance(value, Tensor) else value[0]
