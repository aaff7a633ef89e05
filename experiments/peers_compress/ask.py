"""Asks a script of this folder, run by another Python, one question."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from jtok.errors import JtokError

__all__ = ["PeerError", "ask"]


class PeerError(JtokError, RuntimeError):
    """A peer could not run, or said what it lacks."""


def ask(
    python: str, script: str, request: dict[str, Any], threads: int
) -> dict[str, Any]:
    """Runs a script with a request on its stdin; its last line answers.

    Args:
      python: the interpreter that has the peer's packages.
      script: a file of this folder.
      request: what the script reads, as JSON.
      threads: how many it may use.

    Returns:
      Its answer.

    Raises:
      PeerError: it could not be run, or failed; what it said last is in the message.
    """
    path = Path(__file__).with_name(script)
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    environment.pop("PYTHONPATH", None)
    try:
        done = subprocess.run(
            [python, str(path)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
    except OSError as error:
        raise PeerError(f"cannot run {python!r} ({error})") from None
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise PeerError(f"{script} ended: {said[0]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if "error" in answer:
        raise PeerError(f"{script}: {answer['error']}")
    return answer
