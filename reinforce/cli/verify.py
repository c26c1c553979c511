"""`reinforce inspect --verify`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class VerifyOptions:
    """Options that belong to `--verify` alone."""

    recompute: int | None
    no_source: bool
    seed: int | None
    teachers: Sequence[str]
    corpus_roots: Sequence[str]

    @property
    def first_given(self) -> str | None:
        """The first option that was given."""
        given = {
            "--recompute": self.recompute is not None,
            "--no-source": self.no_source,
            "--seed": self.seed is not None,
            "--teacher": bool(self.teachers),
            "--corpus-root": bool(self.corpus_roots),
        }
        return next((name for name, is_given in given.items() if is_given), None)


def verify(dataset: str, *, shards: list[str], root: str | None, as_json: bool, options: VerifyOptions) -> bool:
    """Verifies and prints what was found; whether there was no fault."""
    from rich.console import Console

    from reinforce.config import ConfigError
    from reinforce.inspection.cells import Recomputation
    from reinforce.inspection.verdict import render_verdict
    from reinforce.inspection.verify import verify_dataset

    moved = dict(teacher.partition("=")[::2] for teacher in options.teachers)
    for name, where in moved.items():
        if not where:
            raise ConfigError(f"--teacher {name}: must be NAME=PATH, such as clip=/models/clip")
    corpus_roots = dict(corpus.partition("=")[::2] for corpus in options.corpus_roots)
    for name, where in corpus_roots.items():
        if not where:
            raise ConfigError(f"--corpus-root {name}: must be NAME=URI, such as news=/data/sentences")
    if corpus_roots and (options.no_source or shards):
        raise ConfigError(f"--corpus-root: with {'--no-source' if options.no_source else '--shards'} no corpus is read")
    if options.recompute is None and (options.seed is not None or moved):
        raise ConfigError(f"{'--teacher' if moved else '--seed'} belongs to --recompute N")
    recompute = Recomputation(options.recompute, options.seed, moved) if options.recompute is not None else None
    found = verify_dataset(
        dataset,
        shards=shards,
        root=root,
        corpus_roots=corpus_roots,
        with_source=not options.no_source,
        recompute=recompute,
    )
    if as_json:
        print(json.dumps(found.to_json(), indent=2, ensure_ascii=False))
    else:
        Console(soft_wrap=True).print(render_verdict(found))
    return not found.faults
