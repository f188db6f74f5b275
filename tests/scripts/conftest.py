"""The scripts import each other as the interpreter finds them beside the one it starts."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))


class PretendedGpu:
    """In the place of `torch.cuda`: it does nothing, and its memory is what a test says."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.patch = patch
        self.calls: list[str] = []
        self.allocated = self.peak = 0
        self.chosen: int | None = None
        patch.setattr(torch.cuda, "device_count", lambda: 2)
        patch.setattr(torch.cuda, "set_device", self.set_device)
        patch.setattr(torch.cuda, "synchronize", lambda: self.calls.append("synchronize"))
        patch.setattr(torch.cuda, "empty_cache", lambda: self.calls.append("empty_cache"))
        patch.setattr(torch.cuda, "reset_peak_memory_stats", self.reset)
        patch.setattr(torch.cuda, "memory_allocated", lambda: self.allocated)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda: self.peak)
        patch.setattr(torch.cuda, "get_device_name", lambda: "a pretended GPU")

    def set_device(self, index: int) -> None:
        self.chosen = index

    def allocate(self, size: int) -> None:
        self.allocated += size
        self.peak = max(self.peak, self.allocated)

    def reset(self) -> None:
        self.peak = self.allocated

    def takes_the_cpu(self, script: object) -> None:
        """From here on the script takes the CPU for this GPU; its turns are short."""
        import side_by_side

        for module in (side_by_side, script):
            self.patch.setattr(module, "on_gpu", lambda device: True)
        self.patch.setattr(side_by_side, "SHORTEST", 0.0)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> PretendedGpu:
    return PretendedGpu(monkeypatch)


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> str:
    """A device whose tensors have no values: what mixes them with the CPU's fails, as on a GPU. It has neither
    autocast nor a fused AdamW."""
    from contextlib import nullcontext

    adamw = torch.optim.AdamW
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, fused=None, **options: adamw(groups, **options))
    return "meta"
