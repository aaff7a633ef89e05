"""Damaged tokenizer files and chat templates: only jtok's errors, and soon."""

import gzip
import json
import random
import time

import pytest

from jtok.errors import JtokError
from jtok.text import Detokenizer, Vocabulary
from tests.text import kinds
from tests.text.test_chat import BASE, BOMBS, CHAT, REAL, TOOLS
from tests.text.test_readers import BPE, MERGES, SINGLE, SOME, pieces, ranks_file

TOKENS = [
    b"0",
    b"-1",
    b"4294967296",
    b"1e999",
    b"null",
    b"true",
    b'""',
    b"[]",
    b"{}",
    b'"type"',
    b"\xff",
    b"\x00",
    b"\n",
    b" ",
    "▁é🙂".encode(),
    b"\\ud800",
    b"[" * 300,
    b"</w>",
    b"<0xFF>",
    b"(?:a*)*b",
]
PIECES = [b"{%", b"%}", b"{{", b"}}", b"|", b"~", b" for ", b" in ", b" if ", b" else "]
PIECES += [
    b" endfor ",
    b" set ",
    b"messages",
    b"range(99999)",
    b"loop",
    b"ns",
    b".",
    b"(",
]
PIECES += [
    b")",
    b"[",
    b"]",
    b"'",
    b" * 99999",
    b" macro f() ",
    b"f()",
    b"|list",
    b"|join",
]


def sentencepiece_model(kind):
    several = [*SOME, ("t", -3, 1), ("h", -4, 1), ("th", -1.5, 1), ("<x>", 0, 4)]
    return pieces(*several, trainer=kind, normalizer=b"\x18\x01\x20\x01\x28\x01")


def samples(tmp_path):
    """File name -> contents, of every format."""
    ranks = ranks_file(tmp_path / "ranks", [*SINGLE, b"th", b"the"]).read_bytes()
    made = {
        "unigram.model": sentencepiece_model(b"\x18\x01"),
        "bpe.model": sentencepiece_model(BPE),
        "x.tiktoken": ranks,
        "bpe_simple_vocab.txt.gz": gzip.compress(MERGES, mtime=0),
        "bpe_simple_vocab.txt": MERGES,
        "vocab.txt": b"[PAD]\n[UNK]\n[CLS]\n[SEP]\nthe\n##e\n",
    }
    for name, make in kinds.KINDS.items():
        made[f"{name}.json"] = make().tokenizer_json().encode()
    return made


def mutate(draw, data, extra=TOKENS):
    """A few cuts, flips, repetitions and foreign tokens."""
    data = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        end = min(len(data), at + draw.choice((1, 1, 2, 4, 16, 200)))
        action = draw.randrange(6)
        if action == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif action == 1:
            del data[at:end]
        elif action == 2:
            data[at:at] = data[at:end] * draw.randint(1, 3)
        elif action == 3:
            data[at:end] = draw.choice(extra)
        elif action == 4:
            data[at:at] = draw.choice(extra)
        elif draw.random() < 0.2:
            del data[at:]
    return bytes(data)


def use(vocabulary):
    """Everything that reads the files further."""
    assert len(vocabulary.hash) == 64
    assert len(vocabulary.token_bytes) == vocabulary.size
    assert isinstance(vocabulary.round_trips, bool)
    assert vocabulary.word_starts.shape == (vocabulary.size,)
    assert vocabulary.merges is None or len(vocabulary.merges) >= 0
    assert isinstance(vocabulary.pretokenizer, str)
    for text in ("the cat", "  é🙂\n<0x41>", "aaaa" * 20):
        for specials in (True, False):
            ids = vocabulary.encode(text, specials=specials)
        vocabulary.decode_bytes(ids)
        whole = vocabulary.decode(ids)
        stream = Detokenizer(vocabulary)
        assert "".join([*(stream.push([i]) for i in ids), stream.finish()]) == whole


def check(action):
    """Whether `action` went well; it may raise jtok's errors and take a second."""
    start = time.process_time()
    try:
        action()
        good = True
    except JtokError as error:
        assert len(str(error)) < 3000
        good = False
    # The suite's type checks make it slower than it is.
    assert time.process_time() - start < 5
    return good


def try_files(tmp_path, name, seeds):
    data = samples(tmp_path)[name]
    path = tmp_path / name
    pattern = "gpt2" if name.endswith(".tiktoken") else None

    def load():
        use(Vocabulary.load(path, pattern))

    path.write_bytes(data)
    assert check(load), "the sample itself"
    outcomes = []
    for seed in seeds:
        path.write_bytes(mutate(random.Random(seed), data))
        outcomes.append(check(load))
    return outcomes


NAMES = ["unigram.model", "bpe.model", "x.tiktoken", "bpe_simple_vocab.txt.gz"]
NAMES += [
    "bpe_simple_vocab.txt",
    "vocab.txt",
    *(f"{name}.json" for name in kinds.KINDS),
]


@pytest.mark.parametrize("name", NAMES)
def test_damaged_files(tmp_path, name):
    outcomes = try_files(tmp_path, name, range(8))
    assert not all(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_many_damaged_files(tmp_path, name):
    outcomes = try_files(tmp_path, name, range(1000, 1200))
    assert any(outcomes) or name.endswith((".gz", ".json"))
    assert not all(outcomes)


def try_templates(seeds):
    outcomes = []
    sources = [*REAL.values(), *(b for b in BOMBS.values() if len(b) < 500)]
    for seed in seeds:
        draw = random.Random(seed)
        data = mutate(draw, draw.choice(sources).encode(), PIECES + TOKENS)
        config = {"chat_template": data.decode(errors="replace")}
        vocabulary = Vocabulary.from_json(BASE, config)
        outcomes.append(check(lambda v=vocabulary: v.encode_chat(CHAT, tools=TOOLS)))
    return outcomes


def test_damaged_templates(monkeypatch):
    quick(monkeypatch)
    assert not all(try_templates(range(25)))


@pytest.mark.slow
def test_many_damaged_templates(monkeypatch):
    quick(monkeypatch)
    outcomes = try_templates(range(1000, 1500))
    assert 20 < sum(outcomes) < 480


def quick(monkeypatch):
    """A smaller budget: under the suite's type checks each step takes much longer."""
    monkeypatch.setattr("jtok.text.chat.STEPS", 30_000)


def test_deep_and_odd_json():
    """Depth and shapes that a flip of bytes does not make."""
    for text in (
        "[" * 100_000,
        '{"model":' * 5000,
        '{"model": {"vocab": []}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}}',
        '{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [1]}}',
        '{"model": {"type": "WordLevel", "vocab": {"a": 1.5}}}',
        '{"model": {"type": "Unigram", "vocab": [["a", 0]], "unk_id": 9}}',
        '{"model": {"vocab": {"a": 0}}, "added_tokens": 3}',
        '{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1}]}',
    ):
        assert not check(lambda text=text: use(Vocabulary.from_json(text))), text
    base = json.loads(BASE)
    for step, field in (("normalizer", "normalizers"), ("decoder", "decoders")):
        leaf: dict = {"type": "Sequence", field: []}
        for _ in range(200):
            leaf = {"type": "Sequence", field: [leaf]}
        text = json.dumps({**base, step: leaf})
        assert not check(lambda text=text: use(Vocabulary.from_json(text)))
    for config in ({"chat_template": [1]}, {"bos_token": 5}, {"chat_template": 3}):
        assert Vocabulary.from_json(BASE, config).chat_templates == {}
