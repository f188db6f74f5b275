"""The page without a browser: what its tabs compute, say and refuse."""

import itertools
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import draw_image

pytest.importorskip("gradio")

import app
from gradio.data_classes import ImageData
from tabs import picture_index, zero_shot
from tabs.encoder import Encoder
from tabs.examples import write_examples
from tabs.header import as_header, describe, licence_of
from tabs.neighbours import as_status
from tabs.picture_index import IndexInTheMaking, PictureIndex, build_index
from tabs.pictures import PageMessage, picture_input, read_picture, says_what_is_wrong
from tabs.reconstruction import Reconstructor, as_pictures
from tabs.zero_shot import ZeroShot, as_bars, parse_labels, parse_template
from tiny_two_towers import tiny_tokenizer, tiny_two_towers
from transformers import CLIPImageProcessorPil

from maws_hf import MawsLiTModel
from maws_hf.data.sources import open_stream
from maws_hf.evaluation.encoders import load_encoder
from maws_hf.evaluation.features import model_digest
from maws_hf.processing.decode import DEFAULT_LIMITS, decode_image

LABELS = ["a red disc", "ein blauer Balken", "青い棒"]


@pytest.fixture
def picture() -> np.ndarray:
    return decode_image(draw_image(3, size=40))


# ---------------------------------------------------------------- zero-shot


def test_labels_are_separated_by_lines_and_by_commas_of_any_script():
    assert parse_labels(" cat,dog\n\n猫、犬，鸟\n قط، كلب\ncat \n a  b ") == [
        "cat",
        "dog",
        "猫",
        "犬",
        "鸟",
        "قط",
        "كلب",
        "a b",
    ]


@pytest.mark.parametrize(("text", "says"), [(" ,\n、", "at least one label"), (None, "at least one label")])
def test_no_labels_are_refused_with_a_sentence(text, says):
    with pytest.raises(PageMessage, match=says):
        parse_labels(text)


def test_too_many_and_too_long_labels_are_refused():
    with pytest.raises(PageMessage, match="201 labels"):
        parse_labels("\n".join(map(str, range(201))))
    with pytest.raises(PageMessage, match="200 characters"):
        parse_labels("x" * 201)


def test_a_template_has_one_hole_or_is_empty():
    assert (parse_template(""), parse_template(" une photo de {}. ")) == ("{}", "une photo de {}.")
    for text in ("a photo", "{} and {}"):
        with pytest.raises(PageMessage, match=r"needs \{\} once"):
            parse_template(text)


