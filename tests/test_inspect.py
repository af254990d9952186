"""``pdc-fx inspect``: what it prints, what it writes, and that it never harms what is there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import networkx as nx
import pytest
from typer.testing import CliRunner, Result

from pdc_fx.cli import app

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(9))
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x).relu()
        return self.head(x.mean((2, 3)))

class Pairs(nn.Module):
    # of 21 groups 7 have two producers; a norm that is used twice joins the first two

    def __init__(self):
        super().__init__()
        self.one, self.two, self.norm = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)
        self.many = nn.ModuleList(nn.Conv2d(1, 3, 1) for _ in range(26))
        self.head = nn.ModuleList(nn.Conv2d(3, 1, 1) for _ in range(20))
        self.last, self.beside = nn.Conv2d(2, 1, 1), nn.Conv2d(2, 1, 1)

    def forward(self, x):
        joined = self.last(self.norm(self.one(x))) + self.beside(self.norm(self.two(x)))
        made = [layer(x) for layer in self.many]
        made = [a + b for a, b in zip(made[:6], made[6:12])] + made[12:]
        return joined + sum(head(part) for head, part in zip(self.head, made))

Pairs.input_shape = (1, 1, 4, 4)

def activation():
    return nn.ReLU()

activation.input_shape = (1, 1, 8, 8)

def net():
    return Net()

def rigid():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten())

net.input_shape = rigid.input_shape = (1, 1, 8, 8)
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("inspect") / "net.py"
    path.write_text(FACTORY)
    return f"{path}:net"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def test_table_and_tree(spec: str) -> None:
    result = run(spec)
    assert result.exit_code == 0, result.stderr
    assert max(map(len, result.stdout.splitlines())) <= 80
    for words in (
        "8 of 12 channels in 1 group can be merged",
        "stem residual stream of 8 channels",
        "made by stem, blocks.0, blocks.1, blocks.2 and 6 more",
        "joined by add in forward",
        "is an output of the model",
    ):
        assert words in result.stdout
    everything = run(spec, "--all").stdout
    assert "blocks.8" in everything
    assert "more" not in everything


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    """Nor can they be taken for markup, or break a row."""
    odd = "[b]\x1b[31m\u202er\nl"
    (tmp_path / "odd.py").write_text(
        "from torch import nn\n\ndef net():\n"
        "    parts = {name: nn.Conv2d(2, 2, 1) for name in (" + repr(odd) + ", '<script>')}\n"
        "    model = nn.Sequential()\n    [model.add_module(*part) for part in parts.items()]\n    return model\n\n"
        "net.input_shape = (1, 2, 4, 4)\n"
    )
    result = run(f"{tmp_path / 'odd.py'}:net")
    assert result.exit_code == 0, result.stderr
    assert r"[b]\u001b[31m\u202er\nl" in result.stdout
    assert "<script>" in result.stdout
    assert not re.search("[\x1b\u202e]", result.stdout)


def test_a_model_without_groups(spec: str) -> None:
    result = run(spec.replace(":net", ":rigid"))
    assert result.exit_code == 0, result.stderr
    assert "0 of 4 channels" in result.stdout


def test_a_model_without_channels(spec: str) -> None:
    result = run(spec.replace(":net", ":activation"))
    assert result.exit_code == 0, result.stderr
    assert "0 of 0 channels in 0 groups" in result.stdout
    assert "frozen" not in result.stdout


def test_a_long_table_and_a_large_tree_are_cut(spec: str) -> None:
    pairs = spec.replace(":net", ":Pairs")
    cut, whole = run(pairs).stdout, run(pairs, "--all").stdout
    assert "shrink with the group; 1 more (--all shows them)" in " ".join(cut.split())
    assert "└── 1 more (--all shows them)" in cut.splitlines()
    assert "more (" not in whole
    first = whole[whole.index("one group of 2 channels") :].splitlines()
    assert [line.strip("│├└─ ") for line in first[1:3]] == ["made by one, two", "read by last, beside"]


def test_json_is_one_object(spec: str) -> None:
    data = json.loads(run(spec, "--json").stdout)
    assert set(data) >= {"model", "macs", "params", "groups", "frozen", "unreached", "graph"}
    assert [node["name"] for node in data["graph"]["nodes"]][:3] == ["input", "conv2d", "conv2d"]
    assert data["graph"]["streams"] == [0]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("report.html", lambda path: path.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")),
        ("graph.json", lambda path: json.loads(path.read_text())["graph"]["edges"]),
        ("graph.dot", lambda path: path.read_text().startswith("digraph model {")),
        ("new/folder/graph.graphml", nx.read_graphml),
    ],
)
def test_files_by_their_endings(spec: str, tmp_path: Path, name: str, read: object) -> None:
    path = tmp_path / name
    result = run(spec, "-o", path)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert f"wrote {path}" in result.stderr.replace("\n", "")
    assert read(path)  # type: ignore[operator]
    assert list(path.parent.iterdir()) == [path]
    again = run(spec, "-o", path)
    assert again.exit_code == 2
    assert "the file exists" in again.stderr
    path.write_text("old")
    assert run(spec, "-o", path, "--overwrite").exit_code == 0
    assert path.read_text(encoding="utf-8") != "old"


@pytest.mark.parametrize(("flag", "start"), [("--dot", "digraph model {"), ("--graphml", "<?xml"), ("--json", "{")])
def test_a_file_and_standard_output_together(spec: str, tmp_path: Path, flag: str, start: str) -> None:
    result = run(spec, flag, "-o", tmp_path / "report.html")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(start)
    assert (tmp_path / "report.html").stat().st_size < 1e6


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-o", "{tmp}/report.pdf"], "says nothing of its format: '.pdf'"),
        (["-o", "{tmp}/report"], "says nothing of its format"),
        (["-o", "{tmp}/folder.html"], "this is a directory"),
        (["-o", "{tmp}/file.txt/report.html"], "its folder is a file"),
        (["--dot", "--json"], "only one of --json and --dot can be printed"),
        (["-o", "/proc/none/report.html"], "cannot be written"),
    ],
)
def test_bad_paths_give_one_message(spec: str, tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "file.txt").write_text("mine")
    result = run(spec, *(argument.format(tmp=tmp_path) for argument in arguments))
    assert result.exit_code == 2
    assert words in result.stderr.replace("\n", " ")
    assert result.stderr.count("error:") == 1
    assert result.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} == {"folder.html", "file.txt"}
    assert (tmp_path / "file.txt").read_text() == "mine"


def test_no_color_is_respected(root: Path) -> None:
    code = """
import os
from pdc_fx.cli import render
text = "[green]passed[/]"
render.out.print(text)
del os.environ["NO_COLOR"]
render.Console().print(text)
"""
    environment = os.environ | {"FORCE_COLOR": "1", "NO_COLOR": "1", "TERM": "xterm-256color"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=root, env=environment, check=True
    )
    coloured = [bool(re.search(r"\x1b\[[\d;]*3\dm", line)) for line in done.stdout.splitlines()]
    assert coloured == [False, True]
