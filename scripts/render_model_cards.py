"""Writes `model_cards/`: one card for each released model, from the package's template and table.

python scripts/render_model_cards.py            # writes them
python scripts/render_model_cards.py --check    # only says which differ; exit code 1 if one does
"""

import argparse
import sys
from pathlib import Path

from maws_hf.hub.cards import card_for_release, parameters_of
from maws_hf.hub.released_models import RELEASED_MODELS
from maws_hf.whole_files import write_atomically

FOLDER = Path(__file__).parents[1] / "model_cards"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a file differs")
    check = parser.parse_args().check
    differing = []
    for file, text in files().items():
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            differing.append(file)
            if not check:
                write_atomically(file, text.encode())
    for file in differing:
        print(f"{'differs' if check else 'written'}: {file}")
    return 1 if check and differing else 0


def files() -> dict[Path, str]:
    """All of `model_cards/`, by path."""
    cards = {FOLDER / f"{name}.md": card_for_release(name) for name in RELEASED_MODELS}
    return {**cards, FOLDER / "README.md": overview()}


def overview() -> str:
    rows = []
    for model in RELEASED_MODELS.values():
        first = model.figures[0]
        rows.append(
            f"| [{model.name}]({model.name}.md) | {model.kind} | {parameters_of(model)} | {model.image_size} "
            f"| {model.data} | {first.value} ({first.setting}) | `{model.url.rsplit('/', 1)[-1]}` |"
        )
    table = "\n".join(rows)
    return f"""# Model cards

One card for each model that was released with the paper, as it is put beside the converted weights. They are rendered
from `src/maws_hf/hub/templates/model_card.md.j2` and the table in `src/maws_hf/hub/released_models.py` by
`python scripts/render_model_cards.py`; `maws-hf push` fills in checksums. The figure is top-1 on ImageNet-1k in %, as
published.

| card | kind | parameters | pixels | images of pretraining | figure | original file |
|---|---|---|---|---|---|---|
{table}
"""


if __name__ == "__main__":
    sys.exit(main())
