import math
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from tiny_lit import padded, random_captions, random_images, tiny_lit, tiny_lit_config
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForZeroShotImageClassification,
    BertConfig,
    BertModel,
    XLMRobertaModel,
)

from maws_hf import MawsLiTConfig, MawsLiTModel, MawsViTConfig, MawsViTForImageClassification
from maws_hf.models.configuration_maws_lit import MAX_LOGIT_SCALE
from maws_hf.optim.groups import parameter_groups

# ---------------------------------------------------------------- configuration


def test_defaults_are_the_released_base_model():
    config = MawsLiTConfig()
    assert (config.vision_config.hidden_size, config.vision_config.patch_size) == (768, 16)
    text = config.text_config
    assert (text.model_type, text.vocab_size, text.hidden_size, text.max_position_embeddings) == (
        "xlm-roberta",
        250002,
        768,
        514,
    )
    assert (text.layer_norm_eps, text.type_vocab_size, text.pad_token_id) == (1e-5, 1, 1)
    assert (config.projection_dim, config.max_text_length) == (768, 102)
    assert config.logit_scale_init_value == math.log(1 / 0.07)


def test_released_sizes_have_the_published_widths():
    widths = {
        size: (config.vision_config.hidden_size, config.text_config.num_hidden_layers, config.projection_dim)
        for size in ("vit_b16", "vit_l16", "vit_h14", "vit_2b14")
        for config in [MawsLiTConfig.from_size(size)]
    }
    assert widths == {
        "vit_b16": (768, 12, 768),
        "vit_l16": (1024, 24, 1024),
        "vit_h14": (1280, 24, 1024),
        "vit_2b14": (2560, 24, 2048),
    }
    with pytest.raises(ValueError, match="vit_6"):
        MawsLiTConfig.from_size("vit_6.5b14")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"projection_dim": 0}, "projection_dim=0"),
        ({"max_text_length": 2}, "max_text_length=2"),
        ({"logit_scale_init_value": 100.0}, "ln 100"),
        ({"text_config": {"model_type": "nonsense"}}, "nonsense"),
        ({"vision_config": {"model_type": "vit"}}, "maws_vit"),
        ({"projektion_dim": 3}, "did you mean 'projection_dim'"),
    ],
)
def test_impossible_configurations_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        MawsLiTConfig(**fields)


def test_configuration_comes_back_from_disk(tmp_path):
    config = tiny_lit_config(lock_vision_tower=False, max_text_length=30)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is MawsLiTConfig
    assert type(loaded.vision_config) is MawsViTConfig
    assert loaded.to_dict() == config.to_dict() | {"_name_or_path": loaded.to_dict().get("_name_or_path")}


# ---------------------------------------------------------------- what it computes


def test_logits_follow_the_released_formula_in_float64():
    model = tiny_lit()
    captions, images = random_captions(5), random_images(5)
    with torch.no_grad():
        outputs = model(**padded(captions), pixel_values=images, return_loss=True)
        feature = model.vision_model(images).pooler_output.double()
        first = torch.stack(
            [
                model.text_model(torch.tensor([caption])).last_hidden_state[0, 0].double()
                for caption in captions  # one by one: no padding, no mask
            ]
        )
    # maws/model.py: features times bare matrices, divided by their lengths
    image = feature @ model.visual_projection.weight.double().T
    text = first @ model.text_projection.weight.double().T
    logits = math.exp(math.log(1 / 0.07)) * F.normalize(image) @ F.normalize(text).T
    torch.testing.assert_close(outputs.logits_per_image.double(), logits, rtol=0, atol=2e-5)
    assert torch.equal(outputs.logits_per_text, outputs.logits_per_image.T)
    diagonal = torch.arange(5)
    loss = (F.cross_entropy(logits, diagonal) + F.cross_entropy(logits.T, diagonal)) / 2
    assert outputs.loss.item() == pytest.approx(loss.item(), abs=1e-5)


def test_features_are_projected_and_not_normalised():
    model = tiny_lit()
    captions, images = random_captions(3), random_images(3)
    with torch.no_grad():
        image = model.get_image_features(pixel_values=images).pooler_output
        text = model.get_text_features(**padded(captions)).pooler_output
        outputs = model(**padded(captions), pixel_values=images)
    assert image.shape == text.shape == (3, 16)
    torch.testing.assert_close(F.normalize(image), outputs.image_embeds)
    torch.testing.assert_close(F.normalize(text), outputs.text_embeds)
    assert not torch.allclose(image.norm(dim=1), torch.ones(3))


