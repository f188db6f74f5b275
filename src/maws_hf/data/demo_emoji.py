"""The emoji corpus: 1,914 concepts drawn in six styles, with hashtags and names in 100 languages.

It has what web-scale weakly supervised data has, in small: noisy long-tailed tags, captions in many languages, and a
real shift between training and test pictures. `train` holds five renderings of nine tenths of the concepts; `test`
the same concepts in a sixth, 3-D rendering never trained on; `unseen` the other concepts in all six.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from ..whole_files import write_atomically
from .corpus import (
    CorpusError,
    CorpusReport,
    Shard,
    check_counts,
    deal_shards,
    demo_dependency,
    finished_report,
    write_corpus,
)
from .demo_emoji_concepts import GROUPS, HELD_OUT_RENDERING, SVG_RENDERINGS, Picture, is_held_out, read_pictures
from .demo_emoji_sources import PACKAGES, default_sources_dir, fetch_sources

RENDERINGS = (*SVG_RENDERINGS, HELD_OUT_RENDERING)
SHARDS = {"train": 8, "test": 2, "unseen": 1}
PREVIEW_CONCEPTS = 12

# Part of the recipe: raise it with any change to rows, splits or drawing, so that older corpora are not taken for
# new ones.
RULES = 2

# Counted once from the pinned packages.
EXPECTED_COUNTS = {
    "concepts": 1914,
    "concepts with a group": 1914,
    "held-out concepts": 186,
    "languages": 100,
    "noto pictures": 1652,
    "noto-v1 pictures": 1218,
    "twemoji pictures": 1914,
    "emojione pictures": 1366,
    "fluent-flat pictures": 1594,
    "fluent-3d pictures": 1852,
}

CARD = """---
pretty_name: Emoji in six renderings
license: other
license_name: mixed
configs:
- config_name: default
  version: <version>
  data_files:
  - split: train
    path: data/train-*.parquet
  - split: test
    path: data/test-*.parquet
  - split: unseen
    path: data/unseen-*.parquet
---

# Emoji in six renderings

Built by `maws-hf demo-data emoji`. Five renderings to train on; `test` shows the same concepts in a rendering never
trained on ({held_out}); `unseen` holds one concept family in ten, in every rendering.

| column | what it is |
|---|---|
| image | PNG, {size} x {size} pixels, on white |
| concept | code points of the emoji, without U+FE0F |
| name | its English name |
| group | one of Unicode's nine groups of emoji |
| rendering | who drew it |
| tags | its English keywords: the hashtags |
| captions | its name in up to 100 languages, English first |
| split | train, test or unseen |

## Licences

