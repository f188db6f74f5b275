import pytest
import torch
from tiny import tiny_config
from transformers import (
    AttentionInterface,
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
)

from maws_hf import (
    MawsMAEForPreTraining,
    MawsViTBackbone,
    MawsViTForImageClassification,
    MawsViTModel,
)
from maws_hf.models.modeling_maws_vit import eager_attention_forward
from maws_hf.models.patch_grid import gather_patches, resample_position_table, sincos_position_table

HEADS = (MawsViTModel, MawsViTForImageClassification, MawsViTBackbone, MawsMAEForPreTraining)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def randomize(model: torch.nn.Module) -> torch.nn.Module:
    """Weights among which no zero hides a mistake."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model


# ---------------------------------------------------------------- loading and saving


@pytest.mark.parametrize("source", HEADS)
@pytest.mark.parametrize("target", HEADS)
def test_every_checkpoint_loads_into_every_class(source, target, tmp_path):
    original = randomize(source(tiny_config()))
    original.save_pretrained(tmp_path)
    loaded, report = target.from_pretrained(tmp_path, output_loading_info=True)
    fresh = {name.split(".")[0] for name in report["missing_keys"]}
    own_head = {MawsViTForImageClassification: {"classifier"}, MawsMAEForPreTraining: {"decoder"}}.get(target, set())
    assert fresh == (set() if source is target else own_head)
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    kept = loaded.base_model.state_dict()
    for name, tensor in original.base_model.state_dict().items():
        assert torch.equal(kept[name], tensor), name


@pytest.mark.parametrize("model_class", HEADS)
def test_position_tables_are_right_after_construction_and_after_loading(model_class, tmp_path):
    model = model_class(tiny_config())
    model.save_pretrained(tmp_path)
    for checked in (model, model_class.from_pretrained(tmp_path)):
        embeddings = checked.base_model.embeddings
        assert torch.equal(embeddings.position_embeddings.detach(), sincos_position_table(32, (4, 4)))
        if model_class is MawsMAEForPreTraining:
            assert torch.equal(checked.decoder.position_embeddings, sincos_position_table(24, (4, 4)))


def test_auto_classes_resolve(tmp_path):
    config = tiny_config()
    assert type(AutoModel.from_config(config)) is MawsViTModel
    assert type(AutoModelForImageClassification.from_config(config)) is MawsViTForImageClassification
    assert type(AutoModelForPreTraining.from_config(config)) is MawsMAEForPreTraining
    assert type(AutoBackbone.from_config(config)) is MawsViTBackbone
    MawsMAEForPreTraining(config).save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is type(config)
    assert type(AutoModel.from_pretrained(tmp_path)) is MawsViTModel
    assert type(AutoModelForImageClassification.from_pretrained(tmp_path)) is MawsViTForImageClassification
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is MawsMAEForPreTraining


# ---------------------------------------------------------------- initialisation


def test_initialisation_follows_the_original_mae():
    torch.manual_seed(0)
    model = MawsMAEForPreTraining(tiny_config(hidden_size=64, intermediate_size=256))
    for name, parameter in model.named_parameters():
        if "position_embeddings" in name:
            continue
        if name.endswith("token"):
            assert 0.012 < parameter.std() < 0.03, name
        elif "layernorm" in name:
            assert (parameter == (1.0 if name.endswith("weight") else 0.0)).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            fan_out, fan_in = parameter.flatten(1).shape  # Xavier: the patch projection counts as one matrix
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert parameter.abs().max() <= bound, name
            assert parameter.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name


def test_positions_are_trainable_in_a_classifier_and_fixed_in_a_masked_autoencoder(tmp_path):
    MawsMAEForPreTraining(tiny_config()).save_pretrained(tmp_path)
    autoencoder = MawsMAEForPreTraining.from_pretrained(tmp_path)
    classifier = MawsViTForImageClassification.from_pretrained(tmp_path)
    assert not autoencoder.vit.embeddings.position_embeddings.requires_grad
    assert classifier.vit.embeddings.position_embeddings.requires_grad


# ---------------------------------------------------------------- input


def test_uint8_input_equals_normalised_float_input(images: torch.Tensor):
    model = randomize(MawsViTModel(tiny_config())).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (model.config.image_mean, model.config.image_std))
    normalised = (images / 255 - mean) / std
    assert torch.equal(model(images).pooler_output, model(normalised).pooler_output)


def test_kept_patches_are_encoded_as_if_the_others_were_cut_out(images: torch.Tensor):
    model = randomize(MawsViTModel(tiny_config())).eval()
    every_patch = torch.arange(16).repeat(2, 1)
    whole = model(images).last_hidden_state
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    kept = model(images, ids_keep=order).last_hidden_state
    assert torch.allclose(model(images, ids_keep=every_patch).last_hidden_state, whole, atol=1e-5)
    unshuffled = torch.take_along_dim(kept[:, 1:], order.argsort(1)[..., None], dim=1)
    assert torch.allclose(unshuffled, whole[:, 1:], atol=1e-5)


def test_patches_have_the_pixel_order_of_the_original():
    image = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6)
    patches = gather_patches(image, torch.tensor([[5, 0], [1, 4]]), (2, 2))
    for sample, ids in enumerate([[5, 0], [1, 4]]):
        for position, patch in enumerate(ids):
            row, column = patch // 3 * 2, patch % 3 * 2
            expected = image[sample, :, row : row + 2, column : column + 2].permute(1, 2, 0)
            assert torch.equal(patches[sample, position], expected)


@pytest.mark.parametrize("size", [(32, 48), (16, 32), (64, 64)])
@pytest.mark.parametrize("model_class", HEADS)
def test_any_resolution_and_aspect_ratio(model_class, size: tuple[int, int]):
    pixels = torch.rand(2, 3, *size)
    outputs = model_class(tiny_config())(pixels)
    if model_class is MawsViTBackbone:
        assert outputs.feature_maps[0].shape == (2, 32, size[0] // 8, size[1] // 8)
    if model_class is MawsViTModel:
        assert outputs.last_hidden_state.shape == (2, 1 + size[0] * size[1] // 64, 32)


def test_rectangular_images_and_patches_have_their_own_table():
    config = tiny_config(image_size=(32, 24), patch_size=(8, 4))
    model = MawsViTModel(config)
    assert config.grid_size == (4, 6)
    assert model(torch.rand(1, 3, 32, 24)).last_hidden_state.shape == (1, 25, 32)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 32, 33), "32 x 33 pixels.*multiples of patch_size=8"),
        ((2, 1, 32, 32), r"\(2, 1, 32, 32\); expected \(batch, 3, height, width\)"),
        ((3, 32, 32), r"\(3, 32, 32\); expected"),
        ((2, 3, 0, 32), "0 x 32 pixels"),
    ],
)
def test_wrong_pixels_are_one_clear_error(shape: tuple[int, ...], message: str):
    with pytest.raises(ValueError, match=message):
        MawsViTModel(tiny_config())(torch.zeros(shape))


def test_position_table_is_the_closed_form():
    table = sincos_position_table(8, (2, 3))[0]
    assert table.shape == (7, 8)
    assert (table[0] == 0).all()
    row, column = 1, 2
    patch = table[1 + row * 3 + column].tolist()
    frequencies = [1.0, 1 / 100]
    expected = []
    for position in (column, row):
        angles = torch.tensor([position * frequency for frequency in frequencies], dtype=torch.float64)
        expected += angles.sin().tolist() + angles.cos().tolist()
    assert patch == pytest.approx(expected, abs=1e-7)


def test_resampling_keeps_the_class_row_and_works_in_float32():
    table = torch.randn(1, 17, 8)
    resampled = resample_position_table(table.bfloat16(), (4, 4), (6, 3))
    assert resampled.dtype == torch.bfloat16
    assert torch.equal(resampled[:, 0], table.bfloat16()[:, 0])
    in_float32 = resample_position_table(table.bfloat16().float(), (4, 4), (6, 3))
    assert torch.equal(resampled, in_float32.bfloat16())


# ---------------------------------------------------------------- execution


@pytest.mark.parametrize("backend", ["sdpa", "flex_attention", "counted"])
def test_attention_backends_agree_with_eager(backend: str, images: torch.Tensor):
    calls = []

    def counted(*args, **kwargs):
        calls.append(1)
        return eager_attention_forward(*args, **kwargs)

    AttentionInterface.register("counted", counted)
    # flex attention works on heads whose width is a power of two, from 16 up
    model = randomize(
        MawsMAEForPreTraining(
            tiny_config(num_attention_heads=2, decoder_hidden_size=32, decoder_num_attention_heads=2)
        )
    )
    model.eval()
    noise = torch.rand(2, 16)
    model.set_attn_implementation("eager")
    expected = model(images, noise=noise)
    model.set_attn_implementation(backend)
    with torch.no_grad():
        outputs = model(images, noise=noise)
    assert torch.allclose(outputs.logits, expected.logits, atol=1e-5)
    if backend == "counted":
        assert len(calls) == 4, "two encoder and two decoder layers"


def test_attentions_are_returned_under_every_backend(images: torch.Tensor):
    model = MawsViTModel(tiny_config())
    assert model.config._attn_implementation == "sdpa"
    attentions = model(images, output_attentions=True).attentions
    assert [attention.shape for attention in attentions] == [(2, 4, 17, 17)] * 2
    assert torch.allclose(attentions[0].sum(-1), torch.ones(2, 4, 17), atol=1e-5)


def test_hidden_states_are_embeddings_then_each_block(images: torch.Tensor):
    model = randomize(MawsViTModel(tiny_config())).eval()
    outputs = model(images, output_hidden_states=True)
    assert len(outputs.hidden_states) == 3
    assert torch.equal(outputs.hidden_states[0], model.embeddings(images))
    assert torch.equal(model.layernorm(outputs.hidden_states[-1]), outputs.last_hidden_state)
    assert torch.equal(outputs.pooler_output, outputs.last_hidden_state[:, 0])


@pytest.mark.parametrize("model_class", [MawsViTForImageClassification, MawsMAEForPreTraining])
def test_gradient_checkpointing_gives_the_same_gradients(model_class, images: torch.Tensor):
    gradients = []
    for checkpointing in (False, True):
        model = randomize(model_class(tiny_config(drop_path_rate=0.3, hidden_dropout_prob=0.1))).train()
        if checkpointing:
            getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            assert all(layer.gradient_checkpointing for layer in model.vit.layers)
        torch.manual_seed(0)
        outputs = model(images) if model_class is MawsMAEForPreTraining else model(images, labels=torch.tensor([0, 1]))
        outputs.loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert (gradient is None) == (gradients[1][name] is None), name
        assert gradient is None or torch.equal(gradient, gradients[1][name]), name


def test_drop_path_rises_linearly_drops_whole_samples_and_keeps_the_mean():
    model = MawsViTModel(tiny_config(num_hidden_layers=3, drop_path_rate=0.4))
    assert [layer.drop_path.rate for layer in model.layers] == pytest.approx([0.0, 0.2, 0.4])
    drop_path = model.layers[2].drop_path.train()
    torch.manual_seed(0)
    branch = drop_path(torch.ones(20_000, 2, 3))
    per_sample = branch.flatten(1)
    assert (per_sample == per_sample[:, :1]).all()
    assert sorted(set(per_sample[:, 0].tolist())) == [0.0, pytest.approx(1 / 0.6)]
    assert branch.mean().item() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(drop_path.eval()(branch), branch)


def test_pixel_statistics_stay_float32_in_a_bfloat16_model(images: torch.Tensor):
    half, whole = MawsViTModel(tiny_config()).bfloat16(), MawsViTModel(tiny_config())
    normalised = [model.embeddings.normalize(images, 1, dtype=torch.float32) for model in (half, whole)]
    assert torch.equal(*normalised)


def test_bytes_are_normalised_in_float32_for_a_bfloat16_model():
    model = MawsViTModel(tiny_config())
    every_grey = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    expected = model.embeddings.normalize(every_grey, channel_dim=1).to(torch.bfloat16)
    assert torch.equal(model.to(torch.bfloat16).embeddings.normalize(every_grey, channel_dim=1), expected)


@pytest.mark.parametrize("model_class", [MawsViTModel, MawsMAEForPreTraining])
def test_bfloat16_is_close_to_float32_and_the_loss_stays_float32(model_class, images: torch.Tensor, tmp_path):
    reference = randomize(model_class(tiny_config())).eval()
    reference.save_pretrained(tmp_path)
    half = model_class.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    noise = {} if model_class is MawsViTModel else {"noise": torch.rand(2, 16)}
    expected, outputs = reference(images, **noise), half(images, **noise)
    if model_class is MawsViTModel:
        assert outputs.pooler_output.dtype == torch.bfloat16
        similarity = torch.cosine_similarity(outputs.pooler_output.float(), expected.pooler_output)
        assert (similarity > 0.99).all()
    else:
        assert outputs.loss.dtype == torch.float32
        assert outputs.loss.item() == pytest.approx(expected.loss.item(), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("model_class", HEADS)
def test_the_full_graph_compiles(model_class, images: torch.Tensor):
    model = randomize(model_class(tiny_config())).eval()
    noise = {"noise": torch.rand(2, 16)} if model_class is MawsMAEForPreTraining else {}
    compiled = torch.compile(model, fullgraph=True)
    expected, outputs = model(images, **noise), compiled(images, **noise)
    for name, tensor in expected.items():
        for left, right in zip(*([t] if torch.is_tensor(t) else t for t in (tensor, outputs[name])), strict=True):
            assert torch.allclose(left, right, atol=1e-5), name


@pytest.mark.parametrize("model_class", HEADS)
def test_torch_export(model_class, images: torch.Tensor):
    model = randomize(model_class(tiny_config())).eval()
    keywords = {"noise": torch.rand(2, 16)} if model_class is MawsMAEForPreTraining else {}
    program = torch.export.export(model, (images,), keywords)
    expected, outputs = model(images, **keywords), program.module()(images, **keywords)
    name = "feature_maps" if model_class is MawsViTBackbone else next(iter(expected))
    left, right = expected[name], outputs[name]
    if model_class is MawsViTBackbone:
        left, right = left[0], right[0]
    assert torch.allclose(left, right, atol=1e-6)


# ---------------------------------------------------------------- heads


def test_classifier_reads_the_normed_class_token(images: torch.Tensor):
    model = randomize(MawsViTForImageClassification(tiny_config(num_labels=5))).eval()
    outputs = model(images, labels=torch.tensor([3, 0]))
    torch.testing.assert_close(outputs.logits, model.classifier(model.vit(images).last_hidden_state[:, 0]))
    expected = torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([3, 0]))
    assert outputs.loss.item() == pytest.approx(expected.item())


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_the_class_token_alone_is_what_it_is_among_all_tokens(images: torch.Tensor, backend: str):
    model = randomize(MawsViTModel(tiny_config(drop_path_rate=0.5, attn_implementation=backend))).train()
    results = []
    for class_token_only in (False, True):
        torch.manual_seed(1)  # drop path draws the same either way
        output = model(images, class_token_only=class_token_only)
        model.zero_grad()
        output.pooler_output.square().sum().backward()
        gradients = [parameter.grad.clone() for parameter in model.parameters()]
        results.append((output.pooler_output, gradients))
    assert output.last_hidden_state.shape == (2, 1, 32)
    torch.testing.assert_close(results[0], results[1])


def test_classifier_takes_the_shortcut_only_where_nobody_can_tell(images: torch.Tensor, monkeypatch):
    model = randomize(MawsViTForImageClassification(tiny_config(num_labels=5))).train()
    asked = []
    original = model.vit.forward
    monkeypatch.setattr(
        model.vit, "forward", lambda *args, **kw: (asked.append(kw["class_token_only"]), original(*args, **kw))[1]
    )
    model(images)
    assert len(model(images, output_hidden_states=True).hidden_states) == 3
    model(images, output_attentions=True)
    model.config.hidden_dropout_prob = 0.1
    model(images)
    model.eval()(images)
    model.config.output_hidden_states = True
    model(images)
    assert asked == [True, False, False, False, True, False]


LABEL_FORMS = {
    "single": torch.tensor([3, 0]),
    "lists": torch.tensor([[3, 1, -100], [0, -100, -100]]),
    "multi-hot": torch.tensor([[0, 1, 0, 1, 0], [1, 0, 0, 0, 0]]).float(),
    "bool": torch.tensor([[0, 1, 0, 1, 0], [1, 0, 0, 0, 0]]).bool(),
    "soft": torch.tensor([[0, 0.25, 0, 0.75, 0], [1, 0, 0, 0, 0]]),
}


@pytest.mark.parametrize("form", LABEL_FORMS)
@pytest.mark.parametrize("binary", [False, True])
def test_classifier_takes_every_form_of_labels(images: torch.Tensor, form: str, binary: bool):
    problem_type = "multi_label_classification" if binary else None
    model = randomize(MawsViTForImageClassification(tiny_config(num_labels=5, problem_type=problem_type))).eval()
    labels = LABEL_FORMS[form]
    outputs = model(images, labels=labels)
    if form == "single":
        targets = torch.nn.functional.one_hot(labels, 5).double()
    elif form == "lists":
        targets = LABEL_FORMS["multi-hot"].double()
    else:
        targets = labels.double()
    logits = outputs.logits.double()
    if binary:
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
        expected = expected * (5 if form in ("single", "lists") else 1)  # integers: summed over classes
    else:
        expected = -(targets / targets.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("form", ["single", "lists"])
def test_skipped_logits_change_neither_loss_nor_gradients(images: torch.Tensor, form: str):
    model = randomize(MawsViTForImageClassification(tiny_config(num_labels=5)))
    results = []
    for skip_logits in (False, True):
        outputs = model(images, labels=LABEL_FORMS[form], skip_logits=skip_logits)
        model.zero_grad()
        outputs.loss.backward()
        results.append((outputs.loss, [parameter.grad.clone() for parameter in model.parameters()]))
    assert outputs.logits is None
    torch.testing.assert_close(results[0], results[1])


def test_a_new_head_has_the_new_classes_and_leaves_the_encoder_alone(images: torch.Tensor, tmp_path):
    model = randomize(MawsViTForImageClassification(tiny_config(num_labels=5)))
    before = {name: weight.clone() for name, weight in model.vit.state_dict().items()}
    model.reset_classifier(["cat", "dog", "bird"], bias=-10.0)
    assert all(torch.equal(weight, before[name]) for name, weight in model.vit.state_dict().items())
    assert (model.num_labels, model.config.num_labels) == (3, 3)
    assert model.config.label2id == {"cat": 0, "dog": 1, "bird": 2}
    assert 0.01 < model.classifier.weight.std() < 0.03
    model.save_pretrained(tmp_path)
    again = MawsViTForImageClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(again.eval()(images).logits, model.eval()(images).logits)
    assert again.config.id2label == {0: "cat", 1: "dog", 2: "bird"}


def test_labels_of_no_known_form_are_refused(images: torch.Tensor):
    model = MawsViTForImageClassification(tiny_config(num_labels=5))
    with pytest.raises(ValueError, match=r"float32 of shape \(2, 4\) for 2 images and 5 classes; expected integers"):
        model(images, labels=torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"int64 of shape \(3, 4\)"):
        model(images, labels=torch.zeros(3, 4, dtype=torch.long))


def test_backbone_returns_normed_maps_of_the_stages_asked_for(images: torch.Tensor):
    model = randomize(MawsViTBackbone(tiny_config(out_features=["stem", "stage2"]))).eval()
    outputs = model(images)
    hidden = model.vit(images, output_hidden_states=True).hidden_states
    assert outputs.hidden_states is None
    for feature_map, state in zip(outputs.feature_maps, (hidden[0], hidden[2]), strict=True):
        assert torch.equal(feature_map, model.vit.layernorm(state)[:, 1:].transpose(1, 2).reshape(2, 32, 4, 4))


def test_storing_another_size_changes_no_feature_at_that_size(tmp_path):
    model = MawsViTForImageClassification(tiny_config(num_labels=3)).eval()
    model.vit.embeddings.position_embeddings.data.normal_()
    images = torch.randn(2, 3, 48, 40)
    before = model(images).logits
    model.set_image_size((48, 40))
    assert model.config.image_size == [48, 40]
    assert model.vit.embeddings.position_embeddings.shape == (1, 1 + 6 * 5, 32)
    assert model.vit.embeddings.position_embeddings.requires_grad
    assert torch.equal(model(images).logits, before)
    model.save_pretrained(tmp_path)
    assert torch.equal(MawsViTForImageClassification.from_pretrained(tmp_path).eval()(images).logits, before)


def test_a_fixed_table_stays_fixed_when_it_is_resampled():
    model = MawsViTModel(tiny_config())
    model.embeddings.position_embeddings.requires_grad_(False)
    model.set_image_size(48)
    assert not model.embeddings.position_embeddings.requires_grad


def test_a_size_that_is_no_multiple_of_the_patch_is_not_stored():
    model = MawsViTModel(tiny_config())
    with pytest.raises(ValueError, match="multiples of"):
        model.set_image_size(50)
    assert model.config.image_size == 32


def test_a_head_has_the_spread_of_the_configuration_or_that_asked_for():
    torch.manual_seed(0)
    model = MawsViTForImageClassification(tiny_config(num_labels=500, initializer_range=0.01))
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.05)
    for std in (2e-5, 0.3):
        model.reset_classifier([str(index) for index in range(300)], bias=-5.0, std=std)
        assert model.classifier.weight.std().item() == pytest.approx(std, rel=0.05)
        assert torch.equal(model.classifier.bias, torch.full((300,), -5.0))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_a_class_an_image_is_an_integer_of_any_kind(dtype: torch.dtype, images: torch.Tensor):
    model = randomize(MawsViTForImageClassification(tiny_config(num_labels=5)))
    outputs = model(images, labels=torch.tensor([3, 1], dtype=dtype))
    expected = torch.nn.functional.cross_entropy(outputs.logits.double(), torch.tensor([3, 1]))
    assert outputs.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert model.config.problem_type is None
    half = model.to(torch.bfloat16)(images, labels=torch.tensor([3, 1], dtype=dtype))
    assert half.loss.dtype == torch.float32


def test_a_batch_without_any_label_has_no_loss(images: torch.Tensor):
    model = MawsViTForImageClassification(tiny_config(num_labels=5))
    assert model(images, labels=torch.tensor([-100, -100])).loss.item() == 0.0
