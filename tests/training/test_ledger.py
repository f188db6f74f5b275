from pathlib import Path

import pytest

from maws_hf.training.ledger import Stage, describe_ledger, read_ledger, write_ledger


def test_stages_add_up_from_run_to_run(tmp_path: Path):
    write_ledger(tmp_path, [Stage("mae", 100, 2_000)])
    stages = [*read_ledger(str(tmp_path)), Stage("wsp", 50, 3_000)]
    write_ledger(tmp_path, stages)
    assert read_ledger(str(tmp_path)) == stages
    assert describe_ledger(stages) == "mae 2e+03 + wsp 3e+03 = 5e+03"
    assert describe_ledger(stages[:1]) == "mae 2e+03"


def test_models_from_elsewhere_have_no_ledger(tmp_path: Path):
    assert read_ledger(None) == read_ledger("org/maws-vit-h") == read_ledger(str(tmp_path)) == []


def test_a_damaged_ledger_is_named(tmp_path: Path):
    (tmp_path / "training.json").write_text('{"stages": [{"name": "mae"}]}')
    with pytest.raises(ValueError, match=r"training\.json is not a ledger of training stages"):
        read_ledger(str(tmp_path))
