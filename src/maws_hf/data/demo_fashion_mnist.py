"""Fashion-MNIST as a corpus of parquet shards: 60,000 + 10,000 product photographs, 28 x 28 grey, ten classes.

The four original files come from Debian's package `dataset-fashion-mnist`, or from a folder of your own.
Source: Xiao, Rasul and Vollgraf, 2017, https://arxiv.org/abs/1708.07747.
"""

import gzip
import io
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .corpus import (
    CorpusError,
    CorpusReport,
    Source,
    check_counts,
    deal_shards,
    demo_dependency,
    finished_report,
    write_corpus,
)

DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
SOURCE = Source(
    "dataset-fashion-mnist",
    "2020-05-23",
    "MIT",
    "Fashion-MNIST, Zalando SE, https://github.com/zalandoresearch/fashion-mnist",
)
SPLIT_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
SHARDS = {"train": 8, "test": 2}
SIDE = 28
# Part of the recipe: raise it with any change to the rows.
RULES = 1

CLASS_NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# What a shop would write under the picture, and the words a user would tag it with.
CAPTIONS = (
    "a photo of a t-shirt or top",
    "a photo of trousers",
    "a photo of a pullover",
    "a photo of a dress",
    "a photo of a coat",
    "a photo of a sandal",
    "a photo of a shirt",
    "a photo of a sneaker",
    "a photo of a bag",
    "a photo of an ankle boot",
)
TAGS = (
    ("t-shirt", "top"),
    ("trouser",),
    ("pullover",),
    ("dress",),
    ("coat",),
    ("sandal",),
    ("shirt",),
    ("sneaker",),
    ("bag",),
    ("ankle", "boot"),
)

EXPECTED_COUNTS = {
    f"{split} pictures of {name}": each for split, each in (("train", 6000), ("test", 1000)) for name in CLASS_NAMES
}

CARD = f"""---
pretty_name: Fashion-MNIST
license: mit
configs:
- config_name: default
  version: <version>
  data_files:
  - split: train
    path: data/train-*.parquet
  - split: test
    path: data/test-*.parquet
---

# Fashion-MNIST

Built by `maws-hf demo-data fashion-mnist`.

| column | what it is |
|---|---|
| image | PNG, 28 x 28 pixels, grey |
| label | one of ten classes |
| tags | the words of the class name |
| captions | one English caption |
| key | `train/00000` and so on: the place in the original file |

## Licence

{SOURCE.licence}. {SOURCE.attribution}
"""


@dataclass(frozen=True, eq=False)
class Photograph:
    """One picture of the original files: `pixels` is uint8 `(28, 28)`, 0 the background."""

    key: str
    pixels: np.ndarray
    label: int


def build_fashion_mnist_corpus(
    output_dir: str | Path,
    *,
    source_dir: str | Path = DEBIAN_DIR,
    expected_counts: Mapping[str, int] | None = EXPECTED_COUNTS,
) -> CorpusReport:
    """Read the four IDX files of `source_dir` and write `train` and `test` to `output_dir`.

    The result is the same bytes every time; running it again verifies what is there, repairs what is damaged and
    goes on where a killed run stopped. Print the report to show counts, licence and attribution.

    Args:
        output_dir: gets `data/*.parquet`, `README.md` and `manifest.json`.
        source_dir: holds the four `.gz` files, by default where Debian's package puts them.
        expected_counts: pictures of each class in each split (`EXPECTED_COUNTS`); None for files of your own.

    Raises:
        CorpusError: a file is missing or damaged, counts are off, or `output_dir` holds something else.
    """
    output_dir, source_dir = Path(output_dir).expanduser(), Path(source_dir).expanduser()
    recipe = {"rules": RULES}
    if report := finished_report(output_dir, "fashion-mnist", recipe, (SOURCE,)):
        return report
    _all_files_or_error(source_dir)
    photographs = {split: read_split(source_dir, split) for split in SPLIT_FILES}
    found = Counter(f"{split} pictures of {CLASS_NAMES[p.label]}" for split, ps in photographs.items() for p in ps)
    check_counts("fashion-mnist", expected_counts, found)
    return write_corpus(
        output_dir,
        name="fashion-mnist",
        recipe=recipe,
        features=fashion_mnist_features(),
        shards=[shard for split, count in SHARDS.items() for shard in deal_shards(split, photographs[split], count)],
        row=_row,
        group=lambda photograph: CLASS_NAMES[photograph.label],
        card=CARD,
        sources=(SOURCE,),
        row_group_size=500,
    )


