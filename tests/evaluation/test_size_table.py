"""Sizes by pretrainings: what stands where, and under which name."""

import pytest
from transformers import CLIPConfig, CLIPVisionConfig, ConvNextConfig, ViTConfig

from maws_hf import MawsViTConfig
from maws_hf.evaluation.size_table import Entry, SizeTable, size_name, training_name

# Table 9 of the paper, of which only the shape matters here.
PAPER = {
    "MAE": {"ViT-B/16": 56.5, "ViT-L/16": 65.1, "ViT-2B/14": 76.1},
    "MAWS": {"ViT-B/16": 82.8, "ViT-L/16": 86.0, "ViT-2B/14": 88.1},
}
PARAMETERS = {"ViT-B/16": 86, "ViT-L/16": 304, "ViT-2B/14": 1900}


def entries(*left_out: tuple[str, str]) -> list[Entry]:
    """From the last to the first: nothing may depend on an order that happens to be right."""
    found = [
        Entry(f"{training} {size}", training, size, PARAMETERS[size], score)
        for training, row in PAPER.items()
        for size, score in row.items()
        if (training, size) not in left_out
    ]
    return found[::-1]


def test_columns_ascend_and_rows_are_in_the_paper_s_order():
    assert SizeTable.of(entries()).markdown("linear top1 (%)") == (
        "| linear top1 (%) | ViT-B/16 | ViT-L/16 | ViT-2B/14 |\n"
        "| --------------- | -------: | -------: | --------: |\n"
        "| MAE             |     56.5 |     65.1 |      76.1 |\n"
        "| MAWS            |     82.8 |     86.0 |      88.1 |\n"
    )


def test_a_size_stands_where_its_smallest_model_does():
    sizes = [("wide", 10), ("wide", 900), ("middle", 100)]
    table = SizeTable.of([Entry("x", "MAE", size, parameters, 50.0) for size, parameters in sizes])
    assert table.sizes == ["wide", "middle"]


def test_what_was_not_measured_is_a_dash_in_the_table_and_no_point_of_a_curve():
    table = SizeTable.of(entries(("MAE", "ViT-L/16")))
    assert "| MAE             |     56.5 |        - |      76.1 |\n" in table.markdown("linear top1 (%)")
    assert table.curves()["MAE"] == {86.0: [56.5], 1900.0: [76.1]}
    assert table.curves()["MAWS"] == {86.0: [82.8], 304.0: [86.0], 1900.0: [88.1]}
    assert list(table.shared_cells()) == []


def test_several_encoders_of_a_cell_are_all_there_and_named():
    twin = Entry("runs/other", "MAE", "ViT-L/16", 304, 64.25)
    table = SizeTable.of([*entries(), twin])
    assert "65.1 / 64.2" in table.markdown("top1")
    assert list(table.shared_cells()) == ["MAE, ViT-L/16 is 2 encoders: MAE ViT-L/16 (65.1), runs/other (64.2)"]
    assert table.curves()["MAE"][304.0] == [65.1, 64.25]
    assert table.to_json()["rows"]["MAE"][1][1] == {"encoder": "runs/other", "score": 64.25}


def test_others_come_after_the_paper_s_rows_and_unknown_last():
    names = ["unknown", "DINOv2", "WSP", "MAE, then LiT", "MAE"]
    table = SizeTable.of([Entry(name, name, "128x6/8", 1, 50.0) for name in names])
    assert list(table.rows) == ["MAE", "WSP", "DINOv2", "MAE, then LiT", "unknown"]


def test_a_bar_in_a_name_does_not_end_its_cell():
    table = SizeTable.of([Entry("x", "a|b", "128x6/8", 1, 50.0)])
    assert r"| a\|b |" in table.markdown("top1")


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (lambda: MawsViTConfig.from_size("vit_b16"), "ViT-B/16"),
        (lambda: MawsViTConfig.from_size("vit_6.5b14"), "ViT-6.5B/14"),
        (lambda: ViTConfig(), "ViT-B/16"),
        (lambda: ViTConfig(patch_size=32), "768x12/32"),
        (lambda: ViTConfig(patch_size=(16, 8)), "768x12/16x8"),
        (lambda: CLIPVisionConfig(hidden_size=64, num_attention_heads=4, num_hidden_layers=2, patch_size=8), "64x2/8"),
        (lambda: CLIPConfig(vision_config={"num_hidden_layers": 2, "patch_size": 8}), "768x2/8"),
        (lambda: ConvNextConfig(), "28.6M"),
    ],
)
def test_sizes_have_the_paper_s_names_or_say_their_shape(config, name):
    assert size_name(config(), 28_600_000) == name


@pytest.mark.parametrize(
    ("stages", "name"),
    [
        ([], "unknown"),
        (["mae"], "MAE"),
        (["mae", "mae"], "MAE"),
        (["wsp"], "WSP"),
        (["mae", "wsp"], "MAWS"),
        (["mae", "mae", "wsp", "wsp"], "MAWS"),
        (["mae", "wsp", "lit"], "MAWS, then LiT"),
        (["wsp", "mae"], "WSP, then MAE"),
        (["mae", "wsp", "mae"], "MAWS, then MAE"),
        (["mae", "wsp", "finetune"], "MAWS, then fine-tuned"),
    ],
)
def test_a_training_is_named_by_its_stages(stages, name):
    assert training_name(stages) == name
