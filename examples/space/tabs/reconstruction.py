"""What a masked autoencoder makes of the patches that it does not see."""

from pathlib import Path

import gradio as gr
import numpy as np
import torch

from maws_hf import MawsMAEForPreTraining
from maws_hf.masking import mask_from_ids, split_by_noise
from maws_hf.models.modeling_maws_mae import MawsMAEReconstruction

from .pictures import (
    PageMessage,
    as_image,
    encoded,
    figure,
    picture_input,
    read_picture,
    says_what_is_wrong,
    transform_of,
)

BORROWED = (
    "The model predicts the pattern within a patch. Brightness and contrast of the hidden patches come from the "
    "picture itself (it was trained with <code>norm_pix_loss</code>)."
)


class Reconstructor:
    """A MAE with its decoder.

    Args:
        name: folder or Hub id.

    Raises:
        ValueError: it lacks weights, such as those of a decoder.
    """

    def __init__(self, name: str):
        model, report = MawsMAEForPreTraining.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        if missing := sorted(report["missing_keys"]):
            raise ValueError(
                f"{name} lacks {len(missing)} weights of a masked autoencoder, among them {missing[0]}: give the "
                "folder of a MAE run as --mae_model"
            )
        self.model = model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self.transform = transform_of(model)

    def reconstruct(self, picture: np.ndarray, mask_ratio: float, seed: int) -> MawsMAEReconstruction:
        """One picture, its hidden patches drawn with a seed: a higher ratio hides these and more.

        Args:
            picture: uint8 `(H, W, 3)`.
            mask_ratio: share of the patches to hide; at least one is hidden and one stays visible.
        """
        pixels = self.transform(picture)[None].to(self.model.device)
        rows, columns = self.model.vit.embeddings.grid_of(pixels)
        patches = rows * columns
        noise = torch.rand((1, patches), generator=torch.Generator().manual_seed(seed))
        kept = min(max(int(patches * (1 - mask_ratio)), 1), patches - 1)  # truncated, as in pretraining
        mask = mask_from_ids(split_by_noise(noise, kept)[1], patches)
        return self.model.reconstruct(pixels, bool_masked_pos=mask)


def as_pictures(reconstruction: MawsMAEReconstruction, borrowed: bool) -> str:
    """Three pictures side by side, and the loss.

    Args:
        borrowed: whether hidden patches have their brightness from the picture.
    """
    hidden, patches = int(reconstruction.mask.sum()), reconstruction.mask.shape[1]
    columns = {
        "original": reconstruction.original,
        "masked": reconstruction.masked,
        "reconstruction": reconstruction.reconstruction,
    }
    figures = "".join(
        figure(encoded(as_image(pictures[0])), name, side=pictures.shape[-1]) for name, pictures in columns.items()
    )
    share, loss = 100 * hidden / patches, float(reconstruction.loss)
    unit = ", in units of each patch's own variance" if borrowed else ""
    line = f"{hidden} of {patches} patches hidden ({share:.0f} %) · loss {loss:.3f}{unit}"
    note = f'<p class="fineprint">{BORROWED}</p>' if borrowed else ""
    return f'<div class="triptych">{figures}</div><p class="figures">{line}</p>{note}'


def reconstruction_tab(reconstructor: Reconstructor, examples: list[Path]) -> None:
    config = reconstructor.model.config

    @says_what_is_wrong
    def show(path: str | None, mask_ratio: float, seed: float | None) -> str:
        picture = read_picture(path)
        if seed is None:
            raise PageMessage("Give the mask a number: the same number is the same mask.")
        return as_pictures(reconstructor.reconstruct(picture, mask_ratio, int(seed)), config.norm_pix_loss)

    with gr.Row():
        with gr.Column(min_width=300, scale=2):
            picture = picture_input(examples)
        with gr.Column(min_width=300, scale=3):
            result = gr.HTML(elem_classes="result", elem_id="reconstruction-result")
            ratio = gr.Slider(
                0.05,
                0.95,
                value=config.mask_ratio,
                step=0.05,
                label="Share of patches to hide",
                info="More hides the same patches and others.",
                elem_id="mask-ratio",
            )
            with gr.Row():
                seed = gr.Number(0, label="Mask number", precision=0, minimum=0, maximum=2**31 - 1, min_width=120)
                another = gr.Button("New mask", min_width=120, elem_classes="another")
    gr.on(
        [picture.change, ratio.change, seed.change],
        show,
        [picture, ratio, seed],
        result,
        trigger_mode="always_last",
        show_progress="hidden",
        api_visibility="private",
    )
    another.click(
        lambda seed: (int(seed or 0) + 1) % 2**31, seed, seed, show_progress="hidden", api_visibility="private"
    )
