"""Files of other libraries encode as those libraries do."""

import base64
import gzip
import io
import json
import struct

import pytest
from tokenizers import Tokenizer

from jtok.errors import (
    ArgumentError,
    CheckpointError,
    MissingFileError,
    UnsupportedCheckpointError,
)
from jtok.text import Detokenizer, Vocabulary, _merges, _protobuf
from jtok.text import _tokenizer_json as tj
from tests.text import oracles
from tests.text.kinds import CORPUS, byte_bpe

LLAMA = "tokenizers/llama2.model"
CLIP = "tokenizers/clip_bpe_simple_vocab_16e6.txt.gz"
RANKS = {
    "gpt2": ("gpt2", {"<|endoftext|>": 50256}, 50257),
    "whisper_multilingual": ("gpt2", {"<|endoftext|>": 50257}, 50258),
    "llama3": ("llama3", {"<|begin_of_text|>": 128000, "<|eot_id|>": 128009}, 128010),
    "llama4": ("llama4", {"<|begin_of_text|>": 200000}, 200001),
}
_loaded: dict[str, Vocabulary] = {}


def llama(data):
    if LLAMA not in _loaded:
        _loaded[LLAMA] = Vocabulary.load(data(LLAMA))
    return _loaded[LLAMA]


def ranked(data, name):
    if name not in _loaded:
        pattern, specials, _ = RANKS[name]
        path = data(f"tokenizers/{name}.tiktoken")
        _loaded[name] = Vocabulary.load(path, pattern, specials)
    return _loaded[name]


def clip(data):
    if CLIP not in _loaded:
        _loaded[CLIP] = Vocabulary.load(data(CLIP))
    return _loaded[CLIP]


def same_ids(vocabulary, encode, lines, **options):
    wrong = []
    for line, ids in zip(lines, vocabulary.encode_batch(lines, **options), strict=True):
        if ids.tolist() != list(encode(line)):
            wrong.append(line)
    assert not wrong, f"{len(wrong)} of {len(lines)}, first {wrong[0][:80]!r}"


def pieces_join(vocabulary, lines):
    """Bytes of the tokens tile the text, and a stream of them decodes it."""
    for line in lines:
        ids = vocabulary.encode(line, specials=False)
        stream = Detokenizer(vocabulary)
        text = "".join(stream.push([id_]) for id_ in ids) + stream.finish()
        assert text == vocabulary.decode(ids)


# ---- SentencePiece


def oracle(data):
    module = oracles.package("sentencepiece")
    return module.SentencePieceProcessor(model_file=str(data(LLAMA)))


@pytest.mark.medium
def test_llama2_is_read_whole(data):
    vocabulary = llama(data)
    assert (vocabulary.kind, vocabulary.pretokenizer) == ("sentencepiece_bpe", "none")
    assert vocabulary.size == 32000
    assert vocabulary.round_trips
    assert dict(vocabulary.special) == {"bos": 1, "eos": 2, "unk": 0}
    assert vocabulary.special_ids == {0, 1, 2}
    assert vocabulary.token_bytes[3:259] == tuple(bytes([b]) for b in range(256))
    assert vocabulary.token_bytes[vocabulary.id_of(b" the")] == b" the"
    assert all(left + right for left, right in vocabulary.merges)
    made = {left + right for left, right in vocabulary.merges}
    assert made <= set(vocabulary.token_bytes)
    assert vocabulary.word_starts.sum() > 10_000


