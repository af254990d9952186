"""ImageNet's folders and Hugging Face's shards as they are; and what is wrong with data, said in one line."""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_files import different_sizes, encoded, picture, write_parquet
from PIL import Image

from pdc_fx.data import evaluation_batches, open_data, training_batches
from pdc_fx.data.stores import FileSource
from pdc_fx.errors import InputError

SHAPE = (3, 16, 16)
SYNSETS = ["n01440764", "n01443537"]


def saved(image: Image.Image, kind: str) -> bytes:
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


SQUARE = Image.fromarray(picture(0, 40, 40))
ODDITIES = {
    "colour": saved(SQUARE, "jpeg"),
    "grey": saved(SQUARE.convert("L"), "jpeg"),
    "cmyk": saved(SQUARE.convert("CMYK"), "jpeg"),
    "png": saved(SQUARE, "png"),  # as n02105855_2933.JPEG is
    "transparent": saved(SQUARE.convert("RGBA"), "png"),
    "palette": saved(SQUARE.convert("P"), "png"),
    "exif": saved(SQUARE, "jpeg").replace(b"JFIF", b"Exif", 1),
}


def imagenet(root: Path) -> str:
    """``train``, ``val`` and the unlabelled ``test``."""
    for part, count in (("train", 8), ("val", 2)):
        for label, synset in enumerate(SYNSETS):
            (root / part / synset).mkdir(parents=True)
            for i in range(count):
                file = (
                    root / part / synset / (f"{synset}_{i}.JPEG" if part == "train" else f"ILSVRC2012_val_{i:08}.JPEG")
                )
                file.write_bytes(encoded(picture(100 * label + i, 30 + i, 40), "jpeg"))
    (root / "test").mkdir()
    (root / "test" / "ILSVRC2012_test_00000001.JPEG").write_bytes(ODDITIES["colour"])
    return f"folder:{root}"


def test_imagenet_as_it_is(tmp_path: Path) -> None:
    spec = imagenet(tmp_path)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / SYNSETS[0] / ".ipynb_checkpoints").mkdir()
    (tmp_path / "train" / SYNSETS[0] / ".ipynb_checkpoints" / "copy.JPEG").write_bytes(ODDITIES["colour"])
    (tmp_path / "train" / SYNSETS[0] / "._n01440764_0.JPEG").write_bytes(b"left by an archive")
    data = open_data(spec, input_shape=SHAPE)
    assert data.classes == tuple(SYNSETS)
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0] * 8 + [1] * 8, [0, 0, 1, 1])
    assert open_data(spec, input_shape=(3, 224, 224)).augmentation == "imagenet"


@pytest.mark.parametrize("oddity", ODDITIES)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("preset", ["none", "imagenet"])
def test_odd_files_called_jpeg(oddity: str, channels: int, preset: str, tmp_path: Path) -> None:
    spec = imagenet(tmp_path)
    (tmp_path / "train" / SYNSETS[0] / "n01440764_0.JPEG").write_bytes(ODDITIES[oddity])
    data = open_data(spec, input_shape=(channels, 16, 16)).with_augmentation(preset)
    images, _ = next(training_batches(data, 16, seed=0, epoch=0))
    assert images.shape == (16, channels, 16, 16)
    if oddity not in ("grey", "palette") and channels == 3:
        pixels, expected = data.train.fetch(torch.tensor([0]))[0], Image.open(io.BytesIO(ODDITIES["colour"]))
        mean = np.asarray(expected).mean()
        assert abs(float(pixels.float().mean()) - mean) < 12  # not the negative


def test_what_pillow_cannot_convert_is_named(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / "1.tif").write_bytes(saved(Image.new("LAB", (16, 16)), "tiff"))
    with pytest.raises(InputError, match=r"an image cannot be read \[.*1\.tif\]; replace or remove it"):
        open_data(f"folder:{tmp_path}", input_shape=(1, 16, 16))


