"""The plan against tensors counted one by one, and against what must hold for any model."""

import gc
import importlib
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny import tiny_config
from torch.testing._internal.distributed.fake_pg import FakeStore

from maws_hf import MawsMAEForPreTraining, MawsViTConfig, MawsViTModel
from maws_hf.cli import main
from maws_hf.evaluation.memory_plan import GIB, RESERVED, largest_batch, plan_memory
from maws_hf.evaluation.memory_stages import Setting
from maws_hf.models.configuration_limits import MOST_LABELS

# Activations must weigh something beside the parameters, or their formula is not tested.
SMALL = {
    "image_size": 64,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "decoder_hidden_size": 32,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 128,
    "decoder_num_hidden_layers": 2,
}
LARGE = MawsViTConfig.from_size("vit_6.5b14")


@pytest.fixture(scope="module")
def bench():
    """scripts/bench_memory_plan.py, which counts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "scripts")
        return importlib.import_module("bench_memory_plan")


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("task", ["mae", "wsp", "finetune"])
def test_the_peak_is_that_of_tensors_counted_one_by_one(bench, task: str, bf16: bool, checkpointing: bool):
    config = tiny_config(**SMALL)
    setting = Setting(task, 32, labels=50, bf16=bf16, checkpointing=checkpointing)
    counted = bench.measure_tensors(tiny_config(**SMALL), setting, fake=False)
    plan = plan_memory(config, setting)
    assert plan.peak == pytest.approx(counted, rel=0.05)
    assert plan.peak - plan.standing > 0.5 * plan.peak, "mostly parameters: says little"


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("task", ["mae", "wsp"])
def test_accumulated_gradients_are_there_while_the_next_batch_is_computed(bench, task: str, bf16: bool):
    setting = Setting(task, 16, labels=50, bf16=bf16, accumulation=3)
    counted = bench.measure_tensors(tiny_config(**SMALL), setting, fake=False)
    plan = plan_memory(tiny_config(**SMALL), setting)
    assert plan.peak == pytest.approx(counted, rel=0.07)
    assert plan.peak > 1.03 * plan_memory(tiny_config(**SMALL), replace(setting, accumulation=1)).peak


CROSS = {"decoder_attention": "cross", "prediction_ratio": 0.3333}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize(
    "shortcut", [{"prediction_ratio": 0.5}, CROSS, {**CROSS, "decoder_inter_block_attention": True}]
)
def test_the_peak_of_other_mae_objectives_is_too(bench, shortcut: dict, bf16: bool, checkpointing: bool):
    setting = Setting("mae", 32, bf16=bf16, checkpointing=checkpointing)
    counted = bench.measure_tensors(tiny_config(**SMALL, **shortcut), setting, fake=False)
    plan = plan_memory(tiny_config(**SMALL, **shortcut), setting)
    assert plan.peak == pytest.approx(counted, rel=0.07)
    assert plan.peak < plan_memory(tiny_config(**SMALL), setting).peak
    assert plan.peak - plan.standing > 0.5 * plan.peak, "mostly parameters: says little"


def test_states_are_sixteen_bytes_a_trained_parameter_and_divided_by_the_devices():
    model = MawsMAEForPreTraining(tiny_config())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    fixed = sum(p.numel() for p in model.parameters()) - trained
    constants = model.decoder.position_embeddings.nbytes
    whole = plan_memory(tiny_config(), Setting("mae", 1))
    assert whole.weights == 4 * (trained + fixed) + constants
    assert whole.gradients + whole.moments == 12 * trained
    assert plan_memory(tiny_config(), Setting("mae", 1, average=True)).average == 4 * trained
    sharded = plan_memory(tiny_config(), Setting("mae", 1, gpus=5, fsdp=True, average=True))
    assert sharded.parameters == trained + fixed
    table = model.vit.embeddings.position_embeddings
    own = sum(math.ceil(len(p) / 5) * p[0].numel() for p in model.parameters() if p is not table)
    assert sharded.weights == 4 * own + table.nbytes + constants
    assert (sharded.gradients, sharded.moments, sharded.average) == (4 * own, 8 * own, 4 * own)


def test_the_largest_batch_fits_and_one_more_does_not():
    setting = Setting("mae", 1, gpus=8, fsdp=True)
    batch = largest_batch(LARGE, setting, 80 * GIB)
    usable = 80 * GIB * (1 - RESERVED)
    assert plan_memory(LARGE, replace(setting, batch=batch)).peak <= usable
    assert plan_memory(LARGE, replace(setting, batch=batch + 1)).peak > usable


def test_the_largest_model_in_float32_fits_eight_sharded_devices_but_not_one():
    assert largest_batch(LARGE, Setting("mae", 1), 80 * GIB) == 0
    assert largest_batch(LARGE, Setting("mae", 1, gpus=8), 80 * GIB) == 0
    assert largest_batch(LARGE, Setting("mae", 1, gpus=8, fsdp=True), 80 * GIB) >= 64


@pytest.mark.parametrize("task", ["mae", "wsp"])
def test_each_saving_saves(task: str):
    base = Setting(task, 64, gpus=8, fsdp=True)
    peak = plan_memory(LARGE, base).peak
    for saving in ({"bf16": True}, {"checkpointing": True}, {"batch": 32}, {"gpus": 16}):
        assert plan_memory(LARGE, replace(base, **saving)).peak < peak, saving


def test_logits_of_weak_labels_are_one_row_of_float32_an_image():
    assert plan_memory(tiny_config(), Setting("wsp", 7, labels=28_000)).logits == 4 * 7 * 28_000


def test_an_unknown_task_is_an_error_that_names_those_there_are():
    with pytest.raises(ValueError, match="'clip' is unknown; there are mae, wsp, finetune, lit"):
        plan_memory(tiny_config(), Setting("clip", 1))


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (Setting("lit", 1, gpus=8, fsdp=True), "'lit' is not trained with sharded parameters"),
        (Setting("finetune", 1, gpus=8, fsdp=True), "'finetune' is not trained with sharded parameters"),
        (Setting("wsp", 1, labels=10**8), "100,000,000 labels are not possible"),
        (Setting("lit", 1, accumulation=2), "'lit' is not trained with gradient accumulation"),
        (Setting("lit", 1, text_tokens=513), "513 tokens are more than the 512"),
    ],
)
def test_what_no_run_does_is_not_planned(setting: Setting, told: str):
    with pytest.raises(ValueError, match=told):
        plan_memory(tiny_config(), setting)


@pytest.mark.parametrize(
    "odd", [["--memory", "nan"], ["--memory=-5"], ["--memory", "inf"], ["--memory", "0"], ["--batch", "x"]]
)
def test_an_odd_number_is_an_error_that_names_the_option(odd: list[str], capsys):
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--size", "vit_b16", *odd])
    assert ended.value.code == 2
    assert re.search(rf"argument {odd[0].partition('=')[0]}: \S+ must be a (whole )?number", capsys.readouterr().err)


def test_nothing_is_built_in_memory():
    before = torch.get_rng_state()
    plan_memory(LARGE, Setting("wsp", 1))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mae", "wsp", "finetune", "lit"])
def test_the_peak_of_a_base_model_is_that_of_tensors_counted_one_by_one(bench, task: str):
    setting = Setting(task, 64)
    counted = bench.measure_tensors(MawsViTConfig(), setting, fake=True)
    assert plan_memory(MawsViTConfig(), setting).peak == pytest.approx(counted, rel=0.1)


# Parameters must weigh something beside the activations, or what is gathered is not tested.
WIDE = {
    "image_size": 32,
    "patch_size": 16,
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_attention_heads": 6,
    "num_hidden_layers": 6,
    "decoder_hidden_size": 128,
    "decoder_num_hidden_layers": 2,
    "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 512,
}


@pytest.fixture
def many(request: pytest.FixtureRequest) -> Iterator[int]:
    """So many processes, of which only the first is there."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=request.param)
    yield request.param
    gc.collect()  # models refer to themselves, and to the process group that must outlive them
    dist.destroy_process_group()


