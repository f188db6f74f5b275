"""Exports compute what ours compute, and come back bit for bit."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file
from tiny import tiny_config
from tiny_lit import padded, random_captions, tiny_lit
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel

from maws_hf import (
    MawsLiTConfig,
    MawsLiTModel,
    MawsMAEForPreTraining,
    MawsViTBackbone,
    MawsViTForImageClassification,
    MawsViTModel,
)
from maws_hf.cli import main
from maws_hf.hub import export as exporting
from maws_hf.hub.export import ARCHITECTURES, ExportError, export_model, largest_first_token
from maws_hf.models.foreign import POOLER_SCALE
from maws_hf.processing.image_processors import square_image_processor_of

VISION = [
    (model_class, architecture)
    for model_class, architectures in ARCHITECTURES.items()
    for architecture in architectures
    if model_class is not MawsLiTModel
]
IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(autouse=True)
def torchs_own_products():
    """Bit for bit means the same operations: with oneDNN's products ours round otherwise than theirs on some CPUs."""
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def random_model(model_class: type[PreTrainedModel], **fields) -> PreTrainedModel:
    """Weights among which no zero or one hides a mistake; fields that no in-tree config has a place for."""
    model = model_class(tiny_config(num_labels=3, drop_path_rate=0.1, image_mean=(0.5, 0.4, 0.3), **fields))
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval()


def exported(model: PreTrainedModel, tmp_path: Path, architecture: str | None = None):
    model.save_pretrained(tmp_path / "ours")
    export = export_model(tmp_path / "ours", tmp_path / "theirs", architecture)
    theirs, info = getattr(transformers, export.model_class).from_pretrained(export.folder, output_loading_info=True)
    assert not any(info.values()), info
    return export, theirs


def assert_same_weights(left: PreTrainedModel, right: PreTrainedModel) -> None:
    first, second = left.state_dict(), right.state_dict()
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def fields_of(config) -> dict:
    found = json.loads(config.to_json_string(use_diff=False))
    return {name: found[name] for name in found if name not in ("_name_or_path", "architectures", "dtype")}


@pytest.mark.parametrize(("model_class", "architecture"), VISION)
@torch.no_grad()
def test_an_export_computes_the_same_and_comes_back_bit_for_bit(model_class, architecture, tmp_path):
    ours = random_model(model_class)
    export, theirs = exported(ours, tmp_path, architecture)
    back_class = model_class
    if export.model_class == "ViTMAEForPreTraining":
        noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
        expected, found = ours(IMAGES, noise=noise), theirs(IMAGES, noise=noise)
        assert torch.equal(expected.mask, found.mask)
        masked = found.logits.gather(1, expected.ids_mask[..., None].expand(-1, -1, found.logits.shape[2]))
        # Ours leaves out and reorders what the loss does not need, so the last bits differ.
        torch.testing.assert_close(masked, expected.logits, rtol=0, atol=2e-6)
        torch.testing.assert_close(found.loss, expected.loss, rtol=1e-6, atol=0)
    elif export.model_class == "ViTForImageClassification":
        # Asked for hidden states, ours computes all tokens of the last block, as theirs does: the same operations.
        assert torch.equal(theirs(IMAGES).logits, ours(IMAGES, output_hidden_states=True).logits)
        torch.testing.assert_close(theirs(IMAGES).logits, ours(IMAGES).logits, rtol=0, atol=1e-6)
    else:
        back_class = MawsViTModel
        ours = getattr(ours, "vit", ours)
        expected, found = ours(IMAGES), theirs(IMAGES)
        assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
        assert torch.equal(found.pooler_output, expected.pooler_output)
    back = back_class.from_pretrained(export.folder)
    assert_same_weights(back, ours)
    assert fields_of(back.config) == fields_of(ours.config)
    assert "auto_map" not in json.loads((export.folder / "config.json").read_text())


def test_of_a_cross_attention_decoder_only_the_encoder_can_be_exported(tmp_path):
    ours = random_model(MawsMAEForPreTraining, decoder_attention="cross", prediction_ratio=0.5)
    ours.save_pretrained(tmp_path / "ours")
    with pytest.raises(ExportError, match="decoder_attention=cross: vit_mae has no such decoder; name pixio, vit"):
        export_model(tmp_path / "ours", tmp_path / "theirs")
    assert not (tmp_path / "theirs").exists()
    for architecture in ("pixio", "vit", "dinov2"):
        export, theirs = exported(ours, tmp_path / architecture, architecture)
        assert torch.equal(theirs(IMAGES).last_hidden_state, ours.vit(IMAGES).last_hidden_state)
        back = MawsViTModel.from_pretrained(export.folder)
        assert fields_of(back.config) == fields_of(ours.config)


