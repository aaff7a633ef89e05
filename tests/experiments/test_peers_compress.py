"""A peer that cannot run says what it lacks."""

import sys

import pytest

from experiments.peers_compress.ask import PeerError, ask

REQUEST = {
    "tome": "nowhere", "pitome": "", "width": 64, "leaving": [1], "keep": 0.7, "seq": 4,
    "batch": 1, "rounds": 1, "threads": 1, "seed": 0,
}  # fmt: skip


def test_a_python_that_is_not_there():
    with pytest.raises(PeerError, match="cannot run 'no-such-python'"):
        ask("no-such-python", "merging_with_torch.py", REQUEST, 1)


def test_a_checkout_that_is_not_there():
    with pytest.raises(PeerError, match="needs torch, and ToMe at tome_path"):
        ask(sys.executable, "merging_with_torch.py", REQUEST, 1)
