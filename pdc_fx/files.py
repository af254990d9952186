"""Files that are never half written, and JSON that nobody vouches for."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from pdc_fx.errors import PdcError


def is_replaceable(path: Path) -> bool:
    """Whether a file may be renamed to this place: nothing stands there, or a regular file. A device or a folder would be lost."""
    return not path.exists() or path.is_file()  # in this order, since another writer may put its file there in between


def way_out(error: OSError) -> str:
    """What helps where a file could not be written.

    >>> way_out(OSError(errno.ENOSPC, "No space left on device")), way_out(OSError(errno.EROFS, "Read-only file system"))
    ('make room there', 'make it writable, or choose another place')
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "make room there"
    return "make it writable, or choose another place"


def replace_file(path: Path, *parts: bytes | memoryview) -> None:
    """Write ``parts`` beside ``path``, then rename: ``path`` is as it was, or complete. Its folder is made where it is missing.

    Raises:
        PdcError: it cannot be written; nothing is left beside.
    """
    if not is_replaceable(path):
        raise PdcError("what stands there is no regular file", where=str(path), hint="choose another path")
    beside = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.writing")  # another writer has another
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):  # a file system that is read-only refuses even to remove what is not there
            beside.unlink(missing_ok=True)
        raise PdcError(
            f"the file cannot be written: {error.strerror or error}",
            where=str(path),
            hint=f"{way_out(error)}; what was written before is complete",
        ) from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold an exclusive lock on a folder, which is made where it is missing; without effect where the system has no such locks."""
    with ExitStack() as stack:
        if sys.platform != "win32":
            import fcntl

            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                descriptor = os.open(folder, os.O_RDONLY)
                stack.callback(os.close, descriptor)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def parse_json(text: str) -> Any:
    """What a text of JSON holds.

    Raises:
        ValueError: it is none, or is nested too deeply for any file of ours.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for what is needed only meanwhile.

    Raises:
        PdcError: there is no room for it, or what was to be written there is not there.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
    except OSError as error:
        raise PdcError(
            f"a temporary file cannot be used: {error.strerror or error}",
            where=str(error.filename or ""),
            hint="make room in the folder for temporary files, or set TMPDIR to another",
        ) from error
