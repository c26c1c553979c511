"""What the arguments of a build mean: the recipe with its labels read, the shards below their root, the selection."""

from collections.abc import Sequence
from dataclasses import dataclass

from reinforce.banks import resolve_banks
from reinforce.config import BuildConfig, ConfigError, Recipe, load_recipe
from reinforce.selection import Selection, read_selection
from reinforce.shards.dataset import DATASET_FILE, read_document
from reinforce.shards.schema import check_stem
from reinforce.storage import ShardRef, find_shards, open_store


@dataclass(frozen=True)
class Asked:
    """What the arguments of a build mean. `recipe` is as given, `config` has the labels of its banks as lists."""

    recipe: BuildConfig
    config: BuildConfig
    source_root: str
    refs: list[ShardRef]
    selection: Selection | None


def ask(
    shards: str | Sequence[str],
    output: str,
    recipe: str | Recipe,
    root: str | None,
    overrides: Sequence[str],
    select: str | None,
    limit_shards: int | None,
) -> Asked:
    """Reads the recipe, finds the shards. Raises `ConfigError` or `StorageError`."""
    given = (load_recipe(recipe, list(overrides)) if isinstance(recipe, str) else recipe).build
    config = resolve_banks(given)
    if not config.teachers and not config.captioners:
        raise ConfigError("build.teachers: empty; a build needs at least one teacher or captioner")
    recorded = read_document(open_store(output), DATASET_FILE)
    recorded_root = recorded["source_root"] if recorded else None
    source_root, refs = _find_shards([shards] if isinstance(shards, str) else shards, root, recorded_root)
    selection = read_selection(select) if select else None
    return Asked(given, config, source_root, _narrow(refs, selection, limit_shards), selection)


def _find_shards(uris: Sequence[str], root: str | None, recorded_root: str | None) -> tuple[str, list[ShardRef]]:
    """The shards with their stems below `--root`, else below the root the dataset was begun with, else their own.

    How the root was reached then (`?profile=`) is no part of what it is: the URIs say how to reach it now.
    """
    found_root, refs = find_shards(uris, root or (recorded_root.partition("?")[0] if recorded_root else None))
    for ref in refs:
        try:
            check_stem(ref.stem)
        except ValueError as error:
            raise ConfigError(f"--shards: {error}; rename the shard") from None
    return found_root, refs


def _narrow(refs: list[ShardRef], selection: Selection | None, limit: int | None) -> list[ShardRef]:
    if selection is not None:
        stems = set(selection.stems)
        refs = [ref for ref in refs if ref.stem in stems]
        if not refs:
            raise ConfigError(f"--select: none of its stems ({', '.join(sorted(stems)[:3])}, ...) is among the shards")
    return refs[:limit]
