"""No code that hides in a file is run, no name leads out of a directory, and nothing asks for the network."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from pdc_fx.cli import app
from pdc_fx.cli.options import open_recipe
from pdc_fx.directory import BENCHMARK, CERTIFICATE, RECIPE
from pdc_fx.distill import Checkpoints
from pdc_fx.errors import ArtifactError, InputError
from pdc_fx.factories import factory
from pdc_fx.loading import changed_files
from pdc_fx.models import build_model
from pdc_fx.weights import load_weights

ROOT = Path(__file__).resolve().parent.parent
FACTORY = """
from torch import nn

def net(num_classes=10):
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, num_classes))

net.input_shape = (1, 1, 8, 8)
"""


class Payload:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


def test_the_payload_works(tmp_path: Path) -> None:
    """Else the tests below would show nothing."""
    torch.save(Payload(tmp_path / "ran"), tmp_path / "w.pt")
    torch.load(tmp_path / "w.pt", weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.bin", "w.pkl", "w.safetensors", "w"])
@pytest.mark.parametrize("old", [False, True])
def test_weights_with_code_are_refused(tmp_path: Path, name: str, old: bool) -> None:
    state = {"weight": torch.zeros(2, 2), "bias": Payload(tmp_path / "ran")}
    torch.save(state, tmp_path / name, _use_new_zipfile_serialization=not old)
    with pytest.raises(InputError, match="cannot be read"):
        load_weights(torch.nn.Linear(2, 2), tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_checkpoints_with_code_are_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"signature": Payload(tmp_path / "ran")}, buffer)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest().encode()
    (tmp_path / "step-000000001.pt").write_bytes(digest + b"\n" + content)
    with pytest.raises(ArtifactError, match="the checkpoint is damaged"):
        Checkpoints(tmp_path).load()
    assert not (tmp_path / "ran").exists()


def test_nothing_in_the_package_unpickles() -> None:
    """``torch.load`` has ``weights_only=True`` written out; ``pickle`` and ``eval`` are not used, ``yaml`` only in its safe form."""
    found = []
    for path in (p for folder in ("pdc_fx", "passes", "export") for p in sorted((ROOT / folder).rglob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            safe = any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords)
            unsafe_torch = called == "torch.load" and not safe
            if unsafe_torch or called in (
                "eval",
                "exec",
                "pickle.load",
                "pickle.loads",
                "yaml.load",
                "yaml.unsafe_load",
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {called}")
    assert found == []


@pytest.mark.parametrize("spec", ["os:abort", "antigravity:geohash", "subprocess:getoutput", "os.path:getcwd"])
def test_the_standard_library_is_no_model(spec: str) -> None:
    with pytest.raises(InputError, match="Python's own library holds no models"):
        factory(spec)


def directory(tmp_path: Path, model: str, **certificate: Any) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / RECIPE).write_text(json.dumps({"format": 1, "model": model, "plan": {}}))
    (folder / CERTIFICATE).write_text(json.dumps(certificate))
    (folder / "evil_net.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\n{FACTORY}")
    (tmp_path / "link.py").symlink_to(folder / "evil_net.py")
    return folder


@pytest.mark.parametrize(
    "way",
    [
        "{out}/evil_net.py",
        "{out}/../out/evil_net.py",
        "out/evil_net.py",
        "./out/./evil_net.py",
        "link.py",
        "evil_net",
        "out.evil_net",
    ],
)
@pytest.mark.parametrize("command", ["verify", "export", "bench"])
def test_code_that_comes_with_a_directory_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in (tmp_path, tmp_path / "out"):  # as python -m and PYTHONPATH have them
        monkeypatch.syspath_prepend(place)
    folder = directory(tmp_path, f"{way.format(out=tmp_path / 'out')}:net", files={"model.safetensors": "0" * 64})
    for name in ("model.safetensors", "model.onnx"):
        (folder / name).touch()
    result = CliRunner().invoke(app, [command, str(folder), *(["-o", "m.onnx"] if command == "export" else [])])
    assert result.exit_code == 2
    assert "code that came with the directory" in " ".join(result.output.split())
    assert not (tmp_path / "ran").exists()


def test_code_is_run_where_the_user_names_it(tmp_path: Path) -> None:
    folder = directory(tmp_path, "torchvision:resnet18")
    with pytest.raises(ArtifactError, match="plan is malformed"):
        open_recipe(folder, f"{folder / 'evil_net.py'}:net")
    assert build_model(f"{folder / 'evil_net.py'}:net").input_shape == (1, 1, 8, 8)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "..", "a/b"])
def test_a_certificate_names_no_file_outside(tmp_path: Path, name: str) -> None:
    (tmp_path / "secret").touch()
    folder = directory(tmp_path, "x", files={name: "0" * 64})
    with pytest.raises(ArtifactError, match="a file outside of its directory"):
        changed_files(folder)


OFFLINE = """
import socket, sys

def refuse(*arguments, **options):
    sys.stderr.write(f"NETWORK {arguments[1:2]}\\n")
    sys.stderr.flush()
    import os
    os._exit(99)

for name in ("connect", "connect_ex", "sendto", "bind"):
    setattr(socket.socket, name, refuse)
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refuse

import pdc_fx.demo
from pdc_fx.cli import app

pdc_fx.demo.EPOCHS = 1
train_teacher = pdc_fx.demo.train_teacher
pdc_fx.demo.train_teacher = lambda data, seed=0: train_teacher(data, seed, epochs=1)
for line in sys.stdin.read().splitlines():
    code = 0
    try:
        app(line.split(), standalone_mode=True)
    except SystemExit as error:
        code = error.code or 0
    print("COMMAND", line.split()[0], code, flush=True)
"""
COMMANDS = """
inspect net.py:net -o report.html
check net.py:net
compress net.py:net --data digits --flops-reduction 0.25 --epochs 1 -o out
export out -o model.onnx
verify out
bench out --runs 1 --warmup 0 -b 1
demo -o demo
""".strip()


@pytest.mark.slow
def test_no_command_uses_the_network(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(FACTORY)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", OFFLINE]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, input=COMMANDS, capture_output=True, text=True, check=False
    )
    assert "NETWORK" not in done.stderr, done.stderr[-2000:]
    codes = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("COMMAND")]
    assert codes == [[line.split()[0], "0"] for line in COMMANDS.splitlines()], done.stderr[-2000:]
    bench, demo = (json.loads((tmp_path / name / BENCHMARK).read_text()) for name in ("out", "demo"))
    assert bench.keys() == demo.keys()  # whoever measures a directory's speed leaves the same file in it


def test_blocked_sockets_are_noticed() -> None:
    """Else the test above would show nothing."""
    code = (
        OFFLINE.partition("import pdc_fx.demo")[0]
        + "import urllib.request; urllib.request.urlopen('http://localhost:9')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 99
    assert "NETWORK" in done.stderr
