"""A Hugging Face inference endpoint for a MAWS model: classification, zero-shot, or features.

Put this file, `requirements.txt` and the folder `maws_hf` into the model's repository. The endpoint calls
`EndpointHandler(path)` once and the object for every request:

    {"inputs": "<base64 of a picture>", "parameters": {"candidate_labels": ["a cat", "ein Hund"]}}

A picture is given by its bytes, in base64; addresses and paths are refused, so that nobody can make the endpoint fetch
or open something.
"""

import base64
import binascii
import io
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoTokenizer

from maws_hf import MawsViTModel
from maws_hf.evaluation.two_towers import text_limit
from maws_hf.processing.decode import DEFAULT_LIMITS, ImageDecodeError, decode_image

FORMATS = (None, "JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF")  # of an opened picture, by Pillow's names
MOST_LABELS = 1000
LONGEST_LABEL = 500  # characters
MOST_IMAGES = 32
LONGEST_TEXT = DEFAULT_LIMITS.max_bytes * 4 // 3 + 100  # characters of a picture in base64, with what stands before it
PARAMETERS = {
    "zero-shot": {"candidate_labels", "hypothesis_template"},
    "classification": {"top_k"},
    "features": {"normalize"},
}


class RequestError(ValueError):
    """What is wrong with a request; the answer says it."""


