"""One rank's failure stops every rank, and the message names it.

Each rank's watchdog is a daemon thread that beats once a second into the job's key-value store and looks for trouble:
a failure that a rank reported, a rank whose beat stopped (killed, frozen), a store that went with rank 0, or ranks
that never come to the collective in which others wait. Rank 0 looks at every beat, the others at rank 0's only.
It does not own ranks killed together with all others by their launcher: ``guardian.py``.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from janus.parallel.communication import Communicator

BEAT_S = 1.0
SILENCE_S = 15.0  # of a beat, before its rank counts as lost; well below the 30 s in which all must have stopped
FAREWELL_S = 5.0  # longest wait of a failed job's ranks for one another before they exit


class Watchdog:
    """Starts watching when made; ``stop`` before leaving. World size 1: nothing to watch, ``report`` just prints.

    on_failure: called once with the message before this process exits (rank 0 marks the run as failed).
    before_exit: called last (dismisses the guardian). hang_timeout_s: longest wait in one collective.
    """

    def __init__(
        self,
        communicator: Communicator,
        *,
        command: str,
        hang_timeout_s: float = 1800.0,
        on_failure: Callable[[str], None] | None = None,
        before_exit: Callable[[], None] | None = None,
    ) -> None:
        self._communicator, self._command, self._hang_timeout_s = communicator, command, hang_timeout_s
        self.on_failure, self.before_exit = on_failure, before_exit
        self._stopping = threading.Event()
        self._exiting = threading.Lock()
        self._last_change: dict[int, tuple[bytes, float]] = {}
        self._hosts: list[str] = communicator.gather_objects(communicator.host)
        if communicator.world_size == 1:
            return
        self._store: Any = communicator.store.clone()  # a connection of its own: the main one may block
        self._beat_number = 0
        self._beat()
        communicator.barrier()  # every beat exists before anyone looks
        self._thread = threading.Thread(target=self._watch, name="janus-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch in an orderly way. All ranks call it."""
        if self._communicator.world_size > 1 and not self._stopping.is_set():
            self._communicator.barrier()
            self._stopping.set()
            self._thread.join()

    def report(self, sentence: str, *, of_all_ranks: bool = False) -> None:
        """This rank cannot go on: tell all ranks, print once, exit with code 1.

        of_all_ranks: every rank reports the same, so that no single one is to be named. Returns, after printing, only
        in a job of one process, which then ends as its caller likes.
        """
        if self._communicator.world_size == 1:
            print(f"janus {self._command}: {sentence}", file=sys.stderr, flush=True)
            if self.on_failure is not None:
                self.on_failure(sentence)
            return
        message = sentence if of_all_ranks else f"{self._name(self._communicator.rank)}: {sentence}; all ranks stop"
        self._declare(message)
        time.sleep(3 * BEAT_S)  # the others see it and end on their own before a launcher kills them
        self._exit(message, speak=self._communicator.rank == 0)

    def wait_for_verdict(self, symptom: str) -> None:
        """A collective broke, so some other rank has most likely failed: let the watch name it. Never returns."""
        time.sleep(SILENCE_S + 4 * BEAT_S)
        self.report(symptom)

    def _name(self, rank: int) -> str:
        return f"rank {rank} on {self._hosts[rank]}"

    def _declare(self, message: str) -> str:
        """Put a failure into the store unless one is there; returns the one that counts."""
        try:
            return self._store.compare_set("failed", "", message).decode()
        except RuntimeError:  # the store went with rank 0
            return message

    def _beat(self) -> None:
        """Number of this beat, collectives entered, and for how long this rank has been inside the last one."""
        self._beat_number += 1
        waiting = self._communicator.waiting
        entered_at = waiting.entered_at
        inside_s = time.monotonic() - entered_at if entered_at is not None else 0.0
        beat = [self._beat_number, waiting.collectives_entered, inside_s]
        self._store.set(f"beat/{self._communicator.rank}", json.dumps(beat))

    def _watch(self) -> None:
        while not self._stopping.wait(BEAT_S):
            try:
                self._beat()
                if self._store.check(["failed"]):
                    self._exit(self._store.get("failed").decode(), speak=self._communicator.rank == 0)
                verdict = self._examine()
            except RuntimeError as error:
                if self._stopping.is_set():
                    return
                verdict = f"{self._name(0)} is lost, and the store of the job with it ({str(error).splitlines()[0]})"
            if verdict is not None:
                # rank 0 watches everybody and speaks; where it is lost itself, a few others do
                self._exit(self._declare(f"{verdict}; all ranks stop"), speak=self._speaks_for_rank_0())

    def _speaks_for_rank_0(self) -> bool:
        """Rank 0, rank 1 and the first rank of each host: enough voices when rank 0 is gone, not thousands."""
        return self._communicator.rank <= 1 or self._communicator.local_rank == 0

    def _examine(self) -> str | None:
        """What is wrong with the ranks this one looks at, or None."""
        world_size = self._communicator.world_size
        watched = list(range(world_size)) if self._communicator.rank == 0 else [0]
        beats = self._store.multi_get([f"beat/{rank}" for rank in watched])
        now = time.monotonic()
        for rank, beat in zip(watched, beats, strict=True):
            last, since = self._last_change.get(rank, (b"", now))
            if beat != last:
                self._last_change[rank] = (beat, now)
            elif now - since > SILENCE_S:
                return f"{self._name(rank)} gave no sign of life for {SILENCE_S:.0f} s (killed, frozen or cut off)"
        return self._find_hang([json.loads(beat) for beat in beats]) if len(beats) == world_size else None

    def _find_hang(self, beats: list[list[float]]) -> str | None:
        """Names the ranks that have not come to a collective in which another has waited too long.

        Groups differ in how many collectives they have, so counts only choose among the ranks that are in none.
        """
        longest_s = max(beat[2] for beat in beats)
        if longest_s <= self._hang_timeout_s:
            return None
        furthest = max(beat[1] for beat in beats)
        behind = [rank for rank, beat in enumerate(beats) if beat[1] < furthest]
        outside = [rank for rank, beat in enumerate(beats) if beat[2] == 0.0]
        missing = [rank for rank in outside if rank in behind] or outside or behind
        names = ", ".join(self._name(rank) for rank in missing[:8]) or "no rank in particular"
        return f"{names} did not come to a collective in which others waited {longest_s:.0f} s"

    def _exit(self, message: str, *, speak: bool) -> None:
        """Leave marks, print where this rank speaks for all, end this process at once with code 1."""
        with self._exiting:  # never released: the main thread and the watch may both get here
            try:
                if speak:
                    print(f"janus {self._command}: {message}", file=sys.stderr, flush=True)
                if self.on_failure is not None:
                    self.on_failure(message)
                if self.before_exit is not None:
                    self.before_exit()
                self._wait_for_all_to_be_ready()
            finally:
                os._exit(1)

    def _wait_for_all_to_be_ready(self) -> None:
        """Until every rank that can has left its marks: most launchers that see the first one end kill all others."""
        deadline = time.monotonic() + FAREWELL_S
        try:
            ready = self._store.add("ready_to_exit", 1)
            while ready < self._communicator.world_size and time.monotonic() < deadline:
                time.sleep(0.02)
                ready = self._store.add("ready_to_exit", 0)
        except RuntimeError:  # the store went with rank 0: it was ready, and so were all others
            return
