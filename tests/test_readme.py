"""What the README tells people to do works, and is what CI does."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CI = (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def fenced(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


SHELL_LINES = [line for block in fenced("bash") for line in block.splitlines() if line and not line.startswith("#")]
SNIPPETS = fenced("python")


def test_set_up_is_two_commands_in_a_virtual_environment() -> None:
    assert SHELL_LINES[:3] == [
        "python3 -m venv .venv && . .venv/bin/activate",
        "pip install -e . && pdc-fx demo",
        'pip install -e ".[test]" && pytest',
    ]


def test_ci_takes_its_commands_from_the_readme() -> None:
    """CI reads the two lines instead of repeating them, so they cannot drift apart; here its own function is run."""
    assert "pytest" not in CI.replace('readme_line "&& pytest"', "")
    assert "pdc-fx demo" not in CI.replace('readme_line "&& pdc-fx demo"', "")
    function = re.search(r"^readme_line\(\) \{.*?^\}$", CI, flags=re.MULTILINE | re.DOTALL)
    assert function is not None
    for wanted, line in {"&& pytest": SHELL_LINES[2], "&& pdc-fx demo": SHELL_LINES[1]}.items():
        script = f"die() {{ exit 9; }}\n{function.group()}\nreadme_line '{wanted}'"
        done = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.strip() == line


def test_snippets_were_found() -> None:
    assert SNIPPETS


@pytest.mark.parametrize("snippet", SNIPPETS)
def test_snippet_calls_fit_the_package(snippet: str) -> None:
    """Every ``pdc_fx.name(...)`` exists, and its arguments fit the signature."""
    import pdc_fx

    calls = [node for node in ast.walk(ast.parse(snippet)) if isinstance(node, ast.Call)]
    ours = [call for call in calls if ast.unparse(call.func).startswith("pdc_fx.")]
    assert ours
    for call in ours:
        function = getattr(pdc_fx, ast.unparse(call.func).removeprefix("pdc_fx."))
        names = [keyword.arg for keyword in call.keywords if keyword.arg]
        inspect.signature(function).bind(*call.args, **dict.fromkeys(names))


def test_named_functions_exist() -> None:
    import pdc_fx

    names = set(re.findall(r"\bpdc_fx\.([A-Za-z_]\w*)", README)) - {"passes", "export", "rules"}
    assert {"compress", "save", "load", "PdcError"} <= names
    assert [name for name in sorted(names) if not hasattr(pdc_fx, name)] == []


def test_named_subcommands_exist() -> None:
    named = {line.split()[1] for line in SHELL_LINES if line.startswith("pdc-fx ")} | {"demo"}
    command = [sys.executable, "-c", "from pdc_fx.cli import main; main()", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [command for command in sorted(named) if not re.search(rf"\b{command}\b", done.stdout)] == []
