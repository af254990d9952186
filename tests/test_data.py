"""Opening data of every kind, batches, hold-outs and augmentation; and one clear message for each kind of bad data."""

from __future__ import annotations

import hashlib
import pickle
import re
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import CLASSES, encoded, picture, write_parquet
from PIL import Image
from pyarrow import parquet
from torch.utils.data import DataLoader

from pdc_fx.data import (
    AUGMENTATIONS,
    Augment,
    ImageData,
    ImageSet,
    collate,
    crop_and_flip,
    normalize,
    open_data,
    resize_and_crop,
)
from pdc_fx.data.assemble import IMAGENET_MEAN, IMAGENET_STD
from pdc_fx.data.bundled import FASHION_MNIST_MEAN
from pdc_fx.errors import InputError


@pytest.fixture(autouse=True)
def offline_and_clean(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """No test here may reach a network; temporary files go to a folder of the test's own, which is returned."""

    connect = socket.socket.connect

    def refuse(*_: object) -> None:
        raise AssertionError("something reached for the network")

    def only_to_processes(self: socket.socket, address: Any) -> None:
        connect(self, address) if self.family == socket.AF_UNIX else refuse()

    monkeypatch.setattr(socket.socket, "connect", only_to_processes)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    scratch = tmp_path_factory.mktemp("scratch")
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    return scratch


def make_parquet(root: Path, kind: str = "png") -> tuple[str, torch.Tensor]:
    """Six training and two test images; returns the spec and the training pixels [6, 3, 8, 8]."""
    pixels = [picture(seed) for seed in range(8)]
    write_parquet(root / "train.parquet", [encoded(p, kind) for p in pixels[:6]], [0, 1, 0, 1, 0, 1])
    write_parquet(root / "test.parquet", [encoded(p, kind) for p in pixels[6:]], [1, 0])
    return f"parquet:{root}", torch.from_numpy(np.stack(pixels[:6])).permute(0, 3, 1, 2)


def make_folder(root: Path, test: str = "test", channels: int = 3) -> tuple[str, torch.Tensor]:
    """Two images a class to train and one to test; returns the spec and the training pixels [4, C, 8, 8]."""
    pixels = []
    for part, count in (("train", 2), (test, 1)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for i in range(count):
                pixels.append(picture(10 * label + i, channels=channels))
                Image.fromarray(pixels[-1]).save(root / part / name / f"{i}.png")
    train = torch.from_numpy(np.stack(pixels[:4]))
    return f"folder:{root}", train.permute(0, 3, 1, 2) if channels == 3 else train[:, None]


def images_of(images: ImageSet) -> torch.Tensor:
    return images.__getitems__(list(range(len(images))))[0]


# -------------------------------------------------------------------------------------------------- each kind, read back
def test_digits() -> None:
    data = open_data("digits")
    assert (len(data.train), len(data.test), data.image_shape) == (1437, 360, (1, 8, 8))
    assert data.classes == tuple("0123456789")
    assert data.augmentation == "digits"
    counts = torch.bincount(data.test.labels)
    assert int(counts.max() - counts.min()) <= 3  # stratified: 174 to 183 images a class in all
    inputs = images_of(data.train).float() / 255
    assert data.mean == pytest.approx((float(inputs.mean()),), abs=5e-4)
    assert data.std == pytest.approx((float(inputs.std()),), abs=5e-4)
    assert torch.equal(images_of(data.train), images_of(open_data("digits").train))


def test_digits_in_another_shape() -> None:
    data = open_data("digits", input_shape=(3, 32, 32))
    assert data.image_shape == (3, 32, 32)
    assert data.mean == IMAGENET_MEAN  # one number does not fit three channels
    first = images_of(data.train)[0]
    assert torch.equal(first[0], first[2])


@pytest.mark.parametrize("kind", ["png", "webp"])
@pytest.mark.parametrize("limit", [2**30, 0], ids=["in memory", "lazy"])
def test_parquet(
    kind: str, limit: int, tmp_path: Path, offline_and_clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdc_fx.data.assemble.IN_MEMORY_BYTES", limit)
    spec, pixels = make_parquet(tmp_path, kind)
    data = open_data(spec)
    assert data.classes == ("cat", "dog")
    assert data.train.in_memory == (limit > 0)
    assert torch.equal(images_of(data.train), pixels)
    assert data.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert data.test.labels.tolist() == [1, 0]
    assert (data.mean, data.augmentation) == (IMAGENET_MEAN, "cifar")
    assert not any(offline_and_clean.iterdir())  # nothing is copied


def test_parquet_in_shards_and_validation(tmp_path: Path) -> None:
    for shard in range(2):
        write_parquet(tmp_path / f"train-0000{shard}-of-00003.parquet", [encoded(picture(shard))] * 2, [shard, shard])
    write_parquet(tmp_path / "train-00002-of-00003.parquet", [], [])
    write_parquet(tmp_path / "validation.parquet", [encoded(picture(5))], [0])
    data = open_data(f"parquet:{tmp_path}")
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert len(data.test) == 1


@pytest.mark.parametrize("test", ["test", "val"])
@pytest.mark.parametrize("channels", [1, 3])
def test_folder(test: str, channels: int, tmp_path: Path) -> None:
    spec, pixels = make_folder(tmp_path, test, channels)
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    data = open_data(spec)
    assert torch.equal(images_of(data.train), pixels)
    assert data.train.labels.tolist() == [0, 0, 1, 1]
    assert len(data.mean) == channels
    assert data.augmentation == ("cifar" if channels == 3 else "digits")


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    """The colours count, as where nothing is transparent; Pillow would warn of what it does."""
    spec, _ = make_folder(tmp_path)
    image = Image.fromarray(picture(3)).quantize(4)
    image.save(tmp_path / "train" / "cat" / "0.png", transparency=bytes([0, 128, 255, 255]))
    with Image.open(tmp_path / "train" / "cat" / "0.png") as stored:
        assert (stored.mode, stored.info["transparency"]) == ("P", bytes([0, 128, 255, 255]))
    expected = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
    assert torch.equal(images_of(open_data(spec).train)[0], expected)


@pytest.mark.parametrize(
    ("columns", "used"),
    [
        ({"coarse_label": [0, 0, 1, 1], "fine_label": [0, 1, 1, 0]}, "fine_label"),  # as CIFAR-100 has them
        ({"fine_label": [0, 1, 1, 0], "label": [1, 1, 0, 0]}, "label"),
        ({"coarse": [0, 0, 1, 1], "fine": [0, 1, 1, 0]}, None),
    ],
)
def test_several_columns_of_labels(columns: dict[str, list[int]], used: str | None, tmp_path: Path) -> None:
    import datasets

    kinds = {"img": datasets.Image(), **dict.fromkeys(columns, datasets.ClassLabel(names=CLASSES))}
    rows = {"img": [{"bytes": GOOD, "path": None}] * 4, **columns}
    for part in ("train", "test"):
        table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds)).with_format("arrow")[:]
        parquet.write_table(table, tmp_path / f"{part}.parquet")
    if used is None:
        with pytest.raises(InputError, match=r"one Image and one ClassLabel column .*coarse: ClassLabel, fine: Class"):
            open_data(f"parquet:{tmp_path}")
    else:
        assert open_data(f"parquet:{tmp_path}").train.labels.tolist() == columns[used]


def test_sizes_that_differ_are_brought_to_the_shape_asked_for(tmp_path: Path) -> None:
    spec, _ = make_folder(tmp_path)
    Image.fromarray(picture(9, 30, 50, channels=1)).save(tmp_path / "train" / "dog" / "2.png")
    data = open_data(spec, input_shape=(3, 16, 16))
    assert images_of(data.train).shape == (5, 3, 16, 16)


@pytest.mark.parametrize("size", [(256, 341), (500, 375), (100, 100)])
def test_resize_and_crop_is_torchvision_evaluation(size: tuple[int, int]) -> None:
    from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

    image = Image.fromarray(picture(0, *size))
    expected = Compose([Resize(256, InterpolationMode.BILINEAR), CenterCrop(224)])(image)
    assert np.array_equal(np.asarray(resize_and_crop(image, 224, 224)), np.asarray(expected))


def fake_cifar(root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Write CIFAR's files with two images each, and torchvision's table of MD5 sums to match."""
    from torchvision import datasets

    target = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[kind]
    folder = root / target.base_folder
    folder.mkdir(parents=True)
    key, names = ("labels", "label_names") if kind == "cifar10" else ("fine_labels", "fine_label_names")

    def write(name: str, content: object) -> str:
        (folder / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((folder / name).read_bytes()).hexdigest()

    pixels = np.random.default_rng(0).integers(0, 256, (2, 3072), dtype=np.uint8)
    for part in ("train_list", "test_list"):
        files = [[name, write(name, {"data": pixels, key: [0, 1]})] for name, _ in getattr(target, part)]
        monkeypatch.setattr(target, part, files)
    md5 = write(target.meta["filename"], {names: CLASSES})
    monkeypatch.setattr(target, "meta", {**target.meta, "md5": md5})
    return pixels


@pytest.mark.parametrize(("kind", "files"), [("cifar10", 5), ("cifar100", 1)])
def test_cifar(kind: str, files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = fake_cifar(tmp_path, kind, monkeypatch)
    data = open_data(f"{kind}:{tmp_path}")
    assert data.classes == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 1] * files
    assert torch.equal(images_of(data.test), torch.from_numpy(pixels.reshape(2, 3, 32, 32)))
    assert data.augmentation == "cifar"


def test_cifar_is_not_unpickled_if_its_sum_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cifar(tmp_path, "cifar10", monkeypatch)
    with (tmp_path / "cifar-10-batches-py" / "data_batch_3").open("ab") as file:
        file.write(b"!")
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(InputError, match="not found or is damaged"):
        open_data(f"cifar10:{tmp_path}")


def fake_fashion_mnist(root: Path) -> None:
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        head = (0x803).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in (count, 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + bytes(range(count)) * 784)
        labels = bytes(i % 10 for i in range(count))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(
            (0x801).to_bytes(4, "big") + count.to_bytes(4, "big") + labels
        )


def test_fashion_mnist(tmp_path: Path) -> None:
    fake_fashion_mnist(tmp_path)
    data = open_data(f"fashionmnist:{tmp_path}")
    assert (data.image_shape, len(data.train), len(data.test)) == ((1, 28, 28), 20, 10)
    assert data.mean == FASHION_MNIST_MEAN
    assert images_of(data.test).flatten()[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-100], id="cut"),
        pytest.param(lambda content: content[:10], id="cut in its head"),
        pytest.param(lambda content: b"", id="empty"),
        pytest.param(lambda content: b"hello" + content, id="another format"),
        pytest.param(lambda content: bytes([0, 0, 10]) + content[3:], id="an element type that is none"),
    ],
)
def test_damaged_fashion_mnist(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    fake_fashion_mnist(tmp_path)
    open_data(f"fashionmnist:{tmp_path}")
    file = tmp_path / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match="not found or is damaged"):
        open_data(f"fashionmnist:{tmp_path}")


# ----------------------------------------------------------------------------------------------------- one clear message
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digit", r"no kind of data is called 'digit' \[digit\]; did you mean digits\? known are digits, parquet:DIR"),
        ("parket:x", "did you mean parquet"),
        ("", "no kind of data is called ''"),
        ("digits:somewhere", "takes no directory"),
        ("folder", "folder needs a directory .* write folder:DIR"),
        ("parquet:does/not/exist", r"no such directory \[does/not/exist\]"),
        ("cifar10:does/not/exist", "no such directory"),
    ],
)
def test_bad_spec(spec: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_data(spec)


@pytest.mark.parametrize("shape", [(2, 8, 8), (3, 0, 8)])
def test_bad_input_shape(shape: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="1 or 3 channels"):
        open_data("digits", input_shape=shape)


def test_only_some_kinds_are_downloaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="folder data cannot be downloaded; only cifar10, cifar100, fashionmnist can"):
        open_data(f"folder:{tmp_path}", download=True)


def test_download_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    def fail(*_: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(datasets.CIFAR10, "download", fail)
    with pytest.raises(InputError, match=r"could not be downloaded .*no route to host"):
        open_data(f"cifar10:{tmp_path / 'new'}", download=True)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-30])


def rewrite_parquet(images: list[bytes], labels: list[int], classes: list[str] = CLASSES) -> Callable[[Path], None]:
    return lambda root: write_parquet(root / "train.parquet", images, labels, classes)


def without_features(root: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"img": [{"bytes": b"x", "path": ""}], "label": [0]}), root / "train.parquet")


GOOD = encoded(picture(0))
PARQUET_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (
        lambda r: (r / "train.parquet").unlink(),
        r"no train.parquet and no train-\*.parquet .*found test.parquet",
    ),
    "cut file": (lambda r: cut(r / "train.parquet"), "a parquet file cannot be read .*train.parquet"),
    "not parquet": (lambda r: (r / "test.parquet").write_text("hello"), "a parquet file cannot be read .*test.parquet"),
    "empty file": (lambda r: (r / "test.parquet").write_bytes(b""), "a parquet file cannot be read .*test.parquet"),
    "no features": (without_features, "one Image and one ClassLabel column .*train.parquet: img: "),
    "no rows": (rewrite_parquet([], []), "no rows"),
    "corrupt image": (
        rewrite_parquet([GOOD, GOOD[:-40]], [0, 1]),
        r"an image cannot be read .*train.parquet: row 1, column",
    ),
    "not an image": (rewrite_parquet([b"hello world"], [0]), "an image cannot be read .*row 0"),
    "no bytes": (rewrite_parquet([GOOD, b""], [0, 1]), "row 1.*the row holds no image bytes"),
    "unlabelled": (rewrite_parquet([GOOD, GOOD], [0, -1]), "labels must be 0 to 1 .*train: found -1"),
    "classes": (
        rewrite_parquet([GOOD], [0], ["cat", "frog"]),
        "classes differ .*only in train: frog; only in test: dog",
    ),
    "class order": (rewrite_parquet([GOOD], [0], ["dog", "cat"]), "classes differ .*their order differs"),
    "sizes": (
        rewrite_parquet([GOOD, encoded(picture(1, 9, 8))], [0, 1]),
        "sizes differ: 9x8 here, 8x8 before .*row 1.*--input",
    ),
    "other test size": (rewrite_parquet([encoded(picture(1, 9, 8))], [0]), "training and test images differ in shape"),
    "colour": (
        rewrite_parquet([encoded(picture(1, channels=1)), GOOD], [0, 1]),
        "a colour image among grey ones .*row 1",
    ),
    "16 bits": (
        rewrite_parquet([encoded(np.zeros((8, 8), np.uint16))], [0]),
        "more than 8 bits a channel .*row 0",
    ),
}


@pytest.mark.parametrize(("damage", "message"), PARQUET_DAMAGE.values(), ids=PARQUET_DAMAGE.keys())
def test_bad_parquet(
    damage: Callable[[Path], object],
    message: str,
    tmp_path: Path,
    offline_and_clean: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    spec, _ = make_parquet(tmp_path)
    open_data(spec)
    damage(tmp_path)
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)) as caught:
        open_data(spec)
    assert "\n" not in str(caught.value)
    assert not caplog.records  # the message is all that is said
    assert not any(offline_and_clean.iterdir())


def empty_class(root: Path) -> None:
    (root / "train" / "dog" / "0.png").unlink()
    (root / "train" / "dog" / "1.png").unlink()


FOLDER_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no test": (
        lambda r: (r / "test").rename(r / "testing"),
        "must hold train/CLASS/ and test/CLASS/ .*found testing, train",
    ),
    "empty class": (empty_class, r"a class folder without images \[.*dog\]"),
    "extra class": (lambda r: (r / "train" / "eel").mkdir(), "classes differ .*only in train: eel"),
    "corrupt image": (lambda r: cut(r / "train" / "dog" / "1.png"), r"an image cannot be read \[.*1\.png\]"),
    "text": (lambda r: (r / "test" / "cat" / "0.png").write_text("hello"), r"an image cannot be read \[.*0\.png\]"),
}


@pytest.mark.parametrize(("damage", "message"), FOLDER_DAMAGE.values(), ids=FOLDER_DAMAGE.keys())
def test_bad_folder(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    spec, _ = make_folder(tmp_path)
    open_data(spec)
    damage(tmp_path)
    with pytest.raises(InputError, match=re.compile(message, re.DOTALL)):
        open_data(spec)


def test_a_lazy_set_names_the_image_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdc_fx.data.assemble.IN_MEMORY_BYTES", 0)
    spec, _ = make_folder(tmp_path)
    cut(tmp_path / "train" / "dog" / "1.png")
    data = open_data(spec)
    assert data.train.__getitems__([0, 1, 2])[0].shape == (3, 3, 8, 8)
    with pytest.raises(InputError, match=r"an image cannot be read \[.*dog.1\.png\]"):
        data.train.__getitems__([2, 3])


# --------------------------------------------------------------------------------------------------------------- batches
@pytest.mark.parametrize("limit", [2**30, 0], ids=["in memory", "lazy"])
@pytest.mark.parametrize(("workers", "context"), [(0, None), (1, "fork"), (1, "spawn")])
def test_loader(limit: int, workers: int, context: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdc_fx.data.assemble.IN_MEMORY_BYTES", limit)
    spec, pixels = make_parquet(tmp_path)
    data = open_data(spec)
    loader = DataLoader(
        data.train.subset([5, 0, 3]), 2, collate_fn=collate, num_workers=workers, multiprocessing_context=context
    )
    batches = list(loader)
    assert [images.shape[0] for images, _ in batches] == [2, 1]
    assert torch.equal(torch.cat([images for images, _ in batches]), pixels[[5, 0, 3]])
    assert torch.cat([labels for _, labels in batches]).tolist() == [1, 0, 1]
    assert torch.equal(images_of(data.train), pixels)


def test_one_image_and_iteration() -> None:
    images = ImageSet.of(torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1), torch.tensor([0, 1, 1, 0]))
    image, label = images.subset([2, 3])[-1]
    assert (image.tolist(), label.dtype, int(label)) == ([[[3]]], torch.int64, 0)
    assert [int(label) for _, label in images] == [0, 1, 1, 0]
    with pytest.raises(IndexError):
        images[4]


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), "must be uint8"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "must be uint8"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "one label an image"),
    ],
)
def test_image_set_refuses(images: torch.Tensor, labels: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ImageSet.of(images, labels)


# -------------------------------------------------------------------------------------------------------------- hold out
def uneven(counts: list[int]) -> ImageData:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1)
    part = ImageSet.of(images, labels)
    return ImageData("uneven", part, part, tuple("abcdef"[: len(counts)]), (0.5,), (0.5,))


@pytest.mark.parametrize(
    ("counts", "n", "shares"),
    [
        ([10, 10], 5, [3, 2]),
        ([1, 99], 10, [0, 10]),
        ([10, 20, 30], 59, [10, 20, 29]),
        ([7, 0, 7], 2, [1, 0, 1]),
        ([2] * 6, 3, [1, 0, 1, 0, 1, 0]),  # fewer than classes: from all over the list
        ([2, 2, 3, 2, 2], 2, [1, 0, 1, 0, 0]),
    ],
)
def test_hold_out(counts: list[int], n: int, shares: list[int]) -> None:
    data = uneven(counts)
    smaller, held = data.hold_out(n, seed=3)
    assert torch.bincount(held.labels, minlength=len(counts)).tolist() == shares
    together = torch.cat([images_of(smaller.train), images_of(held)]).flatten().tolist()
    assert sorted(together) == list(range(sum(counts)))  # every image in one of them
    assert torch.equal(images_of(held), images_of(data.hold_out(n, seed=3)[1]))
    assert smaller.test is data.test


def test_another_seed_holds_out_others() -> None:
    data = uneven([50, 50])
    assert not torch.equal(images_of(data.hold_out(20, seed=0)[1]), images_of(data.hold_out(20, seed=1)[1]))


@pytest.mark.parametrize("n", [-1, 0, 20, 21])
def test_hold_out_refuses(n: int) -> None:
    with pytest.raises(InputError, match=f"cannot hold out {n} of 20 training images; choose between 1 and 19"):
        uneven([10, 10]).hold_out(n)


def test_normalization_and_augmentation_can_be_replaced() -> None:
    data = open_data("digits")
    other = data.with_normalization([0.1], [0.2]).with_augmentation("none")
    assert (other.mean, other.std, other.augmentation, other.train) == ((0.1,), (0.2,), "none", data.train)
    for mean, std in (((0.1, 0.2), (1.0, 1.0)), ((0.1,), (0.0,)), ((0.1,), (float("nan"),))):
        with pytest.raises(InputError, match="mean and std need 1 number"):
            data.with_normalization(mean, std)
    with pytest.raises(InputError, match="no augmentation is called 'cutout'; known are none, digits, flip, cifar"):
        data.with_augmentation("cutout")


# --------------------------------------------------------------------------------------------------- whole-batch tensors
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_normalize(memory_format: torch.memory_format) -> None:
    images = torch.randint(256, (4, 3, 5, 6), dtype=torch.uint8).to(memory_format=memory_format)
    mean, std = IMAGENET_MEAN, IMAGENET_STD
    expected = (images.double() / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    result = normalize(images, mean, std)
    assert result.dtype == torch.float32
    assert result.is_contiguous(memory_format=memory_format)
    torch.testing.assert_close(result, expected.float(), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "images",
    [torch.zeros(1, 3, 2, 2), torch.zeros(3, 2, 2, dtype=torch.uint8), torch.zeros(1, 1, 2, 2, dtype=torch.uint8)],
)
def test_normalize_refuses(images: torch.Tensor) -> None:
    with pytest.raises(InputError, match="normalize takes uint8 images"):
        normalize(images, IMAGENET_MEAN, IMAGENET_STD)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_and_flip_against_a_loop(dtype: torch.dtype, padding: int) -> None:
    images = torch.randint(1, 256, (9, 3, 7, 5)).to(dtype)
    offsets, flipped = torch.randint(2 * padding + 1, (2, 9)), torch.rand(9) < 0.5
    result = crop_and_flip(images, padding, offsets, flipped)
    for i, image in enumerate(images):
        padded = torch.zeros(3, 7 + 2 * padding, 5 + 2 * padding, dtype=dtype)
        padded[:, padding : padding + 7, padding : padding + 5] = image
        top, left = offsets[:, i].tolist()
        crop = padded[:, top : top + 7, left : left + 5]
        assert torch.equal(result[i], crop.flip(2) if flipped[i] else crop)


@pytest.mark.parametrize("preset", AUGMENTATIONS)
def test_augment(preset: str) -> None:
    images = torch.randint(1, 256, (64, 3, 12, 12), dtype=torch.uint8)
    before = images.clone()
    first, second = (Augment(preset, seed=7) for _ in range(2))
    torch.manual_seed(0)
    once = first(images)
    torch.manual_seed(1)  # the global generator plays no part
    assert torch.equal(once, second(images))
    assert torch.equal(images, before)
    assert once.shape == images.shape
    assert torch.equal(once, images) == (preset == "none")
    changed = first(images)
    assert torch.equal(changed, once) == (preset == "none")
    second.generator.set_state(Augment(preset, seed=7).generator.get_state())
    assert torch.equal(second(images), once)


def test_augment_draws_every_offset_and_half_the_flips() -> None:
    ramp = torch.arange(1, 10_001, dtype=torch.float32).view(1, 1, 100, 100).expand(4000, 1, 100, 100)
    centre = Augment("cifar", seed=0)(ramp)[:, 0, 50, 49:51]
    flips = centre[:, 0] > centre[:, 1]
    assert abs(int(flips.sum()) - 2000) < 200  # six standard deviations
    assert len(centre[~flips, 0].unique()) == 81


@pytest.mark.parametrize(("preset", "mirrors"), [("digits", False), ("flip", True), ("cifar", True)])
def test_only_photographs_are_mirrored(preset: str, mirrors: bool) -> None:
    ramp = torch.arange(1, 101, dtype=torch.float32).expand(200, 1, 20, 100)
    centre = Augment(preset, seed=0)(ramp)[:, 0, 10, 49:51]
    assert bool((centre[:, 0] > centre[:, 1]).any()) == mirrors


@pytest.mark.parametrize(
    ("preset", "shape", "message"), [("shear", (1, 3, 8, 8), "'shear'"), ("cifar", (3, 8, 8), "a batch")]
)
def test_augment_refuses(preset: str, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Augment(preset)(torch.zeros(shape))


# ------------------------------------------------------------------------------------------------------ the real CIFAR-10
@pytest.mark.slow
def test_cifar10_parquet(shared_dir: Path) -> None:
    data = open_data(f"parquet:{shared_dir / 'data/cifar10'}")
    assert (len(data.train), len(data.test), data.image_shape) == (50_000, 10_000, (3, 32, 32))
    assert torch.bincount(data.train.labels).tolist() == [5000] * 10
    assert data.classes[:3] == ("airplane", "automobile", "bird")
    smaller, held = data.hold_out(5000)
    assert torch.bincount(held.labels).tolist() == [500] * 10
    assert len(smaller.train) == 45_000
    mean = images_of(data.test).float().mean((0, 2, 3)) / 255
    torch.testing.assert_close(mean, torch.tensor([0.494, 0.485, 0.450]), rtol=0, atol=2e-3)
