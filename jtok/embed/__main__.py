"""Gives a saved model another vocabulary: `python -m jtok.embed BASE TARGET OUT`.

`TARGET` is a tokenizer for methods that need no donor, else the donor, whose tokenizer
is taken. `--resume FOLDER` keeps finished batches of OMP there, so that the same
command goes on after a kill.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jtok import embed, models
from jtok.errors import JtokError, WriteError

# Name -> (whether TARGET is a donor, how to make it of the arguments).
_METHODS: dict[str, tuple[bool, Callable[..., Any]]] = {
    "omp": (True, lambda donor, a, o: embed.omp(
        donor, k=a.k, normalize_atoms=a.normalize_atoms, batch=a.batch,
        progress=_progress, resume=a.resume, options=o)),
    "common_interpolation": (True, lambda donor, a, o: embed.common_interpolation(
        donor, k=a.k, options=o)),
    "procrustes": (True, lambda donor, a, o: embed.procrustes(donor, options=o)),
    "linear_map": (True, lambda donor, a, o: embed.linear_map(donor, options=o)),
    "sparse_basis": (True, lambda donor, a, o: embed.sparse_basis(
        donor, k=a.k, options=o)),
    "subword": (False, lambda donor, a, o: embed.subword(options=o)),
    "tokenadapt": (False, lambda donor, a, o: embed.tokenadapt(
        embed.hashed_ngrams(), options=o)),
    "mean": (False, lambda donor, a, o: embed.mean(options=o)),
    "zero": (False, lambda donor, a, o: embed.zero(options=o)),
    "fitted_normal": (False, lambda donor, a, o: embed.fitted_normal(options=o)),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      arguments: of the command line; None takes the process's.

    Returns:
      0, or 1 after an error, whose message is printed; then nothing was written.
    """
    parsed = _parser().parse_args(arguments)
    try:
        _run(parsed)
    except JtokError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m jtok.embed",
        description="Give a saved model another vocabulary.",
    )
    add = parser.add_argument
    add("base", help="folder or hub id of the model")
    add("target", help="tokenizer, or donor model: file, folder, hub id")
    add("out", help="folder to write")
    add("--method", choices=sorted(_METHODS), default="omp")
    add("--k", type=int, default=64, help="shared tokens in a new row")
    add("--normalize-atoms", action="store_true", help="choose by cosine")
    add("--batch", type=int, default=512, help="targets at a time")
    add("--resume", default=None, help="folder of finished batches")
    add("--well-trained", action="store_true", help="fit to well trained tokens only")
    add("--noise", type=float, default=0.0, help="deviation of noise on new rows")
    add("--scale", type=float, default=1.0, help="factor on new rows")
    add("--pad-to-multiple-of", type=int, default=1, help="rows of the result")
    add("--dtype", choices=("float32", "bfloat16"), default=None)
    add("--seed", type=int, default=0)
    return parser


def _run(parsed: argparse.Namespace) -> None:
    _check_writable(parsed.out)
    base = models.load(parsed.base, dtype=parsed.dtype)
    needs_donor, make = _METHODS[parsed.method]
    donor = models.load(parsed.target) if needs_donor else None
    anchors = None
    if parsed.well_trained:
        anchors = embed.well_trained_tokens(embed.rows_of(base))
    options = embed.Options(noise=parsed.noise, scale=parsed.scale, anchors=anchors)
    made = embed.transplant(
        base,
        donor if needs_donor else parsed.target,
        make(donor, parsed, options),
        key=jax.random.key(parsed.seed),
        pad_to_multiple_of=parsed.pad_to_multiple_of,
    )
    models.save(made, parsed.out)
    print(json.dumps(embed.transplant_record(made), indent=1, sort_keys=True))


def _progress(matrix: str, done: int, count: int) -> None:
    end = "\n" if done == count else ""
    print(f"\r{matrix} rows: {done} of {count}", end=end, file=sys.stderr, flush=True)


def _check_writable(out: str) -> None:
    """Refuses before hours of work what could not be written after them."""
    place = pathlib.Path(out).expanduser().resolve()
    parent = next(folder for folder in place.parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
        if place.exists() and not os.access(place, os.W_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise WriteError(f"out: cannot write {out!r} ({error.strerror}).") from error


if __name__ == "__main__":
    sys.exit(main())
