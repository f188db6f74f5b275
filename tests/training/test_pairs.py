"""What a run reads of image-caption pairs: features of these data and no others, sets to be asked about."""

import io
import itertools
import json
import subprocess
import sys
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Dataset, Features, Image, List, Value
from tiny import draw_image
from tiny_lit import tiny_lit
from tiny_two_towers import tiny_tokenizer

from maws_hf.data.feature_shards import FeatureRecord, compute_features
from maws_hf.data.loader import loader_state, restore_loader
from maws_hf.data.sources import DataSourceError
from maws_hf.data.streaming import StreamStateError
from maws_hf.evaluation.features import encode_images
from maws_hf.kernels.packed import can_pack
from maws_hf.models.prepared import is_prepared
from maws_hf.processing.decode import decode_image
from maws_hf.processing.text_batches import TextBatch
from maws_hf.processing.transforms import EvalTransform
from maws_hf.training.checkpoint import MANIFEST
from maws_hf.training.pairs import (
    PairRecipe,
    _count_rows,
    _data_of,
    _feature_job,
    build_pair_loader,
    encode_locked,
    load_tokenizer_of,
    mean_caption_tokens,
    open_pairs,
)
from maws_hf.training.retrieval_set import read_retrieval_set

WORDS = {"en": "a disc", "de": "eine Scheibe", "fr": "un disque"}


def write(
    folder: Path, shards: int, rows: int = 12, broken: tuple[int, ...] = (), picture: np.ndarray | None = None
) -> None:
    for file in folder.glob("*.parquet"):
        file.unlink()
    folder.mkdir(exist_ok=True)
    kinds = {"image": Image(), "captions": List({"language": Value("string"), "text": Value("string")})}
    captions = [{"language": language, "text": text} for language, text in WORDS.items()]

    def draw(index: int) -> bytes:
        if picture is None:
            return draw_image(index)
        buffer = io.BytesIO()
        PIL.Image.fromarray(picture).save(buffer, "PNG")
        return buffer.getvalue()

    columns = {
        "image": [{"bytes": b"" if i in broken else draw(i), "path": f"{i}.png"} for i in range(rows)],
        "captions": [captions[: 1 + i % 3] for i in range(rows)],  # all have English, a third of them French
    }
    dataset = Dataset.from_dict(columns, features=Features(kinds))
    for shard in range(shards):
        dataset.shard(shards, shard).to_parquet(folder / f"train-{shard:05d}.parquet")


@pytest.fixture
def recipe(tmp_path: Path) -> PairRecipe:
    write(tmp_path / "data", shards=2)
    return PairRecipe(
        dataset_name=str(tmp_path / "data"),
        output_dir=str(tmp_path / "run"),
        per_device_train_batch_size=3,
        dataloader_num_workers=0,
    )


@pytest.fixture
def accelerator() -> SimpleNamespace:
    """What of it is read here."""
    return SimpleNamespace(device="cpu", process_index=0, num_processes=1, print=print)


@pytest.fixture
def model():
    return tiny_lit({"vocab_size": 300})


def keys_of_an_epoch(loader, images=12):
    return sorted(key for batch in itertools.islice(loader, images // 3) for key in batch["keys"])


def test_data_in_another_number_of_shards_are_still_read_once(recipe, model, accelerator, tmp_path):
    expected = sorted(f"{i}.png" for i in range(12))
    for shards in (2, 4, 3, 2):
        write(tmp_path / "data", shards)
        loader, views = build_pair_loader(recipe, model, tiny_tokenizer(), accelerator)
        assert views == 12
        assert keys_of_an_epoch(loader) == expected


def test_a_damaged_shard_costs_its_pairs_and_is_told(recipe, model, accelerator, tmp_path, capsys):
    write(tmp_path / "data", shards=3)
    damaged = tmp_path / "data" / "train-00001.parquet"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-9])
    loader, views = build_pair_loader(recipe, model, tiny_tokenizer(), accelerator)
    assert f"warning: {damaged} is damaged after 0 parts" in capsys.readouterr().out
    assert views == 8
    assert set(keys_of_an_epoch(loader, images=9)) == {f"{i}.png" for i in (*range(4), *range(8, 12))}
    (tmp_path / "data" / "train-00002.parquet").write_bytes(whole[:-9])
    with pytest.raises(DataSourceError, match=r"2 of 3 shards are damaged, among them .*00001.* --max_skip_rate"):
        build_pair_loader(recipe, model, tiny_tokenizer(), accelerator)
    for shard in (1, 2):
        (tmp_path / "data" / f"train-0000{shard}.parquet").write_bytes(whole)
    assert build_pair_loader(recipe, model, tiny_tokenizer(), accelerator)[1] == 12, "repaired, it is read again"


