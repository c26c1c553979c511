"""The dataset card: `README.md` with a hub's YAML header, figures of an inspection, the recipe, licences to fill in.

Written at the end of a build. What people write into it stays: a later build renews the part between its two marks and
the header's `size_categories` and `configs`, and nothing else. It holds no clock, no host and no local path.
"""

import re
from collections.abc import Collection, Sequence
from typing import Any

import yaml

from reinforce.config import BuildConfig
from reinforce.inspection.corpus_words import corpus_line, losses_line, teacher_words
from reinforce.inspection.figures import Figures
from reinforce.inspection.stats import inspect_dataset
from reinforce.inspection.words import bank_line, count, format_bytes, label, printable
from reinforce.shards.corpora import corpora_of
from reinforce.shards.dataset import Dataset, open_dataset
from reinforce.shards.schema import CARD_FILE, FORMAT_VERSION, bank_file, corpus_embeddings_folder
from reinforce.storage import Store

_BEGIN, _END = "<!-- figures: renewed by each build -->", "<!-- end of figures -->"
_FILL_IN = "FILL IN"
_OF_A_MACHINE = {"ray", "workers", "threads", "device"}
_SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
_LARGER_SIZES = ((10**8, "10M<n<100M"), (10**9, "100M<n<1B"))


def write_dataset_card(store: Store, config: BuildConfig) -> bool:
    """Writes or renews the card of the dataset in `store`, built last by `config`; False if there is one without marks.

    Raises `StorageError` or `FormatError` if the dataset cannot be read.
    """
    dataset = open_dataset(store.uri)
    figures = inspect_dataset(store.uri)
    try:
        existing = store.read(CARD_FILE).decode()
    except FileNotFoundError:
        existing = _new_card(dataset)
    except UnicodeDecodeError:
        return False
    card = _renewed(existing, _figures_section(dataset, figures, config, existing), _header(figures))
    if card is None:
        return False
    store.put(CARD_FILE, card.encode())
    return True


def _renewed(card: str, section: str, header: dict[str, Any]) -> str | None:
    """The card with a new section and header fields; None if its marks or its header are gone."""
    parts = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL)
    if parts is None or parts[2].count(_BEGIN) != 1 or parts[2].count(_END) != 1:
        return None
    # As text: what a parser would read of a person's lines is not always what they wrote.
    kept = _fields_removed(parts[1], header)
    before, rest = parts[2].split(_BEGIN)
    after = rest.split(_END)[-1]
    return f"---\n{kept}{_yaml(header)}---\n{before}{_BEGIN}\n\n{section}\n{_END}{after}"


def _fields_removed(header: str, names: Collection[str]) -> str:
    """The lines of a YAML mapping without these top-level fields and what is indented, or listed, below them."""
    kept, is_removed = [], False
    for line in header.splitlines():
        if line[:1] not in ("", " ", "-", "#"):
            is_removed = line.partition(":")[0] in names
        kept += [] if is_removed else [f"{line}\n"]
    return "".join(kept)


def _unlicensed(card: str, names: Sequence[str]) -> str:
    """The models and corpora that nothing outside the marks names: they joined after the licences were written."""
    written = re.sub(f"{re.escape(_BEGIN)}.*{re.escape(_END)}", "", card, flags=re.DOTALL)
    return ", ".join(f"`{name}`" for name in names if f"`{name}`" not in written)


def _header(figures: Figures) -> dict[str, Any]:
    """What a hub's viewer needs: every folder of Parquet files is a configuration, and every teacher's bank."""
    kept = max(figures.num_kept, sum(corpus.num_kept for corpus in figures.corpora))
    size = next((name for most, name in (*_SIZES, *_LARGER_SIZES) if kept < most), "n>1B")
    folders = ["samples", *(signal.folder for signal in figures.signals)] if figures.num_shards else []
    for corpus in figures.corpora:
        folders.append(f"corpora/{corpus.name}/sentences")
        folders += [corpus_embeddings_folder(corpus.name, teacher.name) for teacher in corpus.teachers]
    files = [bank_file(bank.name, teacher) for bank in figures.banks for teacher in bank.teachers]
    configs = [{"config_name": folder.replace("/", "-"), "data_files": f"{folder}/**/*.parquet"} for folder in folders]
    configs += [{"config_name": path.removesuffix(".parquet").replace("/", "-"), "data_files": path} for path in files]
    return {"size_categories": [size], "configs": configs}


