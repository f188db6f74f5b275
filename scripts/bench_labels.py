"""How many captions per second become labels, with one process and with two, and how much memory that takes.

    python scripts/bench_labels.py
    python scripts/bench_labels.py --rows 100000 --num_proc 1 4

The captions are synthetic: words, links, and hashtags of which the known ones follow Zipf's law (WordNet words as they
are, in CamelCase, as plurals, with a year) and most others are unique (typos, slang, other scripts, machine tags,
emoji). Every run is a process of its own; memory is what it and its workers hold together, sampled 20 times a second.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import tempfile
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from side_by_side import describe_machine, markdown_table, positive

from maws_hf.data.labelling import label_dataset
from maws_hf.data.wordnet import WordNet, find_wordnet

SCRIPTS = ("абвгдежзиклмнопрстуфхцч", "いうえおかきくけこさしす犬猫花", "ابتثجحخدذرزسش", "กขคงจฉชซดตถทนบ")
EMOJI = ("🐶", "🦊", "❤️", "👩‍🚀", "🏃‍♀️", "🇫🇷", "⭐", "🌻", "👍🏽")
FILLER = re.findall(r"\S+", "such a lovely day , see https://example.com/p?id=1#top and tell me &#39;yes&#39; !")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=positive, default=1_000_000, help="captions (default: %(default)s)")
    parser.add_argument("--shards", type=positive, default=16, help="files they lie in (default: %(default)s)")
    parser.add_argument("--num_proc", type=positive, nargs="+", default=[1, 2], help="processes (default: 1 2)")
    args = parser.parse_args()
    if args.rows < args.shards:
        parser.error(f"--rows {args.rows} leave some of --shards {args.shards} empty")
    with tempfile.TemporaryDirectory() as folder:
        captions = Path(folder, "captions")
        write_captions(captions, args.rows, args.shards)
        print(describe_machine())
        print(f"{args.rows:,} captions in {args.shards} shards\n")
        rows = []
        for num_proc in args.num_proc:
            (seconds, cpu_seconds), memory = measure(captions, Path(folder, f"labels-{num_proc}"), num_proc)
            half = len(memory) // 2
            rates = [f"{args.rows / seconds:,.0f}", f"{args.rows / cpu_seconds:,.0f}"]
            peaks = [f"{max(part):,.0f}" for part in (memory, memory[:half], memory[half:])]
            rows.append([str(num_proc), f"{seconds:.1f}", *rates, *peaks])
        header = ["processes", "seconds", "rows/s", "rows/CPU s", "MB at most", "first half", "second half"]
        print(f"{markdown_table(header, rows)}\n")
        print(Path(folder, f"labels-{args.num_proc[-1]}", "summary.txt").read_text(encoding="utf-8"))


def write_captions(folder: Path, rows: int, shards: int) -> None:
    folder.mkdir()
    rng = random.Random(0)
    words = [lemma for lemma in WordNet.load(find_wordnet()) if lemma.replace("_", "").isalpha()]
    rng.shuffle(words)
    for shard in range(shards):
        count = rows * (shard + 1) // shards - rows * shard // shards
        table = pa.table({"caption": [caption(rng, words) for _ in range(count)]})
        pq.write_table(table, folder / f"train-{shard:05d}.parquet")


def caption(rng: random.Random, words: list[str]) -> str:
    text = rng.choices(FILLER, k=rng.randint(0, 8))
    return " ".join(text + [f"#{tag(rng, words)}" for _ in range(int(rng.expovariate(0.25)))])


def tag(rng: random.Random, words: list[str]) -> str:
    kind = rng.random()
    word = words[int(rng.paretovariate(0.4)) % len(words)]  # the share of rank r falls as r to the power of -1.4
    if kind < 0.25:
        return word
    if kind < 0.35:
        return word.replace("_", "")
    if kind < 0.42:
        return word.title().replace("_", "")
    if kind < 0.50:
        return f"{word}s"
    if kind < 0.54:
        return f"{word}{rng.randint(2005, 2030)}"
    if kind < 0.58:
        return rng.choice(EMOJI) * rng.randint(1, 2)
    if kind < 0.68:
        return "".join(rng.choices(rng.choice(SCRIPTS), k=rng.randint(2, 9)))
    if kind < 0.72:
        return f"IMG_{rng.randint(0, 99_999):05d}"
    if kind < 0.80:  # a typo
        place = rng.randrange(len(word))
        return f"{word[:place]}{rng.choice('aeiourst')}{word[place:]}"
    return "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(4, 16)))


def measure(captions: Path, output_dir: Path, num_proc: int) -> tuple[list[float], list[float]]:
    """Seconds and CPU seconds of a run, and the memory in MB of its process tree over time."""
    run = multiprocessing.get_context("spawn").Process(target=label, args=(captions, output_dir, num_proc))
    run.start()
    memory = []
    while run.is_alive():
        memory.append(tree_memory(run.pid))
        time.sleep(0.05)
    if run.exitcode:
        raise SystemExit(run.exitcode)
    return json.loads((output_dir / "seconds.json").read_text()), memory


def label(captions: Path, output_dir: Path, num_proc: int) -> None:
    start, cpu_start = time.perf_counter(), cpu_seconds()
    report = label_dataset(captions, output_dir, text_column="caption", num_proc=num_proc)
    seconds = [time.perf_counter() - start, cpu_seconds() - cpu_start]
    (output_dir / "seconds.json").write_text(json.dumps(seconds))
    (output_dir / "summary.txt").write_text(str(report), encoding="utf-8")


def cpu_seconds() -> float:
    """Of this process and of its workers that have ended."""
    return sum(os.times()[:4])


def tree_memory(pid: int) -> float:
    """MB of a process and its children; pages that they share count once (Linux), or once each."""
    total = 0.0
    try:
        for process in (parent := psutil.Process(pid), *parent.children(recursive=True)):
            info = process.memory_full_info()
            total += getattr(info, "pss", info.uss) / 1e6
    except psutil.Error:
        pass  # ended meanwhile
    return total


if __name__ == "__main__":
    main()