def test_probabilities_are_those_of_the_models_own_forward(folders, picture):
    page = ZeroShot(str(folders["lit"]))
    answer = page.ask(picture, LABELS, "a photo of {}.")
    model = MawsLiTModel.from_pretrained(folders["lit"])
    texts = page.tokenizer([f"a photo of {label}." for label in LABELS], padding=True, return_tensors="pt")
    inputs = {name: texts[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        expected = model(pixel_values=page.transform(picture)[None], **inputs).logits_per_image.softmax(dim=1)[0]
    assert dict(answer.shares) == pytest.approx(dict(zip(LABELS, expected.tolist(), strict=True)), abs=1e-5)
    assert [share for _, share in answer.shares] == pytest.approx(sorted(expected.tolist(), reverse=True), abs=1e-5)


@pytest.mark.parametrize("kind", ["clip", "siglip", "xlm-roberta"])
def test_other_two_tower_models_answer_as_their_own_forward_has_it(kind, tmp_path):
    model = tiny_two_towers(kind)
    model.logit_scale.data.fill_(4.75)  # SigLIP's, which is above the bound of ours
    model.save_pretrained(tmp_path)
    tiny_tokenizer(model_max_length=20).save_pretrained(tmp_path)
    processor = CLIPImageProcessorPil(do_resize=False, do_center_crop=False)
    processor.save_pretrained(tmp_path)
    picture = decode_image(draw_image(3, size=16))
    page = ZeroShot(str(tmp_path))
    padding = "max_length" if kind == "siglip" else True
    texts = page.tokenizer(LABELS, padding=padding, truncation=True, return_tensors="pt")
    pixels = processor(picture, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = model(pixel_values=pixels, input_ids=texts["input_ids"], attention_mask=texts["attention_mask"])
    expected = output.logits_per_image.softmax(dim=1)[0].tolist()
    assert dict(page.ask(picture, LABELS).shares) == pytest.approx(dict(zip(LABELS, expected, strict=True)), abs=1e-4)


def test_labels_are_read_once(folders, picture, monkeypatch):
    page = ZeroShot(str(folders["lit"]))
    first = page.ask(picture, LABELS)
    seen = []
    real = zero_shot.class_embeddings
    monkeypatch.setattr(zero_shot, "class_embeddings", lambda *given: seen.append(given[2].classes) or real(*given))
    again, more = page.ask(picture, LABELS), page.ask(picture, [*LABELS, "new"])
    assert (first.new_labels, again.new_labels, more.new_labels) == (3, 0, 1)
    assert again.shares == first.shares
    assert seen == [(("new",),)]


def test_the_oldest_labels_are_forgotten_first(folders, picture, monkeypatch):
    monkeypatch.setattr(zero_shot, "REMEMBERED", 3)
    page = ZeroShot(str(folders["lit"]))
    for labels in (["a", "b", "c"], ["a", "d"]):
        page.ask(picture, labels)
    assert page.ask(picture, ["a", "c", "d"]).new_labels == 0
    assert page.ask(picture, ["b"]).new_labels == 1


def test_a_label_cannot_write_html():
    answer = zero_shot.Answer([("<script>alert(1)</script>", 1.0)], 0.01, 0.02, 1)
    assert "<script>" not in as_bars(answer)
    assert "&lt;script&gt;" in as_bars(answer)


def test_ten_bars_at_most_and_the_rest_counted():
    answer = zero_shot.Answer([(str(number), 0.05) for number in range(12)], 0.01, 0.02, 0)
    assert as_bars(answer).count("<li>") == 10
    assert "2 more labels share the rest" in as_bars(answer)


# ---------------------------------------------------------------- reconstruction


@pytest.fixture(scope="module")
def reconstructor(folders) -> Reconstructor:
    return Reconstructor(str(folders["mae"]))


def test_a_higher_ratio_hides_the_same_patches_and_more(reconstructor, picture):
    masks = [reconstructor.reconstruct(picture, ratio, seed=4).mask[0].bool() for ratio in (0.05, 0.3, 0.6, 0.95)]
    assert [int(mask.sum()) for mask in masks] == [1, 5, 10, 15]
    for fewer, more in itertools.pairwise(masks):
        assert bool((more | ~fewer).all())
    assert not torch.equal(masks[2], reconstructor.reconstruct(picture, 0.6, seed=5).mask[0].bool())


def test_the_mask_of_the_models_own_ratio_is_the_models_own(reconstructor, picture):
    model = reconstructor.model
    pixels = reconstructor.transform(picture)[None].to(model.device)
    noise = torch.rand((1, 16), generator=torch.Generator().manual_seed(7)).to(model.device)
    expected, found = model.reconstruct(pixels, noise=noise), reconstructor.reconstruct(picture, 0.75, seed=7)
    assert torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.reconstruction, expected.reconstruction, atol=1e-5, rtol=0)
    assert float(found.loss) == pytest.approx(float(expected.loss), abs=1e-5)


def test_three_pictures_are_shown_with_loss_and_where_brightness_is_from(reconstructor, picture):
    shown = as_pictures(reconstructor.reconstruct(picture, 0.5, seed=0), borrowed=True)
    assert shown.count("<img") == 3
    assert "8 of 16 patches hidden (50 %) · loss " in shown
    assert "come from the picture itself" in shown
    assert "itself" not in as_pictures(reconstructor.reconstruct(picture, 0.5, seed=0), borrowed=False)


def test_an_encoder_without_a_decoder_is_refused(folders):
    with pytest.raises(ValueError, match=r"encoder lacks \d+ weights .* --mae_model"):
        Reconstructor(str(folders["encoder"]))


# ---------------------------------------------------------------- neighbours


@pytest.fixture(scope="module")
def encoder(folders) -> Encoder:
    return Encoder(str(folders["encoder"]), load_encoder(str(folders["encoder"])))


def test_a_picture_is_its_own_nearest_neighbour(encoder, image_shards, tmp_path):
    told = []
    index = build_index(
        encoder, open_stream(image_shards), most=60, cache_dir=tmp_path, report=lambda *at: told.append(at)
    )
    assert told == [(32, 60), (60, 60)]
    nearest = index.nearest(encoder(decode_image(draw_image(41))), 5)
    assert (nearest[0].name, nearest[0].cosine) == ("17.png", pytest.approx(1, abs=1e-5))
    assert [found.cosine for found in nearest] == sorted((found.cosine for found in nearest), reverse=True)
    assert decode_image(nearest[0].picture).shape == (24, 24, 3)
    assert len(index.nearest(index.features[0], 1000)) == 60


def test_an_index_is_encoded_once(encoder, image_shards, tmp_path, monkeypatch):
    first = build_index(encoder, open_stream(image_shards), most=40, cache_dir=tmp_path)
    real = picture_index.encode_images
    monkeypatch.setattr(picture_index, "encode_images", None)
    again = build_index(encoder, open_stream(image_shards), most=40, cache_dir=tmp_path)
    assert again.from_cache
    assert torch.equal(again.features, first.features)
    assert (again.names, again.pictures, again.sides) == (first.names, first.pictures, first.sides)
    monkeypatch.setattr(picture_index, "encode_images", real)
    assert not build_index(encoder, open_stream(image_shards), most=41, cache_dir=tmp_path).from_cache


def test_a_damaged_index_is_made_again(encoder, image_shards, tmp_path, capsys):
    first = build_index(encoder, open_stream(image_shards), most=8, cache_dir=tmp_path)
    (pictures,) = tmp_path.glob("*-pictures.safetensors")
    pictures.write_bytes(pictures.read_bytes()[:-1])
    again = build_index(encoder, open_stream(image_shards), most=8, cache_dir=tmp_path)
    assert (again.from_cache, again.pictures) == (False, first.pictures)
    assert "encoding the pictures again" in capsys.readouterr().out


def test_damaged_pictures_are_left_out_and_classes_are_names(encoder, tmp_path):
    for number, place in enumerate(("owl/1.png", "owl/2.png", "pizza/3.png")):
        file = tmp_path / "pictures" / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(draw_image(number) if number != 1 else b"no picture")
    index = build_index(encoder, open_stream(tmp_path / "pictures"), most=9, cache_dir=tmp_path / "cache")
    assert (sorted(index.names), index.skipped) == (["owl", "pizza"], 1)


def test_a_search_tells_how_far_the_index_is_and_what_became_of_it():
    go = threading.Event()

    def build(report):
        report(7, 9)
        go.wait(10)
        return PictureIndex(torch.ones(1, 2), ["a"], [b""], [1], 0)

    making = IndexInTheMaking(build)
    assert not making.wait(0.05)
    assert "Encoding 7 of 9 pictures of &lt;data&gt;" in as_status(making, "<data>")
    with pytest.raises(PageMessage, match="as soon as all pictures are encoded"):
        _ = making.index
    go.set()
    assert making.wait(10)
    assert making.index.names == ["a"]


def test_an_index_that_fails_says_so_on_the_page_and_why_in_the_log(capsys):
    def build(report):
        raise ValueError("/secret/place holds nothing")

    making = IndexInTheMaking(build)
    assert making.wait(10)
    with pytest.raises(PageMessage, match="nothing to search") as failure:
        _ = making.index
    assert "secret" not in str(failure.value)
    assert "/secret/place holds nothing" in capsys.readouterr().err


# ---------------------------------------------------------------- pictures


def test_uploads_reach_our_decoder_unopened(tmp_path):
    file = tmp_path / "broken.png"
    file.write_bytes(b"no picture")
    picture = picture_input([])
    assert picture.preprocess(ImageData(path=str(file))) == str(file)
    assert (picture.preprocess(None), picture.get_block_name()) == (None, "image")
    assert not list(app.STYLE.parent.rglob("*.pyi"))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a JPEG, PNG"),
        (draw_image(0)[:90], "cannot be shown to the model"),
        (b"", "the file is empty"),
        (None, "upload it again"),
    ],
)
def test_what_is_no_picture_is_answered_with_a_sentence(tmp_path, content, says):
    file = tmp_path / "upload.png"
    if content is not None:
        file.write_bytes(content)
    shown = says_what_is_wrong(lambda path: str(read_picture(path)))(str(file))
    assert says in shown
    assert 'class="notice"' in shown
    assert str(tmp_path) not in shown


