"""What the arguments of a build mean: the recipe with its labels read, the shards below their root, the selection.

Files of sentences are shards, too, each with the root of its corpus.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from reinforce.banks import resolve_banks
from reinforce.config import BuildConfig, ConfigError, CorpusConfig, Recipe, load_recipe
from reinforce.selection import Selection, read_selection
from reinforce.shards.dataset import DATASET_FILE, read_document
from reinforce.shards.schema import CORPUS_FILE, check_stem, corpus_stem, spine_file
from reinforce.storage import SENTENCES, NothingThereError, ShardRef, StorageError, Store, find_shards, open_store


@dataclass(frozen=True)
class Asked:
    """What the arguments of a build mean. `recipe` is as given, `config` has the labels of its banks as lists."""

    recipe: BuildConfig
    config: BuildConfig
    source_root: str
    corpus_roots: dict[str, str]
    refs: list[ShardRef]
    """Of images, then of sentences."""
    notes: tuple[str, ...]
    """What is to be told before anything is done."""
    selection: Selection | None


def ask(
    shards: str | Sequence[str] | None,
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
    if config.corpora and not config.teachers:
        raise ConfigError(
            f"build.corpora.{next(iter(config.corpora))}: nothing embeds it; name a teacher in build.teachers"
        )
    store = open_store(output)
    recorded = read_document(store, DATASET_FILE)
    recorded_root = recorded["source_root"] if recorded else None
    selection = read_selection(select) if select else None
    uris = [shards] if isinstance(shards, str) else list(shards or ())
    if uris:
        source_root, refs = _find_shards(uris, root, recorded_root)
        refs = _narrow(refs, selection, limit_shards)
    elif config.corpora and recorded_root:
        source_root, refs = recorded_root, []
    else:
        why = "there is no dataset yet to add corpora to" if config.corpora else "a build needs some"
        raise ConfigError(f"--shards: none given, and {why}: give a folder, a .tar, a pattern or @list.txt")
    _refuse_corpora(refs, config, store)
    found = find_sentences(config, store, limit_shards)
    return Asked(given, config, source_root, found.roots, [*refs, *found.refs], found.notes, selection)


def _find_shards(uris: Sequence[str], root: str | None, recorded_root: str | None) -> tuple[str, list[ShardRef]]:
    """The shards with their stems below `--root`, else below the root the dataset was begun with, else their own.

    How the root was reached then (`?profile=`) is no part of what it is: the URIs say how to reach it now.
    """
    found_root, refs = find_shards(uris, root or _bare(recorded_root))
    for ref in refs:
        _check_stem(ref.stem, "--shards")
    return found_root, refs


@dataclass(frozen=True)
class FoundSentences:
    """The files of a recipe's corpora, called as they are called among shards; the root of each corpus, by its name."""

    roots: dict[str, str]
    refs: list[ShardRef]
    notes: tuple[str, ...]


def find_sentences(config: BuildConfig, output: Store, limit_shards: int | None = None) -> FoundSentences:
    """Finds the files of each corpus, the first `limit_shards` of them. Raises `ConfigError` or `StorageError`.

    Where there are none any more those count that the dataset holds the sentences of: teachers may be added to them.
    """
    roots: dict[str, str] = {}
    refs: list[ShardRef] = []
    notes = []
    for name, corpus in config.corpora.items():
        field = f"build.corpora.{name}"
        recorded = read_document(output, f"corpora/{name}/{CORPUS_FILE}")
        try:
            roots[name], found = _find_corpus(name, corpus, _bare(recorded["source_root"] if recorded else None))
        except NothingThereError as error:
            roots[name], found = output.uri, _stored_corpus(name, output)
            if not found:
                raise StorageError(f"{field}: {error}") from None
            notes.append(f"{field}: {error}; going on with the {len(found)} of its files that the dataset holds")
        except StorageError as error:
            raise StorageError(f"{field}: {error}", error.errno) from None
        for ref in found:
            _check_stem(ref.stem, field)
        refs += found[:limit_shards]
    return FoundSentences(roots, refs, tuple(notes))


def _find_corpus(name: str, corpus: CorpusConfig, recorded_root: str | None) -> tuple[str, list[ShardRef]]:
    """A corpus's files below its root, which is chosen as that of shards is."""
    uris = [corpus.files] if isinstance(corpus.files, str) else corpus.files
    root, refs = find_shards(uris, corpus.root or recorded_root, SENTENCES)
    return root, [replace(ref, stem=corpus_stem(name, ref.stem)) for ref in refs]


def _stored_corpus(name: str, output: Store) -> list[ShardRef]:
    """The files of a corpus whose sentences are in the dataset, which stands for their source."""
    folder = f"corpora/{name}/sentences"
    stored = [info for info in output.list(folder) if info.path.endswith(".parquet")]
    stems = [corpus_stem(name, info.path.removeprefix(f"{folder}/").removesuffix(".parquet")) for info in stored]
    return [ShardRef(output, info.path, stem, info.size) for stem, info in zip(stems, stored, strict=True)]


def _bare(recorded_root: str | None) -> str | None:
    return recorded_root.partition("?")[0] if recorded_root else None


def _check_stem(stem: str, option: str) -> None:
    try:
        check_stem(stem)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}; rename the shard") from None


def _refuse_corpora(refs: Sequence[ShardRef], config: BuildConfig, output: Store) -> None:
    """Refuses shards of images that are called as files of sentences are, and corpora beside such shards.

    Those that a dataset without corpora has already may be gone on with.
    """
    called = [ref.stem for ref in refs if ref.stem.startswith("corpora/")]
    if not called and not config.corpora:
        return
    stored = {info.path for info in output.list("samples/corpora")}
    if config.corpora and stored:
        raise ConfigError(
            f"build.corpora.{next(iter(config.corpora))}: the dataset has {min(stored)}, images of a shard that is "
            "called as sentences of a corpus are; build to another --output"
        )
    for stem in called:
        if spine_file(stem) not in stored:
            raise ConfigError(f"--shards: {stem}: that is what sentences of a corpus are called; rename the folder")


def _narrow(refs: list[ShardRef], selection: Selection | None, limit: int | None) -> list[ShardRef]:
    if selection is not None:
        stems = set(selection.stems)
        refs = [ref for ref in refs if ref.stem in stems]
        if not refs:
            raise ConfigError(f"--select: none of its stems ({', '.join(sorted(stems)[:3])}, ...) is among the shards")
    return refs[:limit]
