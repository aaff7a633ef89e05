"""Byte by byte: brute force, chain rule, streaming, caches, and what is refused."""

import functools
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from jtok.decode import (
    FillTokens,
    byte_ensemble,
    byte_level,
    fill_in_middle,
    middle_state,
    nucleus,
    scale_temperature,
    token_healing,
    token_prompt,
)
from jtok.decode._byte_covers import search
from jtok.decode._byte_models import CachedTarget
from jtok.errors import (
    ArgumentError,
    NoCoverError,
    UnsupportedPretokenizerError,
    VocabMismatchError,
)
from jtok.models.foreign import logits_target
from jtok.ops.sharding import mesh_from
from jtok.testing import assert_close, tiny_model, tiny_vocabulary
from jtok.text import Vocabulary, valid_next
from tests.decode.test_byte_goldens import markov_lm
from tests.text.byte_vocabularies import (
    byte_vocabulary,
    random_lm,
    small_bytes,
    small_pieces,
)

TEXTS = ("it's a test  of  all that's   here\n\n 12 123 é", "s  é a  b")
KINDS = ("none", "gpt2", "llama3", "qwen2", "pieces")


@functools.cache
def vocabulary_of(kind):
    if kind == "pieces":
        return small_pieces(
            ["▁", *"abehlst", "th", "▁th", "he", "▁a", "é", "▁▁", "the"], prefix=True
        )
    whole = (b"tat", b"a1") if kind == "llama3" else ()
    return small_bytes(kind, TEXTS * 3, 290, whole=whole)


@functools.cache
def model_of(kind, masking="renorm"):
    vocabulary = vocabulary_of(kind)
    return byte_level(random_lm(vocabulary.size), vocabulary, masking=masking)


def log_softmax(logits):
    top = logits.max()
    return logits - top - np.log(np.exp(logits - top).sum())


def brute_force(kind, text):
    """`log P(text)` over every valid sequence, each step normalised over the valid."""
    vocabulary = vocabulary_of(kind)
    lm = random_lm(vocabulary.size)
    table = vocabulary.token_bytes
    data = b" " + text if kind == "pieces" else text
    start = [vocabulary.special["bos"]]
    total, stack = [], [(start, b"", 0.0)]
    while stack:
        ids, done, weight = stack.pop()
        if len(done) >= len(data):
            total.append(weight)
            continue
        valid = valid_next(vocabulary, ids)
        logs = np.where(valid, log_softmax(lm(np.asarray(ids))), -np.inf)
        logs = logs - np.logaddexp.reduce(logs)
        for token in np.flatnonzero(valid).tolist():
            spelled = done + table[token]
            if token in vocabulary.special_ids:
                continue
            if spelled.startswith(data) or data.startswith(spelled):
                stack.append(([*ids, token], spelled, weight + logs[token]))
    return float(np.logaddexp.reduce(total))


# Exact ------------------------


@pytest.mark.medium
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_as_probable_as_all_its_covers(kind):
    for text in ("", "t", "the", "s  a", "a  é", "it's", "é".encode()[:1], " '", "a1"):
        data = text if isinstance(text, bytes) else text.encode()
        got = model_of(kind).logprob(data)
        assert got == pytest.approx(brute_force(kind, data), rel=1e-9, abs=1e-9), text


@pytest.mark.parametrize("kind", KINDS)
def test_chain_rule(kind):
    by_byte = model_of(kind)
    for text in (b"", b"th", b"s  ", b"it'", b"\xc3", b"a 12"):
        state = by_byte.start(text, absolute=True)
        weights = state.rows[0].symbols(by_byte.tables)
        total = np.log(weights.sum()) + max(b.book.top for b in state.rows[0].blocks)
        assert total == pytest.approx(state.rows[0].log_mass(), abs=1e-10)
        probs = weights / weights.sum()
        for byte in np.flatnonzero(probs[:256] > 1e-3)[:6].tolist():
            longer = by_byte.logprob(text + bytes([byte]))
            assert longer == pytest.approx(
                state.rows[0].log_mass() + np.log(probs[byte]), abs=1e-9
            )