@pytest.mark.medium
@pytest.mark.parametrize(
    "step", [150, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_llama2_encodes_as_sentencepiece(data, step):
    peer = oracle(data)
    lines = oracles.corpus(data, step)
    vocabulary = llama(data)
    same_ids(vocabulary, peer.encode, lines)
    for line in lines[:200]:
        ids = vocabulary.encode(line)
        assert vocabulary.decode(ids) == peer.decode(ids.tolist())
        if "\u2581" not in line:
            prefix = b" " if line else b""
            assert vocabulary.decode_bytes(ids) == prefix + line.encode()
    pieces_join(vocabulary, lines[:60])


def test_control_text_becomes_the_token(data):
    vocabulary = llama(data)
    ids = vocabulary.encode("<s>[INST] a [/INST]")
    assert ids[0] == 1
    assert ids[1:].tolist() == vocabulary.encode("[INST] a [/INST]").tolist()


SENTENCES = [line for text in CORPUS for line in text.split("\n")] * 3 + [
    f"{a} {b} number {i}, and x{i}y" for i in range(40) for a in "ab" for b in "cde"
]
TRAINED = {
    "unigram": {"model_type": "unigram"},
    "unigram_plain": {
        "model_type": "unigram",
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    },
    "unigram_bytes": {"model_type": "unigram", "byte_fallback": True},
    "unigram_symbols": {
        "model_type": "unigram",
        "user_defined_symbols": ["<sep>", "ab"],
    },
    "bpe": {"model_type": "bpe"},
    "bpe_folded": {"model_type": "bpe", "normalization_rule_name": "nmt_nfkc_cf"},
    "bpe_symbols": {
        "model_type": "bpe",
        "user_defined_symbols": ["<sep>", "ab", "abc"],
        "byte_fallback": True,
    },
    "bpe_bare": {
        "model_type": "bpe",
        "add_dummy_prefix": False,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "pad_id": 3,
    },
}
PROBES = [
    *SENTENCES[:60:5],
    *(edge for edge in oracles.EDGES if "\u0301" not in edge),
    "<sep>a<sep>b<sep>",
    "x <sep> abcab",
    "ab",
    "\uff46\uff55\uff4c\uff4c width",
]


def train(tmp_path, **options):
    module = oracles.package("sentencepiece")
    buffer = io.BytesIO()
    module.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=buffer,
        minloglevel=2,
        num_threads=1,
        hard_vocab_limit=False,
        vocab_size=120 + 256 * options.get("byte_fallback", False),
        **options,
    )
    path = tmp_path / "tokenizer.model"
    path.write_bytes(buffer.getvalue())
    return path, module.SentencePieceProcessor(model_proto=buffer.getvalue())


@pytest.mark.parametrize("name", TRAINED)
def test_options_of_sentencepiece_are_followed(tmp_path, name):
    path, peer = train(tmp_path, **TRAINED[name])
    vocabulary = Vocabulary.load(path)
    assert vocabulary == Vocabulary.load(tmp_path)
    same_ids(vocabulary, peer.encode, PROBES)
    pieces_join(vocabulary, PROBES)
    kind = "unigram" if name.startswith("unigram") else "sentencepiece_bpe"
    assert vocabulary.kind == kind
    assert vocabulary.round_trips == (name in ("bpe_bare",))
    roles = {"bos": 1, "eos": 2, "unk": 0, **({"pad": 3} if name == "bpe_bare" else {})}
    assert dict(vocabulary.special) == roles
    vocabulary.save(tmp_path / "saved")
    assert Vocabulary.load(tmp_path / "saved") == vocabulary


def test_what_goes_around_a_text_is_as_the_config_says(tmp_path):
    path, peer = train(tmp_path, **TRAINED["bpe"])
    config = tmp_path / "tokenizer_config.json"
    plain = peer.encode("a cat")
    for content, before, after in (
        ({"tokenizer_class": "LlamaTokenizer"}, [1], []),
        ({"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}, [], []),
        ({"add_eos_token": True}, [], [2]),
        ({"tokenizer_class": "T5Tokenizer"}, [], [2]),
    ):
        config.write_text(json.dumps(content))
        vocabulary = Vocabulary.load(path)
        assert vocabulary.encode("a cat").tolist() == [*before, *plain, *after]
        assert vocabulary.encode("a cat", specials=False).tolist() == plain


def test_added_tokens_of_the_neighbours_count(tmp_path):
    path, peer = train(tmp_path, **TRAINED["bpe"])
    size = peer.get_piece_size()
    extra = {str(size + 2): {"content": "<|im_end|>", "special": True}}
    config = {"added_tokens_decoder": extra, "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<think>": size}))
    vocabulary = Vocabulary.load(path)
    assert vocabulary.size == size + 3
    assert vocabulary.missing_ids == {size + 1}
    assert vocabulary.special["eos"] == size + 2
    assert vocabulary.special_ids == {0, 1, 2, size + 2}
    ids = vocabulary.encode("<think>a<|im_end|>")
    assert (ids[0], ids[-1]) == (size, size + 2)


def pieces(*entries, trainer=b"", normalizer=b"", rest=b""):
    """A model's bytes; entries are (text, score, type)."""

    def field(number, data):
        size = len(data)
        assert size < 1 << 14
        low = bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])
        return bytes([number << 3 | 2]) + low + data

    body = b""
    for text, score, kind in entries:
        piece = field(1, text.encode()) + b"\x15" + struct.pack("<f", score)
        body += field(1, piece + bytes([0x18, kind]))
    return body + field(2, trainer) + field(3, normalizer) + rest


