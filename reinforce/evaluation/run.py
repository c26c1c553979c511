"""The command `reinforce evaluate` as a function: several models, one after another, on one data set."""

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from rich.console import Console

from reinforce.config import ConfigError
from reinforce.evaluation.banks import bank_for
from reinforce.evaluation.crossmodal import CrossModalTask
from reinforce.evaluation.images import BATCH_SIZE, CACHE_BYTES
from reinforce.evaluation.linear import LinearTask
from reinforce.evaluation.modalities import EvaluatedModality, choose_modality
from reinforce.evaluation.model import check_model_name, load_embedding_model
from reinforce.evaluation.multilabel import MultiLabelTask
from reinforce.evaluation.results import Result
from reinforce.evaluation.retrieval import RetrievalTask
from reinforce.evaluation.zeroshot import ZeroShotTask
from reinforce.weights import resolve_device

TaskName = Literal["zeroshot", "retrieval", "linear"]
Task = ZeroShotTask | MultiLabelTask | LinearTask | RetrievalTask | CrossModalTask

_TASKS_OF: dict[str, tuple[TaskName, ...]] = {
    "--classnames": ("zeroshot", "linear"),
    "--templates": ("zeroshot",),
    "--bank": ("zeroshot",),
    "--labels": ("zeroshot",),
    "--captions": ("retrieval",),
    "--texts": ("retrieval",),
    "--teacher": ("zeroshot", "retrieval"),
    "--train": ("linear",),
}
"""The options that not every task has."""


def evaluate_models(
    models: Sequence[str],
    dataset: str | Sequence[str],
    *,
    task: TaskName = "zeroshot",
    select: str | None = None,
    classnames: str | None = None,
    templates: str | None = None,
    captions: str | None = None,
    labels: str | None = None,
    bank: str | None = None,
    texts: str | None = None,
    teacher: str | None = None,
    train: Sequence[str] = (),
    modality: str | None = None,
    modality_range: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = BATCH_SIZE,
    console: Console | None = None,
) -> list[Result]:
    """One result for each model, in their order; models are loaded one at a time, in fp32.

    `captions` is `txt` unless given. With `labels`, `json.FIELD`, a sample carries several, and AUROC is all there is.
    `bank` is the folder of one that stands for the models' text towers; by default that in a student's folder, if it
    has no text tower. `texts` is a reinforced dataset of the evaluated shards: in retrieval its captions, as a teacher
    embedded them, stand for the text towers. `teacher` says which one's bank or texts, where a student has several;
    the first by name otherwise. `train` are the shards that a linear probe learns from. With a `modality` images are of
    that one (`modalities.choose_modality`), and retrieval is between it and RGB. `threads` is torch's, for the model;
    the other cores decode. Raises `ConfigError`, `ModelError`, `FormatError` or `StorageError`.
    """
    console = console or Console(stderr=True)
    where = resolve_device(device)
    num_decoders = _share_cores(where, threads)
    for name in models:
        check_model_name(name)
    evaluated = choose_modality(models, modality, modality_range)
    given = {
        "--classnames": classnames,
        "--templates": templates,
        "--bank": bank,
        "--labels": labels,
        "--captions": captions,
        "--texts": texts,
        "--teacher": teacher,
        "--train": train or None,
    }
    _check_options(task, given, evaluated)
    prepared = _prepare(
        task,
        dataset,
        given,
        evaluated,
        select=select,
        batch_size=batch_size,
        workers=num_decoders,
        # Only another model would look at the images again.
        cache_bytes=CACHE_BYTES if len(models) > 1 else 0,
    )
    results: list[Result] = []
    for name in models:
        with console.status(f"evaluating {name}"):
            results.append(_evaluate(name, where, prepared, evaluated, bank=bank, teacher=teacher, templates=templates))
    return results


def _share_cores(where: torch.device, threads: int | None) -> int:
    """Gives torch its threads; returns how many cores are left to decode."""
    num_cores = len(os.sched_getaffinity(0))
    # A GPU leaves the cores to decoding; on a CPU the model is what takes long.
    num_threads = threads or (1 if where.type == "cuda" else max(1, num_cores - 1))
    torch.set_num_threads(num_threads)
    return max(1, num_cores - num_threads)


def _evaluate(
    name: str,
    where: torch.device,
    prepared: Task,
    evaluated: EvaluatedModality,
    *,
    bank: str | None,
    teacher: str | None,
    templates: str | None,
) -> Result:
    """One model, which is loaded here and gone with the return."""
    model = load_embedding_model(name, where)
    if isinstance(prepared, RetrievalTask | CrossModalTask):
        return prepared.evaluate(model)
    value_range = evaluated.config.range if evaluated.config else None
    if isinstance(prepared, LinearTask):
        return replace(prepared.evaluate(model), modality=evaluated.name, modality_range=value_range)
    found = bank_for(model, bank, teacher)
    if found is not None and templates is not None:
        raise ConfigError(f"--templates: {name} is scored by bank {found.name}, which has its own")
    return replace(prepared.evaluate(model, found), modality=evaluated.name, modality_range=value_range)


def _check_options(task: TaskName, given: dict[str, Any], evaluated: EvaluatedModality) -> None:
    """Refuses options that do not go with the task, or with one another."""
    for option, value in given.items():
        if value is not None and task not in _TASKS_OF[option]:
            raise ConfigError(f"{option}: only for --task {' or '.join(_TASKS_OF[option])}")
    if task == "linear" and given["--train"] is None:
        raise ConfigError("--task linear: pass --train SHARDS, labelled ones that the probe learns from")
    if given["--bank"] is not None and given["--templates"] is not None:
        raise ConfigError("--templates: a bank has its own; leave out either")
    if given["--texts"] is not None and given["--captions"] is not None:
        raise ConfigError("--captions: with --texts captions are those of the dataset")
    if task == "retrieval" and given["--teacher"] is not None and given["--texts"] is None:
        raise ConfigError("--teacher: goes with --texts, or with a bank in --task zeroshot")
    if task == "retrieval" and evaluated.config is not None:
        for option in ("--captions", "--texts"):
            if given[option] is not None:
                raise ConfigError(f"{option}: with --modality {evaluated.name} images are found by images")


def _prepare(
    task: TaskName, dataset: str | Sequence[str], given: dict[str, Any], evaluated: EvaluatedModality, **images: Any
) -> Task:
    """The task, of options that go with it; `images` go on to any."""
    if task == "retrieval" and evaluated.config is not None:
        return CrossModalTask(dataset, name=evaluated.name, modality=evaluated.config, **images)
    if task == "retrieval":
        images |= {"texts": given["--texts"], "teacher": given["--teacher"]}
        return RetrievalTask(dataset, captions=given["--captions"] or "txt", **images)
    images |= {"modality": evaluated.config, "classnames": given["--classnames"]}
    if task == "linear":
        return LinearTask(dataset, train=given["--train"], **images)
    images |= {"templates": given["--templates"]}
    if given["--labels"] is not None:
        return MultiLabelTask(dataset, labels=given["--labels"], **images)
    return ZeroShotTask(dataset, **images)