@pytest.mark.parametrize("masking", ["renorm", "mask"])
@pytest.mark.parametrize("kind", KINDS)
def test_streaming_is_searching_anew(kind, masking):
    by_byte = model_of(kind, masking)
    text = "it's the  a é\n 123 's".encode()
    state = by_byte.start(b"")
    for place in range(len(text)):
        anew = by_byte.start(text[:place])
        assert_close(
            np.exp(by_byte.distribution(state)), np.exp(by_byte.distribution(anew)),
            atol=1e-6, name=f"{text[:place]}",
        )  # fmt: skip
        state = by_byte.push(state, text[place])


@pytest.mark.parametrize("kind", KINDS)
def test_heads_are_the_valid_encodings(kind):
    by_byte = model_of(kind)
    for text in (b"the", b"s  ", b"a b", b"a\n "):
        covers = by_byte.covers(by_byte.start(text))[0]
        whole = [cover.ids[1:] for cover in covers if not cover.remainder]
        ids = vocabulary_of(kind).encode(text, specials=False)
        assert tuple(ids.tolist()) in whole
        assert by_byte.encode(text) == (tuple(ids.tolist()), True)
        assert len(whole) <= (1 if kind in ("none", "pieces") else 2)
    if kind == "gpt2":  # the last space may begin what follows
        covers = by_byte.covers(by_byte.start(b"s  "))[0]
        assert sum(not cover.remainder for cover in covers) == 2


def test_a_text_has_at_least_the_mass_of_its_encoding():
    by_byte = model_of("none")
    for text in (b"t", b"the", b"q", b"it's "):
        state = by_byte.start(text, absolute=True)
        covers = by_byte.covers(state)[0]
        own = next(c.log_weight for c in covers if not c.remainder)
        mass = state.rows[0].log_mass()
        assert mass >= own - 1e-12
        assert (mass - own < 1e-12) == (len(covers) == 1)


def test_single_bytes_give_the_model_itself():
    tokens = [bytes([byte]) for byte in range(256)]
    vocabulary = byte_vocabulary(tokens, [], "none", "<|end|>")
    lm = random_lm(257)
    got = byte_level(lm, vocabulary).next_byte_logprobs(b"abc")
    assert_close(got, log_softmax(lm(np.array([256, *b"abc"]))).astype(np.float32))


def test_nothing_before_is_the_first_bytes_of_the_first_token():
    by_byte, vocabulary = model_of("gpt2"), vocabulary_of("gpt2")
    logs = log_softmax(random_lm(vocabulary.size)(np.array([vocabulary.size - 1])))
    valid = valid_next(vocabulary, [])
    probs = np.where(valid, np.exp(logs), 0) / np.exp(logs)[valid].sum()
    want = np.zeros(257)
    for id_, token in enumerate(vocabulary.token_bytes):
        want[256 if id_ in vocabulary.special_ids else token[0]] += probs[id_]
    assert_close(np.exp(by_byte.next_byte_logprobs("")), want, atol=1e-6)


@hypothesis.given(
    st.floats(0.05, 0.95), st.floats(0.05, 0.95), st.floats(0.05, 0.95),
    st.text("AB", max_size=8),
)  # fmt: skip
@hypothesis.settings(max_examples=15)
def test_markov_chain_in_closed_form(a, c, s, text):
    tokens = [bytes([byte]) for byte in range(256)] + [b"AA"]
    vocabulary = byte_vocabulary(tokens, [(65, 65)], "none", "<|end|>")
    by_byte = byte_level(markov_lm(a, c, s), vocabulary)
    q = {"A": a, "B": c}.get(text[-1:], s)
    logs = by_byte.next_byte_logprobs(text)
    assert np.exp(logs[65]) == pytest.approx(q, rel=1e-5)
    want = 0.0
    for before, now in itertools.pairwise(" " + text):
        chance = {"A": a, "B": c}.get(before, s)
        want += np.log(chance if now == "A" else 1 - chance)
    assert by_byte.logprob(text) == pytest.approx(want, abs=1e-10)


def test_masked_bytes_have_no_mass():
    by_byte = model_of("gpt2")
    inside = by_byte.next_byte_logprobs(b"\xc3")
    assert inside[256] == -np.inf and inside[65] == -np.inf
    pieces = model_of("pieces").next_byte_logprobs(b"\xe6")
    assert pieces[256] == -np.inf
    assert np.isfinite(pieces[0x80:0xC0]).all() and not np.isfinite(pieces[:0x80]).any()


