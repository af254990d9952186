"""Files that nobody vouches for: a clear error within a second or two, in bounded memory, and never a traceback."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import random
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from typer.testing import CliRunner

from pdc_fx import analyze, load, save
from pdc_fx.artifacts import Compressed
from pdc_fx.cli import app
from pdc_fx.data import open_data
from pdc_fx.directory import CERTIFICATE, ONNX, RECIPE, WEIGHTS
from pdc_fx.distill import Checkpoints
from pdc_fx.errors import ArtifactError, PdcError
from pdc_fx.export.verify import verify_onnx
from pdc_fx.ir import LONGEST_AXIS, ChannelGroups, ClusterPlan, decode_integers
from pdc_fx.loading import Recipe
from pdc_fx.passes.random_plans import random_halves
from pdc_fx.passes.rewrite import ChannelAddition
from pdc_fx.passes.tie import Tying

FACTORY = """
import torch
from torch import nn

def net(num_classes=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, num_classes))

net.input_shape = (1, 3, 8, 8)
"""


def net() -> nn.Module:
    scope: dict[str, Any] = {}
    exec(FACTORY, scope)
    made: nn.Module = scope["net"]()
    return made.eval()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output directory, complete and verified."""
    folder, inputs = tmp_path_factory.mktemp("whole"), torch.zeros(1, 3, 8, 8)
    (folder / "net.py").write_text(FACTORY)
    tied = net()
    plan = random_halves(analyze(tied, inputs), 0)
    Tying(tied, plan, "hard").snap()
    addition = ChannelAddition(plan, inputs)
    compact = addition(tied).eval()
    assert addition.comparison is not None
    source = {
        "model": f"{folder / 'net.py'}:net",
        "num_classes": 4,
        "mean": [0.5] * 3,
        "std": [0.2] * 3,
        "classes": list("abcd"),
    }
    return save(Compressed(compact, tied, plan, (inputs,), addition.comparison, source=source), folder / "out")


@pytest.fixture
def damaged(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "out"))


def code_of(*arguments: object) -> int:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code