def lengths_of(part: TextBatch) -> list[int]:
    """Tokens of each caption, by the number that they have in their row."""
    owners = part.caption_ids.flatten()
    rows = part.starts // part.caption_ids.shape[1]
    return [int((part.caption_ids[row] == owners[start]).sum()) for row, start in zip(rows, part.starts, strict=True)]


@pytest.mark.parametrize("workers", [0, 2])
def test_captions_come_as_the_text_tower_takes_them(workers: int, recipe, model, accelerator):
    tokenizer = tiny_tokenizer()
    recipe = replace(recipe, dataloader_num_workers=workers)
    loader, _ = build_pair_loader(recipe, model, tokenizer, accelerator, parts=2)
    batch = next(iter(loader))
    assert [len(part.starts) for part in batch["text_batches"]] == [1, 2]
    found = [
        tuple(part.input_ids.flatten()[start : start + length].tolist())
        for part in batch["text_batches"]
        for start, length in zip(part.starts, lengths_of(part), strict=True)
    ]
    ids = [tuple(tokenizer(text)["input_ids"]) for text in WORDS.values()]
    for key, caption in zip(batch["keys"], found, strict=True):
        assert caption in ids[: 1 + int(key.removesuffix(".png")) % 3]  # of its own image
    assert len(set(found)) > 1
    loss = model(vision_features=batch["vision_features"], text_batches=batch["text_batches"], return_loss=True).loss
    assert torch.isfinite(loss)


def test_features_of_another_tower_are_other_features(recipe, model, accelerator):
    batches = []
    for tower in (model, tiny_lit({"vocab_size": 300}, seed=1), model):
        loader, _ = build_pair_loader(recipe, tower, tiny_tokenizer(), accelerator)
        batches.append(next(iter(loader))["vision_features"])
    assert batches[0].equal(batches[2])
    assert not batches[0].equal(batches[1])


def test_all_that_decides_a_feature_decides_which_are_read(recipe, model, accelerator, tmp_path):
    def folder_of(**options: object) -> Path:
        changed = replace(recipe, **{"feature_views": 2, **options})
        return _feature_job(
            changed, model.vision_model, *open_pairs(changed, changed.dataset_split)[:2], accelerator
        ).folder

    write(tmp_path / "others", shards=2)
    changes = {
        "crop_scale": 0.5,
        "feature_views": 3,
        "seed": 1,
        "bf16": True,
        "dataset_name": str(tmp_path / "others"),
    }
    folders = {folder_of(), *(folder_of(**{name: value}) for name, value in changes.items())}
    assert len(folders) == 1 + len(changes)
    assert folder_of(max_steps=7, caption_weights="en=1") == folder_of()
    centres = {folder_of(feature_views=1, seed=seed) for seed in (0, 1)}
    assert len(centres) == 1, "a centre needs no seed"
    shared = tmp_path / "shared"
    assert folder_of(feature_cache=str(shared)).parent == shared


def test_another_split_or_configuration_is_other_data(recipe):
    dataset, *_ = open_pairs(recipe, "train")
    others = [replace(recipe, dataset_split="test"), replace(recipe, dataset_config_name="large")]
    assert len({json.dumps(_data_of(each, dataset)) for each in (recipe, *others)}) == 3


