import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, List, Value
from datasets import Features as Columns
from datasets import Image as ImageFeature
from tiny import draw_image, tiny_config
from transformers import (
    DINOv3ViTConfig,
    DINOv3ViTModel,
    PoolFormerConfig,
    PoolFormerModel,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTModel,
)

from maws_hf import MawsMAEForPreTraining, MawsViTModel
from maws_hf.data.sources import DataSourceError, open_stream
from maws_hf.evaluation.features import (
    Features,
    LabelledFeatures,
    encode_images,
    encoder_of,
    extract_features,
    find_label_column,
    model_digest,
)
from maws_hf.kernels.packed import can_pack
from maws_hf.models.prepared import is_prepared
from maws_hf.processing import EvalTransform, decode_image, normalize

TRANSFORM = EvalTransform(32)
NAMES = ["disc", "bar", "none"]


def save_shards(
    folder: Path, *, shards: int = 3, rows: int = 7, edit: Callable[[list[dict]], None] | None = None
) -> Path:
    """Parquet shards with labels in every form."""
    folder.mkdir(exist_ok=True)
    samples = [
        {
            "image": {"bytes": draw_image(number, size=24 + number % 3), "path": f"{number}.png"},
            "key": f"picture {number}",
            "label": number % 3,
            "word": NAMES[number % 3],
            "words": [NAMES[number % 3], NAMES[number % 2]] if number % 4 else [],
            "unused": "text",
        }
        for number in range(shards * rows)
    ]
    if edit is not None:
        edit(samples)
    columns = Columns(
        {
            "image": ImageFeature(),
            "key": Value("string"),
            "label": ClassLabel(names=NAMES),
            "word": Value("string"),
            "words": List(Value("string")),
            "unused": Value("string"),
        }
    )
    for shard in range(shards):
        part = samples[shard * rows : (shard + 1) * rows]
        Dataset.from_list(part, features=columns).to_parquet(folder / f"train-{shard:05d}.parquet")
    return folder


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_shards(tmp_path_factory.mktemp("labelled") / "shards")


@pytest.fixture(scope="module")
def encoder() -> MawsViTModel:
    torch.manual_seed(0)
    return MawsViTModel(tiny_config(drop_path_rate=0.5))


def extract(encoder: torch.nn.Module, shards: Path, **options) -> Features:
    settings = {"transform": TRANSFORM, "label_column": "label", "batch_size": 4, **options}
    return extract_features(encoder, open_stream(shards), **settings)


def pixels_of(number: int, transform: EvalTransform = TRANSFORM) -> torch.Tensor:
    return transform(decode_image(draw_image(number, size=24 + number % 3)))[None]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # more processes than cores
@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_features_are_the_class_tokens_in_the_order_of_the_files(workers: int, encoder: MawsViTModel, shards: Path):
    result = extract(encoder, shards, num_workers=workers)
    assert result.keys == [f"picture {number}" for number in range(21)]
    assert result.labels == [number % 3 for number in range(21)]
    assert result.class_names == NAMES
    assert result.digest == extract(encoder, shards).digest
    encoder.eval()
    with torch.no_grad():
        expected = torch.cat([encoder(pixels_of(number)).pooler_output for number in range(21)])
    encoder.train()
    torch.testing.assert_close(result.features, expected, rtol=1e-4, atol=1e-5)
    assert (expected[0] - expected[1]).abs().max() > 0.01


def test_a_model_is_left_as_it_was_and_so_is_the_global_generator(encoder: MawsViTModel, shards: Path):
    before = torch.get_rng_state()
    for training in (True, False):
        encoder.train(training)
        features = extract(encoder, shards, num_workers=2).features
        assert encoder.training is training
        assert not features.is_inference()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(not can_pack(torch.nn.Linear(1, 1)), reason="no oneDNN, or no x86 processor")
