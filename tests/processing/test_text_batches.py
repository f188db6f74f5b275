"""Packed captions: nothing is lost, nothing is mixed, little is padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maws_hf.processing.text_batches import SHORTEST_ROW, TextBatch, pack_captions, pad_captions

PAD = 1


def numbered(lengths):
    """Captions of these lengths in which no token occurs twice, nor the padding."""
    ends = np.cumsum(lengths) + PAD + 1
    return [list(range(end - length, end)) for end, length in zip(ends.tolist(), lengths, strict=True)]


def place_of(batch: TextBatch, token: int) -> tuple[int, int]:
    ((row, column),) = (batch.input_ids == token).nonzero().tolist()
    return row, column


lengths_of_captions = st.lists(st.integers(1, 102), min_size=1, max_size=40)


@settings(max_examples=150, deadline=None)
@given(lengths=lengths_of_captions, first_position=st.sampled_from([0, 2]))
def test_every_token_is_there_once_at_its_own_position(lengths, first_position):
    captions = numbered(lengths)
    batch = pack_captions(captions, pad_token_id=PAD, first_position=first_position)
    for caption in captions:
        for position, token in enumerate(caption):
            assert batch.position_ids[place_of(batch, token)] == first_position + position
    assert int((batch.input_ids == PAD).sum()) == batch.input_ids.numel() - sum(lengths)
    assert torch.equal(batch.caption_ids == 0, batch.input_ids == PAD)


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_a_token_sees_its_caption_and_nothing_else(lengths):
    captions = numbered(lengths)
    batch = pack_captions(captions, pad_token_id=PAD, first_position=2)
    assert batch.attention_mask.dtype == torch.bool
    owner = {token: number for number, caption in enumerate(captions) for token in caption}
    for row, tokens in enumerate(batch.input_ids.tolist()):
        for column, token in enumerate(tokens):
            seen = {tokens[place] for place in batch.attention_mask[row, 0, column].nonzero()[:, 0].tolist()}
            assert seen == (set(captions[owner[token]]) if token in owner else {PAD})  # and no row sees nothing


@settings(max_examples=100, deadline=None)
@given(lengths=lengths_of_captions)
def test_first_tokens_are_those_of_the_captions_in_their_order(lengths):
    captions = numbered(lengths)
    for batch in (
        pack_captions(captions, pad_token_id=PAD, first_position=2),
        pad_captions(captions, pad_token_id=PAD),
    ):
        hidden_states = torch.stack([batch.input_ids.float(), -batch.input_ids.float()], dim=-1)
        expected = torch.tensor([[caption[0], -caption[0]] for caption in captions]).float()
        assert torch.equal(batch.first_tokens(hidden_states), expected)


@settings(max_examples=100, deadline=None)
@given(lengths=lengths_of_captions)
def test_rows_are_no_longer_than_needed(lengths):
    batch = pack_captions(numbered(lengths), pad_token_id=PAD, first_position=2)
    used = (batch.caption_ids > 0).sum(dim=1)
    assert batch.input_ids.shape[1] == used.max()  # one row is full
    assert max(lengths) <= batch.input_ids.shape[1] <= max(SHORTEST_ROW, max(lengths))
    assert used.min() > 0
    # Two rows that would fit into one would have been one.
    assert len(used) == 1 or sum(sorted(used.tolist())[:2]) > max(SHORTEST_ROW, max(lengths))


def test_a_caption_goes_where_the_least_room_is_left():
    # 27 beside 100, so that 19 and 19 fit beside 90.
    batch = pack_captions(numbered([19, 27, 90, 19, 100]), pad_token_id=PAD, first_position=2)
    assert sorted((batch.caption_ids > 0).sum(dim=1).tolist()) == [127, 128]


@pytest.mark.parametrize("mean", [6, 18, 40])
def test_rows_of_captions_as_they_are_written_are_nearly_full(mean):
    rng = np.random.default_rng(mean)
    lengths = np.clip(rng.lognormal(np.log(mean), 0.6, 256).astype(int), 3, 102).tolist()
    batch = pack_captions(numbered(lengths), pad_token_id=PAD, first_position=2)
    assert sum(lengths) / batch.input_ids.numel() > 0.9
    assert batch.input_ids.numel() < 0.6 * pad_captions(numbered(lengths), pad_token_id=PAD).input_ids.numel()


def test_padded_captions_are_a_row_each():
    batch = pad_captions([[5, 6, 7], [8]], pad_token_id=PAD)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, PAD, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.text_inputs().keys() == {"input_ids", "attention_mask"}  # the tower counts positions itself


def test_packed_captions_bring_their_positions_and_survive_a_move():
    batch = pack_captions([[5, 6], [7]], pad_token_id=PAD, first_position=2)
    moved = batch.to("cpu")
    assert moved.text_inputs().keys() == {"input_ids", "attention_mask", "position_ids"}
    for name in ("input_ids", "caption_ids", "position_ids", "starts"):
        assert torch.equal(getattr(moved, name), getattr(batch, name))
    assert pad_captions([[5]], pad_token_id=PAD).to("cpu").position_ids is None


@pytest.mark.parametrize("captions", [[], [[5], []]])
def test_nothing_to_read_is_an_error(captions):
    with pytest.raises(ValueError, match="every caption needs at least one token"):
        pack_captions(captions, pad_token_id=PAD, first_position=2)
    with pytest.raises(ValueError, match="every caption needs at least one token"):
        pad_captions(captions, pad_token_id=PAD)
