"""Class names and the tokenizer of a converted model."""

import hashlib
import json

import pytest
from tiny_lit import tiny_lit_config

from maws_hf import MawsLiTProcessor
from maws_hf.hub.original_archive import ConversionError
from maws_hf.hub.original_processor import add_tokenizer, origin_of, read_labels
from maws_hf.processing.image_processors import image_processor_of

SENTENCES = ["a photo of a cat on a mat", "the image tower of a model", "one two three four five six seven"]


@pytest.fixture(scope="module")
def sentencepiece_file(tmp_path_factory):
    import sentencepiece

    file = tmp_path_factory.mktemp("pieces") / "tiny.model"
    with file.open("wb") as target:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(SENTENCES), model_writer=target, vocab_size=35, minloglevel=2, num_threads=1
        )
    return file


def folder_of(tmp_path, vocabulary):
    config = tiny_lit_config({"vocab_size": vocabulary}, max_text_length=9)
    config.save_pretrained(tmp_path)
    image_processor_of(config.vision_config).save_pretrained(tmp_path)
    return tmp_path


def test_a_sentencepiece_file_becomes_the_originals_tokenizer(tmp_path, sentencepiece_file):
    import sentencepiece

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    # fairseq's numbers: one more than sentencepiece's, unknown is 3; and one for <mask>
    folder = folder_of(tmp_path, 37)
    (folder / "conversion.json").write_text('{"tokenizer": null, "dtype": "float32"}', encoding="utf-8")
    assert add_tokenizer(folder, str(sentencepiece_file)) == 37
    processor = MawsLiTProcessor.from_pretrained(folder)
    captions = [*SENTENCES, "a zebra"]
    found = processor(text=captions)["input_ids"]
    for caption, ids in zip(captions, found, strict=True):
        original = [number + 1 if number else 3 for number in pieces.encode(caption)][: 9 - 2]
        expected = [0, *original, 2]
        assert ids == expected + [1] * (len(ids) - len(expected))
    assert processor.tokenizer.model_max_length == 9
    record = json.loads((folder / "conversion.json").read_text(encoding="utf-8"))
    digest = hashlib.sha256(sentencepiece_file.read_bytes()).hexdigest()
    assert record == {"tokenizer": f"tiny.model (sha256 {digest})", "dtype": "float32"}
    assert not [file for file in folder.glob("*.json") if str(sentencepiece_file.parent) in file.read_text("utf-8")]
    assert processor.image_processor.crop_size["height"] == 32


def test_a_tokenizer_folder_is_taken_as_well(tmp_path, sentencepiece_file):
    (tmp_path / "first").mkdir()
    first = folder_of(tmp_path / "first", 37)
    add_tokenizer(first, str(sentencepiece_file))
    (tmp_path / "second").mkdir()
    assert add_tokenizer(folder_of(tmp_path / "second", 37), str(first)) == 37
    assert origin_of(str(first)) == "first"
    assert origin_of("FacebookAI/xlm-roberta-base") == "FacebookAI/xlm-roberta-base"


def test_a_tokenizer_of_another_model_is_refused(tmp_path, sentencepiece_file):
    with pytest.raises(ConversionError, match="has 37 pieces, the model 99: it belongs to another model"):
        add_tokenizer(folder_of(tmp_path, 99), str(sentencepiece_file))


def test_what_is_no_tokenizer_is_refused(tmp_path):
    (tmp_path / "noise.model").write_bytes(b"noise")
    with pytest.raises(ConversionError, match=r"no tokenizer in .*noise\.model: .*sentencepiece\.bpe\.model"):
        add_tokenizer(folder_of(tmp_path, 37), str(tmp_path / "noise.model"))


def test_labels_are_read_from_lines_lists_and_dictionaries(tmp_path):
    names = ["crane (bird)", "Käse", "crane (machine)"]
    (tmp_path / "a.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
    (tmp_path / "a.json").write_text(json.dumps(names), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps({"2": names[2], "0": names[0], "1": names[1]}), encoding="utf-8")
    (tmp_path / "b.txt").write_text("\n".join(f" {name}\t" for name in names), encoding="utf-8-sig")
    files = ("a.txt", "b.txt", "a.json", "b.json")
    assert [read_labels(tmp_path / file) for file in files] == [names] * 4


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ('["a", "b", "a"]', "more than once.*: a"),
        ('["a", "b", "a "]', "more than once.*: a"),
        ('{"0": "a", "2": "b"}', "no labels"),
        ("7", "no labels"),
        ('["a", ""]', "empty"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path, content, word):
    (tmp_path / "labels.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConversionError, match=word):
        read_labels(tmp_path / "labels.json")
