"""What image processors say about pixels, in the words of mean and deviation."""

import numpy as np
import pytest
import torch
from transformers import MobileViTImageProcessorPil, ViTImageProcessorPil

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
    with pytest.raises(ValueError, match="large wants pixels from 0 to 255"):
        statistics_of(ViTImageProcessorPil(do_rescale=False), "large")