def fashion_mnist_features() -> Any:
    """The `datasets.Features` of a row."""
    datasets = demo_dependency("datasets")
    text = datasets.Value("string")
    return datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=list(CLASS_NAMES)),
            "tags": datasets.List(text),
            "captions": datasets.List({"language": text, "text": text}),
            "key": text,
        }
    )


def read_split(source_dir: Path, split: str) -> list[Photograph]:
    """All photographs of `train` or `test`, in the order of the original file.

    Raises:
        CorpusError: a file is no intact IDX file, or pictures and labels do not belong together.
    """
    image_file, label_file = (source_dir / name for name in SPLIT_FILES[split])
    images, labels = read_idx(image_file, dimensions=3), read_idx(label_file, dimensions=1)
    if images.shape[1:] != (SIDE, SIDE):
        raise CorpusError(f"{image_file} holds pictures of {images.shape[1]} x {images.shape[2]} pixels, not 28 x 28.")
    if len(images) != len(labels):
        raise CorpusError(f"{image_file} holds {len(images)} pictures but {label_file} {len(labels)} labels.")
    if len(labels) and labels.max() >= len(CLASS_NAMES):
        raise CorpusError(f"{label_file} holds label {labels.max()}; Fashion-MNIST has labels 0 to 9.")
    return [
        Photograph(f"{split}/{index:05d}", image, int(label))
        for index, (image, label) in enumerate(zip(images, labels, strict=True))
    ]


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """A gzipped IDX file of unsigned bytes, uint8 with `dimensions` axes.

    The header is two zero bytes, the type (8 = unsigned byte), the number of axes, and each axis as four bytes,
    big-endian; format as at http://yann.lecun.com/exdb/mnist/.

    Raises:
        CorpusError: not gzip, another type or number of axes, or not exactly as long as the header says.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise CorpusError(f"{path} is not an intact gzip file ({error}): install or copy it again.") from error
    magic = bytes((0, 0, 8, dimensions))
    if content[:4] != magic:
        raise CorpusError(
            f"{path} begins with {content[:4].hex() or 'nothing'}, not {magic.hex()}: "
            f"it is no IDX file of unsigned bytes with {dimensions} axes."
        )
    header = 4 + 4 * dimensions
    shape = [int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4)]
    size = 1
    for length in shape:
        size *= length
    if len(content) != header + size:
        raise CorpusError(
            f"{path} is {len(content)} bytes long where its header {shape} asks for {header + size}: "
            "it is cut short or damaged; install or copy it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _all_files_or_error(source_dir: Path) -> None:
    names = [name for files in SPLIT_FILES.values() for name in files]
    if missing := [name for name in names if not (source_dir / name).is_file()]:
        raise CorpusError(
            f"{source_dir / missing[0]} is missing: run `sudo apt-get install dataset-fashion-mnist`, "
            f"or put {', '.join(names)} into a folder and pass it as --source_dir."
        )


def _row(photograph: Photograph) -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.fromarray(photograph.pixels).save(buffer, "PNG", optimize=True)
    return {
        "image": {"bytes": buffer.getvalue(), "path": f"{photograph.key}.png"},
        "label": photograph.label,
        "tags": list(TAGS[photograph.label]),
        "captions": [{"language": "en", "text": CAPTIONS[photograph.label]}],
        "key": photograph.key,
    }