def test_crops_of_features_are_drawn_as_small_as_asked_and_each_is_trained_on(recipe, model, accelerator, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    opened = open_pairs(recipe, "train")[:2]
    whole = torch.from_numpy(picture).permute(2, 0, 1)
    for scale, same in ((1.0, True), (0.1, False)):
        changed = replace(recipe, feature_views=3, crop_scale=scale)
        views = _feature_job(changed, model.vision_model, *opened, accelerator).views(
            picture, np.random.default_rng(0)
        )
        assert len(views) == 3
        assert all(torch.equal(view, whole) is same for view in views)
    loader, computed = build_pair_loader(replace(recipe, feature_views=3), model, tiny_tokenizer(), accelerator)
    assert computed == 36
    seen: dict[str, set[bytes]] = {}
    for batch in itertools.islice(loader, 40):
        for key, feature in zip(batch["keys"], batch["vision_features"], strict=True):
            seen.setdefault(key, set()).add(feature.numpy().tobytes())
    assert len(seen) == 12
    assert max(len(features) for features in seen.values()) == 3


def features_by_name(recipe: PairRecipe, model, accelerator) -> dict[str, torch.Tensor]:
    """Of one epoch."""
    loader, _ = build_pair_loader(recipe, model, tiny_tokenizer(), accelerator)
    batches = list(itertools.islice(loader, 4))
    return {
        key: feature for batch in batches for key, feature in zip(batch["keys"], batch["vision_features"], strict=True)
    }


def test_features_are_computed_in_the_precision_asked_for(recipe, model, accelerator):
    plain, rounded = (features_by_name(replace(recipe, bf16=bf16), model, accelerator) for bf16 in (False, True))
    for key, feature in plain.items():
        pixels = EvalTransform(32)(decode_image(draw_image(int(key.removesuffix(".png")))))[None]
        torch.testing.assert_close(feature, encode_images(model.vision_model, pixels)[0].clone(), rtol=0, atol=1e-4)
        assert 1e-4 * feature.norm() < (rounded[key] - feature).norm() < 0.1 * feature.norm()


def test_another_seed_crops_elsewhere(recipe, model, accelerator):
    found = []
    for seed in (0, 1):
        changed = replace(recipe, seed=seed, feature_views=2)
        job = _feature_job(changed, model.vision_model, *open_pairs(changed, "train")[:2], accelerator)
        compute_features(job)
        rows = Dataset.from_parquet(str(job.data_file(0)), cache_dir=str(job.folder / "arrow"))
        found.append(set(rows["vision_features"]))
    assert not found[0] & found[1]


def test_many_bad_images_among_very_many_are_no_reason_to_stop(recipe):
    records = [FeatureRecord(rows=980, skipped=[{"key": str(number), "reason": "cut"} for number in range(20)])]
    assert _count_rows(replace(recipe, max_skip_rate=0.02), records, 1, SimpleNamespace(print=print)) == 980
    with pytest.raises(DataSourceError, match="20 of 1000 images could not be read"):
        _count_rows(replace(recipe, max_skip_rate=0.019), records, 1, SimpleNamespace(print=print))


@pytest.mark.parametrize("views", [0, 1])
def test_images_without_a_wanted_caption_are_never_drawn(views: int, recipe, model, accelerator):
    only_french = replace(recipe, caption_weights="fr=1", feature_views=views)
    loader, _ = build_pair_loader(only_french, model, tiny_tokenizer(), accelerator)
    keys = {key for batch in itertools.islice(loader, 8) for key in batch["keys"]}
    assert keys == {"2.png", "5.png", "8.png", "11.png"}


@pytest.mark.parametrize("views", [0, 1])
def test_another_seed_is_another_order_of_pairs(views: int, recipe, model, accelerator):
    orders = []
    for seed in (0, 0, 1):
        changed = replace(recipe, seed=seed, feature_views=views)
        loader, _ = build_pair_loader(changed, model, tiny_tokenizer(), accelerator)
        orders.append([key for batch in itertools.islice(loader, 4) for key in batch["keys"]])
    assert orders[0] == orders[1] != orders[2]


def test_a_position_among_features_of_another_tower_is_refused(recipe, model, accelerator):
    loader, _ = build_pair_loader(recipe, model, tiny_tokenizer(), accelerator)
    next(iter(loader))
    position = loader_state(loader)
    restore_loader(build_pair_loader(recipe, model, tiny_tokenizer(), accelerator)[0], position)
    for other, tower in ((recipe, tiny_lit({"vocab_size": 300}, seed=1)), (replace(recipe, feature_views=0), model)):
        loader, _ = build_pair_loader(other, tower, tiny_tokenizer(), accelerator)
        with pytest.raises(StreamStateError, match="source"):
            restore_loader(loader, position)


def test_a_position_is_that_of_the_data_however_they_are_spelled_and_whatever_the_precision(
    recipe, model, accelerator, tmp_path, monkeypatch
):
    loader, _ = build_pair_loader(recipe, model, tiny_tokenizer(), accelerator)
    next(iter(loader))
    position = loader_state(loader)
    monkeypatch.chdir(tmp_path)
    for other in (
        replace(recipe, dataset_name="./data/"),
        replace(recipe, bf16=True),
        replace(recipe, feature_views=2),
    ):
        loader, _ = build_pair_loader(other, model, tiny_tokenizer(), accelerator)
        restore_loader(loader, position)
    assert len(list((tmp_path / "run" / "features").iterdir())) == 3, "another spelling computes nothing anew"


def test_a_run_of_other_data_is_refused_by_option_before_features_are_computed(recipe, model, accelerator, tmp_path):
    loader, _ = build_pair_loader(recipe, model, tiny_tokenizer(), accelerator)
    next(iter(loader))
    checkpoint = tmp_path / "run" / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "rank-00000.json").write_text(json.dumps({"stream": loader_state(loader)}))
    (checkpoint / MANIFEST).write_text(json.dumps({"recipe": asdict(recipe)}))
    build_pair_loader(recipe, model, tiny_tokenizer(), accelerator)
    write(tmp_path / "others", shards=2)
    other = replace(recipe, dataset_name=str(tmp_path / "others"))
    with pytest.raises(
        StreamStateError, match=r"^--dataset_name was .*data in the checkpoint, now .*others; .*step-0000"
    ):
        build_pair_loader(other, model, tiny_tokenizer(), accelerator)
    assert len(list((tmp_path / "run" / "features").iterdir())) == 1


