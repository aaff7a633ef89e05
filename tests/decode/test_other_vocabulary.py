"""A draft model of another vocabulary: text is what the two have in common."""

import dataclasses
import functools
import inspect

import jax
import numpy as np
import pytest

from jtok.decode import Translator, draft_across, generate, serve
from jtok.decode.other_vocabulary import _Writer
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError
from jtok.models import split_layers
from jtok.testing import bigram_target, recurrent_target, tiny_model
from jtok.text import Vocabulary
from tests.text import kinds

LETTERS = Vocabulary.train_bpe(["b"], 258, specials=("<s>", "</s>"))
WORDS = kinds.byte_bpe(300)
PIECES = kinds.metaspace_bpe()
PAIRS = {
    "words": (WORDS, LETTERS),
    "pieces": (PIECES, WORDS),
    "bytes": (LETTERS, PIECES),
}
TEXTS = ["the cat", "t", "def f(x): the 東 größer the cat"]
TEMPERATURES = {"greedy": 0.0, "sampled": [0.0, 1.0, 0.7]}


@functools.lru_cache
def table(size):
    return 2.0 * np.random.default_rng(size).normal(size=(size, size)).astype("float32")


@functools.lru_cache
def target(size):
    return bigram_target(table(size), whole_context=True)


@pytest.mark.parametrize("how", TEMPERATURES)
@pytest.mark.parametrize("pair", PAIRS)
def test_the_tokens_are_those_of_plain_decoding(pair, how):
    verifying, drafting = PAIRS[pair]
    options = {"max_new_tokens": 24, "temperature": TEMPERATURES[how]}
    options |= {"vocabulary": verifying, "stop_ids": ()}
    across = draft_across(
        target(drafting.size), verifying, draft_vocabulary=drafting, draft_tokens=3
    )
    plain = generate(target(verifying.size), TEXTS, **options)
    out = generate(target(verifying.size), TEXTS, drafter=across, **options)
    assert out.guarantee == "token"
    for got, want in zip(out.tokens, plain.tokens, strict=True):
        np.testing.assert_array_equal(got, want)


def test_a_draft_model_that_agrees_is_always_right():
    known = table(LETTERS.size).copy()
    known[:, :2] = -9.0
    # Printable only: bytes that are no UTF-8 do not survive as text.
    printable = [id_ for id_, b in enumerate(LETTERS.token_bytes) if b.isalpha()]
    barred = np.ones(LETTERS.size, bool)
    barred[printable] = False
    known[:, barred] = -9.0
    verifying = bigram_target(known)
    other = Vocabulary.train_bpe(["b"], 259, specials=("</s>", "<x>", "<s>"))
    ids = [other.id_of(LETTERS.token_bytes[i]) for i in range(2, LETTERS.size)]
    moved = np.full((other.size, other.size), -9.0, np.float32)
    moved[np.ix_(ids, ids)] = known[2:, 2:]
    across = draft_across(
        bigram_target(moved), LETTERS, draft_vocabulary=other, draft_tokens=4
    )
    out = generate(
        verifying, ["ab", "hello"], max_new_tokens=20, vocabulary=LETTERS,
        drafter=across, stop_ids=(),
    )  # fmt: skip
    assert out.stats.row_calls.tolist() == [4, 4]  # five tokens a call
    assert out.stats.host_syncs == 4


def test_drafts_are_cut_together_with_the_context():
    across = Translator.between(WORDS, LETTERS)
    ids = WORDS.encode("the c", specials=False)
    drafted = LETTERS.encode("at sat", specials=False)
    whole = WORDS.encode("the cat sat", specials=False).tolist()
    if whole[: len(ids)] == ids.tolist():
        assert across.to_target(ids, drafted)[0] == whole[len(ids) :]
    paths = across.to_target(ids, drafted)
    for path in paths:
        assert WORDS.decode_bytes(path) == b"at sat"
    # Cut alone where the whole text is cut otherwise.
    assert WORDS.encode("at sat", specials=False).tolist() in paths
    context = WORDS.encode("the", specials=False)
    joined = across.to_target(context, LETTERS.encode(" cat", specials=False))
    assert joined[0] == WORDS.encode(" cat", specials=False).tolist()
    assert len(joined) == 1  # both cuts agree


