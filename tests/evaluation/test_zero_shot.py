import copy

import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Features, Value
from safetensors.torch import load_file, save_file
from tiny import draw_image, tiny_config
from tiny_two_towers import POSITIONS, tiny_tokenizer, tiny_two_towers
from torch import nn
from transformers import CLIPImageProcessorPil, PreTrainedConfig, PreTrainedModel, Siglip2Config, Siglip2Model

from maws_hf import MawsViTModel
from maws_hf.data.prompts import Prompts
from maws_hf.evaluation import features as features_module
from maws_hf.evaluation.features import encode_images, extract_features, model_digest
from maws_hf.evaluation.two_towers import encode_texts, load_two_towers, pixel_statistics, text_limit
from maws_hf.evaluation.zero_shot import class_embeddings, zero_shot_accuracy, zero_shot_scores
from maws_hf.processing.transforms import EvalTransform

KINDS = ("clip", "siglip", "bert", "xlm-roberta")
PROMPTS = Prompts(
    templates=("a photo of a {}.", "{}", "a very long way of saying that this is a {}"),
    classes=(("red disc",), ("bar", "blue bar", "line that crosses the picture"), ("狐",)),
    language="en",
    source="a test",
)


@pytest.fixture(params=KINDS)
def two_towers(request):
    torch.manual_seed(0)
    return tiny_two_towers(request.param)


def plain_class_embeddings(model: PreTrainedModel, tokenizer, prompts: Prompts) -> torch.Tensor:
    """One prompt at a time, in float64, by the definition."""
    model, rows = copy.deepcopy(model).double(), []
    text_model = model.config.text_config.model_type
    options = {"max_length": POSITIONS - (text_model == "xlm-roberta"), "truncation": True, "return_tensors": "pt"}
    options |= {"padding": "max_length"} if text_model == "siglip_text_model" else {}
    for names in prompts.classes:
        vectors = []
        for text in [template.format(name) for name in names for template in prompts.templates]:
            inputs = tokenizer(text, **options)
            with torch.no_grad():
                features = model.get_text_features(inputs["input_ids"], attention_mask=inputs["attention_mask"])
            vectors.append(features.pooler_output[0] / features.pooler_output[0].norm())
        mean = torch.stack(vectors).mean(dim=0)
        rows.append(mean / mean.norm())
    return torch.stack(rows)


def test_class_embeddings_are_the_mean_of_unit_prompts(two_towers):
    tokenizer = tiny_tokenizer()
    expected = plain_class_embeddings(two_towers, tokenizer, PROMPTS)
    found = class_embeddings(two_towers, tokenizer, PROMPTS, batch_size=4)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, atol=5e-6, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 0.02, "the classes can be told apart"


def test_the_batch_size_changes_nothing_but_rounding(two_towers):
    tokenizer = tiny_tokenizer()
    one, many = (class_embeddings(two_towers, tokenizer, PROMPTS, batch_size=size) for size in (1, 100))
    torch.testing.assert_close(one, many, atol=5e-6, rtol=0)


def test_the_longest_prompts_come_first(monkeypatch):
    lengths = []

    def watch(model, tokenizer, texts, **options):
        lengths.extend(len(text) for text in texts)
        return torch.ones(len(texts), 2)

    monkeypatch.setattr("maws_hf.evaluation.zero_shot.encode_texts", watch)
    class_embeddings(None, None, PROMPTS, batch_size=4)
    assert len(lengths) == 15
    assert lengths == sorted(lengths, reverse=True)


def test_bfloat16_stays_near_and_training_mode_is_restored():
    torch.manual_seed(0)
    model, tokenizer = tiny_two_towers("bert").train(), tiny_tokenizer()
    exact = class_embeddings(model, tokenizer, PROMPTS)
    near = class_embeddings(model, tokenizer, PROMPTS, bf16=True)
    assert model.training
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().max() < 0.1