def test_features_of_a_tower_that_is_trained_are_refused(recipe, accelerator):
    unlocked = tiny_lit(lock_vision_tower=False)
    with pytest.raises(ValueError, match="give --feature_views 0"):
        build_pair_loader(recipe, unlocked, tiny_tokenizer(), accelerator)
    build_pair_loader(replace(recipe, feature_views=0), unlocked, tiny_tokenizer(), accelerator)


def test_few_bad_images_are_told_and_many_are_an_error(recipe, model, accelerator, tmp_path, capsys):
    write(tmp_path / "data", shards=2, broken=(4, 7))
    _, views = build_pair_loader(recipe, model, tiny_tokenizer(), accelerator)
    assert views == 10
    assert "2 images could not be read and are left out, among them 4.png" in capsys.readouterr().out
    write(tmp_path / "data", shards=2, rows=20, broken=tuple(range(11)))
    with pytest.raises(DataSourceError, match=r"11 of 20 images could not be read, among them 0.png .*skip_rate"):
        build_pair_loader(recipe, model, tiny_tokenizer(), accelerator)


def test_no_image_is_ever_mirrored(recipe, model, accelerator, tmp_path):
    picture = np.zeros((32, 32, 3), dtype=np.uint8)
    picture[:, 16:] = 255  # dark on the left
    opened = open_pairs(recipe, "train")[:2]
    views = _feature_job(replace(recipe, feature_views=16), model.vision_model, *opened, accelerator).views
    write(tmp_path / "data", shards=1, picture=picture)
    loader, _ = build_pair_loader(replace(recipe, feature_views=0), model, tiny_tokenizer(), accelerator)
    fresh = [image for batch in itertools.islice(loader, 8) for image in batch["pixel_values"]]
    for image in (*views(picture, np.random.default_rng(0)), *fresh):
        assert image[..., 0].float().mean() <= image[..., -1].float().mean()


def test_the_mean_length_is_of_captions_that_are_trained_on(recipe):
    tokenizer = tiny_tokenizer()
    lengths = {language: len(tokenizer(text)["input_ids"]) for language, text in WORDS.items()}
    for language, length in lengths.items():
        assert mean_caption_tokens(replace(recipe, caption_weights=f"{language}=1"), tokenizer) == length
    assert min(lengths.values()) < mean_caption_tokens(recipe, tokenizer) < max(lengths.values())


def test_a_language_that_no_row_has_is_told_with_those_that_there_are(recipe):
    message = r"--caption_weights names cn, jp, of which 12 images .* have no caption; theirs are in de, en, fr"
    with pytest.warns(UserWarning, match=message):
        mean_caption_tokens(replace(recipe, caption_weights="en=2,jp=1,cn=1,es=0"), tiny_tokenizer())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mean_caption_tokens(replace(recipe, caption_weights="en=2,fr=1,es=0"), tiny_tokenizer())


