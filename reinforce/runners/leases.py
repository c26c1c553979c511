"""Who builds which shard next, and who is to blame when one fails. Plain Python: no Ray, no clock, no storage.

A shard goes to one worker at a time, the longest first. What failed is tried elsewhere if there is an elsewhere. A
worker that fails two different shards in a row is broken, not they: it is retired, and they are not charged; a node
that loses two workers so gets no more.
"""

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from reinforce.runners.failures import MAX_ATTEMPTS, Failure
from reinforce.storage import ShardRef

MAX_NODE_LOSSES = 2
"""Workers that a node may lose by its own fault."""

MAX_VANISHED = 10
"""Workers lost with their node before the shard they had is suspected of it."""


@dataclass(frozen=True)
class Place:
    """Where a shard is built: a worker, and the node it runs on."""

    worker: str
    node: str


@dataclass(frozen=True)
class Verdict:
    """What follows from a failure: `reasons` if the shard is given up, `retire` if the worker is.

    `number` is that of the attempt, 0 if the shard is not charged with it. `is_outage`: no worker reaches the store.
    """

    number: int
    reasons: tuple[str, ...] | None = None
    retire: bool = False
    is_outage: bool = False


@dataclass(slots=True)
class _Shard:
    ref: ShardRef
    charged: list[tuple[Place, str]] = field(default_factory=list)
    tried: list[Place] = field(default_factory=list)
    num_vanished: int = 0
    is_suspect: bool = False
    """It was in a worker that died: it is built with no other shard beside it, so that the next death tells."""


@dataclass(slots=True)
class _Streak:
    """Shards that failed on one worker or node with no success in between."""

    num_done_elsewhere: int
    stems: list[str] = field(default_factory=list)
    kinds: set[str] = field(default_factory=set)


