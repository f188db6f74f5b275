"""How fast one worker prepares images, and whether a data set opens and its images decode."""

import io
import math
import time
from collections.abc import Iterator
from itertools import islice

import numpy as np
from PIL import Image

from ..evaluation.flops import mae_training_flops, measure_matmul_peak
from ..models.configuration_maws_vit import MawsViTConfig
from ..processing.decode import ImageDecodeError
from ..processing.transforms import TrainTransform
from .health_findings import Finding
from .health_machine import the_device, usable_cores

_LOOKED_AT = 8  # images of a data set
_SHARE_OF_PEAK = 0.5  # of the matrix products' best rate, which a well-fed training reaches


def check_data_path(size: str, seconds: float = 0.5) -> Iterator[Finding]:
    """Decoding and cropping by one worker, against what MAE of that size would take on this device."""
    import torch

    rate = images_a_second(seconds)
    device = the_device()
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    try:
        peak = measure_matmul_peak(device, dtype, 0.2)
    except RuntimeError:  # which the check of products has told
        yield Finding("decoding", "ok", f"{rate:.0f} pictures of 500 x 375 a second and worker")
        return
    taken = (
        _SHARE_OF_PEAK * peak * max(1, torch.cuda.device_count()) / mae_training_flops(MawsViTConfig.from_size(size))
    )
    workers, cores = math.ceil(taken / rate), usable_cores()
    found = (
        f"{rate:.0f} pictures of 500 x 375 a second and worker; MAE of {size} takes up to {taken:.3g} here, "
        f"{workers} worker{'s' if workers != 1 else ''}"
    )
    if workers > cores:
        advice = "the processor cannot feed this device: store smaller pictures, or train a larger model"
        yield Finding("decoding", "warning", found, advice)
    else:
        yield Finding("decoding", "ok", found)


def images_a_second(seconds: float) -> float:
    """Of made-up photographs, decoded, cropped and resized to 224 pixels."""
    files, transform, rng = [_picture(seed) for seed in range(4)], TrainTransform(224), np.random.default_rng(0)
    for data in files:
        transform.decode(data, rng)  # whatever is loaded with the first
    done, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds or not done:
        transform.decode(files[done % len(files)], rng)
        done += 1
    return done / spent


def _picture(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize(
        (500, 375), Image.Resampling.BICUBIC
    )
    grain = rng.integers(0, 24, (375, 500, 3))
    stream = io.BytesIO()
    Image.fromarray(np.minimum(np.asarray(coarse) + grain, 255).astype(np.uint8)).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def check_dataset(name: str, split: str, image_column: str | None) -> Iterator[Finding]:
    """Opens the stream as a run would and decodes the first images."""
    from ..data.samples import KEY, prepare_image, sample_key
    from ..data.sources import find_image_column, open_stream

    try:
        dataset = open_stream(name, split=split, image_column=image_column)
        column = find_image_column(dataset, image_column)
        rows = list(islice(dataset, _LOOKED_AT))
    except Exception as error:  # a stream fails with whatever its storage does
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        yield Finding("data set", "fails", f"{name} cannot be read ({reason})", "see --dataset_name")
        return
    if not rows:
        yield Finding("data set", "fails", f"{name} has no rows in the split {split}", "see --dataset_split")
        return
    sides, bad = [], []
    for number, row in enumerate(rows):
        sample = {**row, KEY: sample_key(row) or f"row {number}"}
        try:
            prepare_image(sample, np.random.default_rng(0), image_column=column, transform=_noting(sides))
        except ImageDecodeError as error:
            bad.append(str(error))
        except Exception as error:  # of a column of something else, as in a run
            bad.append(f"row {number}: {' '.join(str(error).split())[:300] or type(error).__name__}")
    found = (
        f"{name}: {dataset.num_shards} shards, column {column}; {len(sides)} of the first {len(rows)} images decode"
    )
    if bad:
        status = "warning" if sides else "fails"
        yield Finding("data set", status, f"{found}; {bad[0]}", "see --image_column_name, and the data")
    else:
        yield Finding("data set", "ok", f"{found}, {min(sides)} to {max(sides)} pixels on the shorter side")


def _noting(sides: list[int]):
    def transform(pixels: np.ndarray, _: np.random.Generator) -> np.ndarray:
        sides.append(min(pixels.shape[:2]))
        return pixels

    return transform


__all__ = ["check_data_path", "check_dataset", "images_a_second"]
