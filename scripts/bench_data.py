"""How many training pictures per second one core decodes, crops and resizes: ours against Pillow's way.

    python scripts/bench_data.py
    python scripts/bench_data.py --rounds 9 --pictures 32

Every row starts from the same JPEG bytes and the same crop boxes and ends with a tensor (3, 224, 224). There are two
baselines: the usual chain of Pillow calls, which ends with normalised floats, and the same chain stopped at uint8,
which does exactly the work that ours does. Rounds are interleaved, so that a busy machine slows all of them alike;
ratios are taken round by round. Times are CPU seconds of this process, with one thread.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from maws_hf.processing import TrainTransform, decode_image, normalize, random_resized_crop_box

SIZE = 224
# (height, width, JPEG quality): an ImageNet picture, a larger original, an offline-resized one.
SOURCES = [(375, 500, 96), (768, 1024, 85), (256, 340, 90)]

Pipeline = Callable[[bytes, np.random.Generator], torch.Tensor]


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    print(f"{args.pictures} pictures a round, {args.rounds} interleaved rounds, torch {torch.__version__}, 1 thread")
    print("ratios of pictures per CPU second: median (min to max) over the rounds\n")
    for height, width, quality in SOURCES:
        files = [synthetic_jpeg(height, width, quality, seed) for seed in range(args.pictures)]
        kilobytes = statistics.mean(map(len, files)) / 1000
        title = f"{width} x {height}, quality {quality}, {kilobytes:.0f} kB"
        print(f"{title:32s} {'pictures':>8s}   {'to Pillow uint8':22s} {'to Pillow float':22s}")
        print_table(interleaved_seconds(files, args.rounds), args.pictures)
        difference = mean_difference(files)
        print(f"  mean |difference| to Pillow: {difference:.4f} grey levels\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Pictures per second and core, JPEG bytes to a uint8 crop, against Pillow."
    )
    parser.add_argument("--pictures", type=int, default=24, help="pictures a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="interleaved rounds (default: %(default)s)")
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


def ours(decode: str, resize: str) -> Pipeline:
    transform = TrainTransform(SIZE, backend=resize)
    return lambda data, rng: transform(decode_image(data, backend=decode), rng)


PIPELINES: dict[str, Pipeline] = {
    "Pillow, float": pillow_to_float,
    "Pillow, uint8": plain_pillow,
    "maws_hf, pillow + pillow": ours("pillow", "pillow"),
    "maws_hf, pillow + torch": ours("pillow", "torch"),
    "maws_hf, simplejpeg + pillow": ours("simplejpeg", "pillow"),
    "maws_hf, simplejpeg + torch": ours("simplejpeg", "torch"),
}


def interleaved_seconds(files: list[bytes], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in PIPELINES}
    for number in range(-1, rounds):  # the first round warms caches up and is not counted
        for name, pipeline in PIPELINES.items():
            start = time.process_time()
            for index, data in enumerate(files):
                pipeline(data, np.random.default_rng((number + 1, index)))
            if number >= 0:
                seconds[name].append(time.process_time() - start)
    return seconds


def print_table(seconds: dict[str, list[float]], pictures: int) -> None:
    for name, times in seconds.items():
        rate = pictures / statistics.median(times)
        columns = [spread(seconds[baseline], times) for baseline in ("Pillow, uint8", "Pillow, float")]
        print(f"  {name:30s} {rate:6.0f} /s   {columns[0]:22s} {columns[1]:22s}")


def spread(baseline: list[float], times: list[float]) -> str:
    ratios = [slow / fast for slow, fast in zip(baseline, times, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def mean_difference(files: list[bytes]) -> float:
    """Between the fastest pipeline and Pillow, over the same crops."""
    slow, fast = PIPELINES["Pillow, uint8"], PIPELINES["maws_hf, simplejpeg + torch"]
    differences = []
    for index, data in enumerate(files):
        slow_pixels, fast_pixels = (p(data, np.random.default_rng(index)).float() for p in (slow, fast))
        differences.append((slow_pixels - fast_pixels).abs().mean().item())
    return statistics.mean(differences)


if __name__ == "__main__":
    main()
