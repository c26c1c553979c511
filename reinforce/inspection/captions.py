"""What the captions of one source are like. Memory grows with the distinct captions given."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from reinforce.inspection.figures import CaptionFigures, Distribution

_MOST_FREQUENT = 3

Captions = Sequence[list[str] | None]
"""By sample; None where a captioner gave none."""


@dataclass(slots=True)
class CaptionCounts:
    """Counts the captions of samples as they come."""

    num_samples: int = 0
    num_samples_without: int = 0
    num_copies: int = 0
    texts: Counter[str] = field(default_factory=Counter)

    def add(self, captions: Captions, originals: Captions) -> None:
        """Adds the captions of samples, whose original captions these are (none to compare the originals with)."""
        for index, texts in enumerate(captions):
            self.num_samples += 1
            self.num_samples_without += not texts
            self.texts.update(texts or ())
            if originals and texts:
                known = {_bare(text) for text in originals[index] or ()}
                self.num_copies += sum(_bare(text) in known for text in texts)

    def figures(self, source: str) -> CaptionFigures:
        count = self.texts.total()
        words = np.repeat([len(text.split()) for text in self.texts] or [0], list(self.texts.values()) or [1])
        return CaptionFigures(
            source=source,
            num_samples=self.num_samples,
            num_captions=count,
            captions_per_sample=count / self.num_samples if self.num_samples else 0.0,
            words_min=int(words.min()),
            words_median=float(np.median(words)),
            words_max=int(words.max()),
            distinct_ratio=len(self.texts) / count if count else 0.0,
            most_frequent=tuple(self.texts.most_common(_MOST_FREQUENT)),
            num_samples_without=self.num_samples_without,
            num_empty=sum(number for text, number in self.texts.items() if not text.split()),
            num_copies=self.num_copies,
            words=Distribution.of(words.astype(np.float32)) if count else None,
        )


def _bare(text: str) -> str:
    """A caption without what does not make it another one: case, spaces and full stops."""
    return " ".join(text.casefold().replace(".", " ").split())