def _new_card(dataset: Dataset) -> str:
    models = {signal.model: document["model"] for signal, document in dataset.signals.items() if document["model"]}
    licences = [("images and original captions", _FILL_IN, _FILL_IN)]
    licences += [(f"sentences of `{name}`", _FILL_IN, _FILL_IN) for name in corpora_of(dataset)]
    licences += [(f"what `{name}` says", _name_of(model), _FILL_IN) for name, model in sorted(models.items())]
    header = {
        "license": "other",
        "license_name": _FILL_IN.lower().replace(" ", "-"),
        "task_categories": ["zero-shot-image-classification", "image-feature-extraction"],
        "tags": ["reinforced-dataset", "knowledge-distillation", "clip"],
    }
    return f"""---
{_yaml(header)}---

# {_FILL_IN}: name of this dataset

{_FILL_IN}: what the images are, where they come from, what they may be used for.

This is a reinforced dataset: what strong models say of the images, stored once, to train small CLIP-style students
with no teacher compute. The images are not in it: training reads them from their source shards.

## Licences

| What | From | Licence |
|---|---|---|
{_rows(licences)}

## Contents

{_BEGIN}
{_END}

## Use

```bash
reinforce inspect URI                # is it good?
reinforce train-student --dataset URI --root SOURCE --recipe RECIPE --output student
```

Parquet files in format {FORMAT_VERSION} of `reinforce`: a row for each kept sample, joined by `key` within a shard.
"""


def _figures_section(dataset: Dataset, figures: Figures, config: BuildConfig, card: str) -> str:
    dropped = ", ".join(f"{drop.count:,} {drop.reason}" for drop in figures.drops) or "none"
    nulls = [f"{n:,} {reason} in {label(s.folder)}" for s in figures.signals for reason, n in s.nulls.items()]
    lines = [
        f"- {count(figures.num_shards, 'shard')}, {figures.num_samples:,} samples, {figures.num_kept:,} kept; "
        f"dropped: {dropped}; values that do not exist: {', '.join(nulls) or 'none'}",
        f"- {format_bytes(figures.total_bytes)} beside {format_bytes(figures.all_source_bytes)} of source",
        f"- seed {dataset.document['spine']['seed']}, views: {_views(dataset.document['view_policy'])}",
    ]
    for corpus in figures.corpora:
        found = (corpus_line(corpus, _code), losses_line(corpus, _code))
        lines += [f"- sentences without images: {words}" for words in found if words]
        lines += [f"  - by {_code(of.name)}: {teacher_words(corpus, of, _code)}" for of in corpus.teachers]
    lines += [f"- bank of labels `{printable(bank.name)}`: {bank_line(bank)}" for bank in figures.banks]
    unfinished = [
        f"{label(s.folder)} lacks {count(s.missing.count, 'shard')}" for s in figures.signals if s.missing.count
    ]
    lines += [f"- not finished: {', '.join(unfinished)}"] if unfinished else []
    lines += [f"- failed shards: {len(figures.failures):,}"] if figures.failures else []
    models = {signal.model for signal, document in dataset.signals.items() if document["model"]}
    unlicensed = _unlicensed(card, sorted(models) + [corpus.name for corpus in figures.corpora])
    lines += [f"- the table of licences has no line for {unlicensed}"] if unlicensed else []
    return "\n".join(
        [*lines, "", *_signals(dataset, figures), *_captions(figures), *_cosines(figures), *_recipe(config)]
    )


def _signals(dataset: Dataset, figures: Figures) -> list[str]:
    documents = {signal.folder: document for signal, document in dataset.signals.items()}
    rows = []
    for signal in figures.signals:
        model = documents[signal.folder]["model"] or {}
        content = documents[signal.folder]["content"]
        details = [f"{model[name]} {unit}" for name, unit in (("dim", "dims"), ("image_size", "px")) if model.get(name)]
        details += [content["precision"]] if content.get("precision") else []
        details += [f"{content['suffix']}, range {content['range']}"] if signal.folder.startswith("modalities/") else []
        weights = str(content.get("weights_sha256") or content.get("files_sha256") or "")[:12]
        size = "" if signal.bytes_per_kept is None else format_bytes(signal.bytes_per_kept)
        rows.append((f"`{signal.folder}`", _name_of(model), ", ".join(details), weights, signal.num_columns, size))
    head = "| Signal | Model | | Weights (sha256) | Columns | A sample |\n|---|---|---|---|---|---|"
    return [head, _rows(rows), ""] if rows else []


