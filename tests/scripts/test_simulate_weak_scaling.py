"""The simulated step against closed forms, where there are any."""

import json
import math
from dataclasses import replace

import pytest
import torch
from simulate_weak_scaling import main, parse_arguments, rates_of
from simulated_step import Cluster, Stage, simulate, stages_of
from tiny import tiny_config

from maws_hf import MawsMAEForPreTraining, MawsViTConfig, MawsViTForImageClassification
from maws_hf.evaluation.flops import mae_training_flops, wsp_training_flops

WAYS = ["DDP", "FSDP2", "HSDP"]
SLOW = Cluster(nvlink=1e9, network=1e8, inside=1e-4, between=1e-3)
FREE = Cluster(nvlink=math.inf, network=math.inf, inside=0.0, between=0.0)


def tensors(numbers: int) -> list[torch.Tensor]:
    return [torch.empty(32, numbers // 32, device="meta")]


BLOCK = Stage(tensors(1_000_000), forward=1e9, backward=2e9, in_block=True)
ENDS = Stage(tensors(200_000), 1e8, 1e8, in_block=False), Stage(tensors(300_000), 1e8, 2e8, in_block=False)
STAGES = [ENDS[0], BLOCK, BLOCK, BLOCK, ENDS[1]]
OPERATIONS = sum(stage.forward + stage.backward for stage in STAGES)
LOAD = {"images": 4, "rate": 1e11}
COMPUTE = 4 * OPERATIONS / 1e11


@pytest.mark.parametrize("way", WAYS)
def test_one_gpu_only_computes(way: str):
    assert simulate(STAGES, way, 1, SLOW, **LOAD).seconds == pytest.approx(COMPUTE)


@pytest.mark.parametrize("way", WAYS)
def test_links_without_limits_cost_nothing(way: str):
    step = simulate(STAGES, way, 1024, FREE, **LOAD)
    assert step.seconds == pytest.approx(COMPUTE)
    assert step.efficiency == pytest.approx(1)


def test_without_overlap_ddp_is_compute_and_a_ring_of_all_gradients():
    step = simulate(STAGES, "DDP", 8, replace(SLOW, inside=0.0), **LOAD, overlap=False)
    ring = 2 * 7 / 8 * 4 * 3_500_000 / 1e9
    assert step.seconds == pytest.approx(COMPUTE + ring)


def test_without_overlap_fsdp_gathers_twice_and_scatters_once():
    step = simulate(STAGES, "FSDP2", 16, replace(SLOW, rings=8), **LOAD, overlap=False)
    size = 3 * 1_000_000 * (2 + 2 + 4) + 500_000 * (4 + 4 + 4)
    hops = 3 * 4 * (14 * 1e-4 + 1 * 1e-3)
    assert step.seconds == pytest.approx(COMPUTE + 15 / 16 * size / 8e8 + hops)


def test_without_overlap_hsdp_adds_the_shards_between_nodes_to_fsdp_of_a_node():
    node = simulate(STAGES, "FSDP2", 8, SLOW, **LOAD, overlap=False)
    step = simulate(STAGES, "HSDP", 32, SLOW, **LOAD, overlap=False)
    shard = 4 * 3_500_000 / 8
    # Four messages; of ring (3/4 of the bytes, 3 hops) and tree (all bytes, 2 hops) the tree is faster for none here.
    ring = 2 * 3 / 4 * shard / 1e8 + 4 * 2 * 3 * 1e-3
    tree = 2 * shard / 1e8 + 4 * 2 * 2 * 1e-3
    assert step.seconds - node.seconds == pytest.approx(min(ring, tree), rel=0.05)
    assert step.seconds - node.seconds <= min(ring, tree)


@pytest.mark.parametrize("task", ["mae", "wsp"])
def test_sharded_steps_send_as_many_messages_as_are_really_sent(task: str):
    """tests/distributed/test_messages.py counts those."""
    second_a_message = replace(FREE, inside=1 / 7)  # of 8 GPUs on a node, however long it is
    stages = stages_of(task, tiny_config(), labels=50)
    groups = (4 if task == "mae" else 2) + 2
    assert simulate(stages, "FSDP2", 8, second_a_message, **LOAD).messages == pytest.approx(2 * groups + groups)


def test_norms_pass_in_float32_and_once_for_all_blocks():
    with_norms = replace(BLOCK, norms=tensors(64_000))
    cluster = Cluster(nvlink=1e9, inside=0.0)
    more, less = (
        simulate([ENDS[0], *blocks, ENDS[1]], "FSDP2", 8, cluster, **LOAD)
        for blocks in ([with_norms, with_norms], [BLOCK, BLOCK])
    )
    assert more.messages - less.messages == pytest.approx(7 / 8 * 128_000 * (4 + 4 + 4) / 1e9)


def test_rows_that_do_not_go_round_are_padded():
    one_row = Stage([torch.empty(1, 8_000, device="meta")], 0.0, 0.0, in_block=False)
    cluster = Cluster(nvlink=1e9, inside=0.0)
    more, less = (simulate(stages, "FSDP2", 8, cluster, **LOAD).messages for stages in ([one_row, *STAGES], STAGES))
    assert more - less == pytest.approx(7 / 8 * 8 * 8_000 * (4 + 4 + 4) / 1e9)


def test_all_reduce_of_much_is_a_ring_and_of_little_between_many_nodes_a_tree():
    cluster = Cluster()
    much = 1e12
    assert cluster.all_reduce(much, 1024) == pytest.approx(2 * 1023 / 1024 * much / 400e9, rel=0.01)
    assert cluster.all_reduce(1.0, 1024) == pytest.approx(2 * (7 * 2e-6 + 7 * 5e-6), rel=1e-4)


def test_a_single_ring_between_nodes_has_the_speed_of_one_card():
    size = 1e12
    assert Cluster(rings=1).one_way(size, 16) / Cluster(rings=8).one_way(size, 16) == pytest.approx(8, rel=0.01)
    assert Cluster(rings=1).one_way(size, 8) == Cluster(rings=8).one_way(size, 8)


@pytest.mark.parametrize("way", WAYS)
def test_overlap_hides_messages_but_never_more_than_there_are(way: str):
    cluster = Cluster(nvlink=1e10, network=1e9, inside=0.0, between=0.0)
    apart = simulate(STAGES, way, 64, cluster, **LOAD, bucket=2e6, overlap=False)
    together = simulate(STAGES, way, 64, cluster, **LOAD, bucket=2e6)
    assert max(together.compute, together.messages / 2) < together.seconds < apart.seconds


def test_only_the_last_bucket_is_left_over_when_the_links_are_fast():
    cluster = Cluster(nvlink=1e9, inside=0.0)
    step = simulate(STAGES, "DDP", 8, cluster, images=1000, rate=1e11, bucket=4e6)
    # 14 MB in buckets of 4; the last 2 MB wait for the embedding.
    assert step.seconds - step.compute == pytest.approx(2 * 7 / 8 * 2e6 / 1e9)


@pytest.mark.parametrize("way", WAYS)
def test_more_gpus_are_never_faster(way: str):
    seconds = [simulate(STAGES, way, gpus, SLOW, **LOAD).seconds for gpus in (1, 2, 4, 8, 16, 64, 512)]
    assert seconds == sorted(seconds)


def test_checkpointing_computes_the_blocks_once_more():
    step = simulate(STAGES, "DDP", 1, FREE, **LOAD, checkpointing=True)
    assert step.seconds - COMPUTE == pytest.approx(4 * 3e9 / 1e11)


@pytest.mark.parametrize("config", [tiny_config(), MawsViTConfig.from_size("vit_h14")], ids=["tiny", "huge"])
def test_the_stages_are_the_whole_model(config: MawsViTConfig):
    stages = {task: stages_of(task, config, labels=50) for task in ("mae", "wsp")}
    work = {task: sum(stage.forward + stage.backward for stage in stages[task]) for task in stages}
    assert work["mae"] == mae_training_flops(config)
    assert work["wsp"] == wsp_training_flops(config, 50)


def test_the_stages_have_all_trained_parameters():
    for task, model in (
        ("mae", MawsMAEForPreTraining(tiny_config())),
        ("wsp", MawsViTForImageClassification(tiny_config(num_labels=50))),
    ):
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert sum(stage.parameters for stage in stages_of(task, tiny_config(), labels=50)) == trained
    with pytest.raises(ValueError, match="'lit' is unknown; there are mae, wsp"):
        stages_of("lit", tiny_config())


def test_gpus_that_do_not_fill_their_nodes_are_refused(capsys):
    with pytest.raises(ValueError, match="12 GPUs do not fill nodes of 8"):
        Cluster().nodes(12)
    with pytest.raises(SystemExit):
        parse_arguments(["--gpus", "12"])
    assert "--gpus 12 do not fill nodes" in capsys.readouterr().err


def test_the_best_measured_rate_of_a_size_counts(tmp_path):
    records = [
        {"size": "vit_b16", "mae_flops": 6e12, "mae_seconds": seconds, "batch": 8} for seconds in (3.0, 2.0, 4.0)
    ]
    file = tmp_path / "growth.json"
    file.write_text(json.dumps({"records": records}))
    assert rates_of(file) == {"vit_b16": 3e12}


def test_the_report_says_what_it_is_and_draws(tmp_path, monkeypatch, capsys):
    picture = tmp_path / "scaling.png"
    command = ["simulate", "--sizes", "vit_b16", "vit_6.5b14", "--tasks", "mae", "--gpus", "8", "64"]
    monkeypatch.setattr("sys.argv", [*command, "--memory_gib", "60", "--output", str(picture)])
    main()
    printed = capsys.readouterr().out
    assert "A simulation, not a measurement" in printed
    assert "64 images a GPU" in printed
    rows = {tuple(cell.strip() for cell in line.split("|")[1:3]): line for line in printed.splitlines() if "|" in line}
    assert rows["vit_6.5b14", "DDP"].count(" - ") == 2, "6.5B parameters and their moments do not fit 60 GiB"
    assert "%" in rows["vit_6.5b14", "FSDP2"]
    assert picture.stat().st_size > 10_000