@pytest.mark.parametrize("flat", ["val", "train"])
def test_images_without_class_folders(flat: str, tmp_path: Path) -> None:
    spec = imagenet(tmp_path)
    for synset in SYNSETS:
        for file in (tmp_path / flat / synset).iterdir():
            file.rename(tmp_path / flat / file.name)
        (tmp_path / flat / synset).rmdir()
    count = {"val": 2, "train": 16}[flat]  # both classes of val use the same names here
    with pytest.raises(
        InputError, match=rf"no class folders \[.*{flat}\]; {count} images lie in it directly, as in ImageNet"
    ):
        open_data(spec, input_shape=SHAPE)


def test_one_class_is_none(tmp_path: Path) -> None:
    """Folders of classes that lie one level too deep."""
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / "images" / name).mkdir(parents=True)
    words = r"there is one class, 'images'.*it holds the folders cat, dog: move them up"
    with pytest.raises(InputError, match=words):
        open_data(f"folder:{tmp_path}")


def test_names_of_a_folder_take_little_memory() -> None:
    names = [f"n{c:08}/n{c:08}_{i}.JPEG" for c in range(100) for i in range(100)]
    source = FileSource(Path("train"), names)
    assert len(source) == len(names)
    assert [source.name(i) for i in (0, 101, 9999)] == [str(Path("train", names[i])) for i in (0, 101, 9999)]
    assert len(pickle.dumps(source)) / len(names) < 40  # bytes an image, in memory as well: two flat arrays
    odd = ["cat/\udcff.png", "dog/é.png"]  # names that are not UTF-8 come back as they were
    assert [FileSource(Path("train"), odd).name(i) for i in (0, 1)] == [str(Path("train", name)) for name in odd]


# ----------------------------------------------------------------------------------------------------------------- parquet
def test_shards_are_read_by_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = different_sizes(tmp_path, "parquet")
    small = open_data(spec, input_shape=SHAPE)
    monkeypatch.setattr("pdc_fx.data.assemble.IN_MEMORY_BYTES", 0)
    large = open_data(spec, input_shape=SHAPE)
    assert not small.train._store._whole._source._rows._kept  # type: ignore[attr-defined]  # encoded bytes are let go
    rows = torch.tensor([0, 2, 3, 12, 13, 25, 1])  # across row groups and shards
    assert torch.equal(small.train.fetch(rows)[0], large.train.fetch(rows)[0])
    names = [large.train._store._source.name(row) for row in (0, 12, 13, 25)]  # type: ignore[attr-defined]
    assert [name.split("train-")[1] for name in names] == [
        f"0000{shard}-of-00002.parquet: row {row}, column 'img.bytes'"
        for shard, row in ((0, 0), (0, 12), (1, 0), (1, 12))
    ]
    copy = pickle.loads(pickle.dumps(large.train))
    assert torch.equal(copy.fetch(rows)[0], large.train.fetch(rows)[0])


GOOD = encoded(picture(0))


def shard(root: Path, number: int, of: int, **options: Any) -> None:
    write_parquet(
        root / f"train-{number:05}-of-{of:05}.parquet", [GOOD, GOOD], options.pop("labels", [0, 1]), **options
    )


