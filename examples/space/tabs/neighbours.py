"""Which pictures of a data set does the encoder find most like this one?"""

import html
from collections.abc import Callable, Iterator
from pathlib import Path

import gradio as gr
import numpy as np
from torch import Tensor

from .picture_index import IndexInTheMaking, Neighbour
from .pictures import figure, notice, picture_input, read_picture, says_what_is_wrong

MOST = 24


def as_gallery(neighbours: list[Neighbour]) -> str:
    figures = "".join(
        figure(found.picture, f"{found.cosine:.3f}", detail=found.name, form="webp", side=found.side)
        for found in neighbours
    )
    about = "The number is the cosine of the two pictures' features."
    return f'<div class="found">{figures}</div><p class="fineprint">{about}</p>'


def as_status(making: IndexInTheMaking, name: str) -> str:
    """How far the index is, or what it holds."""
    if making.failure:
        return notice(making.failure)
    if not making.wait(0):
        share = making.done / max(1, making.total)
        line = f"Encoding {making.done:,} of {making.total:,} pictures" if making.total else "Reading the pictures"
        bar = f'<span class="bar"><span style="width:{100 * share:.0f}%"></span></span>'
        return f'<div class="progress" role="status"><p>{line} of {html.escape(name)} …</p>{bar}</div>'
    index = making.index
    skipped = f", {index.skipped:,} damaged ones left out" if index.skipped else ""
    return f'<p class="fineprint">Among {len(index.names):,} pictures of {html.escape(name)}{skipped}.</p>'


def neighbours_tab(
    page: gr.Blocks,
    making: IndexInTheMaking,
    encode: Callable[[np.ndarray], Tensor],
    name: str,
    examples: list[Path],
) -> None:
    """
    Args:
        page: whose visitors see how far the index is.
        encode: a picture to its feature `(D,)`.
        name: of the data set.
    """

    @says_what_is_wrong
    def search(path: str | None, count: int) -> str:
        picture = read_picture(path)
        return as_gallery(making.index.nearest(encode(picture), int(count)))

    def follow() -> Iterator[str]:
        while not making.wait(0.5):
            yield as_status(making, name)
        yield as_status(making, name)

    quietly = {"show_progress": "hidden", "api_visibility": "private"}
    with gr.Row():
        with gr.Column(min_width=300, scale=2):
            picture = picture_input(examples)
            count = gr.Slider(1, MOST, value=8, step=1, label="Neighbours", elem_id="neighbours")
        with gr.Column(min_width=300, scale=3):
            status = gr.HTML(as_status(making, name), elem_id="index-status")
            result = gr.HTML(elem_classes="result", elem_id="neighbours-result")
    gr.on(
        [picture.change, count.change],
        search,
        [picture, count],
        result,
        trigger_mode="always_last",
        **quietly,
    )
    # Everybody may follow at once; and a picture may have been chosen before there was anything to search.
    followed = page.load(follow, None, status, concurrency_limit=None, **quietly)
    followed.then(search, [picture, count], result, **quietly)