@pytest.mark.parametrize("bf16", [False, True])
def test_an_encoder_is_packed_meanwhile(bf16: bool, encoder: MawsViTModel, shards: Path, monkeypatch):
    if bf16 and not can_pack(torch.nn.Linear(1, 1), torch.bfloat16):
        pytest.skip("oneDNN does not take bfloat16 on this processor")
    seen = []

    def look(model, pixels, **options):
        seen.append(is_prepared(model))
        return encode_images(model, pixels, **options)

    monkeypatch.setattr("maws_hf.evaluation.features.encode_images", look)
    digest = model_digest(encoder)
    packed = extract(encoder.eval(), shards, bf16=bf16).features
    assert set(seen) == {True}
    assert model_digest(encoder) == digest
    plain = torch.cat([encode_images(encoder, pixels_of(number), bf16=bf16) for number in range(21)])
    assert (packed - plain).norm() < (5e-3 if bf16 else 2e-6) * plain.norm()


def test_bad_images_are_left_out_and_listed(encoder: MawsViTModel, tmp_path: Path):
    def damage(samples: list[dict]) -> None:
        samples[2]["image"]["bytes"] = b"no picture"
        samples[2]["key"] = None
        samples[2]["image"]["path"] = None
        samples[9]["image"]["bytes"] = samples[9]["image"]["bytes"][:60]
        samples[10]["image"]["bytes"] = b""

    shards = save_shards(tmp_path / "damaged", edit=damage)
    for workers in (0, 2):
        result = extract(encoder, shards, num_workers=workers)
        assert [record["key"] for record in result.skipped] == ["row 2", "picture 9", "picture 10"]
        assert "not a JPEG, PNG" in result.skipped[0]["reason"]
        assert len(result.features) == len(result.labels) == len(result.keys) == 18
        good = [number for number in range(21) if number not in (2, 9, 10)]
        assert result.labels == [number % 3 for number in good]
        reference = torch.cat([encode_images(encoder, pixels_of(number)) for number in good])
        torch.testing.assert_close(result.features, reference, rtol=1e-4, atol=1e-5)


def test_nothing_to_see_or_no_label_ends_with_one_sentence(encoder: MawsViTModel, tmp_path: Path):
    def damage_all(samples: list[dict]) -> None:
        for sample in samples:
            sample["image"]["bytes"] = b"no picture"

    def forget_label(samples: list[dict]) -> None:
        samples[5]["label"] = None

    def hide_label(samples: list[dict]) -> None:
        samples[5]["label"] = -1

    with pytest.raises(ValueError, match="none of 21 images can be decoded: not a JPEG"):
        extract(encoder, save_shards(tmp_path / "damaged", edit=damage_all))
    with pytest.raises(ValueError, match="picture 5 has no label in label"):
        extract(encoder, save_shards(tmp_path / "forgotten", edit=forget_label))
    with pytest.raises(ValueError, match=r"picture 5 has no label in label \(it is -1; .*\): choose a labelled split"):
        extract(encoder, save_shards(tmp_path / "hidden", edit=hide_label))


