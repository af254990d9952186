"""Rebuild what is generated in the documentation: tables of results, drawings, the page of the command line, the tour's output.

    python docs/generate.py            all of it but the tour, from benchmarks/results and the code
    python docs/generate.py --check    write nothing; exit code 1 if something in the repository is not what would be written
    python docs/generate.py --tour     run the commands of docs/tour.md as well, and write down what they print

In a page a generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from pathlib import Path

import commands
import figures
import tables
import tour

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = (
    ROOT / "README.md",
    *(DOCS / f"{name}.md" for name in ("index", "compressing", "results", "limits", "robustness")),
)
"""The pages with generated blocks."""

BLOCK = re.compile(r"(<!-- generated: ([\w-]+) -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def filled(text: str) -> str:
    """A page with its blocks as they should be."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{tables.block(found[2])}\n\n{found[3]}", text)


def one_shot_chart() -> str:
    """Accuracy without training, as bars; ours first."""
    data = tables.read(tables.RESULTS / "one-shot.json")
    if data is None:
        return figures.bars("Accuracy without training: not measured", [])
    short = ("calibrate", "fold, no data", "fold, batch norms", "Torch-Pruning, best", "same, no data")
    kinds = ("fill-a", "fill-a", "fill-a", "fill-c", "fill-c")
    rows = [
        (label, kind, cells) for label, kind, (_, cells) in zip(short, kinds, tables.one_shot_rows(data), strict=True)
    ]
    sections = [
        (
            f"{tables.name_of(model)}, {share:.0%} of the MACs removed",
            [(label, 100 * cells[model, share], kind) for label, kind, cells in rows],
        )
        for model in data["options"]["models"]
        for share in data["options"]["reductions"]
    ]
    return figures.bars("Top-1 on CIFAR-10, without training", sections)


def documents() -> dict[Path, str]:
    """Every generated file, and every page with generated blocks, as it should be."""
    written = {page: filled(page.read_text(encoding="utf-8")) for page in PAGES}
    written[DOCS / "reference" / "cli.md"] = commands.page()
    written[DOCS / "img" / "overview.svg"] = figures.overview()
    written[DOCS / "img" / "channel-addition.svg"] = figures.channel_addition()
    written[DOCS / "img" / "one-shot.svg"] = one_shot_chart()
    return written


def stale() -> list[str]:
    """The first difference of each file that is not as it should be."""
    found = []
    for path, wanted in documents().items():
        present = path.read_text(encoding="utf-8") if path.exists() else ""
        if present != wanted:
            lines = list(
                difflib.unified_diff(
                    present.splitlines(), wanted.splitlines(), "committed", "generated", n=0, lineterm=""
                )
            )
            found.append("\n".join([f"{path.relative_to(ROOT).as_posix()}:", *(line[:160] for line in lines[2:8])]))
    return found


def main() -> int:
    """Write, or compare; 1 if something is stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, say what would change")
    parser.add_argument("--tour", action="store_true", help="run the tour and write down what it prints")
    options = parser.parse_args()
    if options.check:
        found = stale()
        if found:
            print("\n".join([*found, "run 'python docs/generate.py' and commit what it writes"]))
        return bool(found)
    if options.tour:
        tour.PAGE.write_text(tour.rerun(tour.PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for path, text in documents().items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
