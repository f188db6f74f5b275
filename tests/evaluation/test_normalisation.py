"""What image processors say about pixels, in the words of mean and deviation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import EfficientNetImageProcessorPil, MobileViTImageProcessorPil, ViTImageProcessorPil

from maws_hf.evaluation.normalisation import statistics_of
from maws_hf.processing import normalize


@pytest.mark.parametrize("do_normalize", [True, False])
def test_normalising_by_them_is_what_the_processor_does(do_normalize: bool):
    options = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7], "do_normalize": do_normalize}
    processor = ViTImageProcessorPil(**options, do_resize=False)
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    expected = torch.as_tensor(processor(picture, return_tensors="pt")["pixel_values"][0])
    found = normalize(torch.from_numpy(picture).permute(2, 0, 1), *statistics_of(processor, "model"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_other_channels_and_other_scales_are_refused():
    with pytest.raises(ValueError, match="mobile wants its pictures in blue, green, red"):
        statistics_of(MobileViTImageProcessorPil(), "mobile")
    for options in ({"do_rescale": False}, {"rescale_factor": 1 / 127.5}):
        with pytest.raises(ValueError, match="large wants pixels of another range"):
            statistics_of(ViTImageProcessorPil(**options), "large")
    with pytest.raises(ValueError, match="efficient also shifts its pixels, or scales them twice"):
        statistics_of(EfficientNetImageProcessorPil(), "efficient")
    with pytest.raises(ValueError, match="shifted also shifts its pixels"):
        statistics_of(EfficientNetImageProcessorPil(rescale_offset=True, include_top=False), "shifted")


def test_a_processor_that_keeps_its_numbers_elsewhere_is_not_taken_for_none():
    timm = SimpleNamespace(data_config={"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7)})
    assert statistics_of(timm, "timm") == ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    with pytest.raises(ValueError, match="processor of other does not say whether it normalises"):
        statistics_of(SimpleNamespace(), "other")
