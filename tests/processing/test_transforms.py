"""Crops follow torchvision's rules, both resizers agree, and evaluation equals the stock processor exactly."""

import dataclasses
import io
import math

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from maws_hf import MawsViTConfig
from maws_hf.processing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    EvalTransform,
    ImageDecodeError,
    TrainTransform,
    decode_image,
    denormalize,
    normalize,
    random_resized_crop_box,
    resize_crop,
)
from maws_hf.processing.image_processors import image_processor_of, square_image_processor_of

BACKENDS = ["pillow", "torch", "auto"]


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Waves and strong grain: bicubic overshoots on it, at both ends of the range."""
    y, x = np.mgrid[:height, :width]
    waves = np.stack([128 + 120 * np.sin(x / 9 + c) * np.cos(y / 7 - c) for c in range(3)], axis=-1)
    grain = np.random.default_rng(seed).normal(0, 25, waves.shape)
    return np.clip(waves + grain, 0, 255).astype(np.uint8)


# --- the crop box ---------------------------------------------------------------------------------------------

# (seed, height, width) and the box of torchvision 0.28's RandomResizedCrop.get_params with scale (0.2, 1) and
# ratio (3/4, 4/3), its two uniform draws and its two integer draws taken from default_rng(seed) in its own order.
TORCHVISION_BOXES = [
    (0, 375, 500, (23, 259, 240, 182)),
    (1, 375, 500, (2, 16, 297, 385)),
    (2, 480, 640, (43, 249, 376, 335)),
    (3, 1024, 768, (95, 274, 496, 426)),
    (4, 20, 500, (0, 236, 20, 27)),
    (5, 500, 20, (236, 0, 27, 20)),
    (6, 1, 1, (0, 0, 1, 1)),
    (7, 224, 224, (33, 11, 167, 210)),
    (8, 33, 47, (1, 5, 23, 31)),
]


@pytest.mark.parametrize(("seed", "height", "width", "box"), TORCHVISION_BOXES)
def test_boxes_equal_torchvisions_for_the_same_draws(seed, height, width, box):
    assert random_resized_crop_box(height, width, np.random.default_rng(seed)) == box


def test_boxes_lie_inside_and_keep_scale_and_ratio():
    rng = np.random.default_rng(0)
    height, width = 375, 500
    boxes = np.array([random_resized_crop_box(height, width, rng) for _ in range(4000)])
    top, left, h, w = boxes.T
    assert min(top.min(), left.min()) >= 0
    assert (top + h).max() <= height
    assert (left + w).max() <= width
    share, aspect = h * w / (height * width), w / h
    assert 0.19 < share.min() < 0.21
    assert 0.98 < share.max() <= 1
    assert 0.74 < aspect.min() < 0.76
    assert 1.32 < aspect.max() < 1.35
    assert len({(a, b) for a, b in zip(top, left, strict=True)}) > 3000


def test_the_aspect_is_uniform_in_its_logarithm_and_the_area_is_uniform():
    rng = np.random.default_rng(1)
    # Small crops of a large picture always fit at the first try, so the draws are seen undistorted.
    boxes = np.array([random_resized_crop_box(3000, 3000, rng, scale=(0.1, 0.3)) for _ in range(4000)])
    log_aspect = np.log(boxes[:, 3] / boxes[:, 2]) / math.log(4 / 3)
    share = boxes[:, 2] * boxes[:, 3] / 9e6
    for values, low, high in ((log_aspect, -1, 1), (share, 0.1, 0.3)):
        counts, _ = np.histogram(values, bins=8, range=(low, high))
        assert counts.sum() >= 3990
        assert counts.min() > 400  # 500 expected, standard deviation 21
        assert counts.max() < 600


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(10, 1000, (0, 493, 10, 13)), (1000, 10, (493, 0, 13, 10)), (100, 100, (0, 0, 100, 100))],
)
def test_when_nothing_fits_the_central_crop_is_clipped_to_the_ratio(height, width, expected):
    box = random_resized_crop_box(height, width, np.random.default_rng(0), scale=(1.5, 2.0))
    assert box == expected


# --- resizing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((10, 20, 300, 320), (224, 224)),
        ((0, 0, 375, 500), (224, 224)),
        ((100, 100, 60, 80), (224, 224)),
        ((5, 5, 30, 400), (96, 160)),
        ((0, 0, 375, 500), (224, 298)),
        ((7, 7, 1, 1), (16, 16)),
        ((374, 0, 1, 500), (3, 40)),
    ],
)
def test_both_resizers_give_the_same_pixels_to_a_fraction_of_a_grey_level(box, size):
    image = picture(375, 500)
    slow, fast = (resize_crop(image, box, size, backend).astype(int) for backend in ("pillow", "torch"))
    assert slow.shape == fast.shape == (*size, 3)
    difference = np.abs(slow - fast)
    assert difference.mean() < 0.05
    assert difference.max() <= 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_crop_of_the_size_turned_by_a_quarter_is_resized(backend):
    assert resize_crop(picture(40, 60), (0, 0, 24, 32), (32, 24), backend).shape == (32, 24, 3)


def test_rows_are_resized_before_columns_in_every_version_of_pillow():
    # The numbers are what Pillow 12.3 returns for this picture from a single call of resize; 13.0 differs.
    noise = np.random.default_rng(0).integers(0, 256, (40, 6, 3), dtype=np.uint8)
    pixels = resize_crop(noise, (0, 0, 40, 6), (3, 9), "pillow")
    assert pixels[:, :, 0].tolist() == [
        [137, 132, 123, 113, 117, 131, 150, 137, 121],
        [122, 119, 119, 129, 130, 124, 116, 106, 99],
        [118, 117, 120, 131, 135, 136, 142, 126, 110],
    ]


@pytest.mark.parametrize("backend", BACKENDS)
def test_pixels_outside_of_the_crop_do_not_bleed_in(backend):
    image = picture(64, 64)
    image[20:40, 10:50] = 77
    assert (resize_crop(image, (20, 10, 20, 40), (13, 29), backend) == 77).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_downscaling_is_antialiased(backend):
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255  # sampling without a filter would return all black, or all white
    inner = resize_crop(stripes, (0, 0, 64, 64), (16, 16), backend)[:, 2:-2].astype(int)
    assert np.abs(inner - 128).max() <= 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_overshoot_is_clipped_and_does_not_wrap(backend):
    edge = np.zeros((8, 8, 3), np.uint8)
    edge[:, 4:] = 255
    wide = resize_crop(edge, (0, 0, 8, 8), (8, 64), backend)
    assert (np.diff(wide[0, :, 0].astype(int)) >= 0).all()
    assert (wide[:, :8] == 0).all()
    assert (wide[:, -8:] == 255).all()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", BACKENDS)
def test_read_only_and_strided_pictures_are_welcome(backend):
    image = picture(40, 60)
    expected = resize_crop(image, (3, 0, 30, 60), (16, 16), backend)
    image.flags.writeable = False
    torch.set_warn_always(True)  # otherwise torch warns of read-only memory once a process
    try:
        np.testing.assert_array_equal(resize_crop(image, (3, 0, 30, 60), (16, 16), backend), expected)
    finally:
        torch.set_warn_always(False)
    padded = np.zeros((80, 120, 3), np.uint8)
    padded[::2, ::2] = image
    np.testing.assert_array_equal(resize_crop(padded[::2, ::2], (3, 0, 30, 60), (16, 16), backend), expected)


@pytest.mark.parametrize("box", [(0, 0, 41, 60), (0, 0, 40, 61), (-1, 0, 5, 5), (0, 0, 0, 5), (39, 0, 2, 5)])
def test_boxes_that_are_not_inside_are_refused(box):
    with pytest.raises(ValueError, match="crop"):
        resize_crop(picture(40, 60), box, (8, 8))


# --- training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_training_picture_is_the_crop_resized_and_perhaps_mirrored(backend):
    image = picture(90, 120)
    seen = set()
    for seed in range(12):
        rng = np.random.default_rng(seed)
        box = random_resized_crop_box(90, 120, rng)
        mirrored = bool(rng.random() < 0.5)
        expected = resize_crop(image, box, (32, 48), backend)
        expected = expected[:, ::-1] if mirrored else expected
        result = TrainTransform(size=(32, 48), backend=backend)(image, np.random.default_rng(seed))
        np.testing.assert_array_equal(result.numpy(), expected.transpose(2, 0, 1))
        seen.add(mirrored)
    assert seen == {True, False}


def test_the_training_tensor_is_contiguous_uint8_and_owns_its_memory():
    image = picture(32, 32)
    whole = TrainTransform(size=32, scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=0.0)
    result = whole(image, np.random.default_rng(0))  # nothing to crop, resize or flip: still a copy
    assert (result.dtype, tuple(result.shape), result.is_contiguous()) == (torch.uint8, (3, 32, 32), True)
    np.testing.assert_array_equal(result.numpy(), image.transpose(2, 0, 1))
    before = result.clone()
    image[:] = 0
    assert torch.equal(result, before)


def test_the_same_generator_state_gives_the_same_tensor_and_another_another():
    image, transform = picture(60, 80), TrainTransform(size=24)
    state = torch.random.get_rng_state()
    first, again, other = (transform(image, np.random.default_rng(seed)) for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}, {"progressive": True}], ids=str)
def test_a_file_gives_the_tensor_of_its_picture(options: dict):
    stream = io.BytesIO()
    Image.fromarray(picture(90, 70)).save(stream, "JPEG", **options)
    data, transform = stream.getvalue(), TrainTransform(size=24, scale=(0.08, 1.0))
    for seed in range(40):
        expected = transform(decode_image(data), np.random.default_rng(seed))
        for decoder in ("auto", "pillow"):
            result = transform.decode(data, np.random.default_rng(seed), decoder=decoder)
            assert torch.equal(result, expected)
    with pytest.raises(ImageDecodeError, match=r"cat\.jpg: the file is empty"):
        transform.decode(b"", np.random.default_rng(0), key="cat.jpg")


def test_half_of_the_pictures_are_mirrored():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, 4:] = 255
    whole = TrainTransform(size=8, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    rng = np.random.default_rng(0)
    mirrored = sum(int(whole(image, rng)[0, 0, 0] == 255) for _ in range(1000))
    assert 430 < mirrored < 570
    for probability, expected in ((0.0, 0), (1.0, 255)):
        transform = dataclasses.replace(whole, hflip=probability)
        assert {int(transform(image, rng)[0, 0, 0]) for _ in range(50)} == {expected}


# --- evaluation -----------------------------------------------------------------------------------------------

# (height, width) whose resized sides exceed the crop by anything but 3 modulo 4: there both rules agree.
AGREEING_SIZES = [(375, 500), (500, 375), (224, 224), (100, 100), (30, 41), (64, 33), (257, 301), (480, 640)]


@pytest.mark.parametrize(("height", "width"), AGREEING_SIZES)
def test_evaluation_equals_the_stock_bit_processor_exactly(height, width):
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    image = picture(height, width)
    processor = BitImageProcessorPil(image_mean=IMAGENET_MEAN, image_std=IMAGENET_STD)
    expected = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
    pixels = EvalTransform()(image)
    assert (pixels.dtype, pixels.is_contiguous()) == (torch.uint8, True)
    assert torch.equal(denormalize(expected), pixels)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    stock_arithmetic = torch.from_numpy(pixels.numpy() * (1 / 255)).float()
    assert torch.equal((stock_arithmetic - mean) / std, expected)
    torch.testing.assert_close(normalize(pixels), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (61, 40), (48, 48), (48, 90)])
def test_square_evaluation_equals_the_stock_vit_processor_exactly(height, width):
    image = picture(height, width)
    processor = square_image_processor_of(MawsViTConfig(image_size=48))
    expected = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
    found = EvalTransform(48, "square")(image)
    # Pillow 13 resizes the columns of some pictures first: see resize_crop.
    other_order = height > width and int(PIL.__version__.split(".")[0]) >= 13
    torch.testing.assert_close(found, denormalize(expected), rtol=0, atol=15 if other_order else 0)


STATISTICS = {"image_mean": (0.1, 0.2, 0.3), "image_std": (0.5, 0.6, 0.7)}


@pytest.mark.parametrize("resize", [None, 64])
@pytest.mark.parametrize("size", [(48, 48), (32, 48), (48, 32)])
def test_the_processor_of_a_model_is_its_evaluation(size, resize):
    processor = image_processor_of(MawsViTConfig(image_size=size, **STATISTICS), resize)
    for image in (picture(96, 104), picture(104, 96)):
        found = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
        assert torch.equal(denormalize(found, *STATISTICS.values()), EvalTransform(size, resize)(image))


@pytest.mark.parametrize("size", [(32, 48), (48, 32)])
def test_the_processor_of_a_classifier_squeezes_the_whole_picture(size):
    processor = square_image_processor_of(MawsViTConfig(image_size=size, **STATISTICS))
    image = picture(96, 104)
    found = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(denormalize(found, *STATISTICS.values()), EvalTransform(size, "square")(image))


def test_a_training_crop_is_augmented_by_the_same_generator():
    drawn = []

    def augment(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        drawn.append(rng.random())
        return 255 - pixels

    image = picture(60, 80)
    plain = TrainTransform(32, hflip=0)(image, np.random.default_rng(5))
    augmented = TrainTransform(32, hflip=0, augment=augment)(image, np.random.default_rng(5))
    assert torch.equal(augmented, 255 - plain)
    TrainTransform(32, hflip=0, augment=augment)(image, np.random.default_rng(5))
    assert drawn[0] == drawn[1]


def marked(height: int, width: int) -> np.ndarray:
    """Red is the row, green the column: a crop shows where it was cut."""
    image = np.zeros((height, width, 3), np.uint8)
    image[:, :, 0] = np.arange(height)[:, None]
    image[:, :, 1] = np.arange(width)
    return image


@pytest.mark.parametrize(("excess", "start"), [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (6, 3), (7, 4), (8, 4)])
def test_the_centre_crop_rounds_halves_to_even_like_torchvision(excess, start):
    pixels = EvalTransform(size=20, resize=20)(marked(20, 20 + excess))
    assert pixels[1, 0].tolist() == list(range(start, start + 20))
    pixels = EvalTransform(size=20, resize=20)(marked(20 + excess, 20))
    assert pixels[0, :, 0].tolist() == list(range(start, start + 20))


def test_the_longer_edge_is_truncated_not_rounded(monkeypatch):
    sizes = []
    resize = Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda self, size, *a: sizes.append(size) or resize(self, size, *a))
    for height, width in ((375, 500), (500, 375), (3, 5)):
        EvalTransform()(picture(height, width))
    assert sizes[1::2] == [(298, 224), (224, 298), (373, 224)]  # 298.67, 298.67, 373.33


def test_mae_evaluation_resizes_to_256_first():
    image = picture(300, 400)
    wide = Image.fromarray(image).resize((341, 256), Image.Resampling.BICUBIC)
    expected = np.asarray(wide)[16:240, 58:282].transpose(2, 0, 1)
    np.testing.assert_array_equal(EvalTransform(size=224, resize=256)(image).numpy(), expected)


def test_a_picture_smaller_than_the_crop_is_padded_with_black():
    pixels = EvalTransform(size=9, resize=4)(np.full((4, 10, 3), 200, np.uint8))
    assert pixels[0, :, 4].tolist() == [0, 0, 200, 200, 200, 200, 0, 0, 0]
    assert (pixels[:, 2:6] == 200).all()
    pixels = EvalTransform(size=7, resize=4)(np.full((4, 4, 3), 200, np.uint8))
    assert pixels[0, 1].tolist() == [0, 200, 200, 200, 200, 0, 0]


def test_evaluation_with_torch_stays_within_two_grey_levels():
    exact, fast = (EvalTransform(backend=b)(picture(375, 500)).int() for b in ("pillow", "torch"))
    assert (exact - fast).abs().max() <= 2
    assert (exact - fast).abs().float().mean() < 0.05


# --- normalisation --------------------------------------------------------------------------------------------


def test_normalize_and_denormalize_are_inverse_on_every_grey_level():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    normalized = normalize(levels)
    assert normalized.dtype == torch.float32
    assert torch.equal(denormalize(normalized), levels)
    hand = [(255 / 255 - m) / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)]
    torch.testing.assert_close(normalized[0, :, 15, 15], torch.tensor(hand), rtol=0, atol=1e-6)
    assert denormalize(torch.full((3, 1, 1), 99.0)).unique().tolist() == [255]
    assert denormalize(torch.full((3, 1, 1), -99.0)).unique().tolist() == [0]


def test_normalize_refuses_what_may_already_be_scaled():
    for wrong in (torch.zeros(3, 4, 4), torch.zeros(4, 4, 3, dtype=torch.uint8), torch.zeros(3, 4, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="expected uint8"):
            normalize(wrong)
    with pytest.raises(ValueError, match="expected float"):
        denormalize(torch.zeros(3, 4, 4, dtype=torch.uint8))


# --- wrong input ----------------------------------------------------------------------------------------------

WRONG = {
    "no rows": np.zeros((0, 5, 3), np.uint8),
    "no columns": np.zeros((5, 0, 3), np.uint8),
    "two dimensions": np.zeros((5, 5), np.uint8),
    "batch": np.zeros((2, 5, 5, 3), np.uint8),
    "rgba": np.zeros((5, 5, 4), np.uint8),
    "grey": np.zeros((5, 5, 1), np.uint8),
    "channels first": np.zeros((3, 5, 5), np.uint8),
    "float 0 to 255": np.full((5, 5, 3), 200.0),
    "nan": np.full((5, 5, 3), np.nan, np.float32),
    "int64": np.zeros((5, 5, 3), np.int64),
}


@pytest.mark.parametrize("image", WRONG.values(), ids=WRONG)
def test_wrong_arrays_are_refused_in_one_line_with_shape_and_dtype(image):
    calls = (lambda: TrainTransform()(image, np.random.default_rng(0)), lambda: EvalTransform()(image))
    for call in calls:
        with pytest.raises(ValueError) as caught:
            call()
        message = str(caught.value)
        assert str(image.shape) in message
        assert str(image.dtype) in message
        assert "expected uint8 (height, width, 3)" in message
        assert "\n" not in message


def test_other_objects_are_refused():
    for wrong in (Image.new("RGB", (5, 5)), torch.zeros(5, 5, 3, dtype=torch.uint8), "cat.jpg", None):
        with pytest.raises(ValueError, match="expected a uint8 array"):
            EvalTransform()(wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"size": (224, 0)},
        {"scale": (0.0, 1.0)},
        {"scale": (0.5, 0.2)},
        {"scale": (0.2, 1.1)},
        {"ratio": (0.0, 1.0)},
        {"ratio": (2.0, 1.0)},
        {"hflip": 1.5},
        {"backend": "opencv"},
    ],
    ids=str,
)
def test_impossible_training_settings_are_refused_at_construction(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainTransform(**wrong)


@pytest.mark.parametrize("wrong", [{"size": 0}, {"resize": 0}, {"resize": "squash"}, {"backend": "opencv"}], ids=str)
def test_impossible_evaluation_settings_are_refused_at_construction(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EvalTransform(**wrong)
