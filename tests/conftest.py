"""Fixtures that several files share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from browser import installed_browser, running_browser

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
SHARED_FILES = (
    "data/cifar10/train.parquet",
    "data/cifar10/test.parquet",
    "weights/resnet20-cifar10.safetensors",
    "weights/resnet56-cifar10.safetensors",
)


def absent_files() -> list[str]:
    return [name for name in SHARED_FILES if not (SHARED / name).is_file()]


@pytest.fixture(scope="session", autouse=True)
def two_threads() -> None:
    """Two cores are what every machine has that these tests run on; times then mean the same everywhere.

    Where pytest-xdist runs several processes, each takes its share of the two, and so does what they start: threads that wait for
    each other on a busy machine take many times as long as one.
    """
    threads = max(1, 2 // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One Chromium for the tests of a file."""
    with running_browser() as running:
        yield running


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """CIFAR-10 and two pretrained networks, in ``shared`` beside the repository."""
    if absent := absent_files():
        pytest.skip(f"nothing is measured on CIFAR-10: ../shared lacks {', '.join(absent)}")
    return SHARED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say it where everybody reads it: ``-q`` shows no reason for a skipped test."""
    if absent := absent_files():
        terminalreporter.write_line(
            f"NOT MEASURED on CIFAR-10 with pretrained networks: ../shared lacks {', '.join(absent)}", yellow=True
        )
    if installed_browser() is None:
        terminalreporter.write_line(
            "PAGES NOT TESTED: no Chromium is installed (Debian: apt-get install chromium)", yellow=True
        )