class Leases:
    """The shards of a run: waiting, held by a worker, done or given up."""

    def __init__(self, refs: Iterable[ShardRef]) -> None:
        self._shards = {ref.stem: _Shard(ref) for ref in refs}
        self._fresh = [(-ref.size, ref.stem) for ref in (shard.ref for shard in self._shards.values())]
        heapq.heapify(self._fresh)
        self._again: list[str] = []
        self._held: defaultdict[str, list[str]] = defaultdict(list)
        self._streaks: dict[str, _Streak] = {}
        self._num_done: Counter[str] = Counter()
        self.losses: Counter[str] = Counter()

    @property
    def num_open(self) -> int:
        """Shards neither done nor given up."""
        return len(self._shards)

    @property
    def num_waiting(self) -> int:
        return len(self._fresh) + len(self._again)

    @property
    def blocked_nodes(self) -> set[str]:
        """Nodes that get no more leases."""
        return {node for node, count in self.losses.items() if count >= MAX_NODE_LOSSES}

    def held_by(self, worker: str) -> list[str]:
        """The stems a worker holds; it builds the first one, and may fetch the next."""
        return self._held[worker]

    def take(self, place: Place, peers: Collection[Place], *, depth: int) -> ShardRef | None:
        """The next shard for a worker that may hold `depth`; None if there is none for it now.

        `peers` are all workers, those that are starting too. A second shard is taken only while more wait than there
        are workers.
        """
        held = self._held[place.worker]
        is_second = bool(held)
        if len(held) >= depth or (is_second and (self.num_waiting < len(peers) or self._shards[held[0]].is_suspect)):
            return None
        stem = self._pop(place, peers, is_second)
        if stem is None:
            return None
        held.append(stem)
        return self._shards[stem].ref

    def done(self, place: Place, stem: str) -> None:
        """A shard is complete."""
        self._held[place.worker].remove(stem)
        del self._shards[stem]
        self._num_done[place.worker] += 1
        self._streaks.pop(place.worker, None)
        self._streaks.pop(place.node, None)

    def failed(self, place: Place, stem: str, failure: Failure, peers: Collection[Place]) -> Verdict:
        """An attempt failed with an error, the worker lives."""
        self._held[place.worker].remove(stem)
        if failure.kind == "input":
            reasons = (*(reason for _, reason in self._shards.pop(stem).charged), failure.reason)
            return Verdict(len(reasons), reasons)
        is_blamed = self._count(place.worker, place, stem, failure, peers)
        if is_blamed and self._is_outage(place.worker, place):
            self._discharge(place.worker)
            self._requeue(stem)
            return Verdict(0, is_outage=True)
        return self._charge(place, stem, failure, retire=is_blamed, culprit=place.worker)

    def died(
        self, place: Place, failure: Failure, peers: Collection[Place], building: str | None = None
    ) -> dict[str, Verdict]:
        """A worker died or stopped making progress; what it was `building` is charged, the next shard is not.

        Where that is not known, it was the shard it was leased first.
        """
        held = self._held.pop(place.worker, [])
        verdicts = {}
        for stem in held:
            self._shards[stem].is_suspect = True
            if stem != (building if building in held else held[0]):
                self._requeue(stem)
                continue
            is_blamed = self._count(place.node, place, stem, failure, peers)
            verdicts[stem] = self._charge(place, stem, failure, retire=is_blamed, culprit=place.node)
        return verdicts

    def vanished(self, place: Place, *, with_node: bool) -> dict[str, tuple[str, ...]]:
        """A worker is gone through no fault of its shards; returns those given up, which lost too many nodes."""
        given_up = {}
        for stem in self._held.pop(place.worker, []):
            shard = self._shards[stem]
            shard.num_vanished += with_node
            shard.is_suspect |= shard.num_vanished >= MAX_VANISHED
            if shard.num_vanished > MAX_VANISHED:
                shard.charged.append((place, f"its node was lost, {shard.num_vanished} times in all"))
            if len(shard.charged) >= MAX_ATTEMPTS:
                given_up[stem] = tuple(reason for _, reason in self._shards.pop(stem).charged)
            else:
                self._requeue(stem)
        return given_up

    def _pop(self, place: Place, peers: Collection[Place], is_second: bool) -> str | None:
        # What failed waits for the end, as it would in a build on one machine: the others must not wait for it.
        if self._fresh:
            return heapq.heappop(self._fresh)[1]
        for stem in self._again:
            shard = self._shards[stem]
            if not (is_second and shard.is_suspect) and _may_try(shard, place, peers):
                self._again.remove(stem)
                return stem
        return None

    def _requeue(self, stem: str) -> None:
        shard = self._shards[stem]
        if shard.is_suspect or shard.charged:
            self._again.append(stem)
        else:
            heapq.heappush(self._fresh, (-shard.ref.size, stem))

    def _count(self, key: str, place: Place, stem: str, failure: Failure, peers: Collection[Place]) -> bool:
        """Whether a worker (or node: `key`) is to blame: the second shard in a row that had not failed elsewhere."""
        if _failed_elsewhere(self._shards[stem], place, peers):
            return False
        streak = self._streaks.setdefault(key, _Streak(self._done_elsewhere(place)))
        streak.stems.append(stem)
        streak.kinds.add(failure.kind)
        return len(set(streak.stems)) > 1 or failure.kind == "disk"

    def _is_outage(self, key: str, place: Place) -> bool:
        """Whether the store failed them, and nobody else got anything done meanwhile."""
        streak = self._streaks[key]
        return streak.kinds == {"store"} and streak.num_done_elsewhere == self._done_elsewhere(place)

    def _done_elsewhere(self, place: Place) -> int:
        return self._num_done.total() - self._num_done[place.worker]

    def _charge(self, place: Place, stem: str, failure: Failure, *, retire: bool, culprit: str) -> Verdict:
        shard = self._shards[stem]
        if retire:
            self._discharge(culprit)
            shard.tried.append(place)
            self._again.append(stem)
            self.losses[place.node] += 1
            return Verdict(0, retire=True)
        shard.tried.append(place)
        shard.charged.append((place, failure.reason))
        number = len(shard.charged)
        if number < MAX_ATTEMPTS:
            self._again.append(stem)
            return Verdict(number)
        del self._shards[stem]
        return Verdict(number, tuple(reason for _, reason in shard.charged))

    def _discharge(self, culprit: str) -> None:
        """Forgets the attempts of a streak: they were the worker's fault, or the store's."""
        for stem in self._streaks.pop(culprit).stems:
            if stem in self._shards:
                shard = self._shards[stem]
                shard.charged = [(at, reason) for at, reason in shard.charged if culprit not in (at.worker, at.node)]
                shard.tried = [at for at in shard.tried if culprit not in (at.worker, at.node)]


def _may_try(shard: _Shard, place: Place, peers: Collection[Place]) -> bool:
    """Whether a shard that failed may be tried here, or should wait for a node or a worker it has not met."""
    nodes, workers = {tried.node for tried in shard.tried}, {tried.worker for tried in shard.tried}
    if place.node not in nodes:
        return True
    if any(peer.node not in nodes for peer in peers):
        return False
    return place.worker not in workers or all(peer.worker in workers for peer in peers)


def _failed_elsewhere(shard: _Shard, place: Place, peers: Collection[Place]) -> bool:
    """Whether the shard has failed on another node or, where there is but one node, on another worker."""
    if any(peer.node != place.node for peer in peers):
        return any(tried.node != place.node for tried in shard.tried)
    return any(tried.worker != place.worker for tried in shard.tried)
