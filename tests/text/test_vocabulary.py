"""Vocabularies against the `tokenizers` library and against their own bytes."""

import copy
import json
import pathlib
import pickle
import subprocess
import sys

import jax
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from jtok.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    MissingFileError,
    WriteError,
)
from jtok.testing import data
from jtok.text import Vocabulary, _tokenizer_json
from tests.text.kinds import (
    CORPUS,
    KINDS,
    TEXTS,
    byte_bpe,
    metaspace_bpe,
    wordlevel,
    wordpiece,
)


@pytest.fixture(params=KINDS, ids=str)
def vocabulary(request):
    return KINDS[request.param]()


@pytest.fixture(scope="module")
def trained():
    return byte_bpe()


def peer(vocabulary):
    return tokenizers.Tokenizer.from_str(vocabulary.tokenizer_json())


# ---- every kind


@pytest.mark.parametrize("specials", [True, False])
def test_encode_and_decode_equal_the_library(vocabulary, specials):
    other = peer(vocabulary)
    batch = vocabulary.encode_batch(TEXTS, specials=specials)
    for text, from_batch in zip(TEXTS, batch, strict=True):
        expected = other.encode(text, add_special_tokens=specials).ids
        ids = vocabulary.encode(text, specials=specials)
        assert ids.dtype == np.int32
        assert ids.tolist() == from_batch.tolist() == expected
        for skip in (True, False):
            want = other.decode(expected, skip_special_tokens=skip)
            assert vocabulary.decode(ids, skip_special=skip) == want


def test_value_semantics(vocabulary):
    twin = pickle.loads(pickle.dumps(vocabulary))
    assert twin == vocabulary
    assert twin is not vocabulary
    assert hash(twin) == hash(vocabulary)
    assert twin.hash == vocabulary.hash
    assert copy.deepcopy(vocabulary) is vocabulary
    assert vocabulary != vocabulary.tokenizer_json()
    with pytest.raises(AttributeError, match="cannot be changed"):
        vocabulary.size = 3
    with pytest.raises(TypeError):
        vocabulary.special["bos"] = 3
    with pytest.raises(ValueError, match="read-only"):
        vocabulary.word_starts[0] = True


def test_kinds_differ_and_are_named():
    made = {name: make() for name, make in KINDS.items()}
    assert {name: each.kind for name, each in made.items()} == {n: n for n in KINDS}
    assert len({each.hash for each in made.values()}) == len(KINDS)
    assert {name: each.pretokenizer for name, each in made.items()} == {
        "byte_bpe": "gpt2",
        "sentencepiece_bpe": "none",
        "wordpiece": "bert",
        "unigram": "metaspace",
        "wordlevel": "whitespace",
    }
    assert {name for name, each in made.items() if each.round_trips} == {
        "byte_bpe",
        "sentencepiece_bpe",
    }


def test_save_and_load_keep_every_byte(vocabulary, tmp_path):
    vocabulary.save(tmp_path / "new")
    loaded = Vocabulary.load(tmp_path / "new")
    assert loaded == vocabulary
    assert loaded.tokenizer_json() == vocabulary.tokenizer_json()
    assert dict(loaded.special) == dict(vocabulary.special)
    assert loaded.tokenizer_config["tokenizer_class"] == "PreTrainedTokenizerFast"
    by_file = Vocabulary.load(str(tmp_path / "new" / "tokenizer.json"))
    assert by_file == vocabulary


@pytest.mark.parametrize("bad", [-1, 10_000])
def test_decode_refuses_ids_out_of_range(vocabulary, bad):
    for decode in (vocabulary.decode, vocabulary.decode_bytes):
        with pytest.raises(ArgumentError, match=rf"id {bad}, .* < {vocabulary.size}"):
            decode([0, bad])


# ---- bytes


def test_byte_alphabet_is_that_of_the_library():
    alphabet = _tokenizer_json.byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    assert set(alphabet) == set(pre_tokenizers.ByteLevel.alphabet())
    pre = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    for code in (*range(128), 0xE9, 0x6771, 0x1F642):
        printed = pre.pre_tokenize_str(chr(code))[0][0]
        assert bytes(alphabet[char] for char in printed) == chr(code).encode()


@given(st.text())
def test_byte_level_bytes_tile_the_text(text):
    vocabulary = shared("byte_bpe")
    ids = vocabulary.encode(text)
    assert vocabulary.decode_bytes(ids, skip_special=False) == text.encode()
    pieces = [vocabulary.token_bytes[id_] for id_ in ids]
    assert all(pieces)
    assert b"".join(pieces) == text.encode()
    assert vocabulary.encode(text.encode()).tolist() == ids.tolist()