@pytest.mark.parametrize(
    ("weights", "languages", "expected"),
    [
        ("", None, {"en": 12}),
        ("fr=1,de=2", None, {"fr": 4, "de": 8}),
        ("fr=1,es=2", None, {"fr": 4}),
        ("en=1", ["de", "en"], {"de": 8, "en": 12}),
    ],
)
def test_languages_are_asked_for_in_their_order(recipe, weights, languages, expected):
    found = read_retrieval_set(replace(recipe, caption_weights=weights), "train", languages, 32)
    assert {language: len(texts) for language, texts in found.captions.items()} == expected
    assert list(found.captions) == list(expected)
    assert all(text == WORDS[language] for language, texts in found.captions.items() for text in texts.values())
    assert found.pixels.shape == (max(expected.values()), 3, 32, 32)


def test_captions_are_asked_for_as_they_are_trained_on_and_the_first_of_several(recipe, tmp_path):
    kinds = {"image": Image(), "captions": List({"language": Value("string"), "text": Value("string")})}
    texts = {
        "train": [("de", "<b>ein</b> Hund"), ("en", "a &amp; b"), ("en", "another")],
        "test": [("de", "ein Baum")],
    }
    for split, found in texts.items():
        captions = [[{"language": language, "text": text} for language, text in found], []]
        images = [{"bytes": draw_image(number), "path": f"{number}.png"} for number in range(2)]
        rows = Dataset.from_dict({"image": images, "captions": captions}, features=Features(kinds))
        rows.to_parquet(tmp_path / "few" / f"{split}-0.parquet")
    recipe = replace(recipe, dataset_name=str(tmp_path / "few"))
    both = read_retrieval_set(recipe, "train", ["de", "en"], 32)
    assert both.captions == {"de": {0: "ein Hund"}, "en": {0: "a & b"}}
    assert both.split == "train"
    assert len(both.pixels) == 1, "an image without a caption is none to find one for"
    assert read_retrieval_set(recipe, "train", None, 32).captions == {"en": {0: "a & b"}}
    without_english = read_retrieval_set(recipe, "test", None, 32)
    assert without_english.captions == {"de": {0: "ein Baum"}}
    assert without_english.split == "test"


def test_a_tokenizer_cuts_to_what_its_tower_can_place(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    text = {"vocab_size": 300, "max_position_embeddings": 40}
    assert load_tokenizer_of(str(tmp_path), tiny_lit(text)).model_max_length == 38  # 0 and 1 are no positions
    assert load_tokenizer_of(str(tmp_path), tiny_lit(text, max_text_length=20)).model_max_length == 20
    with pytest.raises(ValueError, match=r"the tokenizer of .* pieces and its text tower 99"):
        load_tokenizer_of(str(tmp_path), tiny_lit())


def test_a_text_tower_that_looks_only_backwards_is_refused(tmp_path):
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="knows nothing of the others"):
        load_tokenizer_of(str(tmp_path), tiny_lit({"model_type": "gpt2", "vocab_size": 300}))


def test_training_needs_nothing_that_only_evaluation_installs():
    program = "import sys; sys.modules['evaluate'] = None; import maws_hf.training.pairs, maws_hf.training.loop"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("images", [3, 8])
@pytest.mark.parametrize("bf16", [False, True])
def test_features_of_a_locked_tower_are_its_own_and_can_be_trained_on(images: int, bf16: bool, monkeypatch):
    packed = []

    def look(vision_model, pixels, **options):
        packed.append(is_prepared(vision_model))
        return encode_images(vision_model, pixels, **options)

    monkeypatch.setattr("maws_hf.training.pairs.encode_images", look)
    model = tiny_lit().train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    found = encode_locked(model.vision_model, pixels, bf16=bf16)
    can = can_pack(torch.nn.Linear(1, 1), torch.bfloat16 if bf16 else None)
    assert packed == [can and images == 8]
    expected = model.vision_model(pixels).pooler_output
    assert (found - expected).norm() < (1e-2 if bf16 else 2e-6) * expected.norm()
    model.visual_projection(found).sum().backward()
    assert model.visual_projection.weight.grad.any()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    assert not model.vision_model.training