@pytest.mark.parametrize(
    ("kind", "told", "limit"),
    [("clip", None, 60), ("siglip", None, 60), ("bert", None, 60), ("xlm-roberta", None, 59), ("bert", 12, 12)],
)
def test_texts_are_cut_to_what_tower_and_tokenizer_take(kind, told, limit):
    model = tiny_two_towers(kind)  # whose padding is token 0, so RoBERTa's first position is 1
    tokenizer = tiny_tokenizer(**({} if told is None else {"model_max_length": told}))
    assert text_limit(model, tokenizer) == limit
    long = encode_texts(model, tokenizer, ["狐" * 100, "a"])
    assert long.isfinite().all()
    assert torch.equal(encode_texts(model, tokenizer, ["狐" * 100]), encode_texts(model, tokenizer, ["狐" * 200]))


def test_a_tower_that_breaks_is_reported():
    model = tiny_two_towers("clip")
    nn.init.constant_(model.text_projection.weight, float("nan"))
    with pytest.raises(ValueError, match="not finite"):
        class_embeddings(model, tiny_tokenizer(), PROMPTS)


def test_scores_are_cosines_and_accuracies_those_of_a_count():
    torch.manual_seed(0)
    images, classes = 3 * torch.randn(3000, 8), F.normalize(torch.randn(7, 8), dim=1)
    labels = torch.randint(0, 6, (3000,))  # the last class never occurs
    scores = zero_shot_scores(images, classes)
    cosines = F.cosine_similarity(images.double()[:, None], classes.double()[None], dim=2)
    torch.testing.assert_close(scores.double(), cosines, atol=1e-6, rtol=0)

    accuracy = zero_shot_accuracy(images, classes, labels)
    order = cosines.argsort(dim=1, descending=True)
    hits = order[:, 0] == labels
    per_class = [float(hits[labels == label].double().mean()) for label in range(6)]
    assert accuracy.top1 == pytest.approx(float(hits.double().mean()))
    assert accuracy.top5 == pytest.approx(float((order[:, :5] == labels[:, None]).any(dim=1).double().mean()))
    assert accuracy.top1_per_class[:6].tolist() == pytest.approx(per_class)
    assert accuracy.top1_per_class[6].isnan()
    assert accuracy.mean_per_class == pytest.approx(sum(per_class) / 6)
    assert accuracy.images_per_class.tolist() == [int((labels == label).sum()) for label in range(7)]
    assert zero_shot_accuracy(images, classes[:5], labels.clamp(max=4)).top5 is None
    told = accuracy.per_class(list("abcdefg"))
    assert told["a"] == {"images": int((labels == 0).sum()), "top1": pytest.approx(per_class[0])}
    assert told["g"] == {"images": 0, "top1": None}


# ---------------------------------------------------------------- images


class Planted(PreTrainedModel):
    """Says of an image its mean colour and of a text the colour it names; plain tensors, as transformers once gave."""

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig, tokenizer):
        super().__init__(config)
        self.anchor = nn.Parameter(torch.zeros(1))
        self.tokenizer = tokenizer

    def get_image_features(self, pixel_values):
        return pixel_values.mean(dim=(2, 3)) + self.anchor

    def get_text_features(self, input_ids):
        texts = self.tokenizer.batch_decode(input_ids, skip_special_tokens=True)
        return torch.tensor([[float(colour in text) for colour in ("red", "green", "blue")] for text in texts])


def test_a_planted_answer_is_found():
    tokenizer = tiny_tokenizer(model_max_length=64)
    model = Planted(PreTrainedConfig(), tokenizer)
    prompts = Prompts(("a {} picture", "{}"), (("blue",), ("green",), ("red",)), "en", "a test")
    classes = class_embeddings(model, tokenizer, prompts)
    assert torch.equal(classes, torch.eye(3).flip(0))
    pixels = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    for image in range(3):
        pixels[image, image] = 255  # red, green, blue
    features = encode_images(model, pixels, image_mean=(0.0, 0.0, 0.0), image_std=(1.0, 1.0, 1.0))
    assert zero_shot_scores(features, classes).argmax(dim=1).tolist() == [2, 1, 0]


def test_images_are_encoded_by_the_projected_feature_of_normalised_pixels(two_towers):
    pixels = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)
    processor = CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size=16, image_mean=(0.5,) * 3, image_std=(0.2,) * 3
    )
    inputs = processor(list(pixels.numpy()), input_data_format="channels_first", return_tensors="pt")
    with torch.no_grad():
        expected = two_towers.get_image_features(**inputs).pooler_output
    found = encode_images(two_towers, pixels, image_mean=(0.5,) * 3, image_std=(0.2,) * 3)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


