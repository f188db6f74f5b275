"""Small models in folders, as the page is given them; and the page's modules, which are no package of ours."""

import sys
from pathlib import Path

import pytest
import torch
from tiny import tiny_config
from tiny_lit import tiny_lit
from tiny_two_towers import BEGIN, END, PAD, tiny_tokenizer

from maws_hf import MawsMAEForPreTraining

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "space"))


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`lit`, `mae` and `encoder`, the last without a decoder."""
    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    text = {"vocab_size": 300, "pad_token_id": PAD, "bos_token_id": BEGIN, "eos_token_id": END}
    mae = MawsMAEForPreTraining(tiny_config())
    models = {"lit": tiny_lit(text), "mae": mae, "encoder": mae.vit}
    for name, model in models.items():
        model.save_pretrained(root / name)
    tiny_tokenizer().save_pretrained(root / "lit")
    return {name: root / name for name in models}