def test_metaspaces_join():
    across = Translator.between(PIECES, LETTERS)
    assert across.adds_space and not Translator.between(LETTERS, PIECES).adds_space
    ids = PIECES.encode("the")
    drafts = across.to_target(ids, LETTERS.encode(" the ca", specials=False))
    whole = PIECES.encode("the the ca").tolist()
    assert drafts[0] == whole[len(ids) :]
    # Without a space, the two must be cut together.
    inside = across.to_target(ids, LETTERS.encode("ca", specials=False))
    assert inside == [[PIECES.id_of("c"), PIECES.id_of("a")]]
    # BOS stays itself where the draft model has one, and the space is the tokenizer's.
    spelled = across.to_draft(PIECES.encode("the"))
    assert LETTERS.decode(spelled, skip_special=False) == "<s>the"


def test_special_tokens_keep_their_roles():
    across = Translator.between(PIECES, LETTERS)
    bos, eos = PIECES.special["bos"], PIECES.special["eos"]
    assert LETTERS.special["eos"] == LETTERS.special["bos"]  # "bos" goes first
    ended = np.array([LETTERS.id_of(b"c"), LETTERS.special["eos"], 5])
    drafts = across.to_target(PIECES.encode("the"), ended)
    assert drafts == [[PIECES.id_of("c"), bos]]
    back = Translator.between(LETTERS, PIECES)
    ended = np.array([PIECES.id_of("c"), eos, 5])
    drafts = back.to_target(LETTERS.encode("the"), ended)
    assert drafts == [[LETTERS.id_of("c"), LETTERS.special["eos"]]]
    unknown = Translator.between(WORDS, LETTERS)
    assert unknown.to_draft(np.array([], np.int32)).tolist() == [0]


def test_a_character_that_the_context_began():
    across = Translator.between(LETTERS, LETTERS)
    first, second = LETTERS.encode("é", specials=False).tolist()
    context = np.array([LETTERS.id_of(b"a"), first])
    assert LETTERS.token_bytes[across.to_draft(context)[-1]] == b"a"
    rest = LETTERS.encode("ébc", specials=False)
    assert across.to_target(context, rest) == [rest[1:].tolist()]
    other = LETTERS.encode("xy", specials=False)
    assert across.to_target(context, other) == []
    # A draft that ends inside a character ends before it.
    assert across.to_target(context[:1], rest[:1]) == [[]]
    assert across.to_target(context, rest[:1]) == [[]] and second == rest[1]


