"""Started on two processes by test_contrastive.py: one LiT step on half of the pairs each, in 1, 2 and 4 parts.

Writes the mean loss and the gradients that DistributedDataParallel leaves, in float64.
"""

import sys
from pathlib import Path

import torch.distributed as dist
from safetensors.torch import save_file
from tiny_lit import random_captions, random_images, tiny_lit
from torch.nn.parallel import DistributedDataParallel

PAIRS = 16
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def main(output_dir: str) -> None:
    dist.init_process_group("gloo")
    for chunks in (1, 2, 4):
        take_step(chunks, output_dir)
        dist.barrier()  # neither rank takes its group down while the other still uses it
    dist.destroy_process_group()


def take_step(chunks: int, output_dir: str) -> None:
    """In a function of its own, so that the wrapped model is gone before the process group is."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    own = slice(rank * PAIRS // world_size, (rank + 1) * PAIRS // world_size)
    model = tiny_lit(NO_DROPOUT, seed=rank).double().train()  # other weights at first: DDP must make them equal
    wrapped = DistributedDataParallel(model)
    captions, images = random_captions(PAIRS)[own], random_images(PAIRS)[own]
    text_batches = model.batch_captions(captions, chunks)
    loss = wrapped(text_batches=text_batches, pixel_values=images, return_loss=True).loss
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    if rank == 0:
        tensors = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        save_file({**tensors, "loss": mean / world_size}, Path(output_dir, f"chunks-{chunks}.safetensors"))


if __name__ == "__main__":
    main(sys.argv[1])
