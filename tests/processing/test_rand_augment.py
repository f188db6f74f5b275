import hashlib

import numpy as np
import pytest
from PIL import Image

from maws_hf.processing.rand_augment import OPERATIONS, RandAugment

FILL = (124, 116, 104)
PICTURE = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)


# SHA-256 of what timm 0.9.7's operations make of PICTURE, both directions at the strengths 3 and 8.77 of 10.
TIMM = {
    "auto_contrast": "cc2f3a35e3856904",
    "brightness": "05ceddb26cf602b2",
    "color": "d8f52efb39971cef",
    "contrast": "0a9ffa6b518a6540",
    "equalize": "4d6aab5bfaf108f8",
    "invert": "8e2c7505306bca2e",
    "posterize": "90e67a0d141cc4b2",
    "rotate": "48f29ccdbe91d743",
    "sharpness": "a69110a0486d367f",
    "shear_x": "e2349b530f679efe",
    "shear_y": "ff7e27c645d3c605",
    "solarize": "4808375f84092b50",
    "solarize_add": "47095d3d20a24e3d",
    "translate_x": "bde172a25c180213",
    "translate_y": "74dec5e12302dbfa",
}


def apply(name: str, strength: float, pixels: np.ndarray = PICTURE) -> np.ndarray:
    return np.asarray(OPERATIONS[name](Image.fromarray(pixels), strength, FILL))


def test_the_operations_are_the_fifteen_of_the_parent_recipe():
    assert OPERATIONS.keys() == TIMM.keys()


@pytest.mark.parametrize("name", TIMM)
def test_every_operation_is_timms_to_the_pixel(name: str):
    digest = hashlib.sha256()
    for sign in (1, -1):
        for strength in (0.3, 0.877):
            digest.update(apply(name, sign * strength).tobytes())
    assert digest.hexdigest()[:16] == TIMM[name]


@pytest.mark.parametrize("sign", [-1, 1])
def test_translations_move_whole_pixels_and_fill_with_the_mean_colour(sign):
    # 0.45 of 20 pixels is 9 rows at full strength.
    moved = apply("translate_y", sign * 1.0)
    kept, filled = (slice(0, 11), slice(11, 20)) if sign > 0 else (slice(9, 20), slice(0, 9))
    source = slice(9, 20) if sign > 0 else slice(0, 11)
    assert np.array_equal(moved[kept], PICTURE[source])
    assert (moved[filled] == FILL).all()
    across = apply("translate_x", sign / 1.08)  # 0.45 x 24 / 1.08 = 10 columns
    kept, source = (slice(0, 14), slice(10, 24)) if sign > 0 else (slice(10, 24), slice(0, 14))
    assert np.abs(across[:, kept].astype(int) - PICTURE[:, source]).max() <= 1


def test_a_shear_moves_rows_in_proportion_to_their_distance():
    upright = np.zeros((20, 40, 3), dtype=np.uint8)
    upright[:, 18:22] = 255
    sheared = apply("shear_x", 1.0, upright).astype(float).mean(axis=2)
    columns = np.arange(40) + 0.5
    centres = (np.where(sheared > 140, sheared, 0) * columns).sum(axis=1) / np.where(sheared > 140, sheared, 0).sum(1)
    # source column = column + 0.3 x row, so the bar's centre lies 0.3 of a pixel further left in each row
    slope = np.polyfit(np.arange(20), centres, 1)[0]
    assert slope == pytest.approx(-0.3, abs=0.02)


def test_a_rotation_turns_by_30_degrees_either_way_at_full_strength():
    bar = np.zeros((41, 41, 3), dtype=np.uint8)
    bar[19:22, 21:] = 255  # from the centre to the right
    for sign in (1, -1):
        turned = apply("rotate", float(sign), bar).astype(float)[..., 0]
        turned[turned < 140] = 0
        rows, columns = np.indices(turned.shape)
        x, y = ((grid - 20) * turned for grid in (columns, rows))
        angle = np.degrees(np.arctan2(-y.sum(), x.sum()))
        assert angle == pytest.approx(30 * sign, abs=1.5)


