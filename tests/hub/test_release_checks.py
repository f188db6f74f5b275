"""Everything that keeps a folder from being released is found, with its file, before anything is sent."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny_release import CARD, tensors, write_model

from maws_hf.hub.release_checks import ReleaseCheckError, check_release, release_problems
from maws_hf.hub.staging import build_staging

SECRETS = {
    "a Hugging Face token": "hf_" + "aB3" * 12,
    "an AWS key": "AKIA" + "ABCD1234" * 2,
    "a GitHub token": "ghp_" + "a1B2" * 9,
    "a private key": "-----BEGIN RSA " + "PRIVATE KEY-----",
    "a key of an API": "sk-proj-" + "a1B2" * 6,
    "a bearer token": "Bearer " + "a1B2" * 6,
    "an address with a password": "https://me:" + "pass@example.org/x",
}


SPELT_OTHERWISE = json.dumps({"a": SECRETS["a GitHub token"]}).replace("_", "\\u005f")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return build_staging(write_model(tmp_path / "model"), tmp_path / "staging").folder


def write_json(name: str, content: object) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(json.dumps(content))


def with_card(old: str, new: str) -> Callable[[Path], object]:
    assert old in CARD
    return lambda folder: (folder / "README.md").write_text(CARD.replace(old, new))


def with_tensor(value: torch.Tensor) -> Callable[[Path], object]:
    return lambda folder: save_file({**tensors(), "head": value}, folder / "model.safetensors")


def picture(content: bytes) -> Callable[[Path], object]:
    def put(folder: Path) -> None:
        (folder / "images").mkdir()
        (folder / "images" / "a.png").write_bytes(content)

    return put


def test_a_sound_folder_has_no_problem(folder: Path):
    assert list(release_problems(folder)) == []


@pytest.mark.parametrize(
    ("spoil", "file", "problem"),
    [
        (lambda f: (f / "notes.txt").write_text("mine"), "notes.txt", "is not on the list"),
        (lambda f: (f / ".env").write_text("KEY=1"), ".env", "is not on the list"),
        (lambda f: (f / "handler.py").symlink_to(f / "README.md"), "handler.py", "is a link"),
        (lambda f: (f / "images").symlink_to(f.parent), "images", "is a link"),
        (write_json("training.json", {"a": ["/home/me/data"]}), "training.json", r"a\[0\] names a place"),
        (write_json("training.json", {"a": "run.py --data /mnt/disk/x"}), "training.json", "names a place"),
        (write_json("training.json", {"a": {"b": "~/data"}}), "training.json", r"a\.b names a place"),
        (write_json("training.json", {"/srv/data": 1}), "training.json", "a key of the file names a place"),
        (write_json("tokenizer_config.json", {"name_or_path": "C:\\me"}), "tokenizer_config.json", "names a place"),
        (write_json("processor_config.json", {"auto_map": {"A": "b.C"}}), "processor_config.json", "remote code"),
        (
            write_json("processor_config.json", {"image_processor": {"auto_map": {"A": "b.C"}}}),
            "processor_config.json",
            r"remote code \(image_processor\.auto_map\)",
        ),
        (
            write_json("preprocessor_config.json", {"auto_map": {"A": "b.C"}}),
            "preprocessor_config.json",
            "remote code",
        ),
        (write_json("tokenizer_config.json", {"auto_map": {"A": "b.C"}}), "tokenizer_config.json", "remote code"),
        (write_json("training.json", {"a": "python /cluster/me/run.py"}), "training.json", "names a place"),
        (lambda f: (f / "README.md").write_text(f"{CARD}\nrun /home/me/run.py"), "README.md", "line .* names a place"),
        (picture(b"<script>"), "images/a.png", "is no PNG picture"),
        (picture(b"\x89PNG\r\n\x1a\n" + SECRETS["an AWS key"].encode()), "images/a.png", "holds an AWS key"),
        (
            lambda f: save_file(tensors(), f / "model.safetensors", {"by": SECRETS["a Hugging Face token"]}),
            "model.safetensors",
            "holds a Hugging Face token",
        ),
        (
            lambda f: (f / "training.json").write_text(SPELT_OTHERWISE),
            "training.json",
            "a holds a GitHub token",
        ),
        (lambda f: (f / "training.json").write_text("[" * 100_000), "training.json", "is not JSON"),
        (with_card("model_name: tiny", "model-index: [foo]"), "README.md", "lacks model_name"),
        (
            with_card("model_name: tiny", "model-index:\n- name: tiny\n  results: foo"),
            "README.md",
            "its model-index is not the list",
        ),
        (lambda f: (f / "training.json").write_text("{"), "training.json", "is not JSON"),
        (lambda f: (f / "handler.py").write_bytes(b"\xff"), "handler.py", "is not UTF-8"),
        (lambda f: (f / "config.json").unlink(), "config.json", "is missing"),
        (with_tensor(torch.tensor([1.0, float("nan")])), "model.safetensors", "NaN or infinity in head"),
        (with_tensor(torch.tensor(float("-inf"))), "model.safetensors", "NaN or infinity in head"),
        (with_tensor(torch.zeros(2).half()), "model.safetensors", "1 tensors of float16, .* says dtype float32"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors", "is missing"),
        (lambda f: (f / "README.md").unlink(), "README.md", "is missing"),
        (with_card("---\n\n#", "\n\n#"), "README.md", "no metadata"),
        (with_card("tags:", "tags: ["), "README.md", "not YAML"),
        (with_card("license: cc-by-nc-4.0\n", ""), "README.md", "lacks the field license"),
        (with_card("library_name: transformers", "library_name:"), "README.md", "lacks the field library_name"),
        (with_card("tags:\n- maws\n", ""), "README.md", "lacks the field tags"),
        (
            with_card("datasets:\n- nobody/pictures\n", ""),
            "README.md",
            "lacks base_model, datasets and a section Training",
        ),
        (with_card("model_name: tiny\n", ""), "README.md", "lacks model_name"),
        (with_card("image-feature", "mask"), "README.md", "for 'image-feature-extraction'"),
        (with_card("# tiny\n\nA model of no use.\n", ""), "README.md", "no text after"),
        (with_card("no use", "{{ use }}"), "README.md", "line 14 still holds '{{'"),
        (with_card("no use", "no use (TODO)"), "README.md", "still holds 'TODO'"),
        (with_card("no use", "use To Be Filled"), "README.md", "still holds 'To Be Filled'"),
    ],
)
def test_each_fault_is_found_in_its_file(folder: Path, spoil: Callable, file: str, problem: str):
    spoil(folder)
    problems = [text for name, text in release_problems(folder) if name == file]
    with pytest.raises(ReleaseCheckError, match=f"{file}.*{problem}"):
        check_release(folder)
    assert len(problems) == 1


@pytest.mark.parametrize("what", SECRETS)
@pytest.mark.parametrize("file", ["README.md", "handler.py", "training.json", "requirements.txt"])
def test_a_secret_is_named_by_kind_and_line_but_never_repeated(folder: Path, what: str, file: str):
    text = CARD if file == "README.md" else ""
    (folder / file).write_text(json.dumps({"a": SECRETS[what]}) if file.endswith("json") else text + SECRETS[what])
    with pytest.raises(ReleaseCheckError, match=f"{file}: line .* holds {what}") as refused:
        check_release(folder)
    assert SECRETS[what] not in str(refused.value)


@pytest.mark.parametrize(
    ("what", "secret"),
    [
        ("an AWS key", "ASIA" + "ABCD1234" * 2),
        ("an AWS key", "aws_secret_" + "access_key = x"),
        ("a GitHub token", "github_" + "pat_" + "a1B2" * 9),
        ("a GitHub token", "ghs_" + "a1B2" * 9),
        ("a private key", "-----BEGIN " + "PRIVATE KEY-----"),
        ("a key of an API", "AIza" + "a1B2" * 9),
        ("a key of an API", "xoxb-" + "1234567890"),
        ("a key of an API", "WANDB_API_" + "KEY=" + "a1b2" * 10),
        ("an address with a password", "postgresql://me:" + "pass@localhost/x"),
    ],
)
def test_every_spelling_of_a_secret_is_known(folder: Path, what: str, secret: str):
    (folder / "handler.py").write_text(f"# {secret}\n")
    assert [problem.split(":")[0] for _, problem in release_problems(folder)] == [f"line 1 holds {what}"]


@pytest.mark.parametrize(
    "place", ["file:/x", "~me/data", "~/data", "C:\\me", "\\\\server\\share", "/cluster/me", "a /cluster/me/b"]
)
def test_every_spelling_of_a_place_is_known(folder: Path, place: str):
    write_json("training.json", {"a": place})(folder)
    assert [problem.split(" (")[0] for _, problem in release_problems(folder)] == ["a names a place on this machine"]


def test_all_problems_are_listed_at_once(folder: Path):
    (folder / "notes.txt").write_text("mine")
    (folder / "README.md").unlink()
    with_tensor(torch.tensor(float("inf")))(folder)
    with pytest.raises(ReleaseCheckError, match=r"3 problems keep.*notes\.txt.*head.*README\.md"):
        check_release(folder)


def test_pieces_of_words_that_look_like_paths_and_addresses_are_fine(folder: Path):
    model = {"vocab": [["/usr/bin", 0.0], ["~/", 0.1]]}
    write_json("tokenizer.json", {"model": model, "added_tokens": [{"content": "</s>"}]})(folder)
    write_json("conversion.json", {"source": "https://example.org/home/a/b.pt", "shape": "3/4", "unit": "/s"})(folder)
    assert list(release_problems(folder)) == []


def test_the_native_folder_may_ask_for_its_stub_and_for_nothing_else(tmp_path: Path):
    native = build_staging(write_model(tmp_path / "m", model_type="maws_vit"), tmp_path / "s", native=True).folder
    assert list(release_problems(native, native=True)) == []
    assert {file for file, _ in release_problems(native)} == {"maws_hf_stub.py", "config.json"}
    config = json.loads((native / "config.json").read_text())
    config["auto_map"]["AutoModel"] = "somebody/else--modeling.Model"
    (native / "config.json").write_text(json.dumps(config))
    (native / "maws_hf_stub.py").unlink()
    problems = dict(release_problems(native, native=True))
    assert {*problems} == {"config.json", "maws_hf_stub.py"}


@pytest.mark.parametrize("place", ["auto_map", "text_config"])
def test_remote_code_is_asked_for_by_a_table_at_the_top_of_the_config(tmp_path: Path, place: str):
    native = build_staging(write_model(tmp_path / "m", model_type="maws_vit"), tmp_path / "s", native=True).folder
    config = json.loads((native / "config.json").read_text())
    config[place] = (
        {"auto_map": {"AutoModel": "maws_hf_stub.MawsViTModel"}} if place == "text_config" else "stub.Model"
    )
    (native / "config.json").write_text(json.dumps(config))
    assert ["remote code" in problem for _, problem in release_problems(native, native=True)] == [True]


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("PixioModel", "image-feature-extraction"),
        ("ViTModel", "image-feature-extraction"),
        ("Dinov2Model", "image-feature-extraction"),
        ("ViTForImageClassification", "image-classification"),
        ("VisionTextDualEncoderModel", "zero-shot-image-classification"),
    ],
)
def test_the_card_names_the_task_of_the_architecture(folder: Path, architecture: str, task: str):
    write_json("config.json", {"architectures": [architecture], "dtype": "float32"})(folder)
    with_card("image-feature-extraction", task)(folder)
    assert list(release_problems(folder)) == []
    with_card("image-feature-extraction", "text-generation")(folder)
    assert [problem for _, problem in release_problems(folder) if task in problem]


def test_half_precision_may_have_a_scale_beside_it_and_no_more(folder: Path):
    write_json("config.json", {"architectures": ["PixioModel"], "dtype": "bfloat16"})(folder)
    assert any("2 tensors of float32" in problem for _, problem in release_problems(folder))
    half = {name: tensor.bfloat16() for name, tensor in tensors().items()}
    save_file({**half, "logit_scale": torch.tensor(1.0)}, folder / "model.safetensors")
    assert list(release_problems(folder)) == []


def test_numbers_of_eight_bits_are_looked_at_too(folder: Path):
    eight = torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn)
    with_tensor(eight[:1].clone())(folder)
    assert list(release_problems(folder)) == []
    with_tensor(eight)(folder)
    assert any("NaN or infinity in head" in problem for _, problem in release_problems(folder))


def test_every_part_of_a_long_tensor_is_looked_at_and_not_every_file_of_tensors(folder: Path, monkeypatch):
    monkeypatch.setattr("maws_hf.hub.weight_checks._CHUNK", 2)
    with_tensor(torch.tensor([1.0, 2.0, 3.0, 4.0, float("nan")]))(folder)
    assert any("NaN or infinity in head" in problem for _, problem in release_problems(folder))
    monkeypatch.setattr("maws_hf.hub.weight_checks._MOST_TENSORS", 2)
    assert any("holds 3 tensors, more than any model" in problem for _, problem in release_problems(folder))


class TestShards:
    @pytest.fixture
    def shards(self, folder: Path) -> Path:
        (folder / "model.safetensors").unlink()
        for number, (name, tensor) in enumerate(tensors().items(), 1):
            save_file({name: tensor}, folder / f"model-0000{number}-of-00002.safetensors")
        self.write_index(folder, embeddings=1, layernorm=2)
        return folder

    def write_index(self, folder: Path, **places: int) -> None:
        weight_map = {name: f"model-0000{number}-of-00002.safetensors" for name, number in places.items()}
        write_json("model.safetensors.index.json", {"weight_map": weight_map})(folder)

    def test_whole_ones_are_fine(self, shards: Path):
        assert list(release_problems(shards)) == []

    @pytest.mark.parametrize(
        ("places", "problem"),
        [
            ({"embeddings": 1, "layernorm": 3}, "names shards that are not there: model-00003-of-00002"),
            ({"embeddings": 1}, "does not list layernorm"),
            ({"embeddings": 1}, "does not name model-00002-of-00002"),
            ({"embeddings": 1, "layernorm": 2, "head": 1}, "names a shard without it for head"),
            ({"embeddings": 2, "layernorm": 1}, "names a shard without it for embeddings, layernorm"),
        ],
    )
    def test_an_index_that_does_not_fit_is_found(self, shards: Path, places: dict, problem: str):
        self.write_index(shards, **places)
        assert any(problem in text for _, text in release_problems(shards))

    def test_a_tensor_twice_a_missing_index_and_a_spare_file_are_found(self, shards: Path):
        save_file(tensors(), shards / "model-00002-of-00002.safetensors")
        assert any("more than one shard holds embeddings" in text for _, text in release_problems(shards))
        save_file(tensors(), shards / "model.safetensors")
        assert any("lies beside model.safetensors" in text for _, text in release_problems(shards))
        (shards / "model.safetensors").unlink()
        (shards / "model.safetensors.index.json").unlink()
        assert any("is missing or no index" in text for _, text in release_problems(shards))

    @pytest.mark.parametrize("length", [0, 7, 60, 300])
    def test_a_cut_file_is_found(self, shards: Path, length: int):
        file = shards / "model-00001-of-00002.safetensors"
        file.write_bytes(file.read_bytes()[:length] if length < file.stat().st_size else file.read_bytes() + b"0")
        assert any("is not a whole safetensors file" in text for _, text in release_problems(shards))
