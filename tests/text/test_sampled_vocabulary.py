"""Tokenizers drawn from the pieces of recent texts."""

import numpy as np
import pytest

from jtok.errors import ArgumentError
from jtok.testing import tiny_vocabulary
from jtok.text import PieceQueue, byte_tokenizer, sample_vocabulary

BASE = byte_tokenizer(tiny_vocabulary(257))
TEXTS = ["the cat sat on the mat", "that hat, that cat", "été"]
NONE = (0.0, 0.0)


def scores(texts=TEXTS, **options):
    queue = PieceQueue(BASE, **options)
    queue.add(texts)
    return queue.scores()


def brute_scores(texts, max_bytes, stride):
    found = {}
    for text in texts:
        for unit in BASE.split(text):
            raw = unit.encode()
            for start in range(0, len(raw), stride):
                for size in range(1, min(max_bytes, len(raw) - start) + 1):
                    piece = raw[start : start + size]
                    found[piece] = found.get(piece, 0) + size
    return found


@pytest.mark.parametrize("max_bytes, stride", [(15, 4), (3, 1)])
def test_scores_are_bytes_spelled(max_bytes, stride):
    got = scores(max_bytes=max_bytes, stride=stride)
    assert got == brute_scores(TEXTS, max_bytes, stride)


def test_old_texts_are_forgotten():
    queue = PieceQueue(BASE, capacity=2, stride=1)
    queue.add(TEXTS)
    assert queue.scores() == scores(TEXTS[1:], stride=1)


def best_score(table, raw):
    """Viterbi by brute force over all cuts."""
    best = [0.0] + [-np.inf] * len(raw)
    for end in range(1, len(raw) + 1):
        for start in range(end):
            if raw[start:end] in table:
                best[end] = max(best[end], best[start] + table[raw[start:end]])
    return best[-1]


def test_segments_have_the_highest_score():
    drawn = sample_vocabulary(scores(stride=1), BASE, size=400, rng=1)
    table = {p: float(s) for p, s in zip(drawn.pieces, drawn.scores) if p}
    for text in (*TEXTS, "unseen \x00 ß"):
        ids = drawn.segment(text)
        assert b"".join(drawn.pieces[i] for i in ids) == text.encode()
        expected = sum(best_score(table, unit.encode()) for unit in BASE.split(text))
        assert sum(float(drawn.scores[i]) for i in ids) == pytest.approx(
            expected, rel=1e-5
        )


def test_bytes_and_specials_are_always_there():
    drawn = sample_vocabulary(scores(stride=1), BASE, size=300, rng=0)
    assert drawn.special == {0: 0} and drawn.pieces[0] == b""
    assert {bytes([b]) for b in range(256)} <= set(drawn.pieces)
    assert b"    " in drawn.pieces and drawn.size == 301


def test_without_noise_the_best_pieces_win():
    found = scores(stride=1)
    drawn = sample_vocabulary(found, BASE, size=280, noise=NONE)
    extra = [p for p in drawn.pieces if len(p) > 1 and p.strip()]
    rest = sorted((p for p in found if len(p) > 1), key=lambda p: (-found[p], p))
    assert sorted(extra) == sorted(rest[: len(extra)])


def test_noise_draws_other_vocabularies_and_seeds_repeat():
    found = scores(stride=1)
    draw = lambda seed: sample_vocabulary(
        found, BASE, size=280, noise=(-3.0, 1.0), rng=seed
    )
    assert draw(1).pieces == draw(1).pieces
    assert draw(1).pieces != draw(2).pieces


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: sample_vocabulary({}, BASE, size=200), "size: got 200"),
        (lambda: sample_vocabulary({}, BASE, noise=(0.0, -1.0)), "noise"),
        (lambda: PieceQueue(BASE, stride=0), "stride: got 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