def test_an_autoencoder_that_predicted_a_part_is_exported_whole_and_keeps_its_share(tmp_path):
    ours = random_model(MawsMAEForPreTraining, prediction_ratio=0.5)
    export, theirs = exported(ours, tmp_path)
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    expected = ours(IMAGES, noise=noise, prediction_ratio=1.0)
    torch.testing.assert_close(theirs(IMAGES, noise=noise).loss, expected.loss, rtol=1e-6, atol=0)
    back = MawsMAEForPreTraining.from_pretrained(export.folder)
    assert_same_weights(back, ours)
    assert back.config.prediction_ratio == 0.5


@pytest.mark.parametrize(
    ("model_class", "architecture"),
    [
        (MawsViTModel, "pixio"),
        (MawsViTModel, "dinov2"),
        (MawsViTForImageClassification, "vit"),
        (MawsMAEForPreTraining, "vit_mae"),
    ],
)
def test_plain_transformers_reads_every_field_that_it_has_a_place_for(model_class, architecture, tmp_path):
    fields = {
        "hidden_act": "relu",
        "hidden_dropout_prob": 0.11,
        "attention_probs_dropout_prob": 0.12,
        "initializer_range": 0.03,
        "layer_norm_eps": 1e-5,
        "qkv_bias": False,
    }
    labelled = {"id2label": {0: "a", 1: "b", 2: "c"}, "problem_type": "multi_label_classification"}
    _, theirs = exported(random_model(model_class, **fields, **labelled, mask_ratio=0.6), tmp_path, architecture)
    found = {name: getattr(theirs.config, name) for name in (*fields, *labelled)}
    assert found == {**fields, **labelled}
    if architecture in ("pixio", "dinov2"):
        assert theirs.config.drop_path_rate == 0.1
    if architecture == "vit_mae":
        assert theirs.config.mask_ratio == 0.6


def test_other_image_sizes_shapes_and_dtypes_survive(tmp_path):
    ours = random_model(MawsViTModel, image_size=(32, 48), qkv_bias=False).to(torch.bfloat16)
    export, theirs = exported(ours, tmp_path, "vit")
    assert theirs.dtype == torch.bfloat16
    images = torch.randn(1, 3, 32, 48).bfloat16()
    with torch.no_grad():
        assert torch.equal(theirs(images).pooler_output, ours(images).pooler_output)
    back = MawsViTModel.from_pretrained(export.folder)
    assert back.config.image_size == (32, 48)
    assert back.dtype == torch.bfloat16
    assert_same_weights(back, ours)


def test_a_dual_encoder_computes_the_same_and_comes_back_bit_for_bit(tmp_path):
    ours = tiny_lit(vision_config=tiny_config(intermediate_size=64), max_text_length=22, lock_vision_tower=False)
    export, theirs = exported(ours, tmp_path)
    captions = padded(random_captions(6))
    with torch.no_grad():
        expected, found = (model(**captions, pixel_values=IMAGES) for model in (ours, theirs))
        first_tokens = ours.text_model(**captions).last_hidden_state[:, 0]
    assert torch.equal(found.image_embeds, expected.image_embeds)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.logits_per_image, expected.logits_per_image, rtol=0, atol=1e-5)
    assert first_tokens.abs().max() <= largest_first_token(ours) < 20
    back = MawsLiTModel.from_pretrained(export.folder)
    assert_same_weights(back, ours)
    assert back.config.max_text_length == 22
    assert back.config.lock_vision_tower is False
    tower = MawsViTModel.from_pretrained(export.folder)
    assert_same_weights(tower, ours.vision_model)


def test_a_text_tower_with_large_outputs_gets_a_smaller_pooler(tmp_path):
    ours = tiny_lit(vision_config=tiny_config(intermediate_size=64))
    ours.text_model.encoder.layer[-1].output.LayerNorm.weight.data *= 500
    export, theirs = exported(ours, tmp_path)
    assert largest_first_token(ours) > 20
    assert theirs.text_model.pooler.dense.weight[0, 0] < POOLER_SCALE
    captions = padded(random_captions(6))
    with torch.no_grad():
        expected, found = (model(**captions, pixel_values=IMAGES) for model in (ours, theirs))
    torch.testing.assert_close(found.logits_per_image, expected.logits_per_image, rtol=0, atol=1e-5)
    assert_same_weights(MawsLiTModel.from_pretrained(export.folder), ours)