class EndpointHandler:
    """One model, and the task that it is for.

    Args:
        path: folder of the model, with its image processor, and its tokenizer if it has a text tower.
    """

    def __init__(self, path: str = ""):
        config = AutoConfig.from_pretrained(path)
        architecture = (config.architectures or [""])[0]
        two_towers = hasattr(config, "text_config") and hasattr(config, "vision_config")
        model_class = AutoModelForImageClassification if "Classification" in architecture else AutoModel
        if config.model_type == "vit_mae":  # transformers' own hides three quarters of every picture
            model_class = MawsViTModel
        self.task = "zero-shot" if two_towers else "classification" if "Classification" in architecture else "features"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model_class.from_pretrained(path).eval().to(self.device)
        self.image_processor = AutoImageProcessor.from_pretrained(path)
        self.tokenizer = AutoTokenizer.from_pretrained(path) if two_towers else None
        self.most_tokens = text_limit(self.model, self.tokenizer) if two_towers else None

    def __call__(self, data: dict[str, Any]) -> Any:
        """
        Args:
            data: `inputs`, a picture or up to 32 of them, in base64; `parameters`, by task: zero-shot
                `candidate_labels` (a list) and `hypothesis_template` (default "{}"), classification `top_k` (default
                5), features `normalize` (default false).

        Returns:
            For each picture `[{"label", "score"}, ...]`, best first, or the feature as a list; of a single picture not
            in a list. `{"error": ...}` if the request cannot be answered.
        """
        try:
            if not isinstance(data, dict):
                raise RequestError("the request is no JSON object with inputs")
            inputs = data.get("inputs")
            single = not isinstance(inputs, list)
            parameters = self._parameters(data.get("parameters"))
            images = self._images([inputs] if single else inputs)
            answers = {
                "zero-shot": self._compare,
                "classification": self._classify,
                "features": self._describe,
            }[self.task](images, **parameters)
        except (RequestError, ImageDecodeError) as error:
            return {"error": str(error)}
        return answers[0] if single else answers

    def _parameters(self, parameters: Any) -> dict[str, Any]:
        if parameters is None:
            return {}
        if not isinstance(parameters, dict):
            raise RequestError("parameters is no object")
        if unknown := parameters.keys() - PARAMETERS[self.task]:
            known = ", ".join(sorted(PARAMETERS[self.task]))
            raise RequestError(
                f"parameters has {sorted(map(str, unknown))[0]!r}; this model is for {self.task}: {known}"
            )
        return parameters

    def _images(self, inputs: list[Any]) -> torch.Tensor:
        if not 1 <= len(inputs) <= MOST_IMAGES:
            raise RequestError(f"inputs has {len(inputs)} pictures; 1 to {MOST_IMAGES} are possible")
        pixels = []
        for number, picture in enumerate(inputs):  # one decoded at a time: 32 large ones would fill the memory
            decoded = Image.fromarray(decode_image(self._bytes(picture), key=f"picture {number}"))
            pixels.append(self.image_processor(decoded, return_tensors="pt").pixel_values)
        return torch.cat(pixels).to(self.device, self.model.dtype)

    @staticmethod
    def _bytes(picture: Any) -> bytes:
        if isinstance(picture, Image.Image):  # as endpoints hand over a request that is itself a picture
            return _encoded(picture)
        if isinstance(picture, bytes):
            return picture
        if not isinstance(picture, str):
            raise RequestError("inputs must be a picture in base64, or a list of them")
        if len(picture) > LONGEST_TEXT:
            raise RequestError(f"inputs has {len(picture)} characters; {LONGEST_TEXT} are possible")
        try:
            return base64.b64decode(picture.removeprefix("data:").split("base64,")[-1], validate=True)
        except (binascii.Error, ValueError):
            raise RequestError("inputs is no base64; addresses and paths are not opened, send the bytes") from None

    @torch.inference_mode()
    def _compare(
        self, images: torch.Tensor, candidate_labels: list[str] | None = None, hypothesis_template: str = "{}"
    ) -> list[list[dict[str, Any]]]:
        labels = candidate_labels.split(",") if isinstance(candidate_labels, str) else candidate_labels
        fine = isinstance(labels, list) and 1 <= len(labels) <= MOST_LABELS
        if not fine or not all(isinstance(label, str) and 0 < len(label.strip()) <= LONGEST_LABEL for label in labels):
            raise RequestError(
                f"parameters.candidate_labels must be 1 to {MOST_LABELS} texts of up to {LONGEST_LABEL} characters"
            )
        template = hypothesis_template
        if not isinstance(template, str) or template.count("{}") != 1 or len(template) > LONGEST_LABEL:
            raise RequestError(
                "parameters.hypothesis_template must have {} once, where the label goes, in up to "
                f"{LONGEST_LABEL} characters"
            )
        texts = [template.replace("{}", label.strip()) for label in labels]
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.most_tokens, return_tensors="pt"
        ).to(self.device)
        logits = self.model(**tokens, pixel_values=images).logits_per_image
        return [self._ranked(row, [label.strip() for label in labels], len(labels)) for row in logits]

    @torch.inference_mode()
    def _classify(self, images: torch.Tensor, top_k: int = 5) -> list[list[dict[str, Any]]]:
        if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1:
            raise RequestError("parameters.top_k must be a whole number from 1")
        names = self.model.config.id2label
        return [self._ranked(row, [names[i] for i in range(len(row))], top_k) for row in self.model(images).logits]

    @torch.inference_mode()
    def _describe(self, images: torch.Tensor, normalize: bool = False) -> list[list[float]]:
        if not isinstance(normalize, bool):
            raise RequestError("parameters.normalize must be true or false")
        features = self.model(images).pooler_output.float()
        return (nn.functional.normalize(features, dim=-1) if normalize else features).tolist()

    @staticmethod
    def _ranked(logits: torch.Tensor, names: list[str], most: int) -> list[dict[str, Any]]:
        shares, order = logits.float().softmax(dim=-1).sort(descending=True)
        pairs = list(zip(order.tolist(), shares.tolist(), strict=True))[:most]
        return [{"label": names[index], "score": share} for index, share in pairs]


def _encoded(picture: Image.Image) -> bytes:
    """As a PNG, so that it passes the same gate; its size is looked at before any pixel is decompressed."""
    if picture.format not in FORMATS:
        raise RequestError(f"the picture is {picture.format}, not JPEG, PNG, WebP, GIF, BMP or TIFF")
    try:
        DEFAULT_LIMITS.check_size(picture.height, picture.width)
        upright = ImageOps.exif_transpose(picture)
        encoded = io.BytesIO()
        upright.convert("RGBA" if upright.has_transparency_data else "RGB").save(
            encoded, format="PNG", compress_level=1
        )
    except Exception as error:  # codecs raise whatever they like on hostile bytes
        raise RequestError(f"the picture cannot be read: {error}") from None
    return encoded.getvalue()
