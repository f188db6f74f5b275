"""What the cards of the released models say in sentences."""

from typing import Any

from ..models.configuration_maws_vit import SIZES
from .released_models import ReleasedModel

AT_RELEASE = "filled in at release"


def what_it_is(model: ReleasedModel) -> str:
    """In a few sentences."""
    size = model.size.removeprefix("vit_").removesuffix(str(SIZES[model.size]["patch_size"])).upper()
    vit = f"ViT-{size}/{SIZES[model.size]['patch_size']}"
    return {
        "mae": f"The encoder of a masked autoencoder (MAE): {vit}, trained on {model.data} to paint in the hidden "
        "three quarters of each image, without any label. The decoder was not released. As a frozen extractor it is "
        "weaker than the models that went on with labels; it is meant as a start for training.",
        "maws": f"MAWS: {vit}, first trained as a masked autoencoder (MAE *pre-pretraining*), then on the hashtags of "
        f"the same images (weakly supervised pretraining, WSP), both on {model.data}. A general image encoder; "
        "the classifier over hashtags was not released.",
        "classifier": f"MAWS {vit} (MAE, then WSP on {model.data}), fine-tuned on ImageNet-1k at {model.image_size} "
        "pixels: a classifier of 1,000 classes.",
        "clip": f"MAWS {vit} (MAE, then WSP on {model.data}) with a text tower (XLM-R "
        f"{'base' if model.size == 'vit_b16' else 'large'}) aligned to it while the image side stayed locked (LiT): "
        "names of things in many languages become a classifier, without training. The original code for this model "
        "needs torchtext, which is no longer maintained; this repository needs transformers alone.",
    }[model.kind]


def how_it_was_trained(model: ReleasedModel) -> str:
    """Data and stages, and what is not known about them."""
    ig = (
        "**Data.** IG-3B: 3.0 billion public Instagram images (5 billion after resampling rare hashtags) with 28 "
        "thousand hashtag classes, made by the pipeline of SWAG (paper, section 4.1). It is not available, and "
        "nothing more is published about its content."
    )
    data = {
        "IG-3B": ig,
        "ImageNet-1k": "**Data.** ImageNet-1k, 1.28 million images; the labels are not used.",
        "ImageNet-21k": "**Data.** ImageNet-21k, 14 million images; the labels are not used.",
    }[model.data]
    mae = "MAE: three quarters of the patches hidden, loss on normalised pixels, "
    if model.data == "IG-3B":
        mae += "hyperparameters of the original MAE, one epoch"
    else:
        mae += "hyperparameters and length of this file's training not known to us"
    if model.size == "vit_6.5b14":
        mae += ", in full precision, without which this size was unstable"
    stages = [mae]
    if model.kind != "mae":
        stages.append(
            "WSP: cross-entropy on hashtags, one epoch, hyperparameters of SWAG, in appendices we have not seen"
        )
    if model.kind == "classifier":
        stages.append(
            f"fine-tuning on ImageNet-1k at {model.image_size} pixels; its recipe is in an appendix we have not seen"
        )
    if model.kind == "clip":
        stages.append(
            "LiT: contrastive training of the text tower on IG-3B images and captions, one epoch, image side locked; "
            "its hyperparameters are not known to us"
        )
    return data + "\n\n**Stages.** " + "; then ".join(stages) + "."


def intended_use(model: ReleasedModel) -> str:
    """What it is for, what not, and what nobody has measured."""
    task = {
        "mae": "Fine-tuning for recognition, detection, segmentation or video, and research on pretraining.",
        "maws": "Features for recognition, retrieval and linear or few-label classifiers; a start for fine-tuning, "
        "detection and video.",
        "classifier": "Research on classification; a reference for the 1,000 ImageNet classes.",
        "clip": "Research on zero-shot recognition and image-text retrieval in many languages.",
    }[model.kind]
    people = (
        f"Not for decisions about people, identification, or surveillance. {_seen_by(model)} The paper measures no "
        "bias by region, gender, age or skin tone, and neither have we; measure on your own data before you rely on "
        "it. Images unlike photographs (scans, medical or satellite pictures) were not evaluated either."
    )
    use = f"{task} Not for commercial use (licence)."
    return "\n\n".join(["## Intended use and limits", use, _where_it_is_weak(model), people])


def _where_it_is_weak(model: ReleasedModel) -> str:
    """As the paper says it (sections 4.3 and 4.4, for its own models)."""
    data = "The paper puts the distance to models that were pretrained on JFT-3B down to the data (section 4.4)."
    languages = "English and French" if model.size == "vit_2b14" else "English"
    return {
        "mae": "Where the encoder stays frozen (linear, few-label and zero-shot classifiers), the paper finds MAE "
        "more than 10 points behind training on hashtags, for ViT-L (section 4.3).",
        "maws": "In detection, MAE alone is ahead in the paper: by 1.8 points of box AP on LVIS and COCO for ViT-2B, "
        "by 0.7 and 1.0 for ViT-H (section 4.4; MAE's ViT-H was trained on ImageNet-1k).",
        "classifier": f"It knows 1,000 classes and answers with one of them whatever the picture shows. {data}",
        "clip": f"Accuracy was published in {languages}; which languages the captions were in was not, so measure in "
        f"yours. One of the labels is always the likeliest, also where none fits. {data}",
    }[model.kind]


def _seen_by(model: ReleasedModel) -> str:
    if model.data != "IG-3B":
        return f"All it has seen is {model.data}: what those images show and what they lack, it carries on."
    named, naming = ("", "") if model.kind == "mae" else (" with the hashtags people chose", " and how it is named")
    return (
        f"The training images are posts of a social network{named}: what is photographed, where, by whom{naming} is "
        "uneven, and models trained on it carry that on."
    )


def where_it_comes_from(model: ReleasedModel, conversion: dict[str, Any] | None) -> str:
    """The original file, the conversion and its checksums; `conversion` is as `card_for_release` takes it."""
    sha256 = model.sha256 or AT_RELEASE
    largest = made_with = checksums = AT_RELEASE
    compared = model.sha256 is not None
    if conversion is not None:
        sha256, checksums = conversion["source"]["sha256"], "`release.json`"
        compared = conversion["source"].get("sha256_was_compared", False)
        differences = conversion["differences"] or {}
        largest = ", ".join(f"{name} {value:.1e}" for name, value in differences.items()) or "not compared"
        made_with = ", ".join(f"{name} {version}" for name, version in conversion["versions"].items())
    file = model.url.rsplit("/", 1)[-1]
    stated = f"--sha256 {sha256}" if compared else "--accept_unknown_sha256"
    if conversion is not None and not compared:
        sha256 += " (compared with nothing: none was published)"
    rows = [
        ("original file", f"[{file}]({model.url})"),
        ("its sha256", sha256),
        ("largest difference to the original arithmetic", largest),
        ("converted with", made_with),
        ("checksums of this repository", checksums),
    ]
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    return f"""Converted from the file that Meta released, which is read without executing anything in it:

```bash
maws-hf convert {file} --model {model.name} --output_dir {model.name} {stated} --verify
```

| | |
|---|---|
{table}"""


def licence_of_release(model: ReleasedModel) -> str:
    """Whose the weights are, and what was changed about them, which the licence wants to be said."""
    moved = (
        " A power of two was moved from the text projection into the pooler that transformers puts before it."
        if model.kind == "clip"
        else ""
    )
    return (
        "The weights are Meta's, under [CC-BY-NC-4.0](https://creativecommons.org/licenses/by-nc/4.0/): not for "
        f"commercial use. Changed were the file format and the names of the tensors.{moved}"
    )
