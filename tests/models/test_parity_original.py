"""Our models compute what the originals compute: recorded numbers (`golden/README.md`) and the float64 reference."""

from pathlib import Path

import pytest
import torch
from reference_mae import reference_mae, resample_table, sincos_table
from safetensors.torch import load_file

from maws_hf import (
    MawsMAEForPreTraining,
    MawsViTBackbone,
    MawsViTConfig,
    MawsViTForImageClassification,
    MawsViTModel,
)
from maws_hf.models.patch_grid import resample_position_table, sincos_position_table

GOLDEN = Path(__file__).parents[1] / "golden"
TINY = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 3,
    "decoder_intermediate_size": 96,
}


def block_names(original: str, ours: str) -> dict[str, list[str]]:
    return {
        f"{original}.norm1": [f"{ours}.layernorm_before"],
        f"{original}.attn.qkv": [f"{ours}.attention.{part}_proj" for part in "qkv"],
        f"{original}.attn.proj": [f"{ours}.attention.o_proj"],
        f"{original}.norm2": [f"{ours}.layernorm_after"],
        f"{original}.mlp.fc1": [f"{ours}.mlp.fc1"],
        f"{original}.mlp.fc2": [f"{ours}.mlp.fc2"],
    }


def parameter_names(config: MawsViTConfig, head: str) -> dict[str, list[str]]:
    """Original name -> ours, for "classifier" or "decoder"; one joint qkv matrix is our three, stacked by rows."""
    modules = {"patch_embed.proj": ["vit.embeddings.patch_embeddings.projection"], "norm": ["vit.layernorm"]}
    for index in range(config.num_hidden_layers):
        modules |= block_names(f"blocks.{index}", f"vit.layers.{index}")
    single = {"cls_token": ["vit.embeddings.cls_token"], "pos_embed": ["vit.embeddings.position_embeddings"]}
    if head == "classifier":
        modules["head"] = ["classifier"]
    else:
        for index in range(config.decoder_num_hidden_layers):
            modules |= block_names(f"decoder_blocks.{index}", f"decoder.layers.{index}")
        modules |= {
            "decoder_embed": ["decoder.embed"],
            "decoder_norm": ["decoder.layernorm"],
            "decoder_pred": ["decoder.head"],
        }
        single |= {"mask_token": ["decoder.mask_token"], "decoder_pos_embed": ["decoder.position_embeddings"]}
    for original, ours in modules.items():
        for kind in ("weight", "bias"):
            single[f"{original}.{kind}"] = [f"{name}.{kind}" for name in ours]
    return single


def to_ours(originals, names):
    assert originals.keys() <= names.keys()
    return {
        ours: part
        for original, value in originals.items()
        for ours, part in zip(names[original], value.chunk(len(names[original])), strict=True)
    }


def to_original(ours, names):
    return {original: torch.cat([ours[name] for name in parts]) for original, parts in names.items()}


def under(prefix, tensors):
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def assert_gradients_are(expected, model, tolerance):
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        difference = (gradients[name] - value).abs().max().item()
        assert difference <= tolerance * max(1.0, value.abs().max().item()), f"{name} is off by {difference}"


def assert_close(actual, expected, tolerance=1e-5):
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def mae():
    return load_file(GOLDEN / "mae_tiny.safetensors")


@pytest.fixture(scope="module")
def timm():
    return load_file(GOLDEN / "timm_vit_tiny.safetensors")


def load_mae(mae, kind="norm_pix", attention="sdpa"):
    config = MawsViTConfig(**TINY, norm_pix_loss=kind == "norm_pix", attn_implementation=attention)
    model = MawsMAEForPreTraining(config).eval()
    names = parameter_names(config, "decoder")
    model.load_state_dict(to_ours(under("weight/", mae), names))
    return model, names