def test_spaces_are_folded_from_three_steps():
    vocabulary = vocabulary_of("pieces")
    lm = random_lm(vocabulary.size)
    plain, raw = (
        byte_level(lm, vocabulary),
        byte_level(lm, vocabulary, alphabet="sentencepiece"),
    )
    got = np.exp(plain.next_byte_logprobs("the"))
    state, path = raw.start("the"), 1.0
    first = np.exp(raw.distribution(state)[0])
    for byte in "▁".encode():
        path *= np.exp(raw.distribution(state)[0, byte])
        state = raw.push(state, byte)
    assert got[32] == pytest.approx(path, rel=1e-5)
    assert got[0xE2] == pytest.approx(first[0xE2] - path, abs=1e-6)
    assert got.sum() == pytest.approx(1, abs=1e-5)


def test_one_call_a_byte_and_few_contexts_a_prompt():
    vocabulary = vocabulary_of("none")
    lm, calls = random_lm(vocabulary.size), []

    class Counting:
        vocab_size = vocabulary.size

        def log_probs(self, memory, contexts):
            calls.append(len(contexts))
            return np.stack([log_softmax(lm(np.array(c))) for c in contexts]), memory

    by_byte = byte_level(Counting(), vocabulary)
    text = b"the test of all that is here"
    state = by_byte.start(text[:20])
    longest = by_byte.tables.order.longest
    assert len(calls) == 2 and sum(calls) <= 3 * longest  # one of them is shared
    grammar = by_byte.tables.grammar
    found = search(by_byte.tables, (vocabulary.size - 1,), grammar.start, text[:20])
    lefts = {node.ids for node, *_ in found.lefts} | {found.ends[0].parent.ids}
    assert len(lefts) <= longest
    for byte in text[20:]:
        state = by_byte.push(state, byte)
    assert calls[2:] == [1] * len(text[20:])


# Batches, caches, devices ------------------------


def test_rows_do_not_see_each_other_and_states_are_values():
    by_byte = model_of("gpt2")
    texts = ["the", "", "s  ", "it's"]
    together = by_byte.next_byte_logprobs(texts)
    alone = np.stack([by_byte.next_byte_logprobs(text) for text in texts])
    assert_close(together, alone)
    state = by_byte.start(texts)
    before = by_byte.distribution(state)
    by_byte.push(state, [32, 116, 97, 32])
    by_byte.push(state, 116)
    assert (by_byte.distribution(state) == before).all()


@pytest.fixture(scope="module")
def tiny():
    return tiny_model(vocab_size=280), tiny_vocabulary()


def plain_of(model):
    whole = jax.jit(lambda ids: model(ids).logits[0])

    def logits(ids):
        padded = jnp.zeros((1, 32), jnp.int32).at[0, : len(ids)].set(jnp.asarray(ids))
        return np.asarray(whole(padded))[len(ids) - 1]

    return logits


@pytest.mark.medium
def test_a_cached_model_says_what_the_whole_text_says(tiny):
    model, vocabulary = tiny
    cached, plain = (
        byte_level(model, vocabulary),
        byte_level(plain_of(model), vocabulary),
    )
    texts = ["the cat sat", "a"]
    state, other = cached.start(texts), plain.start(texts)
    for byte in (32, 111, 110):
        got, want = (
            np.exp(cached.distribution(state)),
            np.exp(plain.distribution(other)),
        )
        assert_close(got, want, atol=1e-3)  # blocks of other sizes round otherwise
        state, other = cached.push(state, byte), plain.push(other, byte)
    assert_close(cached.logprob(texts), plain.logprob(texts), rtol=1e-3)
    with_params = byte_level(model.target(), vocabulary, params=model.params)
    got, want = (one.next_byte_logprobs("the") for one in (with_params, cached))
    assert_close(got, want, atol=1e-5)


