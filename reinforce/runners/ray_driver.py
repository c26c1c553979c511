"""A build on a Ray cluster: leases of shards to workers, and what happens when either fails.

All state is in the output store and in this process; losing this process loses no more than the shards at hand.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import LocalRayletDiedError, RayError, RaySystemError, RayTaskError, RpcError

from reinforce.config import ConfigError, RayConfig
from reinforce.formatting import format_seconds
from reinforce.runners.board import Board
from reinforce.runners.cluster import alive_nodes
from reinforce.runners.crew import Crew, Hand, how_it_died
from reinforce.runners.failures import Failure, Outage
from reinforce.runners.leases import Leases, Place, Verdict
from reinforce.runners.ledger import Ledger
from reinforce.runners.worker import Lease, Status
from reinforce.shard_report import ShardReport
from reinforce.storage import ShardRef, StorageError, carry

_WATCH_INTERVAL_S, _AWAY_S = 2.0, 10.0
_CARRY_INTERVAL_S = 60.0
_DEPTH = 2
"""Leases of a worker: the shard at the models, and the one that is fetched meanwhile."""


class Driver:
    """The loop: hire, lease, settle what has ended, watch what has not."""

    def __init__(
        self, refs: Sequence[ShardRef], crew: Crew, ledger: Ledger, uris: Sequence[str], config: RayConfig
    ) -> None:
        self.leases = Leases(refs)
        self._crew, self._ledger, self._uris = crew, ledger, uris
        self._stall_s, self._start_s = config.stall_timeout_s, config.start_timeout_s
        self._pending: dict[Any, tuple[Hand, Callable[[Any], None]]] = {}
        self._board = Board(ledger.progress, crew, self.leases)
        self._carried = carry(uris)
        self._carried_at = self._watched_at = time.monotonic() - _WATCH_INTERVAL_S
        self._start_failures: dict[str, str] = {}
        self._last_fault = ""
        self._num_usable = 0
        self._has_lost = False
        self._outage = Outage()

    def run(self) -> None:
        while (self.leases.num_open or self._crew.must_start) and not self._ledger.stopped:
            if self._has_lost or time.monotonic() - self._watched_at >= _WATCH_INTERVAL_S:
                self._watch()
            self._lease()
            self._settle()
        self._close()

    def _lease(self) -> None:
        """Gives every ready worker something to do, then something to fetch meanwhile."""
        if self._outage.is_on(time.monotonic()):
            return
        ready, peers = self._able(), self._peers()
        for depth in range(1, _DEPTH + 1) if self.leases.num_waiting else ():
            for hand in ready:
                if len(self.leases.held_by(hand.name)) >= depth:
                    continue
                ref = self.leases.take(hand.place, peers, depth=depth)
                if ref is not None:
                    if depth == 1:
                        hand.progress_at = time.monotonic()
                    asked = hand.actor.build.remote(Lease(ref.path, ref.stem, ref.size))
                    self._pending[asked] = (hand, self._built(hand, ref))

    def _able(self) -> list[Hand]:
        """The workers that may have leases: those of a node that is left out may not."""
        blocked = self.leases.blocked_nodes
        return [hand for hand in self._crew.ready if hand.node not in blocked]

    def _peers(self) -> list[Place]:
        """Where a shard may be tried, now or soon: one that failed waits for a worker that is starting elsewhere."""
        blocked, now = self.leases.blocked_nodes, time.monotonic()
        hands = [hand for hand in self._crew.hands.values() if hand.is_coming(now)]
        return [hand.place for hand in hands if hand.node and hand.node not in blocked]

    def _settle(self) -> None:
        """Waits for an answer, then takes all that have come."""
        if not self._pending:
            time.sleep(0.2)
            return
        pending = list(self._pending)
        first, _ = ray.wait(pending, num_returns=1, timeout=0.5)
        if not first:
            return
        ready, _ = ray.wait(pending, num_returns=len(pending), timeout=0)
        for ref in ready:
            hand, then = self._pending.pop(ref, (None, None))
            if hand is None or then is None or hand.name not in self._crew.hands:
                continue  # dismissed meanwhile
            try:
                answer = ray.get(ref)
            except RayTaskError as error:
                answer = Failure.of(error.cause) if isinstance(error.cause, Exception) else Failure.of(error)
            except (RaySystemError, RpcError, LocalRayletDiedError):
                raise  # the cluster itself
            except RayError as error:
                self._gone(hand, error)
                continue
            then(answer)

    def _watch(self) -> None:
        """Hires, asks everyone how it is doing, replaces who is stuck, shows the state of the run."""
        now = time.monotonic()
        self._forgive(now - self._watched_at)
        self._watched_at, self._has_lost = now, False
        nodes = alive_nodes()
        if now - self._carried_at >= _CARRY_INTERVAL_S:
            self._renew(now)
        names = {node["NodeID"] for node in nodes}
        for hand in list(self._crew.hands.values()):
            if hand.node and hand.node not in names:
                self._end(hand, "its node is gone", with_node=True)
            elif hand.placed_at is not None and not hand.is_asked:
                hand.is_asked = True
                self._pending[hand.actor.status.remote()] = (hand, self._answered(hand))
            self._check_stalled(hand, now)
        self._dismiss_idle()
        usable = {node["NodeID"] for node in nodes if self._crew.needs.slots(node["Resources"])}
        self._num_usable = len(usable)
        self._check_hopeless(usable)
        if not self._outage.is_on(now):
            num_wanted = sum(bool(self.leases.held_by(name)) for name in self._crew.hands) + self.leases.num_waiting
            for hand in self._crew.hire(nodes, self.leases.blocked_nodes, num_wanted, self._carried):
                self._pending[hand.actor.where.remote()] = (hand, self._placed(hand))
                self._pending[hand.actor.start.remote()] = (hand, self._started(hand))
        self._board.show(nodes)

    def _forgive(self, away_s: float) -> None:
        """Time in which this process was held up itself counts against nobody."""
        if away_s > _AWAY_S:
            for hand in self._crew.hands.values():
                hand.progress_at += away_s
                hand.placed_at = None if hand.placed_at is None else hand.placed_at + away_s

    def _close(self) -> None:
        """The last figures of all workers."""
        refs = {hand.actor.status.remote(): hand for hand in self._crew.ready}
        answered, _ = ray.wait(list(refs), num_returns=len(refs), timeout=2) if refs else ([], [])
        for ref in answered:
            with suppress(RayError):
                refs[ref].status = ray.get(ref)
        self._board.show(alive_nodes())

    def _placed(self, hand: Hand) -> Callable[[str | Failure], None]:
        def then(node: str | Failure) -> None:
            if isinstance(node, str):
                hand.node, hand.placed_at = node, time.monotonic()

        return then

    def _started(self, hand: Hand) -> Callable[[dict[str, Any] | Failure], None]:
        def then(answer: dict[str, Any] | Failure) -> None:
            if isinstance(answer, Failure):
                self._start_failed(hand, answer)
                return
            hand.ready_at = hand.progress_at = time.monotonic()
            self._crew.has_started = True
            self._ledger.log.event("worker", worker=hand.name, node=hand.node, **answer)

        return then

    def _answered(self, hand: Hand) -> Callable[[Status | Failure], None]:
        def then(status: Status | Failure) -> None:
            hand.is_asked = False
            if isinstance(status, Failure):
                return
            if status.progress != hand.status.progress or not self.leases.held_by(hand.name):
                hand.progress_at = time.monotonic()
            hand.status = status

        return then

    def _built(self, hand: Hand, ref: ShardRef) -> Callable[[ShardReport | Failure], None]:
        def then(result: ShardReport | Failure) -> None:
            hand.progress_at = time.monotonic()
            if isinstance(result, Failure):
                verdict = self.leases.failed(hand.place, ref.stem, result, self._peers())
                self._judge(hand, ref.stem, result, verdict)
                return
            self.leases.done(hand.place, ref.stem)
            self._outage.end()
            self._ledger.done(result, ref.size, worker=hand.name)

        return then

    def _judge(self, hand: Hand, stem: str, failure: Failure, verdict: Verdict) -> None:
        """What follows from a failed attempt."""
        if verdict.is_outage:
            self._pause(failure.reason)
            return
        self._ledger.attempt(stem, failure, verdict.number, worker=hand.name, node=hand.node[:8])
        if verdict.reasons is not None:
            self._ledger.gave_up(stem, verdict.reasons)
        if verdict.retire:
            self._last_fault = failure.reason
            self._end(hand, f"retired, it failed shard after shard: {failure.reason}")

    def _gone(self, hand: Hand, error: RayError) -> None:
        """An actor does not answer any more."""
        is_nodes, reason = how_it_died(error)
        if is_nodes:
            self._end(hand, "its node is gone", with_node=True)
        elif hand.ready_at is None:
            self._start_failed(hand, Failure("lost", reason))
        else:
            self._died(hand, Failure("lost", f"its worker died ({reason})"))

    def _died(self, hand: Hand, failure: Failure) -> None:
        peers = [place for place in self._peers() if place != hand.place]
        for stem, verdict in self.leases.died(hand.place, failure, peers, hand.status.stem).items():
            self._last_fault = failure.reason
            self._judge(hand, stem, failure, replace(verdict, retire=False))
        self._end(hand, failure.reason)

    def _start_failed(self, hand: Hand, failure: Failure) -> None:
        self._end(hand, f"did not start: {failure.reason}")
        if failure.kind == "store" and self._crew.has_started:
            self._pause(failure.reason)  # it may be no more than that; who starts later will tell
        elif hand.node:
            self.leases.losses[hand.node] += 1
            self._start_failures[hand.node] = self._last_fault = failure.reason
            # What no node can do, the recipe is to blame for: told as a build on one machine would tell it.
            num_alike = list(self._start_failures.values()).count(failure.reason)
            if failure.kind == "recipe" and not self._crew.has_started and num_alike >= min(2, self._num_usable or 2):
                raise ConfigError(failure.reason)

    def _end(self, hand: Hand, why: str, *, with_node: bool = False) -> None:
        given_up = self.leases.vanished(hand.place, with_node=with_node)
        self._crew.dismiss(hand)
        self._has_lost = True  # another is hired before anything is leased: what failed may wait for it
        self._crew.num_lost += 1
        self._ledger.log.event("worker_lost", worker=hand.name, node=hand.node, reason=why)
        self._ledger.progress.line(f"{hand} lost: {why}")
        for stem, reasons in given_up.items():
            self._ledger.gave_up(stem, reasons)

    def _check_stalled(self, hand: Hand, now: float) -> None:
        if hand.name not in self._crew.hands or (hand.placed_at is None and (hand.is_queued or not hand.node)):
            return
        if hand.ready_at is None:
            if now - (hand.placed_at or hand.asked_at) > self._start_s:
                self._start_failed(hand, Failure("lost", f"not ready after {format_seconds(self._start_s)}"))
        elif self.leases.held_by(hand.name) and now - hand.progress_at > self._stall_s:
            stage = ", ".join(hand.status.stages) or "no stage"
            self._died(hand, Failure("lost", f"no progress for {format_seconds(self._stall_s)} in {stage}"))

    def _check_hopeless(self, usable: set[str]) -> None:
        """Stops when every node that could hold a worker has proved to be broken."""
        if not usable or usable - self.leases.blocked_nodes or self._able():
            return
        if not self._crew.has_started:
            raise ConfigError(f"no worker starts: {self._last_fault}")
        self._ledger.stopped = f"every node has lost two workers by its own fault: {self._last_fault}"

    def _dismiss_idle(self) -> None:
        """Lets workers go that have nothing to do any more, but one: what fails is tried elsewhere."""
        idle = [hand for hand in self._crew.ready if not self.leases.held_by(hand.name)]
        left_out = [hand for hand in idle if hand.node in self.leases.blocked_nodes]
        spare = [hand for hand in idle if hand not in left_out][1:]
        for hand in left_out + ([] if self.leases.num_waiting else spare):
            self._crew.dismiss(hand)

    def _pause(self, reason: str) -> None:
        pause_s = self._outage.begin(time.monotonic())
        if pause_s is None:
            self._ledger.stopped = f"no worker reaches the store: {reason}"
        elif pause_s:
            self._ledger.log.event("outage", reason=reason, pause_s=pause_s)
            self._ledger.progress.line(f"no worker reaches the store; next attempt in {pause_s:.0f} s: {reason}")

    def _renew(self, now: float) -> None:
        """Hands on credentials that have been renewed here."""
        self._carried_at = now
        try:
            carried = carry(self._uris)
        except StorageError as error:
            self._ledger.progress.line(f"credentials not renewed: {error}")
            return
        if carried != self._carried:
            self._carried = carried
            for hand in self._crew.hands.values():
                hand.actor.renew.remote(carried)
