"""A folder small enough to be released a hundred times, and a client that fails where it is told."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

CARD = """---
license: cc-by-nc-4.0
library_name: transformers
pipeline_tag: image-feature-extraction
tags:
- maws
datasets:
- nobody/pictures
model_name: tiny
---

# tiny

A model of no use.
"""


def write_model(folder: Path, *, seed: int = 0, model_type: str = "pixio", card: str = CARD) -> Path:
    """Config, weights and card; the config is not that of any model that would load."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["PixioModel"], "model_type": model_type, "dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors(seed), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "README.md").write_text(card)
    return folder


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(4, 5, generator=generator) for name in ("embeddings", "layernorm")}


class Interrupted(Exception):
    """A kill, as far as a test can tell."""


class FailingApi:
    """Passes calls on to a client; the call number `fail_at` (from 0) raises, before or after it was done."""

    def __init__(self, api: Any, fail_at: int, *, after: bool = False):
        self.api, self.fail_at, self.after = api, fail_at, after
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.api, name)
        if not callable(found):
            return found

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls.append(name)
            due = len(self.calls) - 1 == self.fail_at
            if due and not self.after:
                raise Interrupted(name)
            answer = found(*args, **kwargs)
            if due:
                raise Interrupted(name)
            return answer

        return call
