"""Checkpoints that survive: written beside and renamed, the last two kept, each with a checksum of its own.

A file is the SHA-256 of the rest, as 64 hexadecimal digits and a line break, and then what ``torch.save`` wrote. It is read with
``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pdc_fx.errors import ArtifactError
from pdc_fx.files import replace_file

KEPT = 2
_DIGITS = 64


class CheckpointWarning(UserWarning):
    """A checkpoint is damaged, and the one before it is used."""


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, in one folder.

    Attributes:
        directory: where they are; made with the first of them.
    """

    directory: Path

    def files(self) -> list[Path]:
        """The checkpoints that are there, the newest first."""
        return sorted(self.directory.glob("step-*.pt"), reverse=True)

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Write a checkpoint and remove all but the last two; those of later steps, too: damaged, or another run's.

        Raises:
            PdcError: it cannot be written; those before are as they were.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        path = self.directory / f"step-{step:09d}.pt"
        replace_file(path, hashlib.sha256(content).hexdigest().encode() + b"\n", content)
        files = self.files()
        now = files.index(path)
        for other in (*files[:now], *files[now + KEPT :]):
            other.unlink(missing_ok=True)
        return path

    def clear(self) -> None:
        """Remove all that are there."""
        for path in self.files():
            path.unlink(missing_ok=True)

    def load(self) -> dict[str, Any] | None:
        """The newest checkpoint that is whole, or None where there is none; a damaged one before it is named in a warning.

        Raises:
            ArtifactError: there are checkpoints, and all are damaged.
        """
        damaged = []
        for path in self.files():
            try:
                state = _read(path)
            except ArtifactError as error:
                damaged.append(error)
                continue
            for found in damaged:
                warnings.warn(f"{found}; going on from '{path.name}' instead", CheckpointWarning, stacklevel=2)
            return state
        if damaged:
            raise damaged[0]
        return None


def weights_digest(state: Mapping[str, Any]) -> str:
    """SHA-256 of the names and values of the tensors in a state dict.

    >>> same = weights_digest({"a": torch.ones(2)}) == weights_digest({"a": torch.ones(2)})
    >>> same, weights_digest({"a": torch.ones(2)}) == weights_digest({"a": torch.zeros(2)})
    (True, False)
    """
    hashed = hashlib.sha256()
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor):  # a module's extra state
            continue
        hashed.update(name.encode())
        hashed.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        data = path.read_bytes()
        if hashlib.sha256(memoryview(data)[_DIGITS + 1 :]).hexdigest().encode() != data[:_DIGITS]:
            raise ValueError("its checksum is another")
        state: Any = torch.load(io.BytesIO(data[_DIGITS + 1 :]), map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError("it holds no state")
    except Exception as error:  # torch's unpickler raises all kinds of them; code in a pickle is refused, not run
        raise ArtifactError(
            f"the checkpoint is damaged: {str(error).partition('. ')[0] or type(error).__name__}",
            where=str(path),
            hint="start again with --overwrite",
        ) from error
    return state
