"""The ONNX file on disk: complete and checked, or absent.

One file of protocol buffers ends at 2 GiB. A larger model keeps its weights in a second file beside the first, named after
what it holds, so that the rename of the first replaces both at once.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdc_fx.errors import ExportError, InputError
from pdc_fx.files import is_replaceable

EXTERNAL_ABOVE = 2**31 - 2**20
"""Bytes of weights above which they go into a file of their own; the graph needs the rest of the 2 GiB."""

_SMALLEST = 1024  # bytes; smaller tensors stay in the graph, where shape inference reads them


@dataclass(frozen=True)
class Stored:
    """What was written: the file, the one with its weights if there is one, their size together, the first one's SHA-256."""

    path: Path
    data: Path | None
    bytes: int
    sha256: str


def bytes_of(path: Path) -> int:
    """Size of an ONNX file and of those beside it that hold its weights."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    others = {e.value for tensor in graph.initializer for e in tensor.external_data if e.key == "location"}
    return sum(file.stat().st_size for file in (path, *(path.parent / other for other in others)))


def require_writable(path: Path) -> Path:
    """``path``.

    Raises:
        InputError: its directory does not exist, or it cannot be written.
    """
    if not path.parent.is_dir():
        raise InputError("the directory of the ONNX file does not exist", where=str(path.parent), hint="create it")
    if not is_replaceable(path) or not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError("the ONNX file cannot be written", where=str(path), hint="choose another path")
    return path


def store(proto: Any, path: Path) -> Stored:
    """Write an ``onnx.ModelProto`` beside, check it, then rename: whoever looks sees the old file or the whole new one.

    Raises:
        ExportError: it is not valid ONNX.
        InputError: it cannot be written.
    """
    external = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > EXTERNAL_ABOVE
    with staging_beside(path) as folder:
        data = _write_weights(proto, folder, path.name) if external else None
        graph = proto.SerializeToString(deterministic=True)
        _write(folder / path.name, [graph])
        check(folder / path.name if external else proto)
        size = len(graph) + (data.stat().st_size if data else 0)
        publish(folder, path)
    return Stored(path, data and path.with_name(data.name), size, hashlib.sha256(graph).hexdigest())


@contextmanager
def staging_beside(path: Path) -> Iterator[Path]:
    """A folder beside ``path`` for what is not complete yet; it goes at the end.

    Raises:
        InputError: it cannot be made, or something in it cannot be written.
    """
    require_writable(path)
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent, ignore_cleanup_errors=True
        ) as folder:
            yield Path(folder)
    except OSError as error:
        what = f"the ONNX file cannot be written: {error.strerror or error}"
        raise InputError(what, where=str(path), hint="what was there before is as it was") from error


def publish(folder: Path, path: Path) -> None:
    """Move the file of that name, and its weights if it has some, out of ``folder``; an earlier file's weights go."""
    data = [file for file in folder.iterdir() if file.name != path.name]
    for file in data:
        file.replace(path.with_name(file.name))
    (folder / path.name).replace(path)
    ours = re.compile(re.escape(path.name) + r"-[0-9a-f]{12}\.data")
    for beside in path.parent.iterdir():
        if ours.fullmatch(beside.name) and beside.name not in {file.name for file in data}:
            beside.unlink()


def check(model: Any) -> None:
    """The full check of ``onnx.checker``, shape inference included, of a model or of a file.

    Raises:
        ExportError: it is not valid ONNX.
    """
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported model is not valid ONNX: {str(error).splitlines()[0]}") from error


def _write_weights(proto: Any, folder: Path, name: str) -> Path:
    """Move the large tensors of ``proto`` into a file in ``folder``, named after the SHA-256 of its content."""
    from onnx.external_data_helper import set_external_data

    tensors = [tensor for tensor in proto.graph.initializer if len(tensor.raw_data) >= _SMALLEST]
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.raw_data)
    data = folder / f"{name}-{digest.hexdigest()[:12]}.data"
    offset = 0

    def contents() -> Iterator[bytes]:
        nonlocal offset
        for tensor in tensors:
            content = tensor.raw_data
            set_external_data(tensor, data.name, offset=offset, length=len(content))
            tensor.ClearField("raw_data")
            offset += len(content)
            yield content

    _write(data, contents())
    return data


def _write(path: Path, parts: Any) -> None:
    with path.open("xb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o666 & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
