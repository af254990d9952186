"""An output directory while it is being made: beside its final place, under a lock, renamed when it is complete.

What is under the final name is therefore absent, or complete and verified, whenever a process dies. One process at a time works on a place:
the lock belongs to the open directory and goes with the process, also when that is killed.
"""

from __future__ import annotations

import os
import shutil
import sys
import warnings
import weakref
from pathlib import Path
from typing import Any

from pdc_fx.directory import CHECKPOINT, RECIPE
from pdc_fx.errors import InputError


class LockWarning(UserWarning):
    """The file system cannot lock; two runs into one directory would disturb each other."""


class Staging:
    """A directory under construction: ``.NAME.partial`` beside the final place, renamed by :meth:`publish`.

    Work on it inside of ``with staging:``, where an error removes it.

    Args:
        directory: the final place.
        overwrite: replace the directory that is there, if it is empty or one of ours.
        resume: go on in what an interrupted run left.
        write: whether this process makes and checks the place; others of the same run only know where it is.
        keep_checkpoint: an error leaves a directory with a checkpoint in it, for a run that resumes.

    Raises:
        InputError: the place is taken, another process works on it, or it cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        overwrite: bool = False,
        resume: bool = False,
        write: bool = True,
        keep_checkpoint: bool = False,
    ) -> None:
        self.final, self._given = directory.absolute(), str(directory)
        if not self.final.name:
            raise InputError("this cannot be an output directory", where=str(directory), hint="give a name with -o")
        try:
            str(self.final).encode()
        except UnicodeEncodeError as error:  # said now, and not when training is over
            raise InputError(
                "the path of the output directory is no text here, and ONNX Runtime takes no other",
                where=self._given.encode("utf-8", "backslashreplace").decode(),
                hint="set PYTHONUTF8=1 where only the locale does not know the letters, or choose another with -o",
            ) from error
        self.path, self._old = (self.final.with_name(f".{self.final.name}.{kind}") for kind in ("partial", "old"))
        self._overwrite, self._writes, self._keep_checkpoint = overwrite, write, keep_checkpoint
        self._lock: weakref.finalize[..., Any] | None = None  # called, it gives the lock back
        if not write:
            return
        try:
            require_free(directory, overwrite=overwrite, resume=resume)
            found = self._made_and_locked()
            self._undo_half_a_replacement()
            try:
                # another process may have finished meanwhile
                require_free(directory, overwrite=overwrite, resume=resume)
                if found and not resume and not overwrite:
                    raise InputError(
                        "an interrupted run left its state here",
                        where=str(self.path),
                        hint="continue it with --resume, or discard it with --overwrite",
                    )
            except InputError:
                if found:
                    self.release()
                else:
                    self.discard()
                raise
            if overwrite and not resume:
                _empty(self.path)
            probe = self.path / ".probe"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            self.release()
            raise InputError(
                f"the output directory cannot be written: {error.strerror or error}",
                where=str(directory if error.filename is None else error.filename),
                hint="choose another with -o",
            ) from error

    def __enter__(self) -> Staging:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None or not self._writes:
            return
        if self._keep_checkpoint and (self.path / CHECKPOINT).exists():
            self.release()
        else:
            self.discard()

    def publish(self) -> Path:
        """Rename to the final place; what stood there before goes only now, and the checkpoint last.

        Raises:
            InputError: it cannot be renamed; what was made stays where it is.
        """
        try:
            if self._overwrite and os.path.lexists(self.final):
                _remove(self._old)
                os.replace(self.final, self._old)
            os.replace(self.path, self.final)
        except OSError as error:
            self._undo_half_a_replacement()
            raise InputError(
                f"what was made cannot be brought to its place: {error.strerror or error}",
                where=str(self.final),
                hint=f"it is complete in '{self.path}': rename that",
            ) from error
        shutil.rmtree(self.final / CHECKPOINT, ignore_errors=True)
        _remove(self._old)
        self.release()
        return self.final

    def discard(self) -> None:
        """Remove the construction site."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Leave the construction site as it is, for a run that resumes."""
        if self._lock is not None:
            self._lock()

    def _made_and_locked(self) -> bool:
        """Make the construction site, lock it, and tell whether it was there before."""
        while True:
            self.final.parent.mkdir(parents=True, exist_ok=True)
            try:
                self.path.mkdir()
                found = False
            except FileExistsError:
                found = True
            if sys.platform == "win32":  # where a directory cannot be opened, nor renamed while a file in it is
                _warn(self.path, "not on Windows")
                return found
            descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
            self._lock = weakref.finalize(self, os.close, descriptor)
            _lock(descriptor, self.path)
            try:
                if os.path.samestat(os.fstat(descriptor), self.path.stat()):
                    return found
            except FileNotFoundError:
                pass  # renamed by a process that finished between the two calls
            self.release()

    def _undo_half_a_replacement(self) -> None:
        """Put back what a process that was killed between the two renames of :meth:`publish` had moved away."""
        if os.path.lexists(self._old) and not os.path.lexists(self.final):
            os.replace(self._old, self.final)


def require_free(directory: Path, *, overwrite: bool, resume: bool) -> None:
    """Raise :class:`InputError` where an output directory cannot take this name, before anything takes time."""
    if not os.path.lexists(directory):
        return
    if not overwrite:
        what = "there is a file of this name" if directory.is_file() else "the output directory exists"
        done = resume and _ours(directory)
        raise InputError(
            what + (": its run is complete, and there is nothing to resume" if done else ""),
            where=str(directory),
            hint="choose another"
            if directory.is_file()
            else "choose another, or pass --overwrite (overwrite=True in Python)",
        )
    if not _ours(directory):
        raise InputError(
            f"only a directory that pdc-fx made is overwritten, and in this there is no {RECIPE}",
            where=str(directory),
            hint="choose another, or move this away yourself",
        )


def _lock(descriptor: int, path: Path) -> None:
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(
            "another process is writing this output directory",
            where=str(path),
            hint="wait until it has finished, or choose another with -o",
        ) from error
    except OSError as error:
        _warn(path, str(error.strerror))


def _warn(path: Path, why: str) -> None:
    warnings.warn(
        f"'{path}' cannot be locked ({why}): see to it that no other run writes there", LockWarning, stacklevel=2
    )


def _ours(path: Path) -> bool:
    return path.is_dir() and (not any(path.iterdir()) or (path / RECIPE).is_file())


def _empty(folder: Path) -> None:
    """Remove what is in a folder, which stays, and with it the lock."""
    for path in folder.iterdir():
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
