"""Kill, starve and disturb real runs of `pdc-fx compress`, and look at what is on disk afterwards.

    python benchmarks/faults.py                        all faults, into benchmarks/results/faults.json
    python benchmarks/faults.py --only read_only       one kind of them: a function's name

Each run is a process of its own: a child of this one, which has imported torch, or where the environment matters a new interpreter.
*Killed* runs send themselves SIGKILL when a named function is entered or left, so that every phase is hit exactly. Afterwards nothing has
the final name, or the directory there passes ``pdc-fx verify``; then the same command with ``--resume`` must end verified, with the same
weights, bit for bit, as a run that was never disturbed. *Full* disks are small file systems in memory (Linux, as root), of growing size,
so that one write after the other fails; there is room again before ``--resume``. Rows that cannot be set up on a machine say why.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "faults.json"
sys.path.insert(0, str(ROOT))

FACTORY = """
import torch
from torch import nn

def net(num_classes=10):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.1),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, num_classes),
    )

net.input_shape = (1, 1, 8, 8)
"""
OPTIONS = "--data digits --flops-reduction 0.375 --epochs 2 -b 128 --amp no --checkpoint-every 3"


@dataclass(frozen=True)
class Kill:
    """Where a process ends itself: the ``nth`` call of ``function`` whose arguments match, when it is entered or when it is left."""

    phase: str
    function: str
    matching: str = ""
    nth: int = 1
    leaving: bool = False

    def armed(self, act: Callable[[], None]) -> Callable[[], None]:
        """What puts the trap into a process."""
        return lambda: self.arm(act)

    def arm(self, act: Callable[[], None]) -> None:
        """Put the trap into this process."""
        owner, _, name = self.function.rpartition(".")
        place, left = _resolve(owner), [self.nth]
        real = getattr(place, name)

        def trapped(*args: Any, **kwargs: Any) -> Any:
            hit = re.search(self.matching, " ".join(map(str, args))) is not None
            left[0] -= hit
            if hit and left[0] == 0 and not self.leaving:
                act()
            result = real(*args, **kwargs)
            if hit and left[0] == 0 and self.leaving:
                act()
            return result

        setattr(place, name, trapped)


FINAL = r"\.partial \S*/out$"
STEP = "pdc_fx.distill.training._Run._step"
KILLS = (
    Kill("before anything is written", "pdc_fx.models.build_model"),
    Kill("when the directory was made", "os.replace", "config.yaml"),
    Kill("while channels are analysed", "pdc_fx.pipeline.analyze"),
    Kill("after calibration", "pdc_fx.pipeline.calibrate", leaving=True),
    Kill("before the first step of training", STEP),
    Kill("in the middle of an epoch", STEP, nth=5),
    Kill("while the first checkpoint is written", "os.fsync"),
    Kill("before the first checkpoint is renamed", "os.replace", "step-"),
    Kill("before a later checkpoint is renamed", "os.replace", "step-", nth=3),
    Kill("between metrics and checkpoint of an epoch", "os.replace", "metrics", leaving=True),
    Kill("after the last step of training", STEP, nth=20, leaving=True),
    Kill("while batch norms are estimated anew", "pdc_fx.distill.training.reestimate_batch_norm"),
    Kill("before the rewrite", "pdc_fx.passes.rewrite.merge_channels"),
    Kill("before the weights are written", "pdc_fx.artifacts.write_model"),
    Kill("when the weights are written", "pdc_fx.artifacts.write_model", leaving=True),
    Kill("during export", "pdc_fx.export.onnx.store"),
    Kill("while the ONNX file is moved", "pdc_fx.export.store.publish"),
    Kill("before ONNX is verified", "pdc_fx.export.verify.verify_onnx"),
    Kill("before the certificate is renamed", "os.replace", "certificate"),
    Kill("before the report is rendered", "pdc_fx.export.report.render_report"),
    Kill("before the final rename", "pdc_fx.staging.Staging.publish"),
    Kill("right after the final rename", "os.replace", FINAL, leaving=True),
)
REPLACED = (
    Kill("before what is replaced is moved", "os.replace", r"\.old$"),
    Kill("between the two renames", "os.replace", r"\.old$", leaving=True),
    Kill("after both renames", "os.replace", FINAL, leaving=True),
)


def _resolve(path: str) -> Any:
    """A module, or a class or module in it."""
    parts = path.split(".")
    for count in range(len(parts), 0, -1):
        with contextlib.suppress(ModuleNotFoundError):
            place: Any = importlib.import_module(".".join(parts[:count]))
            for name in parts[count:]:
                place = getattr(place, name)
            return place
    raise LookupError(path)


def kill_myself() -> None:
    """No handler runs, nothing is flushed."""
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (a signal's number is negative), what it wrote, and how long it took."""

    code: int
    said: str
    seconds: float

    @property
    def last(self) -> str:
        """The message, on one line, without the folders of this machine."""
        if "Traceback" in self.said:
            return "traceback: " + self.said.strip().splitlines()[-1]
        words = " ".join(self.said.split())
        return re.sub(r"/\S*/(?=[.\w])", "", words[words.find("error:") :] if "error:" in words else words[-160:])[:300]


