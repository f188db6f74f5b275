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
    mae_epochs = "one epoch" if model.data == "IG-3B" else "length not published for this file"
    stages = [
        f"MAE: three quarters of the patches hidden, loss on normalised pixels, hyperparameters of the original MAE, "
        f"{mae_epochs}"
    ]
    if model.kind != "mae":
        stages.append("WSP: cross-entropy on hashtags, one epoch, hyperparameters of SWAG, which are not public")
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
    return f"""## Intended use and limits

{task} Not for commercial use (licence).

Not for decisions about people, identification, or surveillance. The training images are public posts of a social
network with the hashtags people chose: what is photographed, where, by whom and how it is named is uneven, and models
trained on it carry that on. The paper measures no bias by region, gender, age or skin tone, and neither have we;
measure on your own data before you rely on it. Images unlike photographs (scans, medical or satellite pictures) were
not evaluated either."""


def where_it_comes_from(model: ReleasedModel, conversion: dict[str, Any] | None) -> str:
    """The original file, the conversion and its checksums."""
    conversion = conversion or {}
    differences = conversion.get("differences") or {}
    largest = ", ".join(f"{name} {value:.1e}" for name, value in differences.items()) or AT_RELEASE
    file = model.url.rsplit("/", 1)[-1]
    digest = conversion.get("source", {}).get("sha256") or model.sha256
    stated = f"--sha256 {digest}" if digest else "--accept_unknown_sha256"
    rows = [
        ("original file", f"[{file}]({model.url})"),
        ("its sha256", digest or AT_RELEASE),
        ("largest difference to the original arithmetic", largest),
        ("checksums of this repository", AT_RELEASE if not conversion else "`release.json`"),
    ]
    table = "\n".join(f"| {what} | {value} |" for what, value in rows)
    return f"""Converted from the file that Meta released, which is read without executing anything in it:

```bash
maws-hf convert {file} --model {model.name} --output_dir {model.name} {stated} --verify
```

| | |
|---|---|
{table}"""
