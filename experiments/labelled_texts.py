"""Texts with classes: those beside the project, and public sets from the hub."""

import csv
import gzip
import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.cache import cached
from experiments.web_text import hub_lines
from jtok import testing
from jtok.classify import WordList, load_vectors
from jtok.errors import check

__all__ = ["Labelled", "Split", "glove", "labelled_texts", "split_texts"]

_LOCAL = {
    "ag_news": "tasks/ag_news.csv.gz",
    "movie_reviews": "tasks/movie_reviews.jsonl.gz",
}
_HUB = {
    "ag_news_hub": "SetFit/ag_news",
    "imdb": "SetFit/imdb",
    "yelp": "SetFit/yelp_review_full",
    "20_newsgroups": "SetFit/20_newsgroups",
}


class Labelled(NamedTuple):
    """Texts, their classes from 0 on, and how many from the front are for training.

    `train` is 0 where the set has no division of its own.
    """

    name: str
    texts: list[str]
    labels: np.ndarray
    train: int
    sha256: str

    @property
    def classes(self) -> int:
        """Classes in all."""
        return int(self.labels.max()) + 1


class Split(NamedTuple):
    """Rows of ids for training and for testing, with their words."""

    words: WordList
    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray]
    test_texts: list[str]


def labelled_texts(name: str, report: Any) -> Labelled:
    """Reads a set.

    Args:
      name: "ag_news" or "movie_reviews" (beside the project), or "ag_news_hub", "imdb",
        "yelp" or "20_newsgroups" (whole, from the hub).
      report: told what was read.

    Returns:
      `Labelled`.
    """
    known = (*_LOCAL, *_HUB)
    check(name in known, "name", name, f"one of {known}")
    train = 0
    if name in _HUB:
        parts = [list(hub_lines(_HUB[name], f"{p}.jsonl")) for p in ("train", "test")]
        records = [(int(r["label"]), r["text"]) for part in parts for r in part]
        train = len(parts[0])
    else:
        with gzip.open(testing.data(_LOCAL[name]), "rt", encoding="utf-8") as file:
            if name == "ag_news":
                rows = csv.reader(file)
                records = [(int(row[0]) - 1, f"{row[1]} {row[2]}") for row in rows]
            else:
                lines = map(json.loads, file)
                records = [(int(line["label"]), line["text"]) for line in lines]
    content = "\n".join(f"{label} {text}" for label, text in records).encode()
    digest = hashlib.sha256(content).hexdigest()
    report.data(_LOCAL.get(name) or _HUB[name], sha256=digest)
    labels = np.array([label for label, _ in records], np.int32)
    return Labelled(name, [text for _, text in records], labels, train, digest)


def split_texts(
    data: Labelled, seed: int, *, train: int, test: int, length: int, most_words: int
) -> Split:
    """Texts for training and testing, drawn by a seed where the set is not divided.

    Args:
      data: the set.
      seed: of the draw.
      train: texts to train on.
      test: texts to test on.
      length: words of a row.
      most_words: the most frequent words of the training texts, seen twice or more.

    Returns:
      `Split`.
    """
    count = len(data.texts)
    check(train + test <= count, "train", train + test, f"at most {count} texts")
    order = np.random.default_rng(seed).permutation(count)
    if data.train:
        parts = order[order < data.train][:train], order[order >= data.train][:test]
    else:
        parts = order[:train], order[train : train + test]
    texts = [[data.texts[i] for i in part] for part in parts]
    words = WordList.build(texts[0], min_count=2, most=most_words)
    rows = []
    for part, some in zip(parts, texts):
        ids, _ = words.encode(some, length=length)
        rows.append({"ids": ids, "labels": data.labels[part]})
    return Split(words, rows[0], rows[1], texts[1])


def glove(words: WordList, width: int) -> np.ndarray:
    """GloVe's vectors (6B) for words, downloaded once.

    Args:
      words: whose.
      width: 50, 100, 200 or 300.

    Returns:
      `[size, width]` float32.
    """

    def build(folder: Path) -> None:
        import zipfile

        from huggingface_hub import hf_hub_download

        with zipfile.ZipFile(hf_hub_download("stanfordnlp/glove", "glove.6B.zip")) as z:
            z.extract(f"glove.6B.{width}d.txt", folder)

    place = cached("glove", {"set": "6B", "width": width}, build)
    return load_vectors(place / f"glove.6B.{width}d.txt", words)[0]
