"""A run goes on with other numbers of processes, data workers and images an update."""

import itertools
import json
import re
import shutil
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from line_run import lines, run
from tiny import draw_image

from maws_hf.data import sources
from maws_hf.data.loader import begin_next_epoch, build_loader, loader_state, reads_other_files, restore_loader
from maws_hf.data.resampling import RepeatFactors, RepeatRows
from maws_hf.data.samples import prepare_image
from maws_hf.data.sources import open_stream
from maws_hf.data.streaming import ImageStream, StreamStateError
from maws_hf.data.targets import LabelReader
from maws_hf.processing.transforms import TrainTransform
from maws_hf.training.resumption import restore_position

pytestmark = pytest.mark.filterwarnings("ignore:.*shards cannot be dealt evenly")
IMAGES = 96


def loader_of(corpus: Path, rank: int = 0, world_size: int = 1, workers: int = 0, seed: int = 0, **more):
    transform = partial(prepare_image, image_column="image", transform=TrainTransform(16))
    options = {"rank": rank, "world_size": world_size, "num_workers": workers, "block_size": 7, **more}
    return build_loader(ImageStream(open_stream(corpus), transform, seed=seed, **options), batch_size=4)


def read(loader, batches: int) -> list[str]:
    return [key for batch in itertools.islice(loader, batches) for key in batch["keys"]]