def test_vitmae_is_written_with_the_names_that_transformers_4_reads(tmp_path):
    exported(random_model(MawsMAEForPreTraining), tmp_path)
    with safe_open(tmp_path / "theirs" / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert {
        "vit.encoder.layer.0.attention.attention.query.weight",
        "vit.encoder.layer.1.output.dense.bias",
        "decoder.decoder_layers.1.attention.output.dense.weight",
        "decoder.decoder_layers.0.intermediate.dense.weight",
        "decoder.decoder_pos_embed",
    } <= names


def test_the_image_processor_goes_along(tmp_path):
    ours = random_model(MawsViTForImageClassification)
    square_image_processor_of(ours.config).save_pretrained(tmp_path / "ours")
    export, _ = exported(ours, tmp_path)
    processor = AutoImageProcessor.from_pretrained(export.folder, backend="pil")
    assert dict(processor.size) == {"height": 32, "width": 32}
    assert list(processor.image_mean) == [0.5, 0.4, 0.3]


def test_the_auto_class_and_the_command_line(tmp_path, capsys):
    ours = random_model(MawsViTModel)
    ours.save_pretrained(tmp_path / "ours")
    with pytest.raises(SystemExit) as ended:
        main(["export", str(tmp_path / "ours"), "--output_dir", str(tmp_path / "theirs"), "--no_verify"])
    assert ended.value.code == 0
    assert "PixioModel" in capsys.readouterr().out
    theirs = AutoModel.from_pretrained(tmp_path / "theirs")
    assert type(theirs) is transformers.PixioModel


@pytest.mark.parametrize(
    ("fields", "architecture", "message"),
    [
        ({"intermediate_size": 72}, "pixio", "intermediate_size=72 is no multiple of hidden_size=32"),
        ({"image_size": (32, 48)}, "pixio", "the images of pixio are square; vit takes any"),
        ({"patch_size": (8, 16)}, "vit", "the patches of vit are square"),
        ({}, "vit_mae", "a MawsViTModel cannot become 'vit_mae'; it can become pixio, vit, dinov2"),
    ],
)
def test_what_an_architecture_cannot_hold_is_refused(fields, architecture, message, tmp_path):
    random_model(MawsViTModel, **fields).save_pretrained(tmp_path / "ours")
    with pytest.raises(ExportError, match="(?s)" + message.replace("(", r"\(")):
        export_model(tmp_path / "ours", tmp_path / "theirs", architecture)
    assert not (tmp_path / "theirs").exists()


def test_an_export_is_not_exported_again_and_nothing_is_overwritten(tmp_path):
    export, _ = exported(random_model(MawsViTModel), tmp_path)
    with pytest.raises(ExportError, match="it is an export already"):
        export_model(export.folder, tmp_path / "again")
    with pytest.raises(ExportError, match="is there already"):
        export_model(tmp_path / "ours", export.folder)


def test_a_link_is_not_written_through(tmp_path):
    random_model(MawsViTModel).save_pretrained(tmp_path / "ours")
    (tmp_path / "empty").mkdir()
    (tmp_path / "theirs").symlink_to(tmp_path / "empty")
    with pytest.raises(ExportError, match="is there already"):
        export_model(tmp_path / "ours", tmp_path / "theirs")


def test_records_go_along_and_the_weights_are_as_readable_as_the_config(tmp_path):
    ours = random_model(MawsViTModel)
    ours.save_pretrained(tmp_path / "ours")
    for name in ("conversion.json", "training.json", "notes.txt"):
        (tmp_path / "ours" / name).write_text(name)
    folder = export_model(tmp_path / "ours", tmp_path / "theirs").folder
    assert (folder / "conversion.json").read_text() == "conversion.json"
    assert (folder / "training.json").read_text() == "training.json"
    assert not (folder / "notes.txt").exists()
    modes = {(folder / name).stat().st_mode for name in ("config.json", "model.safetensors")}
    assert len(modes) == 1


def test_a_projection_that_half_precision_cannot_hold_is_refused(tmp_path):
    ours = tiny_lit(vision_config=tiny_config(intermediate_size=64)).half()
    ours.text_projection.weight.data[0, 0] = 8.0  # times 2^14 is more than float16 has
    ours.save_pretrained(tmp_path / "ours")
    with pytest.raises(ExportError, match=r"text_projection does not fit torch\.float16"):
        export_model(tmp_path / "ours", tmp_path / "theirs")


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    random_model(MawsViTModel).save_pretrained(tmp_path / "ours")
    monkeypatch.setattr("maws_hf.hub.export._save_processor", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export_model(tmp_path / "ours", tmp_path / "theirs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours"]


def test_exports_to_one_folder_at_once_write_apart_and_one_of_them_is_whole(tmp_path, monkeypatch):
    random_model(MawsViTModel).save_pretrained(tmp_path / "ours")
    save_processor = exporting._save_processor

    def overtaken(ours, name, partial):
        monkeypatch.setattr(exporting, "_save_processor", save_processor)
        export_model(tmp_path / "ours", tmp_path / "theirs")
        assert (partial / "config.json").is_file()
        save_processor(ours, name, partial)

    monkeypatch.setattr(exporting, "_save_processor", overtaken)
    with pytest.raises(OSError, match="theirs"):
        export_model(tmp_path / "ours", tmp_path / "theirs")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]
    assert AutoModel.from_pretrained(tmp_path / "theirs").config.model_type == "pixio"


def test_a_model_read_from_an_export_is_saved_in_our_own_names(tmp_path):
    ours = random_model(MawsViTForImageClassification)
    export, _ = exported(ours, tmp_path)
    MawsViTForImageClassification.from_pretrained(export.folder).save_pretrained(tmp_path / "again")
    assert load_file(tmp_path / "again" / "model.safetensors").keys() == ours.state_dict().keys()


def test_the_tokenizer_goes_along_and_says_nothing_about_this_machine(exports):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exports["clip"])
    assert tokenizer("a red disc")["input_ids"][0] == tokenizer.bos_token_id
    assert tokenizer.model_max_length == 38
    settings = json.loads((exports["clip"] / "tokenizer_config.json").read_text())
    assert not {"is_local", "local_files_only", "name_or_path"} & set(settings)


