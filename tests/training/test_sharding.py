"""What a launcher's settings ask of the sharding of a model."""

from pathlib import Path

import pytest
import torch.distributed as dist
from accelerate.commands.config.config_args import load_config_from_file

from maws_hf.training.sharding import copies_wanted, sharding_wanted


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `accelerate launch` leaves a process of examples/accelerate/fsdp2.yaml."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    for option in ("CPU_RAM_EFFICIENT_LOADING", "OFFLOAD_PARAMS", "ACTIVATION_CHECKPOINTING"):
        monkeypatch.setenv(f"FSDP_{option}", "false")


@pytest.mark.parametrize("processes", [1, 2])
def test_one_process_of_a_group_is_sharded_like_several(monkeypatch: pytest.MonkeyPatch, processes: int):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: processes)
    assert sharding_wanted()


def test_without_a_group_nothing_is_sharded():
    assert not sharding_wanted()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("FSDP_VERSION", "1", "fsdp_version: 2"),
        ("FSDP_CPU_RAM_EFFICIENT_LOADING", "true", "fsdp_cpu_ram_efficient_loading: false"),
        ("FSDP_OFFLOAD_PARAMS", "true", "fsdp_offload_params: true.*stay on the devices"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", "fsdp_activation_checkpointing: true.*--gradient_checkpointing"),
    ],
)
def test_a_setting_that_would_not_be_followed_is_refused(
    monkeypatch: pytest.MonkeyPatch, option: str, value: str, message: str
):
    monkeypatch.setenv(option, value)
    with pytest.raises(ValueError, match=message):
        sharding_wanted()


@pytest.mark.parametrize(("processes", "sizes", "copies"), [(8, {}, 1), (8, {"dp_replicate": 2, "dp_shard": 4}, 2)])
def test_a_model_is_there_once_or_as_often_as_asked_for(
    monkeypatch: pytest.MonkeyPatch, processes: int, sizes: dict[str, int], copies: int
):
    ask(monkeypatch, sizes)
    assert copies_wanted(processes) == copies


def test_the_example_config_gives_each_machine_a_copy(monkeypatch: pytest.MonkeyPatch):
    config = load_config_from_file(str(Path(__file__).parents[2] / "examples/accelerate/hsdp.yaml"))
    sizes = config.parallelism_config
    ask(
        monkeypatch,
        {key.removeprefix("parallelism_config_").removesuffix("_size"): size for key, size in sizes.items()},
    )
    for option, value in config.fsdp_config.items():
        monkeypatch.setenv(option.upper(), str(value))
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    assert sharding_wanted()
    assert copies_wanted(config.num_processes) == config.num_machines > 1


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"dp_replicate": 3, "dp_shard": 2}, "dp_replicate_size: 3.*dp_shard_size: 2.*as many as there are, 8"),
        ({"dp_replicate": 8}, "dp_replicate_size: 8.*dp_shard_size: 1.*at least 2"),
        ({"dp_shard": 4}, "dp_shard_size: 4.*as many as there are, 8"),
        ({"tp": 2, "dp_shard": 4}, "parallelism_config_tp_size: 2.*leave it out"),
        ({"cp": 8}, "parallelism_config_cp_size: 8.*leave it out"),
    ],
)
def test_copies_that_the_processes_do_not_make_are_refused(
    monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int], message: str
):
    ask(monkeypatch, sizes)
    with pytest.raises(ValueError, match=message):
        copies_wanted(8)


def ask(monkeypatch: pytest.MonkeyPatch, sizes: dict[str, int]) -> None:
    for name, size in sizes.items():
        monkeypatch.setenv(f"PARALLELISM_CONFIG_{name.upper()}_SIZE", str(size))
