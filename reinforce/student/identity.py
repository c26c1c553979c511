"""What a run is known by: what must not change for it to go on, and what its student says of where it comes from."""

import hashlib
from typing import Any

from reinforce.config import (
    FIELDS_OF_LOSSES,
    LOSSES_OF_IMAGE_TOWERS,
    DataConfig,
    LossConfig,
    StudentConfig,
    StudentModelConfig,
)
from reinforce.shards.dataset import differences
from reinforce.student.plan import ReadPlan
from reinforce.student.taken_bank import TakenBank

FREE_FIELDS = {"evaluation", "device", "threads", "compile", "checkpoint_every", "log_every", "loggers"}
"""What may change between a checkpoint and the run that goes on from it."""

_DIGESTS = {
    "shards_sha256": "it read other shards",
    "selection_sha256": "it read other samples (--select)",
    "sentences_sha256": "it read other sentences (student.data.sentences)",
}
"""What is known by its digest alone, and what it says if that is another."""


def identity(config: StudentConfig, plan: ReadPlan, bank: TakenBank | None, world_size: int) -> dict[str, Any]:
    """What must not change for a run to go on: the recipe, the data, the number of processes."""
    data = config.data
    heeded = {name: bounds for name, bounds in data.modality_ranges.items() if name in data.modalities}
    config = config.model_copy(update={"data": data.model_copy(update={"modality_ranges": heeded})})
    stems = hashlib.sha256("\n".join(plan.stems).encode()).hexdigest()
    fields = config.model_dump(mode="json", exclude=FREE_FIELDS)
    if config.data.views_per_decode == 1:
        # Checkpoints of before there was a choice go on.
        del fields["data"]["views_per_decode"], fields["data"]["views_placement"]
    # Likewise: choices that came later, where nothing was chosen.
    later = [("data", "modalities"), ("data", "modality_ranges"), ("model", "drop_path")]
    of_image_towers = set[str]().union(*(FIELDS_OF_LOSSES[kind] for kind in LOSSES_OF_IMAGE_TOWERS))
    later += [("loss", name) for name in sorted(of_image_towers)]
    for section, name in later:
        model: DataConfig | LossConfig | StudentModelConfig = getattr(config, section)
        if getattr(model, name) == type(model).model_fields[name].get_default(call_default_factory=True):
            del fields[section][name]
    del fields["data"]["sentences"]
    sentences = plan.sentences
    if sentences is not None:
        # As they are read: which they are is in the digest and in the signals.
        fields["data"]["sentences"] = sentences.config.model_dump(mode="json", include={"batch_size", "open_files"})
        fields["sentences_sha256"] = sentences.sha256()
    if config.quantization is None:
        del fields["quantization"]
    if bank is not None and config.loss.bank is not None:
        # The bank it learns from; what it is evaluated by may change.
        fields["bank"] = bank.bank.fingerprint
    return {
        **fields,
        "world_size": world_size,
        "shards_sha256": stems,
        "signals": plan.fingerprints | (sentences.signals if sentences else {}),
        "num_views": plan.num_views,
        "selection_sha256": plan.selection.sha256 if plan.selection else None,
    }


def changes(there: dict[str, Any], here: dict[str, Any]) -> list[str]:
    """In what the identity of the run that is to go on differs from this one's, each in words."""
    told = [text for name, text in _DIGESTS.items() if there.get(name) != here.get(name)]
    documents = [{name: value for name, value in run.items() if name not in _DIGESTS} for run in (there, here)]
    return told + differences("student", *documents)


def provenance(
    config: StudentConfig, plan: ReadPlan, bank: TakenBank | None, num_steps: int, chosen: dict[str, Any] | None
) -> dict[str, Any]:
    """What `student.json` says of where the student comes from; `chosen`: the step whose weights it has, if any was."""
    made = {
        "recipe": {"student": config.model_dump(mode="json")},
        "steps": num_steps,
        "samples_seen": num_steps * config.batch_size,
        "teachers": {name: model.get("weights_sha256") for name, model in plan.teachers.items()},
        "signals": plan.fingerprints | (plan.sentences.signals if plan.sentences else {}),
    }
    return made | ({"bank": bank.provenance()} if bank else {}) | ({"chosen": chosen} if chosen else {})