def test_a_half_precision_lit_model_keeps_its_type(tmp_path):
    ours = tiny_lit(vision_config=tiny_config(intermediate_size=64))
    ours.save_pretrained(tmp_path / "float32")
    half = MawsLiTModel.from_pretrained(tmp_path / "float32", dtype=torch.bfloat16)
    assert half.logit_scale.dtype == torch.float32
    export, theirs = exported(half, tmp_path)
    assert json.loads((tmp_path / "ours" / "config.json").read_text())["dtype"] == "bfloat16"
    assert json.loads((export.folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert theirs.dtype == torch.bfloat16
    assert MawsLiTModel.from_pretrained(tmp_path / "ours").vision_model.dtype == torch.bfloat16


def test_a_text_tower_without_a_pooler_is_refused(tmp_path):
    text = {"model_type": "distilbert", "vocab_size": 99, "dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 40}
    model = MawsLiTModel(MawsLiTConfig(vision_config=tiny_config(intermediate_size=64), text_config=text))
    model.save_pretrained(tmp_path / "ours")
    with pytest.raises(ExportError, match="the text tower is a distilbert"):
        export_model(tmp_path / "ours", tmp_path / "theirs")


def test_a_short_text_tower_and_a_backbone_are_exported(tmp_path):
    short = tiny_lit(
        {"max_position_embeddings": 9}, vision_config=tiny_config(intermediate_size=64), max_text_length=3
    )
    exported(short, tmp_path / "lit")
    backbone = MawsViTBackbone(tiny_config())
    _, theirs = exported(backbone, tmp_path / "backbone")
    assert torch.equal(theirs.layernorm.weight, backbone.vit.layernorm.weight)


@torch.no_grad()
def test_in_the_original_order_our_autoencoder_is_the_exported_one_bit_for_bit(tmp_path):
    """Our own modules, with nothing left out and patches moved back to their places, as the original MAE does it."""
    ours = random_model(MawsMAEForPreTraining)
    _, theirs = exported(ours, tmp_path)
    noise = torch.rand(2, 16, generator=torch.Generator().manual_seed(2))
    shuffled = noise.argsort(dim=1)
    keep = shuffled[:, :4, None]
    embeddings, decoder = ours.vit.embeddings, ours.decoder
    patches = embeddings.patch_embeddings(IMAGES) + embeddings.position_embeddings[:, 1:]
    tokens = patches.gather(1, keep.expand(-1, -1, 32))
    class_token = (embeddings.cls_token + embeddings.position_embeddings[:, :1]).expand(2, -1, -1)
    tokens = torch.cat([class_token, tokens], dim=1)
    for layer in ours.vit.layers:
        tokens = layer(tokens)
    tokens = decoder.embed(ours.vit.layernorm(tokens))
    in_shuffled_order = torch.cat([tokens[:, 1:], decoder.mask_token.expand(2, 12, -1)], dim=1)
    places = shuffled.argsort(dim=1)[..., None].expand(-1, -1, 24)
    tokens = torch.cat([tokens[:, :1], in_shuffled_order.gather(1, places)], dim=1) + decoder.position_embeddings
    for layer in decoder.layers:
        tokens = layer(tokens)
    assert torch.equal(theirs(IMAGES, noise=noise).logits, decoder.head(decoder.layernorm(tokens))[:, 1:])
