"""Class names as a recorded teacher embeds them, for `reinforce select --labels`.

Loads the teacher that a dataset was built with, text tower and all, once, in fp32 on this machine; its weights must be
those of the dataset. Costs a pass over classes x templates.
"""

import numpy as np
import torch

from reinforce.config import ConfigError
from reinforce.evaluation.prompts import DEFAULT_TEMPLATES, prompt, read_classnames, read_templates
from reinforce.selection import ClassBank
from reinforce.shards.dataset import Dataset
from reinforce.shards.schema import Signal, fingerprint
from reinforce.teachers import Teacher, load_teacher, recorded_config
from reinforce.weights import ModelError

_BATCH_SIZE = 64


def embed_classes(dataset: Dataset, teacher: str, labels: str, templates: str | None = None) -> ClassBank:
    """The normalised mean of each class's normalised prompts, by one of the dataset's teachers.

    `labels` and `templates` are files as `reinforce evaluate` takes them. Raises `ConfigError`, or `ModelError` if the
    teacher is not where the dataset was built, or has other weights.
    """
    names = read_classnames("", labels, option="--labels")
    prompts = read_templates("", templates) if templates else DEFAULT_TEMPLATES
    model = _load(dataset, teacher)
    embedded, _ = model.embed_texts([prompt(template, name) for name in names for template in prompts])
    means = embedded.reshape(len(names), len(prompts), -1).mean(axis=1)
    norms = np.linalg.norm(means, axis=1, keepdims=True)
    if not (np.isfinite(norms) & (norms > 0)).all():
        bad = names[int(np.argmin((np.isfinite(norms) & (norms > 0))[:, 0]))]
        raise ConfigError(f"--labels {labels}: teacher {teacher} gives nothing finite for {bad!r}")
    content = {"names": names, "templates": prompts}
    scale = float(dataset.signals[Signal("image", teacher)]["model"]["logit_scale"])
    return ClassBank(teacher, names, (means / norms).astype(np.float32), scale, fingerprint(content))


def _load(dataset: Dataset, name: str) -> Teacher:
    """The teacher that `signal.json` records, refused if its weights are others."""
    config = recorded_config(name, dataset.signals[Signal("image", name)], "fp32")
    torch.set_num_threads(1)
    try:
        return load_teacher(name, config, device=torch.device("cpu"), batch_size=_BATCH_SIZE)
    except ModelError as error:
        raise ModelError(f"--labels: the recorded teacher cannot be loaded here: {error}") from None
