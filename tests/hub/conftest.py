"""Models of each kind, and a Hub of their own, that tests of this room share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from loopback_hub import TOKEN, Hub, start_hub
from tiny import tiny_config
from tiny_lit import tiny_lit
from tiny_two_towers import tiny_tokenizer

from maws_hf import MawsLiTProcessor, MawsMAEForPreTraining, MawsViTForImageClassification, MawsViTModel
from maws_hf.hub.export import export_model
from maws_hf.processing.image_processors import image_processor_of
from maws_hf.training.ledger import Stage, write_ledger


@pytest.fixture(scope="session")
def runs(tmp_path_factory) -> dict[str, Path]:
    """A tiny model of each kind in our own format, as a run leaves it."""
    folder = tmp_path_factory.mktemp("runs")
    for kind, model_class in (
        ("maws", MawsViTModel),
        ("classifier", MawsViTForImageClassification),
        ("autoencoder", MawsMAEForPreTraining),
    ):
        model = model_class(tiny_config(num_labels=5))
        model.save_pretrained(folder / kind)
        image_processor_of(model.config).save_pretrained(folder / kind)
        write_ledger(folder / kind, [Stage("mae", 1000, 10**12), Stage("wsp", 500, 10**12)])
    lit = tiny_lit({"vocab_size": 280}, vision_config=tiny_config(intermediate_size=64))
    lit.save_pretrained(folder / "clip")
    tokenizer = tiny_tokenizer(model_max_length=38)
    MawsLiTProcessor(image_processor_of(lit.config.vision_config), tokenizer).save_pretrained(folder / "clip")
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="session")
def exports(runs) -> dict[str, Path]:
    return {kind: export_model(run, run.with_name(f"{kind}-export")).folder for kind, run in runs.items()}


@pytest.fixture
def hub() -> Iterator[Hub]:
    """An empty one."""
    hub, server = start_hub()
    yield hub
    server.shutdown()
    server.server_close()


@pytest.fixture
def api(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    """A client of it in this process."""
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return HfApi(endpoint=hub.url, token=TOKEN)