@pytest.mark.parametrize(
    ("before", "now"), [((2, 0), (1, 0)), ((1, 0), (2, 0)), ((3, 0), (2, 0)), ((1, 2), (1, 0)), ((1, 0), (1, 2))]
)
def test_the_next_epoch_is_shared_exactly_by_the_new_processes_and_workers(before, now, image_shards: Path):
    states = []
    for rank in range(before[0]):
        loader = loader_of(image_shards, rank, *before)
        read(loader, IMAGES // 4 // before[0] + 2)  # some batches into the second epoch
        states.append(json.loads(json.dumps(loader_state(loader))))
    found = []
    for rank in range(now[0]):
        loader = loader_of(image_shards, rank, *now)
        assert begin_next_epoch(loader, states) == 2
        found += read(loader, IMAGES // 4 // now[0])
    assert len(found) == len(set(found)) == IMAGES


def test_a_position_of_the_new_share_continues_exactly(image_shards: Path):
    old, new, again = (loader_of(image_shards, 0, size) for size in (2, 1, 1))
    read(old, 2)
    begin_next_epoch(new, [loader_state(old)])
    batches = iter(new)
    read(batches, 3)
    saved = loader_state(new)
    restore_loader(again, saved)
    assert read(batches, 30) == read(again, 30)


def test_another_seed_is_no_other_share(image_shards: Path):
    old = loader_of(image_shards, 0, 2)
    read(old, 2)
    with pytest.raises(StreamStateError, match=r"seed 0 \(now 1\): "):
        begin_next_epoch(loader_of(image_shards, seed=1), [loader_state(old)])


def test_other_workers_change_nothing_but_the_order_of_the_images(image_shards: Path, tmp_path: Path, capsys):
    options = {"ema_decay": 0.9, "warmup_steps": 2}
    run(image_shards, tmp_path / "straight", **options)
    run(image_shards, tmp_path, max_steps=3, **options)
    capsys.readouterr()
    states = []

    def note(step: int, model: torch.nn.Module) -> None:
        states.append((step, model.line.weight.item()))

    outcome, _ = run(image_shards, tmp_path, dataloader_num_workers=1, after_step=note, **options)
    said = capsys.readouterr().out
    assert "--dataloader_num_workers was 0 in the checkpoint, now 1" in said
    assert "1 processes x 0 data workers, now 1 x 1: reading goes on with epoch 1, what is left of epoch 0" in said
    assert outcome.images_seen == 24
    assert [step for step, _ in states] == [4, 5, 6]
    straight, resumed = (lines(folder / "metrics.jsonl") for folder in (tmp_path / "straight", tmp_path))
    assert [line["learning_rate"] for line in resumed][3:] == [line["learning_rate"] for line in straight][3:]
    assert [line["images_seen"] for line in resumed] == [line["images_seen"] for line in straight]


def test_another_batch_continues_the_stream_and_tells_both_learning_rates(image_shards: Path, tmp_path: Path, capsys):
    scaled = {"learning_rate": None, "base_learning_rate": 1.0}
    run(image_shards, tmp_path, max_steps=3, **scaled)
    capsys.readouterr()
    keys = []

    def objective(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        keys.extend(batch["keys"])
        return model(batch["pixel_values"])

    outcome, _ = run(image_shards, tmp_path, objective, per_device_train_batch_size=8, **scaled)
    said = capsys.readouterr().out
    assert "an update had 4 images (batch x accumulation x processes), now 8; the peak" in said
    assert "the peak learning rate was 0.015625, now 0.03125; --learning_rate 0.015625 keeps it" in said
    assert outcome.images_seen == 3 * 4 + 3 * 8
    whole = []

    def note(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        whole.extend(batch["keys"])
        return model(batch["pixel_values"])

    run(image_shards, tmp_path / "straight", note, max_steps=9)
    assert keys == whole[12:36]


def test_another_batch_is_told_where_the_learning_rate_does_not_follow_from_it(image_shards: Path, tmp_path, capsys):
    run(image_shards, tmp_path, max_steps=1)
    capsys.readouterr()
    run(image_shards, tmp_path, max_steps=2, per_device_train_batch_size=8)
    said = capsys.readouterr().out
    assert "had 4 images (batch x accumulation x processes), now 8; the peak" in said
    assert "learning rate was 0.05, now 0.05\n" in said


@pytest.mark.parametrize("change", ["added", "exchanged", "removed"])
def test_other_files_are_read_from_the_next_epoch_on(change: str, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.setattr(sources, "MOST_IMAGE_SHARDS", 12)  # fewer than there are images: their number says nothing
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(24):
        (photos / f"{number:02d}.png").write_bytes(draw_image(number))
    run(photos, tmp_path, max_steps=3)
    if change != "removed":
        (photos / "new.png").write_bytes(draw_image(24))
    if change != "added":
        (photos / "00.png").unlink()
    capsys.readouterr()
    keys = []

    def objective(model: torch.nn.Module, batch: dict) -> torch.Tensor:
        keys.extend(Path(key).name for key in batch["keys"])
        return model(batch["pixel_values"])

    run(photos, tmp_path, objective, max_steps=9)
    said = capsys.readouterr().out
    assert "added, removed or exchanged (other names or sizes): reading goes on with epoch 1, what is left of" in said
    there = {file.name for file in photos.iterdir()}
    assert len(set(keys[: len(there)])) == min(len(there), 24)  # an epoch of all that is there now
    assert set(keys) <= there


def test_files_may_change_but_not_the_classes(image_shards: Path, tmp_path: Path):
    shutil.copytree(image_shards, tmp_path / "more")
    shutil.copy(next(image_shards.glob("*.parquet")), tmp_path / "more" / "new.parquet")

    def loader_with(folder: Path, *names: str, factors: float = 1.0):
        counts = np.ones(len(names), dtype=np.int64)
        rows = RepeatRows(RepeatFactors(counts, counts, len(names), threshold=factors), LabelReader("label", names))
        return loader_of(folder, repeats=rows)

    saved = loader_state(loader_with(image_shards, "cat", "dog"))
    assert begin_next_epoch(loader_with(tmp_path / "more", "cat", "dog", factors=0.5), [saved]) == 1
    for names in (("dog", "cat"), ("ape", "cat"), ("cat", "dog", "eel")):
        with pytest.raises(StreamStateError, match="the classes, or their order, or the column of labels, are not"):
            begin_next_epoch(loader_with(tmp_path / "more", *names), [saved])
        with pytest.raises(StreamStateError, match="the classes, or their order"):
            restore_loader(loader_with(image_shards, *names), saved)
    earlier = json.loads(re.sub(r', "labels": "[0-9a-f]+"', "", json.dumps(saved)))
    assert '"labels"' not in json.dumps(earlier)
    assert begin_next_epoch(loader_with(tmp_path / "more", "cat", "dog"), [earlier]) == 1
    with pytest.raises(StreamStateError, match="the classes, or their order"):
        begin_next_epoch(loader_with(tmp_path / "more", "dog", "cat"), [earlier])


def positions_of(*loaders) -> SimpleNamespace:
    """A checkpoint, as far as positions go, of processes that have these loaders."""
    states = [{"step": 3, "recent_skips": [[3, f"bad of {rank}"]]} for rank in range(len(loaders))]
    files = {
        f"rank-{rank:05d}.json": {"state": state, "stream": loader_state(loader)}
        for rank, (state, loader) in enumerate(zip(states, loaders, strict=True))
    }
    manifest = {"world_size": len(loaders), "recipe": {"dataloader_num_workers": 0}}
    return SimpleNamespace(manifest=manifest, read_json=lambda name: json.loads(json.dumps(files[name])))


def test_with_other_processes_the_epoch_after_all_of_theirs_begins(image_shards: Path):
    old = [loader_of(image_shards, rank, 2) for rank in range(2)]
    read(old[1], IMAGES // 4)  # the second is an epoch ahead
    new, said = loader_of(image_shards), []
    recipe = SimpleNamespace(dataloader_num_workers=0)
    state = restore_position(new, positions_of(*old), recipe, 0, 1, said.append)
    assert state == {"step": 3, "recent_skips": []}
    assert new.dataset.first_epoch == 2
    assert "reading goes on with epoch 2" in said[0]


def test_each_process_goes_on_with_its_own_position_and_state(image_shards: Path):
    old = [loader_of(image_shards, rank, 2) for rank in range(2)]
    iterators = [iter(loader) for loader in old]
    for batches, iterator in enumerate(iterators, start=1):
        read(iterator, batches)
    saved, recipe = positions_of(*old), SimpleNamespace(dataloader_num_workers=0)
    for rank, iterator in enumerate(iterators):
        new = loader_of(image_shards, rank, 2)
        state = restore_position(new, saved, recipe, rank, 2, print)
        assert state["recent_skips"] == [[3, f"bad of {rank}"]]
        assert read(new, 5) == read(iterator, 5)


def test_a_run_from_before_whole_shards_were_dealt_begins_the_next_epoch(tmp_path: Path):
    rows = pa.table({"image": [draw_image(0)]})
    for number in range(9):
        pq.write_table(rows, tmp_path / f"{number}.parquet")
    old = positions_of(*(loader_of(tmp_path, rank, 2) for rank in range(2)))
    read_json = old.read_json
    old.read_json = lambda name: json.loads(re.sub(r'"strategy": "shards", ', "", json.dumps(read_json(name))))
    new, said = loader_of(tmp_path, 0, 2), []
    restore_position(new, old, SimpleNamespace(dataloader_num_workers=0), 0, 2, said.append)
    assert new.dataset.first_epoch == 1
    assert "an earlier version had each reader read all the data" in said[0]


def test_a_position_saved_without_the_files_is_continued_exactly(image_shards: Path):
    old, new = loader_of(image_shards), loader_of(image_shards)
    batches = iter(old)
    read(batches, 3)
    saved = json.loads(re.sub(r'"files": "[0-9a-f]+", ', "", json.dumps(loader_state(old))))
    assert "files" not in json.dumps(saved)
    assert not reads_other_files(new, saved)
    restore_loader(new, saved)
    assert read(batches, 5) == read(new, 5)


def test_moved_data_are_the_same_and_shards_written_anew_are_not(image_shards: Path, tmp_path: Path):
    saved = loader_state(loader_of(image_shards))
    shutil.copytree(image_shards, tmp_path / "moved")
    assert not reads_other_files(loader_of(tmp_path / "moved"), saved)
    shard = max((tmp_path / "moved").rglob("*.parquet"))
    table = pq.read_table(shard)
    pq.write_table(table.slice(0, table.num_rows - 1), shard)
    loader = loader_of(tmp_path / "moved")
    assert reads_other_files(loader, saved)
    with pytest.raises(StreamStateError, match=r"belongs to a stream with files .* \(now "):
        restore_loader(loader, saved)
