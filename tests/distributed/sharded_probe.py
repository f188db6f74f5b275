"""Started on several processes by test_sharded.py: models that none has whole."""

import gc
import hashlib
import json
import os
import resource
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from sharded_steps import CONFIGS, IMAGES, MODELS, SEED, batch, make_optimizer, update
from tiny import tiny_config
from torch.distributed.tensor import DTensor

from maws_hf import MawsViTModel
from maws_hf.optim.ema import WeightAverage
from maws_hf.optim.groups import parameter_groups
from maws_hf.training.initial_weights import meta_model
from maws_hf.training.model import ModelRecipe, build_model
from maws_hf.training.native_start import NativeStart
from maws_hf.training.sharded_files import (
    CheckpointTensors,
    load_moments,
    load_weights,
    save_training,
    training_tensors,
    write_shard,
)
from maws_hf.training.sharding import copies_wanted, own_part, own_place, rebind_groups, shard_model

CPU = torch.device("cpu")


def main(folder: str) -> None:
    dist.init_process_group("gloo")
    answers = {"memory": watch_memory(Path(folder)), **{task: take_steps(Path(folder), task) for task in MODELS}}
    answers["start"] = start_elsewhere(Path(folder))
    gathered = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, answers)
    if dist.get_rank() == 0:
        print("ANSWER " + json.dumps(gathered))
    gc.collect()  # models refer to themselves, and to the process group that must outlive them
    dist.barrier()
    dist.destroy_process_group()


def take_steps(folder: Path, task: str) -> dict:
    """Two updates from new weights; then one more from the checkpoint of whole tensors that the test has put there."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    own = slice(rank * IMAGES // world_size, (rank + 1) * IMAGES // world_size)
    model = meta_model(MODELS[task], CONFIGS[task])
    groups = parameter_groups(model, 0.05)  # as a script may make them before the model is sharded
    shard_model(model, CPU, SEED, copies=copies_wanted(dist.get_world_size()))
    whole = [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]
    write_to(folder / f"{task}-new", lambda path: write_weights(model, path))
    optimizer, average = make_optimizer(model, rebind_groups(groups, model)), WeightAverage(model, 0.9)
    first = update(model, optimizer, average, batch(task, 1, own), 1)
    with torch.no_grad():  # as the pictures between two updates
        model(**{**batch(task, 9, own), **({"skip_logits": False} if task == "wsp" else {})})
    second = update(model, optimizer, average, batch(task, 2, own), 2)
    write_to(folder / f"{task}-two", lambda path: save_training(model, optimizer, average, path))
    with CheckpointTensors(folder / f"{task}-whole") as tensors:
        load_weights(model, tensors)
        fresh = make_optimizer(model)
        load_moments(fresh, average, tensors)
    update(model, fresh, average, batch(task, 3, own), 3)
    write_to(folder / f"{task}-resumed", lambda path: save_training(model, fresh, average, path))
    own = digest(training_tensors(model, fresh, average))
    return {"whole": whole, "updates": [first, second], "digest": own}


def start_elsewhere(folder: Path) -> dict[str, int]:
    """An autoencoder on the encoder that the test has saved: values that are read, and those of it that are kept."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    read, counts = NativeStart.read, []

    def counted(self: NativeStart, *arguments) -> torch.Tensor:
        counts.append(read(self, *arguments))
        return counts[-1]

    NativeStart.read = counted
    recipe = ModelRecipe(output_dir="x", model_name_or_path=str(folder / "start"), seed=SEED)
    model = build_model(MODELS["mae"], recipe)
    without_memory = all(tensor.is_meta for tensor in model.state_dict().values())
    shard_model(model, CPU, SEED, copies=copies_wanted(dist.get_world_size()))
    write_to(folder / "started", lambda path: write_weights(model, path))
    own = sum(own_part(tensor).numel() for tensor in model.vit.state_dict().values())
    return {"without_memory": without_memory, "read": sum(rows.numel() for rows in counts), "own": own}


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """Of all that this process holds."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode() + own_part(tensor).contiguous().numpy().tobytes())
    return found.hexdigest()


def write_weights(model: torch.nn.Module, path: Path) -> None:
    nothing = torch.optim.SGD([torch.zeros(1)])
    nothing.param_groups.clear()
    place = own_place(next(model.parameters()))
    if place.copy == 0:
        write_shard(training_tensors(model, nothing, None), path, place.part, place.parts)


def write_to(path: Path, write) -> None:
    path.mkdir(exist_ok=True)
    write(path)
    dist.barrier()


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def watch_memory(folder: Path) -> dict[str, float]:
    """Growth of this process' peak memory while a model of 110 MB is made, saved and loaded, in MB."""
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 4}
    copies = copies_wanted(dist.get_world_size())
    shard_model(meta_model(MawsViTModel, tiny_config()), CPU, SEED, copies=copies)  # what the first one needs besides
    model = meta_model(MawsViTModel, tiny_config(**sizes))
    whole = sum(parameter.numel() for parameter in model.parameters()) * 4 / 2**20
    dist.barrier()
    start = peak()
    shard_model(model, CPU, SEED, copies=copies)
    made = peak()
    own = sum(own_part(parameter).numel() for parameter in model.parameters()) * 4 / 2**20
    write_to(folder / "large", lambda path: write_weights(model, path))
    saved = peak()
    with CheckpointTensors(folder / "large") as tensors:
        load_weights(model, tensors)
    return {"whole": whole, "own": own, "made": made - start, "saved": saved - made, "loaded": peak() - saved}


if __name__ == "__main__":
    main(sys.argv[1])
