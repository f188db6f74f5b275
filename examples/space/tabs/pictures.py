"""Pictures in and out of the page, and the sentences that it says instead of a result."""

import base64
import html
import io
from abc import ABCMeta
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import torch
from gradio.data_classes import ImageData
from PIL import Image
from transformers import PreTrainedModel

from maws_hf.processing.decode import DEFAULT_LIMITS, ImageDecodeError, decode_image
from maws_hf.processing.transforms import EvalTransform

SMALL = 200  # pixels; pictures of a smaller side are enlarged pixel by pixel, not blurred


class PageMessage(ValueError):
    """What the person before the page should know or do, one sentence."""


class _WithoutStub(type(gr.Image)):
    """Gradio writes a .pyi file beside the source of every new component; none is wanted here."""

    def __new__(cls, name: str, bases: tuple[type, ...], attributes: dict[str, Any]) -> type:
        return ABCMeta.__new__(cls, name, bases, attributes)


class Picture(gr.Image, metaclass=_WithoutStub):
    """Hands over the path of an uploaded file as it came.

    Its parent would open the file with Pillow, in whatever format Pillow knows; `read_picture` is stricter. A class,
    as Gradio makes components anew for a visitor who takes an example: what an instance was told would be forgotten.
    """

    is_template = True  # in the browser it is its parent

    def preprocess(self, payload: ImageData | None) -> str | None:
        return None if payload is None else payload.path


def picture_input(examples: list[Path]) -> Picture:
    """A picture to upload, drop, paste or choose."""
    picture = Picture(
        type="filepath",
        label="Picture",
        sources=["upload", "clipboard"],
        height=300,
        buttons=[],
        elem_classes="picture",
    )
    if examples:
        gr.Examples([[str(path)] for path in examples], [picture], label="Examples", api_visibility="private")
    return picture


def read_picture(path: str | None) -> np.ndarray:
    """uint8 `(height, width, 3)` of an uploaded file.

    Raises:
        PageMessage: there is no picture, or the file is refused.
    """
    if path is None:
        raise PageMessage("Choose a picture: upload it, drop it on the box or paste it.")
    try:
        with open(path, "rb") as file:
            data = file.read(DEFAULT_LIMITS.max_bytes + 1)  # enough to see that it is too much
        return decode_image(data, key=Path(path).name)
    except OSError as error:
        raise PageMessage("The picture is no longer there: upload it again.") from error
    except ImageDecodeError as error:
        raise PageMessage(f"This file cannot be shown to the model: {error.reason}.") from error


def transform_of(model: PreTrainedModel) -> EvalTransform:
    """The preprocessing of the paper's evaluation, at the size of the model.

    Raises:
        ValueError: the model names no size.
    """
    size = getattr(getattr(model.config, "vision_config", model.config), "image_size", None)
    if size is None:
        raise ValueError(f"{type(model).__name__} names no image size")
    return EvalTransform(size if isinstance(size, int) else tuple(size))


def says_what_is_wrong(show: Callable[..., str]) -> Callable[..., str]:
    """Turns a `PageMessage` into what is shown in the place of the result."""

    @wraps(show)
    def shown(*args: object) -> str:
        try:
            return show(*args)
        except PageMessage as message:
            return notice(str(message))

    return shown


def notice(text: str) -> str:
    return f'<p class="notice" role="status">{html.escape(text)}</p>'


def as_image(pixels: torch.Tensor) -> Image.Image:
    """`(3, H, W)`, float in [0, 1] or uint8."""
    if pixels.dtype != torch.uint8:
        pixels = (pixels * 255).round().to(torch.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()))


def encoded(image: Image.Image, form: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, **options)
    return file.getvalue()


def figure(data: bytes, caption: str, *, detail: str = "", form: str = "png", side: int) -> str:
    """A picture with a line or two below, which may hold anything.

    Args:
        side: of the picture in pixels; a small one is enlarged pixel by pixel.
    """
    source = f"data:image/{form};base64,{base64.b64encode(data).decode()}"
    kind = ' class="small"' if side < SMALL else ""
    more = f'<span dir="auto">{html.escape(detail)}</span>' if detail else ""
    alt = html.escape(" ".join(filter(None, (detail, caption))))
    return (
        f'<figure><img{kind} src="{source}" alt="{alt}"><figcaption><span>{html.escape(caption)}</span>{more}'
        "</figcaption></figure>"
    )