def start(arguments: Sequence[str], folder: Path, prepare: Callable[[], object] = lambda: None) -> tuple[int, Path]:
    """A child that runs the command line in ``folder``; ``prepare`` runs in it before."""
    log = folder / f"log-{time.monotonic_ns()}"
    child = os.fork()
    if child:
        return child, log
    code = 70
    try:
        output = os.open(log, os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(folder)
        sys.argv = ["pdc-fx", *arguments]
        prepare()
        from pdc_fx.cli import main

        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait(child: int, log: Path, began: float) -> Ended:
    """Until it has ended."""
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    log.unlink(missing_ok=True)
    return Ended(code, said, round(time.monotonic() - began, 2))


def run(arguments: Sequence[str], folder: Path, prepare: Callable[[], object] = lambda: None) -> Ended:
    """A process from its start to its end."""
    began = time.monotonic()
    return wait(*start(arguments, folder, prepare), began)


def compress(*more: str, out: str = "out") -> list[str]:
    """The command that is disturbed."""
    return ["compress", "net.py:net", *OPTIONS.split(), "-o", out, *more]


def under_final_name(folder: Path, out: str = "out") -> str:
    """What a user finds: nothing, a verified directory, or (which must not be) something else."""
    if not os.path.lexists(folder / out):
        return "nothing"
    return "verified" if run(["verify", out], folder).code == 0 else "NOT VERIFIED"


def weights(directory: Path) -> dict[str, bytes]:
    """Name of each tensor -> its content. The order in the file, and so its hash, is another each time."""
    from safetensors.numpy import load_file

    return {name: tensor.tobytes() for name, tensor in load_file(directory / "model.safetensors").items()}


class Setting:
    """What the faults share: the result of a run that nothing disturbed."""

    def __init__(self, scratch: Path, phase: str = "") -> None:
        self.scratch, self.count, self.phase = scratch, 0, phase
        whole = self.folder()
        done = run(compress(), whole)
        assert done.code == 0, done.said
        self.weights = weights(whole / "out")

    def folder(self) -> Path:
        """A new folder with the model in it."""
        self.count += 1
        path = self.scratch / f"run-{self.count}"
        path.mkdir()
        (path / "net.py").write_text(FACTORY, encoding="utf-8")
        return path

    def resumed(self, folder: Path, *more: str, out: str = "out") -> dict[str, Any]:
        """The same command with ``--resume``, where the first one has not finished."""
        done = run(compress("--resume", *more, out=out), folder)
        found: dict[str, Any] = {"resume": done.code, "then": under_final_name(folder, out)}
        if done.code:
            found["resume_said"] = done.last
        if found["then"] == "verified":
            found["same_weights"] = weights(folder / out) == self.weights
        found["left"] = sorted(p.name for p in folder.iterdir() if p.name.startswith(".out"))
        return found


Row = dict[str, Any]


def killed(setting: Setting) -> Iterator[Row]:
    """SIGKILL in every phase, then ``--resume``."""
    for kill in (kill for kill in KILLS if setting.phase in kill.phase):
        folder = setting.folder()
        ended = run(compress(), folder, kill.armed(kill_myself))
        found = under_final_name(folder)
        row = {"kind": "killed", "phase": kill.phase, "code": ended.code, "final": found}
        if found == "nothing":
            row |= setting.resumed(folder)
        yield row | {"ok": ended.code == -9 and found != "NOT VERIFIED" and ended_well(row)}


def replaced(setting: Setting) -> Iterator[Row]:
    """SIGKILL while ``--overwrite`` puts the new directory in the place of an old one."""
    for kill in REPLACED:
        folder = setting.folder()
        assert run(compress("--epochs", "1"), folder).code == 0
        old = weights(folder / "out")
        ended = run(compress("--overwrite"), folder, kill.armed(kill_myself))
        found = under_final_name(folder)
        row = {"kind": "killed, --overwrite", "phase": kill.phase, "code": ended.code, "final": found}
        if found == "verified" and weights(folder / "out") == old:
            row["final"] = "verified (the old one)"
        row |= setting.resumed(folder, "--overwrite")
        yield row | {"ok": ended.code == -9 and found != "NOT VERIFIED" and ended_well(row)}


def ended_well(row: Row) -> bool:
    """Verified, with the weights of a run that nothing disturbed, and nothing left beside."""
    if "then" not in row:
        return True
    return row["then"] == "verified" and row.get("same_weights", False) and not row["left"]


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[Path]:
    """A file system in memory."""
    place = folder / "disk"
    place.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(place)], check=True, capture_output=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)


