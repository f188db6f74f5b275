"""The smallest run of the training loop: one weight that learns the mean pixel."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from maws_hf.data.loader import build_loader
from maws_hf.data.samples import prepare_image
from maws_hf.data.sources import open_stream
from maws_hf.data.streaming import ImageStream
from maws_hf.processing.transforms import TrainTransform
from maws_hf.training.arguments import TrainingArguments
from maws_hf.training.loop import Outcome, train


class LineConfig(PreTrainedConfig):
    model_type = "line"


class Line(PreTrainedModel):
    """The smallest model with a loss: the mean pixel against one weight."""

    config_class = LineConfig

    def __init__(self, config: LineConfig):
        super().__init__(config)
        self.line = nn.Linear(1, 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.constant_(module.weight, 0.5)
            nn.init.constant_(module.bias, 0.1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        mean = pixel_values.float().mean((1, 2, 3))[:, None] / 255
        return (self.line(mean) - 1).square().mean()


def objective(model: nn.Module, batch: dict) -> torch.Tensor:
    return model(batch["pixel_values"])


def run(
    corpus: Path,
    output_dir: Path,
    batch_loss=objective,
    *,
    max_consecutive_skips: int = 1000,
    after_step=None,
    batches: int | None = None,
    bad_batch: int | None = None,
    groups: Callable[[Line], list[dict]] | None = None,
    **options,
) -> tuple[Outcome, Line]:
    """Trains on this rank's share; `batches` is where its data end, `bad_batch` the one that cannot be read."""
    defaults = {
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "logging_steps": 1,
        "save_steps": 3,
        "dataloader_num_workers": 0,
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    recipe = TrainingArguments(output_dir=str(output_dir), **{**defaults, **options})
    accelerator = Accelerator(cpu=True)
    stream = ImageStream(
        open_stream(corpus),
        partial(prepare_image, image_column="image", transform=TrainTransform(16)),
        seed=recipe.seed,
        rank=accelerator.process_index,
        world_size=accelerator.num_processes,
        num_workers=recipe.dataloader_num_workers,
        max_consecutive_skips=max_consecutive_skips,
    )
    model = Line(LineConfig())
    loader = build_loader(stream, batch_size=recipe.per_device_train_batch_size)
    if batches is not None or bad_batch is not None:
        loader = Limited(loader, batches, bad_batch)
    own = groups and groups(model)
    return train(model, batch_loss, loader, recipe, accelerator, groups=own, after_step=after_step), model


class Limited:
    """A loader whose data end, or fail, at a batch."""

    def __init__(self, loader: Any, batches: int | None, bad_batch: int | None):
        self.loader, self.batches, self.bad_batch = loader, batches, bad_batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[dict]:
        iterator = iter(self.loader)  # now, and not with the first batch: a state may be asked for before
        return self._batches(iterator)

    def _batches(self, iterator: Iterator[dict]) -> Iterator[dict]:
        for number, batch in enumerate(iterator):
            if number == self.batches:
                return
            if number == self.bad_batch:
                raise OSError("the disk is gone")
            yield batch


def lines(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]
