"""Batches in order: the same on any number of workers and ranks and from any start; and workers that fail."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from data_files import different_sizes
from torch import Tensor

from pdc_fx.data import (
    ImageData,
    ImageSet,
    batches_per_epoch,
    evaluation_batches,
    normalize,
    open_data,
    sample_images,
    training_batches,
)
from pdc_fx.data.augment import AUGMENTATIONS
from pdc_fx.data.crops import crop_batch, crop_box, random_resized_crop
from pdc_fx.data.order import WINDOW_BYTES, Blocks, shuffled
from pdc_fx.data.stores import InMemoryStore
from pdc_fx.data.workers import in_order
from pdc_fx.errors import InputError, PdcError

Batches = list[tuple[Tensor, Tensor]]
SHAPE = (3, 16, 16)


def same(one: Batches, other: Batches) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, c) and torch.equal(b, d) for (a, b), (c, d) in zip(one, other, strict=True)
    )


def epoch_of(data: ImageData, size: int = 4, epoch: int = 0, seed: int = 0, **options: Any) -> Batches:
    return list(training_batches(data, size, seed=seed, epoch=epoch, **options))


@pytest.fixture(params=["folder", "parquet"])
def lazy(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ImageData:
    monkeypatch.setattr("pdc_fx.data.assemble.IN_MEMORY_BYTES", 0)
    spec = different_sizes(tmp_path, request.param)
    return open_data(spec, input_shape=SHAPE).with_augmentation("imagenet")


# -------------------------------------------------------------------------------------------------------- one epoch, always
@pytest.mark.parametrize(("workers", "context"), [(1, None), (2, None), (2, "spawn")])
def test_workers_change_nothing(lazy: ImageData, workers: int, context: str | None) -> None:
    assert same(epoch_of(lazy, workers=workers, context=context), epoch_of(lazy))
    evaluated = list(evaluation_batches(lazy.test, lazy, 4, workers=workers, context=context))
    assert same(evaluated, list(evaluation_batches(lazy.test, lazy, 4)))


@pytest.mark.parametrize("preset", AUGMENTATIONS)
@pytest.mark.parametrize("start", [0, 2, 6])
def test_the_rest_of_an_epoch(lazy: ImageData, preset: str, start: int) -> None:
    data = lazy.with_augmentation(preset)
    assert same(epoch_of(data, start=start), epoch_of(data)[start:])


@pytest.mark.parametrize("preset", AUGMENTATIONS)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_are_one_process(lazy: ImageData, preset: str, world_size: int) -> None:
    data = lazy.with_augmentation(preset)
    ranks = [epoch_of(data, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert all(len(labels) == 4 // world_size for rank in ranks for _, labels in rank)
    together = [tuple(torch.cat(parts) for parts in zip(*shares, strict=True)) for shares in zip(*ranks, strict=True)]
    assert same(together, epoch_of(data))  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "size"), [((3, 32, 32), 500), ((3, 224, 224), 111), ((3, 8000, 8000), 1)])
def test_large_images_are_evaluated_in_small_batches(shape: tuple[int, int, int], size: int) -> None:
    """Maps of 500 of them would fill the memory, and nobody could ask for less."""

    class Many:
        """600 images of which one pixel is made."""

        def __len__(self) -> int:
            return 600

        def decodes(self) -> bool:
            return False

        def fetch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
            return torch.zeros(len(indices), 3, 1, 1, dtype=torch.uint8), indices

    data: Any = SimpleNamespace(image_shape=shape, mean=(0.0,) * 3, std=(1.0,) * 3)
    images: Any = Many()
    assert len(next(evaluation_batches(images, data))[1]) == size


def test_ranks_share_the_evaluation(lazy: ImageData) -> None:
    shares = [list(evaluation_batches(lazy.train, lazy, 4, rank=rank, world_size=3)) for rank in range(3)]
    assert [len(share) for share in shares] == [3, 2, 2]
    whole = list(evaluation_batches(lazy.train, lazy, 4))
    assert same([shares[k % 3][k // 3] for k in range(7)], whole)
    assert torch.equal(torch.cat([labels for _, labels in whole]), lazy.train.labels)


def test_samples_are_of_all_classes_where_images_come_class_by_class() -> None:
    data = open_data("digits")
    by_class = replace(data, train=data.train.subset(data.train.labels.argsort()))
    few = sample_images(by_class, 20)
    [(images, labels)] = evaluation_batches(by_class.train, by_class, len(by_class.train))
    found = torch.cdist(few.flatten(1), images.flatten(1)).argmin(1)
    assert torch.bincount(labels[found], minlength=10).tolist() == [2] * 10
    assert torch.equal(few, sample_images(by_class, 20))


def test_skipped_batches_are_not_read(lazy: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    fetch = ImageSet.fetch
    monkeypatch.setattr(ImageSet, "fetch", lambda self, i, c=None: read.extend(i.tolist()) or fetch(self, i, c))
    rest = training_batches(lazy, 4, seed=0, epoch=0, start=5)
    assert not read  # nor is anything before it is asked for
    list(rest)
    assert len(read) == 4


def test_epochs_seeds_and_batches_differ() -> None:
    images = ImageSet.of(torch.arange(64, dtype=torch.uint8).view(-1, 1, 1, 1), torch.arange(64))
    data = ImageData("numbers", images, images, tuple(map(str, range(64))), (0.5,), (0.5,))
    orders = [
        torch.cat([labels for _, labels in epoch_of(data, epoch=epoch, seed=seed)]).tolist()
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert all(sorted(order) == list(range(64)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    alike = replace(data, train=ImageSet.of(torch.zeros(64, 1, 9, 9, dtype=torch.uint8) + 9, images.labels))
    ramp = replace(
        alike, train=ImageSet.of(torch.arange(81).view(1, 1, 9, 9).expand(64, -1, -1, -1).byte(), images.labels)
    )
    for preset in ("cifar", "imagenet"):
        batches = epoch_of(ramp.with_augmentation(preset), 16)
        assert not torch.equal(batches[0][0], batches[1][0])  # the same pictures, other crops


def test_batches_are_normalised_pixels(lazy: ImageData) -> None:
    for images, labels in epoch_of(lazy.with_augmentation("none")):
        assert (images.dtype, images.shape, labels.dtype) == (torch.float32, (4, *SHAPE), torch.int64)
    images, _ = next(evaluation_batches(lazy.test, lazy, 3))
    assert torch.equal(images, normalize(lazy.test.fetch(torch.arange(3))[0], lazy.mean, lazy.std))


@pytest.mark.parametrize(
    ("images", "size", "drop_last", "sizes"),
    [(10, 4, True, [4, 4]), (10, 4, False, [4, 4, 2]), (8, 4, False, [4, 4]), (3, 4, True, [3]), (3, 4, False, [3])],
)
def test_how_many_batches(images: int, size: int, drop_last: bool, sizes: list[int]) -> None:
    part = ImageSet.of(torch.zeros(images, 1, 2, 2, dtype=torch.uint8), torch.zeros(images, dtype=torch.int64))
    data = ImageData("zeros", part, part, ("zero",), (0.5,), (0.5,))
    assert [len(labels) for _, labels in epoch_of(data, size, drop_last=drop_last)] == sizes
    assert batches_per_epoch(images, size, drop_last=drop_last) == len(sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "batch_size must be at least 1"),
        ({"epoch": -1}, "no batch 0 of 359 in epoch -1"),
        ({"start": 360}, "no batch 360 of 359 in epoch 0"),
        ({"rank": 2, "world_size": 2}, "no rank 2 among 2 processes"),
        ({"world_size": 3}, "batches of 4 and 4 images cannot be shared equally .3 processes"),
        ({"world_size": 2, "drop_last": False}, "batches of 4 and 1 images cannot be shared equally"),
        ({"workers": -1}, "workers must not be negative"),
    ],
)
def test_bad_numbers_are_refused_at_once(options: dict[str, Any], message: str) -> None:
    data, size = open_data("digits"), options.pop("size", 4)
    with pytest.raises(InputError, match=message):
        training_batches(data, size, **{"seed": 0, "epoch": 0, **options})


# ------------------------------------------------------------------------------------------------------------------ crops
@pytest.mark.parametrize("size", [(375, 500), (500, 333), (8, 8), (1, 1), (10, 400), (400, 10)])
def test_crop_boxes_are_those_of_torchvision(size: tuple[int, int]) -> None:
    from torchvision.transforms import v2

    transform, image = v2.RandomResizedCrop(224), torch.zeros(3, *size, dtype=torch.uint8)
    state = torch.get_rng_state()
    for seed in range(300):
        found = crop_box(*size, seed)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(seed)
        expected = transform.make_params([image])
        torch.set_rng_state(state)
        assert found == tuple(expected[key] for key in ("top", "left", "height", "width"))


def test_crops_of_a_batch() -> None:
    images, seeds = torch.randint(256, (3, 3, 9, 12), dtype=torch.uint8), torch.tensor([5, 6, 5])
    crops = crop_batch(images, seeds)
    assert crops.shape == images.shape
    assert all(
        torch.equal(crop, random_resized_crop(image, 9, 12, int(seed)))
        for crop, image, seed in zip(crops, images, seeds, strict=True)
    )
    assert crop_batch(images[:0], seeds[:0]).shape == (0, 3, 9, 12)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_a_set_in_memory_is_cropped_from_its_files(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = different_sizes(tmp_path, kind)
    small = open_data(spec, input_shape=SHAPE)
    monkeypatch.setattr("pdc_fx.data.assemble.IN_MEMORY_BYTES", 0)
    large = open_data(spec, input_shape=SHAPE)
    assert (small.train.in_memory, large.train.in_memory) == (True, False)
    for preset in AUGMENTATIONS:
        assert same(*(epoch_of(data.with_augmentation(preset)) for data in (small, large)))
    assert (small.train.decodes("cifar"), small.train.decodes("imagenet")) == (False, True)


def test_images_that_come_decoded_are_cropped_and_resized_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    small = open_data("digits", input_shape=SHAPE)
    monkeypatch.setattr("pdc_fx.data.assemble.IN_MEMORY_BYTES", 0)
    large = open_data("digits", input_shape=SHAPE)
    assert (small.train.in_memory, large.train.in_memory) == (True, False)
    for preset in ("none", "imagenet"):
        ends = (epoch_of(data.with_augmentation(preset), 64, start=20) for data in (small, large))
        assert same(*ends)


# --------------------------------------------------------------------------------------------------------- orders in windows
def test_an_order_in_windows() -> None:
    groups, rows = 40, 26
    blocks = Blocks(torch.arange(groups) * rows, torch.full((groups,), WINDOW_BYTES // 8))
    kept = torch.arange(groups * rows)[::2]  # a subset, as after a hold-out
    order = shuffled(kept, torch.Generator().manual_seed(0), blocks)
    assert torch.equal(order.sort().values, torch.arange(len(kept)))
    block = kept[order] // rows
    spans = [(block == b).nonzero().flatten() for b in range(groups)]
    window = 8 * rows // 2
    assert all(int(span.max()) // window == int(span.min()) // window for span in spans)  # each is read in one window
    assert len(block[:window].unique()) == 8
    assert sorted(block[:window].unique().tolist()) != list(range(8))  # from all over the files
    assert (block[:window].diff() != 0).float().mean() > 0.7  # and mixed
    other = shuffled(kept, torch.Generator().manual_seed(1), blocks)
    assert not torch.equal(order, other)
    small = Blocks(blocks.first, torch.ones(groups, dtype=torch.int64))
    assert torch.equal(
        shuffled(kept, torch.Generator().manual_seed(0), small), shuffled(kept, torch.Generator().manual_seed(0))
    )


def test_row_groups_are_read_once_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for a few row groups of three images, windows keep the order to what fits."""
    monkeypatch.setattr("pdc_fx.data.assemble.IN_MEMORY_BYTES", 0)
    data = open_data(different_sizes(tmp_path, "parquet", 60), input_shape=SHAPE)
    blocks = data.train._store.blocks
    assert blocks is not None
    assert len(blocks.first) == 20
    monkeypatch.setattr("pdc_fx.data.order.WINDOW_BYTES", int(blocks.size.sum()) // 5)
    rows: Any = data.train._store._source._rows  # type: ignore[attr-defined]
    rows._room = int(blocks.size.sum()) * 2 // 5
    room, read, lowest = rows._room, [], rows._room
    original = type(rows)._read

    def counted(self: Any, group: int) -> Any:
        nonlocal lowest
        read.append(group)
        lowest = min(lowest, self._room)
        return original(self, group)

    monkeypatch.setattr(type(rows), "_read", counted)
    assert len(epoch_of(data, 4)) == 15
    assert sorted(read) == list(range(20))
    assert 0 <= lowest < room / 2  # it was full
    assert len(rows._kept) < 20


# --------------------------------------------------------------------------------------------------------- what goes wrong
def killed_at_three(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_worker_that_dies(context: str) -> None:
    seen: list[int] = []
    with pytest.raises(PdcError, match=r"a data worker process died .*ran out of memory .*use fewer workers") as caught:
        seen.extend(in_order(killed_at_three, range(100), 2, context))
    assert seen == list(range(len(seen)))
    assert "\n" not in str(caught.value)


def test_a_worker_killed_while_training(lazy: ImageData) -> None:
    import multiprocessing

    batches = training_batches(lazy, 1, seed=0, epoch=0, workers=2, context="fork")
    next(batches)
    for process in multiprocessing.active_children():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(0.2)  # nothing is raised here, in the caller's own code
    with pytest.raises(PdcError, match="a data worker process died"):
        list(batches)


def test_a_corrupt_image_is_named_by_a_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdc_fx.data.assemble.IN_MEMORY_BYTES", 0)
    data = open_data(different_sizes(tmp_path, "folder"), input_shape=SHAPE)
    file = tmp_path / "train" / "dog" / "005.JPEG"
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(
        InputError, match=r"an image cannot be read \[.*dog.005\.JPEG\]; replace or remove it"
    ) as caught:
        epoch_of(data, workers=2)
    assert "\n" not in str(caught.value)


def test_workers_end_with_their_reader(lazy: ImageData) -> None:
    import multiprocessing

    before = set(multiprocessing.active_children())
    batches = training_batches(lazy, 4, seed=0, epoch=0, workers=2)
    next(batches)
    assert len(set(multiprocessing.active_children()) - before) == 2
    batches.close()  # type: ignore[attr-defined]
    assert set(multiprocessing.active_children()) == before


ORPHANS = """
import os, time
from pdc_fx.data.workers import in_order
def work(i): return os.getpid()
results = in_order(work, range(10**6), 2, "fork")
print(*{next(results) for _ in range(20)}, flush=True)
os.kill(os.getpid(), 9)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks at processes through /proc")
def test_workers_do_not_outlive_a_killed_parent() -> None:
    import subprocess
    import sys

    run = subprocess.run([sys.executable, "-c", ORPHANS], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == -signal.SIGKILL, run.stderr
    pids = [int(pid) for pid in run.stdout.split()]
    assert pids
    deadline = time.monotonic() + 10
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, pids))


def test_no_worker_is_started_for_images_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdc_fx.data.workers.ProcessPoolExecutor", lambda *_: pytest.fail("started"))
    data = open_data("digits")
    assert isinstance(data.train._store, InMemoryStore)
    assert same(epoch_of(data, 64, workers=2), epoch_of(data, 64))


# ------------------------------------------------------------------------------------------------------ the real CIFAR-10
@pytest.mark.slow
def test_cifar10_lazily_on_workers(shared_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = f"parquet:{shared_dir / 'data/cifar10'}"
    whole = open_data(spec)
    monkeypatch.setattr("pdc_fx.data.assemble.IN_MEMORY_BYTES", 0)
    lazy = open_data(spec)
    expected = training_batches(whole, 500, seed=0, epoch=3, start=95)
    assert same(list(training_batches(lazy, 500, seed=0, epoch=3, start=95, workers=2)), list(expected))
