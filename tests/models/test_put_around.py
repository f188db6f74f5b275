"""What Trainer, PEFT, Accelerate and torch put around a model meets all of it."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload
from peft import AdaLoraConfig, LoraConfig, get_peft_model
from tiny import tiny_config
from tiny_lit import padded, random_captions, tiny_lit
from torch import Tensor, nn
from transformers import PreTrainedModel, Trainer, TrainingArguments

from maws_hf import MawsLiTModel, MawsMAEForPreTraining, MawsViTForImageClassification, MawsViTModel

IMAGES = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
NOISE = torch.rand(8, 16, generator=torch.Generator().manual_seed(2))


def classifier() -> MawsViTForImageClassification:
    torch.manual_seed(0)
    return MawsViTForImageClassification(tiny_config(num_labels=5))


def mae() -> MawsMAEForPreTraining:
    torch.manual_seed(0)
    return MawsMAEForPreTraining(tiny_config())


@pytest.mark.parametrize(
    "label",
    [lambda i: i % 5, lambda i: [i % 5, -100], lambda i: [0.5 * (c in (i % 5, 0)) for c in range(5)]],
    ids=["class", "list", "soft"],
)
def test_trainer_averages_losses_over_accumulated_batches(label: Callable[[int], object], tmp_path: Path):
    data = [{"pixel_values": image, "labels": torch.tensor(label(i))} for i, image in enumerate(IMAGES)]
    logged = []
    for accumulated in (1, 4):
        options = TrainingArguments(
            tmp_path,
            per_device_train_batch_size=8 // accumulated,
            gradient_accumulation_steps=accumulated,
            max_steps=1,
            learning_rate=0.0,
            logging_steps=1,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(classifier(), options, train_dataset=data)
        trainer.train()
        logged.append(next((log["loss"], log["grad_norm"]) for log in trainer.state.log_history if "loss" in log))
    assert logged[1] == pytest.approx(logged[0], rel=1e-4)


def test_a_loss_that_somebody_has_set_is_computed():
    model = classifier()
    model.loss_function = lambda labels, logits, config, **options: logits.sum() * 0 + 42
    assert model(IMAGES, labels=torch.arange(8) % 5).loss.item() == 42
    double = classifier().double()
    assert double(IMAGES.double(), labels=torch.arange(8) % 5).loss.dtype == torch.float64


@pytest.mark.parametrize("kind", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_every_kind_of_hook_on_the_patch_projection_is_called(kind: str):
    model, calls = mae(), []
    getattr(model.vit.embeddings.patch_embeddings.projection, kind)(lambda *_: calls.append(kind))
    model(IMAGES, noise=NOISE).loss.backward()
    assert calls == [kind]


def test_an_adapted_patch_projection_is_part_of_the_autoencoder():
    model = get_peft_model(mae(), LoraConfig(target_modules=["projection", "q_proj"], init_lora_weights=False))
    adapted = model(IMAGES, noise=NOISE).loss
    adapted.backward()
    of_projection = [p for n, p in model.named_parameters() if p.requires_grad and ".projection." in n]
    assert len(of_projection) == 2
    assert all(parameter.grad.abs().sum() > 0 for parameter in of_projection)
    model.merge_adapter()
    assert model(IMAGES, noise=NOISE).loss.item() == pytest.approx(adapted.item(), abs=1e-5)
    model.unmerge_adapter()
    model.base_model.set_adapter([])
    assert abs(model(IMAGES, noise=NOISE).loss.item() - adapted.item()) > 1e-4


def test_hooks_on_the_patches_are_called_where_only_some_are_embedded():
    model, calls = mae(), []
    model.vit.embeddings.patch_embeddings.register_forward_hook(lambda *_: calls.append("patches"))
    expected = model(IMAGES, noise=NOISE).loss
    model.vit.embeddings.patch_embeddings.projection.register_forward_hook(lambda *_: calls.append("projection"))
    assert model(IMAGES, noise=NOISE).loss.item() == pytest.approx(expected.item(), abs=1e-6)
    assert calls == ["patches", "projection", "patches"]


@pytest.mark.parametrize("method", ["lora", "projection"])
def test_reentrant_checkpointing_reaches_adapters(method: str):
    targets = {"lora": ["q_proj"], "projection": ["projection"]}[method]
    model = get_peft_model(mae(), LoraConfig(target_modules=targets))
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": True})
    model.train()
    model(IMAGES, noise=NOISE).loss.backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if "lora_" in n)


@torch.no_grad()
def test_offloaded_weights_are_fetched():
    model = mae().eval()
    expected = model(IMAGES, noise=NOISE).loss
    cpu_offload(model, execution_device="cpu")
    assert model.vit.embeddings.patch_embeddings.projection.weight.device.type == "meta"
    assert model(IMAGES, noise=NOISE).loss.item() == pytest.approx(expected.item(), abs=1e-6)


def test_adalora_and_hooks_change_results_in_place():
    model = get_peft_model(classifier(), AdaLoraConfig(target_modules=["q_proj", "fc1"], total_step=10))
    model(IMAGES, labels=torch.arange(8) % 5).loss.backward()
    doubled = classifier()
    doubled.vit.layers[0].mlp.fc1.register_forward_hook(lambda module, inputs, result: result.mul_(2.0))
    by_weights = classifier()
    with torch.no_grad():
        by_weights.vit.layers[0].mlp.fc1.weight.mul_(2.0)
    for model in (doubled, by_weights):
        model(IMAGES, labels=torch.arange(8) % 5).loss.backward()
    theirs, ours = by_weights.vit.layers[0].mlp.fc2, doubled.vit.layers[0].mlp.fc2
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad, rtol=1e-4, atol=1e-6)


def test_a_compiled_autoencoder_takes_another_number_of_images():
    model = mae()
    compiled = torch.compile(model, backend="eager")
    for images in (8, 4, 2):
        noise, loss = NOISE[:images], model(IMAGES[:images], noise=NOISE[:images]).loss
        assert compiled(IMAGES[:images], noise=noise).loss.item() == pytest.approx(loss.item(), abs=1e-6)
        assert compiled(IMAGES[:images]).mask.sum() == 12 * images


def test_gradients_of_single_images():
    model = mae()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(weights: dict[str, Tensor], image: Tensor, noise: Tensor) -> Tensor:
        return torch.func.functional_call(model, weights, (image[None],), {"noise": noise[None]}).loss

    of_images = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(weights, IMAGES, NOISE)
    model(IMAGES, noise=NOISE).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(of_images[name].mean(0), parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("targets", [None, "all-linear"])
def test_an_adapter_in_a_locked_tower_is_trained(targets: str | None):
    model = get_peft_model(tiny_lit(), LoraConfig(target_modules=targets, lora_dropout=0.5))
    model.train()
    assert model.base_model.model.vision_model.training
    outputs = model(**padded(random_captions(8)), pixel_values=IMAGES, return_loss=True)
    outputs.loss.backward()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("vision_model" in name for name in trained)
    assert not [name for name in trained if model.get_parameter(name).grad is None]


def test_a_locked_tower_keeps_nothing_for_a_backward_pass():
    model = tiny_lit().train()
    assert not model.vision_model.training
    model.gradient_checkpointing_enable()
    outputs = model(**padded(random_captions(8)), pixel_values=IMAGES, return_loss=True)
    assert outputs.vision_model_output.pooler_output.grad_fn is None
    outputs.loss.backward()
    assert all(p.grad is None for p in model.vision_model.parameters())
    assert model.visual_projection.weight.grad is not None


def test_losses_of_two_batches_of_pairs_are_added():
    model = tiny_lit({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}).train()
    pairs = [(padded(random_captions(4, seed=seed)), IMAGES[4 * seed : 4 * seed + 4]) for seed in range(2)]
    losses = [model(**captions, pixel_values=images, return_loss=True).loss for captions, images in pairs]
    sum(losses).backward()
    added = copy.deepcopy({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    model.zero_grad()
    for captions, images in pairs:
        model(**captions, pixel_values=images, return_loss=True).loss.backward()
    for name, gradient in added.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


class Segmenter(MawsViTModel.__base__):
    """A model of somebody else around our encoder."""

    def __init__(self, config):
        super().__init__(config)
        self.vit = MawsViTModel(config)
        self.decode_head = nn.Linear(config.hidden_size, 2)
        self.post_init()


class WithAuxiliaryHead(MawsViTForImageClassification):
    def __init__(self, config):
        super().__init__(config)
        self.auxiliary = nn.Linear(config.hidden_size, 2)
        self.post_init()


class Same(MawsLiTModel):
    """Nothing is added."""


def test_a_class_that_adds_nothing_lacks_nothing(tmp_path: Path):
    model = tiny_lit()
    weights = model.state_dict()
    lacking = ["text_projection.weight", "logit_scale", "vision_model.layernorm.bias"]
    model.save_pretrained(tmp_path, state_dict={name: weights[name] for name in weights if name not in lacking})
    with pytest.raises(
        ValueError, match=r"lacks logit_scale, text_projection\.weight, vision_model\.layernorm\.bias$"
    ):
        Same.from_pretrained(tmp_path)


@pytest.mark.parametrize("model_class", [Segmenter, WithAuxiliaryHead])
def test_a_class_derived_from_ours_starts_from_an_encoder(model_class: type[PreTrainedModel], tmp_path: Path):
    encoder = MawsViTModel(tiny_config())
    encoder.save_pretrained(tmp_path)
    model = model_class.from_pretrained(tmp_path)
    assert torch.equal(model.vit.layers[1].mlp.fc1.weight, encoder.layers[1].mlp.fc1.weight)
    state = {name: weight for name, weight in encoder.state_dict().items() if name != "layers.1.mlp.fc1.weight"}
    encoder.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match=r"lacks vit\.layers\.1\.mlp\.fc1\.weight$"):
        model_class.from_pretrained(tmp_path)