BPE = b"\x18\x02"
SOME = [("<unk>", 0, 2), ("<s>", 0, 3), ("▁", -1, 1), ("a", -2, 1), ("▁a", -0.5, 1)]


def test_a_model_written_by_hand(tmp_path):
    (tmp_path / "x.model").write_bytes(pieces(*SOME, trainer=BPE))
    vocabulary = Vocabulary.load(tmp_path)
    assert vocabulary.encode("a a").tolist() == [4, 4]
    assert vocabulary.encode("zz a").tolist() == [2, 0, 4]


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (b"", CheckpointError, "no pieces"),
        (b"\x0a", CheckpointError, "inside a number"),
        (b"\x0a\x05ab", CheckpointError, "ends inside field 1"),
        (b"\x0b\x00", CheckpointError, "wire type 3"),
        (b"\x02\x00", CheckpointError, "field 0"),
        (b"\xff" * 12, CheckpointError, "longer than 10 bytes"),
        (b"\x08\x01", CheckpointError, "field 1 is a number"),
        (pieces(*SOME, SOME[2], trainer=BPE), CheckpointError, "'▁' stands twice"),
        (pieces(*SOME[1:], trainer=BPE), CheckpointError, "0 unknown pieces"),
        (pieces(*SOME, ("b", 0, 9)), CheckpointError, "type 9"),
        (pieces(*SOME, ("b", float("nan"), 1)), CheckpointError, "score nan"),
        (pieces(*SOME, ("b", 0, 6)), CheckpointError, "'b' is marked as a byte"),
        (pieces(*SOME, ("<0x00>", 0, 6)), CheckpointError, "1 byte pieces"),
        (pieces(*SOME, ("b", 0, 5)), UnsupportedCheckpointError, "marked as unused"),
        (pieces(*SOME, trainer=b"\x18\x03"), UnsupportedCheckpointError, "type WORD"),
        (pieces(*SOME, trainer=b"\x18\x04"), UnsupportedCheckpointError, "type CHAR"),
        (pieces(*SOME, trainer=b"\x18\x07"), UnsupportedCheckpointError, "type 7"),
        (
            pieces(*SOME, trainer=BPE + b"\xc0\x01\x01"),
            UnsupportedCheckpointError,
            "treat_whitespace_as_suffix",
        ),
        (
            pieces(*SOME, normalizer=b"\x28\x00"),
            UnsupportedCheckpointError,
            "escape_whitespaces",
        ),
        (
            pieces(*SOME, normalizer=b"\x0a\x03own\x12\x04\x00\x00\x00\x00"),
            UnsupportedCheckpointError,
            "'own' cannot be followed",
        ),
        (
            pieces(*SOME, normalizer=b"\x0a\x04nfkc\x12\x04\x00\x01\x00\x00"),
            CheckpointError,
            "charsmap is cut short",
        ),
        (
            pieces(*SOME, rest=b"\x2a\x03\x12\x01x"),
            UnsupportedCheckpointError,
            "denormalizer",
        ),
        (
            pieces(*SOME, ("aa", -0.5, 1), trainer=BPE),
            UnsupportedCheckpointError,
            "'▁a' and 'aa' have the same score",
        ),
        (
            pieces(*SOME, ("bc", -0.4, 1), trainer=BPE),
            UnsupportedCheckpointError,
            "letters that are no pieces",
        ),
        (
            pieces(*SOME, ("a" * 600, -9, 1), trainer=BPE),
            CheckpointError,
            "600 letters",
        ),
    ],
)
def test_models_that_cannot_be_followed_are_refused(tmp_path, model, error, message):
    path = tmp_path / "x.model"
    path.write_bytes(model)
    with pytest.raises(error, match=message) as caught:
        Vocabulary.load(path)
    assert str(path) in str(caught.value)