@pytest.mark.medium
def test_a_step_runs_only_what_is_new(tiny):
    model, _ = tiny
    target = CachedTarget(model.target(), model.params)
    ids = tuple(range(1, 30))
    _, memory = target.log_probs(None, [ids])
    kept = target._place(memory, (*ids, 31), {29: 0}).kept
    assert kept == 29
    assert target._place(memory, (*ids[:10], 40), {10: 0}).kept == 10
    first, _ = target.log_probs(memory, [(*ids[:10], 40), ids[:4]])
    anew, _ = target.log_probs(None, [(*ids[:10], 40), ids[:4]])
    assert_close(first, anew, atol=2e-4)
    long = tuple(i % 50 + 1 for i in range(150))  # beyond the memory's capacity
    grown, _ = target.log_probs(memory, [long])
    assert_close(grown, target.log_probs(None, [long])[0], atol=2e-4)


@pytest.mark.medium
def test_targets_that_cannot_rewind_or_only_give_logits(tiny):
    vocabulary = tiny[1]
    table = np.random.default_rng(0).normal(size=(280, 280)).astype(np.float32)
    logits = lambda params, ids, positions, mask: params[ids]
    target = logits_target(logits, vocab_size=280)
    want = byte_level(lambda ids: table[ids[-1]], vocabulary)
    text = "the mat"
    for one in (target, target._replace(rewind=None)):
        got = byte_level(one, vocabulary, params=jnp.asarray(table))
        state = got.push(got.start(text), 32)
        other = want.push(want.start(text), 32)
        assert_close(got.distribution(state), want.distribution(other), atol=1e-4)


@pytest.mark.medium
def test_storage_in_bfloat16_and_eight_devices(tiny):
    model, vocabulary = tiny
    want = byte_level(model, vocabulary).next_byte_logprobs(["the", "a cat"])
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), model)
    got = byte_level(half, vocabulary).next_byte_logprobs(["the", "a cat"])
    assert np.abs(np.exp(got) - np.exp(want)).max() < 0.1
    assert np.exp(got).sum(-1) == pytest.approx(1, abs=1e-5)
    with jax.set_mesh(mesh_from("data=4,model=2")):
        spread = byte_level(model, vocabulary).next_byte_logprobs(["the", "a cat"])
    assert_close(spread, want, atol=1e-4)


# Approximations say so ------------------------


def test_dropped_covers_are_counted():
    vocabulary = vocabulary_of("gpt2")
    lm = random_lm(vocabulary.size)
    full = byte_level(lm, vocabulary)
    few = byte_level(lm, vocabulary, max_covers=2)
    pruned = byte_level(lm, vocabulary, prune=0.5)
    state = few.start(" ")
    assert full.is_exact(full.start(" ")).tolist() == [True]
    assert full.dropped(full.start(" ")).tolist() == [0.0]
    assert few.is_exact(state).tolist() == [False]
    weights = sorted(
        (c.log_weight for c in full.covers(full.start(" "))[0]), reverse=True
    )
    kept = sorted((c.log_weight for c in few.covers(state)[0]), reverse=True)
    assert kept == pytest.approx(weights[:2])
    share = 1 - np.exp(np.logaddexp(*weights[:2]) - np.logaddexp.reduce(weights))
    assert few.dropped(state) == pytest.approx([share])
    assert pruned.is_exact(pruned.start(" ")).tolist() == [False]
    assert not byte_level(lm, vocabulary, masking="fast").is_exact(full.start("t"))[0]
    many = byte_level(lm, vocabulary, max_covers=10_000)
    assert many.is_exact(many.start(" ")).tolist() == [True]


def test_score_is_the_sum_of_the_steps():
    by_byte = model_of("qwen2")
    whole = by_byte.logprob(["the test", "a1"])
    parts = by_byte.logprob(["the", "a"])
    got = by_byte.score(["the", "a"], [" test", "1"])
    assert got == pytest.approx(whole - parts, abs=1e-5)
    assert by_byte.score("the", "") == 0.0
    assert by_byte.score(["é".encode()[:1], "a"], ["x", "b"])[0] == -np.inf


# Baselines ------------------------


def _read(reader, text):
    """Next-byte log-probabilities; that nothing covers the text fails the test."""
    try:
        return reader.next_byte_logprobs(text)
    except NoCoverError as error:
        return pytest.fail(f"nothing covers {text!r}: {error}")


