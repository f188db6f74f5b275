"""What was released is loaded by its name in fresh processes: plain transformers, pipelines, PEFT, datasets."""

import json
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from loopback_hub import Hub, run_python
from PIL import Image
from safetensors.torch import load_file
from tiny import draw_image, tiny_config
from tiny_lit import tiny_lit
from tiny_release import CARD
from transformers import PreTrainedModel, XLMRobertaTokenizer

from maws_hf import MawsLiTProcessor, MawsViTForImageClassification, MawsViTModel
from maws_hf.hub.export import export_model
from maws_hf.hub.release import push_release
from maws_hf.hub.staging import build_staging
from maws_hf.processing.image_processors import image_processor_of

LABELS = {0: "disc", 1: "bar", 2: "nothing"}
CAPTIONS = ["a photo of a red disc.", "a photo of a blue bar."]
PIECES = ["<s>", "<pad>", "</s>", "<unk>", "▁a", "▁photo", "▁of", "▁red", "▁blue", "▁", "disc", "bar", "."]
PIECES += [chr(letter) for letter in range(ord("a"), ord("z") + 1)]

PUBLISH = """
import sys, torch
from pathlib import Path
from datasets import Dataset, Features, Image
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageClassification

base = AutoModelForImageClassification.from_pretrained("org/classifier")
torch.manual_seed(0)
config = LoraConfig(
    r=2, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"], init_lora_weights=False
)
model = get_peft_model(base, config).eval()
torch.nn.init.normal_(model.base_model.model.classifier.modules_to_save["default"].weight)
model.push_to_hub("org/adapter")
images = torch.ones(1, 3, 32, 32) / 3
with torch.no_grad():
    torch.save(model(pixel_values=images).logits, sys.argv[1])

pictures = [{"bytes": Path(sys.argv[2]).read_bytes(), "path": f"{i}.png"} for i in range(5)]
features = Features({"image": Image()})
Dataset.from_dict({"image": pictures}, features=features).push_to_hub("org/pictures", num_shards=2)
"""

LOAD = """
import json, sys, torch
from datasets import load_dataset
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoTokenizer, pipeline

place, picture, captions = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
found, said = {}, {}
with torch.no_grad():
    for revision in ("main", "v1"):
        model = AutoModel.from_pretrained("org/encoder", revision=revision).eval()
        found[revision] = model(pixels).pooler_output
    processor = AutoImageProcessor.from_pretrained("org/encoder", revision="v1")
    said["encoder"] = [type(model).__name__, dict(processor.crop_size)]
    features = pipeline("image-feature-extraction", model="org/encoder", pool=True)(picture)
    found["features"] = torch.tensor(features)
    said["labels"] = pipeline(model="org/classifier")(picture, top_k=3)  # the task stands in the card
    zero_shot = pipeline("zero-shot-image-classification", model="org/two-towers")
    said["zero_shot"] = zero_shot(picture, candidate_labels=captions, hypothesis_template="{}")
    said["tokens"] = AutoTokenizer.from_pretrained("org/two-towers")(captions[0])["input_ids"]
    base = AutoModelForImageClassification.from_pretrained("org/classifier")
    adapted = PeftModel.from_pretrained(base, "org/adapter").eval()
    found["adapted"] = adapted(pixel_values=torch.ones(1, 3, 32, 32) / 3).logits
rows = list(load_dataset("org/pictures", split="train", streaming=True))
said["pictures"] = [len(rows), list(rows[0]["image"].size)]
try:
    AutoModel.from_pretrained("org/encoder", revision="v9")
except OSError as error:
    said["refused"] = str(error).splitlines()[0]
assert "maws_hf" not in sys.modules or sys.modules["maws_hf"] is None
save_file(found, place + "/found.safetensors")
print(json.dumps(said))
"""

