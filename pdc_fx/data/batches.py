"""Batches in order: what a training loop reads.

Everything random about a batch is a function of ``(seed, epoch, number of the batch)``: the order of the images is drawn once
an epoch, and each batch draws its crops and mirrorings from a generator of its own, for all its images even where a rank
takes only some. So a run that stopped in an epoch goes on with ``start`` bit for bit, on any number of workers and ranks.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pdc_fx.data.augment import Draws, normalize
from pdc_fx.data.images import ImageData, ImageSet
from pdc_fx.data.order import seed_of
from pdc_fx.data.workers import in_order
from pdc_fx.errors import InputError


def batches_per_epoch(images: int, batch_size: int, *, drop_last: bool = True) -> int:
    """Return how many batches :func:`training_batches` gives of so many images, from the start of an epoch.

    A last batch with fewer images is left out (batch norm wants full ones), unless it is the only one.

    >>> batches_per_epoch(10, 4), batches_per_epoch(10, 4, drop_last=False), batches_per_epoch(3, 4)
    (2, 3, 1)
    """
    _check(batch_size, 0, 1)
    return max(images // batch_size, min(images, 1)) if drop_last else -(-images // batch_size)


def training_batches(
    data: ImageData,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    drop_last: bool = True,
    device: torch.device | str = "cpu",
    context: str | None = None,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield the batches of one epoch over ``data.train``: shuffled, augmented by ``data.augmentation``, normalised.

    Args:
        batch_size: images of a batch, over all ranks together.
        seed: of the order and the augmentation.
        epoch: from 0; another epoch has another order and other crops.
        start: the first batch to give; those before it are not read.
        workers: processes that decode ahead; 0 decodes in this one, on its threads. None is started where there is nothing to
            decode (images in memory, no resized crop). Each holds up to two batches ready, and of Parquet files up to
            :data:`pdc_fx.data.rowgroups.CACHE_BYTES` of encoded images.
        rank, world_size: this process takes the ``rank``-th of ``world_size`` equal stretches of each batch; put one after the
            other, in order of ranks, they are the batch that a single process gets.
        drop_last: leave out a last batch with fewer images; see :func:`batches_per_epoch`.
        device: where the batches go. Images travel as uint8 and are normalised there.
        context: how worker processes start, ``fork``, ``forkserver`` or ``spawn``; the platform's own way when not given.

    Yields:
        Images, float32 [B, C, H, W], and labels, int64 [B], with ``B = batch_size / world_size``.

    Raises:
        InputError: a number out of range, a batch that the ranks cannot share equally, an image that cannot be read.
        PdcError: a worker process died.

    >>> from pdc_fx.data import open_data
    >>> data = open_data("digits")
    >>> images, labels = next(training_batches(data, 64, seed=0, epoch=0))
    >>> images.shape, labels.shape
    (torch.Size([64, 1, 8, 8]), torch.Size([64]))
    >>> all_but_two = training_batches(data, 64, seed=0, epoch=0, start=2)
    >>> len(list(all_but_two)), batches_per_epoch(len(data.train), 64)
    (20, 22)
    """
    count = batches_per_epoch(len(data.train), batch_size, drop_last=drop_last)
    _check(batch_size, rank, world_size)
    if epoch < 0 or not 0 <= start <= count:
        raise InputError(f"no batch {start} of {count} in epoch {epoch}", hint="both count from 0")
    smallest = min(batch_size, len(data.train) - (count - 1) * batch_size)
    if batch_size % world_size or smallest % world_size:
        raise InputError(
            f"batches of {batch_size} and {smallest} images cannot be shared equally",
            where=f"{world_size} processes",
            hint="choose a batch size they divide, and drop_last=True",
        )
    order = data.train.shuffled(torch.Generator().manual_seed(seed_of(seed, epoch)), data.augmentation)
    requests = (
        _Request(order[k * batch_size : (k + 1) * batch_size], seed_of(seed, epoch, k), rank, world_size)
        for k in range(start, count)
    )
    work = workers if data.train.decodes(data.augmentation) else min(workers, 0)
    return _on_device(in_order(_Training(data.train, data.augmentation), requests, work, context), data, device)


def evaluation_batches(
    images: ImageSet,
    data: ImageData,
    batch_size: int | None = None,
    *,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | str = "cpu",
    context: str | None = None,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Yield all of ``images`` once, in their order, not augmented, normalised as ``data`` says.

    Args:
        images: ``data.test``, or what was held out.
        batch_size: 500 small images, or as many as have 2^24 values (111 of 3x224x224), where not given.
        rank, world_size: this process takes every ``world_size``-th batch, from the ``rank``-th on.
        workers, device, context: as in :func:`training_batches`.

    Yields:
        Images, float32 [B, C, H, W], and labels, int64 [B]; the last batch may be smaller.

    Raises:
        InputError, PdcError: as :func:`training_batches`.

    >>> from pdc_fx.data import open_data
    >>> data = open_data("digits")
    >>> [len(labels) for _, labels in evaluation_batches(data.test, data, 100)]
    [100, 100, 100, 60]
    """
    if batch_size is None:
        batch_size = max(1, min(500, 2**24 // math.prod(data.image_shape)))
    _check(batch_size, rank, world_size)
    starts = range(rank * batch_size, len(images), world_size * batch_size)
    requests = (torch.arange(first, min(first + batch_size, len(images))) for first in starts)
    work = workers if images.decodes() else min(workers, 0)
    return _on_device(in_order(images.fetch, requests, work, context), data, device)


@dataclass(frozen=True)
class _Request:
    """One batch: the images of all ranks, what its random numbers come from, and which share of it is wanted."""

    indices: Tensor
    seed: int
    rank: int
    world_size: int


@dataclass(frozen=True)
class _Training:
    """From a request to augmented pixels, in whatever process."""

    images: ImageSet
    preset: str

    def __call__(self, request: _Request) -> tuple[Tensor, Tensor]:
        draws = Draws.of(self.preset, len(request.indices), torch.Generator().manual_seed(request.seed))
        size = len(request.indices) // request.world_size
        share = slice(request.rank * size, (request.rank + 1) * size)
        pixels, labels = self.images.fetch(request.indices[share], draws[share].crops)
        return draws[share].crop_and_flip(pixels), labels


def _on_device(
    batches: Iterator[tuple[Tensor, Tensor]], data: ImageData, device: torch.device | str
) -> Generator[tuple[Tensor, Tensor], None, None]:
    for pixels, labels in batches:
        yield normalize(pixels.to(device), data.mean, data.std), labels.to(device)


def _check(batch_size: int, rank: int, world_size: int) -> None:
    if batch_size < 1:
        raise InputError("batch_size must be at least 1", where=str(batch_size))
    if not 0 <= rank < world_size:
        raise InputError(f"no rank {rank} among {world_size} processes", hint="ranks count from 0")


def sample_images(data: ImageData, count: int) -> Tensor:
    """``count`` training images, always the same, prepared as for evaluation: shape ``(count, C, H, W)``.

    Every class gives in proportion to its size: image folders come class by class, so that the first ones would be of one kind.

    Raises:
        InputError: there are not so many, or fewer than two are asked for.

    >>> from pdc_fx.data import open_data
    >>> sample_images(open_data("digits"), 40).shape
    torch.Size([40, 1, 8, 8])
    """
    total = len(data.train)
    if not 2 <= count <= total:
        raise InputError(
            f"cannot calibrate on {count} of {total} training images", hint=f"choose between 2 and {total}"
        )
    chosen = data.train if count == total else data.hold_out(count)[1]
    return torch.cat([images for images, _ in evaluation_batches(chosen, data)])
