"""The heuristic as an `EmbeddingInit`, and the encoders that it compares with."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.embed import (
    Options,
    Rows,
    TextVectors,
    hashed_ngrams,
    model_encoder,
    tokenadapt,
)
from jtok.errors import ArgumentError, CheckpointError, WriteError
from jtok.testing import assert_close, tiny_model
from jtok.text import Vocabulary, overlap

KEY = jax.random.key(0)
TEXT = "the cats sat on the mats, the dogs and the cats in the house undoing things. "


@functools.cache
def vocabularies():
    old = Vocabulary.train_bpe([TEXT * 4], 290)
    return old, Vocabulary.train_bpe(["a house of cats, über undoing, thing " * 9], 300)


@functools.cache
def source():
    old, _ = vocabularies()
    keys = jax.random.split(KEY)
    draws = (jax.random.normal(key, (old.size, 8)) for key in keys)
    return Rows(*draws, old)


ENCODE = hashed_ngrams(64)


def softmax(values):
    raised = np.exp(values - values.max())
    return raised / raised.sum()


def oracle(rows, *, characters, k=3, weight=0.3, tau=0.3 + 1e-5):
    """The page's algorithm, token by token, for old and new byte-level vocabularies."""
    old, new = vocabularies()
    text = lambda vocabulary, id_: vocabulary.decode([id_], skip_special=False)
    size = lambda t: len(t) if characters else len(t.encode())
    plain = [id_ for id_ in range(old.size) if id_ not in old.special_ids]
    plain = [id_ for id_ in plain if "\ufffd" not in text(old, id_)]
    near = np.array(ENCODE([text(old, id_) for id_ in plain]))
    made = {}
    for id_ in overlap(old, new).new_ids.tolist():
        string = text(new, id_)
        if "\ufffd" in string:
            continue
        vector = np.array(ENCODE([string]))[0]
        pieces = old.encode(string, specials=False)
        known = np.array(ENCODE([text(old, piece) for piece in pieces]))
        sizes = [len(old.token_bytes[piece]) for piece in pieces]
        if characters:
            sizes = [len(text(old, piece)) for piece in pieces]
        share = np.array(sizes) / size(string)
        mixed = softmax((softmax(known @ vector) + share) / 2 / tau)
        local = mixed @ rows[pieces]
        cosine = near @ vector
        best = np.argsort(-cosine, kind="stable")[:k]
        around = softmax(cosine[best] / tau) @ rows[np.array(plain)[best]]
        made[id_] = (1 - weight) * local + weight * around
    return made


@pytest.mark.parametrize("unit", ["byte", "char"])
def test_rows_are_those_of_the_algorithm(unit):
    _, new = vocabularies()
    method = tokenadapt(ENCODE, length_unit=unit)
    made = method(new, source(), KEY)[:2]
    for rows, matrix in zip(made, (source().input, source().output)):
        expected = oracle(np.asarray(matrix), characters=unit == "char")
        assert len(expected) > 10
        for id_, row in expected.items():
            assert_close(rows[id_], jnp.asarray(row, jnp.float32), atol=1e-5)


def test_the_report_counts_and_shared_rows_are_copies():
    old, new = vocabularies()
    rows, output, report = tokenadapt(ENCODE)(new, source(), KEY)
    shared = overlap(old, new)
    copied = rows[shared.target_ids]
    np.testing.assert_array_equal(copied, source().input[shared.source_ids])
    assert output.shape == rows.shape == (new.size, 8)
    count = len(shared.new_ids)
    # One is half a character, which has no neighbours.
    cut = [new.token_bytes[id_] for id_ in shared.new_ids]
    assert sum("\ufffd" in token.decode(errors="replace") for token in cut) == 1
    assert report.extras["input"] == {
        "local": count,
        "global": count - 1,
        "fallback": 0,
    }
    assert report.extras["input"] == report.extras["output"]


def test_the_same_vocabulary_is_the_identity():
    old, _ = vocabularies()
    rows, output, report = tokenadapt(ENCODE)(old, source(), KEY)
    np.testing.assert_array_equal(rows, source().input)
    np.testing.assert_array_equal(output, source().output)
    assert set(report.counts()) == {"copied", "role"}


def test_tied_and_bfloat16_rows():
    old, new = vocabularies()
    tied = Rows(source().input.astype(jnp.bfloat16), None, old)
    rows, output, _ = tokenadapt(ENCODE)(new, tied, KEY)
    assert output is None and rows.dtype == jnp.bfloat16
    exact = tokenadapt(ENCODE)(
        new, tied.replace(input=tied.input.astype(jnp.float32)), KEY
    )
    assert_close(rows, exact[0].astype(jnp.bfloat16))


