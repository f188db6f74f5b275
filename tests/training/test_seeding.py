"""Random decisions are named: one that differs in any part of its name is another."""

import torch

from maws_hf.training.seeding import seed_for, seed_step


def test_every_part_of_a_name_counts_and_so_does_where_one_ends():
    names = [("mask", 1), ("mask", 2), ("crop", 1), (1, "mask"), ("mask", 11, 2), ("mask", 1, 12), ("mask", 112)]
    seeds = [seed_for(*name) for name in names]
    assert len(set(seeds)) == len(names)
    assert seeds == [seed_for(*name) for name in names]
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_pass_draws_its_own_numbers_each_time_it_is_repeated():
    passes = [(0, 0, 1, 0), (1, 0, 1, 0), (0, 1, 1, 0), (0, 0, 2, 0), (0, 0, 1, 1)]  # seed, rank, step, micro-batch

    def draw(numbers: tuple[int, ...]) -> float:
        seed_step(*numbers)
        return float(torch.rand(()))

    with torch.random.fork_rng():
        drawn = [draw(numbers) for numbers in passes]
        assert drawn == [draw(numbers) for numbers in passes]
    assert len(set(drawn)) == len(passes)
