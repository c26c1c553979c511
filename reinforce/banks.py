"""Banks of labels: those of a recipe as plain lists, embedded by its teachers, written where they are missing.

A bank costs one pass of each text tower over labels x templates, once for a dataset. In memory are a batch of prompts
and one row a label. Also labels by a teacher that a dataset records, for `reinforce select --labels`.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from reinforce.config import BankConfig, BuildConfig, ConfigError
from reinforce.prompts import DEFAULT_TEMPLATES, prompt, read_labels, read_template_set
from reinforce.shards.banks import Bank, bank_content, check_bank, record_bank, write_bank
from reinforce.shards.dataset import SIGNAL_FILE, Dataset, read_document
from reinforce.shards.reader import ShardFile
from reinforce.shards.schema import BANK_FILE, Signal, bank_file, bank_folder, fingerprint
from reinforce.storage import Store
from reinforce.teachers import Teacher, load_teacher, recorded_config
from reinforce.weights import ModelError

_MANTISSA_BITS = 10
"""Of a bank's embeddings, whatever a teacher's: they are few, and all that is seen goes through them."""
_PROMPTS_AT_ONCE = 1024
_BATCH_SIZE = 64


def resolve_banks(config: BuildConfig) -> BuildConfig:
    """The recipe with lists where its banks name files and sets: what workers elsewhere need. Raises `ConfigError`."""
    if config.banks and not config.teachers:
        raise ConfigError(
            f"build.banks.{next(iter(config.banks))}: nothing embeds it; name a teacher in build.teachers"
        )
    banks = {name: _resolved(bank, f"build.banks.{name}") for name, bank in config.banks.items()}
    return config.model_copy(update={"banks": banks})


def missing_bank_files(output: Store, config: BuildConfig, teachers: Iterable[str]) -> list[str]:
    """The files of the recipe's banks, of these teachers, that the dataset lacks."""
    if not config.banks:
        return []
    existing = {info.path for info in output.list("banks")}
    files = [bank_file(bank, teacher) for bank in config.banks for teacher in teachers]
    return [path for path in files if path not in existing]


def record_banks(output: Store, config: BuildConfig) -> None:
    """Creates each `bank.json`, or compares. Raises `DatasetMismatchError`."""
    for name, bank in config.banks.items():
        content = _content(bank)
        record_bank(output, name, content, len(bank.labels) - len(content["labels"]))


def write_banks(output: Store, config: BuildConfig, teachers: Sequence[Teacher]) -> None:
    """Embeds and writes what the dataset lacks of the recipe's banks.

    Raises `DatasetMismatchError` if one is there that was made of something else, `ConfigError` if a teacher gives
    nothing finite for a label.
    """
    record_banks(output, config)
    for name, bank in config.banks.items():
        for teacher in teachers:
            if output.exists(bank_file(name, teacher.name)):
                check_bank(output, name, teacher.name, fingerprint(teacher_content(_content(bank), teacher)))
                continue
            labels, templates = tuple(_content(bank)["labels"]), tuple(bank.templates)
            embedded, num_cut = embed_bank(teacher, name, labels, templates, option=f"build.banks.{name}")
            embedded = _at_recorded_scale(embedded, output)
            content = teacher_content(_content(bank), teacher)
            write_bank(output, embedded, content=content, num_truncated_texts=num_cut)


def _at_recorded_scale(bank: Bank, output: Store) -> Bank:
    """With the scale of the dataset, which a recipe may have set when it was begun, and no fingerprint holds."""
    recorded = read_document(output, f"{Signal('image', bank.teacher).folder}/{SIGNAL_FILE}")
    if recorded is None:
        return bank
    model = recorded["model"]
    return replace(bank, logit_scale=float(model["logit_scale"]), logit_bias=model.get("logit_bias"))


def describe_written(output: Store, paths: Collection[str]) -> tuple[str, ...]:
    """A line for each bank of which these files were written: its labels, its teachers, and what was left out."""
    written: dict[str, list[str]] = {}
    for path in sorted(paths):
        _, bank, name = path.split("/")
        written.setdefault(bank, []).append(name.removesuffix(".parquet"))
    return tuple(_describe(output, bank, teachers) for bank, teachers in written.items())


