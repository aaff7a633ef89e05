"""Small vocabularies of every kind that `valid_next` follows, and the goldens'."""

import itertools
import json

import numpy as np

from jtok.testing import load_golden
from jtok.text import Vocabulary, _specs
from jtok.text import _tokenizer_json as tj

FOLDER = "byte_probabilities"


def strings(rows, lengths):
    return [bytes(row[:length]) for row, length in zip(rows, lengths, strict=True)]


def ids_of(row):
    return [int(id_) for id_ in row if id_ >= 0]


def _bpe(vocab, merges, **options):
    switches = {
        "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False,
    }  # fmt: skip
    model = {"type": "BPE", **switches, **options}
    return {**model, "vocab": vocab, "merges": merges}


def byte_vocabulary(tokens, merges, kind="none", end=None, ignore_merges=False):
    """A byte-level BPE; `merges` are pairs of ids, `end` a special token behind all."""
    printed = [_specs.byte_text(token) for token in tokens]
    model = _bpe(
        {text: id_ for id_, text in enumerate(printed)},
        [[printed[left], printed[right]] for left, right in merges],
        ignore_merges=ignore_merges,
    )
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    level["use_regex"] = False
    split = level if kind == "none" else _specs.split_by(tj.PATTERNS[kind])
    spec = _specs.specification(model, pre_tokenizer=split, decoder=level)
    if end is None:
        return Vocabulary.from_json(json.dumps(spec))
    _specs.add_specials(spec, {end: len(tokens)})
    roles = {"eos_token": end, "bos_token": end}
    return Vocabulary.from_json(json.dumps(spec), roles)


def small_bytes(kind, texts, size, *, whole=()):
    """A vocabulary of 256 bytes and the commonest merges of texts, pretokens unsplit.

    `whole` are tokens behind the others that merging never makes.
    """
    tokens = [bytes([byte]) for byte in range(256)]
    ids = {token: id_ for id_, token in enumerate(tokens)}
    rows = [list(text.encode()) for text in texts]
    merges = []
    while len(tokens) < size:
        counts = {}
        for row in rows:
            for pair in itertools.pairwise(row):
                counts[pair] = counts.get(pair, 0) + 1
        best = max(counts, key=lambda pair: (counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        joined = tokens[best[0]] + tokens[best[1]]
        if joined in ids:
            break
        ids[joined] = len(tokens)
        tokens.append(joined)
        merges.append(best)
        rows = [_merged(row, best, ids[joined]) for row in rows]
    tokens += [token for token in whole if token not in ids]
    return byte_vocabulary(tokens, merges, kind, "<|end|>", bool(whole))


def _merged(row, pair, new):
    out, at = [], 0
    while at < len(row):
        if tuple(row[at : at + 2]) == pair:
            out.append(new)
            at += 2
        else:
            out.append(row[at])
            at += 1
    return out


def piece_vocabulary(pieces, scores, *, prefix, names, kinds=None):
    """A SentencePiece BPE with byte fallback, read as `tokenizer.json`.

    `pieces` are texts by id, `names` the texts of special ids.
    """
    ids = {text: id_ for id_, text in enumerate(pieces)}
    normal = [
        id_ for id_, text in enumerate(pieces)
        if id_ not in names and not tj.is_byte_token(text)
    ]  # fmt: skip
    known = {pieces[id_] for id_ in normal}
    merges = [
        [pieces[id_][:cut], pieces[id_][cut:]]
        for id_ in sorted(normal, key=lambda id_: -scores[id_])
        for cut in range(1, len(pieces[id_]))
        if {pieces[id_][:cut], pieces[id_][cut:]} <= known
    ]
    steps = [{"type": "Prepend", "prepend": tj.METASPACE}] if prefix else []
    space = {"String": " "}
    steps.append({"type": "Replace", "pattern": space, "content": tj.METASPACE})
    back = {"type": "Replace", "pattern": {"String": tj.METASPACE}, "content": " "}
    spec = _specs.specification(
        _bpe(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True),
        normalizer={"type": "Sequence", "normalizers": steps},
        decoder={
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}],
        },
    )
    spec["added_tokens"] = [
        _specs.added(text, id_, control=True) for id_, text in sorted(names.items())
    ]
    roles = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Vocabulary.from_json(json.dumps(spec), roles)


def small_pieces(words, *, prefix):
    names = {0: "<unk>", 1: "<s>", 2: "</s>"}
    pieces = [*names.values(), *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    return piece_vocabulary(
        pieces, np.arange(len(pieces), 0, -1), prefix=prefix, names=names
    )


def golden_bytes(name, kind, end=None):
    file = load_golden(f"{FOLDER}/{name}.npz")
    tokens = strings(file["token_bytes"], file["token_len"])
    merges = [(int(left), int(right)) for left, right, _ in file["merges"]]
    for left, right, made in file["merges"].tolist():
        assert tokens[left] + tokens[right] == tokens[made]
    return file, byte_vocabulary(tokens, merges, kind, end)


def golden_pieces(name):
    file = load_golden(f"{FOLDER}/{name}.npz")
    bos, eos, unknown = file["bos_eos_unk"].tolist()
    names = {bos: "<s>", eos: "</s>", unknown: "<unk>"}
    pieces = [
        names.get(id_) or (f"<0x{token[0]:02X}>" if kind == 3 else token.decode())
        for id_, (token, kind) in enumerate(
            zip(strings(file["token_bytes"], file["token_len"]), file["token_type"],
                strict=True)
        )
    ]  # fmt: skip
    prefix = bool(file["add_dummy_prefix"])
    scores = file["token_score"]
    return file, piece_vocabulary(pieces, scores, prefix=prefix, names=names)


def toy_lm(file):
    """The analytic model of the goldens: ids -> logits of the next token."""
    one, two, place, out, bias = (
        file[f"lm_{name}"].astype(np.float64) for name in ("U1", "U2", "P", "W", "b")
    )

    def logits(ids):
        state = one[ids[-1]] + place[len(ids) % 5]
        if len(ids) > 1:
            state = state + 0.7 * two[ids[-2]]
        return state @ out.T + bias

    return logits


def random_lm(size, seed=0):
    """The same model with drawn numbers, for any vocabulary."""
    draw = np.random.default_rng(seed).normal
    names = {
        "U1": (size, 6),
        "U2": (size, 6),
        "P": (5, 6),
        "W": (size, 6),
        "b": (size,),
    }
    return toy_lm({f"lm_{name}": draw(size=shape) for name, shape in names.items()})
