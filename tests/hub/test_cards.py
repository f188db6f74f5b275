"""Model cards: as committed, complete, and their code was run."""

import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from tiny import draw_image, tiny_config

from maws_hf import MawsViTForImageClassification, MawsViTModel
from maws_hf.hub.cards import AT_RELEASE, card_for_release, card_for_run
from maws_hf.hub.released_models import RELEASED_MODELS
from maws_hf.processing.image_processors import square_image_processor_of
from maws_hf.training.ledger import Stage, write_ledger

ROOT = Path(__file__).parents[2]


def metadata_of(card: str) -> dict:
    return yaml.safe_load(card.split("---")[1])


def test_the_committed_cards_are_what_is_rendered():
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        from render_model_cards import files
    finally:
        sys.path.pop(0)
    rendered = files()
    assert set(rendered) == set((ROOT / "model_cards").iterdir())
    for file, text in rendered.items():
        assert file.read_text(encoding="utf-8") == text, f"python scripts/render_model_cards.py: {file.name} differs"


@pytest.mark.parametrize("name", RELEASED_MODELS)
def test_a_card_has_what_the_hub_and_a_reader_want(name):
    model, card = RELEASED_MODELS[name], card_for_release(name, f"someone/{name}")
    metadata = metadata_of(card)
    assert metadata["license"] == "cc-by-nc-4.0"
    assert metadata["library_name"] == "transformers"
    pipelines = {"classifier": "image-classification", "clip": "zero-shot-image-classification"}
    assert metadata["pipeline_tag"] == pipelines.get(model.kind, "image-feature-extraction")
    assert ("candidate_labels" in metadata["widget"][0]) is (model.kind == "clip")
    assert "arxiv:2303.13496" in metadata["tags"]
    if "base_model" in metadata:
        assert metadata["base_model"].removeprefix("someone/") in RELEASED_MODELS
    results = metadata["model-index"][0]["results"]
    assert [result["metrics"][0]["value"] for result in results] == [figure.value for figure in model.figures]
    assert [result["source"]["name"] for result in results] == [figure.source[0] for figure in model.figures]
    assert {result["dataset"]["split"] for result in results} <= {"validation", "test"}
    for heading in ("Use", "Intended use and limits", "Training", "Figures", "Where it comes from"):
        assert f"\n## {heading}" in card
    assert f"maws-hf convert {model.url.rsplit('/', 1)[-1]} --model {name} --output_dir {name}" in card
    assert "ORG/" not in card
    assert not re.search(r"\{\{|\{%|TODO|None", card)


def test_figures_say_whether_these_weights_gave_them():
    assert {f.relation for m in RELEASED_MODELS.values() if m.kind == "mae" for f in m.figures} == {"start", "head"}
    for model in RELEASED_MODELS.values():
        if model.kind in ("classifier", "clip"):
            assert model.figures[0].relation == "weights"
    assert "these weights by themselves" in card_for_release("maws-vit-b-ft-in1k")
    assert "these weights by themselves" not in card_for_release("maws-vit-b")


def test_few_label_figures_are_an_adapter_s_and_detection_is_no_accuracy():
    figures = RELEASED_MODELS["maws-vit-h"].figures
    assert {f.relation for f in figures if "labelled image" in f.setting} == {"adapter"}
    results = metadata_of(card_for_release("maws-vit-h"))["model-index"][0]["results"]
    detection = [r["metrics"][0] for r in results if r["task"]["type"] in ("object-detection", "image-segmentation")]
    # Tables 7 and 8 of the paper, ViTDet-H: box and mask on LVIS, then on COCO.
    assert [metric["value"] for metric in detection] == [50.8, 45.5, 57.7, 49.6]
    assert {metric["type"] for metric in detection} == {"mean_average_precision"}
    assert "50.8 box AP" in card_for_release("maws-vit-h")


def test_a_card_tells_only_of_images_that_its_model_has_seen():
    for name, model in RELEASED_MODELS.items():
        card = card_for_release(name)
        assert ("Instagram" in card) is (model.data == "IG-3B"), name
        assert ("social network" in card) is (model.data == "IG-3B"), name
        assert ("hyperparameters of the original MAE" in card) is (model.data == "IG-3B"), name
        assert ("hashtags people chose" in card) is (model.kind != "mae"), name


def conversion_of(name: str) -> dict:
    """The fields of a `conversion.json` that a card reads."""
    return {
        "released_model": name,
        "source": {"file": "vit_b16.pt", "url": None, "bytes": 1, "sha256": "ab" * 32},
        "differences": {"features": 3e-7},
        "versions": {"maws_hf": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"},
    }


def test_a_conversion_fills_in_checksums():
    plain = card_for_release("maws-vit-b")
    assert plain.count(AT_RELEASE) == 4
    card = card_for_release("maws-vit-b", conversion=conversion_of("maws-vit-b"))
    assert "ab" * 32 in card
    assert "features 3.0e-07" in card
    assert "torch 2.13.0" in card
    assert AT_RELEASE not in card
    unverified = {**conversion_of("maws-vit-b"), "differences": None}
    assert "| not compared |" in card_for_release("maws-vit-b", conversion=unverified)


def test_a_conversion_of_another_model_fills_in_nothing():
    with pytest.raises(ValueError, match="is of maws-vit-l, not of maws-vit-b"):
        card_for_release("maws-vit-b", conversion=conversion_of("maws-vit-l"))
    with pytest.raises(ValueError, match=r"conversion.json lacks differences, source, versions"):
        card_for_release("maws-vit-b", conversion={"released_model": "maws-vit-b"})


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="'maws-vit-x' is no released model; those are maws-vit-b-mae"):
        card_for_release("maws-vit-x")


