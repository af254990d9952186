"""Whatever stands on the command line or in a configuration: one of the exit codes, never a traceback."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import yaml
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner

from pdc_fx.cli import app
from pdc_fx.cli.options import plain
from pdc_fx.errors import PdcError

FACTORY = """
from torch import nn

def net(num_classes=10):
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, num_classes))

net.input_shape = (1, 1, 8, 8)
"""
LONG = "x" * 5000
NO_TEXT = "a\udcff"  # a byte that is no UTF-8, as Python hands it on

THOROUGH = settings(
    deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), max_examples=60, database=None
)


class Reached(PdcError):
    """Instead of the work itself."""


def stop(*_: Any, **__: Any) -> None:
    raise Reached("the work would begin")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("arguments")
    (folder / "net.py").write_text(FACTORY)
    return f"{folder / 'net.py'}:net"


@pytest.fixture
def _no_work() -> Iterator[None]:
    with patch("pdc_fx.pipeline.compress", stop), patch("pdc_fx.coverage.cover", stop):
        yield


def said(*arguments: object) -> Result:
    """What came of a command line; an exception that reaches this point is a traceback on a user's screen."""
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code in (0, 1, 2, 3), arguments
    return result


COMPRESS = "compress MODEL --data digits -o OUT --flops-reduction 0.4"


@pytest.mark.usefixtures("_no_work")
@pytest.mark.parametrize(
    ("line", "more", "words"),
    [
        (COMPRESS, ("--input", "1x1x999999x999999"), "there is no memory for an input of this size"),
        (COMPRESS, ("--seed", "9" * 25), "--seed"),
        (COMPRESS, ("--lr", "nan"), "lr must be positive"),
        (COMPRESS, ("--batch-size", "9" * 25), "work would begin"),
        (COMPRESS, ("--round-to", "²"), "whole number"),
        (COMPRESS, ("--config", "/"), "cannot be read"),
        (COMPRESS, ("--config", "x\0"), "null (byte|character)|cannot be read"),
        (COMPRESS, ("--weights", NO_TEXT), "no such weights file"),
        (COMPRESS, ("--weights", LONG), "File name too long"),
        (f"compress {LONG}.py:f --data digits -o OUT --flops-reduction 0.4", (), "File name too long"),
        (f"compress MODEL --data digits -o OUT/{LONG} --flops-reduction 0.4", (), "File name too long"),
        (f"compress MODEL --data folder:{LONG} -o OUT --flops-reduction 0.4", (), "File name too long"),
        ("compress MODEL --data digits --flops-reduction 0.4", ("-o", NO_TEXT), "is no text here"),
        ("check MODEL", ("--seed", "-7"), "--seed"),
        ("check MODEL", ("--input", "999999x1x99999x99999"), "no memory"),
        ("check --all torchvision", ("-o", LONG), "work would begin"),
        ("inspect MODEL", ("-o", f"{LONG}.html"), "File name too long"),
        ("export MODEL", ("-o", LONG), "File name too long"),
        ("export MODEL -o OUT.onnx", ("--input-name", NO_TEXT), "cannot be printed"),
        (f"export {LONG} -o OUT.onnx", (), "File name too long"),
        (f"bench {LONG}", (), "File name too long"),
        (f"verify {LONG}", (), "no such directory|File name too long"),
        ("verify", ("\0",), "null (byte|character)|no such directory"),
    ],
)
def test_odd_values_are_refused_in_words(
    model: str, tmp_path: Path, line: str, more: tuple[str, ...], words: str
) -> None:
    arguments = [part.replace("MODEL", model).replace("OUT", str(tmp_path / "out")) for part in line.split()]
    result = said(*arguments, *more)
    assert result.exit_code == 2
    assert re.search(words, " ".join(result.output.replace("│", " ").split())), result.output


def test_what_is_no_text_is_shown_as_an_escape() -> None:
    assert plain(NO_TEXT) == "a\\udcff"
    assert plain("έξοδος") == "έξοδος"


numbers = st.one_of(
    st.integers(-3, 40),
    st.integers(),
    st.floats(),
    st.sampled_from([0, 1, 0.5, -1, 2**31, 2**63, 1e308, float("nan")]),
)
words = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", ".", "/", "..", "\0", NO_TEXT, "digits", "auto", "cpu", "hard", "[", "*", "1x1x8x8", "é/../é"]
    ),
)
values = st.one_of(numbers, words)


def options_of(command: str) -> list[Any]:
    commands: Any = get_command(app)
    return [
        p for p in commands.commands[command].params if p.opts[0].startswith("-") and p.name not in ("help", "download")
    ]


def arguments_of(command: str) -> st.SearchStrategy[list[str]]:
    def given_value(option: Any) -> st.SearchStrategy[list[str]]:
        name = option.opts[-1]
        return st.just([name]) if option.is_flag else values.map(lambda value: [name, str(value)])

    some = st.lists(st.sampled_from(options_of(command)), max_size=5).flatmap(
        lambda chosen: st.tuples(*map(given_value, chosen))
    )
    return some.map(lambda parts: [word for part in parts for word in part])


@pytest.mark.usefixtures("_no_work")
@pytest.mark.parametrize("command", ["compress", "check"])
@THOROUGH
@given(data=st.data())
def test_random_options(command: str, model: str, data: st.DataObject) -> None:
    """Everything up to the work itself: options, model, data, the output's place."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        fixed = [model] if command == "check" else [model, "--data", "digits", "-o", "out", "--flops-reduction", "0.4"]
        said(command, *fixed, *data.draw(arguments_of(command)))


@pytest.mark.parametrize("command", ["inspect", "export", "bench", "verify"])
@settings(THOROUGH, max_examples=20)
@given(data=st.data())
def test_random_options_of_what_reads(command: str, model: str, data: st.DataObject) -> None:
    """Exporting itself would take seconds each time; the place of the result is then one that is refused at last."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        source = data.draw(st.sampled_from([model, ".", "absent", "\0"]))
        with patch.context() as inner:
            inner.setattr("pdc_fx.export.onnx.export_onnx", stop)
            said(command, source, *(["-o", "m.onnx"] if command == "export" else []), *data.draw(arguments_of(command)))


nested = st.recursive(
    st.one_of(numbers, words.filter(str.isprintable), st.booleans(), st.none()),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
known = st.sampled_from([str(option.name) for option in options_of("compress")])


@pytest.mark.usefixtures("_no_work")
@THOROUGH
@given(content=st.dictionaries(st.one_of(known, known, st.text(max_size=8)), nested, max_size=4))
def test_random_configurations(model: str, content: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("c.yaml").write_bytes(yaml.safe_dump(content).encode("utf-8", "backslashreplace"))
        said("compress", model, "--data", "digits", "-o", "out", "--config", "c.yaml")


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.usefixtures("_no_work")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "- a",
        "\0",
        "a: [",
        pytest.param("[" * 20000, id="deep"),
        pytest.param("{a: " * 3000, id="deep_maps"),
        pytest.param(f"{LAUGHS}\nepochs: *i", id="a_thousand_million_items"),
        pytest.param(f"{LAUGHS}\nlr: *i", id="a_thousand_million_for_a_number"),
        "? [a]\n: 1",
        "epochs: !!python/name:os.system",
    ],
)
def test_malformed_configurations(model: str, tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    result = said("compress", model, "--data", "digits", "-o", tmp_path / "out", "--config", tmp_path / "c.yaml")
    assert result.exit_code == 2
    assert len(result.output) < 4000