{sources}
"""


def build_emoji_corpus(
    output_dir: str | Path,
    *,
    image_size: int = 64,
    sources_dir: str | Path | None = None,
    expected_counts: Mapping[str, int] | None = EXPECTED_COUNTS,
) -> CorpusReport:
    """Fetch the pinned packages, render every emoji, and write the corpus to `output_dir`.

    The result depends on the arguments and the versions of the packages only; running it again verifies what is
    there, repairs what is damaged and goes on where a killed run stopped. Print the report to show counts, licences
    and attributions.

    Args:
        output_dir: gets `data/*.parquet`, `README.md`, `manifest.json` and `preview.png`.
        image_size: side of the square pictures in pixels, 16 to 512.
        sources_dir: where the npm packages lie or are installed; by default in the user's cache
            (`maws_hf/emoji-sources`). With the packages there no network is needed.
        expected_counts: what the packages must hold (`EXPECTED_COUNTS`); None for packages of your own.

    Raises:
        CorpusError: something needed is missing, counts are off, or `output_dir` holds something else.
        ValueError: `image_size` is out of range.
    """
    if not 16 <= image_size <= 512:
        raise ValueError(f"image_size={image_size} is out of range: use 16 to 512 pixels, as in --image_size 64.")
    output_dir = Path(output_dir).expanduser()
    recipe = {
        "rules": RULES,
        "image_size": image_size,
        "packages": {package.name: package.version for package in PACKAGES},
    }
    if report := finished_report(output_dir, "emoji", recipe, PACKAGES):
        return report
    demo_dependency("resvg_py")

    modules = fetch_sources(Path(sources_dir).expanduser() if sources_dir else default_sources_dir())
    pictures = read_pictures(modules)
    check_counts("emoji", expected_counts, _counts(pictures))
    write_preview(output_dir / "preview.png", pictures, image_size)
    return write_corpus(
        output_dir,
        name="emoji",
        recipe=recipe,
        features=emoji_features(),
        shards=_shards(pictures),
        row=lambda picture: _row(picture, image_size),
        group=lambda picture: picture.rendering,
        card=_card(image_size),
        sources=PACKAGES,
        # Small enough to stream cheaply; large enough that names repeat within a group, which makes them nearly free.
        row_group_size=250,
    )


def emoji_features() -> Any:
    """The `datasets.Features` of a row."""
    datasets = demo_dependency("datasets")
    text = datasets.Value("string")
    return datasets.Features(
        {
            "image": datasets.Image(),
            "concept": text,
            "name": text,
            "group": datasets.ClassLabel(names=GROUPS),
            "rendering": text,
            "tags": datasets.List(text),
            "captions": datasets.List({"language": text, "text": text}),
            "split": text,
        }
    )


def split_of(picture: Picture) -> str:
    """`unseen` for a held-out concept, `test` for a seen one in the held-out rendering, `train` otherwise."""
    if is_held_out(picture.concept.key):
        return "unseen"
    return "test" if picture.rendering == HELD_OUT_RENDERING else "train"


def render(picture: Picture, size: int) -> Image.Image:
    """The picture, RGB `size x size` on white; other aspect ratios are centred.

    Raises:
        CorpusError: the drawing cannot be rendered; names the emoji.
    """
    try:
        if picture.svg is not None:
            resvg_py = demo_dependency("resvg_py")
            # No system fonts: what is installed on a machine must not change a pixel.
            png = resvg_py.svg_to_bytes(
                svg_string=picture.svg, width=size, height=size, background="#ffffff", skip_system_fonts=True
            )
            drawing = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
        else:
            with Image.open(picture.file, formats=("WEBP",)) as file:
                drawing = file.convert("RGBA")
            drawing.thumbnail((size, size), Image.Resampling.LANCZOS)
    except (OSError, ValueError) as error:
        where = f"{_file_name(picture)} ({picture.concept.name})"
        raise CorpusError(f"{where} cannot be rendered: {error}; delete the sources and run again.") from error
    canvas = Image.new("RGBA", (size, size), "white")
    canvas.alpha_composite(drawing, ((size - drawing.width) // 2, (size - drawing.height) // 2))
    return canvas.convert("RGB")


def write_preview(path: Path, pictures: list[Picture], size: int) -> None:
    """A contact sheet to look at: some concepts that every set draws, one a row, one rendering a column."""
    drawn: dict[str, dict[str, Picture]] = {}
    for picture in pictures:
        drawn.setdefault(picture.concept.key, {})[picture.rendering] = picture
    complete = [key for key, by_rendering in sorted(drawn.items()) if len(by_rendering) == len(RENDERINGS)]
    shown = sorted(complete or drawn, key=_shuffle_key)[:PREVIEW_CONCEPTS]

    margin, heading, names = 8, 20, 190
    cell = size + margin
    sheet = Image.new("RGB", (names + cell * len(RENDERINGS), heading + cell * len(shown)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, rendering in enumerate(RENDERINGS):
        pen.text((names + column * cell, 4), rendering, "black", font)
    for line, key in enumerate(shown):
        top = heading + line * cell
        name = next(iter(drawn[key].values())).concept.name
        pen.text((margin, top + size // 2 - 6), name[:30], "black", font)
        for column, rendering in enumerate(RENDERINGS):
            if rendering in drawn[key]:
                sheet.paste(render(drawn[key][rendering], size), (names + column * cell, top))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, _png(sheet))


def _shards(pictures: list[Picture]) -> list[Shard]:
    by_split: dict[str, list[Picture]] = {split: [] for split in SHARDS}
    # Shuffled by digest, not by a seed: neighbours are unrelated, shards alike, and no library's generator is
    # involved.
    for picture in sorted(pictures, key=lambda p: _shuffle_key(_file_name(p))):
        by_split[split_of(picture)].append(picture)
    return [shard for split, count in SHARDS.items() for shard in deal_shards(split, by_split[split], count)]


def _row(picture: Picture, image_size: int) -> dict[str, Any]:
    concept = picture.concept
    return {
        "image": {"bytes": _png(render(picture, image_size)), "path": _file_name(picture)},
        "concept": concept.key,
        "name": concept.name,
        "group": None if concept.group is None else GROUPS.index(concept.group),
        "rendering": picture.rendering,
        "tags": list(concept.tags),
        "captions": [{"language": language, "text": text} for language, text in concept.captions],
        "split": split_of(picture),
    }


def _counts(pictures: list[Picture]) -> dict[str, int]:
    concepts = {picture.concept.key: picture.concept for picture in pictures}
    drawn = Counter(f"{picture.rendering} pictures" for picture in pictures)
    languages = {language for concept in concepts.values() for language, _ in concept.captions}
    held_out = sum(map(is_held_out, concepts))
    grouped = sum(concept.group is not None for concept in concepts.values())
    return {
        "concepts": len(concepts),
        "concepts with a group": grouped,
        "held-out concepts": held_out,
        "languages": len(languages),
        **drawn,
    }


def _card(image_size: int) -> str:
    sources = "\n".join(f"- {p.name} {p.version}: {p.licence}. {p.attribution}" for p in PACKAGES)
    return CARD.format(size=image_size, held_out=HELD_OUT_RENDERING, sources=sources)


def _file_name(picture: Picture) -> str:
    return f"{picture.rendering}/{picture.concept.key}.png"


def _shuffle_key(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