@pytest.mark.parametrize("many", [64, 256, 1024], indirect=True)
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("task", ["mae", "wsp"])
def test_rows_that_do_not_go_round_are_gathered_from_every_process(bench, many: int, task: str, bf16: bool):
    """Most of the weights are not divisible by 1024, and the position table of `wsp` has one row."""
    fields = {**WIDE, "image_size": 64}
    setting = Setting(task, 2, labels=100, gpus=many, fsdp=True, bf16=bf16)
    counted = bench.measure_tensors(MawsViTConfig(**fields), setting, fake=False)
    plan = plan_memory(MawsViTConfig(**fields), setting)
    assert plan.peak == pytest.approx(counted, rel=0.1)
    assert plan.copies > 0.6 * plan.peak, "little is gathered: says little"


@pytest.mark.slow
def test_the_peak_of_each_of_two_sharing_processes_is_that_of_tensors_counted_one_by_one(bench):
    mae = Setting("mae", 2, labels=100, gpus=2, fsdp=True)
    settings = [mae, replace(mae, task="wsp", bf16=True)]
    for setting, counted in zip(settings, bench.measure_ranks(WIDE, settings), strict=True):
        plan = plan_memory(MawsViTConfig(**WIDE), setting)
        assert plan.peak == pytest.approx(counted, rel=0.05), setting
        assert plan.copies > 0.15 * plan.peak, "little is gathered: says little"


@pytest.mark.parametrize(
    ("task", "besides"), [("wsp", 8 * 16), ("finetune", 4 * 100), ("lit", 2 * 8 * 20)], ids=["wsp", "finetune", "lit"]
)
def test_inputs_are_uint8_pixels_and_what_belongs_to_them(task: str, besides: int):
    setting = Setting(task, 5, labels=100, text_tokens=20)
    image = 3 * 32 * 32 + besides
    assert plan_memory(tiny_config(), setting).inputs == 5 * image
    assert plan_memory(tiny_config(), replace(setting, reads_ahead=True)).inputs == 2 * 5 * image
    if task != "lit":
        assert plan_memory(tiny_config(), replace(setting, accumulation=3)).inputs == 3 * 5 * image


def test_the_most_labels_and_tokens_there_may_be_are_planned():
    assert plan_memory(tiny_config(), Setting("wsp", 1, labels=MOST_LABELS)).logits == 4 * MOST_LABELS
    assert plan_memory(tiny_config(), Setting("lit", 1, text_tokens=512)).peak > 0


@pytest.mark.parametrize(("size", "millions"), [("base", 277.5), ("large", 558.8)])
def test_text_towers_are_as_large_as_xlm_roberta(size: str, millions: float):
    image = sum(p.numel() for p in MawsViTModel(tiny_config()).parameters())
    parameters = plan_memory(tiny_config(), Setting("lit", 1, text_size=size)).parameters - image
    assert parameters / 1e6 == pytest.approx(millions, rel=0.005)