def test_a_broken_encoder_is_not_ranked(shards: Path, tmp_path: Path):
    broken = MawsViTModel(tiny_config())
    broken.layernorm.weight.data[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        extract(broken, shards, cache_dir=tmp_path)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- labels


def test_single_labels_become_indices_into_the_training_classes(encoder: MawsViTModel, shards: Path):
    by_name = extract(encoder, shards, label_column="word")
    assert by_name.classes() == ["bar", "disc", "none"]
    labelled = by_name.with_classes(["none", "disc", "bar"])
    assert labelled.labels.tolist() == [[1, 2, 0][number % 3] for number in range(21)]
    assert labelled.num_classes == 3
    assert extract(encoder, shards).classes() == [0, 1, 2]
    with pytest.raises(ValueError, match="picture 2: its label 'none' is none of the 2 classes"):
        by_name.with_classes(["bar", "disc"])


def test_label_lists_become_padded_lists_of_the_classes_that_are_known(encoder: MawsViTModel, shards: Path):
    result = extract(encoder, shards, label_column="words")
    assert result.classes() == ["bar", "disc", "none"]
    labelled = result.with_classes(["bar", "disc"])
    assert labelled.labels[:4].tolist() == [[-100, -100], [0, -100], [1, -100], [0, 1]]
    assert labelled.multi_label


def test_what_stands_for_no_label_is_no_class():
    numbers = Features(torch.zeros(3, 3), [[2, -1], [-100], [0, None]], ["a", "b", "c"], [], None, "digest")
    assert numbers.classes() == [0, 2]
    assert numbers.with_classes([0, 2]).labels.tolist() == [[1], [-100], [0]]
    words = Features(torch.zeros(2, 3), [["owl", None], []], ["a", "b"], [], None, "digest")
    assert words.with_classes(words.classes()).labels.tolist() == [[0], [-100]]


def test_classes_that_the_column_declares_count_even_if_none_has_them():
    features = Features(torch.zeros(2, 3), [0, 0], ["a", "b"], [], NAMES, "digest")
    assert features.with_classes(features.classes()).num_classes == 3


def test_integers_of_another_split_are_translated_by_the_names_of_their_classes():
    features = Features(torch.zeros(3, 3), [0, 2, 0], ["a", "b", "c"], [], ["cat", "owl", "ant"], "digest")
    labelled = features.with_classes([0, 1, 2], ["ant", "bee", "cat"])
    assert labelled.labels.tolist() == [2, 0, 2]
    lists = Features(torch.zeros(2, 3), [[0, 1], [2]], ["a", "b"], [], ["cat", "owl", "ant"], "digest")
    assert lists.with_classes([0, 1, 2], ["ant", "bee", "cat"]).labels.tolist() == [[2], [0]]
    with pytest.raises(ValueError, match="b: its label 1 is none of the 3 classes"):
        Features(torch.zeros(2, 3), [0, 1], ["a", "b"], [], ["cat", "owl", "ant"], "digest").with_classes(
            [0, 1, 2], ["ant", "bee", "cat"]
        )


def test_the_label_column_is_found_or_asked_for(shards: Path):
    dataset = open_stream(shards)
    assert find_label_column(dataset) == "label"
    assert find_label_column(dataset, "words") == "words"
    assert find_label_column(dataset.remove_columns(["label"]).rename_column("word", "label")) == "label"
    for name, message in {
        "nowhere": "no label column 'nowhere' among image",
        "image": "the labels in image are",
    }.items():
        with pytest.raises(DataSourceError, match=message):
            find_label_column(dataset, name)
    for kind in ("int8", "uint16", "int32", "large_string"):
        assert find_label_column(dataset.cast_column("label", Value(kind)), "label") == "label"
    with pytest.raises(DataSourceError, match=r"--label_column_name$"):
        find_label_column(dataset.remove_columns(["label"]))
    with pytest.raises(DataSourceError, match=r"if there are two or more class folders$"):
        find_label_column(dataset.select_columns(["image"]))


def test_of_two_columns_of_classes_only_one_called_label_is_taken(shards: Path):
    dataset = open_stream(shards).cast_column("word", ClassLabel(names=NAMES))
    assert find_label_column(dataset) == "label"
    with pytest.raises(DataSourceError, match="no label column 'label'"):
        find_label_column(dataset.rename_column("label", "other"))


# ---------------------------------------------------------------- encoders


def test_a_head_does_not_matter_to_its_encoder(shards: Path):
    torch.manual_seed(1)
    model = MawsMAEForPreTraining(tiny_config())
    assert encoder_of(model) is model.vit
    with_head, without = extract(model, shards), extract(model.vit, shards)
    assert with_head.digest == without.digest
    assert torch.equal(with_head.features, without.features)


@pytest.mark.parametrize("pooler", [True, False])
def test_other_vision_models_are_normalised_and_resampled_for(pooler: bool):
    torch.manual_seed(2)
    model = ViTModel(
        ViTConfig(
            image_size=32,
            patch_size=8,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
        ),
        add_pooling_layer=pooler,
    ).eval()
    for size in (32, 48):
        pixels = torch.cat([pixels_of(number, EvalTransform(size)) for number in range(3)])
        mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
        with torch.no_grad():
            output = model(normalize(pixels, mean, std), interpolate_pos_encoding=size != 32)
        expected = output.pooler_output if pooler else output.last_hidden_state[:, 0]
        features = encode_images(model, pixels, image_mean=mean, image_std=std)
        torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)
        assert (encode_images(model, pixels) - expected).abs().max() > 1e-3  # ImageNet's statistics are others


