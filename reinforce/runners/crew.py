"""The workers of a run as Ray actors: which nodes they are put on, and what each of them is doing.

An actor is bound to its node, so that a broken node can be left out and a death has a place. Until a first worker has
started, only two are tried: it fetches the weights and writes `signal.json`, and a wrong recipe costs little.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from reinforce.runners.cluster import Needs
from reinforce.runners.leases import Place
from reinforce.runners.worker import Job, Status
from reinforce.storage import Carried

_MAX_PILOTS = 2
_MAX_SCOUTS = 16
"""Actors without a node that wait at one time: they are what an autoscaler sees."""

_CONCURRENCY = 8
"""Threads of an actor: two leases, a status, a renewal, and some to spare."""


@dataclass(eq=False)
class Hand:
    """One worker, from the moment it is asked for. `node` is empty until it has been put on one."""

    name: str
    actor: Any
    node: str = ""
    placed_at: float | None = None
    ready_at: float | None = None
    progress_at: float = 0.0
    status: Status = field(default_factory=Status)
    is_asked: bool = False
    """A status is under way."""

    @property
    def place(self) -> Place:
        return Place(self.name, self.node)

    def __str__(self) -> str:
        return f"{self.name} on node {self.node[:8] or '?'}"


class Crew:
    """Hires and dismisses. `hands` are all workers that are not known to be dead."""

    def __init__(self, worker_class: type, job: Job, needs: Needs, *, max_workers: int | None) -> None:
        self.hands: dict[str, Hand] = {}
        self.needs = needs
        self.has_started = False
        self.num_lost = 0
        self._class = _actor_class(worker_class)
        # The job is large where there is a selection; credentials never go with it, for it may be spilled to disk.
        self._job = ray.put(job)
        self._max_workers = max_workers
        self._num_hired = 0

    @property
    def ready(self) -> list[Hand]:
        return [hand for hand in self.hands.values() if hand.ready_at is not None]

    def hire(
        self, nodes: Collection[dict[str, Any]], blocked: Collection[str], num_open: int, carried: Carried
    ) -> list[Hand]:
        """New workers where there is room for them, as many as there are open shards."""
        slots = {node["NodeID"]: self.needs.slots(node) for node in nodes if node["NodeID"] not in blocked}
        wanted = min(num_open, self._max_workers or num_open)
        have = Counter(hand.node for hand in self.hands.values())
        hired = []
        while len(self.hands) < (wanted if self.has_started else min(wanted, _MAX_PILOTS)):
            room = {node: count - have[node] for node, count in slots.items() if count > have[node]}
            if not self.has_started:
                room = {node: count for node, count in room.items() if not have[node]}
            if not room:
                break
            node = min(room, key=lambda name: (have[name], name))
            have[node] += 1
            hired.append(self._hire(carried, node))
        # More than the cluster holds is asked for only by --max-workers, or when it holds none: it may grow.
        is_short = sum(slots.values()) < wanted and (self._max_workers is not None or not any(slots.values()))
        if is_short and (self.has_started or not self.hands):
            num_scouts = min(wanted - len(self.hands), _MAX_SCOUTS - have[""])
            hired += [self._hire(carried, None, blocked) for _ in range(num_scouts if self.has_started else 1)]
        return hired

    def dismiss(self, hand: Hand) -> None:
        """Ends a worker, whatever it is doing."""
        self.hands.pop(hand.name, None)
        ray.kill(hand.actor)

    def is_without_room(self) -> bool:
        """Whether nobody works, and nobody has a place to start at."""
        return all(hand.placed_at is None for hand in self.hands.values())

    def _hire(self, carried: Carried, node: str | None, blocked: Collection[str] = ()) -> Hand:
        self._num_hired += 1
        options: dict[str, Any] = self.needs.options() | {"max_concurrency": _CONCURRENCY}
        if node is not None:
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        elif blocked:
            options["label_selector"] = {"ray.io/node-id": f"!in({','.join(sorted(blocked))})"}
        actor = ray.remote(self._class).options(**options).remote(self._job, carried)
        hand = Hand(f"worker-{self._num_hired}", actor, node or "")
        self.hands[hand.name] = hand
        return hand


def _actor_class(worker_class: type) -> type:
    class Actor(worker_class):  # type: ignore[misc]
        """A worker that knows its node."""

        def where(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

    Actor.__name__ = worker_class.__name__
    return Actor
