"""The order of the images in an epoch, and the seeds of its batches: pure functions of the seed, the epoch and the position."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WINDOW_BYTES = 3 * 2**27
"""Blocks are shuffled together by so many encoded bytes (384 MiB); a reader's cache must hold more than that."""


@dataclass(frozen=True, eq=False)
class Blocks:
    """Stretches of rows that are read together (the row groups of Parquet files).

    Attributes:
        first: int64 [number of blocks], the first row of each; the first is 0.
        size: int64 [number of blocks], encoded bytes of each.
    """

    first: Tensor
    size: Tensor


def seed_of(seed: int, *position: int) -> int:
    """Return a seed of 63 bits that depends on all numbers given, on their order and on how many there are.

    >>> len({seed_of(0), seed_of(0, 0), seed_of(0, 0, 0), seed_of(0, 0, 1), seed_of(0, 1, 0), seed_of(-1, 0, 0)})
    6
    """
    state = np.random.SeedSequence(seed % 2**64, spawn_key=position).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def shuffled(rows: Tensor, generator: torch.Generator, blocks: Blocks | None = None) -> Tensor:
    """Return a random permutation of ``0 .. len(rows) - 1``, int64.

    Every permutation is as likely where ``blocks`` are not given or hold no more than :data:`WINDOW_BYTES` together.
    Else random blocks form windows of about that size, the windows come one after the other, and the rows within each are
    in random order: every block is read once an epoch, and a batch mixes images of a whole window.

    Args:
        rows: int64, where each image of the set is in its store.

    >>> blocks = Blocks(torch.tensor([0, 2, 4]), torch.full((3,), WINDOW_BYTES))
    >>> sorted(shuffled(torch.arange(6), torch.Generator().manual_seed(0), blocks)[:2].tolist()) in ([0, 1], [2, 3], [4, 5])
    True
    """
    order = torch.randperm(len(rows), generator=generator)
    if blocks is None or int(blocks.size.sum()) <= WINDOW_BYTES:
        return order
    turns = torch.randperm(len(blocks.size), generator=generator)
    window = torch.empty_like(turns)
    window[turns] = (blocks.size[turns].cumsum(0) - 1) // WINDOW_BYTES
    block = torch.searchsorted(blocks.first, rows[order], right=True) - 1
    return order[torch.argsort(window[block], stable=True)]
