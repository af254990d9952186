"""In which precision a device should run convolutions and matrix products while training.

A processor without instructions for bfloat16 emulates them: ResNet-20 then trains ten times slower than in float32 (measured on an x86
processor with AVX2 alone: 0.9 s a step of 128 images against 10.6 s). So half precision is taken where the device computes in it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from pdc_fx.errors import InputError
from pdc_fx.options import Amp

BF16 = ("amx_bf16", "avx512_bf16", "bf16")
"""Names that PyTorch has for a processor's instructions on bfloat16: matrices and vectors of x86, and Arm's."""


def half_precision(amp: Amp, device: torch.device) -> torch.dtype | None:
    """The dtype that autocast takes, or None for float32.

    Args:
        amp: as in :class:`pdc_fx.TrainOptions`.
        device: where the network is trained.

    Raises:
        InputError: ``fp16`` on a processor.

    >>> half_precision("bf16", torch.device("cpu")), half_precision("no", torch.device("cpu"))
    (torch.bfloat16, None)
    """
    if amp == "fp16" and device.type == "cpu":
        raise InputError("fp16 needs a GPU", hint="take --amp bf16 or --amp no on a CPU")
    if amp == "auto":
        return torch.bfloat16 if _computes_bf16(device) else None
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "no": None}[amp]


def _computes_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Older versions of PyTorch do not tell what a processor can do; then float32 is never a bad choice.
    capabilities: Callable[[], Mapping[str, Any]] | None = getattr(torch.cpu, "get_capabilities", None)
    if device.type != "cpu" or capabilities is None:
        return False
    known = capabilities()
    return any(known.get(name, False) for name in BF16)
