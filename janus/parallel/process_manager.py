"""Talks to Hydra, which started this rank, without MPI: ranks find each other, and end without being killed.

MPI itself is not needed where torch carries the traffic, and has two faults there. MPICH tells Hydra in a handler of
C's ``exit`` that a rank is done; a rank with gloo's threads must not run such handlers, and without them Hydra takes
its end for a crash and kills all others, whatever the exit code. And MPICH 5.0 was seen not to come back from its
start, with more ranks than cores (one launch in some hundreds).

Protocol: PMI 1.1, lines of ``name=value`` words over an inherited socket (MPICH's and Intel MPI's Hydra).
"""

from __future__ import annotations

import socket
from collections.abc import Mapping


class ProcessManager:
    """The connection of one rank. environment: as Hydra left it, with PMI_FD. All ranks make the same calls."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Raises RuntimeError where the other end does not speak PMI 1."""
        self._connection = socket.socket(fileno=int(environment["PMI_FD"]))
        self._lines = self._connection.makefile("r", newline="\n")
        self._ask("init pmi_version=1 pmi_subversion=1", "response_to_init")
        self._space = self._ask("get_my_kvsname", "my_kvsname")["kvsname"]

    def broadcast(self, text: str, *, is_source: bool) -> str:
        """The text of the one source, on all ranks. One word of at most 200 characters; called once."""
        assert not is_source or (0 < len(text) <= 200 and not set(text) & set(" =\n")), text
        if is_source:
            self._ask(f"put kvsname={self._space} key=janus value={text}", "put_result")
        self._ask("barrier_in", "barrier_out")
        return text if is_source else self._ask(f"get kvsname={self._space} key=janus", "get_result")["value"]

    def leave(self) -> None:
        """Tell Hydra that this rank will not come back: it may end when and how it likes."""
        self._ask("finalize", "finalize_ack")
        self._lines.close()
        self._connection.close()

    def _ask(self, question: str, answer: str) -> dict[str, str]:
        self._connection.sendall(f"cmd={question}\n".encode())
        line = self._lines.readline()
        words = dict(word.split("=", 1) for word in line.split() if "=" in word)
        if words.get("cmd") != answer or words.get("rc", "0") != "0":
            raise RuntimeError(f"the process manager answered {line.strip()!r} to {question.split()[0]!r}")
        return words
