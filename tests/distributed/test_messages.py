"""What a process of many sends and gets in a training step; the others are not there (PyTorch's fake group)."""

import gc
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.distributed as dist
from sharded_steps import CONFIGS, MODELS, batch
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

from maws_hf.training.initial_weights import meta_model
from maws_hf.training.sharding import shard_model

BLOCKS = {task: config.num_hidden_layers for task, config in CONFIGS.items()}
for task in ("mae", "cross"):
    BLOCKS[task] += CONFIGS[task].decoder_num_hidden_layers


class Messages(TorchDispatchMode):
    """The numbers in each message, gathered or yet to be scattered."""

    def __init__(self):
        super().__init__()
        self.gathered: list[int] = []
        self.scattered: list[int] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.c10d._allgather_base_.default:
            self.gathered.append(args[0].numel())
        elif function is torch.ops.c10d._reduce_scatter_base_.default:
            self.scattered.append(args[1].numel())
        else:
            assert function.namespace != "c10d", f"{function} is not counted"
        return function(*args, **(kwargs or {}))


@pytest.fixture
def step() -> Iterator[Callable[..., Messages]]:
    def messages(task: str, processes: int = 8, *, bf16: bool = False, checkpointing: bool = False) -> Messages:
        dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
        model = meta_model(MODELS[task], CONFIGS[task])
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        shard_model(model.train(), torch.device("cpu"), 0, bf16=bf16)
        with Messages() as counted:
            model(**batch(task, 1)).loss.backward()
        return counted

    yield messages
    gc.collect()  # models refer to themselves, and to the process group that must outlive them
    dist.destroy_process_group()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("task", MODELS)
def test_each_block_is_gathered_twice_and_its_gradients_scattered_once(step, task: str, checkpointing: bool):
    counted = step(task, checkpointing=checkpointing)
    groups = BLOCKS[task] + 1  # and what is in no block
    assert (len(counted.gathered), len(counted.scattered)) == (2 * groups, groups)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("task", MODELS)
def test_in_bfloat16_the_norms_of_all_blocks_are_one_more_group(step, task: str, checkpointing: bool):
    counted = step(task, bf16=True, checkpointing=checkpointing)
    groups = BLOCKS[task] + 2
    assert (len(counted.gathered), len(counted.scattered)) == (2 * groups, groups)


@pytest.mark.parametrize("task", ["mae", "cross"])
def test_the_positions_of_an_autoencoder_are_not_gathered(step, task: str):
    processes = 16
    model = meta_model(MODELS[task], CONFIGS[task])
    table = model.vit.embeddings.position_embeddings
    outside = [p for name, p in model.named_parameters() if ".layers." not in name and p is not table]
    padded = sum(-(-len(p) // processes) * processes * p[0].numel() for p in outside)
    assert step(task, processes).gathered[0] == padded