def test_embeddings_of_a_bfloat16_model_are_brought_to_length_1_in_float32():
    model, captions = tiny_lit().to(torch.bfloat16), random_captions(6)
    with torch.no_grad():
        outputs = model(**padded(captions), pixel_values=random_images(6))
        packed = model.embed_captions(captions)
    for embeds in (outputs.image_embeds, outputs.text_embeds, packed):
        assert embeds.dtype == torch.float32
        torch.testing.assert_close(embeds.norm(dim=1), torch.ones(6), rtol=0, atol=1e-6)


def test_logits_under_autocast_are_float32_products():
    model = tiny_lit()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        outputs = model(**padded(random_captions(4)), pixel_values=random_images(4))
    expected = model.logit_scale.detach().exp() * outputs.image_embeds @ outputs.text_embeds.T
    assert outputs.logits_per_image.dtype == torch.float32
    torch.testing.assert_close(outputs.logits_per_image, expected, rtol=0, atol=2e-5)


def test_hidden_states_asked_for_by_the_config_are_whole_in_training():
    model = tiny_lit(output_hidden_states=True).train()
    outputs = model(**padded(random_captions(2)), pixel_values=random_images(2))
    assert outputs.vision_model_output.last_hidden_state.shape == (2, 17, 32)


@pytest.mark.parametrize("training", [True, False])
def test_pairs_of_other_processes_count_in_training_only(training: bool, monkeypatch):
    asked = []
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    loss = "maws_hf.models.modeling_maws_lit.contrastive_loss"
    monkeypatch.setattr(loss, lambda *args, across_ranks: asked.append(across_ranks))
    model = tiny_lit().train(training)
    model(**padded(random_captions(2)), pixel_values=random_images(2), return_loss=True)
    assert asked == [training]


def test_the_whole_sequence_of_patches_is_handed_out_on_request():
    model = tiny_lit()
    outputs = model.get_image_features(pixel_values=random_images(2), output_hidden_states=True)
    assert outputs.hidden_states[-1].shape == (2, 17, 32)


@pytest.mark.parametrize("attention", ["sdpa", "torch_sdpa", "matmul", "eager"])
@pytest.mark.parametrize("model_type", ["xlm-roberta", "roberta", "bert", "distilbert"])
def test_captions_without_padding_give_the_same_features(model_type, attention):
    text = {"model_type": model_type}
    if model_type == "distilbert":  # takes no positions: a caption stays a row
        text |= {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 40}
    model = tiny_lit(text)
    model.set_attn_implementation(attention)
    captions = random_captions(23)
    (batch,) = model.batch_captions(captions)
    assert (batch.position_ids is not None) is (attention in ("sdpa", "torch_sdpa") and model_type != "distilbert")
    with torch.no_grad():
        plain = F.normalize(model.get_text_features(**padded(captions, 30)).pooler_output)
        torch.testing.assert_close(model.embed_captions(captions), plain, rtol=0, atol=2e-6)


def test_packed_captions_have_less_than_a_tenth_of_padding():
    captions = random_captions(200, longest=20)
    (batch,) = tiny_lit().batch_captions(captions)
    assert len(batch.input_ids) < 50
    assert (batch.caption_ids > 0).float().mean() > 0.9


