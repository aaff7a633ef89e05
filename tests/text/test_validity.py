"""Valid next tokens: both directions against texts that go on in every way."""

import functools
import gzip
import itertools
import json

import numpy as np
import pytest
import tokenizers

from jtok.errors import ArgumentError, UnsupportedPretokenizerError
from jtok.testing import tiny_vocabulary
from jtok.text import Vocabulary, valid_next
from jtok.text import _tokenizer_json as tj
from jtok.text._spines import Merges, encode_symbols
from jtok.text._splits import KINDS, START, splits_of
from jtok.text.validity import grammar_of
from tests.text.byte_vocabularies import (
    byte_vocabulary,
    golden_bytes,
    golden_pieces,
    ids_of,
    small_bytes,
    small_pieces,
    strings,
)

TEXTS = (
    "it's we're 'tis they'll a  b   c\n\n d \t e 12 123 1234 (a) ((b)) é è à  é\r\n",
    "  the  the cat's  're 'll 'r 'l  a\n \n b 'lx 'rx x'r x's's \n\n\n  1 12345",
    "日本 中 \u2003\u00a0é  é   é 'é ''s a's a''s", "aa aaa aaaa  aaaaa\n\n\n\n\n a",
)  # fmt: skip


def real_split(kind):
    rule = tokenizers.Regex(tj.PATTERNS[kind])
    return tokenizers.pre_tokenizers.Split(rule, "isolated")


# Merge trees ------------------------


def random_rules(rng, ordered):
    letters = rng.integers(1, 4)
    tokens = [bytes([97 + i]) for i in range(letters)]
    ids = {token: i for i, token in enumerate(tokens)}
    rules = {}
    for rank in range(rng.integers(1, 14)):
        left, right = (tokens[i] for i in rng.integers(0, len(tokens), 2))
        if (ids[left], ids[right]) in rules or len(left + right) > 7:
            continue
        if left + right not in ids:
            ids[left + right] = len(tokens)
            tokens.append(left + right)
        order = rank if ordered else int(rng.integers(0, 99)) * 100 + rank
        rules[ids[left], ids[right]] = (order, ids[left + right])
    return tokens, ids, rules


@pytest.mark.parametrize("ordered", [True, False], ids=["in order", "any order"])
def test_pairs_by_their_trees_are_those_that_merging_keeps_apart(ordered):
    rng = np.random.default_rng(0)
    for _ in range(300):
        tokens, ids, rules = random_rules(rng, ordered)
        letters = {token: i for token, i in ids.items() if len(token) == 1}
        merges = Merges(len(tokens), letters, rules)
        spell = lambda t, ids=ids: [ids[bytes([byte])] for byte in t]
        encode = functools.partial(encode_symbols, rules=rules)
        alone = [encode(spell(t)) == [i] for i, t in enumerate(tokens)]
        assert merges.reachable.tolist() == alone
        for i, left in enumerate(tokens):
            want = [
                alone[i] and alone[j] and encode(spell(left + right)) == [i, j]
                for j, right in enumerate(tokens)
            ]
            assert merges.row(i).tolist() == want, (tokens, rules, left)
            assert [merges.pair(i, j) for j in range(len(tokens))] == want


# Split patterns ------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_the_one_path_that_may_end_is_the_split_of_the_pattern(kind):
    splits, real = splits_of(kind), real_split(kind)
    for size in range(1, 5):
        for letters in itertools.product("aesrl7.' \t\n", repeat=size):
            text = "".join(letters)
            paths = [((), START)]
            for place, char in enumerate(text):
                paths = [
                    ((*cuts, place) if begins else cuts, after)
                    for cuts, state in paths
                    for begins, after in splits.step(state, splits.class_of(char))
                ]
            want = tuple(start for _, (start, _) in real.pre_tokenize_str(text))
            assert [c for c, state in paths if splits.can_end(state)] == [want], text


# Goldens ------------------------


def test_pairs_of_the_golden_without_a_pattern():
    file, vocabulary = golden_bytes("bpe_raw", "none", "<|end|>")
    count = len(file["token_len"])
    want = np.unpackbits(file["pair_valid"], axis=1)[:, :count].astype(bool)
    got = np.stack([valid_next(vocabulary, [id_]) for id_ in range(count)])
    assert (got[:, :count] == want).all()
    assert got[:, count].all()  # the end may always come
    texts = strings(file["enc_text"], file["enc_text_len"])
    for text, ids in zip(texts, file["enc_ids"], strict=True):
        assert vocabulary.encode(text).tolist() == ids_of(ids)