@given(st.text(st.characters(exclude_characters="\u2581", exclude_categories=["Cs"])))
def test_metaspace_bytes_tile_the_text_after_one_space(text):
    vocabulary = shared("sentencepiece_bpe")
    ids = vocabulary.encode(text, specials=False)
    prefix = b" " if text else b""
    literal = any(special in text for special in ("<unk>", "<s>", "</s>"))
    if not literal:
        assert vocabulary.decode_bytes(ids) == prefix + text.encode()


_shared = {}


def shared(kind):
    return _shared.setdefault(kind, KINDS[kind]())


def test_metaspace_token_bytes_and_roles():
    vocabulary = metaspace_bpe()
    assert vocabulary.token_bytes[3 + 0xE9] == b"\xe9"
    assert vocabulary.token_bytes[vocabulary.id_of(b" the")] == b" the"
    assert vocabulary.token_bytes[:3] == (b"<unk>", b"<s>", b"</s>")
    assert dict(vocabulary.special) == {"bos": 1, "eos": 2, "unk": 0}
    assert vocabulary.special_ids == {0, 1, 2}
    assert vocabulary.merges[:2] == ((b" ", b"t"), (b" t", b"h"))
    assert vocabulary.encode("the").tolist() == [1, vocabulary.id_of(" the")]
    # The letter has its own piece, so its byte token is not the answer.
    assert vocabulary.id_of("a") > 258
    assert vocabulary.id_of("!") == 3 + ord("!")
    starts = {vocabulary.token_bytes[i] for i in np.flatnonzero(vocabulary.word_starts)}
    assert starts == {b" ", b" t", b" th", b" the", b" c", b" ca"}


def test_wordpiece_surface_bytes_and_word_starts():
    vocabulary = wordpiece()
    assert vocabulary.token_bytes[4:] == (b"the", b"cat", b"s", b"s", b"ing")
    assert vocabulary.word_starts.tolist() == [False] * 4 + [
        True,
        True,
        False,
        True,
        False,
    ]
    assert vocabulary.id_of("##s") == 6
    assert vocabulary.id_of("s") == 7
    assert vocabulary.merges is None
    assert dict(vocabulary.special) == {"pad": 0, "unk": 1}


def test_gaps_are_marked_and_decode_to_nothing():
    vocabulary = wordlevel()
    assert vocabulary.size == len(vocabulary) == 5
    assert vocabulary.missing_ids == {2, 3}
    assert vocabulary.token_bytes == (b"[UNK]", b"the", b"", b"", b"cat")
    assert vocabulary.word_starts.tolist() == [True, True, False, False, True]
    assert dict(vocabulary.special) == {"unk": 0}
    assert vocabulary.special_ids == frozenset()
    assert vocabulary.decode([1, 2, 4]) == "the cat"


def test_added_tokens_beyond_the_model_are_literal(trained):
    tokenizer = peer(trained)
    tokenizer.add_tokens(["<think>", "é  é"])
    tokenizer.add_special_tokens(["<|im_end|>"])
    vocabulary = Vocabulary.from_json(tokenizer.to_str())
    assert vocabulary.size == trained.size + 3
    think, accents, end = range(trained.size, vocabulary.size)
    assert vocabulary.token_bytes[accents] == "é  é".encode()
    assert vocabulary.special_ids == {0, end}
    ids = vocabulary.encode("a<think>é  é<|im_end|>")
    assert ids[1:].tolist() == [think, accents, end]
    assert vocabulary.decode_bytes(ids) == "a<think>é  é".encode()
    assert vocabulary.decode(ids) == "a<think>é  é"
    assert vocabulary.hash != trained.hash


def test_byte_level_round_trips_needs_every_byte_and_no_lowercasing(trained):
    spec = json.loads(trained.tokenizer_json())
    spec["normalizer"] = {"type": "NFC"}
    assert Vocabulary.from_json(json.dumps(spec)).round_trips
    spec["normalizer"] = {"type": "Lowercase"}
    assert not Vocabulary.from_json(json.dumps(spec)).round_trips
    spec["normalizer"] = None
    del spec["model"]["vocab"]["!"]
    assert not Vocabulary.from_json(json.dumps(spec)).round_trips


def test_id_of_refuses_bytes_of_no_token(trained):
    with pytest.raises(ArgumentError, match=r"b'zzz'.*300 tokens"):
        trained.id_of(b"zzz")
    assert trained.id_of("<|endoftext|>") == 0
    assert trained.token_bytes[trained.id_of(b" the")] == b" the"


# ---- pre-tokenisers


