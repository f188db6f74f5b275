"""A training step gives an accelerator all its work without waiting for a result, and copies nothing to it.

Either would let the accelerator idle until the host has caught up. Here tensors of the meta device stand in for those
of an accelerator: they have no values, so that whatever needs one in Python fails; and copies from the host are seen.
"""

import importlib
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from tiny import tiny_config
from tiny_lit import random_captions, tiny_lit_config
from torch import Tensor
from waiting import no_number_by_index

from maws_hf import MawsLiTModel, MawsMAEForPreTraining, MawsViTForImageClassification

EXAMPLES = Path(__file__).parents[2] / "examples"
META = torch.device("meta")
IMAGES = torch.empty(4, 3, 32, 32, dtype=torch.uint8, device=META)
LISTS = torch.empty(4, 3, dtype=torch.long, device=META)


def masked(**fields: object) -> Callable[[], Tensor]:
    model = MawsMAEForPreTraining(tiny_config(**fields)).to(META)
    return lambda: model(IMAGES).loss


def labelled(labels: Tensor, **options: bool) -> Callable[[], Tensor]:
    model = MawsViTForImageClassification(tiny_config(num_labels=7)).to(META)
    return lambda: model(IMAGES, labels=labels, **options).loss


def paired(parts: int) -> Callable[[], Tensor]:
    # As run_lit.py has captions. transformers' text towers wait for a mask of padding, to see whether there is any.
    model = MawsLiTModel(tiny_lit_config()).to(META).train()
    texts = [part.to(META) for part in model.batch_captions(random_captions(4), parts)]
    return lambda: model(pixel_values=IMAGES, text_batches=texts, return_loss=True).loss


def mixed() -> Callable[[], Tensor]:
    """The objective of run_finetune.py, with everything that it does to images."""
    run_finetune = importlib.import_module("run_finetune")
    model = MawsViTForImageClassification(tiny_config(num_labels=7)).to(META)
    recipe = run_finetune.FinetuneRecipe(output_dir="x", dataset_name="y", random_erasing=1.0, mixup=0.8, cutmix=1.0)
    objective = run_finetune.MixedObjective(recipe, model)
    return lambda: objective(model, {"pixel_values": IMAGES, "labels": torch.empty(4, 7, device=META)})


STEPS = {
    "MAE": masked,
    "MAE, a part predicted": lambda: masked(prediction_ratio=0.5),
    "MAE, cross-attention": lambda: masked(decoder_attention="cross"),
    "WSP": lambda: labelled(LISTS),
    "WSP in place": lambda: labelled(LISTS, skip_logits=True),
    "classes": lambda: labelled(LISTS[:, 0]),
    "soft targets": lambda: labelled(torch.empty(4, 7, device=META)),
    "fine-tuning": mixed,
    "LiT": lambda: paired(parts=1),
    "LiT, gradients cached": lambda: paired(parts=2),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_step_neither_waits_nor_copies(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    loss_of = STEPS[name]()
    for function in ("tensor", "as_tensor", "from_numpy"):
        monkeypatch.setattr(torch, function, _refused(function))
    monkeypatch.setattr(Tensor, "to", _only_on_its_device(Tensor.to))
    monkeypatch.setattr(Tensor, "__setitem__", no_number_by_index)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # of which this device has none
    loss = loss_of()
    loss.backward()
    assert loss.device == META


def test_what_would_wait_or_copy_is_seen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch, "tensor", _refused("tensor"))
    monkeypatch.setattr(Tensor, "to", _only_on_its_device(Tensor.to))
    with pytest.raises(AssertionError, match="copies from the host"):
        torch.tensor([0.5], device=META)
    with pytest.raises(AssertionError, match="from cpu to meta"):
        torch.ones(1).to(META)
    monkeypatch.setattr(Tensor, "__setitem__", no_number_by_index)
    with pytest.raises(AssertionError, match="waits for the device"):
        torch.empty(2, device=META)[0] = 1.0
    with pytest.raises(RuntimeError, match="meta"):
        IMAGES.float().mean().item()


def _refused(name: str) -> Callable[..., Tensor]:
    def refuse(*args: object, **kwargs: object) -> Tensor:
        raise AssertionError(f"torch.{name} copies from the host")

    return refuse


def _only_on_its_device(to: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def checked(tensor: Tensor, *args: object, **kwargs: object) -> Tensor:
        moved = to(tensor, *args, **kwargs)
        assert moved.device == tensor.device, f"a copy from {tensor.device} to {moved.device}"
        return moved

    return checked