def gradients(model: MawsLiTModel) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def step(model: MawsLiTModel, **inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    torch.manual_seed(3)  # of the dropout
    loss = model(**inputs, return_loss=True).loss
    loss.backward()
    return loss.detach(), gradients(model)


@pytest.mark.parametrize("chunks", [2, 4])
def test_gradient_caching_changes_neither_loss_nor_gradients(chunks):
    # float64, in which a gradient that is forgotten shows and rounding does not
    model = tiny_lit({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}).double().train()
    captions, images = random_captions(16), random_images(16)
    with torch.no_grad():
        features = model.vision_model(images).pooler_output
    loss, plain = step(model, **padded(captions), pixel_values=images)
    cached_loss, cached = step(model, text_batches=model.batch_captions(captions, chunks), vision_features=features)
    assert abs(loss - cached_loss) < 1e-12
    assert plain.keys() == cached.keys()
    assert {"logit_scale", "visual_projection.weight", "text_projection.weight"} <= plain.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(cached[name], gradient, rtol=1e-9, atol=1e-14, msg=name)


def test_gradient_caching_draws_the_same_dropout_in_both_passes():
    model = tiny_lit({"hidden_dropout_prob": 0.3, "attention_probs_dropout_prob": 0.0}).train()
    parts = model.batch_captions(random_captions(12), 3)
    features = torch.randn(12, 32, generator=torch.Generator().manual_seed(0))
    _, cached = step(model, text_batches=parts, vision_features=features)
    model.zero_grad()
    torch.manual_seed(3)
    texts = torch.cat([model._embed_part(part, again=False) for part in parts])
    images = model.embed_images(features)
    logits = model.logit_scale.exp() * images @ texts.T
    target = torch.arange(12)
    ((F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2).backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(cached[name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(("parts", "calls"), [(1, 1), (3, 6)])
def test_several_parts_are_encoded_again_in_the_backward_pass(parts: int, calls: int):
    model, seen = tiny_lit().train(), []
    model.text_model.register_forward_pre_hook(lambda *_: seen.append(1))
    batches = model.batch_captions(random_captions(6), parts)
    model(text_batches=batches, pixel_values=random_images(6), return_loss=True).loss.backward()
    assert len(seen) == calls


def test_two_forward_passes_may_come_before_their_backward_passes():
    model = tiny_lit().train()
    losses = [
        model(**padded(random_captions(4, seed=seed)), pixel_values=random_images(4), return_loss=True).loss
        for seed in range(2)
    ]
    sum(losses).backward()
    assert model.logit_scale.grad.isfinite()


@pytest.mark.parametrize(
    "inputs",
    [
        {"pixel_values": random_images(1)},
        {"pixel_values": random_images(1), "vision_features": torch.zeros(1, 32), **padded([[0, 5, 2]])},
        {**padded([[0, 5, 2]])},
    ],
)
def test_missing_or_doubled_sides_are_refused(inputs):
    with pytest.raises(ValueError, match="are wanted once"):
        tiny_lit()(**inputs)


# ---------------------------------------------------------------- logit scale


def test_logit_scale_cannot_pass_100_and_can_come_back():
    model = tiny_lit().train()
    captions, images = random_captions(4), random_images(4)
    model.logit_scale.data.fill_(9.0)
    outputs = model(**padded(captions), pixel_values=images, return_loss=True)
    assert outputs.logits_per_image.abs().max() <= 100.001
    assert model.logit_scale.item() == pytest.approx(MAX_LOGIT_SCALE)
    outputs.loss.backward()
    assert model.logit_scale.grad != 0


def test_logit_scale_learns_at_its_bound_where_clamping_has_no_gradient(monkeypatch: pytest.MonkeyPatch):
    def clamp(values: torch.Tensor, max: float) -> torch.Tensor:  # as since torch 2.14
        return torch.where(values < max, values, torch.full_like(values, max))

    monkeypatch.setattr(torch.Tensor, "clamp", clamp)
    model = tiny_lit().train()
    model.logit_scale.data.fill_(MAX_LOGIT_SCALE)
    model(**padded(random_captions(4)), pixel_values=random_images(4), return_loss=True).loss.backward()
    assert model.logit_scale.grad != 0


def test_a_scale_beyond_the_bound_is_clamped_in_evaluation_too():
    model = tiny_lit()
    model.logit_scale.data.fill_(7.0)
    with torch.no_grad():
        outputs = model(**padded(random_captions(3)), pixel_values=random_images(3))
    expected = 100 * outputs.image_embeds @ outputs.text_embeds.T
    torch.testing.assert_close(outputs.logits_per_image, expected, rtol=0, atol=2e-4)


def test_logit_scale_stays_float32_and_without_decay(tmp_path):
    tiny_lit().save_pretrained(tmp_path)
    model = MawsLiTModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert model.logit_scale.dtype == torch.float32
    assert model.visual_projection.weight.dtype == torch.bfloat16
    (group,) = (group for group in parameter_groups(model, 0.2) if "logit_scale" in group["param_names"])
    assert group["weight_decay"] == 0
    outputs = model(**padded(random_captions(2)), pixel_values=random_images(2))
    assert outputs.logits_per_image.dtype == torch.float32


def test_projections_start_with_the_published_deviation():
    torch.manual_seed(0)
    model = MawsLiTModel(tiny_lit_config(projection_dim=4000))
    for projection in (model.visual_projection, model.text_projection):
        assert projection.weight.std().item() == pytest.approx(32**-0.5, rel=0.02)
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))


# ---------------------------------------------------------------- the lock


def is_locked(model: MawsLiTModel) -> bool:
    tower = list(model.vision_model.parameters())
    return not any(module.training for module in model.vision_model.modules()) and not any(
        p.requires_grad for p in tower
    )


def test_the_lock_holds_after_construction_loading_and_train(tmp_path):
    model = MawsLiTModel(tiny_lit_config())
    assert is_locked(model)
    model.save_pretrained(tmp_path)
    loaded, _ = MawsLiTModel.from_pretrained(tmp_path, output_loading_info=True)
    for candidate in (model, loaded, AutoModel.from_pretrained(tmp_path)):
        candidate.train()
        assert is_locked(candidate)
        assert candidate.text_model.training
        assert candidate.visual_projection.weight.requires_grad
    names = [name for group in parameter_groups(model, 0.1) for name in group["param_names"]]
    assert not [name for name in names if name.startswith("vision_model.")]


def test_an_unlocked_tower_learns_and_drops(tmp_path):
    tiny_lit_config(lock_vision_tower=False).save_pretrained(tmp_path)
    model = MawsLiTModel(AutoConfig.from_pretrained(tmp_path)).train()
    assert model.vision_model.training
    _, grads = step(model, **padded(random_captions(4)), pixel_values=random_images(4))
    assert "vision_model.embeddings.cls_token" in grads


def test_a_training_step_moves_everything_but_the_locked_tower():
    model = tiny_lit().train()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.0), lr=1e-3)
    step(model, **padded(random_captions(8)), pixel_values=random_images(8))
    optimizer.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert not [name for name in moved if name.startswith("vision_model.")]
    assert moved == {name for name in before if not name.startswith("vision_model.")}


