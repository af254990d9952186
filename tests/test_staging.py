"""An output directory is absent or complete, one process at a time works on it, and what was trained is not thrown away."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pdc_fx import staging as staging_module
from pdc_fx.directory import RECIPE
from pdc_fx.errors import InputError, PdcError
from pdc_fx.files import replace_file
from pdc_fx.staging import LockWarning, Staging


def filled(place: Path, text: str, **options: Any) -> Staging:
    staging = Staging(place, **options)
    (staging.path / "checkpoint").mkdir(exist_ok=True)
    (staging.path / RECIPE).write_text(text)
    return staging


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_it_comes_to_its_place_without_the_checkpoint(tmp_path: Path) -> None:
    filled(tmp_path / "out", "new").publish()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == [RECIPE]


def test_two_processes_do_not_share_a_place(tmp_path: Path) -> None:
    code = "import sys; from pathlib import Path; from pdc_fx.staging import Staging; s = Staging(Path(sys.argv[1]), resume=True)"
    command = [sys.executable, "-c", f"{code}; print('mine', flush=True); input()", str(tmp_path / "out")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(InputError, match="another process is writing this output directory"):
                Staging(tmp_path / "out", **options)
        other.send_signal(signal.SIGKILL)
    filled(tmp_path / "out", "new", resume=True).publish()  # the lock went with the process
    assert names(tmp_path) == ["out"]


def test_a_place_is_free_again_after_each_end(tmp_path: Path) -> None:
    filled(tmp_path / "out", "old").release()
    with pytest.raises(InputError, match="an interrupted run left its state"):
        Staging(tmp_path / "out")
    going_on = filled(tmp_path / "out", "new", resume=True)
    with pytest.raises(InputError, match="another process"):  # also within one process
        Staging(tmp_path / "out", overwrite=True)
    going_on.discard()
    assert names(tmp_path) == []


def test_what_an_interrupted_run_left_is_discarded_where_that_is_asked_for(tmp_path: Path) -> None:
    filled(tmp_path / "out", "old").release()
    staging = Staging(tmp_path / "out", overwrite=True)
    assert names(staging.path) == []
    staging.discard()
    assert names(tmp_path) == []


@pytest.mark.parametrize(("third", "left"), [(False, ["out"]), (True, [".out.partial", "out"])])
def test_another_process_finishes_while_one_waits_for_the_lock(
    third: bool, left: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it renames is the directory that was just opened; a new one goes again, unless a third process has made it."""
    lock, calls = staging_module._lock, []

    def finished_meanwhile(descriptor: int, path: Path) -> None:
        calls.append(path)
        if len(calls) == 1:
            path.rename(tmp_path / "out")
            if third:
                path.mkdir()
        lock(descriptor, path)

    monkeypatch.setattr(staging_module, "_lock", finished_meanwhile)
    with pytest.raises(InputError, match=r"the output directory exists \[.*out\]; choose another"):
        Staging(tmp_path / "out")
    assert len(calls) == 2
    assert names(tmp_path) == left


def test_a_taken_place_leaves_nothing_beside(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="the output directory exists"):
        Staging(tmp_path / "out")
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(InputError, match="the output directory exists"):
        Staging(tmp_path / "link")
    assert names(tmp_path) == ["link", "out"]


@pytest.mark.parametrize("made", ["folder", "file", "link", "dangling link"])
def test_only_a_directory_of_ours_is_overwritten(made: str, tmp_path: Path) -> None:
    place, thesis = tmp_path / "out", tmp_path / "work" / "thesis.tex"
    thesis.parent.mkdir()
    thesis.write_text("years")
    match made:
        case "folder":
            thesis.parent.rename(place)
            thesis = place / thesis.name
        case "file":
            thesis.rename(place)
            thesis = place
        case _:
            place.symlink_to("nowhere" if made == "dangling link" else thesis.parent)
    before = names(tmp_path)
    with pytest.raises(
        InputError, match=r"only a directory that pdc-fx made is overwritten.*no recipe\.json.*move this away"
    ):
        Staging(place, overwrite=True)
    assert (names(tmp_path), thesis.read_text()) == (before, "years")


def test_an_empty_directory_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    filled(tmp_path / "out", "new", overwrite=True).publish()
    assert names(tmp_path / "out") == [RECIPE]


def test_a_replacement_that_was_killed_half_way_is_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between its two renames nothing has the final name; the next run finds the old directory there again."""
    filled(tmp_path / "out", "old").publish()
    replace, calls = os.replace, []

    def killed(*paths: Any) -> None:
        calls.append(paths)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(*paths)

    staging = filled(tmp_path / "out", "new", overwrite=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            staging.publish()
    assert not (tmp_path / "out").exists()
    staging.release()
    with pytest.raises(InputError, match="exists: its run is complete, and there is nothing to resume"):
        Staging(tmp_path / "out", resume=True)
    assert (tmp_path / "out" / RECIPE).read_text() == "old"
    Staging(tmp_path / "out", resume=True, overwrite=True).publish()
    assert (tmp_path / "out" / RECIPE).read_text() == "new"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("keep", [True, False])
def test_an_error_leaves_only_what_can_be_resumed(checkpoint: bool, keep: bool, tmp_path: Path) -> None:
    staging = Staging(tmp_path / "out", keep_checkpoint=keep)
    if checkpoint:
        (staging.path / "checkpoint").mkdir()
    with pytest.raises(KeyboardInterrupt), staging:
        raise KeyboardInterrupt
    assert names(tmp_path) == ([".out.partial"] if keep and checkpoint else [])


def test_an_error_in_another_process_leaves_all(tmp_path: Path) -> None:
    filled(tmp_path / "out", "first")
    with pytest.raises(KeyboardInterrupt), Staging(tmp_path / "out", write=False):
        raise KeyboardInterrupt
    assert names(tmp_path) == [".out.partial"]


def test_what_cannot_be_renamed_stays_and_is_named(tmp_path: Path) -> None:
    staging = filled(tmp_path / "out", "new")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "someone").touch()
    with pytest.raises(InputError, match=r"cannot be brought to its place.*complete in .*\.out\.partial"):
        staging.publish()
    assert (staging.path / RECIPE).read_text() == "new"


def test_a_checkpoint_goes_only_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    staging = filled(tmp_path / "out", "new")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "broken")))
    with pytest.raises(InputError, match="broken"):
        staging.publish()
    assert (staging.path / "checkpoint").exists()


def test_a_file_system_without_locks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(LockWarning, match="cannot be locked"):
        filled(tmp_path / "out", "new").publish()


def test_a_place_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """In a locale of ASCII a Greek name arrives so; ONNX Runtime would refuse it after the training."""
    with pytest.raises(InputError, match=r"is no text here.*PYTHONUTF8=1"):
        Staging(tmp_path / os.fsdecode(b"\xce\xad\xff"))
    assert names(tmp_path) == []


def test_a_place_without_a_name_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be an output directory"):
        Staging(Path("/"))


def test_a_disk_that_becomes_read_only_ends_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unfinished file cannot be removed there either."""

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "open", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(PdcError, match="the file cannot be written: Read-only file system"):
        replace_file(tmp_path / "step.pt", b"content")