def remount(place: Path, options: str) -> None:
    """With other options."""
    subprocess.run(["mount", "-o", f"remount,{options}", str(place)], check=True, capture_output=True)


def full(setting: Setting) -> Iterator[Row]:
    """Disks of growing size, until the run fits."""
    size = 8
    while size <= 1024:
        folder = setting.folder()
        with small_disk(folder, f"size={size}k") as place:
            ended = run(compress(out="disk/out"), folder)
            found = under_final_name(folder, "disk/out")
            row = {"kind": "disk full", "phase": f"{size} KiB", "code": ended.code, "final": found, "said": ended.last}
            if ended.code == 0:
                yield row | {"said": "", "ok": found == "verified"}
                return
            remount(place, "size=8m")
            row |= setting.resumed(folder, out="disk/out")
            yield row | {
                "ok": ended.code == 2 and "traceback" not in row["said"] and found == "nothing" and ended_well(row)
            }
        size = size * 3 // 2 // 4 * 4


def read_only(setting: Setting) -> Iterator[Row]:
    """A directory that cannot be written, before and after the run has begun."""
    for phase in ("from the start", "after the first checkpoint"):
        folder = setting.folder()
        with small_disk(folder, "size=8m") as place:

            def now(place: Path = place) -> None:
                remount(place, "ro")

            if phase == "from the start":
                now()
                ended = run(compress(out="disk/out"), folder)
            else:
                trap = Kill(phase, "os.replace", "step-", leaving=True)
                ended = run(compress(out="disk/out"), folder, trap.armed(now))
            found = under_final_name(folder, "disk/out")
            row = {"kind": "read-only", "phase": phase, "code": ended.code, "final": found, "said": ended.last}
            remount(place, "rw")
            row |= setting.resumed(folder, out="disk/out")
            yield row | {
                "ok": ended.code == 2 and "traceback" not in row["said"] and found == "nothing" and ended_well(row)
            }


def two_at_once(setting: Setting) -> Iterator[Row]:
    """A second process on the directory of one that is at work (and waits, so that it is)."""
    for more in ((), ("--resume",), ("--overwrite",)):
        folder = setting.folder()
        trap, go = Kill("", STEP, nth=5), folder / "go"

        def pause(go: Path = go) -> None:
            while not go.exists():
                time.sleep(0.01)

        began = time.monotonic()
        first = start(compress(), folder, trap.armed(pause))
        while not list(folder.glob(".out.partial/checkpoint/step-*.pt")):
            time.sleep(0.01)
        second = run(compress(*more), folder)
        go.touch()
        ended = wait(*first, began)
        found = under_final_name(folder)
        same = found == "verified" and weights(folder / "out") == setting.weights
        phase = " ".join(("the second with", *more)) if more else "the second as the first"
        row = {"kind": "two processes", "phase": phase, "code": second.code, "said": second.last, "final": found}
        yield row | {"ok": second.code == 2 and ended.code == 0 and same and "another process" in second.last}


