"""How images and maps lie in memory while a network is trained."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import redirect_stderr

import torch
from torch import Tensor, nn

from pdc_fx.trace import evaluating


def lay_out(networks: Sequence[nn.Module], example: Tensor, *, channels_last: bool) -> tuple[torch.memory_format, str]:
    """Put all networks into one memory format: channels last where it is wanted and all run so, for ``view`` takes maps as they lie.

    Args:
        networks: changed in place; the first is the one that is trained.
        example: an image, shape ``(1, C, H, W)``.

    Returns:
        The format for their images, and why it is not channels last where that was wanted.
    """
    problem = ""
    if channels_last and any(p.dim() == 4 for p in networks[0].parameters()):
        for network in networks:
            try:
                network.to(memory_format=torch.channels_last)
                with evaluating(network), redirect_stderr(io.StringIO()):  # where a traced graph prints its code
                    network(laid_out(example, torch.channels_last))
            except RuntimeError as error:
                problem = str(error).partition(". ")[0]
        if not problem:
            return torch.channels_last, ""
    for network in networks:
        network.to(memory_format=torch.contiguous_format)
    return torch.contiguous_format, problem


def laid_out(images: Tensor, layout: torch.memory_format) -> Tensor:
    """A copy that lies so. ``contiguous`` takes grey images for both: their strides may say one and their successors' the other."""
    return torch.empty_like(images, memory_format=layout).copy_(images)
