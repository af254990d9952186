"""The script that exports every compact form: one model for real, endings, resuming, the table."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pdc_fx.coverage import KEPT

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return importlib.import_module("export_coverage")


PASSED: dict[str, Any] = {
    "result": "passed", "reason": "", "exporter": "torch.export", "notes": [], "nodes": 1234, "bytes": 5_000_000,
    "input": [["batch", 3, 64, 64]], "batches": [1, 3], "max_rel_error": 2e-7, "tolerance": 1e-4,
    "seconds": {"merge": 1.0, "export": 2.0, "verify": 3.0},
}  # fmt: skip


def test_a_run_goes_on_where_it_stopped(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def run_one(name: str, timeout: float) -> dict[str, Any]:
        ran.append(name)
        bad = {"result": "failed", "reason": "a_b"}
        return {"model": name, **(bad if name == "vgg13" else PASSED)}

    monkeypatch.setattr(bench, "run_one", run_one)
    monkeypatch.setattr(bench, "candidates", lambda: (["resnet18", "vgg13"], {"vit_h_14": 632_000_000}))
    output = tmp_path / "results.json"
    arguments = ["--output", str(output)]
    assert bench.main([*arguments, "--only", "res*"]) == 0
    assert bench.main(arguments) == 1
    assert ran == ["resnet18", "vgg13"]
    assert bench.main([*arguments, "--again"]) == 1
    assert ran[2:] == ["vgg13"]
    page = tmp_path / "page.md"
    page.write_text(f"# Above\n\n{KEPT}\n\nthe table before\n")
    bench.write_table(output, page)
    text = page.read_text()
    assert text.startswith(f"# Above\n\n{KEPT}\n\n## Compact forms")
    assert "the table before" not in text
    assert "2 models: 1 exported and verified, 1 not." in text
    assert "| `resnet18` | passed | batchx3x64x64 | `torch.export` | 1,234 | 5.0 | 2.0e-07 | 2.0 | 3.0 |" in text
    assert "- `vgg13` failed: a\\_b" in text
    assert "`vit_h_14` (632 M)" in text


def test_a_real_model_and_one_that_is_none(bench: ModuleType) -> None:
    found = bench.run_one("squeezenet1_1", 300)
    assert (found["result"], found["exporter"], found["input"]) == ("passed", "torch.export", [["batch", 3, 64, 64]])
    assert 0 < found["max_rel_error"] < found["tolerance"]
    assert json.loads(json.dumps(found)) == found
    assert "no_such_model" in bench.run_one("no_such_model", 300)["reason"]
    assert bench.run_one("squeezenet1_1", 0.01)["result"] == "timeout"
