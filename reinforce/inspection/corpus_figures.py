"""What an inspection found of corpora: plain numbers and a few sentences."""

from dataclasses import dataclass

from reinforce.inspection.measures import Distribution, DropFigures, Missing


@dataclass(frozen=True, slots=True)
class SentenceTeacherFigures:
    """What a teacher says of a corpus: its files, which are not there yet, nulls, and the sentences that it cut.

    `max_norm_error` is the largest |norm - 1| among the embeddings that were read.
    """

    name: str
    num_files: int
    missing: Missing
    num_bytes: int
    nulls: dict[str, int]
    num_truncated_texts: int
    max_norm_error: float | None
    mantissa_bits: int | None


@dataclass(frozen=True, slots=True)
class SentenceExample:
    """A kept sentence, cut if it is very long."""

    stem: str
    key: str
    text: str


@dataclass(frozen=True, slots=True)
class CorpusFigures:
    """Sentences without images, over all their files; those of text from the first rows of a few files.

    `column` and `reading` say how they were read, `num_cut` counts those that the recipe cut. Counts are scaled up from
    `num_footer_files`, if those are not all.
    """

    name: str
    column: str
    reading: str
    num_files: int
    num_footer_files: int
    num_sentences: int
    num_kept: int
    num_cut: int
    num_bytes: int
    source_bytes: int
    drops: tuple[DropFigures, ...]
    teachers: tuple[SentenceTeacherFigures, ...]
    num_sampled: int
    words: Distribution | None
    examples: tuple[SentenceExample, ...]

    @property
    def is_estimated(self) -> bool:
        return self.num_footer_files < self.num_files