def small_networks() -> list[PreTrainedModel]:
    wide = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    maps = {"hidden_sizes": [8, 16], "depths": [1, 1]}
    pools = PoolFormerConfig(**{name: 2 * values for name, values in maps.items()})
    return [
        DINOv3ViTModel(DINOv3ViTConfig(**wide, image_size=32, patch_size=8)),
        ResNetModel(ResNetConfig(**maps, embedding_size=8)),
        PoolFormerModel(pools),
    ]


def test_networks_of_other_kinds_have_one_feature_an_image(shards: Path):
    torch.manual_seed(2)
    tokens, pooled, maps = small_networks()
    pixels = torch.cat([pixels_of(number, EvalTransform(64)) for number in range(3)])  # maps of more than one place
    with torch.no_grad():
        expected = [
            tokens.eval()(normalize(pixels)).pooler_output,
            pooled.eval()(normalize(pixels)).pooler_output[:, :, 0, 0],
            maps.eval()(normalize(pixels)).last_hidden_state.mean(dim=3).mean(dim=2),
        ]
    for model, features in zip((tokens, pooled, maps), expected, strict=True):
        assert encoder_of(model) is model
        torch.testing.assert_close(encode_images(model, pixels), features, rtol=1e-5, atol=1e-6)
        assert extract(model, shards).features.shape == (21, features.shape[1])


def test_bfloat16_features_are_float32_and_close(encoder: MawsViTModel, shards: Path):
    exact, rounded = extract(encoder, shards), extract(encoder, shards, bf16=True)
    assert rounded.features.dtype == torch.float32
    assert not torch.equal(exact.features, rounded.features)
    torch.testing.assert_close(exact.features, rounded.features, rtol=0.05, atol=0.05)


# ---------------------------------------------------------------- cache


def refuse_to_run(*arguments: object, **options: object) -> None:
    raise AssertionError("the encoder ran although its features are known")


@pytest.fixture
def cached(encoder: MawsViTModel, shards: Path, tmp_path: Path) -> tuple[Features, Path]:
    return extract(encoder, shards, cache_dir=tmp_path), tmp_path


def test_a_second_call_neither_decodes_nor_encodes(
    cached: tuple[Features, Path], encoder: MawsViTModel, shards: Path, monkeypatch: pytest.MonkeyPatch
):
    first, folder = cached
    assert not first.from_cache
    assert sorted(path.suffix for path in folder.rglob("*.*")) == [".json", ".safetensors"]
    monkeypatch.setattr("maws_hf.evaluation.features.encode_images", refuse_to_run)
    monkeypatch.setattr("maws_hf.evaluation.rows.prepare_image", refuse_to_run)
    for workers in (0, 2):
        again = extract(encoder, shards, cache_dir=folder, num_workers=workers)
        assert again.from_cache
        assert torch.equal(again.features, first.features)
        for name in ("labels", "keys", "skipped", "class_names", "digest"):
            assert getattr(again, name) == getattr(first, name)
    with pytest.raises(AssertionError, match="the encoder ran"):
        extract(encoder, shards)


def test_a_model_is_known_wherever_it_was_loaded_from(
    cached: tuple[Features, Path], encoder: MawsViTModel, shards: Path, tmp_path: Path
):
    encoder.save_pretrained(tmp_path / "moved")
    moved = MawsViTModel.from_pretrained(tmp_path / "moved")
    assert extract(moved, shards, cache_dir=cached[1]).from_cache


def change_byte(samples: list[dict]) -> None:
    samples[3]["image"]["bytes"] = draw_image(99)


def change_label(samples: list[dict]) -> None:
    samples[3]["label"] = 2


def change_key(samples: list[dict]) -> None:
    samples[3]["key"] = "another"


@pytest.mark.parametrize("edit", [change_byte, change_label, change_key])
def test_changed_rows_are_other_features(edit: Callable, cached: tuple[Features, Path], encoder, tmp_path: Path):
    changed = extract(encoder, save_shards(tmp_path / "changed", edit=edit), cache_dir=cached[1])
    assert not changed.from_cache
    assert changed.digest != cached[0].digest
    assert extract(encoder, save_shards(tmp_path / "same"), cache_dir=cached[1]).from_cache