def as_dtype(model, dtype):
    config = dataclasses.replace(model.config, dtype=dtype)
    params = jax.tree.map(lambda x: x.astype(dtype), model.params)
    return model.replace(config=config, params=params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_the_writer_remembers_changes_nothing(dtype):
    model = as_dtype(tiny_model(vocab_size=40), dtype)
    params = split_layers(model.params)
    writer = _Writer(model.target(), params, 3)
    rng = np.random.default_rng(0)
    whole = [rng.integers(0, 40, 60).astype(np.int32) for _ in range(3)]
    for sizes in ([30, 2, 1], [33, 2, 9], [20, 50, None], [21, 60, 12]):
        texts = [
            None if size is None else row[:size]
            for row, size in zip(whole, sizes, strict=True)
        ]
        if sizes[0] == 20:
            whole[0][18:] = 7  # another text than what was read
            texts[0] = whole[0][:20]
        made = writer.continue_(texts)
        for text, got in zip(texts, made, strict=True):
            if text is None:
                assert got.size == 0
                continue
            want = generate(model, text, max_new_tokens=3, stop_ids=()).tokens
            if dtype == "float32":
                np.testing.assert_array_equal(got, want)
            assert got[0] == want[0]  # narrow types may round ties apart later
    if dtype == "bfloat16":
        return
    # All drafts are taken, and one token more: the last draft was never read.
    for _ in range(3):
        texts = [
            np.append(np.append(t, m), 5) for t, m in zip(texts, made, strict=True)
        ]
        texts = [text.astype(np.int32) for text in texts]
        made = writer.continue_(texts)
        for text, got in zip(texts, made, strict=True):
            want = generate(model, text, max_new_tokens=3, stop_ids=()).tokens
            np.testing.assert_array_equal(got, want)


def test_texts_that_outgrow_the_draft_model_get_no_drafts():
    small = tiny_model(vocab_size=LETTERS.size)
    config = dataclasses.replace(small.config, max_positions=16)
    small = small.replace(config=config)
    across = draft_across(small, WORDS, draft_vocabulary=LETTERS, draft_tokens=4)
    big = target(WORDS.size)
    options = {"max_new_tokens": 30, "vocabulary": WORDS, "stop_ids": ()}
    out = generate(big, "the cat", drafter=across, **options)
    np.testing.assert_array_equal(
        out.tokens, generate(big, "the cat", **options).tokens
    )


def test_serving_and_meshes():
    small = tiny_model(vocab_size=LETTERS.size).replace(vocabulary=LETTERS)
    large = tiny_model(vocab_size=WORDS.size).replace(vocabulary=WORDS)
    across = draft_across(small, WORDS, draft_tokens=2)
    plain = [generate(large, text, max_new_tokens=6).tokens for text in TEXTS]
    served = dict(serve(large, TEXTS, batch=2, max_new_tokens=6, drafter=across))
    mesh = jax.make_mesh((2, 2), ("data", "model"), devices=jax.devices()[:4])
    with jax.set_mesh(mesh):
        out = generate(large, TEXTS, max_new_tokens=6, drafter=across)
    for row, want in enumerate(plain):
        np.testing.assert_array_equal(served[row].tokens, want)
        np.testing.assert_array_equal(out.tokens[row], want)


@pytest.mark.parametrize(
    "call, error, said",
    [
        (lambda: draft_across(tiny_model(), WORDS), ArgumentError, "draft_vocabulary"),
        (
            lambda: draft_across(target(258), WORDS, draft_tokens=0),
            ArgumentError,
            "draft_tokens",
        ),
        (lambda: draft_across(target(258), WORDS, depth=0), ArgumentError, "depth"),
        (
            lambda: draft_across(
                target(258), WORDS, draft_vocabulary=LETTERS, nodes=1
            ),
            ArgumentError,
            "nodes",
        ),
        (
            lambda: draft_across(
                recurrent_target(table(258)), WORDS, draft_vocabulary=LETTERS
            ),
            ArgumentError,
            "cannot forget",
        ),
        (
            lambda: generate(
                target(300), "a", vocabulary=WORDS,
                drafter=draft_across(
                    target(258), PIECES, draft_vocabulary=LETTERS
                ),
            ),
            VocabMismatchError,
            "another vocabulary",
        ),
    ],
)  # fmt: skip
def test_bad_input(call, error, said):
    with pytest.raises(error, match=said):
        call()


@pytest.mark.parametrize("wrong", [{"model": object()}, {"vocabulary": "gpt2"}])
def test_other_types_are_refused(wrong):
    given = {"model": tiny_model(), "vocabulary": WORDS, **wrong}
    with pytest.raises(TypeError, match=next(iter(wrong))):
        draft_across(**given)
    unchecked = inspect.unwrap(draft_across)
    with pytest.raises(ArgumentTypeError, match=f"{next(iter(wrong))}: got"):
        unchecked(**given)