def test_without_a_picture_the_page_asks_for_one():
    with pytest.raises(PageMessage, match="Choose a picture"):
        read_picture(None)


def test_examples_are_pictures_of_the_data_set_and_the_same_each_time(image_shards, tmp_path):
    files = write_examples(open_stream(image_shards), 3, tmp_path)
    assert files == write_examples(open_stream(image_shards), 3, tmp_path)
    originals = {decode_image(draw_image(number)).tobytes() for number in range(96)}
    assert len({decode_image(file.read_bytes()).tobytes() for file in files} & originals) == 3


# ---------------------------------------------------------------- page


def test_options_come_from_the_environment_and_flags_win(monkeypatch):
    monkeypatch.setenv("MAE_MODEL", "somebody/mae")
    monkeypatch.setenv("NUM_EXAMPLES", "3")
    options = app.read_options(["--num_examples", "2", "--zero_shot_model", "somebody/lit"])
    assert (options.mae_model, options.num_examples, options.zero_shot_model) == ("somebody/mae", 2, "somebody/lit")


@pytest.mark.parametrize(
    ("flags", "says"), [([], "nothing to show"), (["--index_dataset", "data"], "give --index_model")]
)
def test_what_cannot_be_shown_is_refused_in_a_line(flags, says, capsys):
    with pytest.raises(SystemExit):
        app.read_options(flags)
    assert says in capsys.readouterr().err