def without(column: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        import pyarrow.parquet as pq

        table = pq.read_table(root / "train-00000-of-00002.parquet")
        pq.write_table(table.drop_columns([column]), root / "train-00000-of-00002.parquet")

    return write


def damaged_inside(root: Path) -> None:
    """The footer is whole, the images' pages are not."""
    file = root / "train-00001-of-00002.parquet"
    content = bytearray(file.read_bytes())
    content[4:60] = bytes(56)
    file.write_bytes(content)


def damaged_labels(root: Path) -> None:
    """The pages of one column alone."""
    import pyarrow.parquet as pq

    file = root / "train-00001-of-00002.parquet"
    group = pq.read_metadata(file).row_group(0)
    column = next(group.column(i) for i in range(group.num_columns) if group.column(i).path_in_schema == "label")
    start = column.dictionary_page_offset or column.data_page_offset
    content = bytearray(file.read_bytes())
    content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    file.write_bytes(content)


SHARD_DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing shard": (
        lambda r: (r / "train-00001-of-00002.parquet").unlink(),
        r"found 1 parquet file\(s\) where the names speak of 2 .*fetch what is missing",
    ),
    "two versions": (lambda r: shard(r, 2, 3), r"found 3 parquet file\(s\) where the names speak of 2 and 3"),
    "other classes": (
        lambda r: shard(r, 1, 2, classes=["dog", "cat"]),
        "columns 'img' and 'label' differ between parquet files .*00000-of-00002.parquet and .*00001-of-00002.parquet",
    ),
    "no image column": (
        without("img"),
        "one Image and one ClassLabel column .*00000-of-00002.parquet: label: ClassLabel",
    ),
    "no label column": (without("label"), "one Image and one ClassLabel column .*00000-of-00002.parquet: img: Image"),
    "label out of range": (lambda r: shard(r, 1, 2, labels=[0, 2]), "labels must be 0 to 1 .*train: found 2"),
    "null label": (lambda r: shard(r, 1, 2, labels=[0, None]), r"labels are missing .*00001-of-00002.parquet\]"),
    "empty shard": (
        lambda r: (r / "train-00001-of-00002.parquet").write_bytes(b""),
        r"a parquet file cannot be read .*00001-of-00002.parquet\]",
    ),
    "damaged labels": (damaged_labels, r"a parquet file cannot be read \[.*00001-of-00002.parquet\]; ."),
    "damaged inside": (damaged_inside, r"a parquet file cannot be read .*00001-of-00002.parquet: row group 0\]"),
}


@pytest.mark.parametrize(("damage", "message"), SHARD_DAMAGE.values(), ids=SHARD_DAMAGE.keys())
def test_bad_shards(damage: Callable[[Path], object], message: str, tmp_path: Path) -> None:
    for number in range(2):
        shard(tmp_path, number, 2)
    write_parquet(tmp_path / "test.parquet", [GOOD, GOOD], [0, 1])
    spec = f"parquet:{tmp_path}"
    assert open_data(spec).train.labels.tolist() == [0, 1, 0, 1]
    damage(tmp_path)
    with pytest.raises(InputError, match=re.compile(message)) as caught:
        open_data(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda f: f.unlink(), r"(an image|a parquet file) cannot be read \[.*; .*No such file"),
        (lambda f: f.write_bytes(b""), r"(an image|a parquet file) cannot be read \["),
        (lambda f: f.write_bytes(f.read_bytes()[:300]), r"(an image|a parquet file) cannot be read \["),
    ],
    ids=["gone", "empty", "cut"],
)
@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_what_breaks_after_opening(
    kind: str,
    write: Callable[[Path], object],
    message: str,
    workers: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pdc_fx.data.assemble.IN_MEMORY_BYTES", 0)
    data = open_data(different_sizes(tmp_path, kind), input_shape=SHAPE)
    file = tmp_path / ("train-00001-of-00002.parquet" if kind == "parquet" else "train/dog/003.JPEG")
    write(file)
    for read in (
        lambda: training_batches(data, 2, seed=0, epoch=0, workers=workers),
        lambda: evaluation_batches(data.train, data, 4, workers=workers),
    ):
        with pytest.raises(InputError, match=message) as caught:
            list(read())
        assert file.name in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["folder", "parquet"])
@pytest.mark.parametrize("limit", [2**30, 0], ids=["in memory", "lazy"])
def test_sizes_that_differ_without_a_shape(
    kind: str, limit: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pdc_fx.data.assemble.IN_MEMORY_BYTES", limit)
    with pytest.raises(
        InputError, match=r"image sizes differ: .* before \[.*\]; give the shape .* --input 1x3x224x224"
    ):
        list(training_batches(open_data(different_sizes(tmp_path, kind)), 4, seed=0, epoch=0))


@pytest.mark.parametrize(("only", "other"), [("train", "val"), ("val", "train")])
def test_a_class_of_one_part_only(only: str, other: str, tmp_path: Path) -> None:
    spec = imagenet(tmp_path)
    (tmp_path / other / SYNSETS[1]).rename(tmp_path / "aside")
    with pytest.raises(
        InputError, match=f"classes differ .*only in {'test' if only == 'val' else 'train'}: {SYNSETS[1]}"
    ):
        open_data(spec, input_shape=SHAPE)
