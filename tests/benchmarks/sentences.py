"""What reading sentences costs, and how full the passes of a text tower are.

    python -m tests.benchmarks.sentences FILE        (half a minute; FILE has a sentence a line)

Time and memory of a file of a million made-up sentences, then FILE in CLIP's tokens through `ShardTexts`, with a tower
that computes nothing.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import open_clip

from reinforce.config import CorpusConfig
from reinforce.sample import Embeddings
from reinforce.shards.sentences import read_sentences
from reinforce.teachers import FakeTeacher, TokenizedText
from reinforce.teachers.texts import BUCKET, TextTokenizer
from reinforce.texts import ShardTexts
from tests.benchmarks.memory import status_kb

_NUM_SENTENCES, _BATCH_SIZE, _AT_ONCE = 1_000_000, 64, 256


class NoTower(FakeTeacher):
    """Reads as CLIP ViT-B/32 reads, and counts the rows of its passes, padding included."""

    def __init__(self) -> None:
        super().__init__("none", dim=4)
        tokenizer = open_clip.get_tokenizer("ViT-B-32")
        self._tokenizer = TextTokenizer(lambda texts, length: tokenizer(texts, context_length=length), 77)
        self.num_rows = 0

    def tokenize(self, texts: list[str]) -> list[TokenizedText]:
        return self._tokenizer.tokenize(texts, bucketed=True)

    def rows_of_pass(self, length: int) -> int:
        return max(1, _BATCH_SIZE * BUCKET // length)

    def embed_tokens(self, texts: Sequence[TokenizedText]) -> Embeddings:
        self.num_rows += self.rows_of_pass(texts[0].length)
        return np.zeros((len(texts), self.dim), np.float32)


class _NoTimes:
    def measure(self, stage: str) -> nullcontext[None]:
        return nullcontext()


def measure_reading(path: str) -> None:
    before, start = status_kb("VmRSS"), time.perf_counter()
    count = sum(1 for _ in read_sentences(Path(path), ".txt", CorpusConfig(files=path)))
    each_us = (time.perf_counter() - start) / count * 1e6
    each_bytes = (status_kb("VmHWM") - before) * 1024 / count
    print(f"reading {count:,} sentences: {each_us:.1f} us and {each_bytes:.0f} bytes each")


def measure_passes(path: Path) -> None:
    texts = list(dict.fromkeys(line.strip() for line in path.read_text().splitlines() if line.strip()))
    tower = NoTower()
    shard, start = ShardTexts(tower, _NoTimes()), time.perf_counter()
    for first in range(0, len(texts), _AT_ONCE):
        part = texts[first : first + _AT_ONCE]
        shard.add([str(first + index) for index in range(len(part))], {"": [[text] for text in part]})
    shard.finish()
    rate = len(texts) / (time.perf_counter() - start)
    share = len(texts) / tower.num_rows
    print(f"{share:.1%} of the rows of passes are sentences, the rest is padding; tokenised at {rate:,.0f}/s")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sentences.txt"
        path.write_text("".join(f"a photo of number {index} beside a table\n" for index in range(_NUM_SENTENCES)))
        # In a process of its own, which has not held the file's content.
        code = f"from tests.benchmarks.sentences import measure_reading; measure_reading({str(path)!r})"
        subprocess.run([sys.executable, "-c", code], check=True)
    measure_passes(Path(sys.argv[1]))


if __name__ == "__main__":
    main()