@pytest.mark.parametrize(
    "options",
    [
        {"transform": EvalTransform(16)},
        {"transform": EvalTransform(32, resize=40)},
        {"bf16": True},
        {"label_column": "word"},
    ],
    ids=["size", "resize", "precision", "labels"],
)
def test_other_settings_are_other_features(options: dict, cached: tuple[Features, Path], encoder, shards: Path):
    assert not extract(encoder, shards, cache_dir=cached[1], **options).from_cache
    assert extract(encoder, shards, cache_dir=cached[1], **options).from_cache


def test_other_statistics_are_other_features_of_a_model_that_does_not_normalise(shards: Path, tmp_path: Path):
    torch.manual_seed(2)
    model, *_ = small_networks()
    statistics = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.5, 0.6, 0.7)}
    assert not extract(model, shards, cache_dir=tmp_path, **statistics).from_cache
    assert extract(model, shards, cache_dir=tmp_path, **statistics).from_cache
    for changed in ({"image_mean": (0.5,) * 3}, {"image_std": (0.5,) * 3}):
        assert not extract(model, shards, cache_dir=tmp_path, **{**statistics, **changed}).from_cache


def test_an_entry_of_another_format_is_not_read(
    cached: tuple[Features, Path], encoder: MawsViTModel, shards: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("maws_hf.evaluation.feature_cache.FORMAT", 2)
    said: list[str] = []
    assert not extract(encoder, shards, cache_dir=cached[1], say=said.append).from_cache
    assert "another format than 2" in said[0]


def test_one_changed_weight_or_config_field_is_another_encoder(encoder: MawsViTModel):
    torch.manual_seed(0)
    same, other_weight, other_config = (MawsViTModel(tiny_config(drop_path_rate=0.5)) for _ in range(3))
    same.load_state_dict(encoder.state_dict())
    assert model_digest(same) == model_digest(encoder)
    other_weight.load_state_dict(encoder.state_dict())
    other_weight.layers[1].mlp.fc2.bias.data[0] += 1e-6
    assert model_digest(other_weight) != model_digest(encoder)
    other_config.load_state_dict(encoder.state_dict())
    other_config.config.image_mean = (0.1, 0.2, 0.3)
    assert model_digest(other_config) != model_digest(encoder)


def flip_a_bit(folder: Path) -> None:
    (file,) = folder.rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)


def cut_the_text(folder: Path) -> None:
    (file,) = folder.rglob("*.json")
    file.write_text(file.read_text()[:-20])


def change_the_text(folder: Path) -> None:
    (file,) = folder.rglob("*.json")
    file.write_text(file.read_text().replace("picture 4", "picture 5"))


def empty_the_text(folder: Path) -> None:
    (file,) = folder.rglob("*.json")
    file.write_text(json.dumps([]))


def lose_the_tensor(folder: Path) -> None:
    (file,) = folder.rglob("*.safetensors")
    file.unlink()


@pytest.mark.parametrize("damage", [flip_a_bit, cut_the_text, change_the_text, empty_the_text, lose_the_tensor])
def test_a_damaged_entry_is_computed_again_and_said(
    damage: Callable, cached: tuple[Features, Path], encoder: MawsViTModel, shards: Path
):
    first, folder = cached
    damage(folder)
    said: list[str] = []
    again = extract(encoder, shards, cache_dir=folder, say=said.append)
    assert not again.from_cache
    assert torch.equal(again.features, first.features)
    assert len(said) == 1
    assert "computing the features again" in said[0]
    assert str(folder) in said[0]
    assert extract(encoder, shards, cache_dir=folder, say=said.append).from_cache
    assert len(said) == 1


def test_a_failing_write_leaves_nothing_half_written(
    encoder: MawsViTModel, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def disk_full(*arguments: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("maws_hf.evaluation.feature_cache.os.replace", disk_full)
    with pytest.raises(OSError, match="no space"):
        extract(encoder, shards, cache_dir=tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_index_lists_and_single_labels_read_alike():
    single = LabelledFeatures(torch.zeros(2, 3), torch.tensor([1, 0]), 2)
    assert np.array_equal(single.label_lists, [[1], [0]])
    lists = LabelledFeatures(torch.zeros(2, 3), torch.tensor([[1, 0], [-100, -100]]), 2)
    assert lists.label_lists is lists.labels
