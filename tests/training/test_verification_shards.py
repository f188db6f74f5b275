"""`maws-hf verify` of corpora, labels and features."""

import hashlib
import json
from pathlib import Path

import pytest
from tiny import draw_image

from maws_hf.data.corpus import Shard, Source, write_corpus
from maws_hf.training.verification import verify_folder


def faults_of(folder: Path) -> list[str]:
    return [fault for verdict in verify_folder(folder) for fault in verdict.faults]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    from datasets import Features, Value

    shards = [Shard("train", f"data/train-{number:05d}-of-00002.parquet", [number]) for number in range(2)]
    write_corpus(
        tmp_path,
        name="numbers",
        recipe={"of": "a test"},
        features=Features({"picture": Value("binary")}),
        shards=shards,
        row=lambda number: {"picture": draw_image(number)},
        group=str,
        card="numbers, version <version>",
        sources=[Source("numbers", "1", "CC0", "nobody")],
        row_group_size=1,
    )
    return tmp_path


def test_a_whole_corpus_has_no_faults(corpus: Path):
    (verdict,) = verify_folder(corpus)
    assert ("manifest.json" in verdict.checked, verdict.faults) == (True, ())


def test_a_flipped_bit_a_lost_shard_and_a_stranger_are_named(corpus: Path):
    first, second = sorted((corpus / "data").iterdir())
    content = bytearray(first.read_bytes())
    content[100] ^= 1
    first.write_bytes(content)
    second.rename(corpus / "data" / "more.parquet")
    (corpus / "README.md").unlink()
    told = faults_of(corpus)
    assert len(told) == 4
    assert told[0].startswith(f"{first} is not what was written")
    assert told[1].startswith(f"{second} is missing")
    assert told[2].startswith(f"{corpus}/data/more.parquet is not in manifest.json")
    assert told[3].startswith(f"{corpus}/README.md is missing")


def test_a_half_built_corpus_is_said_to_be_that(corpus: Path):
    (corpus / "manifest.json").rename(corpus / "building.json")
    (fault,) = faults_of(corpus)
    assert "half built" in fault


@pytest.mark.parametrize(
    "manifest", ["[" * 100_000, "[]", "{}", '{"shards": [1]}', '{"shards": {"data/x": 3}}', "\x80"]
)
def test_a_manifest_of_another_shape_is_a_fault_and_no_traceback(corpus: Path, manifest: str):
    (corpus / "manifest.json").write_text(manifest, encoding="latin-1")
    (fault,) = faults_of(corpus)
    assert "manifest.json is no manifest of a corpus" in fault


def test_shards_are_compared_with_their_records_and_counted(tmp_path: Path):
    for number in (0, 1):
        content = b"shard" * (number + 1)
        (tmp_path / f"train-{number:05d}-of-00003.parquet").write_bytes(content)
        record = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (tmp_path / f"train-{number:05d}-of-00003.json").write_text(json.dumps(record))
    assert ["lacks 1 of 3 shards of train, the first number 2" in fault for fault in faults_of(tmp_path)] == [True]
    (tmp_path / "train-00001-of-00003.parquet").write_bytes(b"shardshare")
    (tmp_path / "train-00000-of-00003.parquet").unlink()
    told = " ".join(faults_of(tmp_path))
    assert "train-00001-of-00003.parquet is not what was written" in told
    assert "train-00000-of-00003.parquet is missing" in told