def _captions(figures: Figures) -> list[str]:
    rows = [
        (
            c.source,
            f"{c.captions_per_sample:.2f}",
            f"{c.words_min} / {c.words_median:g} / {c.words_max}",
            f"{c.distinct_ratio:.1%}",
        )
        for c in figures.captions
    ]
    head = "| Captions | A sample | Words: least, median, most | Distinct |\n|---|---|---|---|"
    return [head, _rows(rows), ""] if rows else []


def _cosines(figures: Figures) -> list[str]:
    rows = [
        (
            f"{c.teacher}: clean image to {c.source} captions",
            f"{c.matched.mean:.3f}",
            f"{c.matched.q05:.3f} to {c.matched.q95:.3f}",
            "" if c.mismatched_mean is None else f"{c.mismatched_mean:.3f}",
        )
        for c in figures.cosines
    ]
    rows += [
        (
            f"{d.teacher}: clean image to its views",
            f"{d.cosine.mean:.3f}",
            f"{d.cosine.q05:.3f} to {d.cosine.q95:.3f}",
            "",
        )
        for d in figures.drifts
    ]
    head = "| Cosine | Mean | 5 % to 95 % | Mismatched |\n|---|---|---|---|"
    return [head, _rows(rows), ""] if rows else []


def _recipe(config: BuildConfig) -> list[str]:
    """The build's section of the recipe, without defaults and without what only its machine knows."""
    recipe = config.model_dump(mode="json", exclude_defaults=True, exclude=_OF_A_MACHINE)
    # Declared in build.modalities.
    if "modalities" in recipe.get("source", {}):
        del recipe["source"]["modalities"]
        recipe = {name: value for name, value in recipe.items() if value}
    for models in (recipe.get("teachers", {}), recipe.get("captioners", {})):
        for model in models.values():
            for private in ("endpoint", "api_key_env"):
                model.pop(private, None)
            for field in ("model", "checkpoint", "path"):
                if model.get(field):
                    model[field] = _without_folder(model[field])
    for corpus in recipe.get("corpora", {}).values():
        corpus.pop("root", None)
        files = corpus["files"] if isinstance(corpus["files"], list) else [corpus["files"]]
        corpus["files"] = ["@" * uri.startswith("@") + _without_folder(uri.removeprefix("@")) for uri in files]
    for bank in recipe.get("banks", {}).values():
        for field in ("labels", "templates"):
            if isinstance(bank.get(field), str):
                bank[field] = _without_folder(bank[field])
    return ["The recipe it was built with:", "", f"```yaml\n{_yaml({'build': recipe})}```", ""]


def _views(policy: dict[str, Any]) -> str:
    flips = f", flipped with probability {policy['hflip']}" if policy.get("hflip") else ""
    ops = f"{policy['num_ops']} RandAugment operations of magnitude {policy['magnitude']}"
    return f"crops of {policy['scale'][0]:g} to {policy['scale'][1]:g} of the area, {ops}{flips}"


def _name_of(model: dict[str, Any]) -> str:
    """What a model was loaded from; of a local path its last part."""
    name = _without_folder(str(model.get("model") or model.get("checkpoint") or model.get("kind", "")))
    return f"{name}@{model['revision'][:12]}" if model.get("revision") else name


def _without_folder(name: str) -> str:
    """A local path or a URI without what says where it is; a hub's name as it is."""
    prefix = "local-dir:" if name.startswith("local-dir:") else ""
    path = name.removeprefix(prefix)
    if "://" in path:
        path = path.partition("?")[0]
    elif not prefix and not path.startswith("/"):
        return name
    return prefix + path.rstrip("/").rpartition("/")[2]


def _code(text: str) -> str:
    """Text of unknown origin, in which Markdown and HTML mean nothing."""
    return f"`{printable(text).replace('`', chr(39))}`"


def _rows(rows: Sequence[tuple[object, ...]]) -> str:
    return "\n".join(
        "| " + " | ".join(printable(str(cell), 100).replace("|", "\\|") for cell in row) + " |" for row in rows
    )


def _yaml(fields: dict[str, Any]) -> str:
    return str(yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=120))