def embed_bank(
    teacher: Teacher, name: str, labels: tuple[str, ...], templates: tuple[str, ...], *, option: str
) -> tuple[Bank, int]:
    """The labels as a loaded teacher embeds them, and how many prompts it cut at its context length.

    `option` is what gave the labels, for the message of the `ConfigError` if one of them has no finite embedding.
    """
    sums = np.zeros((len(labels), teacher.dim), np.float64)
    num_prompts, num_cut = len(labels) * len(templates), 0
    for start in range(0, num_prompts, _PROMPTS_AT_ONCE):
        numbers = np.arange(start, min(start + _PROMPTS_AT_ONCE, num_prompts))
        places = [divmod(number, len(templates)) for number in numbers.tolist()]
        embedded, is_cut = teacher.embed_texts([prompt(templates[column], labels[row]) for row, column in places])
        np.add.at(sums, numbers // len(templates), embedded)
        num_cut += int(is_cut.sum())
    norms = np.linalg.norm(sums, axis=1, keepdims=True)
    is_good = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0)
    if not is_good.all():
        bad = labels[int(np.argmin(is_good))]
        raise ConfigError(f"{option}: teacher {teacher.name} gives nothing finite for the label {bad!r}")
    model, content = teacher.describe(), teacher_content(bank_content(labels, templates), teacher)
    bank = Bank(
        name=name,
        teacher=teacher.name,
        labels=labels,
        templates=templates,
        embeddings=(sums / norms).astype(np.float32),
        logit_scale=float(model["logit_scale"]),
        logit_bias=model.get("logit_bias"),
        weights_sha256=content["weights_sha256"],
        fingerprint=fingerprint(content),
    )
    return bank, num_cut


def teacher_content(content: dict[str, Any], teacher: Teacher) -> dict[str, Any]:
    """What decides a bank's embeddings by a teacher, `content` being that of its `bank.json`."""
    return {"bank": fingerprint(content), **teacher.text_content(), "mantissa_bits": _MANTISSA_BITS}


def embed_recorded(dataset: Dataset, teacher: str, labels: str, templates: str | None = None) -> tuple[Bank, int]:
    """A file of labels as one of the dataset's teachers embeds them, in fp32 here, and how many of them repeat another.

    `templates` are given as in a recipe. Raises `ConfigError`, or `ModelError` if the teacher is not where the dataset
    was built, or has other weights.
    """
    given = read_labels(labels, option="--labels")
    prompts = read_template_set(templates, option="--templates") if templates else DEFAULT_TEMPLATES
    content, recorded = bank_content(given, prompts), dataset.signals[Signal("image", teacher)]
    config = recorded_config(teacher, recorded, "fp32")
    torch.set_num_threads(1)
    try:
        model = load_teacher(teacher, config, device=torch.device("cpu"), batch_size=_BATCH_SIZE)
    except ModelError as error:
        raise ModelError(f"--labels: the recorded teacher cannot be loaded here: {error}") from None
    bank, _ = embed_bank(model, "", tuple(content["labels"]), prompts, option=f"--labels {labels}")
    bank = replace(bank, logit_scale=float(recorded["model"]["logit_scale"]))  # that of the recipe, if it has one
    return bank, len(given) - len(bank.labels)


def _resolved(bank: BankConfig, field: str) -> BankConfig:
    labels, templates = bank.labels, bank.templates
    return BankConfig(
        labels=read_labels(labels, option=f"{field}.labels") if isinstance(labels, str) else labels,
        templates=read_template_set(templates, option=f"{field}.templates")
        if isinstance(templates, str)
        else templates,
    )


def _content(bank: BankConfig) -> dict[str, Any]:
    assert isinstance(bank.labels, tuple), "resolve_banks comes first"
    assert isinstance(bank.templates, tuple), "resolve_banks comes first"
    return bank_content(bank.labels, bank.templates)


def _describe(output: Store, name: str, teachers: Sequence[str]) -> str:
    document = read_document(output, f"{bank_folder(name)}/{BANK_FILE}")
    assert document is not None
    content, num_duplicates = document["content"], document["num_duplicates"]
    size = f"{_count(len(content['labels']), 'label')} x {_count(len(content['templates']), 'template')}"
    line = f"bank {name}: {size}, written for {', '.join(teachers)}"
    line += f"; {_count(num_duplicates, 'repeated label')} left out" if num_duplicates else ""
    for teacher in teachers:
        with ShardFile(output, bank_file(name, teacher)) as file:
            num_cut = file.footer["num_truncated_texts"]
        line += f"; {_count(num_cut, 'prompt')} longer than {teacher} reads" if num_cut else ""
    return line


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"
