"""Valid next tokens against every continuation of six bytes over a few letters."""

import itertools

import pytest

from jtok.text import valid_next
from jtok.text._spines import encode_symbols
from jtok.text.validity import grammar_of
from tests.text.byte_vocabularies import small_bytes, small_pieces

TEXTS = (
    "aa's aas 'sa  a11 1a1 111s\n\n a'a sas\n a", "a  a   s\n1 11 as as 's 'sas  \n s1",
)  # fmt: skip
BEFORE, AFTER = 2, 6  # bytes of the tokens that are there, and of what goes on
PIECES = ["▁", "a", "s", "e", "as", "▁a", "▁▁", "ase", "sa", "▁as", "▁▁▁"]

# Kind, letters (a class each of the split pattern), vocabulary.
CASES = {
    "none": ("as e", lambda: small_bytes("none", TEXTS, 290)),
    "gpt2": ("as' \n1", lambda: small_bytes("gpt2", TEXTS, 290)),
    "llama3": (
        "as' \n1",
        lambda: small_bytes("llama3", TEXTS, 290, whole=(b"asa", b" 1a")),
    ),
    "pieces": ("as e", lambda: small_pieces(PIECES, prefix=True)),
    "pieces, no prefix": ("as e", lambda: small_pieces(PIECES, prefix=False)),
}


def encodings(kind, letters, vocabulary):
    """Encodings of every text of up to eight letters."""
    sizes = range(BEFORE + AFTER + 1)
    texts = (t for n in sizes for t in itertools.product(letters, repeat=n))
    if kind == "none":  # texts are any bytes, which the library does not take
        merges = grammar_of(vocabulary).merges
        spell = [merges.letters[bytes([byte])] for byte in range(256)]
        for text in texts:
            symbols = [spell[ord(letter)] for letter in text]
            yield encode_symbols(symbols, merges.rules)
        return
    while some := ["".join(t) for t in itertools.islice(texts, 50_000)]:
        for ids in vocabulary.encode_batch(some, specials=False):
            yield ids.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_a_token_is_valid_where_some_text_goes_on_with_it(kind):
    letters, make = CASES[kind]
    vocabulary = make()
    assert vocabulary.size <= 300
    spelled = vocabulary.token_bytes
    known = set(letters.encode())
    # A longer token would leave too few of the bytes to look ahead at.
    short = [i for i, b in enumerate(spelled) if b and set(b) <= known and len(b) <= 3]
    room = BEFORE + len(b" ") * (kind == "pieces")
    seen: dict[tuple[int, ...], set[int]] = {}
    for ids in encodings(kind, letters, vocabulary):
        used = 0
        for place, id_ in enumerate(ids):
            if used > room:
                break
            seen.setdefault(tuple(ids[:place]), set()).add(id_)
            used += len(spelled[id_])
    assert len(seen) > 20
    for before, after in seen.items():
        row = valid_next(vocabulary, before)
        got = {i for i in short if row[i]}
        assert got == after & set(short), [spelled[i] for i in before]