def test_healing_forces_the_bytes_of_the_last_token():
    vocabulary = vocabulary_of("none")
    lm = random_lm(vocabulary.size)
    healed = token_healing(lm, vocabulary, masking="fast")
    naive = token_prompt(lm, vocabulary, masking="fast")
    ids = vocabulary.encode("a te", specials=False).tolist()
    end, last = vocabulary.size - 1, vocabulary.token_bytes[ids[-1]]
    left = np.exp(log_softmax(lm(np.array([end, *ids[:-1]]))))
    after = np.exp(log_softmax(lm(np.array([end, *ids]))))
    want = np.zeros(257)
    for id_, token in enumerate(vocabulary.token_bytes):
        if id_ != end and token.startswith(last) and token != last:
            want[token[len(last)]] += left[id_]
        place = 256 if id_ == end else token[0]
        want[place] += left[ids[-1]] * after[id_]
    got = np.exp(_read(healed, "a te"))
    assert_close(got, want / want.sum(), atol=1e-6)
    assert not healed.is_exact(healed.start("a te"))[0]
    assert not naive.is_exact(naive.start("a te"))[0]
    assert _read(healed, "").shape == (257,)
    masked = np.exp(_read(token_healing(lm, vocabulary), "a te"))
    assert masked.sum() == pytest.approx(1, abs=1e-5)
    assert np.isfinite(naive.score("a te", "s"))


# Ensembles, filling in, drawing ------------------------


def test_an_ensemble_of_a_model_with_itself_is_the_model():
    one, two = model_of("gpt2"), model_of("pieces")
    for mean in ("arithmetic", "geometric"):
        same = byte_ensemble([one, one], mean=mean)
        assert_close(
            same.next_byte_logprobs("the"), one.next_byte_logprobs("the"), atol=1e-5
        )
        both = byte_ensemble([one, two], [1.0, 3.0], mean=mean)
        turned = byte_ensemble([two, one], [3, 1], mean=mean)
        got = both.next_byte_logprobs(["th", "a"])
        assert_close(got, turned.next_byte_logprobs(["th", "a"]), atol=1e-5)
        assert np.exp(got).sum(-1) == pytest.approx(1, abs=1e-5)
    alone = byte_ensemble([one, two], [1, 0])
    assert_close(alone.next_byte_logprobs("a"), one.next_byte_logprobs("a"), atol=1e-5)
    first, second = (np.exp(m.next_byte_logprobs("th")) for m in (one, two))
    mean = np.exp(byte_ensemble([one, two]).next_byte_logprobs("th"))
    assert_close(mean, (first + second) / 2, atol=1e-6)
    assert byte_ensemble([one, two]).score("th", "e") == pytest.approx(
        np.log(mean[101]), abs=1e-5
    )


def test_ensembles_refuse_other_ends_and_weights():
    one = model_of("gpt2")
    endless = byte_level(random_lm(290), vocabulary_of("gpt2"), ends=[])
    with pytest.raises(VocabMismatchError, match="end of a text"):
        byte_ensemble([one, endless])
    with pytest.raises(VocabMismatchError, match="special tokens"):
        both = byte_ensemble([one, model_of("pieces")])
        both.symbol_logprobs(both.start("a"))
    for weights in ([1.0], [-1.0, 2.0], [0.0, 0.0]):
        with pytest.raises(ArgumentError, match="weights"):
            byte_ensemble([one, one], weights)
    with pytest.raises(ArgumentError, match="members"):
        byte_ensemble([])
    with pytest.raises(ArgumentError, match="special_prefix_ids"):
        byte_ensemble([one]).start("a", special_prefix_ids=[289])


@functools.cache
def filling():
    vocabulary = Vocabulary.train_bpe(
        list(TEXTS) * 3, 290, specials=["<e>", "<p>", "<s>", "<m>"]
    )
    return vocabulary, byte_level(random_lm(vocabulary.size), vocabulary)


