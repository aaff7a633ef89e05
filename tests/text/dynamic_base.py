"""The golden's base tokenizer, and small vocabularies of the other kinds."""

import functools
import json

from jtok.testing import load_golden
from jtok.text import Vocabulary, bytes_of_spelled
from jtok.text._specs import byte_text

FILE = "dynamic_tokenization/dynamic_bpe.npz"


def added(vocab, names):
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [{"id": vocab[t], "content": t, **flags, "special": True} for t in names]


def specification(model, **steps):
    empty = ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor")
    return {
        "version": "1.0", "added_tokens": [], "decoder": None,
        **dict.fromkeys(empty), **steps, "model": model,
    }  # fmt: skip


@functools.lru_cache
def golden_base():
    """The vocabulary of the golden file, with its prefix space."""
    file = load_golden(FILE)
    vocab = {token: id_ for id_, token in enumerate(file["base_vocab"].tolist())}
    level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    level["add_prefix_space"] = True
    model = {"type": "BPE", "vocab": vocab, "merges": file["base_merges"].tolist()}
    spec = specification(model, pre_tokenizer=level, decoder=level)
    spec["added_tokens"] = added(vocab, file["special_tokens"].tolist())
    return Vocabulary.from_json(json.dumps(spec))


def golden_ids(token):
    """Id, or bytes where the base has no such token."""
    vocabulary = golden_base()
    if token in load_golden(FILE)["special_tokens"].tolist():
        return vocabulary.id_of(token)
    return bytes_of_spelled(token)


def golden_sequences():
    """The static tokenization, as ids."""
    vocabulary = golden_base()
    file = load_golden(FILE)
    rows = zip(file["pretokens_m0"].tolist(), file["pretokens_m0_len"], strict=True)
    found = [[golden_ids(token) for token in row[:size]] for row, size in rows]
    as_id = lambda t: t if isinstance(t, int) else vocabulary.id_of(t)
    return [[as_id(token) for token in row] for row in found]


def spelled(batch):
    """The tokens of a merged batch in the golden's spelling."""
    vocabulary = golden_base()
    new = lambda id_: byte_text(batch.merged[id_ - batch.size])
    name = lambda id_: vocabulary.surface_of(id_) if id_ < batch.size else new(id_)
    return [[name(int(id_)) for id_ in row] for row in batch.ids]


def unigram():
    """Words with U+2581, no bytes."""
    table = [["<unk>", 0.0], ["\u2581", -3.0], ["\u2581the", -1.0], ["t", -4.0],
             ["h", -4.0], ["e", -4.0], ["\u2581ca", -2.0], ["at", -2.0],
             ["é", -3.0]]  # fmt: skip
    meta = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "always",
            "split": True}  # fmt: skip
    model = {"type": "Unigram", "unk_id": 0, "vocab": table, "byte_fallback": False}
    return Vocabulary.from_json(
        json.dumps(specification(model, pre_tokenizer=meta, decoder=meta))
    )


def wordpiece():
    """A few pieces, with and without `##`."""
    names = ["[UNK]", "[CLS]", "the", "##m", "##e", "hat", "##s", ",", "t", "##h", "a"]
    vocab = {name: id_ for id_, name in enumerate(names)}
    model = {
        "type": "WordPiece", "unk_token": "[UNK]", "vocab": vocab,
        "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
    }  # fmt: skip
    spec = specification(model, pre_tokenizer={"type": "BertPreTokenizer"})
    spec["added_tokens"] = added(vocab, ["[UNK]", "[CLS]"])
    return Vocabulary.from_json(json.dumps(spec))
