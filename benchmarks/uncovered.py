"""Line and branch coverage of the three packages, and why each line is left that no test reaches.

    python benchmarks/uncovered.py                 run the suite under coverage, write the JSON file
    python benchmarks/uncovered.py --data FILE     take what ``coverage json`` wrote instead of running the suite

An uncovered line stands in the results with its function, its text, and the reason that ``REASONS`` gives for that function. One without
a reason, and a reason without a line, end the command with code 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pdc_fx.files import replace_file

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("pdc_fx", "passes", "export")

GPU = "needs a CUDA device"
ELSEWHERE = "reached on other systems than Linux only"
NAME = "runs where the folder is imported under its own name, which coverage counts as another package"
EXPORTER = "a guard against what an exporter might write; none that was tried does"
GUARD = "a guard: no network was found that leads there, and one that does is refused"
AUTHORS = "answers a mistake of somebody who writes a rule"
KEPT = "no call is known that gets this far without what is asked for here"

REASONS: dict[tuple[str, str], str] = {
    ("export/__init__.py", ""): NAME,
    ("passes/__init__.py", ""): NAME,
    ("export/benchmark.py", "_detailed"): GPU,
    ("export/timing/benchmark_torch.py", "_call.run"): GPU,
    ("export/capture.py", "_name_axes"): EXPORTER,
    ("export/timing/memory.py", "peak_memory"): ELSEWHERE,
    ("export/timing/memory.py", "own_peak"): ELSEWHERE,
    ("export/pages/model_graph.py", "_units"): KEPT,
    ("export/older.py", "_adopt_constants"): EXPORTER,
    ("export/onnx.py", "_complete"): EXPORTER,
    ("export/onnx.py", "_strip"): EXPORTER,
    ("export/timing/turns.py", "processor_name"): ELSEWHERE,
    ("passes/analysis.py", "_unfit"): GUARD,
    ("passes/analysis.py", "trial"): GUARD,
    ("passes/analysis.py", "_blamed"): GUARD,
    ("passes/base.py", "Pass.__call__"): "exceptions take notes from Python 3.11 on",
    ("passes/allocation.py", "_exchanged"): "steps that fall short of a budget before another group is looked at",
    ("passes/gathers.py", "moved_by"): GUARD,
    ("passes/literals.py", "edited"): GUARD,
    ("passes/literals.py", "_edit"): GUARD,
    ("passes/literals.py", "_renew_assertions"): GUARD,
    ("passes/prediction.py", "Prediction.spread"): GUARD,
    ("passes/prediction.py", "Prediction.difference"): GUARD,
    ("passes/prediction.py", "Prediction._mismatch"): GUARD,
    ("passes/rewrite.py", "merge_channels"): GUARD,
    ("pdc_fx/cli/check.py", "_certificate"): "a model that is too large to be run in float64",
    (
        "pdc_fx/data/rowgroups.py",
        "RowGroups.cell",
    ): "runs in forked processes, of which coverage hears where they end by themselves",
    (
        "pdc_fx/data/workers.py",
        "_end_with_parent",
    ): "ends a process before its coverage is written; a test sees that it ends",
    ("pdc_fx/rules/base.py", "Site.leaf"): AUTHORS,
    ("pdc_fx/rules/base.py", "Site.own"): AUTHORS,
    ("pdc_fx/rules/base.py", "Site.channels"): AUTHORS,
    ("pdc_fx/rules/base.py", "Site.freeze_value"): AUTHORS,
    ("pdc_fx/rules/application.py", "_require_sense"): KEPT,
    ("pdc_fx/rules/contraction.py", "contract"): KEPT,
    ("pdc_fx/rules/contraction.py", "plus"): KEPT,
    ("pdc_fx/rules/contraction.py", "_multiplied"): KEPT,
    ("pdc_fx/rules/contraction.py", "_subscripts"): "torch writes lists of numbers as letters before it calls itself",
    ("pdc_fx/rules/elementwise.py", "met"): KEPT,
    ("pdc_fx/rules/indexing.py", "is_mask"): KEPT,
    ("pdc_fx/rules/indexing.py", "indexed"): KEPT,
    ("pdc_fx/rules/indexing.py", "assign"): KEPT,
    ("pdc_fx/rules/indexing.py", "_beside"): KEPT,
    ("pdc_fx/rules/movement.py", "segments"): "what does not hold as many elements is declined before",
    ("pdc_fx/rules/movement.py", "edit_sizes"): KEPT,
    ("pdc_fx/rules/spatial.py", "reduction"): KEPT,
    ("pdc_fx/rules/spatial.py", ""): "functions of PyTorch that another version may lack",
    ("pdc_fx/staging.py", "Staging._made_and_locked"): ELSEWHERE,
}
"""(File, function) -> why what is uncovered in it is."""


def measured(processes: str) -> dict[str, Any]:
    """Run the suite under coverage."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "coverage.json"
        options = [f"--numprocesses={processes}", "--dist=worksteal", "--cov", f"--cov-report=json:{report}"]
        done = subprocess.run([sys.executable, "-m", "pytest", "-q", *options], cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit(f"tests failed with code {done.returncode}: no figures")
        found: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return found


def uncovered(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Each line that no test reaches, and each that is never left for one of the lines that may follow."""
    for file, entry in sorted(report["files"].items()):
        source = (ROOT / file).read_text(encoding="utf-8").splitlines()
        for function, part in entry["functions"].items():
            lines = set(part["missing_lines"])
            partial = {first for first, then in part["missing_branches"] if first not in lines and then not in lines}
            for line in sorted(lines | partial):
                yield {
                    "file": file,
                    "function": function,
                    "line": line,
                    "text": source[line - 1].strip(),
                    "reached": line in partial,
                }


def summary(report: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Lines and branches of each package, and how many of them are covered."""
    found = {
        package: dict.fromkeys(("lines", "covered_lines", "branches", "covered_branches"), 0) for package in PACKAGES
    }
    for file, entry in report["files"].items():
        counts, totals = found[file.partition("/")[0]], entry["summary"]
        counts["lines"] += totals["num_statements"]
        counts["covered_lines"] += totals["covered_lines"]
        counts["branches"] += totals["num_branches"]
        counts["covered_branches"] += totals["covered_branches"]
    return found


def main() -> int:
    """Measure, explain and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a file of `coverage json`, in place of a run")
    parser.add_argument("--processes", default="auto", help="tests side by side; default: one a core")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "uncovered.json")
    options = parser.parse_args()
    report = json.loads(options.data.read_text(encoding="utf-8")) if options.data else measured(options.processes)
    rows = list(uncovered(report))
    for row in rows:
        row["why"] = REASONS.get((row["file"], row["function"]), "")
    unexplained = [row for row in rows if not row["why"]]
    stale = REASONS.keys() - {(row["file"], row["function"]) for row in rows}
    result = {
        "python": ".".join(map(str, sys.version_info[:2])),
        "torch": version("torch"),
        "packages": summary(report),
        "uncovered": rows,
    }
    replace_file(options.output, (json.dumps(result, indent=1) + "\n").encode())
    for row in unexplained:
        print(f"{row['file']}:{row['line']} {row['function']}: {row['text']}")
    for file, function in sorted(stale):
        print(f"{file} {function}: a reason, but nothing uncovered")
    print(f"{len(rows)} lines, {len(unexplained)} without a reason, {len(stale)} reasons without a line")
    return 1 if unexplained or stale else 0


if __name__ == "__main__":
    sys.exit(main())