def load_timm(timm, cls=MawsViTForImageClassification, **overrides):
    model = cls(MawsViTConfig(**TINY, **{"num_labels": 5, **overrides})).eval()
    weights = to_ours(under("weight/", timm), parameter_names(model.config, "classifier"))
    if cls is MawsViTModel:
        weights = under("vit.", weights)
    elif not isinstance(getattr(model, "classifier", None), torch.nn.Linear):
        weights = {name: value for name, value in weights.items() if name.startswith("vit.")}
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["norm_pix", "plain"])
def test_mae_gives_the_original_loss_mask_predictions_and_gradients(mae, kind, attention):
    model, names = load_mae(mae, kind, attention)
    outputs = model(mae["images"], noise=mae["noise"])
    outputs.loss.backward()
    assert_close(outputs.loss, mae[f"loss/{kind}"])
    assert torch.equal(outputs.mask, mae["mask"])
    assert_close(outputs.logits, mae["pred"].gather(1, outputs.ids_mask[:, :, None].expand_as(outputs.logits)))
    assert_gradients_are(to_ours(under(f"grad/{kind}/", mae), names), model, tolerance=1e-6)


def test_encoder_gives_the_original_latents_of_the_kept_patches_in_the_original_order(mae):
    model, _ = load_mae(mae)
    ids_shuffle = mae["ids_restore"].argsort(dim=1)
    outputs = model(mae["images"], noise=mae["noise"])
    assert torch.equal(torch.cat([outputs.ids_keep, outputs.ids_mask], dim=1), ids_shuffle)
    assert_close(model.vit(mae["images"], ids_keep=outputs.ids_keep).last_hidden_state, mae["latent"])


def test_classifier_gives_the_logits_and_gradients_of_timm(timm):
    model = load_timm(timm)
    logits = model(timm["images"]).logits
    logits.sum().backward()
    assert_close(logits, timm["logits"])
    expected = to_ours(under("grad/", timm), parameter_names(model.config, "classifier"))
    assert_gradients_are(expected, model, tolerance=1e-5)


def test_encoder_gives_the_features_and_block_outputs_of_timm(timm):
    outputs = load_timm(timm, MawsViTModel)(timm["images"], output_hidden_states=True)
    assert_close(outputs.last_hidden_state, timm["forward_features"])
    assert_close(outputs.pooler_output, timm["forward_num_classes_0"])
    for index in range(2):
        assert_close(outputs.hidden_states[1 + index], timm[f"blocks/{index}"])


def test_classifier_without_classes_gives_the_feature_as_timm_does(timm):
    assert_close(load_timm(timm, num_labels=0)(timm["images"]).logits, timm["forward_num_classes_0"])


def test_backbone_gives_the_intermediate_layers_of_timm(timm):
    stages = {"out_features": ["stage1", "stage2"]}
    maps = load_timm(timm, MawsViTBackbone, **stages)(timm["images"]).feature_maps
    tokens = load_timm(timm, MawsViTBackbone, **stages, reshape_hidden_states=False)(timm["images"]).feature_maps
    for index in range(2):
        assert_close(maps[index], timm[f"normed_maps/{index}"])
        assert_close(tokens[index][:, :1], timm[f"normed_class_tokens/{index}"])


@pytest.mark.parametrize("grid", [(6, 6), (3, 5)])
def test_position_tables_are_resampled_as_by_timm(timm, grid):
    resampled = resample_position_table(timm["weight/pos_embed"], (4, 4), grid)
    assert_close(resampled, timm[f"pos_embed/{grid[0]}x{grid[1]}"], tolerance=1e-6)


@pytest.mark.parametrize(("width", "side"), [(32, 4), (24, 3)])
def test_sincos_tables_are_the_original_ones(mae, width, side):
    assert_close(sincos_position_table(width, (side, side))[0], mae[f"sincos/dim{width}_grid{side}"], tolerance=1e-7)


@pytest.mark.parametrize("grid", [(3, 5), (5, 2), (1, 4)])
def test_rectangular_sincos_tables_follow_the_same_formula(grid):
    assert_close(sincos_position_table(16, grid), sincos_table(16, *grid), tolerance=1e-7)