def test_equal_vectors_and_lengths_are_the_mean_of_the_pieces():
    """ReTok: single bytes, which all look alike to this encoder."""
    old = Vocabulary.train_bpe(["a"], 257)
    new = Vocabulary.train_bpe(["abcab abcab"], 260)
    rows = Rows(jax.random.normal(KEY, (257, 4)), None, old)
    alike = lambda texts: np.ones((len(texts), 3))
    made = tokenadapt(alike, weight=0.0)(new, rows, KEY)[0]
    for id_ in range(257, 260):
        pieces = old.encode(new.token_bytes[id_].decode())
        assert_close(made[id_], rows.input[pieces].mean(axis=0), atol=1e-6)


@pytest.mark.parametrize("fallback", ["normal", "mean"])
def test_what_cannot_be_made_falls_back(fallback):
    old, new = vocabularies()
    nothing = lambda texts: np.zeros((len(texts), 3))
    made, _, report = tokenadapt(nothing, fallback=fallback)(new, source(), KEY)
    ids = overlap(old, new).new_ids
    assert report.counts()["fallback"] == len(ids)
    assert report.extras["input"]["local"] == report.extras["input"]["global"] == 0
    if fallback == "mean":
        middle = source().input.mean(axis=0)
        assert_close(made[ids], jnp.broadcast_to(middle[None], made[ids].shape))
    else:
        entries = np.asarray(made[ids])
        assert np.isfinite(entries).all() and 0.7 < entries.std() < 1.3
        assert (
            entries
            != np.asarray(tokenadapt(nothing)(new, source(), jax.random.key(1))[0][ids])
        ).all()


def test_ids_beyond_the_matrix_are_not_used():
    """Reading past the end would read the last row, which is told apart."""
    old, new = vocabularies()
    short = Rows(jnp.ones((280, 8)).at[279].set(1e6), None, old)
    rows, _, report = tokenadapt(ENCODE, weight=0.0)(new, short, KEY)
    beyond = 0
    for id_ in np.flatnonzero(report.how["input"] == 4):
        text = new.token_bytes[id_].decode(errors="ignore")
        pieces = old.encode(text, specials=False)
        if 279 not in pieces:
            assert_close(rows[id_], jnp.ones(8))
            beyond += bool((pieces >= 280).any())
    assert beyond


def test_officially_tokens_without_a_row_take_the_places_of_neighbours():
    old, new = vocabularies()
    text = lambda id_: old.decode([id_], skip_special=False)
    late = {text(id_) for id_ in range(280, old.size)}
    early = {text(id_) for id_ in range(280)} - late
    encode = lambda texts: np.array([[1.0, t in early] for t in texts]) - [0, 0.5]
    short = Rows(jnp.ones((280, 8)), None, old)
    counts = {}
    for compat in (None, "official"):
        method = tokenadapt(encode, k=1, weight=1.0, compat=compat)
        _, _, report = method(new, short, KEY)
        counts[compat] = report.extras["input"]["global"]
    assert counts[None] > 0 and counts["official"] == 0


def test_neighbours_are_neither_specials_nor_pieces_of_characters():
    old, new = vocabularies()
    specials = jnp.zeros((old.size, 1)).at[0].set(1.0)
    cut = np.array(["\ufffd" in t.decode(errors="replace") for t in old.token_bytes])
    marked = jnp.asarray(cut, jnp.float32)[:, None] + specials
    alike = lambda texts: np.ones((len(texts), 2))
    method = tokenadapt(alike, k=old.size, weight=1.0)
    ids = overlap(old, new).new_ids
    rows = method(new, Rows(marked, None, old), KEY)[0][ids]
    readable = [
        "\ufffd" not in new.token_bytes[i].decode(errors="replace") for i in ids
    ]
    assert not np.asarray(rows)[readable].any()
    official = tokenadapt(alike, k=old.size, weight=1.0, compat="official")
    assert np.asarray(official(new, Rows(marked, None, old), KEY)[0][ids]).all()


def test_only_anchors_are_neighbours():
    old, new = vocabularies()
    anchors = tuple(range(40, 60))
    mark = jnp.zeros((old.size, 1)).at[jnp.asarray(anchors)].set(1.0)
    method = tokenadapt(ENCODE, weight=1.0, options=Options(anchors=anchors))
    _, _, report = method(new, Rows(mark, None, old), KEY)
    rows = method(new, Rows(mark, None, old), KEY)[0]
    near = report.how["input"] == 4
    assert near.any()
    assert_close(rows[near], jnp.ones((int(near.sum()), 1)))