def test_protobuf_reads_each_wire_type():
    data = b"\x08\x96\x01\x12\x02hi\x1d\x00\x00\x80\x3f\x21" + b"\0" * 8
    fields = list(_protobuf.fields(data, "x"))
    assert fields == [(1, 150), (2, b"hi"), (3, b"\0\0\x80\x3f"), (4, b"\0" * 8)]
    assert _protobuf.number(fields[2][1], "x") == 1.0
    assert _protobuf.flag((1 << 64) - 1, "x") == -1
    with pytest.raises(CheckpointError, match="no UTF-8"):
        _protobuf.text(b"\xff", "x")


# ---- tiktoken


@pytest.mark.medium
@pytest.mark.parametrize("name", ["gpt2", "whisper_multilingual"])
@pytest.mark.parametrize(
    "step", [300, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_ranks_encode_as_tiktoken(data, name, step):
    agree_with_tiktoken(data, name, step)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama3", "llama4"])
def test_large_ranks_encode_as_tiktoken(data, name):
    agree_with_tiktoken(data, name, 1)


def agree_with_tiktoken(data, name, step):
    pattern, specials, size = RANKS[name]
    vocabulary = ranked(data, name)
    path = data(f"tokenizers/{name}.tiktoken")
    peer, encode = oracles.tiktoken(path, tj.PATTERNS[pattern], specials)
    lines = oracles.corpus(data, step)
    lines += [f"a{special}b" for special in specials]
    same_ids(vocabulary, encode, lines)
    for line in lines[:200]:
        ids = vocabulary.encode(line)
        assert vocabulary.decode(ids, skip_special=False) == peer.decode(ids.tolist())
        assert vocabulary.decode_bytes(ids, skip_special=False) == line.encode()
    assert (vocabulary.kind, vocabulary.round_trips) == ("byte_bpe", True)
    assert vocabulary.size == size
    assert vocabulary.pretokenizer == {"llama4": "o200k"}.get(pattern, pattern)
    assert vocabulary.special_ids == set(specials.values())
    for id_ in (0, 255, 256, 1000, size // 2):
        assert vocabulary.token_bytes[id_] == peer.decode_single_token_bytes(id_)


@pytest.mark.medium
def test_gpt2_merges_are_those_it_was_trained_with(data):
    merges = ranked(data, "gpt2").merges
    assert len(merges) == 50_000
    assert merges[:4] == ((b" ", b"t"), (b" ", b"a"), (b"h", b"e"), (b"i", b"n"))
    table = ranked(data, "gpt2").token_bytes
    assert all(left + right == table[256 + n] for n, (left, right) in enumerate(merges))


def ranks_file(path, tokens, start=0):
    lines = [base64.b64encode(token) for token in tokens]
    text = b"\n".join(b"%s %d" % (line, start + n) for n, line in enumerate(lines))
    path.write_bytes(text + b"\n")
    return path


SINGLE = [bytes([byte]) for byte in range(256)]


def test_a_whole_piece_goes_before_merges(tmp_path):
    """`abcd` is no pair of tokens: `abc` is none, and `a` stands before `bc`."""
    tokens = [*SINGLE, b"bc", b"abcd", b"bcd"]
    path = ranks_file(tmp_path / "x.tiktoken", tokens)
    _, encode = oracles.tiktoken(path, tj.PATTERNS["gpt2"], {})
    vocabulary = Vocabulary.load(path, "gpt2")
    lines = ["abcd", "abcde", "bcd", "abc abcd", "xabcd", "bcbcd"]
    same_ids(vocabulary, encode, lines)
    rules, unreachable = _merges.merge_rules([b"xyz"], {b"xyz": 0, b"x": 1})
    assert (rules, unreachable) == ([], [b"xyz"])


@pytest.mark.parametrize("seed", range(6))
def test_random_ranks_encode_as_tiktoken(tmp_path, seed):
    """Tables that no training made: every way of merging shows."""
    import random

    draw = random.Random(seed)
    words = {
        "".join(draw.choices("ab", k=draw.randint(2, 5))).encode() for _ in range(14)
    }
    tokens = [*SINGLE, *draw.sample(sorted(words), len(words))]
    path = ranks_file(tmp_path / "x.tiktoken", tokens)
    _, encode = oracles.tiktoken(path, tj.PATTERNS["gpt2"], {})
    lines = ["".join(draw.choices("ab", k=draw.randint(1, 12))) for _ in range(150)]
    same_ids(Vocabulary.load(path, "gpt2"), encode, lines)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("cl100k", "llama3"),
        ("qwen2", "qwen2"),
        ("o200k", "o200k"),
        (r"\w+|\W", "other"),
    ],
)
def test_split_rules_by_name_and_by_regex(tmp_path, name, canonical):
    path = ranks_file(tmp_path / "x.tiktoken", [*SINGLE, b"12", b"AB"])
    regex = tj.PATTERNS.get(name, name)
    _, encode = oracles.tiktoken(path, regex, {})
    vocabulary = Vocabulary.load(path, pattern=name)
    assert vocabulary.pretokenizer == canonical
    same_ids(vocabulary, encode, [*oracles.EDGES, "1234 ABc aB", *CORPUS])


def test_ranks_refuse_what_they_cannot_be(tmp_path):
    path = ranks_file(tmp_path / "x.tiktoken", SINGLE)
    with pytest.raises(ArgumentError, match=r"pattern: got None.*gpt2.*o200k"):
        Vocabulary.load(path)
    with pytest.raises(ArgumentError, match="did you mean llama3"):
        Vocabulary.load(path, pattern="lama3")
    with pytest.raises(ArgumentError, match=r"pattern: got '\(a', expected a regex"):
        Vocabulary.load(path, pattern="(a")
    for specials in ({"<s>": 5}, {"!": 300}, {"<s>": -1}, {"<s>": 1 << 40}, {"": 300}):
        with pytest.raises(ArgumentError, match="specials: got"):
            Vocabulary.load(path, "gpt2", specials)
    with pytest.raises(ArgumentError, match="specials: got"):
        Vocabulary.load(path, "gpt2", {"<a>": 300, "<b>": 300})
    held = Vocabulary.load(path, "gpt2", {"<s>": 300})
    assert held.missing_ids == set(range(256, 300))
    assert held.encode("!<s>").tolist() == [33, 300]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda b: b.replace(b" 7\n", b" 8\n"), "rank 8 stands in line 8"),
        (lambda b: b + b"Bw== 900\n", "has the rank 7 too"),
        (lambda b: b.replace(b" 7\n", b"\n"), "line 8: got"),
        (lambda b: b.replace(b" 7\n", b" x\n"), "line 8: got"),
        (lambda b: b.replace(b" 7\n", b" -7\n"), "line 8: got"),
        (lambda b: b"?" + b, "is no base64"),
        (lambda b: b[: len(b) // 2 - 3], "damaged"),
        (lambda b: b.split(b"\n", 1)[1], r"1 single bytes have no rank, b'\\x00'"),
        (lambda b: b + b"AAAA 99999999\n", "more than"),
        (lambda b: b + base64.b64encode(b"a" * 999) + b" 999\n", "bytes a token"),
        (lambda b: b"", "256 single bytes"),
    ],
)
def test_damaged_ranks_are_refused(tmp_path, damage, message):
    path = ranks_file(tmp_path / "x.tiktoken", SINGLE)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(CheckpointError, match=message) as caught:
        Vocabulary.load(path, "gpt2")
    assert str(path) in str(caught.value)


