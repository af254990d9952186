"""Cluster means of many tensors at once: each position of a tied axis becomes the mean of its cluster.

A tensor of which axis ``d`` is tied is read as rows, one per position of ``d``. Rows of one length are laid under each other in a
table, whatever tensor they come from, so that a few operations serve a whole network. For the rows ``x_1 .. x_m`` of a cluster

    mean = x_1 - ((x_1 - x_1) + (x_1 - x_2) + .. + (x_1 - x_m)) / m

is computed once and then copied to each of them, so that they are identical by construction. The sum in brackets is one
``embedding_bag``: a gather and a segment reduction in one kernel, with a weight of +1 for ``x_1`` and of -1 for ``x_j``.

Written in this way the mean of equal numbers is that number, bit for bit, which ``(a + a + a) / 3`` is not: all differences are
+0, and ``x_1 - 0 = x_1`` (-0 too). A tied tensor is thus not changed, and projecting twice is projecting once. (That the sum in
brackets is 0 does not mean that all are equal, so that nothing is skipped.)

What need not have that property (gradients) is averaged plainly, in fewer operations: :meth:`ClusterMeans.average`.

Half precision is accumulated in float32. No table is more than a quarter of all that is projected, so that what they need in memory
stays bounded; tensors that are larger are cut across their rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from pdc_fx.passes.axes import MergedAxis

TABLE_BYTES = 1 << 20
"""The largest table; what is larger by itself stays where it is and is not copied."""


@dataclass(frozen=True)
class _Index:
    """How the rows of a table become means, ``n`` rows in ``c`` clusters; int32.

    Attributes:
        first: shape ``(c,)``; the row that represents each cluster.
        cluster: shape ``(n,)``; the cluster of each row.
        pairs: shape ``(2 (n - c),)``; ``x_1, x_2, x_1, x_3, ..`` of one cluster after the other.
        signs: as many; +1 and -1 in turn.
        pair_ends: shape ``(c + 1,)``; where the pairs of each cluster begin, and the end of all.
        sizes: shape ``(c, 1)``.
        members: shape ``(n,)``; the rows of one cluster after the other.
        member_ends: shape ``(c + 1,)``; as ``pair_ends``, for the members.
    """

    first: Tensor
    cluster: Tensor
    pairs: Tensor
    signs: Tensor
    pair_ends: Tensor
    sizes: Tensor
    members: Tensor
    member_ends: Tensor

    def means(self, values: Tensor) -> Tensor:
        """Shape ``(c, ..)``; sums over numbers of members."""
        return torch.nn.functional.embedding_bag(
            self.members, values, self.member_ends, mode="mean", include_last_offset=True
        )

    def exact_means(self, values: Tensor) -> Tensor:
        """The same, where the mean of equal numbers is that number."""
        deviations = torch.nn.functional.embedding_bag(
            self.pairs, values, self.pair_ends, mode="sum", per_sample_weights=self.signs, include_last_offset=True
        )
        return values.index_select(0, self.first).addcdiv_(deviations, self.sizes, value=-1)


_Means = Callable[[_Index, Tensor], Tensor]


@dataclass(frozen=True)
class _Piece:
    """Rows of a tensor, or a stretch of each of them: a view of shape ``(size, ..)``."""

    axis: int
    rows: Tensor

    @property
    def width(self) -> int:
        """Elements of a row."""
        return self.rows.numel() // self.rows.shape[0]

    @property
    def bytes(self) -> int:
        """In a table."""
        return self.rows.numel() * _accumulator(self.rows.dtype).itemsize

    def cut(self, limit: int) -> Iterator[_Piece]:
        """Stretches of about ``limit`` bytes; columns are independent of each other."""
        parts = -(-self.bytes // max(limit, 1))
        if parts <= 1:
            yield self
            return
        for stretch in self.rows.chunk(parts, dim=1):
            yield _Piece(self.axis, stretch)


class ClusterMeans:
    """Sets the positions of each cluster to their mean, along all ``axes`` of all tensors.

    >>> axis = MergedAxis("weight", 0, "producer", "layer", np.array([0, 0, 2, 0]))
    >>> weight = torch.tensor([[1.0, 2.0], [3.0, 4.0], [9.0, 9.0], [5.0, 0.0]])
    >>> ClusterMeans([axis]).project({"weight": weight})
    >>> weight.tolist()
    [[3.0, 2.0], [3.0, 2.0], [9.0, 9.0], [3.0, 2.0]]
    """

    def __init__(self, axes: Sequence[MergedAxis]) -> None:
        self._axes = tuple(axes)
        # A tensor with several tied axes is projected along one after the other: the means along each commute.
        seen: dict[str, int] = defaultdict(int)
        self._turns: list[int] = []
        for axis in self._axes:
            self._turns.append(seen[axis.tensor])
            seen[axis.tensor] += 1
        # Which tensors are at hand may change (parameters without a gradient), but rarely does.
        self._index = lru_cache(maxsize=2048)(self._build_index)

    def project(self, tensors: Mapping[str, Tensor]) -> None:
        """Set in place those of the tensors that are at hand; of any dtype, device and memory format. What is tied stays as it is."""
        self._each_table(tensors, _Index.exact_means)

    def average(self, tensors: Mapping[str, Tensor]) -> None:
        """As :meth:`project` to within rounding, and quicker on what is not tied yet."""
        self._each_table(tensors, _Index.means)

    @torch.no_grad()
    def _each_table(self, tensors: Mapping[str, Tensor], means: _Means) -> None:
        for turn in range(max(self._turns, default=-1) + 1):
            pieces = list(self._pieces(tensors, turn))
            for table in _tables(pieces, sum(piece.bytes for piece in pieces) // 4):
                self._set(table, means)

    def _pieces(self, tensors: Mapping[str, Tensor], turn: int) -> Iterator[_Piece]:
        for number, axis in enumerate(self._axes):
            tensor = tensors.get(axis.tensor)
            if self._turns[number] == turn and tensor is not None and tensor.numel() > 0:
                yield _Piece(number, _as_rows(tensor, axis.dim))

    def _set(self, table: Sequence[_Piece], means: _Means) -> None:
        rows = [piece.rows for piece in table]
        dtype = _accumulator(rows[0].dtype)
        in_place = len(rows) == 1 and rows[0].dim() == 2 and rows[0].is_contiguous() and rows[0].dtype == dtype
        values = rows[0] if in_place else torch.cat([part.flatten(1) for part in rows]).to(dtype)
        index = self._index(tuple(piece.axis for piece in table), dtype, values.device)
        torch.index_select(means(index, values), 0, index.cluster, out=values)
        if in_place:
            return
        shares = values.split_with_sizes([part.shape[0] for part in rows])
        torch._foreach_copy_(rows, [share.view(part.shape) for share, part in zip(shares, rows, strict=True)])

    def _build_index(self, axes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> _Index:
        stand_ins = [self._axes[number].stand_in for number in axes]
        begins = np.cumsum([0, *map(len, stand_ins)])
        stand_in = np.concatenate([rows + begin for rows, begin in zip(stand_ins, begins, strict=False)])
        first, cluster = np.unique(stand_in, return_inverse=True)
        others = np.flatnonzero(stand_in != np.arange(len(stand_in)))
        others = others[np.argsort(cluster[others], kind="stable")]
        sizes = np.bincount(cluster)
        pairs = np.stack([stand_in[others], others], axis=1).reshape(-1)

        def integers(values: object) -> Tensor:
            return torch.as_tensor(values, dtype=torch.int32, device=device)

        return _Index(
            first=integers(first),
            cluster=integers(cluster),
            pairs=integers(pairs),
            signs=torch.tensor([1.0, -1.0], dtype=dtype, device=device).repeat(len(others)),
            pair_ends=integers(np.concatenate([[0], np.cumsum(2 * (sizes - 1))])),
            sizes=torch.as_tensor(sizes, dtype=dtype, device=device).unsqueeze(1),
            members=integers(np.argsort(cluster, kind="stable")),
            member_ends=integers(np.concatenate([[0], np.cumsum(sizes)])),
        )


def _tables(pieces: Iterable[_Piece], most: int) -> Iterator[list[_Piece]]:
    """Pieces of one width, dtype and device together up to the size of a table; nothing of more than ``most`` bytes."""
    limit = min(TABLE_BYTES, most)
    tables: dict[tuple[int, torch.dtype, torch.device], list[_Piece]] = defaultdict(list)
    filled: dict[tuple[int, torch.dtype, torch.device], int] = defaultdict(int)
    for piece in (part for whole in pieces for part in whole.cut(most)):
        key = piece.width, piece.rows.dtype, piece.rows.device
        if filled[key] + piece.bytes > limit and tables[key]:
            yield tables.pop(key)
            filled[key] = 0
        tables[key].append(piece)
        filled[key] += piece.bytes
    yield from filter(None, tables.values())


def _as_rows(tensor: Tensor, dim: int) -> Tensor:
    """A view of shape ``(size, ..)``, the other axes as they lie in memory, joined where that is possible."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.dim() == 1:
        return tensor.unsqueeze(1)
    rest = sorted((d for d in range(tensor.dim()) if d != dim), key=tensor.stride, reverse=True)
    rows = tensor.permute(dim, *rest)
    return rows.flatten(1) if rows.is_contiguous() else rows


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which means are taken."""
    small = dtype.is_floating_point and dtype.itemsize <= 4
    return torch.float32 if small else torch.float64
