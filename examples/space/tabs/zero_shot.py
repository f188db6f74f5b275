"""Which of these labels is the picture most like? In any language that the text tower knows."""

import html
import math
import re
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

import gradio as gr
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from maws_hf import MawsLiTModel
from maws_hf.data.prompts import Prompts
from maws_hf.evaluation.features import encode_images
from maws_hf.evaluation.two_towers import load_two_towers, pixel_statistics
from maws_hf.evaluation.zero_shot import class_embeddings, zero_shot_scores
from maws_hf.models.configuration_maws_lit import MAX_LOGIT_SCALE

from .pictures import PageMessage, picture_input, read_picture, says_what_is_wrong, transform_of

SHOWN = 10  # bars
MOST_LABELS = 200
LONGEST_LABEL = 200  # characters
REMEMBERED = 10_000  # texts with their embeddings, 4 kB each

LABELS = {
    "Six languages": ["red apple", "Fahrrad", "pingüino", "papillon", "ピザ", "帆船"],
    "English": ["apple", "bicycle", "penguin", "butterfly", "pizza", "sailboat", "cat", "house"],
    "Deutsch": ["Apfel", "Fahrrad", "Pinguin", "Schmetterling", "Pizza", "Segelboot", "Katze", "Haus"],
    "Español": ["manzana", "bicicleta", "pingüino", "mariposa", "pizza", "velero", "gato", "casa"],
    "Français": ["pomme", "vélo", "pingouin", "papillon", "pizza", "voilier", "chat", "maison"],
    "日本語": ["リンゴ", "自転車", "ペンギン", "蝶", "ピザ", "ヨット", "猫", "家"],
    "中文": ["苹果", "自行车", "企鹅", "蝴蝶", "披萨", "帆船", "猫", "房子"],
}


@dataclass(frozen=True)
class Answer:
    """
    Attributes:
        shares: label and probability, likeliest first.
        image_seconds, text_seconds: spent on the picture and on labels that were new.
        new_labels: how many those were.
    """

    shares: list[tuple[str, float]]
    image_seconds: float
    text_seconds: float
    new_labels: int


class ZeroShot:
    """A two-tower model that remembers the labels it has read.

    Args:
        name: folder or Hub id of a MAWS-LiT model, CLIP, SigLIP or VisionTextDualEncoder.

    Raises:
        ValueError: it is no such model, or incomplete.
    """

    def __init__(self, name: str):
        self.model, self.tokenizer = load_two_towers(name)
        self.transform = transform_of(self.model)
        self.statistics = pixel_statistics(name, self.model)
        self.scale = scale_of(self.model)
        self._known: OrderedDict[str, Tensor] = OrderedDict()
        self._lock = Lock()

    def ask(self, picture: np.ndarray, labels: list[str], template: str = "{}") -> Answer:
        """Probabilities of the labels: the softmax of cosines times the model's own scale.

        Args:
            picture: uint8 `(H, W, 3)`.
            labels: different ones.
            template: with `{}` where the label goes.
        """
        start = time.perf_counter()
        pixels = self.transform(picture)[None]
        feature = encode_images(self.model, pixels, **self.statistics).cpu()
        middle = time.perf_counter()
        embeddings, new = self._embed([template.replace("{}", label) for label in labels])
        shares = (self.scale * zero_shot_scores(feature, embeddings)[0]).softmax(dim=0).tolist()
        ranked = sorted(zip(labels, shares, strict=True), key=lambda share: -share[1])
        return Answer(ranked, middle - start, time.perf_counter() - middle, new)

    def _embed(self, texts: list[str]) -> tuple[Tensor, int]:
        """`(C, D)` of length 1, and how many texts were new."""
        with self._lock:
            new = [text for text in texts if text not in self._known]
            if new:
                prompts = Prompts(("{}",), tuple((text,) for text in new), "", "typed on the page")
                self._known.update(zip(new, class_embeddings(self.model, self.tokenizer, prompts), strict=True))
            embeddings = torch.stack([self._known[text] for text in texts])
            for text in texts:
                self._known.move_to_end(text)
            while len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
            return embeddings, len(new)


