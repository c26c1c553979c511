"""What a page shows of single samples: the worst, the best, some at random, dropped ones, and near-duplicates.

At most six source tars are downloaded: four for the samples, two more for near-duplicates that lie elsewhere.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from reinforce.inspection.cards import CardMaker, SampleCard
from reinforce.inspection.choice import Choice, Pick, Ranking, choose, rank_samples
from reinforce.inspection.figures import DuplicateFigures, Figures, SampleName
from reinforce.inspection.pictures import peek, rescue, source_image, thumbnail
from reinforce.inspection.source import SourceTars
from reinforce.sample import DropReason
from reinforce.shards.dataset import Dataset
from reinforce.shards.reader import FormatError

_MOST_DUPLICATE_STEMS = 2
_MOST_GROUPS = 8
_MOST_MEMBERS = 6
_DROPS_A_REASON = 4


@dataclass(frozen=True, slots=True)
class ShownSample:
    """A sample's card and where it stands in the ranking."""

    card: SampleCard
    pick: Pick


@dataclass(frozen=True, slots=True)
class DropCard:
    """A dropped sample. `words` say what its bytes were, where there is something to say."""

    reason: str
    stem: str
    key: str
    detail: str
    picture: str | None = None
    words: str = ""


@dataclass(frozen=True, slots=True)
class Member:
    """One of several images that look alike."""

    name: SampleName
    picture: str | None = None
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Images that look alike; `num_more` are not listed."""

    members: tuple[Member, ...]
    num_more: int


@dataclass(slots=True)
class Gallery:
    """Everything a page shows of single samples. `faults` say why some pictures are missing."""

    ranking: Ranking
    num_tars: int = 0
    faults: list[str] = field(default_factory=list)
    worst: list[ShownSample] = field(default_factory=list)
    best: list[ShownSample] = field(default_factory=list)
    others: list[ShownSample] = field(default_factory=list)
    drops: list[DropCard] = field(default_factory=list)
    groups: list[Group] = field(default_factory=list)


def make_gallery(dataset: Dataset, figures: Figures, maker: CardMaker, root: str | None, num_samples: int) -> Gallery:
    """Chooses, downloads and renders, a shard at a time."""
    ranking = rank_samples(dataset, maker.signals, figures.sampled_stems, maker.bad_files)
    choice = choose(ranking, num_samples)
    source = SourceTars(dataset, root)
    groups = _distinct_groups(figures.duplicates)
    cards: dict[Pick, SampleCard] = {}
    members: dict[SampleName, Member] = {}
    drops: list[DropCard] = []
    num_drops: Counter[str] = Counter()
    for stem in _stems(choice, groups):
        with suppress(FormatError, OSError):  # what is wrong with a spine stands among the problems already
            spine = dataset.spine(stem)
            kept = spine.filter(pc.is_null(spine.column("drop_reason")))
            picks = [pick for pick in (*choice.worst, *choice.best, *choice.others) if pick.stem == stem]
            dropped = list(_some_drops(spine, num_drops))
            alike = {name.key: name for group in groups for name in group[:_MOST_MEMBERS] if name.stem == stem}
            keys = {kept.column("key")[pick.row].as_py() for pick in picks} | {row["key"] for row in dropped}
            samples = source.samples(stem, keys | alike.keys())
            images = None if samples is None else {key: sample.image for key, sample in samples.items()}
            cards |= zip(picks, maker.cards(stem, kept, [pick.row for pick in picks], samples), strict=True)
            drops += [_drop_card(stem, row, images) for row in dropped]
            for row in kept.filter(pc.is_in(kept.column("key"), pa.array(alike, pa.string()))).to_pylist():
                members[alike[row["key"]]] = _member(alike[row["key"]], row, images)
    gallery = Gallery(ranking, source.num_read, source.faults)
    for shown, picks_of in (
        (gallery.worst, choice.worst),
        (gallery.best, choice.best),
        (gallery.others, choice.others),
    ):
        shown += [ShownSample(cards[pick], pick) for pick in picks_of if pick in cards]
    reasons = [drop.reason for drop in figures.drops]
    drops += _drops_elsewhere(figures, drops)
    gallery.drops = sorted(drops, key=lambda card: reasons.index(card.reason) if card.reason in reasons else 99)
    for group in groups:
        listed = tuple(members.get(name, Member(name)) for name in group[:_MOST_MEMBERS])
        gallery.groups.append(Group(listed, len(group) - len(listed)))
    return gallery


def _stems(choice: Choice, groups: Sequence[tuple[SampleName, ...]]) -> list[str]:
    """The shards of the chosen samples, then a few of the near-duplicates."""
    elsewhere = dict.fromkeys(name.stem for group in groups for name in group if name.stem not in choice.stems)
    return [*choice.stems, *list(elsewhere)[:_MOST_DUPLICATE_STEMS]]


def _distinct_groups(duplicates: Sequence[DuplicateFigures]) -> list[tuple[SampleName, ...]]:
    """A few groups; one that several teachers found comes once."""
    groups = {frozenset(group): group for figures in duplicates for group in figures.groups}
    return list(groups.values())[:_MOST_GROUPS]


def _member(name: SampleName, row: dict[str, Any], images: Mapping[str, bytes] | None) -> Member:
    image = None if images is None else source_image(images.get(name.key), row)[0]
    return Member(name, None if image is None else thumbnail(image), next(iter(row["captions"]), ""))


def _some_drops(spine: pa.Table, num_drops: Counter[str]) -> Iterator[dict[str, Any]]:
    """The first drops of each reason, as long as there are not enough of it. Those not asked for are no loss."""
    for row in spine.filter(pc.is_valid(spine.column("drop_reason"))).to_pylist():
        reason = row["drop_reason"]
        if reason != DropReason.NOT_SELECTED and num_drops[reason] < _DROPS_A_REASON:
            num_drops[reason] += 1
            yield row


def _drop_card(stem: str, row: dict[str, Any], images: Mapping[str, bytes] | None) -> DropCard:
    """The card of a dropped sample: what can be seen of it, or what its bytes were."""
    card = DropCard(row["drop_reason"], stem, row["key"], row["drop_detail"] or "")
    if card.reason in (DropReason.MISSING_IMAGE, DropReason.DUPLICATE_KEY):
        card = replace(card, detail=f"members: {card.detail}")
    data = None if images is None else images.get(row["key"])
    if not data:
        return card
    size = f"{len(data):,} byte{'s' * (len(data) != 1)}"
    if card.reason == DropReason.DUPLICATE_KEY:
        return replace(card, picture=rescue(data), words="shown is the first of this key, which was kept")
    if card.reason == DropReason.CORRUPT_IMAGE and (picture := rescue(data)) is not None:
        return replace(card, picture=picture, words=f"{size}; shown is what still decodes")
    return replace(card, words=f"{size}: {peek(data)}")


def _drops_elsewhere(figures: Figures, drops: Sequence[DropCard]) -> list[DropCard]:
    """Known examples of reasons that no shard shown has."""
    shown = {card.reason for card in drops} | {DropReason.NOT_SELECTED}
    return [
        DropCard(drop.reason, example.stem, example.key, example.detail)
        for drop in figures.drops
        if drop.reason not in shown
        for example in drop.examples
    ]
