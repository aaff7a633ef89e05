"""Texts to encode, and other libraries' encoders of the same files."""

import base64
import gzip
import importlib
import itertools
import json

import pytest

EDGES = [
    "",
    " ",
    "  leading and  two  spaces ",
    "\t\n\r\n x\n\n\ny",
    "a\u2581b",
    "🙂🙂 x\u2028y\u00a0z",
    "'\u017f I'LL don't WE'RE",
    "a" * 70,
    " " * 45 + "x",
    "\x00\x01é e\u0301",
    "!'s $100,000.00/day (e.g. ÀB)",
    "\uff11\uff12 4567 ½ ㎏ ﬁ",
    "https://a.b/c?d=e&f\n// done/\r\n/",
]


def package(name):
    """A package that only tests want; the test is skipped without it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        pytest.skip(f"{name} is not installed")


def corpus(data, step):
    """Lines of all texts, every `step`-th of each."""
    with gzip.open(data("text/udhr.jsonl.gz"), "rt") as file:
        texts = [json.loads(line)["text"] for line in file]
    with gzip.open(data("text/brown.txt.gz"), "rt") as file:
        texts.append(file.read())
    texts.append(data("text/tinyshakespeare.txt").read_text())
    lines = [*EDGES]
    for text in texts:
        size = len(text.splitlines())
        lines += text.splitlines(keepends=True)[:: min(step, max(size // 8, 1))]
    return lines


def tiktoken(path, regex, specials):
    """tiktoken's encoder of a file of ranks."""
    module = package("tiktoken")
    lines = [line.split() for line in path.read_bytes().splitlines() if line]
    ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
    encoding = module.Encoding(
        path.name, pat_str=regex, mergeable_ranks=ranks, special_tokens=dict(specials)
    )
    return encoding, lambda text: encoding.encode(text, allowed_special="all")


class Clip:
    """CLIP's tokenizer as its paper's code has it, without the mojibake repair."""

    def __init__(self, path):
        regex = package("regex")
        text = gzip.decompress(path.read_bytes()).decode()
        lines = text.split("\n")[1 : 49152 - 256 - 2 + 1]
        merges = [tuple(line.split()) for line in lines]
        visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
        hidden = [byte for byte in range(256) if byte not in visible]
        self.byte = {b: chr(b) for b in visible}
        self.byte.update({b: chr(256 + n) for n, b in enumerate(hidden)})
        letters = [self.byte[b] for b in [*visible, *hidden]]
        words = [*letters, *(letter + "</w>" for letter in letters)]
        words += ["".join(pair) for pair in merges]
        words += ["<|startoftext|>", "<|endoftext|>"]
        self.ids = {word: id_ for id_, word in enumerate(words)}
        self.ranks = {pair: rank for rank, pair in enumerate(merges)}
        self.split = regex.compile(
            r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
        )

    def __call__(self, text):
        import unicodedata

        clean = " ".join(unicodedata.normalize("NFC", text).split())
        # Letter by letter: a word's last sigma is no other letter here.
        clean = "".join(letter.lower() for letter in clean)
        ids = []
        for piece in self.split.findall(clean):
            ids += [self.ids[part] for part in self.merge(piece)]
        return ids

    def merge(self, piece):
        word = [self.byte[byte] for byte in piece.encode()]
        word[-1] += "</w>"
        while len(word) > 1:
            pairs = [
                (self.ranks.get(pair, 1 << 30), i)
                for i, pair in enumerate(itertools.pairwise(word))
            ]
            rank, at = min(pairs)
            if rank == 1 << 30:
                break
            word[at : at + 2] = ["".join(word[at : at + 2])]
        return word
