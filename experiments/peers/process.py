"""A peer as a process: one JSON line asks for a run, one JSON line answers."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jtok.errors import ArgumentError, JtokError

__all__ = ["Peer", "PeerError"]


class PeerError(JtokError, RuntimeError):
    """A peer did not start or failed in a run."""


class Peer:
    """A running script that answers one request at a time; also a context manager.

    Args:
      python: the interpreter that has the peer's packages; "" is this one.
      script: a file of this folder.
      arguments: of the script.
      threads: how many it may use.

    Raises:
      PeerError: it did not come up; what it said last is in the message.
    """

    def __init__(
        self, python: str, script: str, arguments: Sequence[str], *, threads: int
    ) -> None:
        path = Path(__file__).with_name(script)
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        environment = {**os.environ, **dict.fromkeys(names, str(threads))}
        environment.pop("PYTHONPATH", None)
        try:
            self._process = subprocess.Popen(
                [python or sys.executable, str(path), *arguments, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
        except OSError as error:
            raise ArgumentError(
                f"peer_python: cannot run {python!r} ({error}), expected a Python "
                "that has torch and transformers."
            ) from None
        self.versions = self._answer()

    def run(self, **request: Any) -> dict[str, Any]:
        """Asks for a run.

        Args:
          **request: what the script takes.

        Returns:
          Its answer.

        Raises:
          PeerError: it failed.
        """
        stdin = self._process.stdin
        try:
            stdin.write(json.dumps(request) + "\n")  # type: ignore[union-attr]
            stdin.flush()  # type: ignore[union-attr]
        except OSError:
            pass  # the answer below says why it is gone
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            said = self._process.stderr.read().strip()  # type: ignore[union-attr]
            last = said.splitlines()[-1:] or ["it said nothing"]
            raise PeerError(f"the peer ended: {last[0]}")
        answer = json.loads(line)
        if "error" in answer:
            raise PeerError(f"the peer failed: {answer['error']}")
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> "Peer":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