def test_tabs_are_there_for_what_is_given(folders, image_shards, tmp_path):
    def tabs(**options) -> list[str]:
        page = app.build_page(app.SpaceOptions(cache_dir=str(tmp_path), **options))
        return [block.label for block in page.blocks.values() if block.get_block_name() == "tabitem"]

    assert tabs(mae_model=str(folders["mae"])) == ["Reconstruct"]
    given = {"index_model": str(folders["encoder"]), "index_dataset": str(image_shards), "index_size": 8}
    assert tabs(zero_shot_model=str(folders["lit"]), **given) == ["Zero-shot", "Neighbours"]


def test_pictures_to_search_and_examples_are_of_the_splits_and_numbers_asked_for(monkeypatch, tmp_path):
    opened, made = [], []
    monkeypatch.setattr(app, "open_stream", lambda source, split: opened.append((source, split)))
    monkeypatch.setattr(app, "write_examples", lambda dataset, count, folder: made.append((count, folder)) or [])
    monkeypatch.setattr(
        app, "build_index", lambda encoder, dataset, **how: made.append((how["most"], how["cache_dir"]))
    )
    data = {"index_dataset": "data", "index_split": "test", "index_size": 8, "index_model": "m", "num_examples": 3}

    def options_of(**options: object) -> app.SpaceOptions:
        return app.SpaceOptions(**{**data, "cache_dir": str(tmp_path), **options})

    app.find_examples(options_of())
    app.find_examples(options_of(example_dataset="others", example_split="train"))
    app.make_index(options_of(), None).wait(60)
    assert opened == [("data", "test"), ("others", "train"), ("data", "test")]
    assert made == [(3, tmp_path / "examples")] * 2 + [(8, tmp_path / "index")]
    assert app.find_examples(options_of(num_examples=0)) == []