@pytest.mark.parametrize(
    "options, name",
    [
        ({"encoder": None}, "encoder"),
        ({"k": 0}, "k"),
        ({"weight": -0.1}, "weight"),
        ({"weight": 1.1}, "weight"),
        ({"temperature": 0.0}, "temperature"),
        ({"length_unit": "word"}, "length_unit"),
        ({"fallback": "zero"}, "fallback"),
        ({"compat": "paper"}, "compat"),
    ],
)
def test_bad_options_are_named(options, name):
    with pytest.raises((ArgumentError, TypeError), match=name):
        tokenadapt(**{"encoder": ENCODE, **options})


# ---- encoders


def test_hashed_ngrams_are_unit_vectors_of_the_spelling():
    vectors = hashed_ngrams(256)(["undoing", "doing", "cats", ""])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 1, 0], atol=1e-6)
    assert vectors[0] @ vectors[1] > 0.6 > vectors[0] @ vectors[2]
    one = hashed_ngrams(512, longest=1)(["aab"])[0]
    cells = np.sort(one[one > 0])
    np.testing.assert_allclose(cells[0] / cells[1], np.log(2) / np.log(3), rtol=1e-5)


def test_a_model_encodes_by_the_mean_of_its_states():
    old, _ = vocabularies()
    model = tiny_model(vocab_size=old.size).replace(vocabulary=old)
    texts = ["the cats", "", "on", "the dogs and the cats in the house"]
    vectors = model_encoder(model, batch=4)(texts)
    assert vectors.shape == (4, 32) and not vectors[1].any()
    for place in (0, 3):
        ids = old.encode(texts[place])
        wide = jnp.asarray(np.pad(ids, (0, 16 - len(ids))))[None]
        hidden = model(wide, mask=wide > 0, logits="none").hidden[0, : len(ids)]
        assert_close(jnp.asarray(vectors[place]), hidden.mean(axis=0), atol=1e-5)
    encode = model_encoder(model, batch=4, max_length=2)
    start = old.decode(old.encode(texts[3])[:2])
    cut, first = encode([texts[3], start])
    np.testing.assert_array_equal(cut, first)
    other = tiny_model(vocab_size=old.size, seed=1).replace(vocabulary=old)
    assert model_encoder(model).name != model_encoder(other).name


def test_every_text_is_asked_once_and_kept_in_the_file(tmp_path):
    asked = []

    def encoder(texts):
        asked.extend(texts)
        return np.array([[len(text), 1.0] for text in texts])

    path = tmp_path / "vectors.npz"
    vectors = TextVectors(encoder, path, name="lengths")
    first = vectors(["a", "bb", "a", "ü\n", ""])
    vectors.save()
    again = TextVectors(encoder, path, name="lengths")
    np.testing.assert_array_equal(again(["a", "bb", "a", "ü\n", ""]), first)
    assert asked == ["a", "bb", "ü\n", ""]
    with pytest.raises(ArgumentError, match=r"^path: got 'lengths'"):
        TextVectors(encoder, path, name="others")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match=r"vectors\.npz: damaged"):
        TextVectors(encoder, path, name="lengths")
    with pytest.raises(ArgumentError, match=r"^name: "):
        TextVectors(encoder, path)


def test_a_transplant_keeps_its_vectors(tmp_path):
    _, new = vocabularies()
    path = tmp_path / "vectors.npz"
    expected = tokenadapt(ENCODE, cache=path)(new, source(), KEY)[0]
    silent = lambda texts: pytest.fail(f"asked again: {texts}")
    method = tokenadapt(silent, cache=path, encoder_name=ENCODE.name)
    np.testing.assert_array_equal(method(new, source(), KEY)[0], expected)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(WriteError):
        tokenadapt(ENCODE, cache=blocked / "vectors.npz")(new, source(), KEY)


@pytest.mark.parametrize(
    "encoder, what",
    [
        (lambda texts: np.ones(len(texts)), "shape"),
        (lambda texts: np.ones((len(texts) + 1, 2)), "shape"),
        (lambda texts: np.ones((len(texts), 0)), "shape"),
        (lambda texts: np.full((len(texts), 2), np.nan), "not finite"),
        (lambda texts: np.ones((len(texts), len(texts))), "as for other texts"),
    ],
)
def test_encoders_that_give_something_else(encoder, what):
    vectors = TextVectors(encoder)
    with pytest.raises(ArgumentError, match=f"^encoder: .*{what}"):
        vectors(["a"])
        vectors(["b", "c"])


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: hashed_ngrams(0), "dim"),
        (lambda: hashed_ngrams(4, longest=0), "longest"),
        (lambda: model_encoder(tiny_model()), "model"),
        (lambda: model_encoder(tiny_model(), batch=0), "model|batch"),
    ],
)
def test_bad_encoders_are_named(call, name):
    with pytest.raises(ArgumentError, match=f"^({name}): "):
        call()
