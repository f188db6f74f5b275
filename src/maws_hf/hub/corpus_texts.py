"""The texts of a corpus: captions of a data set, lines of text files."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

SHOWN = 12  # languages, in a message


class CorpusTextError(ValueError):
    """Texts cannot be read as asked; the message names the column, language or file."""


def requested_texts(
    dataset: str | None,
    *,
    splits: Sequence[str],
    column: str,
    languages: Sequence[str] | None,
    text_files: Sequence[Path] | None,
    further: Sequence[str],
) -> Iterator[str] | None:
    """The texts that the options of `maws-hf text-tower` name; None if they name none.

    Raises:
        CorpusTextError: also while reading, for texts that are not there.
    """
    if dataset is None and languages:
        raise CorpusTextError("--languages chooses among the captions of --dataset_name: name one.")
    if dataset is None and not text_files:
        if further:
            raise CorpusTextError("--keep_text adds to a cut vocabulary: give --dataset_name or --text_file too.")
        return None
    captions = caption_texts(dataset, splits=splits, column=column, languages=languages) if dataset else ()
    return chain(captions, text_file_lines(text_files or ()), further)


def caption_texts(
    dataset: str, *, splits: Sequence[str], column: str, languages: Sequence[str] | None = None
) -> Iterator[str]:
    """All texts of a column of a data set, as often as they occur.

    Args:
        dataset: folder, glob of shards or Hub id, as `maws_hf.data.sources.open_stream` takes it.
        splits: all of these are read.
        column: its values are texts, lists of texts, or lists of `{"language": ..., "text": ...}`.
        languages: only these are read, of the last kind of value; None reads all.

    Raises:
        CorpusTextError: no such column, other values in it, or a language that does not occur.
        DataSourceError: the data set cannot be opened.
    """
    from maws_hf.data.sources import open_stream

    wanted = set(languages or ())
    found: set[str] = set()
    for split in splits:
        stream = open_stream(dataset, split=split, require_image=False)
        if stream.features is not None:
            if column not in stream.features:
                there = ", ".join(stream.features)
                raise CorpusTextError(f"--caption_column_name {column}: {dataset} has only the columns {there}.")
            stream = stream.select_columns([column])
        for row in tqdm(stream, desc=f"Reading {column} of {split}", unit=" rows", leave=False):
            for language, text in _language_and_text(row.get(column), f"column {column} of {dataset}"):
                if language is not None:
                    found.add(language)
                if not wanted or language in wanted:
                    yield text
    if missing := sorted(wanted - found):
        there = f"captions in {', '.join(sorted(found)[:SHOWN])}" if found else "texts without a language"
        there += f" and {len(found) - SHOWN} more languages" if len(found) > SHOWN else ""
        raise CorpusTextError(f"--languages {missing[0]}: column {column} of {dataset} has {there}.")


def text_file_lines(files: Iterable[Path]) -> Iterator[str]:
    """The lines of UTF-8 text files that are not empty.

    Raises:
        CorpusTextError: a file is missing or not UTF-8.
    """
    for path in files:
        try:
            with path.open(encoding="utf-8-sig") as file:
                yield from (line.strip() for line in file if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise CorpusTextError(f"--text_file {path} cannot be read as UTF-8 text: {error}") from error


def _language_and_text(value: Any, where: str) -> Iterator[tuple[str | None, str]]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield None, item
        elif isinstance(item, dict) and isinstance(item.get("text"), str):
            yield item.get("language"), item["text"]
        elif item is not None:
            raise CorpusTextError(
                f"The {where} holds values of type {type(item).__name__}, neither texts nor texts with their "
                "language: name another --caption_column_name."
            )
