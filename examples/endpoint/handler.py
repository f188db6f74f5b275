"""A Hugging Face inference endpoint for a MAWS model: classification, zero-shot, or features.

Put this file and `requirements.txt` into the model's repository. The endpoint calls `EndpointHandler(path)` once and
the object for every request:

    {"inputs": "<base64 of a picture>", "parameters": {"candidate_labels": ["a cat", "ein Hund"]}}

A picture is given by its bytes, in base64; addresses and paths are refused, so that nobody can make the endpoint fetch
or open something.
"""

import base64
import binascii
import io
from typing import Any

import torch
from PIL import Image
from torch import nn
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoTokenizer

from maws_hf.processing.decode import ImageDecodeError, decode_image

MOST_LABELS = 1000
LONGEST_LABEL = 500  # characters
MOST_IMAGES = 32


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
        self.task = "zero-shot" if two_towers else "classification" if "Classification" in architecture else "features"
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model_class.from_pretrained(path).eval().to(self.device)
        self.image_processor = AutoImageProcessor.from_pretrained(path)
        self.tokenizer = AutoTokenizer.from_pretrained(path) if two_towers else None

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
            images = self._images([inputs] if single else inputs)
            parameters = data.get("parameters") or {}
            if not isinstance(parameters, dict):
                raise RequestError("parameters is no object")
            answers = {
                "zero-shot": self._compare,
                "classification": self._classify,
                "features": self._describe,
            }[self.task](images, **parameters)
        except TypeError as error:
            return {"error": f"parameters of {self.task}: {str(error).split('() ')[-1]}"}
        except (RequestError, ImageDecodeError) as error:
            return {"error": str(error)}
        return answers[0] if single else answers

    def _images(self, inputs: list[Any]) -> torch.Tensor:
        if not 1 <= len(inputs) <= MOST_IMAGES:
            raise RequestError(f"inputs has {len(inputs)} pictures; 1 to {MOST_IMAGES} are possible")
        pictures = [Image.fromarray(decode_image(self._bytes(picture))) for picture in inputs]
        return self.image_processor(pictures, return_tensors="pt").pixel_values.to(self.device, self.model.dtype)

    @staticmethod
    def _bytes(picture: Any) -> bytes:
        if isinstance(picture, Image.Image):  # as endpoints hand over a request that is itself a picture
            encoded = io.BytesIO()
            picture.convert("RGB").save(encoded, format="PNG")
            return encoded.getvalue()
        if isinstance(picture, bytes):
            return picture
        if not isinstance(picture, str):
            raise RequestError("inputs must be a picture in base64, or a list of them")
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
        if not fine or not all(isinstance(label, str) and 0 < len(label) <= LONGEST_LABEL for label in labels):
            raise RequestError(f"parameters.candidate_labels must be 1 to {MOST_LABELS} texts")
        if not isinstance(hypothesis_template, str) or "{}" not in hypothesis_template:
            raise RequestError("parameters.hypothesis_template must have {} where the label goes")
        texts = [hypothesis_template.replace("{}", label.strip()) for label in labels]
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self.device)
        logits = self.model(**tokens, pixel_values=images).logits_per_image
        return [self._ranked(row, [label.strip() for label in labels], len(labels)) for row in logits]

    @torch.inference_mode()
    def _classify(self, images: torch.Tensor, top_k: int = 5) -> list[list[dict[str, Any]]]:
        if not isinstance(top_k, int) or top_k < 1:
            raise RequestError("parameters.top_k must be a whole number from 1")
        names = self.model.config.id2label
        return [self._ranked(row, [names[i] for i in range(len(row))], top_k) for row in self.model(images).logits]

    @torch.inference_mode()
    def _describe(self, images: torch.Tensor, normalize: bool = False) -> list[list[float]]:
        features = self.model(images).pooler_output.float()
        return (nn.functional.normalize(features, dim=-1) if normalize else features).tolist()

    @staticmethod
    def _ranked(logits: torch.Tensor, names: list[str], most: int) -> list[dict[str, Any]]:
        shares, order = logits.float().softmax(dim=-1).sort(descending=True)
        pairs = list(zip(order.tolist(), shares.tolist(), strict=True))[:most]
        return [{"label": names[index], "score": share} for index, share in pairs]
