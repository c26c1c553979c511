"""Writes sentences without images: what the web says about scenes that nobody has a picture of.

A line for each scene, as noisy as the captions of the demo's shards: some are of other scenes or of none, some come
twice, some are no UTF-8, and a line is empty where nothing was said. The bytes depend on the arguments and on the
version of numpy only. About 0.1 ms a sentence.
"""

from pathlib import Path

import numpy as np

from reinforce.demo.captions import draw_noisy_caption
from reinforce.demo.scenes import draw_scene
from reinforce.demo.shards import scene_seeds


def write_sentences(folder: Path, *, num_sentences: int, sentences_per_file: int = 1000, seed: int) -> list[Path]:
    """Writes `00000.txt`, `00001.txt`, ... into `folder`; returns them in order.

    They are about the scenes that `write_scenes` paints with this `seed`, in their order. Raises `ValueError` as that
    does.
    """
    seeds = scene_seeds(seed, num_sentences)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, start in enumerate(range(0, num_sentences, sentences_per_file)):
        files.append(folder / f"{number:05d}.txt")
        files[-1].write_bytes(b"".join(_line(scene) for scene in seeds[start : start + sentences_per_file]))
    return files


def _line(scene_seed: int) -> bytes:
    caption = draw_noisy_caption(draw_scene(scene_seed), np.random.default_rng([scene_seed, 2]))
    return (caption.text or b"").rstrip(b"\n") + b"\n"