def scale_of(model: PreTrainedModel) -> float:
    """What the model multiplies cosines with; 100, where CLIP's ends up, if it has another name for it."""
    logarithm = getattr(model, "logit_scale", None)
    if logarithm is None:
        return 100.0
    bound = MAX_LOGIT_SCALE if isinstance(model, MawsLiTModel) else math.inf
    return math.exp(min(float(logarithm.detach()), bound))


def parse_labels(text: str) -> list[str]:
    """Different labels, one a line or separated by commas of any script.

    Raises:
        PageMessage: there is none, there are too many, or one is too long.
    """
    parts = (" ".join(part.split()) for part in re.split(r"[\n,，、،]", text or ""))
    labels = list(dict.fromkeys(part for part in parts if part))
    if not labels:
        raise PageMessage("Type at least one label, one a line or separated by commas.")
    if len(labels) > MOST_LABELS:
        raise PageMessage(f"These are {len(labels)} labels; give {MOST_LABELS} at most.")
    if long := [label for label in labels if len(label) > LONGEST_LABEL]:
        raise PageMessage(f"A label has {LONGEST_LABEL} characters at most; one begins with {long[0][:30]!r}.")
    return labels


def parse_template(text: str) -> str:
    """A sentence with `{}`; empty is the label alone.

    Raises:
        PageMessage: the hole is missing or there are several.
    """
    template = (text or "").strip()
    if template and template.count("{}") != 1:
        raise PageMessage("The template needs {} once, where the label goes, as in: a photo of a {}.")
    if len(template) > LONGEST_LABEL:
        raise PageMessage(f"The template has {LONGEST_LABEL} characters at most.")
    return template or "{}"


def as_bars(answer: Answer) -> str:
    """The likeliest labels with a bar for each, and the time it took."""
    rows = "".join(
        f'<li><span class="name" dir="auto">{html.escape(label)}</span><span class="share">{100 * share:.1f}&nbsp;%'
        f'</span><span class="bar"><span style="width:{100 * share:.2f}%"></span></span></li>'
        for label, share in answer.shares[:SHOWN]
    )
    rest = len(answer.shares) - SHOWN
    more = f"{rest} more labels share the rest · " if rest > 0 else ""
    texts = f"{answer.new_labels} new labels {1000 * answer.text_seconds:.0f} ms" if answer.new_labels else ""
    took = f"picture {1000 * answer.image_seconds:.0f} ms · {texts or 'labels known already'}"
    return f'<ol class="bars">{rows}</ol><p class="fineprint">{more}{took}</p>'


def zero_shot_tab(zero_shot: ZeroShot, examples: list[Path]) -> None:
    @says_what_is_wrong
    def classify(path: str | None, labels: str, template: str) -> str:
        picture = read_picture(path)
        return as_bars(zero_shot.ask(picture, parse_labels(labels), parse_template(template)))

    with gr.Row():
        with gr.Column(min_width=300):
            picture = picture_input(examples)
        with gr.Column(min_width=300):
            result = gr.HTML(elem_classes="result", elem_id="zero-shot-result")
            labels = gr.Textbox(
                "\n".join(LABELS["Six languages"]),
                label="Labels, in any language",
                info="One a line, or separated by commas.",
                lines=6,
                max_lines=12,
                elem_id="labels",
            )
            with gr.Row(elem_classes="languages"):
                buttons = {name: gr.Button(name, size="sm", min_width=60) for name in LABELS}
            template = gr.Textbox(
                label="Sentence around each label", placeholder="a photo of a {}.", info="Empty: the label alone."
            )
            run = gr.Button("Compare", variant="primary")
    wiring = {"inputs": [picture, labels, template], "outputs": result, "api_visibility": "private"}
    gr.on([picture.change, run.click, labels.submit, template.submit], classify, **wiring)
    for name, button in buttons.items():
        chosen = button.click(lambda name=name: "\n".join(LABELS[name]), None, labels, api_visibility="private")
        chosen.then(classify, **wiring)