def test_the_page_is_shared_with_nobody_and_at_the_port_asked_for(monkeypatch):
    launched = {}
    page = SimpleNamespace(launch=lambda **how: launched.update(how))
    monkeypatch.setattr(app, "build_page", lambda options: page)
    monkeypatch.setattr(app, "logging", SimpleNamespace(disable_progress_bar=int, set_verbosity_error=int))
    monkeypatch.setattr("sys.argv", ["app.py", "--mae_model", "m", "--server_port", "7999"])
    assert app.main() == 0
    assert (launched["server_port"], launched["share"], launched["enable_monitoring"]) == (7999, False, False)
    assert launched["max_file_size"] == DEFAULT_LIMITS.max_bytes


@pytest.mark.parametrize(("given", "expected"), [("index_model", "other"), ("zero_shot_model", "lit"), (None, "mae")])
def test_the_search_has_its_own_encoder_or_that_of_a_tab(
    given, expected, folders, image_shards, tmp_path, monkeypatch
):
    searched = []
    monkeypatch.setattr(app, "make_index", lambda options, encoder: searched.append(encoder.model))
    monkeypatch.setattr(app, "neighbours_tab", lambda *_: None)
    folder = {"index_model": folders["encoder"], "zero_shot_model": folders["lit"], None: None}[given]
    options = {"mae_model": str(folders["mae"]), "index_dataset": str(image_shards), "num_examples": 0}
    app.build_page(app.SpaceOptions(cache_dir=str(tmp_path), **options, **({given: str(folder)} if given else {})))
    models = {"other": load_encoder(str(folders["encoder"])), "mae": load_encoder(str(folders["mae"]))}
    models["lit"] = MawsLiTModel.from_pretrained(folders["lit"])
    assert model_digest(searched[0]) == model_digest(Encoder("x", models[expected]).model)


def test_an_index_of_another_model_or_other_pictures_is_another(folders, encoder, image_shards, tmp_path):
    other = load_encoder(str(folders["encoder"]))
    for parameter in other.parameters():
        parameter.data.mul_(1.5)
    built = [
        build_index(made, open_stream(image_shards), most=most, cache_dir=tmp_path)
        for made, most in ((encoder, 8), (encoder, 9), (Encoder("other", other), 9), (encoder, 8))
    ]
    assert [index.from_cache for index in built] == [False, False, False, True]
    assert [len(index.names) for index in built] == [8, 9, 9, 8]


def test_a_model_sees_pictures_with_its_own_mean_in_a_search_too(tmp_path, image_shards):
    model = tiny_two_towers("clip").eval()
    model.save_pretrained(tmp_path / "clip")
    CLIPImageProcessorPil(image_mean=[0.1, 0.2, 0.3], image_std=[0.3, 0.2, 0.1]).save_pretrained(tmp_path / "clip")
    made = Encoder(str(tmp_path / "clip"), model)
    index = build_index(made, open_stream(image_shards), most=4, cache_dir=tmp_path / "index")
    first = decode_image(draw_image(0))
    pixels = made.transform(first)[None] / 255
    mean, deviation = (torch.tensor(values)[:, None, None] for values in ([0.1, 0.2, 0.3], [0.3, 0.2, 0.1]))
    with torch.no_grad():
        expected = model.get_image_features(pixel_values=(pixels - mean) / deviation)
    expected = getattr(expected, "pooler_output", expected)[0]
    torch.testing.assert_close(made(first), expected, rtol=1e-4, atol=1e-5)
    assert index.nearest(expected, 4)[0].cosine == pytest.approx(1, abs=1e-5)


def test_the_header_names_models_and_the_licence_of_their_cards(folders, tmp_path, reconstructor):
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n# Card\n", encoding="utf-8")
    assert licence_of(str(tmp_path)) == "cc-by-nc-4.0"
    (tmp_path / "README.md").write_text("---\nlicense: other\nlicense_name: mine\n---\n", encoding="utf-8")
    assert licence_of(str(tmp_path)) == "mine"
    (tmp_path / "README.md").write_text("---\ntags: [a: b: c\n---\n# Card\n", encoding="utf-8")
    assert licence_of(str(tmp_path)) is None
    shown = describe("Reconstruction", str(folders["mae"]), reconstructor.model)
    assert shown.licence is None
    header = as_header([shown])
    assert f"<b>{Path(folders['mae']).parent.name}/mae</b>" in header
    assert "https://arxiv.org/abs/2303.13496" in header