@pytest.mark.medium
def test_sequences_of_the_golden_with_the_pattern_of_gpt2():
    file, vocabulary = golden_bytes("bpe_gpt2", "gpt2")
    ahead = 0
    rows = zip(file["seq"], file["prefix_valid"], file["roundtrip_valid"], strict=True)
    for row, valid, whole in rows:
        ids = ids_of(row)
        got = all(valid_next(vocabulary, ids[:i])[ids[i]] for i in range(len(ids)))
        assert got == valid, [vocabulary.token_bytes[i] for i in ids]
        ahead += valid and not whole
    assert ahead > 0  # some are valid only because the pattern looks ahead
    texts = strings(file["enc_text"], file["enc_text_len"])
    for text, ids in zip(texts, file["enc_ids"], strict=True):
        assert vocabulary.encode(text).tolist() == ids_of(ids)


@pytest.mark.parametrize("name", ["spm_A", "spm_B"])
def test_masks_of_the_goldens_with_pieces(name):
    file, vocabulary = golden_pieces(name)
    masks = np.unpackbits(file["mask_valid"], axis=1)[:, : vocabulary.size]
    for context, mask in zip(file["mask_ctx"], masks, strict=True):
        got = valid_next(vocabulary, ids_of(context))
        assert (got == mask.astype(bool)).all()
    texts = strings(file["enc_text"], file["enc_text_len"])
    for text, ids in zip(texts, file["enc_ids"], strict=True):
        assert vocabulary.encode(text, specials=False).tolist() == ids_of(ids)


# Exhaustive continuations ------------------------

LETTERS = ("a", "s", "r", "e", "1", ".", "'", " ", "\n", "é", "\u00a0")
KIND_CASES = {
    "none": lambda: small_bytes("none", TEXTS, 300),
    "gpt2": lambda: small_bytes("gpt2", TEXTS, 290),
    "llama3": lambda: small_bytes("llama3", TEXTS, 290, whole=(b"ase", b"a1", b" 're")),
    "qwen2": lambda: small_bytes("qwen2", TEXTS, 290),
    "pieces": lambda: small_pieces(
        ["▁", "a", "s", "e", "as", "▁a", "▁▁", "ase", "é", "és", "sa", "▁as", "1"],
        prefix=True,
    ),
    "pieces, no prefix": lambda: small_pieces(
        ["▁", "a", "s", "e", "ea", "as", "▁a", "▁▁", "ase", "▁▁▁"], prefix=False
    ),
}


@functools.cache
def encodings(kind):
    """Every beginning of the encodings of all short texts over the letters."""
    vocabulary = KIND_CASES[kind]()
    size = 4 if kind.startswith("pieces") else 3
    texts = [
        "".join(letters)
        for count in range(size + 1)
        for letters in itertools.product(LETTERS, repeat=count)
    ]
    whole = {
        tuple(ids.tolist()) for ids in vocabulary.encode_batch(texts, specials=False)
    }
    heads = {ids[:n] for ids in whole for n in range(len(ids) + 1)}
    return vocabulary, whole, heads


@pytest.mark.medium
@pytest.mark.parametrize("kind", KIND_CASES)
def test_every_beginning_of_an_encoding_is_valid(kind):
    vocabulary, whole, heads = encodings(kind)
    grammar = grammar_of(vocabulary)
    end = min(vocabulary.special_ids)
    after = {(): grammar.start}
    for head in sorted(heads, key=len):
        if head:
            before = after[head[:-1]]
            assert grammar.row(before)[head[-1]], head
            after[head] = grammar.step(before, head[-1])
            assert after[head], head
    for ids in list(whole)[::97]:
        assert valid_next(vocabulary, ids)[end]


@pytest.mark.medium
@pytest.mark.parametrize("kind", KIND_CASES)
def test_what_is_valid_has_a_text_and_what_is_not_has_none(kind):
    vocabulary, _, heads = encodings(kind)
    spell = vocabulary.token_bytes
    used = sorted({id_ for ids in heads for id_ in ids})
    rng = np.random.default_rng(1)
    some = [list(h) for h in sorted(heads) if len(h) <= 2]
    chosen = [some[i] for i in rng.choice(len(some), 25, replace=False)]
    for ids in chosen:
        row = valid_next(vocabulary, ids)
        for token in rng.choice(used, 12, replace=False).tolist():
            witness = find_text(vocabulary, [*ids, token], kind)
            assert row[token] == (witness is not None), (
                [spell[i] for i in ids], spell[token], witness,
            )  # fmt: skip


def find_text(vocabulary, ids, kind):
    """A text whose encoding begins with ids, among many that begin with their bytes."""
    data = b"".join(vocabulary.token_bytes[i] for i in ids)
    data = data.removeprefix(b" ") if kind == "pieces" else data
    if kind == "none":  # texts are any bytes, which the library does not take
        merges = grammar_of(vocabulary).merges
        found = encode_symbols([merges.letters[bytes([b])] for b in data], merges.rules)
        return found if found == ids else None
    texts = []
    for tail in TAILS:
        try:
            texts.append((data + tail).decode())
        except UnicodeDecodeError:
            continue
    if kind == "pieces" and data == b"":
        texts = ["", *texts]
    for found in vocabulary.encode_batch(texts, specials=False):
        if found[: len(ids)].tolist() == ids:
            return found
    return None