def test_filling_in_with_the_cursor_inside_a_word():
    vocabulary, by_byte = filling()
    tokens = FillTokens(1, 2, 3, "spm", start=(0,))
    right = vocabulary.encode("here").tolist()
    state = middle_state(by_byte, "a te", "here", tokens)
    want = by_byte.start("a te", special_prefix_ids=[0, 1, 2, *right, 3])
    assert (by_byte.distribution(state) == by_byte.distribution(want)).all()
    assert by_byte.is_exact(state).all()
    left = vocabulary.encode("a te").tolist()
    closed = middle_state(by_byte, "a te", "here", tokens._replace(order="psm"))
    want = by_byte.start("", special_prefix_ids=[0, 1, *left, 2, *right, 3])
    assert (by_byte.distribution(closed) == by_byte.distribution(want)).all()
    # A cursor inside of a letter: its first byte is known, its second must follow.
    part = middle_state(by_byte, "a é".encode()[:-1], "here", tokens)
    assert by_byte.is_exact(part).all()
    assert not np.isfinite(by_byte.distribution(part)[0, :0x80]).any()
    cut = middle_state(by_byte, "a é".encode()[:-1], "x", tokens._replace(order="psm"))
    assert not by_byte.is_exact(cut).any()
    drawn = fill_in_middle(by_byte, "a te", "here", tokens=tokens, max_bytes=6, seed=3)
    again = fill_in_middle(by_byte, "a te", "here", tokens=tokens, max_bytes=6, seed=3)
    assert drawn == again and len(drawn) <= 6
    with pytest.raises(ArgumentError, match="tokens"):
        middle_state(by_byte, "a", "b", FillTokens(1, 2, 9))
    with pytest.raises(ArgumentError, match="tokens"):
        middle_state(by_byte, "a", "b", tokens._replace(order="mid"))


def test_drawn_bytes_follow_the_distribution():
    by_byte = model_of("gpt2")
    many = by_byte.sample(["th"] * 600, max_bytes=1, seed=5)
    probs = np.exp(by_byte.next_byte_logprobs("th"))
    counts = np.zeros(257)
    for text in many:
        counts[text[0] if text else 256] += 1
    big = probs > 0.01
    expected = 600 * np.append(probs[big], probs[~big].sum())
    seen = np.append(counts[big], counts[~big].sum())
    chi = ((seen - expected) ** 2 / expected).sum()
    assert chi < 3 * len(expected) + 20  # beyond the 1e-4 quantile at these sizes
    assert many == by_byte.sample(["th"] * 600, max_bytes=1, seed=5)


def test_drawing_greedily_with_masks_and_to_the_end():
    by_byte = model_of("gpt2")
    best = by_byte.sample("th", max_bytes=3, temperature=0.05)
    text = b"th"
    for byte in best:
        assert byte == np.argmax(by_byte.next_byte_logprobs(text))
        text += bytes([byte])
    digits = np.zeros(257, bool)
    digits[48:58] = True
    drawn = by_byte.sample("a", max_bytes=4, allowed=digits)
    assert len(drawn) == 4 and drawn.isdigit()
    ends = np.arange(257) == 256
    assert by_byte.sample("a", max_bytes=4, allowed=ends) == b""
    stop = lambda text: ends if len(text) == 2 else digits
    assert len(by_byte.sample("a", max_bytes=9, allowed=stop)) == 2
    logs = by_byte.next_byte_logprobs("a", allowed=digits)
    assert np.exp(logs).sum() == pytest.approx(1, abs=1e-5)
    assert not np.isfinite(logs[~digits]).any()
    nothing = np.zeros(257, bool)
    with pytest.raises(NoCoverError, match="no valid cover") as caught:
        by_byte.sample("a", max_bytes=1, allowed=nothing)
    assert isinstance(caught.value, RuntimeError)
    with pytest.raises(ArgumentError, match="allowed"):
        by_byte.next_byte_logprobs("a", allowed=np.ones(3, bool))


# Bad input ------------------------


def test_bad_texts_are_refused():
    by_byte = model_of("gpt2")
    for bad in (b"a\xffb", b"\xc3\x28", b"\xed\xa0\x80"):
        with pytest.raises(ArgumentError, match="UTF-8"):
            by_byte.next_byte_logprobs(bad)
    with pytest.raises(ArgumentError, match="surrogates"):
        by_byte.next_byte_logprobs("a\ud800")
    with pytest.raises(ArgumentError, match="at least one prompt"):
        by_byte.next_byte_logprobs([])
    with pytest.raises(ArgumentError, match=r"U\+2581"):
        model_of("pieces").next_byte_logprobs("a\u2581b")
    with pytest.raises(TypeError, match="prompts"):
        by_byte.next_byte_logprobs(3)
    with pytest.raises(NoCoverError, match="0x41"):
        by_byte.push(by_byte.start(b"\xc3"), 65)
    for bytes_ in ([1, 2], 256, -1):
        with pytest.raises(ArgumentError, match="bytes_"):
            by_byte.push(by_byte.start("a"), bytes_)
    with pytest.raises(ArgumentError, match="continuations"):
        by_byte.score(["a", "b"], ["c"])