def code_of(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.DOTALL)


def run_code(card: str, repo_id: str, model: Path, tmp_path: Path, capsys) -> str:
    """Every block, with a folder in place of the repository and a drawn picture in place of the file."""
    (tmp_path / "picture.jpg").write_bytes(draw_image(3, size=48))
    blocks = code_of(card)
    assert len(blocks) >= 2
    for block in blocks:
        assert repo_id in block
        code = block.replace(repo_id, str(model)).replace("picture.jpg", str(tmp_path / "picture.jpg"))
        exec(compile(code, "card", "exec"), {})
    return capsys.readouterr().out


@pytest.mark.parametrize("name", ["maws-vit-b-mae", "maws-vit-h", "maws-vit-l-ft-in1k", "maws-vit-b-clip"])
def test_the_code_of_a_card_runs(name, exports, tmp_path, capsys):
    kind = RELEASED_MODELS[name].kind
    model = exports["maws" if kind == "mae" else kind]
    output = run_code(card_for_release(name, f"org/{name}"), f"org/{name}", model, tmp_path, capsys)
    expected = {"classifier": "LABEL_", "clip": "ein Hund"}.get(kind, "torch.Size([1, 32])\n32\n")
    assert expected in output


@pytest.mark.parametrize("kind", ["maws", "classifier", "autoencoder", "clip"])
def test_the_card_of_one_s_own_model_is_honest_and_its_code_runs(kind, runs, exports, tmp_path, capsys):
    card = card_for_run(runs[kind], "me/mine", license="apache-2.0", datasets=["me/pictures"])
    metadata = metadata_of(card)
    assert metadata["license"] == "apache-2.0"
    assert metadata["datasets"] == ["me/pictures"]
    assert "model-index" not in metadata
    assert "nothing was measured for this card" in card
    assert "Nobody has said here what it is meant for" in card
    assert "shortest side resized" in card
    assert "other languages" not in card
    ledger = "How it was trained is not recorded" if kind == "clip" else "| wsp | 500 | 1.00e+12 |"
    assert ledger in card
    assert "cc-by-nc" not in card.lower()
    run_code(card, "me/mine", exports[kind], tmp_path, capsys)


def test_a_folder_without_a_model_of_ours_has_no_card(exports, tmp_path):
    with pytest.raises(ValueError, match="no model in our own format"):
        card_for_run(exports["maws"], "me/mine", license="mit")
    with pytest.raises(ValueError, match=r"holds no model: config.json is missing"):
        card_for_run(tmp_path, "me/mine", license="mit")


@pytest.mark.parametrize("ledger", ["{", "[]", '{"stages": 3}', '{"stages": [{"name": "mae"}]}'])
def test_a_damaged_ledger_is_named(ledger, runs, tmp_path):
    folder = shutil.copytree(runs["maws"], tmp_path / "run")
    (folder / "training.json").write_text(ledger)
    with pytest.raises(ValueError, match=r"run/training.json is not a ledger of training stages"):
        card_for_run(folder, "me/mine", license="mit")


def test_how_pictures_are_resized_is_read_and_not_assumed(tmp_path):
    model = MawsViTForImageClassification(tiny_config(num_labels=5))
    model.save_pretrained(tmp_path)
    assert "how they are resized is not recorded" in card_for_run(tmp_path, "me/mine", license="mit")
    square_image_processor_of(model.config).save_pretrained(tmp_path)
    assert "the whole image resized" in card_for_run(tmp_path, "me/mine", license="mit")


def test_a_card_says_where_the_mae_stage_was_not_the_papers(tmp_path):
    for fields, expected in (({}, False), ({"decoder_attention": "cross", "prediction_ratio": 0.5}, True)):
        MawsViTModel(tiny_config(**fields)).save_pretrained(tmp_path)
        write_ledger(tmp_path, [Stage("mae", 10, 10**9), Stage("wsp", 10, 10**9)])
        card = card_for_run(tmp_path, "me/mine", license="mit")
        assert ("is not the paper's: `prediction_ratio=0.5`, `decoder_attention=cross`." in card) == expected
        assert ("is not the paper's" in card) == expected
    write_ledger(tmp_path, [Stage("wsp", 10, 10**9)])  # the decoder was not used
    assert "is not the paper's" not in card_for_run(tmp_path, "me/mine", license="mit")


def test_the_card_names_the_class_that_the_model_was_exported_to(runs):
    card = card_for_run(runs["autoencoder"], "me/mine", license="mit", exported_as="PixioModel")
    assert metadata_of(card)["pipeline_tag"] == "image-feature-extraction"
    assert "| class in transformers | `PixioModel`" in card
    assert "`Dinov2Model`" in card_for_run(runs["maws"], "me/mine", license="mit", exported_as="Dinov2Model")
