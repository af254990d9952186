"""Runs the tour: the files it shows, and its commands in order, in a scratch folder.

In ``tour.md`` a Python block with a title is a file; a bash block is a command; the text block that follows, if there is one, is what
the command printed.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pdc_fx.children import child_environment

PAGE = Path(__file__).resolve().parent / "tour.md"
ROOT = PAGE.parent.parent
_FILE = re.compile(r'^```python title="([\w.]+)"\n(.*?)^```$', flags=re.MULTILINE | re.DOTALL)
_STEP = re.compile(r"^```bash\n([^`]*?)\n```$(?:\n\n```text\n(.*?)^```$)?", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Step:
    """A command of the tour, and what the page says that it printed; nothing where the page does not show it."""

    command: str
    output: str


def files(text: str) -> dict[str, str]:
    """Name -> content of the files that the tour shows."""
    return dict(_FILE.findall(text))


def steps(text: str) -> list[Step]:
    """The commands, in order."""
    return [Step(*found) for found in _STEP.findall(text)]


def run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """One command, by this interpreter and this checkout, 80 columns wide; standard error is left out of the output."""
    words = shlex.split(command.replace("\\\n", " "))
    start = {"pdc-fx": [sys.executable, "-m", "pdc_fx"], "python": [sys.executable]}[words[0]]
    environment = child_environment(COLUMNS="80", NO_COLOR="1")
    return subprocess.run(
        [*start, *words[1:]], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def played(text: str, folder: Path) -> Iterator[tuple[Step, subprocess.CompletedProcess[str]]]:
    """Write the tour's files into ``folder`` and run its commands there."""
    for name, content in files(text).items():
        (folder / name).write_text(content, encoding="utf-8")
    for step in steps(text):
        yield step, run(step.command, folder)


def rerun(text: str) -> str:
    """The page with what its commands print now."""
    with tempfile.TemporaryDirectory() as scratch:
        for step, done in played(text, Path(scratch)):
            if done.returncode:
                sys.exit(f"{step.command}: exit code {done.returncode}\n{done.stderr}")
            printed = "\n".join(line.rstrip() for line in done.stdout.rstrip().splitlines())
            text = text.replace(
                f"```bash\n{step.command}\n```\n\n```text\n{step.output}```",
                f"```bash\n{step.command}\n```\n\n```text\n{printed}\n```",
            )
    return text