def split(pattern, behavior="isolated", invert=False):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(pattern), behavior, invert),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+"
    r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


@pytest.mark.parametrize(
    ("pre", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=True), "gpt2"),
        (pre_tokenizers.ByteLevel(use_regex=False), "none"),
        (split(QWEN2), "qwen2"),
        (split(LLAMA3), "llama3"),
        (split(LLAMA3, "removed", True), "llama3"),
        (split(LLAMA3, "removed", False), "other"),
        (split(r"\w+"), "other"),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel()]
            ),
            "other",
        ),
    ],
)
def test_pretokenizer_names(trained, pre, name):
    tokenizer = peer(trained)
    tokenizer.pre_tokenizer = pre
    vocabulary = Vocabulary.from_json(tokenizer.to_str(), trained.tokenizer_config)
    assert vocabulary.pretokenizer == name
    assert vocabulary.kind == "byte_bpe"
    assert vocabulary.hash != trained.hash


def test_prefixed_space_changes_the_hash_and_layout_does_not(trained):
    hashes = set()
    for prefix in (True, False):
        tokenizer = peer(trained)
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
        config = trained.tokenizer_config
        vocabulary = Vocabulary.from_json(tokenizer.to_str(pretty=prefix), config)
        assert vocabulary.pretokenizer == "gpt2"
        hashes.add(vocabulary.hash)
    assert len(hashes) == 2
    assert trained.hash in hashes


# ---- training


def test_training_is_deterministic_across_processes(trained):
    code = (
        "import json, sys; from jtok.text import Vocabulary;"
        "print(Vocabulary.train_bpe(json.loads(sys.argv[1]), 300).hash)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(CORPUS)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"},
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert done.stdout.strip() == trained.hash == byte_bpe().hash
    assert trained.size == 300
    assert trained.tokenizer_json() == byte_bpe().tokenizer_json()


def test_training_on_a_generator_with_several_specials():
    vocabulary = Vocabulary.train_bpe((t for t in CORPUS), 258, ("<eos>", "<mask>"))
    assert vocabulary.size == 258
    assert dict(vocabulary.special) == {"bos": 0, "eos": 0, "pad": 0}
    assert vocabulary.special_ids == {0, 1}
    assert vocabulary.merges == ()
    assert Vocabulary.train_bpe([], 500).size == 257


def test_training_refuses_bad_arguments():
    with pytest.raises(ArgumentError, match="size: got 256, expected at least 257"):
        Vocabulary.train_bpe(CORPUS, 256)
    with pytest.raises(ArgumentError, match="no token twice"):
        Vocabulary.train_bpe(CORPUS, 300, ("<a>", "<a>"))
    with pytest.raises(ArgumentTypeError, match="texts"):
        Vocabulary.train_bpe("one string", 300)


# ---- encoding's edges


def test_encode_never_truncates_or_pads(trained):
    tokenizer = peer(trained)
    tokenizer.enable_truncation(2)
    tokenizer.enable_padding(length=50)
    vocabulary = Vocabulary.from_json(tokenizer.to_str())
    assert (
        vocabulary.encode("the cat sat").tolist()
        == trained.encode("the cat sat").tolist()
    )


def test_encode_refuses_what_is_no_text(trained):
    for bad in (b"\xff\xfe", "\ud800"):
        with pytest.raises(ArgumentError, match="text: .*UTF-8"):
            trained.encode(bad)
        with pytest.raises(ArgumentError, match="text: .*UTF-8"):
            trained.encode_batch(["a", bad])
    with pytest.raises(ArgumentTypeError, match="texts"):
        trained.encode_batch("one string")


def test_decode_takes_any_row_of_integers(trained):
    ids = trained.encode("the cat")
    for form in (list(ids), tuple(ids.tolist()), iter(ids), jax.numpy.asarray(ids)):
        assert trained.decode(form) == "the cat"
    with pytest.raises(ArgumentError, match="one row"):
        trained.decode(ids[None])
    with pytest.raises(ArgumentError, match="one row"):
        trained.decode(iter([0.5]))


# ---- files


def test_chat_template_from_either_file(trained, tmp_path):
    config = {"chat_template": "{{ a }}", "eos_token": "<|endoftext|>"}
    vocabulary = Vocabulary.from_json(trained.tokenizer_json(), config)
    assert vocabulary.chat_template == "{{ a }}"
    assert trained.chat_template is None
    named = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    both = Vocabulary.from_json(trained.tokenizer_json(), {"chat_template": named})
    assert both.chat_template == "d"
    vocabulary.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ b }}")
    loaded = Vocabulary.load(tmp_path)
    assert loaded.chat_template == "{{ b }}"
    loaded.save(tmp_path / "again")
    assert (tmp_path / "again" / "chat_template.jinja").read_text() == "{{ b }}"
    loaded.tokenizer_config["chat_template"] = "changed"
    assert loaded.tokenizer_config["chat_template"] == "{{ a }}"


