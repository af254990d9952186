"""``check --all``: what becomes of each kind of ending, what is on disk afterwards, and that a run goes on where it stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from pdc_fx import coverage as module
from pdc_fx.cli import app
from pdc_fx.coverage import DATA, KEPT, PAGE, Checked, Coverage, cover, frozen_summary, judge, page, run_one
from pdc_fx.errors import InputError
from pdc_fx.factories import collection

REASON = f"is an output of the model ({sys.prefix}/lib/site-packages/net.py:3)"
CERTIFICATE: dict[str, Any] = {
    "model": "torchvision:good", "passed": True, "max_abs_error": 1e-16, "max_rel_error": 2e-16, "tolerance": 1e-9,
    "dtype": "float64", "seed": 0, "macs_before": 200, "macs_after": 60, "params_before": 20, "params_after": 7,
    "channels": 40, "mergeable_channels": 30, "groups": 2, "frozen": [{"channels": 10, "module": "fc", "reason": REASON}],
    "unreached": [], "seconds": {"trace": 0.1}, "result_type": "ResNet", "first_difference": None, "mergeable_macs": 150,
}  # fmt: skip

WRONG = CERTIFICATE | {"passed": False, "max_rel_error": 0.25, "first_difference": "output[0]"}
INFINITE = WRONG | {"max_rel_error": float("inf")}


def ends(code: int, message: str) -> str:
    return f"import sys; print({'error: ' + message!r}, file=sys.stderr); sys.exit({code})"


ENDINGS = {
    "good": f"print({json.dumps(CERTIFICATE)!r})",
    "wrong": f"print({json.dumps(WRONG)!r}); raise SystemExit(1)",
    "infinite": f"print({json.dumps(INFINITE)!r}); raise SystemExit(1)",
    "says_nothing": ends(1, "the check says nothing"),
    "nothing": ends(3, "no two channels\n may be merged"),
    "unusable": ends(2, "a size is written into the program"),
    "crash": "raise KeyError('shape')",
    "no_memory": "raise MemoryError()",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "endless": "import time; time.sleep(30)",
}

EXPECTED = {
    "good": ("passed", ""),
    "wrong": ("failed", "relative error 2.5e-01, allowed 1e-09, at output[0]"),
    "infinite": ("failed", "relative error not finite"),
    "says_nothing": ("failed", "the check says nothing"),
    "nothing": ("refused", "no two channels may be merged"),
    "unusable": ("refused", "a size is written into the program"),
    "crash": ("failed", "crashed: KeyError: 'shape'"),
    "no_memory": ("failed", "ran out of memory: MemoryError"),
    "killed": ("failed", "SIGKILL), most likely because memory ran out"),
    "endless": ("timeout", "took longer than 2 s"),
}


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A collection whose models end in every way, each in a real process; and what has been run so far."""
    started: list[str] = []

    def command(spec: str, seed: int) -> list[str]:
        started.append(spec)
        return [sys.executable, "-S", "-c", ENDINGS[spec.partition(":")[2]]]

    monkeypatch.setattr(module, "collection", lambda _: list(ENDINGS))
    monkeypatch.setattr(module, "command", command)
    return started


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["check", *(str(a) for a in arguments)])


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.usefixtures("played")
def test_every_ending(workers: int, tmp_path: Path) -> None:
    seen: list[int] = []
    coverage = cover(
        "torchvision", tmp_path, timeout=2, workers=workers, report=lambda _, number, total: seen.append(number)
    )
    assert [spec.partition(":")[2] for spec in coverage.models] == list(ENDINGS)  # in the collection's order
    for name, (result, reason) in EXPECTED.items():
        checked = coverage.models[f"torchvision:{name}"]
        assert (checked.result, reason in checked.reason) == (result, True), checked
    assert seen == list(range(1, len(ENDINGS) + 1))
    assert coverage.counts() == {"passed": 1, "refused": 2, "failed": 6, "timeout": 1}
    data = json.loads((tmp_path / DATA).read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert [entry["model"] for entry in data["models"]] == list(coverage.models)
    assert data["models"][0]["certificate"]["frozen"][0]["reason"] == "is an output of the model (net.py:3)"
    assert sorted(path.name for path in tmp_path.iterdir()) == [DATA, PAGE]


def test_a_run_goes_on_where_it_stopped(played: list[str], tmp_path: Path) -> None:
    def interrupt(checked: Checked, number: int, total: int) -> None:
        if checked.model.endswith("wrong"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cover("torchvision", tmp_path, only="[gw]*", report=interrupt)
    kept = (tmp_path / DATA).read_text()
    assert [entry["model"] for entry in json.loads(kept)["models"]] == ["torchvision:good", "torchvision:wrong"]
    played.clear()
    assert cover("torchvision", tmp_path, only="[gwn]*").counts()["passed"] == 1
    assert played == ["torchvision:nothing", "torchvision:no_memory"]
    played.clear()
    cover("torchvision", tmp_path, only="good", fresh=True)
    assert played == ["torchvision:good"]
    data = json.loads((tmp_path / DATA).read_text())
    assert len(data["models"]) == 4  # the others stay


def test_results_of_another_seed_are_not_mixed(played: list[str], tmp_path: Path) -> None:
    cover("torchvision", tmp_path, only="[gw]*")
    with pytest.raises(InputError, match=r"another seed.*--fresh"):
        cover("torchvision", tmp_path, only="good", seed=1)
    assert list(cover("torchvision", tmp_path, only="good", seed=1, fresh=True).models) == ["torchvision:good"]
    data = json.loads((tmp_path / DATA).read_text())
    assert (data["seed"], len(data["models"])) == (1, 1)
    (tmp_path / DATA).write_text("{}")
    with pytest.raises(InputError, match="no file of coverage results"):
        cover("torchvision", tmp_path, only="good")
    assert cover("torchvision", tmp_path, only="good", fresh=True).counts()["passed"] == 1


@pytest.mark.usefixtures("played")
def test_page(tmp_path: Path) -> None:
    coverage = cover("torchvision", tmp_path, only="[gn]*,c*")
    text = (tmp_path / PAGE).read_text()
    assert text == page(coverage)
    assert "4 models: 1 passed, 1 refused, 2 failed, 0 timeout." in text
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert rows[0].startswith("| `good` | passed | `ResNet` | 75.0% | 75.0% | 2.0e-16 | ")
    assert rows[0].endswith(" | 10: is an output of the model |")
    assert {row.count(" | ") for row in rows} == {7}
    assert "- `crash` failed: crashed: KeyError: 'shape'" in text
    assert sys.prefix not in text


def test_other_tables_on_the_page_stay(played: list[str], tmp_path: Path) -> None:
    cover("any", tmp_path, only="good")
    path = tmp_path / PAGE
    before = path.read_text()
    path.write_text(f"{before}\n{KEPT}\n\n## Another table\n")
    cover("any", tmp_path, only="nothing")
    text = path.read_text()
    assert text.count(KEPT) == 1
    assert text.endswith(f"\n{KEPT}\n\n## Another table\n")
    assert "`nothing`" in text.partition(KEPT)[0]
    assert KEPT not in before


def test_float32_is_said() -> None:
    found = Checked("torchvision:giant", "passed", "", 1.0, CERTIFICATE | {"dtype": "float32", "max_rel_error": 3e-6})
    text = page(Coverage({"family": "torchvision", "seed": 0, "versions": {}}, {found.model: found}))
    assert "| 3.0e-06 (float32) |" in text


def test_frozen_reasons_are_counted_without_places() -> None:
    reason = "torch.sort has no rule (net.py:{0}) (at 'block.{0}')"
    frozen = [{"channels": 2, "module": "a", "reason": reason.format(number)} for number in range(3)]
    frozen += [{"channels": n, "module": "b", "reason": f"reason {n}"} for n in (1, 3, 4)]
    assert frozen_summary(frozen) == "6: torch.sort has no rule; 4: reason 4; 3: reason 3; 1 more"


def test_output_that_is_no_certificate() -> None:
    assert judge(0, "[]", "")[:2] == ("failed", "crashed: exit code 0")


def test_a_process_that_cannot_be_started() -> None:
    """No system takes an argument of two million letters."""
    found = run_one("torchvision:" + "x" * 2**21, timeout=5)
    assert (found.result, found.certificate) == ("failed", None)
    assert found.reason.startswith("could not be started: ")


def test_exit_codes_and_streams(played: list[str], tmp_path: Path) -> None:
    passed = run("--all", "torchvision", "--only", "good", "-o", tmp_path, "--json")
    assert passed.exit_code == 0, passed.stderr
    assert json.loads(passed.stdout)["models"] == {"torchvision:good": "passed"}
    assert "1/1 good passed 2.0e-16" in passed.stderr
    refused = run("--all", "torchvision", "--only", "[gnu]*", "-o", tmp_path, "--timeout", "5")
    assert refused.exit_code == 1  # no_memory
    assert run("--all", "torchvision", "--only", "[gu]*", "-o", tmp_path).exit_code == 0
    assert run("--all", "torchvision", "--only", "crash", "-o", tmp_path).exit_code == 1
    assert run("--all", "torchvision", "--only", "endless", "-o", tmp_path, "--timeout", "1").exit_code == 1
    played.clear()
    assert run("--all", "torchvision", "--only", "crash", "-o", tmp_path).exit_code == 1  # as the file says
    assert played == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "say which model"),
        (["torchvision:resnet18", "--all", "torchvision"], "a MODEL cannot be given together with --all"),
        (["--all", "nowhere"], "'nowhere' is no collection"),
        (["--all", "torchvision", "--only", "zzz*"], "no model of torchvision is called 'zzz*'"),
        (["--all", "torchvision", "--input", "1x3x8x8"], "--input cannot be given together with --all"),
        (["--all", "torchvision", "--timeout", "-1"], "must be positive"),
        (["--all", "torchvision", "--timeout", "0"], "must be positive"),
        (["torchvision:resnet18", "--only", "*"], "--only needs --all"),
        (["torchvision:resnet18", "--fresh"], "--fresh needs --all"),
    ],
)
def test_usage(arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert words in result.stderr.replace("\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(played: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run("--all", "torchvision", "--only", "good", "-o", tmp_path / "file" / "docs")
    assert result.exit_code == 2
    assert "cannot be written" in result.stderr
    assert played == []


def test_a_real_model() -> None:
    checked = run_one("torchvision:squeezenet1_1", timeout=120)
    assert checked.passed, checked
    assert checked.certificate is not None
    assert checked.certificate["max_rel_error"] < 1e-12
    assert checked.certificate["mergeable_macs"] == checked.certificate["macs_before"]


def test_a_refusal_is_one_where_colours_are_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As CI systems force them."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Conv2d(1, 8, 3))\nnet.input_shape = (1, 1, 8, 8)\n"
    )
    checked = run_one(f"{file}:net", timeout=120)
    assert (checked.result, checked.reason.partition(" [")[0]) == (
        "refused",
        "no two channels of this model may be merged",
    )


def test_the_collection_is_torchvisions() -> None:
    names = collection("torchvision")
    assert len(names) == len(set(names)) >= 109
    assert not any(name.startswith("quantized_") for name in names)