def _tails():
    """Ends of a letter, and up to two characters more of every class."""
    ends = [b""] + [bytes([x]) for x in range(0x80, 0xC0)]
    ends += [bytes([0x80 + i, 0x80 + j]) for i in range(0, 64, 3) for j in (0, 3, 41)]
    more = ["", "x", "e", "l", "s", "7", "!", "'", " ", "\t", "\n", "é", "\u2003", "漢"]
    two = [a + b for a in more for b in more]
    return [end + tail.encode() for end in ends[:65] for tail in more] + [
        end + tail.encode() for end in ends[65:] for tail in ("", "x", " ")
    ] + [tail.encode() for tail in two]  # fmt: skip


TAILS = _tails()


# Edges ------------------------


def test_special_tokens_are_hard_boundaries():
    vocabulary = byte_vocabulary(
        [bytes([b]) for b in range(256)] + [b"  "], [(32, 32)], "gpt2", "<|end|>"
    )
    end, space = vocabulary.size - 1, 32
    assert valid_next(vocabulary, [97])[end]
    # `a`, space, space: the second space waits for a letter, so the text cannot end.
    row = valid_next(vocabulary, [97, space, space])
    assert not row[end] and row[98] and not row[space]
    assert (valid_next(vocabulary, [97, end]) == valid_next(vocabulary, [])).all()
    assert not valid_next(vocabulary, [97, space, space, end]).any()
    assert not valid_next(vocabulary, [0xC3])[end]  # inside of a letter


def test_a_pretoken_that_is_a_token_is_that_token():
    tokens = [bytes([b]) for b in range(256)] + [b"ab", b"abc"]
    whole = byte_vocabulary(tokens, [(97, 98)], "llama3", ignore_merges=True)
    plain = byte_vocabulary(tokens, [(97, 98)], "llama3")
    c, ab, abc = 99, 256, 257
    assert whole.encode("abc ").tolist() == [abc, 32]
    assert valid_next(whole, [])[abc] and not valid_next(plain, [])[abc]
    # After the whole token the pretoken is over: no letter, but a space.
    row = valid_next(whole, [abc])
    assert row[32] and not row[100]
    # `ab`, `c` may only go on, as `abc` alone would be one token.
    assert valid_next(whole, [ab])[c]
    after = valid_next(whole, [ab, c])
    assert after[100] and not after[32]
    assert valid_next(plain, [ab, c])[32]


@pytest.mark.parametrize("kind, name", [("o200k", "o200k"), ("clip", "other")])
def test_an_unknown_pretokeniser_is_named(kind, name):
    if kind == "clip":
        level = tokenizers.pre_tokenizers.Sequence(
            [tokenizers.pre_tokenizers.Digits(True),
             tokenizers.pre_tokenizers.ByteLevel(use_regex=False)]
        )  # fmt: skip
        made = tokenizers.Tokenizer.from_str(tiny_vocabulary().tokenizer_json())
        made.pre_tokenizer = level
        vocabulary = Vocabulary.from_json(made.to_str())
    else:
        vocabulary = byte_vocabulary([bytes([b]) for b in range(256)], [], kind)
    with pytest.raises(UnsupportedPretokenizerError, match=name) as caught:
        valid_next(vocabulary, [])
    assert isinstance(caught.value, NotImplementedError)


def test_bad_ids_and_other_vocabularies_are_refused():
    with pytest.raises(ArgumentError, match="ids"):
        valid_next(tiny_vocabulary(), [999])
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")
    )
    with pytest.raises(UnsupportedPretokenizerError, match="wordlevel"):
        valid_next(Vocabulary.from_json(words.to_str()), [])


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, pattern",
    [("gpt2.tiktoken", "gpt2"), ("llama3.tiktoken", "llama3"), ("llama2.model", None)],
)
def test_encodings_of_24_languages_are_valid(data, name, pattern):
    vocabulary = Vocabulary.load(data(f"tokenizers/{name}"), pattern=pattern)
    grammar = grammar_of(vocabulary)
    with gzip.open(data("text/udhr.jsonl.gz"), "rt", encoding="utf-8") as file:
        lines = file.readlines()
    for line in lines:
        text = json.loads(line)["text"][:250]
        opens = grammar.start
        for id_ in vocabulary.encode(text, specials=False).tolist():
            opens = grammar.step(opens, id_)
            assert opens, (text, id_)
        assert grammar.ends(opens)