def test_roles_from_the_special_tokens_map(trained, tmp_path):
    (tmp_path / "tokenizer.json").write_text(trained.tokenizer_json())
    roles = {"eos_token": {"content": "<|endoftext|>"}, "pad_token": "!"}
    (tmp_path / "special_tokens_map.json").write_text(json.dumps(roles))
    vocabulary = Vocabulary.load(tmp_path)
    assert dict(vocabulary.special) == {"eos": 0, "pad": 1}
    assert vocabulary.special_ids == {0, 1}
    (tmp_path / "special_tokens_map.json").write_text('{"pad_token": "<pad>"}')
    with pytest.raises(CheckpointError, match=r"pad_token '<pad>'.*none of its tokens"):
        Vocabulary.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", "{", "tokenizer.json: damaged"),
        ("tokenizer.json", "[]", "tokenizer.json: damaged"),
        ("tokenizer.json", "{}", "no model"),
        ("tokenizer.json", b"\xff{}", "no UTF-8"),
        ("tokenizer.json", '{"model": {"type": "X", "vocab": {}}}', "'X' is not kno"),
        ("tokenizer_config.json", '{"a"', "tokenizer_config.json: damaged"),
        ("special_tokens_map.json", "1", "special_tokens_map.json: damaged"),
    ],
)
def test_damaged_files_are_named(trained, tmp_path, name, text, message):
    trained.save(tmp_path)
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CheckpointError, match=message) as caught:
        Vocabulary.load(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_contradictory_ids_are_refused(trained):
    spec = json.loads(trained.tokenizer_json())
    twice = copy.deepcopy(spec)
    twice["model"]["vocab"]["!"] = 5
    with pytest.raises(CheckpointError, match="same id"):
        Vocabulary.from_json(json.dumps(twice))
    spec["added_tokens"][0]["id"] = 7
    with pytest.raises(CheckpointError, match=r"<\|endoftext\|>' \(id 7, loads as 0"):
        Vocabulary.from_json(json.dumps(spec))


def test_missing_and_misused_paths(trained, tmp_path):
    with pytest.raises(MissingFileError, match="no tokenizer there"):
        Vocabulary.load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Vocabulary.load(tmp_path / "nowhere")
    trained.save(tmp_path)
    with pytest.raises(ArgumentError, match="pattern: got 'x'"):
        Vocabulary.load(tmp_path, pattern="x")
    with pytest.raises(ArgumentError, match="specials"):
        Vocabulary.load(tmp_path, specials={"<s>": 1})
    (tmp_path / "file").write_text("x")
    with pytest.raises(WriteError, match="file"):
        trained.save(tmp_path / "file")


def test_load_puts_back_a_folder_whose_swap_was_cut_short(trained, tmp_path):
    trained.save(tmp_path / ".out.backup")
    assert Vocabulary.load(tmp_path / "out") == trained


# ---- real ones


@pytest.mark.parametrize(
    ("name", "size"), [("checkpoints/target-7m", 4096), ("checkpoints/draft-3m", 3000)]
)
def test_real_checkpoints(name, size, tmp_path):
    vocabulary = Vocabulary.load(data(name))
    assert (vocabulary.size, vocabulary.kind) == (size, "byte_bpe")
    assert vocabulary.pretokenizer == "gpt2"
    assert vocabulary.round_trips
    assert dict(vocabulary.special) == {"bos": 0, "eos": 0, "pad": 0}
    assert len(vocabulary.merges) == size - 257
    assert all(
        left + right in set(vocabulary.token_bytes)
        for left, right in vocabulary.merges[:50]
    )
    text = "def fibonacci(n):\n    return n  # naïve 🙂"
    ids = vocabulary.encode(text)
    assert ids.tolist() == peer(vocabulary).encode(text).ids
    assert vocabulary.decode_bytes(ids) == text.encode()
    assert vocabulary.word_starts.sum() > size / 4
    vocabulary.save(tmp_path)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / file).read_bytes() == (data(name) / file).read_bytes()


def test_real_vocabularies_are_compared_by_bytes():
    target, draft = (
        Vocabulary.load(data(f"checkpoints/{n}")) for n in ("target-7m", "draft-3m")
    )
    assert target != draft
    assert set(target.token_bytes) & set(draft.token_bytes) >= {b" the", b"\xff"}