def test_grey_level_operations_have_their_closed_forms():
    levels = np.arange(256)
    ramp = np.repeat(levels.astype(np.uint8)[None, :, None], 3, axis=2)

    def curve(name: str, strength: float) -> np.ndarray:
        return apply(name, strength, ramp)[0, :, 0].astype(int)

    assert np.array_equal(curve("invert", 0.3), 255 - levels)
    assert np.array_equal(curve("posterize", -0.5), levels // 64 * 64)  # two bits are left
    assert np.array_equal(curve("posterize", 1.0), np.zeros(256))
    assert np.array_equal(curve("solarize", 0.5), np.where(levels < 128, levels, 255 - levels))
    assert np.array_equal(curve("solarize", 0.0), levels)
    assert np.array_equal(curve("solarize_add", 0.5), np.where(levels < 128, levels + 55, levels))
    assert np.array_equal(curve("brightness", 1.0), np.minimum(255, (levels * 1.9).astype(int)))
    assert np.abs(curve("brightness", -1.0) - levels * 0.1).max() <= 1
    assert np.array_equal(curve("auto_contrast", 0.9), levels)
    assert np.array_equal(apply("auto_contrast", 1.0, ramp // 2 + 20)[0, [0, -1], 0], [0, 255])


def test_enhancements_do_nothing_at_strength_0_and_grow_with_it():
    for name in ("color", "contrast", "sharpness"):
        change = [np.abs(apply(name, strength).astype(int) - PICTURE).mean() for strength in (0.0, 0.3, 0.9)]
        assert change[0] == 0 < change[1] < change[2], name
    grey = apply("color", -1.0).astype(int)
    spread, before = np.ptp(grey, axis=2).mean(), np.ptp(PICTURE.astype(int), axis=2).mean()
    assert spread == pytest.approx(0.1 * before, rel=0.1)


def test_two_operations_are_tried_each_with_probability_one_half():
    seen = []

    def count(image: np.ndarray, rng: np.random.Generator) -> bool:
        return RandAugment()(image, rng) is image  # nothing was carried out

    rng = np.random.default_rng(1)
    seen = [count(PICTURE, rng) for _ in range(2000)]
    assert np.mean(seen) == pytest.approx(0.25, abs=0.03)


def test_the_same_generator_state_gives_the_same_picture_and_every_operation_comes_up(monkeypatch):
    augment = RandAugment()
    first, second = (augment(PICTURE, np.random.default_rng(7)) for _ in range(2))
    assert np.array_equal(first, second)
    used: list[tuple[str, float]] = []

    def recorder(name: str):
        return lambda image, strength, fill: used.append((name, strength)) or image

    monkeypatch.setattr("maws_hf.processing.rand_augment._ALL", tuple(map(recorder, OPERATIONS)))
    rng = np.random.default_rng(2)
    for _ in range(3000):
        augment(PICTURE, rng)
    strengths = np.array([strength for _, strength in used])
    assert {name for name, _ in used} == set(OPERATIONS)
    assert np.abs(strengths).mean() == pytest.approx(0.9, abs=0.01)
    assert np.abs(strengths).max() <= 1.0
    assert (strengths > 0).mean() == pytest.approx(0.5, abs=0.03)


def strengths_of(monkeypatch: pytest.MonkeyPatch, images: int, **settings: float) -> list[float]:
    """Of all operations that are carried out on so many images."""
    used: list[float] = []
    only = (lambda image, strength, fill: used.append(strength) or image,)
    monkeypatch.setattr("maws_hf.processing.rand_augment._ALL", only)
    augment, rng = RandAugment(**settings), np.random.default_rng(0)
    for _ in range(images):
        augment(PICTURE, rng)
    return used


@pytest.mark.parametrize(("probability", "times"), [(0.0, 0), (1.0, 3 * 50)])
def test_as_many_operations_are_carried_out_as_asked_for(monkeypatch, probability: float, times: int):
    assert len(strengths_of(monkeypatch, 50, operations=3, probability=probability)) == times


def test_strengths_are_normal_with_the_mean_and_deviation_asked_for(monkeypatch):
    found = 10 * np.abs(strengths_of(monkeypatch, 2000, magnitude=5.0, magnitude_std=1.5, probability=1.0))
    assert found.mean() == pytest.approx(5.0, abs=0.1)
    assert found.std() == pytest.approx(1.5, abs=0.1)


def test_strengths_vary_by_half_a_step_by_default_and_not_at_all_on_request(monkeypatch):
    found = 10 * np.abs(strengths_of(monkeypatch, 2000, magnitude=5.0))
    assert found.std() == pytest.approx(0.5, abs=0.04)
    assert set(np.abs(strengths_of(monkeypatch, 50, magnitude=5.0, magnitude_std=0.0))) == {0.5}


def test_strengths_end_at_0(monkeypatch):
    found = np.array(strengths_of(monkeypatch, 1000, magnitude=0.0, magnitude_std=1.0, probability=1.0))
    assert (found == 0).mean() == pytest.approx(0.5, abs=0.06)  # the lower half of the normal distribution


def test_each_operation_goes_on_from_the_one_before(monkeypatch):
    brighter = (lambda image, strength, fill: image.point(lambda value: value + 10),)
    monkeypatch.setattr("maws_hf.processing.rand_augment._ALL", brighter)
    dark = PICTURE // 2
    augmented = RandAugment(operations=3, probability=1.0)(dark, np.random.default_rng(0))
    assert np.array_equal(augmented, dark + 30)


@pytest.mark.parametrize(("settings", "expected"), [({}, FILL), ({"fill": (1, 2, 3)}, (1, 2, 3))])
def test_what_comes_in_from_outside_has_the_colour_asked_for_or_imagenets_mean(monkeypatch, settings, expected):
    monkeypatch.setattr("maws_hf.processing.rand_augment._ALL", (OPERATIONS["translate_x"],))
    augmented = RandAugment(operations=1, probability=1.0, **settings)(PICTURE, np.random.default_rng(0))
    assert (augmented == expected).all(axis=(0, 2))[[0, -1]].any()


@pytest.mark.parametrize(
    "wrong", [{"magnitude": 11}, {"magnitude": -1}, {"magnitude_std": -1}, {"operations": -1}, {"probability": 2}]
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        RandAugment(**wrong)