# ---- CLIP


@pytest.mark.medium
@pytest.mark.parametrize(
    "step", [300, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_clip_encodes_as_its_own_code(data, step):
    vocabulary = clip(data)
    encode = oracles.Clip(data(CLIP))
    # The original counts more letters as spaces than a regex's \s does.
    lines = [
        x for x in oracles.corpus(data, step) if not set(x) & set("\x1c\x1d\x1e\x1f")
    ]
    same_ids(vocabulary, encode, lines, specials=False)
    start, *ids, end = vocabulary.encode("A photo of a CAT.").tolist()
    assert (start, end) == (49406, 49407)
    assert ids == encode("a photo of a cat.")
    assert ids == [320, 1125, 539, 320, 2368, 269]
    pieces_join(vocabulary, lines[:40])


@pytest.mark.medium
def test_clip_is_described(data):
    vocabulary = clip(data)
    assert (vocabulary.size, vocabulary.kind) == (49408, "byte_bpe")
    assert vocabulary.pretokenizer == "clip"
    assert not vocabulary.round_trips
    assert vocabulary.special["bos"] == 49406
    assert vocabulary.special["eos"] == vocabulary.special["pad"] == 49407
    assert vocabulary.token_bytes[2368] == b"cat "
    assert vocabulary.token_bytes[0] == b"!"
    assert vocabulary.token_bytes[256] == b"! "
    assert not vocabulary.word_starts.any()
    assert len(vocabulary.merges) == 48894
    ids = vocabulary.encode("A  cat's\ttail")
    assert vocabulary.decode(ids) == "a cat 's tail "
    assert vocabulary.decode_bytes(ids) == b"a cat 's tail "
    assert vocabulary.decode([]) == ""


@pytest.mark.medium
def test_clip_is_saved_as_a_tokenizer_json(data, tmp_path):
    vocabulary = clip(data)
    vocabulary.save(tmp_path)
    loaded = Vocabulary.load(tmp_path)
    assert loaded == vocabulary
    assert loaded.special == vocabulary.special
    peer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert peer.encode("a cat").ids == vocabulary.encode("a cat").tolist()


MERGES = b'"bpe_simple_vocab"\na b\nab c</w>\n'


def clip_file(tmp_path, content):
    path = tmp_path / "bpe_simple_vocab_16e6.txt.gz"
    path.write_bytes(content)
    return path


def test_a_small_clip_file(tmp_path):
    for content in (gzip.compress(MERGES, mtime=0), MERGES):
        vocabulary = Vocabulary.load(clip_file(tmp_path, content))
        assert vocabulary.size == 512 + 2 + 2
        assert vocabulary.encode("ABC abc").tolist() == [514, 513, 513, 515]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no merges"),
        (gzip.compress(MERGES, mtime=0)[:-9], "cut short"),
        (gzip.compress(MERGES, mtime=0)[:10] + b"\xff" * 30, "not a whole gzip"),
        (gzip.compress(b"\n" + b"\xff", mtime=0), "no UTF-8"),
        (gzip.compress(MERGES + b"a zz\n", mtime=0), "line 4 is 'a zz'"),
        (gzip.compress(MERGES + b"a b\n", mtime=0), "line 4 makes 'ab' again"),
        (gzip.compress(MERGES + b"a\n", mtime=0), "line 4"),
        (gzip.compress(b"\0" * (80 << 20), mtime=0), "more than"),
    ],
    ids=[
        "empty",
        "short",
        "garbage",
        "no text",
        "extra",
        "repeated",
        "half a pair",
        "bomb",
    ],
)
def test_damaged_clip_files_are_refused(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=message):
        Vocabulary.load(clip_file(tmp_path, content))


