"""The precision of training follows what the device computes in."""

from __future__ import annotations

import pytest
import torch

from pdc_fx.distill.precision import half_precision
from pdc_fx.errors import InputError

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
MATRICES, VECTORS, ARM = ({name: True} for name in ("amx_bf16", "avx512_bf16", "bf16"))


@pytest.mark.parametrize(
    ("amp", "device", "can", "want"),
    [
        ("auto", CPU, MATRICES, torch.bfloat16),
        ("auto", CPU, VECTORS, torch.bfloat16),
        ("auto", CPU, ARM, torch.bfloat16),
        ("auto", CPU, {"avx2": True, "amx_bf16": False, "l2_cache_size": 524288}, None),
        ("auto", CPU, None, None),
        ("auto", CUDA, True, torch.bfloat16),
        ("auto", CUDA, False, None),
        ("auto", MPS, None, None),
        ("bf16", CPU, {}, torch.bfloat16),
        ("no", CPU, MATRICES, None),
        ("fp16", CUDA, True, torch.float16),
    ],
)
def test_half_precision_is_taken_where_it_is_fast_or_asked_for(
    amp: str, device: torch.device, can: object, want: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or can)
    if can is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can, raising=False)
    assert half_precision(amp, device) is want  # type: ignore[arg-type]


def test_fp16_is_refused_on_a_processor() -> None:
    with pytest.raises(InputError, match=r"fp16 needs a GPU"):
        half_precision("fp16", CPU)
