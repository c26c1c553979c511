"""Sentences without images for a teacher that knows CIFAR-10's ten classes: prompts, one a line, each once.

python -m tests.benchmarks.cifar10_sentences FILE
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
ATTRIBUTES = (
    *("", "small", "large", "little", "big", "red", "blue", "green", "white", "black", "brown", "yellow", "grey"),
    *("old", "new", "nice", "dark", "bright", "single", "strange"),
)
FRAMES = (
    *("{}", "a {}", "the {}", "a photo of a {}", "a photo of the {}", "an image of a {}", "an image of the {}"),
    *("a picture of a {}", "a blurry photo of a {}", "a small photo of a {}", "a close up of a {}", "a crop of a {}"),
    *("a bad photo of a {}", "a good photo of a {}", "a dark photo of a {}", "a bright photo of a {}"),
    *("a low resolution photo of a {}", "a photo of one {}", "a photo of my {}", "a drawing of a {}"),
    *("there is a {}", "this is a {}", "we see a {} here", "look at the {}"),
)


def sentences() -> Iterator[str]:
    """Every class in every frame, with and without each attribute."""
    for frame in FRAMES:
        for attribute in ATTRIBUTES:
            for name in CLASSES:
                yield frame.format(f"{attribute} {name}".strip())


def write_prompts(file: Path) -> Path:
    """One sentence a line; makes the folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{sentence}\n" for sentence in sentences()))
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    print(f"{write_prompts(parser.parse_args().file)}: {len(list(sentences())):,} sentences")


if __name__ == "__main__":
    main()
