"""Fashion-MNIST from small IDX files of the test's own making."""

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maws_hf.data.corpus import CorpusError
from maws_hf.data.demo_fashion_mnist import (
    CAPTIONS,
    CLASS_NAMES,
    EXPECTED_COUNTS,
    TAGS,
    build_fashion_mnist_corpus,
    read_idx,
)

datasets = pytest.importorskip("datasets")

IMAGES, LABELS = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
ROWS = {"train": 40, "t10k": 20}


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    header = bytes((0, 0, kind, array.ndim)) + b"".join(length.to_bytes(4, "big") for length in array.shape)
    return header + array.tobytes()


def write_files(folder: Path) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True, exist_ok=True)
    pixels = {}
    for split, rows in ROWS.items():
        pixels[split] = np.random.default_rng(rows).integers(0, 256, (rows, 28, 28), np.uint8)
        labels = np.arange(rows, dtype=np.uint8) % 10
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(pixels[split])))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return pixels


@pytest.fixture
def source_dir(tmp_path: Path) -> Path:
    write_files(tmp_path / "source")
    return tmp_path / "source"


def build(output_dir: Path, source_dir: Path):
    return build_fashion_mnist_corpus(output_dir, source_dir=source_dir, expected_counts=None)


def test_every_pixel_and_label_arrives(tmp_path: Path) -> None:
    pixels = write_files(tmp_path / "source")
    report = build(tmp_path / "out", tmp_path / "source")
    assert report.rows == {"train": 40, "test": 20}
    streamed = datasets.load_dataset(str(tmp_path / "out"), streaming=True)
    assert streamed["train"].features["label"].names == list(CLASS_NAMES)
    for split, original in (("train", "train"), ("test", "t10k")):
        for index, row in enumerate(streamed[split]):
            assert row["key"] == f"{split}/{index:05d}"
            assert row["label"] == index % 10
            np.testing.assert_array_equal(np.asarray(row["image"]), pixels[original][index])
    assert row["tags"] == ["ankle", "boot"]
    assert row["captions"] == [{"language": "en", "text": "a photo of an ankle boot"}]


def test_the_classes_have_the_published_numbers_and_words_of_their_own() -> None:
    published = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
    published += ["Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]
    assert list(CLASS_NAMES) == published
    for name, tags, caption in zip(CLASS_NAMES, TAGS, CAPTIONS, strict=True):
        assert list(tags) == name.lower().replace("/", " ").split()
        assert all(tag in caption.replace(",", " ") for tag in tags)
        assert sum(f" {tags[0]}" in other for other in CAPTIONS) == 1


def test_same_bytes_and_no_second_build(source_dir: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert not build(tmp_path / name, source_dir).already_built
    for file in (tmp_path / "one" / "data").iterdir():
        assert file.read_bytes() == (tmp_path / "two" / "data" / file.name).read_bytes()
    for file in source_dir.iterdir():
        file.unlink()
    assert build(tmp_path / "one", source_dir).already_built


def test_a_finished_corpus_with_a_stranger_in_it_is_refused(source_dir: Path, tmp_path: Path) -> None:
    build(tmp_path / "out", source_dir)
    (tmp_path / "out" / "data" / "train-mine.parquet").write_bytes(b"")
    with pytest.raises(CorpusError, match=r"train-mine\.parquet is not part of this corpus but would load with it"):
        build(tmp_path / "out", source_dir)


def test_images_are_png(source_dir: Path, tmp_path: Path) -> None:
    build(tmp_path / "out", source_dir)
    row = next(iter(datasets.load_dataset(str(tmp_path / "out"), streaming=True)["test"].decode(False)))
    assert row["image"]["path"] == "test/00000.png"
    assert Image.open(io.BytesIO(row["image"]["bytes"])).format == "PNG"


def test_a_missing_file_says_how_to_get_it(source_dir: Path, tmp_path: Path) -> None:
    (source_dir / LABELS).unlink()
    with pytest.raises(
        CorpusError, match=r"train-labels-idx1-ubyte\.gz is missing: run `sudo apt-get install"
    ) as error:
        build(tmp_path / "out", source_dir)
    assert "--source_dir" in str(error.value)
    assert not (tmp_path / "out").exists()


PICTURES = np.zeros((40, 28, 28), np.uint8)


def packed(data: bytes) -> bytes:
    """Without the time, or the tests of the next second would have other names."""
    return gzip.compress(data, mtime=0)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        (IMAGES, b"not gzip", "is not an intact gzip file"),
        (IMAGES, packed(idx(PICTURES))[:-20], "is not an intact gzip file"),
        (IMAGES, packed(idx(PICTURES)[:-1]), "is cut short or damaged"),
        (IMAGES, packed(idx(PICTURES) + b"\0"), "is cut short or damaged"),
        (IMAGES, packed(idx(PICTURES)[:7]), "is cut short or damaged"),
        (IMAGES, packed(b""), "begins with nothing, not 00000803"),
        (IMAGES, packed(idx(PICTURES, kind=13)), "begins with 00000d03, not 00000803"),
        (IMAGES, packed(idx(np.zeros(40, np.uint8))), "begins with 00000801, not 00000803"),
        (IMAGES, packed(idx(PICTURES[:, :27])), "pictures of 27 x 28 pixels, not 28 x 28"),
        (IMAGES, packed(idx(PICTURES[:39])), "holds 39 pictures but .* 40 labels"),
        (
            LABELS,
            packed(idx(np.full(40, 10, np.uint8))),
            "holds label 10; Fashion-MNIST has labels 0 to 9",
        ),
    ],
)
def test_damaged_files_are_refused(file: str, content: bytes, message: str, source_dir: Path, tmp_path: Path) -> None:
    (source_dir / file).write_bytes(content)
    with pytest.raises(CorpusError, match=message) as error:
        build(tmp_path / "out", source_dir)
    assert str(source_dir / file) in str(error.value)


def test_a_damaged_stream_is_refused(tmp_path: Path) -> None:
    content = bytearray(gzip.compress(idx(np.random.default_rng(0).integers(0, 256, (40, 28, 28), np.uint8))))
    content[len(content) // 2] ^= 0xFF
    (tmp_path / IMAGES).write_bytes(content)
    with pytest.raises(CorpusError, match="is not an intact gzip file"):
        read_idx(tmp_path / IMAGES, dimensions=3)


def test_unbalanced_classes_are_refused(source_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"found 4 train pictures of T-shirt/top where the pinned sources have 6000"):
        build_fashion_mnist_corpus(tmp_path / "out", source_dir=source_dir)
    assert len(EXPECTED_COUNTS) == 20
