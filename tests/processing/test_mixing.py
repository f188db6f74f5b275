import numpy as np
import pytest
import torch

from maws_hf.processing.mixing import Mixing, erase

ONE_HOT = torch.eye(4)


def test_mixup_adds_each_image_to_its_mirror_place_and_targets_alike():
    pixels = torch.randn(4, 3, 8, 8)
    share = np.random.default_rng(3).beta(0.8, 0.8)
    mixed, targets = Mixing(mixup=0.8, cutmix=0, smoothing=0)(pixels, ONE_HOT, np.random.default_rng(3))
    torch.testing.assert_close(mixed[0], share * pixels[0] + (1 - share) * pixels[3], rtol=0, atol=1e-6)
    torch.testing.assert_close(targets[0], torch.tensor([share, 0, 0, 1 - share], dtype=torch.float32))
    torch.testing.assert_close(targets.sum(dim=1), torch.ones(4))


def test_cutmix_targets_say_what_area_is_left_of_each_image():
    mixing = Mixing(mixup=0, cutmix=1.0, smoothing=0)
    pixels = torch.arange(4.0)[:, None, None, None].expand(4, 3, 20, 30)
    shares = []
    for seed in range(200):
        mixed, targets = mixing(pixels, ONE_HOT, np.random.default_rng(seed))
        kept = (mixed == pixels).float().mean(dim=(1, 2, 3))
        torch.testing.assert_close(kept, targets.diagonal())
        foreign = (mixed[0, 0] != 0).nonzero()
        if len(foreign):  # one rectangle, filled
            rows, columns = (foreign.max(dim=0).values - foreign.min(dim=0).values + 1).tolist()
            assert len(foreign) == rows * columns
        shares.append(float(kept[0]))
    assert 0.55 < np.mean(shares) < 0.75  # uniform shares, and rectangles that the border cuts off


def test_a_batch_gets_mixup_or_cutmix_by_an_even_chance():
    pixels = torch.stack([torch.zeros(3, 8, 8), torch.ones(3, 8, 8)])
    mixed = [Mixing()(pixels, ONE_HOT[:2], np.random.default_rng(seed))[0] for seed in range(400)]
    pasted = [set(images.unique().tolist()) <= {0.0, 1.0} for images in mixed]
    assert np.mean(pasted) == pytest.approx(0.5, abs=0.08)


def test_the_defaults_are_those_of_mae_s_fine_tuning():
    assert Mixing() == Mixing(mixup=0.8, cutmix=1.0, smoothing=0.1)  # He et al. 2021, table 9


def test_smoothing_spreads_a_share_over_all_classes():
    _, targets = Mixing(mixup=0, cutmix=0, smoothing=0.1)(torch.zeros(4, 3, 2, 2), ONE_HOT, np.random.default_rng(0))
    torch.testing.assert_close(targets[2], torch.tensor([0.025, 0.025, 0.925, 0.025]))


def test_images_without_a_label_get_no_target_from_smoothing():
    targets = torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    _, smoothed = Mixing(mixup=0, cutmix=0)(torch.zeros(3, 3, 2, 2), targets, np.random.default_rng(0))
    assert smoothed.tolist()[0] == [0.0, 0.0]
    assert smoothed[1].sum() == pytest.approx(1)


def test_erasing_hits_the_asked_share_of_images_with_rectangles_of_noise():
    torch.manual_seed(0)
    pixels = torch.full((400, 3, 24, 24), 7.0)
    erased = erase(pixels, 0.25, np.random.default_rng(0))
    changed = (erased != 7.0).all(dim=1)  # (B, H, W): every channel
    assert torch.equal(changed, (erased != 7.0).any(dim=1))
    hit = changed.flatten(1).any(dim=1)
    assert hit.float().mean() == pytest.approx(0.25, abs=0.07)
    for image in changed[hit]:
        places = image.nonzero()
        rows, columns = (places.max(dim=0).values - places.min(dim=0).values + 1).tolist()
        assert len(places) == rows * columns
        assert 0.01 <= len(places) / 24**2 <= 0.36
        assert 0.2 <= rows / columns <= 5
    noise = erased[erased != 7.0]
    assert float(noise.mean()) == pytest.approx(0, abs=0.03)
    assert float(noise.std()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("size", [(16, 64), (64, 16)])
def test_the_erased_area_is_a_share_of_the_image_whatever_its_shape(size):
    erased = erase(torch.full((300, 3, *size), 7.0), 1.0, np.random.default_rng(0))
    shares = (erased[:, 0] != 7.0).float().mean(dim=(1, 2))
    assert 0.25 < float(shares.max()) < 0.36  # of at most a third, but for rounding
    assert 0.01 < float(shares.min()) < 0.04  # of at least a fiftieth


def test_erasing_reaches_every_border():
    erased = erase(torch.full((300, 3, 12, 16), 7.0), 1.0, np.random.default_rng(0))
    touched = (erased[:, 0] != 7.0).any(dim=0)
    assert touched[[0, -1]].any(dim=1).all()
    assert touched[:, [0, -1]].any(dim=0).all()


def test_nothing_is_erased_or_mixed_when_switched_off():
    pixels = torch.randn(4, 3, 8, 8)
    assert torch.equal(erase(pixels.clone(), 0.0, np.random.default_rng(0)), pixels)
    mixed, targets = Mixing(mixup=0, cutmix=0, smoothing=0)(pixels, ONE_HOT, np.random.default_rng(0))
    assert torch.equal(mixed, pixels)
    assert torch.equal(targets, ONE_HOT)


@pytest.mark.parametrize("wrong", [{"mixup": -1}, {"cutmix": -0.1}, {"smoothing": 1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Mixing(**wrong)
