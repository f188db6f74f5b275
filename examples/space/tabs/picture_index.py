"""Pictures of a data set with their features: encoded once, kept on disk, searched by cosine."""

import hashlib
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from datasets import ClassLabel, IterableDataset, Value
from PIL import Image
from torch import Tensor

from maws_hf.data.samples import sample_key
from maws_hf.data.sources import find_image_column
from maws_hf.evaluation.feature_cache import CacheError, digest_of, load_entry, save_entry
from maws_hf.evaluation.features import encode_images, model_digest
from maws_hf.processing.decode import ImageDecodeError, decode_image

from .encoder import Encoder
from .pictures import PageMessage, encoded

THUMBNAIL = 160  # pixels, longer side
THUMBNAILS = {"form": "WEBP", "quality": 80}
BATCH = 32


class Neighbour(NamedTuple):
    """
    Attributes:
        name: what the data set calls the picture.
        cosine: of the two features.
        picture: WebP.
        side: its shorter side in pixels.
    """

    name: str
    cosine: float
    picture: bytes
    side: int


@dataclass(frozen=True)
class PictureIndex:
    """
    Attributes:
        features: float32 `(N, D)` of length 1.
        names: N.
        pictures: N WebP files of at most `THUMBNAIL` pixels.
        sides: N, the shorter side of each.
        skipped: pictures that could not be decoded, and are in none of the above.
        from_cache: whether the model was spared.
    """

    features: Tensor
    names: list[str]
    pictures: list[bytes]
    sides: list[int]
    skipped: int
    from_cache: bool = False

    def nearest(self, feature: Tensor, count: int) -> list[Neighbour]:
        """The `count` pictures most like a feature `(D,)`, the most similar first."""
        cosines, places = (self.features @ F.normalize(feature.float(), dim=0)).topk(min(count, len(self.names)))
        return [
            Neighbour(self.names[place], cosine, self.pictures[place], self.sides[place])
            for cosine, place in zip(cosines.tolist(), places.tolist(), strict=True)
        ]


def build_index(
    encoder: Encoder,
    dataset: IterableDataset,
    *,
    most: int,
    cache_dir: Path,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> PictureIndex:
    """The index of a data set's first pictures, from `cache_dir` if model, transform and pictures are known there.

    Args:
        dataset: from `open_stream`; read once to know what it holds, and once more if it is to be encoded.
        most: pictures.
        report: told how many of how many pictures are encoded.

    Raises:
        ValueError: no picture can be decoded.
    """
    column = find_image_column(dataset)
    pictures = _pictures(dataset, column, most)
    digests = [hashlib.sha256(name.encode() + b"\0" + data).hexdigest() for name, data in pictures]
    how = {
        "model": model_digest(encoder.model),
        "transform": asdict(encoder.transform),
        "statistics": encoder.statistics,
        "thumbnails": [THUMBNAIL, THUMBNAILS],
        "pictures": digests,
    }
    entry = cache_dir / digest_of(how)
    if (index := _load(entry)) is not None:
        return index
    index = _encode(encoder, _pictures(dataset, column, most), len(digests), report)
    _save(entry, index)
    return index


class IndexInTheMaking:
    """An index that is built beside the page, which can be looked at meanwhile."""

    def __init__(self, build: Callable[[Callable[[int, int], None]], PictureIndex]):
        """
        Args:
            build: makes the index and reports how far it is.
        """
        self.done, self.total = 0, 0
        self.failure: str | None = None
        self._build, self._index = build, None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether it is over, one way or the other, after so many seconds at most."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def index(self) -> PictureIndex:
        """
        Raises:
            PageMessage: it is not there yet, or never will be.
        """
        if self._index is None:
            raise PageMessage(self.failure or "Neighbours appear here as soon as all pictures are encoded.")
        return self._index

    def _run(self) -> None:
        try:
            self._index = self._build(self._report)
        except Exception as error:  # in a thread of its own nobody else would tell
            self.failure = (
                "The pictures could not be read, so there is nothing to search; the log of the page says why."
            )
            print(f"no index: {type(error).__name__}: {error}", file=sys.stderr, flush=True)

    def _report(self, done: int, total: int) -> None:
        self.done, self.total = done, total


def _pictures(dataset: IterableDataset, column: str, most: int) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each; no bytes where there is none."""
    for number, row in enumerate(itertools.islice(dataset, most)):
        image = row[column]
        data = image.get("bytes") if isinstance(image, dict) else image
        yield _name(row, dataset.features, number), data if isinstance(data, bytes) else b""


def _name(row: dict[str, Any], kinds: dict[str, Any], number: int) -> str:
    """Its name, else its class, else its file."""
    kind = kinds.get("name")
    if isinstance(kind, Value) and isinstance(row["name"], str):
        return row["name"]
    classes = [column for column, kind in kinds.items() if isinstance(kind, ClassLabel)]
    if len(classes) == 1 and isinstance(label := row[classes[0]], int) and label >= 0:
        return kinds[classes[0]].int2str(label)
    return Path(sample_key(row) or f"picture {number}").name


def _encode(
    encoder: Encoder, pictures: Iterator[tuple[str, bytes]], total: int, report: Callable[[int, int], None]
) -> PictureIndex:
    names, thumbnails, sides, features, done, skipped = [], [], [], [], 0, 0
    while batch := list(itertools.islice(pictures, BATCH)):
        pixels = []
        for name, data in batch:
            try:
                picture = decode_image(data, key=name)
            except ImageDecodeError:
                skipped += 1
                continue
            thumbnail = Image.fromarray(picture)
            thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
            names.append(name)
            thumbnails.append(encoded(thumbnail, **THUMBNAILS))
            sides.append(min(thumbnail.size))
            pixels.append(encoder.transform(picture))
        if pixels:
            batch_features = encode_images(encoder.model, torch.stack(pixels), **encoder.statistics)
            features.append(F.normalize(batch_features.cpu(), dim=1))
        done += len(batch)
        report(done, total)
    if not features:
        raise ValueError(f"none of {total} pictures can be decoded")
    return PictureIndex(torch.cat(features), names, thumbnails, sides, skipped)


def _save(entry: Path, index: PictureIndex) -> None:
    ends = list(itertools.accumulate(map(len, index.pictures)))
    joined = torch.frombuffer(bytearray(b"".join(index.pictures)), dtype=torch.uint8)
    save_entry(_pictures_of(entry), joined, {"ends": ends})
    save_entry(entry, index.features, {"names": index.names, "sides": index.sides, "skipped": index.skipped})


def _load(entry: Path) -> PictureIndex | None:
    try:
        features, pictures = load_entry(entry), load_entry(_pictures_of(entry))
    except CacheError as error:
        print(f"{error}; encoding the pictures again", flush=True)
        return None
    if features is None or pictures is None:
        return None
    joined, ends = pictures[0].numpy().tobytes(), pictures[1]["ends"]
    cut = [joined[start:end] for start, end in itertools.pairwise([0, *ends])]
    return PictureIndex(features[0], pictures=cut, from_cache=True, **features[1])


def _pictures_of(entry: Path) -> Path:
    return entry.with_name(f"{entry.name}-pictures")
