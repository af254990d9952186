"""The test suite on the oldest and the newest PyTorch that the project has been tried with.

pip install nox
nox -s oldest newest                   Python 3.10 and 3.13, in environments of their own
nox -s oldest -- tests/test_tie.py     some of the tests
"""

from __future__ import annotations

import nox

TRIED = {
    "oldest": ("3.10", "torch==2.9.1", "torchvision==0.24.1"),
    "newest": ("3.13", "torch==2.14.1", "torchvision==0.29.1"),
}
"""Session -> Python and PyTorch. The first pair is the lower bound in pyproject.toml."""

nox.options.default_venv_backend = "venv"


def suite(session: nox.Session, *pair: str) -> None:
    """Install the pair first, so that pip does not choose another, then the project, and run its tests."""
    session.install(*pair, "-e", ".[test]")
    session.run("pytest", "--numprocesses=auto", "--dist=worksteal", *session.posargs)


for name, (python, *pair) in TRIED.items():
    nox.session(lambda session, pair=pair: suite(session, *pair), name=name, python=python)
