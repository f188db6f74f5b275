"""How many training pictures per second one core decodes, crops and resizes: ours against Pillow and torchvision.

    OMP_NUM_THREADS=1 python scripts/bench_data.py
    python scripts/bench_data.py --rounds 9 --pictures 32

Every row starts from the same JPEG bytes and the same crop boxes and ends with a tensor (3, 224, 224). The reference
is Pillow's decoder with torchvision's transforms v2 on its pictures, up to normalised floats, which a usual training
script computes in its workers; ours leaves that to the model. The same chains stopped at uint8, and with Pillow's own
calls in place of torchvision's, do exactly the work that ours does. Rows take turns; ratios are taken round by round.
Times are CPU seconds of this process, with one thread. Without torchvision its rows are left out.
"""

from __future__ import annotations

import argparse
import io
import itertools
import statistics
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import torch
from peers import import_torchvision
from PIL import Image
from side_by_side import describe_machine, markdown_table, positive, take_turns

from maws_hf.processing import TrainTransform, decode_image, normalize, random_resized_crop_box
from maws_hf.processing.transforms import IMAGENET_MEAN, IMAGENET_STD

SIZE = 224
# (height, width, JPEG quality): an ImageNet picture, a larger original, an offline-resized one.
SOURCES = [(375, 500, 96), (768, 1024, 85), (256, 340, 90)]

Pipeline = Callable[[bytes, np.random.Generator], torch.Tensor]


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    pipelines = all_pipelines()
    print(describe_machine())
    print(f"{args.pictures} pictures a round, {args.rounds} rounds in turns")
    print("ratios of pictures per CPU second: median (min to max) over the rounds")
    for height, width, quality in SOURCES:
        files = [synthetic_jpeg(height, width, quality, seed) for seed in range(args.pictures)]
        kilobytes = statistics.mean(map(len, files)) / 1000
        print(f"\n{width} x {height}, quality {quality}, {kilobytes:.0f} kB\n")
        forms = {name: all_of(pipeline, files) for name, pipeline in pipelines.items()}
        seconds, _ = take_turns(forms, args.rounds)
        print(table_of(seconds, args.pictures))
        for name in (REFERENCE_PIXELS, "Pillow, uint8"):
            if name in pipelines:
                difference = mean_difference(files, pipelines[name], pipelines[FASTEST])
                print(f"\nmean |difference| of {FASTEST} to {name}: {difference:.4f} grey levels of 255")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Pictures per second and core, JPEG bytes to a uint8 crop, against Pillow."
    )
    parser.add_argument("--pictures", type=positive, default=24, help="pictures a round (default: %(default)s)")
    parser.add_argument("--rounds", type=positive, default=7, help="interleaved rounds (default: %(default)s)")
    return parser.parse_args()


def synthetic_jpeg(height: int, width: int, quality: int, seed: int) -> bytes:
    """Waves at several scales plus grain: as many bytes per pixel as photographs of the same quality."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    picture = np.full((height, width, 3), 128.0, np.float32)
    for period in (200, 60, 20, 7):
        angle, phase = rng.uniform(0, 2 * np.pi, 2)
        wave = np.sin((np.cos(angle) * x + np.sin(angle) * y) * 2 * np.pi / period + phase)
        picture += wave[:, :, None] * rng.uniform(5, 30, 3)
    picture += rng.normal(0, 4, (height, width, 1)) + rng.normal(0, 1.5, (height, width, 3))
    stream = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=quality)
    return stream.getvalue()


def plain_pillow(data: bytes, rng: np.random.Generator) -> torch.Tensor:
    """What most training scripts do: open, convert, crop, resize, mirror, to a tensor."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    top, left, height, width = random_resized_crop_box(image.height, image.width, rng)
    crop = image.crop((left, top, left + width, top + height)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous()


def pillow_to_float(data: bytes, rng: np.random.Generator) -> torch.Tensor:
    """The same, normalised by the worker."""
    return normalize(plain_pillow(data, rng))


def ours(decoder: str, resize: str) -> Pipeline:
    return partial(TrainTransform(SIZE, backend=resize).decode, decoder=decoder)


def ours_decoding_whole(data: bytes, rng: np.random.Generator) -> torch.Tensor:
    """Without what `decode_crop` saves."""
    return TrainTransform(SIZE)(decode_image(data), rng)


def torchvision_pipeline(normalized: bool) -> Pipeline:
    """The reference: Pillow decodes, torchvision's transforms v2 do the rest on Pillow's picture.

    Raises:
        SystemExit: torchvision is not installed.
    """
    import_torchvision()
    from torchvision.transforms import v2

    convert = [v2.ToImage()]
    if normalized:
        convert += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    to_tensor = v2.Compose(convert)

    def pipeline(data: bytes, rng: np.random.Generator) -> torch.Tensor:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        box = random_resized_crop_box(image.height, image.width, rng)  # RandomResizedCrop would draw another one
        crop = v2.functional.resized_crop(image, *box, [SIZE, SIZE], v2.InterpolationMode.BICUBIC, antialias=True)
        if rng.random() < 0.5:
            crop = v2.functional.horizontal_flip(crop)
        return to_tensor(crop)

    return pipeline


REFERENCE, REFERENCE_PIXELS = "Pillow + torchvision v2, float", "Pillow + torchvision v2, uint8"
FASTEST = "maws_hf, simplejpeg + torch"


def all_pipelines() -> dict[str, Pipeline]:
    """By name, references first."""
    pipelines: dict[str, Pipeline] = {}
    try:
        pipelines[REFERENCE] = torchvision_pipeline(normalized=True)
        pipelines[REFERENCE_PIXELS] = torchvision_pipeline(normalized=False)
    except SystemExit as missing:
        print(missing)
    return pipelines | {
        "Pillow, float": pillow_to_float,
        "Pillow, uint8": plain_pillow,
        "maws_hf, pillow + pillow": ours("pillow", "pillow"),
        "maws_hf, pillow + torch": ours("pillow", "torch"),
        "maws_hf, simplejpeg + pillow": ours("simplejpeg", "pillow"),
        "maws_hf, whole pictures decoded": ours_decoding_whole,
        FASTEST: ours("simplejpeg", "torch"),
    }


def all_of(pipeline: Pipeline, files: list[bytes]) -> Callable[[], None]:
    """One round: all files, with crops that are the same for each pipeline and others in each round."""
    rounds = itertools.count()

    def run() -> None:
        number = next(rounds)
        for index, data in enumerate(files):
            pipeline(data, np.random.default_rng((number, index)))

    return run


def table_of(seconds: Mapping[str, list[float]], pictures: int) -> str:
    baselines = [name for name in (REFERENCE, "Pillow, float", "Pillow, uint8") if name in seconds]
    rows = [
        [
            name,
            f"{pictures / statistics.median(times):.0f}",
            *(spread(seconds[baseline], times) for baseline in baselines),
        ]
        for name, times in seconds.items()
    ]
    return markdown_table(["pipeline", "pictures/s", *(f"to {name}" for name in baselines)], rows)


def spread(baseline: list[float], times: list[float]) -> str:
    ratios = [slow / fast for slow, fast in zip(baseline, times, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def mean_difference(files: list[bytes], reference: Pipeline, fast: Pipeline) -> float:
    """In grey levels, over the same crops."""
    differences = []
    for index, data in enumerate(files):
        slow_pixels, fast_pixels = (p(data, np.random.default_rng(index)).float() for p in (reference, fast))
        differences.append((slow_pixels - fast_pixels).abs().mean().item())
    return statistics.mean(differences)


if __name__ == "__main__":
    main()
