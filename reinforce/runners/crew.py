"""The workers of a run as Ray actors: which nodes they are put on, and what each of them is doing.

An actor is bound to its node, so that a broken node can be left out and a death has a place. Until a first worker has
started, only two are tried: it fetches the weights, writes each `signal.json` and the banks, and a wrong recipe costs
little.
"""

import time
from collections import Counter
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, ActorUnschedulableError, NodeDiedError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from reinforce.runners.cluster import Needs
from reinforce.runners.leases import Place
from reinforce.runners.metrics import Metrics
from reinforce.runners.worker import Job, Status
from reinforce.storage import Carried

_MAX_PILOTS = 2
_MAX_SCOUTS = 16
"""Actors without a node that wait at one time: they are what an autoscaler sees."""

_OF_NODES = (ActorUnavailableError, ActorUnschedulableError, NodeDiedError)

_LAG_S, _MOVE_AFTER_S = 3.0, 60.0
"""How long a node's free resources may be out of date; how long a worker waits for one node while another is free."""

_CONCURRENCY = 8
"""Threads of an actor: two leases, a status, a renewal, and some to spare."""


@dataclass(eq=False)
class Hand:
    """One worker, from the moment it is asked for. `node` is empty until it has been put on one."""

    name: str
    actor: Any
    node: str = ""
    asked_at: float = field(default_factory=time.monotonic)
    placed_at: float | None = None
    ready_at: float | None = None
    progress_at: float = 0.0
    status: Status = field(default_factory=Status)
    is_queued: bool = False
    """Asked for where nothing was free: it waits for others to leave."""
    is_asked: bool = False
    """A status is under way."""

    @property
    def place(self) -> Place:
        return Place(self.name, self.node)

    def is_coming(self, now: float) -> bool:
        """Whether it is ready or soon will be, not one of those that wait and wait for room."""
        return self.placed_at is not None or not self.is_queued or now - self.asked_at < _MOVE_AFTER_S

    def __str__(self) -> str:
        return f"{self.name} on node {self.node[:8] or '?'}"


class Crew:
    """Hires and dismisses. `hands` are all workers that are not known to be dead.

    With `needs_start` one is to start even if there is nothing to build.
    """

    def __init__(
        self, worker_class: type, job: Job, needs: Needs, *, max_workers: int | None, needs_start: bool = False
    ) -> None:
        self.hands: dict[str, Hand] = {}
        self.needs = needs
        self.has_started = False
        self.num_lost = 0
        self._class = _actor_class(worker_class)
        # The job is large where there is a selection; credentials never go with it, for it may be spilled to disk.
        self._job = ray.put(job)
        self._max_workers = max_workers
        self._needs_start = needs_start
        self._num_hired = 0

    @property
    def ready(self) -> list[Hand]:
        return [hand for hand in self.hands.values() if hand.ready_at is not None]

    @property
    def must_start(self) -> bool:
        """Whether a first worker is still waited for, whatever there is to build."""
        return self._needs_start and not self.has_started

    def hire(
        self, nodes: Collection[dict[str, Any]], blocked: Collection[str], num_wanted: int, carried: Carried
    ) -> list[Hand]:
        """New workers where there is room for them, `num_wanted` in all, one at least while one `must_start`.

        One that waits on a node which others use is asked for only if nobody can start now: an autoscaler sees it.
        """
        usable = [node for node in nodes if node["NodeID"] not in blocked]
        slots = {node["NodeID"]: self.needs.slots(node["Resources"]) for node in usable}
        free = {node["NodeID"]: self.needs.slots(node["Available"]) for node in usable}
        now = time.monotonic()
        spare = sum(max(0, count) for count in free.values())
        for hand in list(self.hands.values()):
            if now - hand.asked_at < _LAG_S and hand.node in free:
                free[hand.node] -= 1
            elif hand.is_queued and hand.placed_at is None and now - hand.asked_at > _MOVE_AFTER_S and spare > 0:
                spare -= 1
                self.dismiss(hand)
        num_wanted = max(num_wanted, int(self.must_start))
        wanted = min(num_wanted, self._max_workers or num_wanted)
        hired = []
        while len(self.hands) < (wanted if self.has_started else min(wanted, _MAX_PILOTS)):
            node = self._choose(slots, free)
            if node is None:
                break
            hired.append(self._hire(carried, node))
            hired[-1].is_queued = free[node] <= 0
            free[node] -= 1
        # More than the cluster holds is asked for only by --max-workers, or when it holds none: it may grow.
        is_short = sum(slots.values()) < wanted and (self._max_workers is not None or not any(slots.values()))
        if is_short and (self.has_started or not self.hands):
            num_waiting = sum(not hand.node for hand in self.hands.values())
            num_scouts = min(wanted - len(self.hands), _MAX_SCOUTS - num_waiting) if self.has_started else 1
            hired += [self._hire(carried, None, blocked) for _ in range(num_scouts)]
        return hired

    def _choose(self, slots: dict[str, int], free: dict[str, int]) -> str | None:
        """The node for the next worker: the one with the fewest that has room, and with free room if any has."""
        have = Counter(hand.node for hand in self.hands.values())
        room = [node for node, count in slots.items() if count > have[node] and (self.has_started or not have[node])]
        at_once = [node for node in room if free[node] > 0]
        is_waiting = any(hand.placed_at is None for hand in self.hands.values())
        candidates = at_once or ([] if is_waiting else room)
        return min(candidates, key=lambda node: (have[node], node), default=None)

    def dismiss(self, hand: Hand) -> None:
        """Ends a worker, whatever it is doing."""
        self.hands.pop(hand.name, None)
        with suppress(RayError, ValueError):  # it is gone already, or the cluster is
            ray.kill(hand.actor)

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


def how_it_died(error: RayError) -> tuple[bool, str]:
    """Whether it died with its node, and what Ray knows of it, without Ray's advice."""
    text = str(error)
    is_nodes = isinstance(error, _OF_NODES) or getattr(error, "preempted", False) or "node has died" in text
    for mark in ("Worker exit detail: ", "\n\t"):
        if mark in text:
            text = text.rpartition(mark)[2]
    reason = " ".join(text.split(". Some common")[0].split())[:200]
    return is_nodes and not getattr(error, "_actor_init_failed", False), reason


def _actor_class(worker_class: type) -> type:
    class Actor(worker_class):  # type: ignore[misc]
        """A worker that knows its node, and tells Ray's metrics what it does."""

        def where(self) -> str:
            return str(ray.get_runtime_context().get_node_id())

        def status(self) -> Status:
            status: Status = super().status()
            self._metrics = getattr(self, "_metrics", None) or Metrics()
            self._metrics.update(status)
            return status

    Actor.__name__ = Actor.__qualname__ = worker_class.__name__  # as Ray shows it
    return Actor
