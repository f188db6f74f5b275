"""A few hundred damaged files for each reader of foreign files; `scripts/fuzz_inputs.py` runs as many as one likes.

The numbers are the cases of the table of faults that the package is built against.
"""

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hostile_pictures import pictures
from hostile_targets import target
from mutations import chunks_of, damage, damage_json
from PIL import Image, ImageOps

from maws_hf.processing.decode import decode_image

# Reader, damaged files, and how many of them must at least be refused: damage that never shows would prove nothing.
READERS = [
    pytest.param("decode", 400, 100, id="case-25-pictures"),
    pytest.param("config", 150, 50, id="case-31-configs"),
    pytest.param("lit-config", 100, 50, id="case-31-configs-of-two-towers"),
    pytest.param("checkpoint", 150, 100, id="cases-4-and-5-checkpoints"),
    pytest.param("forged-manifest", 100, 20, id="case-5-manifests-that-agree-with-themselves"),
    pytest.param("parquet", 15, 5, id="case-24-parquet"),
    pytest.param("tar", 15, 5, id="case-24-tar"),
    pytest.param("safetensors", 60, 30, id="case-31-safetensors"),
    pytest.param("pt", 200, 50, id="case-29-pt"),
    pytest.param("original-safetensors", 100, 50, id="case-29-original-safetensors"),
]


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "files", "least_refused"), READERS)
def test_a_damaged_file_is_read_or_refused_in_words(name: str, files: int, least_refused: int, tmp_path: Path):
    reader, outcomes = target(name), Counter()
    for number in range(files):
        folder = tmp_path / str(number)
        folder.mkdir()
        data = reader.make(np.random.default_rng([11, number]))
        try:
            reader.attempt(data, folder)
        except reader.refusals as error:
            outcomes["refused" if str(error).strip() else "refused without a word"] += 1
        except Exception as error:
            raise AssertionError(f"file {number} of {name}: {type(error).__name__}: {error}") from error
        else:
            outcomes["read"] += 1
    assert outcomes["refused"] >= least_refused
    assert outcomes["refused"] + outcomes["read"] == files


def shown_on_white(data: bytes) -> np.ndarray:
    """Upright, each colour mixed with white by its alpha, the whole range of deep greys; not rounded."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode in ("I;16", "F"):
        grey = np.asarray(image, dtype=np.float64) * 255 / (65_535 if image.mode == "I;16" else 1)
        return np.stack([grey] * 3, axis=-1)
    colour, alpha = np.split(np.asarray(image.convert("RGBA"), dtype=np.float64), [3], axis=-1)
    return 255 + (colour - 255) * alpha / 255


@pytest.mark.parametrize("kind", pictures())
def test_the_undamaged_pictures_are_read_as_they_look(kind: str, tmp_path: Path):
    data = pictures()[kind]
    target("decode").attempt(data, tmp_path)
    assert decode_image(data) == pytest.approx(shown_on_white(data), abs=1)


def test_a_damaged_file_follows_from_its_numbers():
    whole = list(pictures().values())
    first, again, other = (damage(whole[0], whole, np.random.default_rng([1, n])) for n in (5, 5, 6))
    assert first == again
    assert first != other


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_chunks_put_together_are_the_file(kind: str):
    head, chunks = chunks_of(pictures()[kind])
    assert len(chunks) > 1
    # Trailing zeros are how chunks of GIF files are told apart, so one more appears at its end.
    assert (head + b"".join(chunks)).removesuffix(b"\0" if kind == "gif" else b"") == pictures()[kind]


def test_damage_to_values_leaves_the_original_alone():
    value = {"a": [1, {"b": 2}], "c": "d"}
    changed = [damage_json(value, np.random.default_rng(seed)) for seed in range(50)]
    assert value == {"a": [1, {"b": 2}], "c": "d"}
    assert sum(repr(each) != repr(value) for each in changed) > 40