def spoiled(content: bytes, count: int) -> Iterator[bytes]:
    """Cut short, and with a few wrong bytes."""
    chance = random.Random(0)
    for _ in range(count // 2):
        yield content[: chance.randrange(len(content))]
        wrong = bytearray(content)
        for _ in range(chance.randint(1, 5)):
            wrong[chance.randrange(min(len(wrong), 4000))] = chance.randrange(256)
        yield bytes(wrong)


def refused_or_fine(work: Callable[[], Any]) -> bool:
    try:
        work()
    except PdcError:
        return True
    return False


def test_the_directory_is_fine_as_it_is(whole: Path) -> None:
    assert code_of("verify", whole, "--no-data") == 0


def test_damaged_weights_of_a_directory(damaged: Path) -> None:
    content = (damaged / WEIGHTS).read_bytes()
    refused = 0
    for spoilt in spoiled(content, 60):
        (damaged / WEIGHTS).write_bytes(spoilt)
        with pytest.raises(ArtifactError, match="changed since"):
            load(net, damaged)
        refused += refused_or_fine(lambda: load(net, damaged, check_files=False))
    assert refused > 30


def test_a_header_that_claims_more_than_there_is(damaged: Path) -> None:
    entry = {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}
    for header in (json.dumps({"0.weight": entry}).encode(), b"[" * 100000):
        (damaged / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)
        with pytest.raises(ArtifactError, match="weights cannot be read"):
            load(net, damaged, check_files=False)
    (damaged / WEIGHTS).write_bytes(struct.pack("<Q", 2**60) + b"{}")
    with pytest.raises(ArtifactError, match="weights cannot be read"):
        load(net, damaged, check_files=False)


def test_damaged_onnx_files(damaged: Path) -> None:
    compact, inputs = load(net, damaged), torch.zeros(1, 3, 8, 8)
    content = (damaged / ONNX).read_bytes()
    refused = 0
    for spoilt in spoiled(content, 40):
        (damaged / ONNX).write_bytes(spoilt)
        refused += refused_or_fine(lambda: verify_onnx(compact, damaged / ONNX, inputs))
    assert refused > 15
    (damaged / ONNX).write_bytes(content[: len(content) // 2])
    assert code_of("verify", damaged, "--no-data") == 2
    assert code_of("bench", damaged) == 2
    assert code_of("bench", damaged / ONNX, damaged / ONNX) == 2


def test_an_onnx_file_that_declares_a_huge_tensor(damaged: Path) -> None:
    import onnx

    model = onnx.load(damaged / ONNX)
    model.graph.initializer[0].dims[0] = 2**40
    onnx.save(model, damaged / ONNX)
    assert code_of("verify", damaged, "--no-data") == 2


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "way", "value", "words"),
    [
        (RECIPE, ["mean"], "0.5", "'mean' is not a list of numbers [{}]"),
        (RECIPE, ["std"], [0.2, 0.0, 0.2], "'std' is not a list of positive numbers [{}]"),
        (RECIPE, ["std"], [0.2], "'mean' and 'std' differ in length [{}]"),
        (RECIPE, ["num_classes"], True, "'num_classes' is not a whole number [{}]"),
        (CERTIFICATE, ["accuracy"], [0.5], "'accuracy' is not an object of numbers [{}]"),
        (
            RECIPE,
            ["plan", "channel_groups", "inputs", 0, 1],
            "float33",
            "the plan's example input cannot be made: there is no such dtype [(1, 3, 8, 8), float33]",
        ),
    ],
)
def test_fields_that_make_no_sense_are_named(damaged: Path, name: str, way: list[Any], value: Any, words: str) -> None:
    path = damaged / name
    path.write_text(json.dumps(changed(json.loads(path.read_text()), tuple(way), value)))
    before = content(damaged)
    result = CliRunner().invoke(app, ["verify", str(damaged), "--no-data"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"error: {words.format(path)}\n"
    assert content(damaged) == before


@pytest.mark.parametrize("name", [WEIGHTS, ONNX])
def test_a_file_that_is_missing_is_named(damaged: Path, name: str) -> None:
    (damaged / name).unlink()
    with pytest.raises(ArtifactError, match=rf"^a file is missing \[.*{name}\]$"):
        load(net, damaged)


NESTED = "[" * 200_000
TEXTS = ["", "null", "[]", "{", NESTED, '{"a":' * 50_000, '"' + "x" * 10, "\x00", '{"format": 1, "plan": 1e999}']


@pytest.mark.parametrize("name", [RECIPE, CERTIFICATE])
@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_recipes_and_certificates_that_are_none(damaged: Path, name: str, text: str) -> None:
    (damaged / name).write_text(text)
    assert code_of("verify", damaged, "--no-data") == 2
    assert code_of("export", damaged, "-o", damaged / "m.onnx") == 2
    assert code_of("bench", damaged) in ((2,) if name == RECIPE else (2, 0))


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The ways to everything in a piece of JSON."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def changed(data: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    data = copy.copy(data)
    data[path[0]] = changed(data[path[0]], path[1:], value)
    return data


anything = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6), st.just([]), st.just({}), st.just([[1]]),
    st.sampled_from([10**30, -1, "0-99999999999", "5-1,7", "0-0", "load", "float16", "../../x", [2**40], [0], "é:x"]),
)  # fmt: skip
QUIET = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))


@settings(QUIET, max_examples=100)
@given(data=st.data())
def test_random_changes_of_a_recipe(whole: Path, data: st.DataObject) -> None:
    recipe = json.loads((whole / RECIPE).read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(recipe))))
        recipe = changed(recipe, path, data.draw(anything))
    if not isinstance(recipe, dict):
        return

    def use() -> None:
        plan = Recipe.of(recipe, whole).plan
        assert plan.macs_after <= plan.macs_before or plan.macs_before < 0

    refused_or_fine(use)


@settings(QUIET, max_examples=10)
@given(data=st.data())
def test_random_changes_of_a_directory(
    whole: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = Path(shutil.copytree(whole, tmp_path_factory.mktemp("changed") / "out"))
    name = data.draw(st.sampled_from([RECIPE, CERTIFICATE]))
    content = json.loads((folder / name).read_text())
    path = data.draw(st.sampled_from([p for p in places(content) if p]))
    (folder / name).write_text(json.dumps(changed(content, path, data.draw(anything))))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder.parent)
        assert code_of("verify", folder, "--no-data") in (0, 1, 2)