REMOTE_CODE = """
import sys
from transformers import AutoModel
from safetensors.torch import save_file
from maws_hf import MawsLiTModel, MawsViTForImageClassification, MawsViTModel
from maws_hf.hub.export import export_model

for name, model_class, revision in (
    ("encoder", MawsViTModel, "v1"),
    ("classifier", MawsViTForImageClassification, "main"),
    ("two-towers", MawsLiTModel, "main"),
):
    model = model_class.from_pretrained("org/" + name, revision=revision)
    save_file({key: tensor.clone() for key, tensor in model.state_dict().items()}, sys.argv[2] + "/" + name)
print(type(AutoModel.from_pretrained("org/encoder", revision="native")).__name__)
for attempt in (
    lambda: MawsViTModel.from_pretrained("org/evil"),
    lambda: MawsLiTModel.from_pretrained("org/evil"),
    lambda: export_model("org/evil", sys.argv[1]),
    lambda: AutoModel.from_pretrained("org/evil"),
):
    try:
        attempt()
    except Exception as error:
        print("refused:", type(error).__name__, " ".join(str(error).split())[:160])
# A stranger's code beside a known model_type: the known class is used, the code not looked at.
print("loaded:", type(MawsViTModel.from_pretrained("org/disguised")).__name__)
"""

OFFLINE = """
from maws_hf import MawsViTModel
from maws_hf.cli import main
try:
    MawsViTModel.from_pretrained("org/encoder")
except Exception as error:
    print("load:", " ".join(str(error).split()))
main(["push", "nowhere", "--repo_id", "org/encoder"])
"""


def card(task: str) -> str:
    return CARD.replace("image-feature-extraction", task)


def random_model(model_class: type[PreTrainedModel], seed: int, **fields) -> PreTrainedModel:
    model = model_class(tiny_config(**fields))
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return model.eval()


def release(model: PreTrainedModel, folder: Path, api: HfApi, name: str, task: str, tag: str) -> None:
    model.save_pretrained(folder / "ours")
    exported = export_model(folder / "ours", folder / "theirs").folder
    main = build_staging(exported, folder / "main", card=card(task)).folder
    native = build_staging(folder / "ours", folder / "native", card=card(task), native=True).folder
    push_release(main, name, tag=tag, native=native, api=api)


@pytest.fixture
def released(hub: Hub, api: HfApi, tmp_path: Path) -> dict[str, PreTrainedModel]:
    """Two releases of an encoder, one of a classifier and of a two-tower model."""
    models = {"v1": random_model(MawsViTModel, 1), "main": random_model(MawsViTModel, 2)}
    models["classifier"] = random_model(MawsViTForImageClassification, 3, num_labels=3, id2label=LABELS)
    for revision, tag in (("v1", "v1"), ("main", "v2")):
        image_processor_of(models[revision].config).save_pretrained(tmp_path / tag / "ours")
        release(models[revision], tmp_path / tag, api, "org/encoder", "image-feature-extraction", tag)
    image_processor_of(models["classifier"].config).save_pretrained(tmp_path / "classifier" / "ours")
    release(models["classifier"], tmp_path / "classifier", api, "org/classifier", "image-classification", "v1")
    tokenizer = XLMRobertaTokenizer(vocab=[(piece, -float(rank)) for rank, piece in enumerate(PIECES)])
    models["two-towers"] = tiny_lit(text={"vocab_size": len(tokenizer)})
    processor = MawsLiTProcessor(image_processor_of(models["two-towers"].config.vision_config), tokenizer)
    processor.save_pretrained(tmp_path / "two-towers" / "ours")
    task = "zero-shot-image-classification"
    release(models["two-towers"], tmp_path / "two-towers", api, "org/two-towers", task, "v1")
    (tmp_path / "picture.png").write_bytes(draw_image(0, size=32))
    return models


