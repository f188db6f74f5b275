"""A page that shows MAWS models at work: zero-shot labels, reconstruction of hidden patches, nearest neighbours.

    python examples/space/app.py --zero_shot_model runs/demo/lit --mae_model runs/demo/mae --index_dataset data/emoji

Each tab is there if its model or data set is given. Every option may also come from the environment, under its name in
capitals (`ZERO_SHOT_MODEL`), as it does on a Hugging Face Space; flags win. Nothing is fetched while the page runs.
"""

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
from tabs.encoder import Encoder
from tabs.examples import write_examples
from tabs.header import ShownModel, as_header, describe, short_name
from tabs.neighbours import neighbours_tab
from tabs.picture_index import IndexInTheMaking, build_index
from tabs.reconstruction import Reconstructor, reconstruction_tab
from tabs.zero_shot import ZeroShot, zero_shot_tab
from transformers.utils import logging

from maws_hf.data.sources import open_stream
from maws_hf.evaluation.encoders import load_encoder
from maws_hf.processing.decode import DEFAULT_LIMITS
from maws_hf.training.arguments import Options, option, parse_recipe
from maws_hf.training.entry_point import run_script

STYLE = Path(__file__).with_name("style.css")


@dataclass(kw_only=True)
class SpaceOptions(Options):
    """Which models the page shows."""

    zero_shot_model: str | None = option(None, "Two-tower model: folder or Hub id (MAWS-LiT, CLIP, SigLIP, ...).")
    mae_model: str | None = option(None, "Masked autoencoder with its decoder: folder of a MAE run, or Hub id.")
    index_dataset: str | None = option(None, "Pictures to search: folder of images or shards, or data set id.")
    index_split: str = option("train", "Split of the data set to search.")
    index_size: int = option(5000, "Most pictures to search; the first ones are taken.")
    index_model: str | None = option(
        None, "Encoder of the search: any vision model; the zero-shot model if unset, else the MAE's encoder."
    )
    example_dataset: str | None = option(None, "Where the examples come from; the data set to search if unset.")
    example_split: str | None = option(None, "Split of the examples; index_split if unset.")
    num_examples: int = option(6, "Pictures to choose from; 0 shows none.")
    cache_dir: str = option("~/.cache/maws_hf/space", "Folder of computed features and of the examples.")
    server_port: int | None = option(None, "Port of the page; the first free one from 7860 if unset.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.zero_shot_model or self.mae_model or self.index_dataset):
            raise ValueError("there is nothing to show: give --zero_shot_model, --mae_model or --index_dataset")
        if self.index_dataset and not (self.index_model or self.zero_shot_model or self.mae_model):
            raise ValueError("--index_dataset needs an encoder: give --index_model")
        self._require(self.index_size >= 1, "index_size", "at least 1")
        self._require(self.num_examples >= 0, "num_examples", "0 or more")


def read_options(argv: list[str]) -> SpaceOptions:
    """From the environment and from flags."""
    environment = {field.name: os.environ.get(field.name.upper()) for field in fields(SpaceOptions)}
    told = [part for name, value in environment.items() if value for part in (f"--{name}", value)]
    return parse_recipe(SpaceOptions, __doc__, told + argv)


def find_examples(options: SpaceOptions) -> list[Path]:
    source = options.example_dataset or options.index_dataset
    if source is None or options.num_examples == 0:
        return []
    dataset = open_stream(source, split=options.example_split or options.index_split)
    return write_examples(dataset, options.num_examples, Path(options.cache_dir).expanduser() / "examples")


def make_index(options: SpaceOptions, encoder: Encoder) -> IndexInTheMaking:
    dataset = open_stream(options.index_dataset, split=options.index_split)
    folder = Path(options.cache_dir).expanduser() / "index"
    return IndexInTheMaking(
        lambda report: build_index(encoder, dataset, most=options.index_size, cache_dir=folder, report=report)
    )


def build_page(options: SpaceOptions) -> gr.Blocks:
    """Loads what is asked for and lays it out.

    Raises:
        ValueError: a model or data set cannot be used as asked.
    """
    examples = find_examples(options)
    shown: list[ShownModel] = []
    zero_shot = ZeroShot(options.zero_shot_model) if options.zero_shot_model else None
    if zero_shot:
        shown.append(describe("Zero-shot", options.zero_shot_model, zero_shot.model))
    reconstructor = Reconstructor(options.mae_model) if options.mae_model else None
    if reconstructor:
        shown.append(describe("Reconstruction", options.mae_model, reconstructor.model))
    encoder = None
    if options.index_dataset:
        if options.index_model:
            encoder = Encoder(options.index_model, load_encoder(options.index_model))
            shown.append(describe("Neighbours", options.index_model, encoder.model))
        elif zero_shot:
            encoder = Encoder(options.zero_shot_model, zero_shot.model)
        else:
            encoder = Encoder(options.mae_model, reconstructor.model)
    with gr.Blocks(title="MAWS", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.HTML(as_header(shown), elem_classes="header")
        with gr.Tabs():
            if zero_shot:
                with gr.Tab("Zero-shot"):
                    zero_shot_tab(zero_shot, examples)
            if reconstructor:
                with gr.Tab("Reconstruct"):
                    reconstruction_tab(reconstructor, examples)
            if encoder:
                with gr.Tab("Neighbours"):
                    name = short_name(options.index_dataset)
                    neighbours_tab(page, make_index(options, encoder), encoder, name, examples)
    return page


def build_theme() -> gr.themes.Base:
    """With fonts that need not be fetched, and small print dark enough to be read (4.5 to 1)."""
    theme = gr.themes.Soft(
        primary_hue="indigo", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    return theme.set(
        background_fill_primary="*neutral_50",  # Soft's own, which set() forgets
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        block_label_text_color="*primary_700",
        block_title_text_color="*primary_700",
        input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400",
        color_accent="*primary_600",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        link_text_color="*primary_700",
        link_text_color_dark="*primary_300",
        link_text_color_visited="*primary_700",
        link_text_color_visited_dark="*primary_300",
        link_text_color_hover_dark="*primary_200",
    )


def main() -> int:
    options = read_options(sys.argv[1:])
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # of weights, the loaders say what matters
    page = build_page(options)
    page.launch(
        server_port=options.server_port,
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        theme=build_theme(),
        css_paths=STYLE,
        footer_links=["gradio", "settings"],
        max_file_size=DEFAULT_LIMITS.max_bytes,
    )
    return 0


if __name__ == "__main__":
    run_script(main)
