import pytest
import torch
from transformers import AutoConfig

from maws_hf import MawsMAEForPreTraining, MawsViTConfig, MawsViTModel
from maws_hf.models.configuration_maws_vit import SIZES


@pytest.mark.parametrize(
    # Table 1 of the paper, and the exact count of timm's VisionTransformer of that shape without a head.
    ("size", "table_1", "exact"),
    [
        ("vit_b16", 86e6, 85_798_656),
        ("vit_l16", 307e6, 303_301_632),
        ("vit_h14", 632e6, 630_764_800),
        ("vit_2b14", 1.89e9, 1_890_408_960),
        ("vit_6.5b14", 6.44e9, 6_447_632_384),
    ],
)
def test_parameter_counts_of_the_papers_sizes(size: str, table_1: float, exact: int):
    with torch.device("meta"):
        model = MawsViTModel(MawsViTConfig.from_size(size))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == exact
    assert abs(count / table_1 - 1) < 0.013  # the paper counts ViT-L with timm's classifier


@pytest.mark.parametrize(("size", "millions"), [("vit_b16", 26.0), ("vit_h14", 26.2), ("vit_6.5b14", 27.6)])
def test_decoder_parameter_counts(size: str, millions: float):
    with torch.device("meta"):
        decoder = MawsMAEForPreTraining(MawsViTConfig.from_size(size)).decoder
    count = sum(parameter.numel() for parameter in decoder.parameters())
    assert round(count / 1e6, 1) == millions


def test_from_size_takes_other_fields_and_names_the_sizes_it_knows():
    assert MawsViTConfig.from_size("vit_h14", image_size=518).grid_size == (37, 37)
    with pytest.raises(ValueError, match=r"vit_h16.*vit_b16, vit_l16, vit_h14, vit_2b14, vit_6.5b14"):
        MawsViTConfig.from_size("vit_h16")
    assert len(SIZES) == 5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_attention_heads": 5}, r"num_attention_heads=5 .* divisor of hidden_size=768, for example 3, 4, 6"),
        ({"decoder_num_attention_heads": 7}, r"decoder_num_attention_heads=7 .* decoder_hidden_size=512"),
        ({"image_size": 225}, r"image_size=225 .* multiple of patch_size=16, for example 224 or 240"),
        ({"image_size": (224, 230)}, r"image_size=\(224, 230\) .* for example 224 or 240"),
        ({"image_size": 8}, r"image_size=8 .* for example 16"),
        ({"patch_size": 0}, r"patch_size=0 .* at least one pixel"),
        ({"patch_size": [4, 4, 4]}, r"patch_size=\[4, 4, 4\] .* pair"),
        ({"num_hidden_layers": -1}, r"num_hidden_layers=-1 .* depth >= 0"),
        ({"hidden_size": 30, "num_attention_heads": 3}, r"hidden_size=30 .* multiple of 4"),
        ({"hidden_size": 0}, r"hidden_size=0 .* >= 1"),
        ({"mask_ratio": 1.0}, r"mask_ratio=1.0 .* 0.75"),
        ({"drop_path_rate": 1}, r"drop_path_rate=1 .* probability"),
        ({"layer_norm_eps": 0.0}, r"layer_norm_eps=0.0 .* 1e-6"),
        ({"num_channels": 1}, r"image_mean=.* num_channels=1 numbers"),
        ({"hiden_size": 768}, r"no field 'hiden_size' \(got 768\); did you mean 'hidden_size'"),
        ({"zzz": 1}, r"no field 'zzz' \(got 1\)"),
        ({"hidden_act": "glue"}, r"hidden_act='glue' .* gelu"),
    ],
)
def test_an_impossible_configuration_names_field_value_and_remedy(fields: dict, message: str):
    with pytest.raises(ValueError, match=message):
        MawsViTConfig(**fields)


def test_a_wrong_type_names_the_field():
    with pytest.raises(Exception, match=r"hidden_size.*expected int.*'768'"):
        MawsViTConfig(hidden_size="768")


def test_a_saved_configuration_comes_back_equal(tmp_path):
    config = MawsViTConfig.from_size(
        "vit_l16", image_size=(224, 320), out_features=["stage3", "stage24"], num_labels=7
    )
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is MawsViTConfig
    loaded._name_or_path = ""  # where it was read from
    assert loaded.to_dict() == config.to_dict()


def test_an_unknown_key_in_a_config_file_is_refused(tmp_path):
    config = MawsViTConfig()
    config.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"hidden_act"', '"hidden_akt"'))
    with pytest.raises(ValueError, match=r"hidden_akt.*did you mean 'hidden_act'"):
        MawsViTConfig.from_pretrained(tmp_path)
