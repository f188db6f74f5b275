"""Tables and shapes tell the sizes; what they cannot tell has to be said, and the error says how."""

from pathlib import Path

import pytest
from tiny_originals import VOCABULARY, WIDTH, encoder_shapes, golden_weights, two_towers

from maws_hf import MawsLiTConfig, MawsViTConfig
from maws_hf.hub.original_archive import ConversionError
from maws_hf.hub.original_files import KNOWN_FILES, known_file
from maws_hf.hub.original_names import check_shapes, pieces_of
from maws_hf.hub.original_sizes import NOTHING_SAID, Sizes, config_of
from maws_hf.hub.released_models import RELEASED_MODELS

NORMED = {"norm_pix_loss": True}


def shapes_of(state):
    return {name: tuple(value.shape) if hasattr(value, "shape") else value for name, value in state.items()}


def refused(layout, shapes, sizes=NOTHING_SAID, known=None, **arguments):
    with pytest.raises(ConversionError) as error:
        config_of(layout, shapes, known, sizes, arguments)
    return str(error.value)


def test_every_released_model_is_known_by_name():
    assert set(RELEASED_MODELS) <= set(KNOWN_FILES)
    assert known_file(Path("somewhere/vit_l16_512.pt"), None).name == "maws-vit-l-ft-in1k"
    assert known_file(Path("somewhere/vit_b16.pt"), "maws-vit-b-mae").url.endswith("/mae/vit_b16.pt")
    for part in ("pretrain", "visualize"):
        for name, size in (("base", "vit_b16"), ("large", "vit_l16"), ("huge", "vit_h14")):
            known = known_file(Path(f"somewhere/mae_{part}_vit_{name}.pth"), None)
            assert (known.size, known.url.split("/")[-2]) == (size, part)
    assert known_file(Path("somewhere/mine.pt"), None) is None


def test_a_name_of_several_files_lists_the_candidates():
    with pytest.raises(ConversionError) as error:
        known_file(Path("somewhere/vit_2b14.pt"), None)
    message = str(error.value)
    assert message.startswith("3 released files are called vit_2b14.pt")
    assert "--model maws-vit-2b-mae or --model maws-vit-2b-mae-in1k or --model maws-vit-2b" in message


def test_an_unknown_model_is_refused_with_the_names_there_are():
    with pytest.raises(ConversionError, match=r"no released model is called 'vit-b'.*maws-vit-6\.5b-ft-in1k"):
        known_file(Path("somewhere/vit_b16.pt"), "vit-b")


@pytest.mark.parametrize("name", RELEASED_MODELS)
def test_a_released_model_has_the_sizes_of_its_table(name):
    """From what `model_builder.py` says of it: shapes of the original, not of ours."""
    released, known = RELEASED_MODELS[name], KNOWN_FILES[name]
    config = config_of(known.layout, {}, known, NOTHING_SAID, {})
    vision = config.vision_config if known.layout == "clip" else config
    heads = {"vit_b16": 12, "vit_l16": 16, "vit_h14": 16, "vit_2b14": 32, "vit_6.5b14": 32}[released.size]
    assert vision.num_attention_heads == heads
    assert vision.image_size == released.image_size
    if released.kind == "clip":
        assert config.text_config.num_attention_heads == (12 if released.size == "vit_b16" else 16)
        assert config.max_text_length == 102
    if released.kind == "classifier":
        assert config.num_labels == 1000


def test_a_file_of_another_layout_than_the_model_has_is_refused():
    known = KNOWN_FILES["maws-vit-b-ft-in1k"]
    message = refused("encoder", encoder_shapes(), known=known)
    assert message.startswith("the file is no maws-vit-b-ft-in1k: its tensors are those of an encoder alone")


def test_shapes_tell_all_but_the_heads():
    shapes = shapes_of(golden_weights("timm_vit_tiny.safetensors"))
    config = config_of("classifier", shapes, None, Sizes(num_attention_heads=4), {})
    assert config.to_dict() == (
        MawsViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            patch_size=8,
            image_size=32,
            num_labels=5,
        ).to_dict()
    )
    message = refused("classifier", shapes)
    assert "width of 32: say --num_attention_heads N" in message


def test_the_hint_for_heads_is_that_of_a_released_model_of_the_width():
    message = refused("encoder", encoder_shapes(width=768, depth=1, intermediate=8))
    assert "a released model of that width has 12" in message


def test_a_decoder_has_sixteen_heads_unless_said_otherwise():
    shapes = shapes_of(golden_weights("mae_tiny.safetensors"))
    three = config_of("mae", shapes, None, Sizes(num_attention_heads=4, decoder_num_attention_heads=3), NORMED)
    assert (three.decoder_num_attention_heads, three.decoder_hidden_size) == (3, 24)
    assert three.norm_pix_loss is True
    message = refused("mae", shapes, Sizes(num_attention_heads=4), **NORMED)
    assert "decoder_num_attention_heads=16" in message