def test_a_plan_cannot_ask_for_all_memory(whole: Path) -> None:
    assert len(decode_integers("0-99")) == 100
    with pytest.raises(ValueError, match=f"more than {LONGEST_AXIS} integers"):
        decode_integers("0-99999999999")
    with pytest.raises(ValueError, match="goes backwards"):
        decode_integers("99999999999-0,0-99999999999")
    recipe = json.loads((whole / RECIPE).read_text())
    recipe["plan"]["clusters"][0] = "0-99999999999"
    with pytest.raises(ArtifactError, match="the recipe's plan is malformed"):
        Recipe.of(recipe, whole)
    for read, what in ((ClusterPlan.from_json, "plan"), (ChannelGroups.from_json, "channel groups")):
        for text in (NESTED, "{"):
            with pytest.raises(ArtifactError, match="not the JSON"):
                read(text)
        for text, error in (("{}", "KeyError"), ("[]", "TypeError"), ("null", "TypeError")):
            with pytest.raises(ArtifactError, match=rf"this is a malformed .*{what}: {error} "):
                read(text)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("dim", 4, "an axis that is not there"),
        ("positions", "0-6,99", "channels that are not there"),
        ("positions", "0-2", "channels that are not there"),
        ("role", "boss", "an unknown role 'boss'"),
        ("tensor", "9.weight", "a tensor whose shape is not listed"),
    ],
)
def test_groups_that_make_no_sense(key: str, value: Any, words: str, whole: Path) -> None:
    groups = json.loads((whole / RECIPE).read_text())["plan"]["channel_groups"]
    assert ChannelGroups.from_json(json.dumps(groups)).channels
    groups["groups"][0]["members"][0][key] = value
    with pytest.raises(ArtifactError, match=words):
        ChannelGroups.from_json(json.dumps(groups))


def checkpoint(folder: Path, content: bytes, step: int = 5) -> Checkpoints:
    (folder / f"step-{step:09d}.pt").write_bytes(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    return Checkpoints(folder)


def test_damaged_checkpoints_with_a_matching_sum(tmp_path: Path) -> None:
    """Somebody may have computed the checksum anew."""
    buffer = io.BytesIO()
    torch.save({"signature": "x", "model": {"a": torch.zeros(9)}}, buffer)
    refused = sum(refused_or_fine(checkpoint(tmp_path, spoilt).load) for spoilt in spoiled(buffer.getvalue(), 300))
    assert refused > 100
    buffer = io.BytesIO()
    torch.save([1], buffer)
    with pytest.raises(ArtifactError, match="holds no state"):
        checkpoint(tmp_path, buffer.getvalue()).load()


def test_damaged_parquet(tmp_path: Path) -> None:
    import datasets
    import numpy as np
    from PIL import Image

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    images = [Image.fromarray(np.full((8, 8, 3), i, dtype=np.uint8)) for i in range(8)]
    rows = datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 4}, features=features)
    for part in ("train", "test"):
        rows.to_parquet(tmp_path / f"{part}.parquet")
    content = (tmp_path / "train.parquet").read_bytes()
    refused = 0
    for spoilt in spoiled(content, 60):
        (tmp_path / "train.parquet").write_bytes(spoilt)
        refused += refused_or_fine(lambda: open_data(f"parquet:{tmp_path}").train.fetch(torch.tensor([0, 1])))
    assert refused > 30


LIMITED = """
import resource, sys
from pdc_fx.cli import main
import pdc_fx.cli.deploy, pdc_fx.export.verify, pdc_fx.export.onnx, pdc_fx.artifacts, onnxruntime
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for name, change in {
    "clusters": lambda r: r["plan"]["clusters"].__setitem__(0, "0-99999999999"),
    "inputs": lambda r: r["plan"]["channel_groups"]["inputs"][0].__setitem__(0, [1, 3, 10**7, 10**7]),
    "nested": None,
}.items():
    import json, pathlib
    folder = pathlib.Path(sys.argv[1])
    original = (folder / "recipe.json").read_text()
    if change is None:
        (folder / "recipe.json").write_text("[" * 5_000_000)
    else:
        recipe = json.loads(original)
        change(recipe)
        (folder / "recipe.json").write_text(json.dumps(recipe))
    sys.argv = ["pdc-fx", "verify", str(folder), "--no-data"]
    try:
        main()
    except SystemExit as error:
        assert error.code == 2, (name, error.code)
    sys.argv[1:] = [str(folder)]
    (folder / "recipe.json").write_text(original)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs getrusage")
def test_bombs_take_little_memory(damaged: Path) -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED, str(damaged)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 200_000  # kilobytes more than before