# ---------------------------------------------------------------- loading


def test_two_trained_towers_become_one_model(tmp_path):
    torch.manual_seed(0)
    classifier = MawsViTForImageClassification(tiny_lit_config().vision_config)
    classifier.save_pretrained(tmp_path / "vision")
    XLMRobertaModel(tiny_lit_config().text_config).save_pretrained(tmp_path / "text")  # with a pooler
    torch.manual_seed(1)
    options = {"projection_dim": 8, "attn_implementation": "eager"}
    model = MawsLiTModel.from_vision_text_pretrained(tmp_path / "vision", tmp_path / "text", **options)
    assert is_locked(model)
    assert {tower.config._attn_implementation for tower in (model.vision_model, model.text_model)} == {"eager"}
    for projection in (model.visual_projection, model.text_projection):
        assert projection.weight.std().item() == pytest.approx(32**-0.5, rel=0.2)
    assert model.config.projection_dim == model.visual_projection.out_features == 8
    assert not model.training
    assert not [name for name in model.state_dict() if "pooler" in name]
    for name, tensor in classifier.vit.state_dict().items():
        assert torch.equal(model.vision_model.state_dict()[name], tensor), name
    stored = XLMRobertaModel.from_pretrained(tmp_path / "text").state_dict()
    for name, tensor in model.text_model.state_dict().items():
        assert torch.equal(stored[name], tensor), name
    model.save_pretrained(tmp_path / "lit")
    loaded = AutoModelForZeroShotImageClassification.from_pretrained(tmp_path / "lit")
    assert type(loaded) is MawsLiTModel
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_any_text_encoder_of_transformers_will_do(tmp_path):
    tiny_lit().vision_model.save_pretrained(tmp_path / "vision")
    config = BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    BertModel(config).save_pretrained(tmp_path / "text")
    model = MawsLiTModel.from_vision_text_pretrained(tmp_path / "vision", tmp_path / "text")
    assert model.config.projection_dim == 24
    assert model.embed_captions([[2, 7, 8, 3]]).shape == (1, 24)
    assert model.vision_model.config._attn_implementation == "sdpa"
    assert model.batch_captions([[2, 3]])[0].position_ids is not None  # packed, as only sdpa can be


def test_attention_of_both_towers_is_chosen_at_once(tmp_path):
    tiny_lit().save_pretrained(tmp_path)
    model = MawsLiTModel.from_pretrained(tmp_path, attn_implementation="eager")
    assert model.vision_model.config._attn_implementation == "eager"
    assert model.text_model.config._attn_implementation == "eager"
    outputs = model(**padded(random_captions(2)), pixel_values=random_images(2), output_attentions=True)
    assert outputs.text_model_output.attentions[0].shape[:2] == (2, 4)
    assert outputs.vision_model_output.attentions[0].shape == (2, 4, 17, 17)


def test_loading_says_nothing(tmp_path):
    tiny_lit().save_pretrained(tmp_path)
    program = (
        "import maws_hf, transformers; transformers.utils.logging.disable_progress_bar(); "
        f"transformers.AutoModel.from_pretrained({str(tmp_path)!r})"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout + finished.stderr == ""