class WithMawsTower(PreTrainedModel):
    config_class = PreTrainedConfig

    def __init__(self):
        super().__init__(PreTrainedConfig())
        self.vision_model = MawsViTModel(tiny_config())

    def get_image_features(self, pixel_values):
        return self.vision_model(pixel_values=pixel_values)


def test_a_maws_image_tower_gets_uint8():
    model = WithMawsTower()
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert pixel_statistics("a folder", model) == {}
    expected = encode_images(model.vision_model, pixels)
    torch.testing.assert_close(encode_images(model, pixels), expected)


def test_the_digest_is_of_what_image_features_depend_on(two_towers):
    before = model_digest(two_towers)
    with torch.no_grad():
        two_towers.logit_scale.add_(1)
        for name, weight in two_towers.named_parameters():
            if name.startswith("text"):
                weight.add_(1)
    two_towers.config.text_config.vocab_size += 1
    assert model_digest(two_towers) == before
    for name, weight in two_towers.named_parameters():
        if name.startswith("vis"):
            with torch.no_grad():
                weight.add_(1)
            after = model_digest(two_towers)
            assert after != before, name
            before = after


def test_features_of_a_two_tower_model_are_cached(tmp_path, monkeypatch):
    rows = {"image": [{"bytes": draw_image(i), "path": f"{i}.png"} for i in range(6)], "label": list("abcabc")}
    kinds = Features({"image": {"bytes": Value("binary"), "path": Value("string")}, "label": Value("string")})
    dataset = Dataset.from_dict(rows, features=kinds).to_iterable_dataset()
    torch.manual_seed(0)
    model = tiny_two_towers("clip")
    options = {"image_column": "image", "label_column": "label", "cache_dir": tmp_path}
    first = extract_features(model, dataset, EvalTransform(16), **options)
    assert first.features.shape == (6, 12)
    with torch.no_grad():
        model.text_projection.weight.zero_()  # a text tower that learns leaves image features alone
    monkeypatch.setattr(features_module, "encode_images", None)
    again = extract_features(model, dataset, EvalTransform(16), **options)
    assert again.from_cache
    assert torch.equal(again.features, first.features)
    with torch.no_grad():
        model.visual_projection.weight.zero_()
    with pytest.raises(TypeError):
        extract_features(model, dataset, EvalTransform(16), **options)


# ---------------------------------------------------------------- loading


def test_a_folder_gives_model_tokenizer_and_pixel_statistics(tmp_path):
    tiny_two_towers("clip").train().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    CLIPImageProcessorPil(image_mean=[0.1, 0.2, 0.3], image_std=[1.0, 1.0, 1.0]).save_pretrained(tmp_path)
    model, tokenizer = load_two_towers(str(tmp_path))
    assert not model.training
    assert model.dtype == torch.float32
    assert tokenizer("a")["input_ids"] == tiny_tokenizer()("a")["input_ids"]
    assert pixel_statistics(str(tmp_path), model) == {"image_mean": (0.1, 0.2, 0.3), "image_std": (1.0, 1.0, 1.0)}


def test_what_is_no_two_tower_model_is_refused_in_one_sentence(tmp_path):
    MawsViTModel(tiny_config()).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="vit is a MawsViTModel, which has no get_image_features"):
        load_two_towers(str(tmp_path / "vit"))
    for kind in ("clip", "siglip"):  # transformers makes up an empty tokenizer for one and fails for the other
        tiny_two_towers(kind).save_pretrained(tmp_path / kind)
        with pytest.raises(ValueError, match=f"{kind} comes without a tokenizer"):
            load_two_towers(str(tmp_path / kind))


def test_a_model_that_lacks_a_weight_is_refused(tmp_path):
    tiny_two_towers("clip").save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of CLIPModel, among them text_projection\.weight"):
        load_two_towers(str(tmp_path))


def test_a_siglip_2_for_patches_of_any_shape_is_refused(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = Siglip2Config(text_config={**small, "vocab_size": 50}, vision_config={**small, "patch_size": 8})
    Siglip2Model(config).save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a Siglip2Model for patches of any shape"):
        load_two_towers(str(tmp_path))