# ---- GPT-2's pair, BERT's list, folders


def write_pair(folder, vocabulary):
    spec = json.loads(vocabulary.tokenizer_json())
    merges = "\n".join(" ".join(pair) for pair in spec["model"]["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    (folder / "vocab.json").write_text(json.dumps(spec["model"]["vocab"]))
    return folder


def test_vocab_and_merges_are_read(tmp_path):
    trained = byte_bpe()
    write_pair(tmp_path, trained)
    for path in (tmp_path, tmp_path / "merges.txt", tmp_path / "vocab.json"):
        vocabulary = Vocabulary.load(path)
        assert vocabulary.token_bytes == trained.token_bytes
        assert vocabulary.merges == trained.merges
        same_ids(vocabulary, trained.encode, CORPUS)
        assert vocabulary.pretokenizer == "gpt2"
    other = Vocabulary.load(tmp_path, "llama3", {"<|endoftext|>": 0, "<x>": 300})
    assert (other.pretokenizer, other.special_ids) == ("llama3", {0, 300})
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(MissingFileError, match=r"vocab\.json: missing"):
        Vocabulary.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("merges.txt", "a\n", "line 1 is 'a'"),
        ("merges.txt", "#version\na zzz\n", "line 2"),
        ("merges.txt", b"\xff", "no UTF-8"),
        ("vocab.json", "[]", "JSON object"),
        ("vocab.json", '{"a": 1, "b": 1}', "same id"),
        ("vocab.json", '{"a": -1}', "has the id -1"),
        ("vocab.json", '{"a": "x"}', "has the id 'x'"),
        ("vocab.json", '{"a": 99999999999}', "has the id 99999999999"),
    ],
)
def test_damaged_pairs_are_refused(tmp_path, name, text, message):
    write_pair(tmp_path, byte_bpe())
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=message):
        Vocabulary.load(tmp_path)