def test_bad_options_are_refused():
    vocabulary = vocabulary_of("gpt2")
    lm = random_lm(vocabulary.size)
    for name, value in (
        ("masking", "soft"), ("alphabet", "words"), ("max_covers", 0), ("prune", 1.0),
        ("ends", [3]), ("compat", "paper"), ("alphabet", "sentencepiece"),
    ):  # fmt: skip
        with pytest.raises((ArgumentError, TypeError), match=name):
            byte_level(lm, vocabulary, **{name: value})
    with pytest.raises(ArgumentError, match="vocabulary"):
        byte_level(lm)
    with pytest.raises(ArgumentError, match="special_prefix_ids"):
        byte_level(lm, byte_vocabulary([bytes([b]) for b in range(256)], [])).start("a")
    with pytest.raises(UnsupportedPretokenizerError, match="o200k"):
        byte_level(lm, byte_vocabulary([bytes([b]) for b in range(256)], [], "o200k"))
    with pytest.raises(VocabMismatchError, match="ids"):
        byte_level(tiny_model(), tiny_vocabulary())
    with pytest.raises(ArgumentError, match="params"):
        byte_level(tiny_model(vocab_size=280).target(), tiny_vocabulary())
    with pytest.raises(ArgumentError, match="logits of shape"):
        byte_level(lambda ids: np.zeros(3), vocabulary).start("a")
    with pytest.raises(ArgumentError, match="NaN"):
        byte_level(lambda ids: np.full(vocabulary.size, np.nan), vocabulary).start("a")
    for temperature in (0.0, -1.0, float("nan")):
        with pytest.raises(ArgumentError, match="temperature"):
            model_of("gpt2").sample("a", max_bytes=1, temperature=temperature)
        with pytest.raises(ArgumentError, match="temperature"):
            scale_temperature(np.ones(2), temperature)
    for top_p in (0.0, 1.5):
        with pytest.raises(ArgumentError, match="top_p"):
            nucleus(np.ones(2), top_p)


# Real vocabularies ------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, kind", [("gpt2.tiktoken", "gpt2"), ("llama2.model", None)]
)
def test_real_vocabularies_sum_to_one_and_equal_brute_force(data, name, kind):
    specials = {"<|endoftext|>": 50256} if kind else None
    path = data(f"tokenizers/{name}")
    vocabulary = Vocabulary.load(path, pattern=kind, specials=specials)
    lm = random_lm(vocabulary.size)
    before = vocabulary.special.get("bos", vocabulary.size - 1)
    by_byte = byte_level(lm, vocabulary, special_prefix_ids=[before])
    table = vocabulary.token_bytes
    first = {}
    for id_, token in enumerate(table):
        if id_ not in vocabulary.special_ids:
            first.setdefault(token[:1], []).append(id_)
    for text in (b"", b"a", b"he", b"s  "):
        data_ = text if kind else b" " + text
        total, stack = [], [([before], b"", 0.0)]
        while stack:
            ids, done, weight = stack.pop()
            if len(done) >= len(data_):
                total.append(weight)
                continue
            valid = valid_next(vocabulary, ids)
            logs = np.where(valid, log_softmax(lm(np.asarray(ids))), -np.inf)
            logs -= np.logaddexp.reduce(logs)
            for token in first.get(data_[len(done) : len(done) + 1], ()):
                spelled = done + table[token]
                fits = spelled.startswith(data_) or data_.startswith(spelled)
                if valid[token] and fits:
                    stack.append(([*ids, token], spelled, weight + logs[token]))
        state = by_byte.start(text, absolute=True)
        want = np.logaddexp.reduce(total)
        assert state.rows[0].log_mass() == pytest.approx(want, abs=1e-9)
        assert np.exp(by_byte.distribution(state)).sum() == pytest.approx(1, abs=1e-5)