def clock(setting: Setting) -> Iterator[Row]:
    """Files from the past and the future, and a clock that jumps while a run is at work."""
    for phase, stamp in (("files of 1970 when resuming", 0), ("files of 2100 when resuming", 4102444800)):
        folder = setting.folder()
        run(compress(), folder, Kill("", STEP, nth=9).armed(kill_myself))
        for path in (folder / ".out.partial").rglob("*"):
            os.utime(path, (stamp, stamp))
        row = {"kind": "clock", "phase": phase, "code": -9, "final": "nothing", **setting.resumed(folder)}
        yield row | {"ok": ended_well(row)}
    for phase, jump in (("a day back in training", -86400), ("a year on in training", 31536000)):
        folder, real = setting.folder(), time.time
        trap = Kill("", STEP, nth=9)

        def shift(jump: int = jump, real: Callable[[], float] = real) -> None:
            time.time = lambda: real() + jump

        ended = run(compress(), folder, trap.armed(shift))
        found = under_final_name(folder)
        same = found == "verified" and weights(folder / "out") == setting.weights
        yield {"kind": "clock", "phase": phase, "code": ended.code, "final": found, "same_weights": same, "ok": same}


def surroundings(setting: Setting) -> Iterator[Row]:
    """New interpreters without a home, without UTF-8, without a terminal."""
    from pdc_fx.children import child_environment

    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    cases: tuple[tuple[str, dict[str, str | None], str], ...] = (
        ("HOME is not set", {"HOME": None, "XDG_CACHE_HOME": None}, "out"),
        ("HOME does not exist", {"HOME": "/nonexistent", "XDG_CACHE_HOME": None}, "out"),
        ("locale C, ASCII output", {**ascii_only}, "out"),
        ("locale C, a directory named in Greek", {**ascii_only}, "έξοδος"),
        ("TMPDIR does not exist", {"TMPDIR": "/nonexistent"}, "out"),
    )
    for phase, changes, out in cases:
        folder = setting.folder()
        environment = {k: v for k, v in {**child_environment(), **changes}.items() if v is not None}
        command = [sys.executable, "-m", "pdc_fx", *compress(out=out)]
        began = time.monotonic()
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
        ended = Ended(done.returncode, (done.stdout + done.stderr).decode("utf-8", "replace"), time.monotonic() - began)
        found = under_final_name(folder, out)
        row = {"kind": "surroundings", "phase": phase, "code": ended.code, "final": found}
        row["said"] = ended.last if ended.code else ""
        refused = out != "out" and ended.code == 2 and "PYTHONUTF8=1" in row["said"] and found == "nothing"
        yield row | {"ok": refused or (ended.code == 0 and found == "verified")}


KINDS = (killed, replaced, full, read_only, two_at_once, clock, surroundings)


def main(arguments: Sequence[str] | None = None) -> int:
    """All faults; 1 if one of them did harm."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--only", default="", help="kinds whose function's name holds this word, in the place of earlier rows"
    )
    parser.add_argument("--phase", default="", help="with --only killed: phases that hold these words")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    import torch

    torch.set_num_threads(1)  # other threads would not survive a fork
    import pdc_fx.cli.app
    import pdc_fx.pipeline  # noqa: F401

    rows: list[Row] = []
    scratch = Path(tempfile.mkdtemp())
    try:
        setting = Setting(scratch, args.phase)
        for kind in KINDS:
            if args.only not in kind.__name__:
                continue
            try:
                for row in kind(setting):
                    rows.append(row)
                    print(json.dumps(row, ensure_ascii=False), flush=True)
            except (subprocess.CalledProcessError, FileNotFoundError) as error:
                rows.append(
                    {"kind": kind.__name__, "phase": "not tried", "said": f"cannot be set up here: {error}", "ok": None}
                )
                print(json.dumps(rows[-1]), flush=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if args.only and args.output.exists():  # in the place of what was found before
        new = {(row["kind"], row["phase"]): row for row in rows}
        before = json.loads(args.output.read_text(encoding="utf-8"))["rows"]
        rows = [new.pop((row["kind"], row["phase"]), row) for row in before] + list(new.values())
    if rows:
        args.output.write_text(json.dumps({"rows": rows}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return int(any(row["ok"] is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