def test_whether_patches_are_normalised_has_to_be_said_if_the_file_does_not():
    shapes = shapes_of(golden_weights("mae_tiny.safetensors"))
    sizes = {"num_attention_heads": 4, "decoder_num_attention_heads": 3}
    assert "--norm_pix_loss true" in refused("mae", shapes, Sizes(**sizes))
    assert config_of("mae", shapes, None, Sizes(**sizes, norm_pix_loss=False), NORMED).norm_pix_loss is False


@pytest.mark.parametrize(
    ("model", "width", "heads"),
    [("mae_vit_base_patch16", 768, 12), ("mae_vit_large_patch16", 1024, 16), ("mae_vit_huge_patch14", 1280, 16)],
)
def test_the_arguments_of_the_training_script_tell_the_heads(model, width, heads):
    shapes = encoder_shapes(width=width, depth=1, intermediate=8)
    config = config_of("encoder", shapes, None, NOTHING_SAID, {"model": model})
    assert config.num_attention_heads == heads


def test_the_arguments_of_the_training_script_tell_the_share_that_was_hidden():
    shapes = shapes_of(golden_weights("mae_tiny.safetensors"))
    sizes = Sizes(num_attention_heads=4, decoder_num_attention_heads=3)
    assert config_of("mae", shapes, None, sizes, {**NORMED, "mask_ratio": 0.6}).mask_ratio == 0.6
    assert config_of("mae", shapes, None, sizes, NORMED).mask_ratio == 0.75


def test_the_epsilon_is_timms_unless_said_otherwise():
    heads = {"num_attention_heads": 4}
    assert config_of("encoder", encoder_shapes(), None, Sizes(**heads), {}).layer_norm_eps == 1e-6
    assert config_of("encoder", encoder_shapes(), None, Sizes(**heads, layer_norm_eps=1e-5), {}).layer_norm_eps == 1e-5


def test_the_published_decoders_paint_plain_pixels_unless_said_otherwise():
    for size in ("base", "large", "huge"):
        known = KNOWN_FILES[f"mae_visualize_vit_{size}"]
        assert config_of("mae", {}, known, NOTHING_SAID, {}).norm_pix_loss is False
        assert config_of("mae", {}, known, Sizes(norm_pix_loss=True), {}).norm_pix_loss is True


def test_patches_that_are_no_square_give_height_before_width():
    shapes = {**encoder_shapes(), "patch_embed.proj.weight": (WIDTH, 3, 8, 16)}
    config = config_of("encoder", shapes, None, Sizes(num_attention_heads=4), {})
    assert (config.patch_size, config.image_size) == ((8, 16), (32, 64))


def test_images_that_are_no_square_have_to_be_said():
    shapes = encoder_shapes(patches=15)
    assert "--image_size HEIGHT WIDTH" in refused("encoder", shapes, Sizes(num_attention_heads=4))
    config = config_of("encoder", shapes, None, Sizes(num_attention_heads=4, image_size=(24, 40)), {})
    check_shapes(pieces_of("encoder", config), shapes, "file")


def test_options_that_contradict_the_shapes_are_refused():
    shapes = encoder_shapes()
    config = config_of("encoder", shapes, None, Sizes(num_attention_heads=4, patch_size=16, image_size=64), {})
    with pytest.raises(ConversionError, match=r"patch_embed.proj.weight is \(32, 3, 8, 8\), expected \(32, 3, 16, 16"):
        check_shapes(pieces_of("encoder", config), shapes, "file")
    assert "num_attention_heads=5" in refused("encoder", shapes, Sizes(num_attention_heads=5))


def test_two_towers_have_two_numbers_of_heads():
    shapes = shapes_of(two_towers())
    assert "--text_num_attention_heads N" in refused("clip", shapes, Sizes(num_attention_heads=4))
    config = config_of("clip", shapes, None, Sizes(num_attention_heads=4, text_num_attention_heads=3), {})
    assert isinstance(config, MawsLiTConfig)
    assert config.text_config.vocab_size == VOCABULARY
    assert config.text_config.layer_norm_eps == 1e-5
    assert config.max_text_length == 18  # of 20 positions, two are before the first token
    shapes["text_encoder.encoder.transformer.positional_embedding.embedding.weight"] = (514, 24)
    config = config_of("clip", shapes, None, Sizes(num_attention_heads=4, text_num_attention_heads=3), {})
    assert config.max_text_length == 102  # the original's hundred tokens with begin and end


def test_a_classifier_of_no_class_is_the_files_fault():
    shapes = {**encoder_shapes(), "head.weight": (0, WIDTH), "head.bias": (0,)}
    with pytest.raises(ConversionError, match=r"head\.weight is empty"):
        config_of("classifier", shapes, None, Sizes(num_attention_heads=4), {})


def test_files_that_are_nothing_of_the_kind_are_refused():
    assert "no tensor patch_embed.proj.weight" in refused("encoder", {"fc.weight": (3, 3)})
    shapes = {**encoder_shapes(), "patch_embed.proj.weight": (32, 192)}
    assert "patch_embed.proj.weight has shape (32, 192); expected 4" in refused("encoder", shapes)
    shapes = {**encoder_shapes(), "patch_embed.proj.weight": (32, 1, 8, 8)}
    assert "1 channels" in refused("encoder", shapes)