def test_vocab_txt_is_read(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##s", "é"]
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    vocabulary = Vocabulary.load(tmp_path)
    assert vocabulary.kind == "wordpiece"
    assert vocabulary.encode("The CATS [MASK]").tolist() == [2, 5, 6, 7, 4, 3]
    roles = {"cls": 2, "mask": 4, "pad": 0, "sep": 3, "unk": 1}
    assert dict(vocabulary.special) == roles
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    cased = Vocabulary.load(tmp_path)
    assert cased.encode("The cat é", specials=False).tolist() == [1, 6, 8]
    (tmp_path / "vocab.txt").write_text("a\nb\na\n")
    with pytest.raises(CheckpointError, match="'a' stands twice"):
        Vocabulary.load(tmp_path)
    (tmp_path / "vocab.txt").write_text("a\n")
    with pytest.raises(CheckpointError, match=r"no '\[UNK\]'"):
        Vocabulary.load(tmp_path)


def test_the_best_file_of_a_folder_is_taken(tmp_path):
    trained = byte_bpe()
    with pytest.raises(MissingFileError, match=r"Looked for tokenizer\.json, tokeni"):
        Vocabulary.load(tmp_path)
    write_pair(tmp_path, trained)
    assert Vocabulary.load(tmp_path).size == 300
    (tmp_path / "b.model").write_bytes(pieces(*SOME, trainer=BPE))
    assert Vocabulary.load(tmp_path).size == 5
    (tmp_path / "a.model").write_bytes(pieces(*SOME, trainer=BPE))
    with pytest.raises(ArgumentError, match=r"one of its files: a\.model, b\.model"):
        Vocabulary.load(tmp_path)
    more = pieces(*SOME, ("b", -9, 1), trainer=BPE)
    (tmp_path / "tokenizer.model").write_bytes(more)
    assert Vocabulary.load(tmp_path).size == 6
    trained.save(tmp_path)
    assert Vocabulary.load(tmp_path) == trained
    (tmp_path / "odd.bin").write_bytes(b"")
    with pytest.raises(UnsupportedCheckpointError, match=r"odd\.bin.*SentencePiece"):
        Vocabulary.load(tmp_path / "odd.bin")
    with pytest.raises(ArgumentError, match="pattern: got 'gpt2', expected None"):
        Vocabulary.load(tmp_path / "a.model", pattern="gpt2")


def test_unknown_parts_of_a_tokenizer_json_are_named():
    spec = json.loads(byte_bpe().tokenizer_json())
    for step, name, near in (
        ("pre_tokenizer", "ByteLevle", "did you mean ByteLevel"),
        ("normalizer", "NFX", "did you mean NF"),
        ("decoder", "WordPieces", "did you mean WordPiece"),
        ("model", "BPEE", "did you mean BPE"),
    ):
        wrong = {**spec, step: {**(spec[step] or {}), "type": name}}
        with pytest.raises(UnsupportedCheckpointError, match=near):
            Vocabulary.from_json(json.dumps(wrong))
    spec["model"]["vocab"]["zzz"] = 1 << 30
    with pytest.raises(CheckpointError, match="has the id 1073741824"):
        Vocabulary.from_json(json.dumps(spec))


def test_options_that_change_ids_change_the_hash():
    spec = json.loads(byte_bpe().tokenizer_json())
    plain = Vocabulary.from_json(json.dumps(spec))
    spec["model"]["ignore_merges"] = True
    assert Vocabulary.from_json(json.dumps(spec)) != plain
