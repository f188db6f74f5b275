"""Captions as a batch without padding: several in a row, each blind to the others.

Captions are short and of uneven length; the released models pad each to 102 tokens, of which some 18 are words. Here
almost nothing but words is computed, with the same result: a caption keeps its own positions and attends to itself.

Legend: B captions, R rows, T tokens of a row.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

SHORTEST_ROW = 128  # tokens; rows of the longest caption's length alone would be too short to fill well


class TextBatch(NamedTuple):
    """Captions in rows.

    Attributes:
        input_ids: int64 `(R, T)`.
        caption_ids: int32 `(R, T)`, which caption of its row a token belongs to, from 1; 0 for padding.
        position_ids: int64 `(R, T)`, counted anew in each caption; None if there is one caption a row, where the text
            tower counts for itself.
        starts: int64 `(B,)`, place of each caption's first token in the flattened rows.
    """

    input_ids: Tensor
    caption_ids: Tensor
    position_ids: Tensor | None
    starts: Tensor

    def to(self, device: torch.device | str) -> "TextBatch":
        """The same on another device."""
        return TextBatch(*(None if tensor is None else tensor.to(device) for tensor in self))

    @property
    def attention_mask(self) -> Tensor:
        """Who may look at whom: bool `(R, 1, T, T)`; or int64 `(R, T)` where a row is a caption, 0 for padding."""
        if self.position_ids is None:
            return (self.caption_ids > 0).long()
        # Padding sees padding: a row of nothing but forbidden keys would be NaN.
        return (self.caption_ids[:, None, :, None] == self.caption_ids[:, None, None, :]).contiguous()

    def text_inputs(self) -> dict[str, Tensor]:
        """Keyword arguments of a text tower."""
        inputs = {"input_ids": self.input_ids, "attention_mask": self.attention_mask}
        return inputs if self.position_ids is None else {**inputs, "position_ids": self.position_ids}

    def first_tokens(self, hidden_states: Tensor) -> Tensor:
        """`(R, T, D)` -> `(B, D)`: each caption's first token."""
        return hidden_states.flatten(0, 1)[self.starts]


@dataclass(frozen=True)
class CaptionBatches:
    """Makes batches of captions as one text tower takes them; knows no weights, so that data workers can have it.

    Attributes:
        pad_token_id: of the tower.
        first_position: as [`pack_captions`] takes it; None: this tower cannot be packed.
    """

    pad_token_id: int
    first_position: int | None

    def __call__(self, captions: Sequence[Sequence[int]], parts: int = 1) -> list[TextBatch]:
        """Token ids of captions, special tokens included, in as many batches, equally large but for rounding.

        Raises:
            ValueError: there is no caption, an empty one, or fewer captions than parts.
        """
        if not 1 <= parts <= len(captions):
            raise ValueError(f"{len(captions)} captions cannot be encoded in {parts} parts")
        bounds = [len(captions) * part // parts for part in range(parts + 1)]
        slices = [captions[start:end] for start, end in itertools.pairwise(bounds)]
        if self.first_position is None:
            return [pad_captions(part, pad_token_id=self.pad_token_id) for part in slices]
        options = {"pad_token_id": self.pad_token_id, "first_position": self.first_position}
        return [pack_captions(part, **options) for part in slices]


def pack_captions(captions: Sequence[Sequence[int]], *, pad_token_id: int, first_position: int) -> TextBatch:
    """Several captions a row, placed longest first into the row with the least room that is enough.

    Args:
        captions: token ids of each, special tokens included.
        pad_token_id: fills what is left.
        first_position: position of a caption's first token: `pad_token_id + 1` for the RoBERTa family, 0 for BERT's.

    Raises:
        ValueError: there is no caption, or one of them is empty.
    """
    _check(captions)
    length = max(SHORTEST_ROW, max(map(len, captions)))
    rows: list[list[int]] = []
    with_room: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the tokens that still fit
    for index in sorted(range(len(captions)), key=lambda index: -len(captions[index])):
        needed = len(captions[index])
        room = next((room for room in range(needed, length + 1) if with_room[room]), None)
        if room is None:
            room = length
            with_room[room].append(len(rows))
            rows.append([])
        row = with_room[room].pop()
        rows[row].append(index)
        with_room[room - needed].append(row)
    length -= next(room for room, members in enumerate(with_room) if members)
    starts = [0] * len(captions)
    columns: tuple[list, list, list] = ([], [], [])
    for row, members in enumerate(rows):
        tokens, numbers, positions = [], [], []
        for number, index in enumerate(members, start=1):
            starts[index] = row * length + len(tokens)
            count = len(captions[index])
            tokens += captions[index]
            numbers += [number] * count
            positions += range(first_position, first_position + count)
        rest = length - len(tokens)
        for column, values, filler in zip(
            columns, (tokens, numbers, positions), (pad_token_id, 0, first_position), strict=True
        ):
            column.append(values + [filler] * rest)
    input_ids, caption_ids, position_ids = map(torch.tensor, columns)
    return TextBatch(input_ids, caption_ids.int(), position_ids, torch.tensor(starts))


def pad_captions(captions: Sequence[Sequence[int]], *, pad_token_id: int) -> TextBatch:
    """A caption a row, padded to the longest: for text towers that cannot be packed.

    Raises:
        ValueError: there is no caption, or one of them is empty.
    """
    _check(captions)
    length = max(map(len, captions))
    input_ids = torch.full((len(captions), length), pad_token_id)
    caption_ids = torch.zeros(len(captions), length, dtype=torch.int32)
    for row, caption in enumerate(captions):
        input_ids[row, : len(caption)] = torch.as_tensor(caption)
        caption_ids[row, : len(caption)] = 1
    return TextBatch(input_ids, caption_ids, None, torch.arange(len(captions)) * length)


def _check(captions: Sequence[Sequence[int]]) -> None:
    if not captions or not all(map(len, captions)):
        raise ValueError("every caption needs at least one token, and a batch at least one caption")


__all__ = ["CaptionBatches", "TextBatch", "pack_captions", "pad_captions"]
