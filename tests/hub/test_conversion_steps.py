"""Converted folders load whole, compute what the original did, and hold its numbers bit by bit."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_originals import (
    BETTER_TO_OLD,
    TEXT,
    classifier,
    encoder,
    golden,
    golden_weights,
    saved,
    spelt_as_before,
    training_checkpoint,
    two_towers,
)

from maws_hf import MawsLiTModel, MawsMAEForPreTraining, MawsViTForImageClassification, MawsViTModel
from maws_hf.hub import conversion_steps
from maws_hf.hub.conversion_steps import run_step, verify_native, write_native
from maws_hf.hub.original_archive import ConversionError
from maws_hf.hub.original_sizes import Sizes

LIMIT = torch.tensor(4.6055)  # ln 100 is 4.6052
SIZES = Sizes(num_attention_heads=4, decoder_num_attention_heads=3, text_num_attention_heads=3, norm_pix_loss=True)


def written(content, tmp_path, sizes=SIZES, **options):
    folder = tmp_path / "folder"
    folder.mkdir()
    file = saved(content, tmp_path / "file.pt")
    return file, folder, write_native(file, folder, sizes=sizes, **options)


def weights_in(folder):
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


def refused(content, tmp_path, sizes=SIZES, **options):
    with pytest.raises(ConversionError) as error:
        written(content, tmp_path, sizes, **options)
    return str(error.value)


# The way back, written for this test: our names to original ones, by renaming text.
RENAMED = [
    ("vision_model.", "vision_encoder."),
    ("vit.", ""),
    ("embeddings.cls_token", "cls_token"),
    ("embeddings.position_embeddings", "pos_embed"),
    ("embeddings.patch_embeddings.projection", "patch_embed.proj"),
    ("layernorm_before", "norm1"),
    ("layernorm_after", "norm2"),
    ("attention.o_proj", "attn.proj"),
    ("decoder.embed.", "decoder_embed."),
    ("decoder.head", "decoder_pred"),
    ("decoder.mask_token", "mask_token"),
    ("decoder.pos_embed", "decoder_pos_embed"),
    ("decoder.position_embeddings", "decoder_pos_embed"),
    ("decoder.layers", "decoder_blocks"),
    ("decoder.layernorm", "decoder_norm"),
    ("layernorm", "norm"),
    ("classifier", "head"),
    ("layers.", "blocks."),
]
TEXT_RENAMED = [
    ("text_model.embeddings.word_embeddings", f"{TEXT}.token_embedding"),
    ("text_model.embeddings.position_embeddings", f"{TEXT}.positional_embedding.embedding"),
    ("text_model.embeddings.LayerNorm", f"{TEXT}.embedding_layer_norm"),
    ("text_model.encoder.layer.", f"{TEXT}.layers.layers."),
    ("attention.output.dense", "self_attn.out_proj"),
    ("attention.output.LayerNorm", "norm1"),
    ("intermediate.dense", "linear1"),
    ("output.dense", "linear2"),
    ("output.LayerNorm", "norm2"),
]


def back_to_original(ours):
    original = {}
    for name, value in ours.items():
        if name.endswith("token_type_embeddings.weight"):
            assert not value.any()
            continue
        for old, new in TEXT_RENAMED if name.startswith("text_model.") else RENAMED:
            name = (
                name.replace(old, new) if old != "layers." or name.startswith(("layers.", "vision_encoder.")) else name
            )
        if name in ("visual_projection.weight", "text_projection.weight"):
            name, value = name.replace("visual", "vision").removesuffix(".weight"), value.T
        original[name] = value
    return fused(original)


def fused(parts):
    """Query, key and value below each other again."""
    whole = {}
    for name, value in parts.items():
        for first, others, joint in (
            ("attention.q_proj.", ("attention.k_proj.", "attention.v_proj."), "attn.qkv."),
            ("attention.self.query.", ("attention.self.key.", "attention.self.value."), "self_attn.in_proj_"),
        ):
            if first in name:
                pieces = [value, *(parts[name.replace(first, other)] for other in others)]
                whole[name.replace(first, joint)] = torch.cat(pieces)
                break
            if any(other in name for other in others):
                break
        else:
            whole[name] = value
    return whole


def assert_bit_equal(found, expected):
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert torch.equal(found[name], value), name


LAYOUTS = {
    "encoder": (encoder, MawsViTModel),
    "classifier": (classifier, MawsViTForImageClassification),
    "mae": (lambda: golden_weights("mae_tiny.safetensors"), MawsMAEForPreTraining),
    "clip": (two_towers, MawsLiTModel),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_there_and_back_again_is_bit_equal(tmp_path, layout, dtype):
    make, cls = LAYOUTS[layout]
    state = {name: value.to(dtype) for name, value in make().items()}
    state |= {"logit_scale": torch.tensor(2.5)} if layout == "clip" else {}
    _, folder, result = written(state, tmp_path)
    assert_bit_equal(back_to_original(weights_in(folder)), state)
    assert (result.layout, result.architecture) == (layout, cls.__name__)
    trained = [value for name, value in weights_in(folder).items() if name != "decoder.position_embeddings"]
    assert result.parameters == sum(value.numel() for value in trained)
    assert result.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_folder_is_the_one_that_save_pretrained_writes(tmp_path, layout):
    make, cls = LAYOUTS[layout]
    _, folder, _ = written(make(), tmp_path, shard_bytes=50_000)
    model = cls.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again", max_shard_size=50_000)
    again = {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()}
    ours = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(again) > 3
    ours.pop("preprocessor_config.json")
    assert sorted(ours) == sorted(again)
    for name in again:
        if name.endswith(".json"):
            assert json.loads(ours[name]) == json.loads(again[name]), name
        else:
            assert ours[name] == again[name], name


def test_a_converted_classifier_gives_timms_recorded_logits(tmp_path):
    recorded = golden("timm_vit_tiny.safetensors")
    _, folder, _ = written(golden_weights("timm_vit_tiny.safetensors"), tmp_path)
    logits = MawsViTForImageClassification.from_pretrained(folder)(recorded["images"]).logits
    torch.testing.assert_close(logits, recorded["logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "norm_pix_loss"), [("norm_pix", True), ("plain", False)])
def test_a_converted_training_checkpoint_gives_the_recorded_loss(tmp_path, kind, norm_pix_loss):
    recorded = golden("mae_tiny.safetensors")
    content = training_checkpoint(golden_weights("mae_tiny.safetensors"), norm_pix_loss=norm_pix_loss)
    sizes = Sizes(num_attention_heads=4, decoder_num_attention_heads=3)
    file, folder, result = written(content, tmp_path, sizes)
    assert [what.partition(" ")[0] for what in result.left_out] == ["optimizer", "epoch", "scaler", "args"]
    outputs = MawsMAEForPreTraining.from_pretrained(folder)(recorded["images"], noise=recorded["noise"])
    torch.testing.assert_close(outputs.loss, recorded[f"loss/{kind}"], rtol=0, atol=1e-5)
    hidden = recorded["pred"].gather(1, outputs.ids_mask[:, :, None].expand_as(outputs.logits))
    torch.testing.assert_close(outputs.logits, hidden, rtol=0, atol=1e-5)
    assert max(verify_native(file, folder).values()) <= 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_verifying_compares_every_result_of_the_layout(tmp_path, layout):
    file, folder, _ = written(LAYOUTS[layout][0](), tmp_path)
    differences = verify_native(file, folder)
    assert (
        list(differences)
        == {
            "encoder": ["features"],
            "classifier": ["features", "logits"],
            "mae": ["features", "mask", "predictions", "loss"],
            "clip": ["image embeddings", "text embeddings", "logits"],
        }[layout]
    )
    assert max(differences.values()) <= 1e-5


def test_both_spellings_of_torchtext_give_the_same_files(tmp_path):
    state = two_towers()
    assert len(set(spelt_as_before(state)) - set(state)) == 2 * len(BETTER_TO_OLD)
    for name, content in (("new", state), ("old", spelt_as_before(state))):
        (tmp_path / name).mkdir()
        written(content, tmp_path / name)
    new, old = ((tmp_path / name / "folder" / "model.safetensors").read_bytes() for name in ("new", "old"))
    assert new == old


def test_verifying_sees_a_swapped_matrix(tmp_path):
    file, folder, _ = written(two_towers(), tmp_path)
    weights = weights_in(folder)
    names = [f"text_model.encoder.layer.1.attention.self.{part}.weight" for part in ("query", "value")]
    weights[names[0]], weights[names[1]] = weights[names[1]], weights[names[0]]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConversionError, match="text embeddings differ from the original's by"):
        verify_native(file, folder)


@pytest.mark.parametrize("change", [lambda weight: weight * 1.02, lambda weight: weight * float("nan")])
def test_verifying_sees_a_matrix_that_is_slightly_off_or_no_number(tmp_path, change):
    file, folder, _ = written(encoder(), tmp_path)
    weights = weights_in(folder)
    weights["layers.1.mlp.fc2.weight"] = change(weights["layers.1.mlp.fc2.weight"])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConversionError, match="features differ from the original's by"):
        verify_native(file, folder)


def test_verifying_sees_a_tensor_that_is_not_there(tmp_path):
    file, folder, _ = written(encoder(), tmp_path)
    weights = weights_in(folder)
    del weights["layernorm.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConversionError, match=r"does not load as it should: .*layernorm\.bias"):
        verify_native(file, folder)


def test_values_that_are_not_finite_are_named_and_counted(tmp_path):
    state = encoder()
    state["norm.bias"][3] = float("nan")
    state["blocks.1.attn.qkv.weight"][40, :5] = float("-inf")
    message = refused(state, tmp_path)
    assert "not finite: " in message
    assert "5 in blocks.1.attn.qkv.weight" in message
    assert "1 in norm.bias" in message


def test_what_is_missing_left_over_or_mis_shaped_is_listed_with_the_file(tmp_path):
    state = encoder()
    del state["norm.weight"]
    state |= {"queue": torch.ones(3), "blocks.0.norm1.bias": torch.ones(31)}
    message = refused(state, tmp_path)
    assert message.startswith(f"{tmp_path / 'file.pt'} as MawsViTModel does not fit: missing: norm.weight (32,)")
    assert "unexpected: queue (3,)" in message
    assert "blocks.0.norm1.bias is (31,), expected (32,)" in message


def test_what_cannot_be_told_from_a_file_is_said_with_its_name(tmp_path):
    foreign = {**encoder(), "blocks.0.ls1.gamma": torch.ones(32)}
    for name, content in (("sizes", encoder()), ("layout", foreign)):
        (tmp_path / name).mkdir()
        assert refused(content, tmp_path / name, Sizes()).startswith(f"{tmp_path / name / 'file.pt'}: ")


def test_a_scale_in_half_precision_and_one_rounded_at_its_limit_are_converted(tmp_path):
    state = {name: value.bfloat16() for name, value in two_towers().items()}
    for name, content, scale in (
        ("half", state, 2.5),
        ("limit", {**two_towers(), "logit_scale": LIMIT}, LIMIT.item()),
    ):
        (tmp_path / name).mkdir()
        _, folder, _ = written(content, tmp_path / name)
        found = weights_in(folder)["logit_scale"]
        assert (found.dtype, found.item()) == (torch.float32, scale)


def test_mixed_types_and_scales_that_would_be_clamped_are_refused(tmp_path):
    (tmp_path / "scale").mkdir()
    message = refused({**two_towers(), "logit_scale": torch.tensor(4.7)}, tmp_path / "scale")
    assert "logit_scale = 4.7000" in message
    state = encoder()
    state["norm.bias"] = state["norm.bias"].half()
    assert "mixes torch.float16 and torch.float32" in refused(state, tmp_path)


def test_labels_are_the_classes_names(tmp_path):
    _, folder, _ = written(classifier(3), tmp_path, labels=["cat", "dog", "owl"])
    config = MawsViTForImageClassification.from_pretrained(folder).config
    assert config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert config.label2id["owl"] == 2


def test_classes_without_names_are_numbered_as_transformers_does(tmp_path):
    _, folder, _ = written(classifier(2), tmp_path)
    assert MawsViTForImageClassification.from_pretrained(folder).config.label2id == {"LABEL_0": 0, "LABEL_1": 1}


@pytest.mark.parametrize("shown", [False, True])
def test_only_what_takes_long_shows_how_far_it_is(tmp_path, monkeypatch, capsys, shown):
    if shown:
        monkeypatch.setattr(conversion_steps, "PROGRESS_FROM", 0)
    written(encoder(), tmp_path)
    assert ("Writing" in capsys.readouterr().err) is shown


def test_labels_have_to_fit(tmp_path):
    for name in ("few", "none"):
        (tmp_path / name).mkdir()
    assert "0 labels for a classifier of 5 classes" in refused(classifier(), tmp_path / "none", labels=[])
    assert "2 labels for a classifier of 5 classes" in refused(classifier(), tmp_path / "few", labels=["a", "b"])
    assert "no classifier" in refused(encoder(), tmp_path, labels=["a", "b"])


@pytest.mark.parametrize(("make", "kind"), [(encoder, "BitImageProcessor"), (classifier, "ViTImageProcessor")])
def test_the_image_processor_is_that_of_the_originals_evaluation(tmp_path, make, kind):
    _, folder, _ = written(make(), tmp_path)
    content = json.loads((folder / "preprocessor_config.json").read_text(encoding="utf-8"))
    assert content["image_processor_type"].startswith(kind)
    assert content["size"] == ({"shortest_edge": 32} if kind.startswith("Bit") else {"height": 32, "width": 32})


def test_a_step_takes_and_gives_plain_json(tmp_path):
    file = saved(classifier(3), tmp_path / "file.pt")
    (tmp_path / "folder").mkdir()
    request = {
        "step": "write",
        "file": str(file),
        "folder": str(tmp_path / "folder"),
        "known": None,
        "sizes": {"num_attention_heads": 4, "patch_size": [8, 8]},
        "labels": ["cat", "dog", "owl"],
        "shard_bytes": 1000,
    }
    answer = json.loads(json.dumps(run_step(json.loads(json.dumps(request)))))
    assert answer["architecture"] == "MawsViTForImageClassification"
    model = MawsViTForImageClassification.from_pretrained(tmp_path / "folder")
    assert model.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    assert len(list((tmp_path / "folder").glob("model-*.safetensors"))) > 3
    assert "features" in run_step({**request, "step": "verify"})["differences"]
