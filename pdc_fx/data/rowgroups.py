"""One column of bytes in Parquet files, by row: whole row groups are read, and kept while there is room.

A row group is the least that can be read of a Parquet file. ``datasets`` writes them of some 100 images, so a random row costs a
hundred; an order that stays within a window of row groups (:mod:`pdc_fx.data.order`) reads each of them once.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pdc_fx.data.order import Blocks
from pdc_fx.errors import InputError

CACHE_BYTES = 2**29
"""Encoded images that a process keeps of each set (512 MiB), or a single row group where one is larger than that."""


class RowGroups:
    """The bytes of one column.

    No file stays open, and what is kept belongs to the process that read it, so an object may be sent to other processes
    or be there when they fork.

    Args:
        files: in order, each with its metadata (``pyarrow.parquet.FileMetaData``).
        column: the dotted path of the column, ``image.bytes``.
    """

    def __init__(self, files: list[tuple[Path, Any]], column: str) -> None:
        self._files, self._column = files, column
        self._groups = [(f, g) for f, (_, metadata) in enumerate(files) for g in range(metadata.num_row_groups)]
        rows = [files[f][1].row_group(g).num_rows for f, g in self._groups]
        self._ends = np.cumsum(rows)
        sizes = [_column_bytes(files[f][1].row_group(g), column) for f, g in self._groups]
        self.blocks = Blocks(torch.from_numpy(self._ends - rows), torch.tensor(sizes))
        self.release()

    def release(self) -> None:
        """Keep nothing of what was read."""
        self._process, self._lock, self._room = os.getpid(), threading.Lock(), CACHE_BYTES
        self._kept: OrderedDict[int, list[bytes | None]] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        own = ("_process", "_lock", "_room", "_kept")
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.release()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def name(self, row: int) -> str:
        """Return the file and the row in it."""
        file = self._groups[self._group_of(row)][0]
        before = sum(metadata.num_rows for _, metadata in self._files[:file])
        return f"{self._files[file][0]}: row {row - before}, column {self._column!r}"

    def cell(self, row: int) -> bytes | None:
        """Return the bytes in ``row``.

        Raises:
            InputError: the file is damaged, or not there any more.
        """
        if self._process != os.getpid():  # forked: the parent's lock may be held for ever
            self.release()
        group = self._group_of(row)
        with self._lock:  # a row group that several threads want is read once
            cells = self._kept.pop(group, None)
            if cells is None:
                cells = self._read(group)
                self._room -= _bytes_in(cells)
                while self._room < 0 and self._kept:
                    self._room += _bytes_in(self._kept.popitem(last=False)[1])
            self._kept[group] = cells
        return cells[row - int(self.blocks.first[group])]

    def _group_of(self, row: int) -> int:
        return int(np.searchsorted(self._ends, row, side="right"))

    def _read(self, group: int) -> list[bytes | None]:
        import pyarrow
        from pyarrow import parquet

        file, number = self._groups[group]
        path, metadata = self._files[file]
        try:
            with parquet.ParquetFile(path, metadata=metadata) as opened:
                # Arrow's own threads do not survive a fork; ours decode meanwhile.
                table = opened.read_row_group(number, columns=[self._column], use_threads=False)
                cells: list[bytes | None] = (
                    table.flatten().column(0).to_pylist()
                )  # Arrow's buffers are up to twice as large
                return cells
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            raise unreadable(f"{path}: row group {number}", error) from error


def unreadable(where: str, error: Exception) -> InputError:
    """Return what to raise for a Parquet file, with what Arrow says of it on one line."""
    return InputError("a parquet file cannot be read", where=where, hint=" ".join(str(error).split()))


def _bytes_in(cells: list[bytes | None]) -> int:
    return sum(len(cell or b"") for cell in cells)


def _column_bytes(row_group: Any, column: str) -> int:
    chunks = (row_group.column(i) for i in range(row_group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)
