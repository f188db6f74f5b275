import json
import time
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_config

from maws_hf import MawsLiTConfig, MawsViTConfig
from maws_hf.models.configuration_limits import MOST, MOST_LABELS
from maws_hf.models.configuration_maws_vit import SIZES
from maws_hf.models.weight_files import ModelLoadingError


@pytest.mark.parametrize("size", SIZES)
def test_the_limits_are_far_beyond_every_size_of_the_paper(size: str):
    config = MawsViTConfig.from_size(size)
    for field, most in MOST.items():
        assert getattr(config, field, 0) <= most / 8
    assert MOST_LABELS > 28_000 * 8


@pytest.mark.parametrize(
    "fields",
    [
        {"num_hidden_layers": 10**12},
        {"decoder_num_hidden_layers": 10**12},
        {"hidden_size": 10**12, "num_attention_heads": 10**12},
        {"decoder_hidden_size": 4 * 10**11, "decoder_num_attention_heads": 10**11},
        {"image_size": 8 * 10**9},
        {"image_size": [65_536, 65_536], "patch_size": 1},
        {"num_labels": 10**12},
        {"num_channels": 10**12},
        {"intermediate_size": 10**400},
    ],
    ids=lambda fields: "-".join(fields),
)
def test_a_vast_size_is_refused_at_once_by_name(fields: dict, tmp_path: Path):
    written = json.loads(tiny_config().to_json_string(use_diff=False)) | fields
    written = {name: value for name, value in written.items() if "num_labels" not in fields or "label" not in name}
    (tmp_path / "config.json").write_text(json.dumps(written | fields))
    start = time.process_time()
    with pytest.raises(ModelLoadingError, match="|".join(fields)) as refused:
        MawsViTConfig.from_pretrained(tmp_path)
    assert time.process_time() - start < 0.5
    assert len(str(refused.value)) < 500


@pytest.mark.parametrize(
    "fields", [{"num_hidden_layers": 10**12}, {"num_labels": 10**12}, {"vocab_size": 10**15}, {"id2label": 3}]
)
def test_a_text_tower_of_vast_size_is_refused_before_it_is_made(fields: dict):
    with pytest.raises(ValueError, match=next(iter(fields))):
        MawsLiTConfig(vision_config=tiny_config(), text_config={"model_type": "xlm-roberta", **fields})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"id2label": [1]}, "id2label"),
        ({"id2label": {"a": "cat"}}, "label number 'a'"),
        ({"label2id": 2}, "label2id"),
        ({"num_labels": True}, "num_labels"),
        ({"num_labels": -1}, "num_labels"),
        ({"dtype": "pickle"}, "dtype"),
        ({"dtype": [16]}, "dtype"),
        ({"out_indices": [99]}, "out_indices"),
    ],
)
def test_an_odd_value_is_refused_by_name(fields: dict, told: str):
    with pytest.raises(ValueError, match=told):
        tiny_config(**fields)


def test_a_config_nested_without_end_is_refused_by_name(tmp_path: Path):
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelLoadingError, match=r"config\.json"):
        MawsViTConfig.from_pretrained(tmp_path)


def test_numpys_numbers_are_numbers():
    assert MawsViTConfig(num_labels=np.int64(3)).num_labels == 3
    with pytest.raises(ValueError, match="num_labels"):
        MawsViTConfig(num_labels=True)
