import pytest
import torch

from maws_hf.masking import (
    draw_noise,
    mask_from_ids,
    num_kept_patches,
    num_predicted_patches,
    shuffle_ids,
    split_by_mask,
    split_by_noise,
)


@pytest.mark.parametrize(
    ("patches", "ratio", "kept"),
    # int() of the original: 196 * (1 - 0.9) is 19.599..., 36 * 0.25 exactly 9.
    [(196, 0.75, 49), (256, 0.75, 64), (36, 0.75, 9), (196, 0.9, 19)],
)
def test_number_of_kept_patches_is_the_originals(patches: int, ratio: float, kept: int):
    assert num_kept_patches(patches, ratio) == kept


@pytest.mark.parametrize(("patches", "ratio"), [(3, 0.75), (1, 0.5), (4, 0.0)])
def test_a_mask_must_keep_and_hide_something(patches: int, ratio: float):
    with pytest.raises(ValueError, match=f"mask_ratio={ratio}"):
        num_kept_patches(patches, ratio)


def test_the_smallest_noise_is_kept_in_ascending_order():
    noise = torch.tensor([[0.3, 0.1, 0.9, 0.2], [0.0, 0.7, 0.5, 0.6]])
    ids_keep, ids_mask = split_by_noise(noise, 2)
    assert ids_keep.tolist() == [[1, 3], [0, 2]]
    assert ids_mask.tolist() == [[0, 2], [3, 1]]
    assert mask_from_ids(ids_mask, 4).tolist() == [[1, 0, 1, 0], [0, 1, 0, 1]]


def test_an_explicit_mask_is_split_in_raster_order():
    mask = torch.tensor([[True, False, True, False], [False, False, True, True]])
    ids_keep, ids_mask = split_by_mask(mask)
    assert ids_keep.tolist() == [[1, 3], [0, 1]]
    assert ids_mask.tolist() == [[0, 2], [2, 3]]
    assert torch.equal(mask_from_ids(ids_mask, 4), mask.float())


def test_an_explicit_mask_must_hide_equally_many():
    with pytest.raises(ValueError, match="between 1 and 2 patches"):
        split_by_mask(torch.tensor([[1, 0, 0], [1, 1, 0]]))


@pytest.mark.parametrize("value", [0, 1])
def test_an_explicit_mask_may_not_hide_all_or_nothing(value: int):
    with pytest.raises(ValueError, match="of 3 patches"):
        split_by_mask(torch.full((2, 3), value))


def test_the_predicted_patches_are_the_nearest_whole_number():
    assert [num_predicted_patches(147, ratio) for ratio in (1e-6, 0.25, 0.5, 0.253, 1.0)] == [1, 37, 74, 37, 147]


def test_noise_is_float32_and_what_the_generator_gives():
    noise = draw_noise((3, 500), torch.device("cpu"), torch.Generator().manual_seed(5))
    assert noise.dtype == torch.float32
    assert torch.equal(noise, torch.rand(3, 500, generator=torch.Generator().manual_seed(5)))


def test_each_row_is_shuffled_in_an_order_of_its_own_by_the_generator():
    ids = torch.arange(40).expand(3, -1) + torch.tensor([[0], [100], [200]])
    shuffled = shuffle_ids(ids, torch.Generator().manual_seed(0))
    order = torch.rand(3, 40, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    assert torch.equal(shuffled, torch.stack([row[places] for row, places in zip(ids, order, strict=True)]))
