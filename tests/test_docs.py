"""The pages of the documentation: generated parts are as the generator makes them, commands and examples run, links lead somewhere."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tables
import tour
from generate import filled

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TOUR = tour.PAGE.read_text(encoding="utf-8")


def generate(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DOCS / "generate.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_generated_parts_are_up_to_date() -> None:
    done = generate("--check")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_new_block_is_filled_and_what_is_around_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "block", lambda name: f"| {name} |")
    page = "<!-- generated: a -->\n<!-- end -->\nkept\n<!-- generated: b -->\nold\n<!-- end -->\n"
    wanted = "<!-- generated: a -->\n\n| a |\n\n<!-- end -->\nkept\n<!-- generated: b -->\n\n| b |\n\n<!-- end -->\n"
    assert filled(page) == wanted
    assert filled(wanted) == wanted


@pytest.mark.parametrize("name", tables.BLOCKS)
def test_a_table_without_results_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tables.BLOCKS, name, (ROOT / "no-such.json", tables.BLOCKS[name][1]))
    assert tables.block(name) == "Not measured yet: `no-such.json` is not there."


def test_a_figure_comes_from_its_file(tmp_path: Path) -> None:
    data = json.loads((tables.RESULTS / "accuracy.json").read_text(encoding="utf-8"))
    row = data["rows"][0]
    data["rows"] = [row | {"test": 0.5, "seed": 0}, row | {"test": 0.52, "seed": 1}]
    assert "51.00% ± 1.41" in tables.accuracy(data)


def test_in_short_the_default_stands_beside_the_best_of_each_kind_of_pruning() -> None:
    def row(arm: str, test: float, epochs: int, opt: str) -> dict[str, object]:
        of_all = {"model": "resnet20", "teacher_test": 0.9}
        return of_all | {"arm": arm, "epochs": epochs, "test": test, "options": {"opt": opt}}

    rows = [
        row("calibrate+muon+mixed", 0.85, 10, "muon"),  # better, and not the default at ten epochs
        row("calibrate+muon", 0.8, 10, "muon"),
        row("tp-group", 0.81, 10, "sgd"),
        row("tp-l1", 0.7, 10, "sgd"),
        row("tp-l1", 0.9, 10, "sgd"),
        row("tp-l1+muon", 0.79, 10, "muon"),
        row("calibrate+muon", 0.82, 20, "muon"),
    ]
    lines = tables.accuracy_in_short({"rows": rows}).splitlines()
    assert lines[0] == "| ResNet-20, half of the MACs, from 90.00% | 10 epochs | 20 epochs |"
    assert lines[2:5] == [
        "| pdc-fx | 80.00%, 1 seed | not measured |",
        "| Torch-Pruning with SGD, its best arm | 81.00%, 1 seed | not measured |",
        "| the same with our optimizer | 79.00%, 1 seed | not measured |",
    ]
    assert lines[6].startswith("10 epochs: `calibrate+muon`, `tp-group`, `tp-l1+muon`; 20 epochs: ")


LATENCY = {
    "device": "some processor",
    "threads": 2,
    "runtime": "onnxruntime 1",
    "rounding": [
        {
            "model": "resnet50",
            "round_to": "8",
            "batch": 8,
            "dense_ms": 20.0,
            "compact_ms": 10.0,
            "speedup": 2.0,
            "efficiency": 0.98,
        }
    ],
    "latency": [
        {"model": "resnet50", "batch": 1, "latency_reduction": 0.4, "foretold": 0.41, "measured": 0.39},
        {"model": "mobilenet_v2", "batch": 1, "measured": 0.0, "error": "it cannot be met"},
    ],
    "complete": False,
}


def test_latency_of_finished_and_refused_plans() -> None:
    text = tables.latency(LATENCY)
    for words in (
        "| ResNet-50 | 8 | 8 | 20.0 | 10.0 | 2.00 | 0.98 |",
        "| 40% | 41.0% | 39.0% |",
        "it cannot be met",
        "was not finished",
    ):
        assert words in text


def test_gpu_rows_where_there_are_some() -> None:
    timing = {"batch": 8, "dense": {"median_ms": 4.0}, "compact": {"median_ms": 2.5}, "speedup": 1.6}
    row = {"model": "torchvision:resnet50", "engine": "ONNX Runtime", "timings": [timing]}
    assert "| ResNet-50 | ONNX Runtime | 8 | 4.00 | 2.50 | 1.60 |" in tables.gpu({"gpu": "a GPU", "rows": [row]})


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_inside_the_documentation(page: Path) -> None:
    """Files only; ``mkdocs build --strict`` checks headings as well."""
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def blanked(text: str) -> str:
    """Numbers and layout left out."""
    return re.sub(r"\s+", " ", re.sub(r"[\d.]+(?:e-\d+)?", "0", text)).strip()


STEADY = (
    "inspect",
    "check",
    "verify",
    "export",
)  # what the others print depends on how fast the machine is, or how it rounds


@pytest.mark.slow
def test_the_tour_runs(tmp_path: Path) -> None:
    """All commands but the first, which trains for a minute and which CI runs from the wheel."""
    assert tour.steps(TOUR)[0].command == "pdc-fx demo"
    done = 0
    for step, result in tour.played(TOUR.replace("```bash\npdc-fx demo\n```", ""), tmp_path):
        assert result.returncode == 0, f"{step.command}\n{result.stderr}"
        assert result.stdout or not step.output
        if step.output and step.command.split()[1] in STEADY:
            assert blanked(result.stdout) == blanked(step.output), step.command
        done += 1
    assert done == len(tour.steps(TOUR)) - 1 > 5


def test_the_example_of_channel_addition_runs() -> None:
    (block,) = re.findall(
        r"^```python\n(.*?)^```$", (DOCS / "channel-addition.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    exec(compile(block, "channel-addition.md", "exec", dont_inherit=True), {})