def test_a_new_autoencoder_starts_with_the_original_tables_in_encoder_and_decoder(mae):
    model = MawsMAEForPreTraining(MawsViTConfig(**TINY))
    assert_close(model.vit.embeddings.position_embeddings, mae["weight/pos_embed"], tolerance=1e-7)
    assert_close(model.decoder.position_embeddings, mae["weight/decoder_pos_embed"], tolerance=1e-7)


# What the original cannot do: other shapes, checked against the plain float64 implementation.
CASES = {
    "wide image": {"image_size": (24, 40)},
    "tall image, oblong patches": {"image_size": (40, 12), "patch_size": (8, 4)},
    "one channel": {"num_channels": 1, "image_mean": [0.5], "image_std": [0.2]},
    "unnormalised target": {"image_size": (24, 40), "norm_pix_loss": False},
    "mask ratio that does not divide": {"image_size": (24, 40), "mask_ratio": 0.6},
    "decoder as wide as the encoder": {"decoder_hidden_size": 32, "decoder_num_attention_heads": 2},
    "one decoder layer": {"decoder_num_hidden_layers": 1},
    "no decoder layer": {"decoder_num_hidden_layers": 0},
    "no encoder layer": {"num_hidden_layers": 0},
}  # fmt: skip


def random_mae(config):
    generator = torch.Generator().manual_seed(0)
    model = MawsMAEForPreTraining(config).eval().double()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return model


def compare_with_reference(config, images, resample=None):
    """In float64, where a wrong epsilon shows; the loss itself is computed in float32 by design."""
    model = random_mae(config)
    rows, columns = (
        images.shape[2 + axis] // model.vit.embeddings.patch_embeddings.patch_size[axis] for axis in (0, 1)
    )
    noise = torch.rand(len(images), rows * columns, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    outputs = model(images, noise=noise)
    outputs.loss.backward()

    names = parameter_names(config, "decoder")
    weights = {name: value.requires_grad_() for name, value in to_original(model.state_dict(), names).items()}
    tables = {name: weights[name] for name in ("pos_embed", "decoder_pos_embed")}
    if resample:
        tables = {name: resample_table(table, config.grid_size, (rows, columns)) for name, table in tables.items()}
    expected = reference_mae(
        weights | tables,
        images,
        noise,
        patch_size=config.patch_size,
        heads=config.num_attention_heads,
        decoder_heads=config.decoder_num_attention_heads,
        norm_pix=config.norm_pix_loss,
        mask_ratio=config.mask_ratio,
    )
    expected["loss"].backward()
    assert torch.equal(outputs.mask.double(), expected["mask"])
    predictions = expected["pred"].gather(1, outputs.ids_mask[:, :, None].expand_as(outputs.logits))
    # Tables are resampled in float32.
    assert_close(outputs.logits, predictions, tolerance=2e-6 if resample else 1e-10)
    torch.testing.assert_close(outputs.loss.double(), expected["loss"], rtol=2e-6, atol=0)
    gradients = {name: value.grad for name, value in weights.items() if name not in ("pos_embed", "decoder_pos_embed")}
    assert_gradients_are(to_ours(gradients, names), model, tolerance=1e-5 if resample else 1e-6)


def random_images(config, height, width):
    shape = (2, config.num_channels, height, width)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_mae_agrees_with_the_reference_on(case):
    config = MawsViTConfig(**{**TINY, **CASES[case]})
    size = config.image_size if isinstance(config.image_size, tuple) else (config.image_size,) * 2
    compare_with_reference(config, random_images(config, *size))


@pytest.mark.parametrize("size", [(24, 48), (48, 48), (16, 24)])
def test_mae_agrees_with_the_reference_on_images_of_another_size_than_configured(size):
    config = MawsViTConfig(**TINY)
    compare_with_reference(config, random_images(config, *size), resample=True)


def test_mae_agrees_with_the_reference_where_patches_have_almost_no_contrast():
    # A variance near the epsilon of the target normalisation, which then matters.
    config = MawsViTConfig(**TINY)
    compare_with_reference(config, random_images(config, 32, 32) * 1e-3)
