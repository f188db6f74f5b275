"""An endless stream of training samples that every process can leave and re-enter at any sample.

A *consumer* is one worker of one rank; there are C = ranks x max(1, workers) of them. In every epoch the consumers
share the data set exactly: no sample is lost, none is seen twice. With `repeats` a row may be several samples of an
epoch or none, by a count that is not shared out but decided where the row is read. What a consumer yields depends on
nothing but (seed, epoch, consumer, index), never on a global generator or on how often the run was stopped.

    epoch   the shards are put into an order that all consumers agree on, and each takes its share
    block   `block_size` rows are read as bytes, repeated if asked, and permuted
    sample  goes through `transform` with a generator of its own; a bad one is skipped and recorded

The position is the data set's own state at the start of a block and an offset into it, so re-entering costs one block
(plus what the format must read to get there: a row group in Parquet, a shard from its start in tar).
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import fsspec.asyn
import numpy as np
import torch
from datasets import IterableDataset
from datasets.distributed import split_dataset_by_node
from torch.utils.data import get_worker_info

from maws_hf.data.samples import KEY, Sample, content_key, sample_key
from maws_hf.data.sources import digest_of_files
from maws_hf.data.tolerance import Loss, are_too_many, collect_losses, shard_being_read
from maws_hf.processing.decode import ImageDecodeError

__all__ = ["ImageStream", "StreamError", "StreamStateError"]

Transform = Callable[[Sample, np.random.Generator], Sample]

# With so many shards for each consumer whole ones are dealt, though some get one more: their epochs take a quarter
# longer at most, but each is still shared exactly. With fewer, all consumers read all data and keep their part.
SHARDS_ARE_EVEN_ENOUGH = 4
_ONCE = 32  # what it was before it was part of the identity

# Of few images one of many consumers may be dealt nothing but bad ones. That hardly ever happens so often in a row.
MOST_EPOCHS_WITHOUT_A_SAMPLE = 20
ENOUGH_ROWS_WITHOUT_A_LABEL = 1000  # to know after one epoch that it is no matter of luck

_SHARD_ORDER, _BLOCK_ORDER, _AUGMENTATION, _COPIES = range(4)  # what a generator is for: first word of its seed


class StreamError(RuntimeError):
    """The stream cannot go on; the message says where it stands and what to change."""


class StreamStateError(ValueError):
    """A saved position belongs to another stream; the message lists every difference."""


@dataclass(frozen=True)
class Position:
    """Where a consumer is: the next sample is number `index` of its epoch and number `offset` of its block.

    Both count samples: a row that is repeated counts as often, a row left out not at all.
    """

    epoch: int = 0
    index: int = 0
    block: int = 0
    offset: int = 0
    block_state: dict | None = None  # the data set's state where the block starts; None at the start of an epoch


def _strategy_for(shards: int, consumers: int, enough: int) -> str:
    return "shards" if shards % consumers == 0 or shards >= enough * consumers else "examples"


class ImageStream(torch.utils.data.IterableDataset):
    """Samples without end for one rank, to be batched by `maws_hf.data.loader.build_loader`.

    Yields what `transform(sample, rng)` returns, a dict, with one field more: "skipped", the records
    `{"key", "reason", "epoch", "consumer"}` of the bad samples met since the last good one. The sample handed to
    `transform` always has a name under "__key__".

    Args:
        dataset: from `open_stream`, neither shuffled nor split: both happen here.
        transform: makes a training sample of a row; raises `ImageDecodeError` for a row to be skipped.
        seed: of everything random, not negative.
        rank, world_size: this process among those that share the data.
        num_workers: DataLoader workers of each rank; 0 reads in the main process.
        block_size: rows permuted together, held in memory as bytes by every consumer.
        shuffle: False gives the order of the files in every epoch, copies of a row one after the other.
        repeats: copies of a row that an epoch shall hold, as a pure function of the row (its image still bytes); all
            rows have one when None. Of 2.3, each epoch makes 2 or 3, drawn anew with the mean 2.3; of 0, none, and the
            row is never decoded. A copy is augmented by itself but stays in its row's block: the copies of a row may
            meet in one batch, more rarely so in larger blocks. The attribute `fingerprint`, a string, tells one rule
            from another when a position is resumed, and `labels_fingerprint`, if there is one, what they are trained
            for: that is the same also where files were added.
        max_consecutive_skips: so many bad samples in a row end the stream.
        max_lost_shards: share of a consumer's shards; more damaged ones in an epoch than that, and than one, end the
            stream. Each is recorded in "skipped" under its path, and read up to its damage.
        source: what the rows were computed from, if they were; a position is of no use with another one.

    Raises:
        ValueError: an argument is out of range.
        StreamError: while iterating, when a consumer has no samples or no good ones, in many epochs if it gets others
            in each, or `repeats` fails.
    """

    def __init__(
        self,
        dataset: IterableDataset,
        transform: Transform,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_workers: int = 0,
        block_size: int = 1024,
        shuffle: bool = True,
        max_consecutive_skips: int = 1000,
        max_lost_shards: float = 0.01,
        repeats: Callable[[Sample], float] | None = None,
        source: str | None = None,
    ):
        limits = {"seed": (seed, 0), "num_workers": (num_workers, 0), "world_size": (world_size, 1)}
        limits |= {"block_size": (block_size, 1), "max_consecutive_skips": (max_consecutive_skips, 1)}
        for name, (value, least) in limits.items():
            if value < least:
                raise ValueError(f"{name} is {value}, it must be at least {least}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, it must lie in 0..{world_size - 1} (world_size {world_size})")
        self.dataset, self.transform = dataset, transform
        self.seed, self.rank, self.world_size, self.num_workers = seed, rank, world_size, num_workers
        self.block_size, self.shuffle, self.max_consecutive_skips = block_size, shuffle, max_consecutive_skips
        self.max_lost_shards = max_lost_shards
        self.repeats, self.source = repeats, source
        self.consumers = world_size * max(1, num_workers)
        self.strategy = self._choose_strategy()
        self.first_epoch = 0  # where a stream without a loaded position begins
        self._position = Position()
        self._loaded: Position | None = None

    def _choose_strategy(self) -> str:
        shards, consumers = self.dataset.num_shards, self.consumers
        strategy = _strategy_for(shards, consumers, SHARDS_ARE_EVEN_ENOUGH)
        if strategy == "examples" and self.rank == 0:
            warnings.warn(
                f"{shards} shards cannot be dealt evenly to {consumers} consumers ({self.world_size} ranks x "
                f"{max(1, self.num_workers)} workers): each reads all the data and keeps one sample in {consumers}: "
                f"they are read {consumers} times an epoch; to read once, write a multiple of {consumers} shards, "
                f"or {SHARDS_ARE_EVEN_ENOUGH * consumers} and more, or change --dataloader_num_workers",
                stacklevel=3,
            )
        return strategy

    def __iter__(self) -> Iterator[Sample]:
        # Set here and not in the generator, which starts with the first sample: the loader asks for the state before.
        self._position, self._loaded = self._loaded or Position(epoch=self.first_epoch), None
        return self._samples(self._position)

    def _samples(self, position: Position) -> Iterator[Sample]:
        if get_worker_info() is not None:
            fsspec.asyn.reset_lock()  # a lock inherited through fork hangs remote reads; datasets does so in __iter__
        skipped: list[dict] = []  # outlives epochs: a record travels with the next good sample, whenever that comes
        most_in_vain = MOST_EPOCHS_WITHOUT_A_SAMPLE if self.shuffle and self.consumers > 1 else 1
        in_vain = 0
        while True:
            reason = yield from self._epoch(position, skipped)
            in_vain = 0 if reason is None else in_vain + 1
            if in_vain == most_in_vain:
                raise StreamError(reason)
            position = Position(epoch=position.epoch + 1)

    def _epoch(self, start: Position, skipped: list[dict]) -> Generator[Sample, None, str | None]:
        """Yields its samples; returns why there are none, where another epoch's draw may give this consumer some."""
        epoch, consumer = start.epoch, self._consumer()
        index, offset, found_good = start.index, start.offset, start.index > 0
        rows_read, wanted_any = 0, False
        lost_shards: list[str] = []
        for block, state, rows, losses in self._blocks(start):
            if offset == 0:  # else they were told before the stream was left in this block
                skipped += [
                    {"key": loss.shard, "reason": loss.reason} | {"epoch": epoch, "consumer": consumer}
                    for loss in losses
                ]
            self._judge(lost_shards, losses, epoch)
            wanted = self._wanted_copies(rows, f"epoch {epoch} consumer {consumer} block {block}")
            rows_read, wanted_any = rows_read + len(rows), wanted_any or bool(wanted.any())
            order = self._order(wanted, epoch, consumer, block)
            for place in range(offset, len(order)):
                sample = dict(rows[order[place]])  # a copy, for the row may come again and is not to keep this name
                name = sample_key(sample)
                sample[KEY] = name or f"epoch {epoch} consumer {consumer} sample {index}"
                rng = self._generator(_AUGMENTATION, epoch, consumer, index)
                index += 1
                try:
                    prepared = self.transform(sample, rng)
                except ImageDecodeError as error:
                    key = error.key if name else content_key(sample) or error.key
                    skipped.append({"key": key, "reason": error.reason, "epoch": epoch, "consumer": consumer})
                    if len(skipped) >= self.max_consecutive_skips:
                        message = self._about_skips(f"{len(skipped)} bad samples in a row", epoch, skipped)
                        raise StreamError(message) from error
                    continue
                except Exception as error:
                    raise StreamError(f"{sample[KEY]}: {type(error).__name__} in the transform: {error}") from error
                found_good = True
                self._position = Position(epoch, index, block, place + 1, state)
                yield {**prepared, "skipped": list(skipped)}
                skipped.clear()
            offset = 0  # only the first block was entered in its middle
        if rows_read == 0 and lost_shards:
            return f"{self._name(consumer)} finds nothing but damage: {lost_shards[0]} ({losses[-1].reason})"
        if rows_read == 0:
            raise StreamError(
                f"{self._name(consumer)} finds no sample in epoch {epoch}: the data set has fewer samples than the "
                f"{self.consumers} consumers; use fewer processes or a lower --dataloader_num_workers"
            )
        if not wanted_any and index == 0:
            reason = (
                f"{self._name(consumer)} finds no row with a label among its {rows_read} in epoch {epoch} (`repeats` "
                "gives 0 for each): check the column of labels or captions, or use fewer processes if they are rare"
            )
            if rows_read >= ENOUGH_ROWS_WITHOUT_A_LABEL:
                raise StreamError(reason)
            return reason
        if not found_good and index > 0:  # without samples, all fractions were rounded down, and the next epoch draws
            return self._about_skips(f"no good sample among {index}", epoch, skipped)
        return None

    def _judge(self, lost: list[str], losses: list[Loss], epoch: int) -> None:
        """Notes damaged shards of an epoch in `lost`; raises StreamError if they are too many."""
        lost += [loss.shard for loss in losses if loss.shard not in lost]
        shards = self.dataset.num_shards // (self.consumers if self.strategy == "shards" else 1)
        if are_too_many(len(lost), shards, self.max_lost_shards):
            raise StreamError(
                f"{self._name(self._consumer())} meets {len(lost)} damaged shards in epoch {epoch}, the last "
                f"{losses[-1].shard} ({losses[-1].reason}): repair them, or allow more with --max_skip_rate"
            )

    def _wanted_copies(self, rows: list[Sample], where: str) -> np.ndarray:
        """(rows,) what `repeats` says of each."""
        if self.repeats is None:
            return np.ones(len(rows))
        wanted = np.empty(len(rows))
        for number, row in enumerate(rows):
            key = sample_key(row) or f"{where} row {number}"
            try:
                wanted[number] = self.repeats({**row, KEY: key})
            except Exception as error:
                raise StreamError(f"{key}: {type(error).__name__} in `repeats`: {error}") from error
            if not 0 <= wanted[number] < math.inf:
                raise StreamError(f"{key}: `repeats` gives {wanted[number]}, it must be finite and not negative")
        return wanted

    def _order(self, wanted: np.ndarray, epoch: int, consumer: int, block: int) -> np.ndarray:
        """Row numbers of a block's samples, each row's as often as the draws decide."""
        whole = np.floor(wanted)
        draws = self._generator(_COPIES, epoch, consumer, block).random(len(wanted))
        copies = whole + (draws < wanted - whole)
        order = np.repeat(np.arange(len(wanted)), copies.astype(np.int64))
        if not self.shuffle:
            return order
        return order[self._generator(_BLOCK_ORDER, epoch, consumer, block).permutation(len(order))]

    def _blocks(self, start: Position) -> Iterator[tuple[int, dict | None, list[Sample], list[Loss]]]:
        """(number, state of the data set before it, rows, damaged shards met) of each block from `start` on.

        The last one has no rows if shards at the end of the epoch are damaged.
        """
        consumer, consumers = self._consumer(), self.consumers
        dataset = split_dataset_by_node(self.dataset, rank=consumer, world_size=consumers, strategy=self.strategy)
        # The data set orders its shards by what it takes for an epoch, and ignores a state of another epoch silently.
        epoch_seed = self._generator(_SHARD_ORDER, start.epoch).integers(1, 2**32) if self.shuffle else 0
        dataset.set_epoch(int(epoch_seed))
        if start.block_state is not None:
            if start.block_state["epoch"] != epoch_seed:
                raise StreamStateError("the saved position contradicts itself: its shards were in another order")
            dataset.load_state_dict(start.block_state)
        block, state = start.block, start.block_state
        # iter(dataset) would split once more by DataLoader worker; dataset.iter() does not.
        batches = dataset.iter(batch_size=self.block_size)
        while True:
            try:
                with collect_losses() as losses:
                    columns = next(batches, None)
            except Exception as error:
                where = f"{self._name(consumer)} cannot read block {block} of epoch {start.epoch}"
                if (shard := shard_being_read()) is not None and shard not in str(error):
                    where += f" in {shard}"
                raise StreamError(f"{where}: {type(error).__name__}: {error}") from error
            if columns is None:
                if losses:
                    yield block, state, [], losses
                return
            count = len(next(iter(columns.values())))
            yield block, state, [{name: column[i] for name, column in columns.items()} for i in range(count)], losses
            block, state = block + 1, dataset.state_dict()

    def _generator(self, purpose: int, *counters: int) -> np.random.Generator:
        return np.random.default_rng([purpose, self.seed, *counters])

    def _worker(self) -> int:
        info = get_worker_info()
        workers, worker = (info.num_workers, info.id) if info is not None else (0, 0)
        if workers != self.num_workers:
            raise StreamError(
                f"the stream was made for num_workers={self.num_workers} and is read by {workers}: "
                "iterate over build_loader(stream, ...)"
            )
        return worker

    def _consumer(self) -> int:
        return self.rank * max(1, self.num_workers) + self._worker()

    def _name(self, consumer: int) -> str:
        return f"consumer {consumer} of {self.consumers} (rank {self.rank}, worker {self._worker()})"

    def _about_skips(self, what: str, epoch: int, skipped: list[dict]) -> str:
        reasons = Counter(record["reason"] for record in skipped)
        listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
        shard = f" while it reads {shard_being_read()}" if shard_being_read() else ""
        return (
            f"{self._name(self._consumer())} meets {what} in epoch {epoch}{shard}, the last {skipped[-1]['key']} "
            f"({listed}): check --image_column_name and the data, or allow more with --max_skip_rate"
        )

    def identity(self) -> dict[str, Any]:
        """What a saved position is only valid with."""
        names = ("seed", "rank", "world_size", "num_workers", "strategy", "block_size", "shuffle", "source")
        # A rule that does not say which it is differs at least from none.
        repeats = None if self.repeats is None else getattr(self.repeats, "fingerprint", "without a fingerprint")
        labels = getattr(self.repeats, "labels_fingerprint", None)
        identity = {name: getattr(self, name) for name in names}
        # Rows that were computed are the same, also where the files that hold them were written anew.
        files = digest_of_files(self.dataset) if self.source is None else None
        return identity | {"num_shards": self.dataset.num_shards, "files": files, "repeats": repeats, "labels": labels}

    def differences(self, saved: dict[str, Any], but: Collection[str] = ()) -> list[str]:
        """Names in `identity()` whose values are not those of `saved`, leaving out `but`."""
        now, saved = self.identity(), self._completed(saved)
        return [name for name in now if name not in but and saved.get(name) != now[name]]

    def _completed(self, saved: dict[str, Any]) -> dict[str, Any]:
        """With what a position did not hold when it was saved by an earlier version."""
        strategy = _strategy_for(self.dataset.num_shards, self.consumers, _ONCE)
        labels = (saved.get("repeats") or "").partition("-")[2] or None
        return {"files": self.identity()["files"], "strategy": strategy, "labels": labels, **saved}

    def check_identity(self, saved: dict[str, Any], but: Collection[str] = ()) -> None:
        """Raises StreamStateError listing every difference between `saved` and this stream's `identity()`.

        Args:
            but: names that may differ.
        """
        now, names, saved = self.identity(), self.differences(saved, but), self._completed(saved)
        if "labels" in names:
            raise StreamStateError(
                "the classes, or their order, or the column of labels, are not those that this run learns: the head "
                "would answer with wrong names; restore them (class folders and names as they were), or begin anew in "
                "another --output_dir"
            )
        differences = [f"{name} {saved.get(name)} (now {now[name]})" for name in names]
        if differences:
            raise StreamStateError(
                f"the saved position belongs to a stream with {', '.join(differences)}: continue with the same values"
            )

    def state_dict(self) -> dict[str, Any]:
        """Position after the last sample yielded, of JSON types only, with all that it is valid with."""
        return {"identity": self.identity(), "worker": self._worker(), **asdict(self._position)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next `iter()` continue there.

        Raises:
            StreamStateError: the state was saved by a stream or worker that reads other samples.
        """
        self.check_identity(state["identity"])
        if state["worker"] != self._worker():
            raise StreamStateError(f"the position of worker {state['worker']} was given to worker {self._worker()}")
        self._loaded = Position(**{name: state[name] for name in asdict(Position())})
        self._position = self._loaded