@pytest.mark.slow
@torch.no_grad()
def test_plain_transformers_pipelines_peft_and_datasets_load_by_name(hub: Hub, released: dict, tmp_path: Path):
    picture = str(tmp_path / "picture.png")
    run_python(PUBLISH, hub, tmp_path / "publisher", str(tmp_path / "adapted.pt"), picture)
    output = run_python(LOAD, hub, tmp_path / "reader", str(tmp_path), picture, json.dumps(CAPTIONS))
    said, found = json.loads(output.splitlines()[-1]), load_file(tmp_path / "found.safetensors")
    pixels = torch.linspace(-1, 1, 3 * 32 * 32).reshape(1, 3, 32, 32)
    for revision in ("v1", "main"):
        torch.testing.assert_close(found[revision], released[revision](pixels).pooler_output, rtol=0, atol=1e-5)
    assert said["encoder"] == ["PixioModel", {"height": 32, "width": 32}]
    image = image_processor_of(released["main"].config)(Image.open(picture), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found["features"], released["main"](image).pooler_output, rtol=0, atol=1e-5)
    scores = released["classifier"](image).logits.softmax(-1)[0]
    assert {row["label"]: pytest.approx(row["score"], abs=1e-5) for row in said["labels"]} == {
        name: score.item() for name, score in zip(LABELS.values(), scores, strict=True)
    }
    processor = MawsLiTProcessor.from_pretrained(tmp_path / "two-towers" / "ours")
    logits = released["two-towers"](**processor(text=CAPTIONS, return_tensors="pt"), pixel_values=image)
    probabilities = logits.logits_per_image.softmax(-1)[0].tolist()
    assert {row["label"]: row["score"] for row in said["zero_shot"]} == {
        caption: pytest.approx(p, abs=1e-4) for caption, p in zip(CAPTIONS, probabilities, strict=True)
    }
    assert said["tokens"] == processor.tokenizer(CAPTIONS[0])["input_ids"]
    assert said["pictures"] == [5, [32, 32]]
    assert "v9 is not a valid git identifier" in said["refused"]
    torch.testing.assert_close(found["adapted"], torch.load(tmp_path / "adapted.pt"), rtol=0, atol=1e-6)
    assert not torch.equal(found["adapted"], released["classifier"](torch.ones(1, 3, 32, 32) / 3).logits)


@pytest.mark.slow
def test_our_classes_read_exports_by_name_and_never_run_remote_code(hub: Hub, released: dict, tmp_path: Path):
    """Bit for bit; case 35; the branch in our own format needs no remote code where this package is."""
    marker = tmp_path / "executed"
    code = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n"
    code += "from transformers import PreTrainedConfig\nclass C(PreTrainedConfig): model_type = 'evil'\nM = C\n"
    for name, model_type in (("evil", "evil"), ("disguised", "pixio")):
        repository = hub.create(f"org/{name}")
        files = hub.repository("org/encoder").contents()
        config = json.loads(files["config.json"]) | {"model_type": model_type}
        config["auto_map"] = {"AutoConfig": "modeling.C", "AutoModel": "modeling.M"}
        repository.write({**files, "config.json": json.dumps(config).encode(), "modeling.py": code.encode()})
    (tmp_path / "read").mkdir()
    places = str(tmp_path / "export"), str(tmp_path / "read")
    output = run_python(REMOTE_CODE, hub, tmp_path / "reader", *places, with_ours=True)
    for name, key in (("encoder", "v1"), ("classifier", "classifier"), ("two-towers", "two-towers")):
        read, saved = load_file(tmp_path / "read" / name), released[key].state_dict()
        assert read.keys() == saved.keys()
        assert all(torch.equal(read[weight], saved[weight]) for weight in saved), name
    assert output.startswith("MawsViTModel")
    assert re.findall("refused: (.*?Error)|loaded: (.*)", output) == [
        ("ModelLoadingError", ""),
        ("ModelLoadingError", ""),
        ("ExportError", ""),
        ("ValueError", ""),  # of transformers, which asks and gets no answer
        ("", "MawsViTModel"),
    ]
    assert not marker.exists()
    assert "GET /org/evil/resolve/main/modeling.py" not in hub.requests
    hub.requests.clear()
    output = run_python(OFFLINE, hub, tmp_path / "empty", with_ours=True, check=False, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE" in output.split("load:")[1].splitlines()[0], output
    assert "error: HF_HUB_OFFLINE is set, so nothing can be pushed: type `unset HF_HUB_OFFLINE`" in output
    assert hub.requests == []
