"""Texts, JSON and numbers that are none cost a value, not the run."""

import io
import json
import tarfile
import warnings
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Features, Image, List, Value
from tiny import draw_image

from maws_hf.data.captions import find_captions
from maws_hf.data.sources import open_stream
from maws_hf.data.streaming import ImageStream, StreamError

LATIN = "grün".encode("latin-1")


def write_tar(file: Path, **broken: dict[int, bytes]) -> None:
    """Eight samples; `broken` has for an extension the rows with other bytes."""
    with tarfile.open(file, "w") as tar:
        for row in range(8):
            good = {"png": draw_image(row), "txt": b"a dog", "json": json.dumps({"a": row}).encode(), "cls": b"1"}
            for extension, content in good.items():
                content = broken.get(extension, {}).get(row, content)
                member = tarfile.TarInfo(f"{row:02d}.{extension}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("row", [0, 6])  # columns are learnt from the first five
@pytest.mark.parametrize(("extension", "content"), [("txt", LATIN), ("json", b'{"a": 1'), ("cls", b"x"), ("cls", b"")])
def test_a_member_that_cannot_be_decoded_is_missing_and_told(extension, content, row, tmp_path):
    write_tar(tmp_path / "0.tar", **{extension: {row: content, 7: content}})
    with pytest.warns(UserWarning, match=rf"0\.tar: 0{row}\.{extension} cannot be decoded") as told:
        rows = list(open_stream(tmp_path))
    assert {str(warning.message)[:60] for warning in told} == {str(told[0].message)[:60]}, "once a shard"
    assert [number for number, found in enumerate(rows) if found[extension] is None] == [row, 7]
    assert [found["png"]["bytes"] for found in rows] == [draw_image(number) for number in range(8)]


def nth(samples, count: int) -> list:
    return [next(samples) for _ in range(count)]


def test_a_caption_that_cannot_be_decoded_leaves_out_its_pair_only(tmp_path):
    write_tar(tmp_path / "0.tar", txt={6: LATIN})
    dataset = open_stream(tmp_path)
    captions = find_captions(dataset.features)
    stream = ImageStream(dataset, lambda row, rng: {"key": row["__key__"]}, seed=0, shuffle=False, repeats=captions)
    with pytest.warns(UserWarning, match=r"06\.txt"):
        assert [sample["key"] for sample in nth(iter(stream), 8)] == [f"0{row}" for row in (0, 1, 2, 3, 4, 5, 7, 0)]


@pytest.mark.parametrize("nested", [False, True])
def test_text_in_parquet_that_is_no_utf8_is_missing_and_told(nested, tmp_path):
    texts = pa.array([b"a dog"] * 300 + [LATIN] * 2 + [b"a cat"] * 3).view(pa.string())
    if nested:
        texts = pa.ListArray.from_arrays(range(306), pa.StructArray.from_arrays([texts], ["text"]))
    images = pa.array([{"bytes": draw_image(0), "path": None}] * 305)
    kind = List({"text": Value("string")}) if nested else Value("string")
    schema = Features({"image": Image(), "text": kind}).arrow_schema
    pq.write_table(pa.table({"image": images, "text": texts}).cast(schema), tmp_path / "0.parquet")
    with pytest.warns(UserWarning, match=r"0\.parquet: text of row 300 cannot be decoded") as told:
        rows = list(open_stream(tmp_path))
    assert len({str(warning.message) for warning in told}) == 1
    assert [number for number, row in enumerate(rows) if row["text"] is None] == [300, 301]
    assert rows[304]["text"] == ([{"text": "a cat"}] if nested else "a cat")
    assert all(row["image"]["bytes"] == draw_image(0) for row in rows)


def test_whole_shards_are_read_without_a_word(tmp_path):
    write_tar(tmp_path / "0.tar")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [row["cls"] for row in open_stream(tmp_path)] == [1] * 8


def test_a_value_of_another_type_ends_the_stream_with_the_name_of_its_shard(tmp_path):
    write_tar(tmp_path / "0.tar", json={6: b'{"a": "text"}'})
    stream = ImageStream(open_stream(tmp_path), lambda row, rng: {"key": row["__key__"]}, seed=0, shuffle=False)
    with pytest.raises(StreamError, match=r"block 0 of epoch 0 in .*0\.tar: ValueError"):
        next(iter(stream))
