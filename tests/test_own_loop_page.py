"""The Python blocks of docs/own-loop.md run, in order, and leave what the page says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

PAGE = Path(__file__).resolve().parent.parent / "docs" / "own-loop.md"


def test_the_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "own_loop"}
    text = PAGE.read_text(encoding="utf-8")
    for block in re.findall(r"^```python\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        start = text[: text.index(block)].count("\n")
        exec(compile("\n" * start + block, str(PAGE), "exec", dont_inherit=True), names)
    assert names["plan"].flops_reduction == pytest.approx(0.5, abs=0.01)
    for one, other in zip(names["compact"].parameters(), names["again"].parameters(), strict=True):
        assert torch.equal(one, other)
    assert (tmp_path / "smaller" / "certificate.json").exists()
