"""A build with fake models: the whole path, no weights."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from reinforce.captioners import Captioner, FakeCaptioner
from reinforce.config import BuildConfig
from reinforce.plan import BuildPlan
from reinforce.runners import BuildSummary, run_plan
from reinforce.runners.asked import find_sentences
from reinforce.storage import find_shards, open_store
from reinforce.teachers import FakeTeacher, Teacher


def fake_teachers() -> list[Teacher]:
    return [FakeTeacher("large", dim=12, image_size=24), FakeTeacher("small", dim=8, image_size=16)]


def fake_plan(
    config: dict[str, Any] | None = None,
    *,
    teachers: Sequence[Teacher] | None = None,
    captioners: Sequence[Captioner] | None = None,
    **narrowing: Any,
) -> BuildPlan:
    """A plan of two teachers of different size and dim and one captioner; batches of 4, so that none divides much."""
    settings = {"batch_size": 4, "workers": 1, "views": {"count": 2, "hflip": 0.5}} | (config or {})
    return BuildPlan(
        BuildConfig.model_validate(settings),
        fake_teachers() if teachers is None else teachers,
        [FakeCaptioner("fake", image_size=16)] if captioners is None else captioners,
        **narrowing,
    )


def run(plan: BuildPlan, shards: Path | str | Sequence[str], output: Path | str, **options: Any) -> BuildSummary:
    """Runs a plan as `reinforce build` does."""
    uris = [str(shards)] if isinstance(shards, Path | str) else list(shards)
    root, refs = find_shards(uris)
    store = open_store(str(output), create=True)
    sentences = find_sentences(plan.config, store)
    options = dict[str, Any](source_root=root, console=Console(file=io.StringIO())) | options
    return run_plan(plan, [*refs, *sentences.refs], store, corpus_roots=sentences.roots, **options)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset but its run logs, by path, with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "runs" not in path.relative_to(folder).parts
    }
