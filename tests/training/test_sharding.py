"""What a launcher's settings ask of the sharding of a model."""

import pytest
import torch.distributed as dist

from maws_hf.training.sharding import sharding_wanted


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
