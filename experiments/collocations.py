"""What the n-gram lexicon finds: planted collocations, and those of half of Brown."""

import gzip
import re
from typing import Any

import numpy as np

from experiments.intervals import student_interval
from jtok import testing, text

__all__ = ["planted_text", "report_brown", "report_planted", "words_of"]


def words_of(passage: str) -> list[str]:
    """Lower-case words, numbers and marks of a text.

    Args:
      passage: the text.
    """
    return re.findall(r"\w+|[^\w\s]", passage.lower())


def planted_text(size: int, seed: int) -> tuple[list[np.ndarray], set, set]:
    """Documents of random ids with 20 pairs and 10 triples strewn in.

    Args:
      size: tokens in all, about.
      seed: of the text.

    Returns:
      The documents, the pairs (those within triples, too) and the triples.
    """
    rng = np.random.default_rng(seed)
    share = 1.0 / np.arange(1, 201)
    share /= share.sum()
    spots = rng.permutation(np.arange(40, 180)).tolist()
    pairs = [tuple(spots[2 * i : 2 * i + 2]) for i in range(20)]
    triples = [tuple(spots[40 + 3 * i : 43 + 3 * i]) for i in range(10)]
    docs = []
    for _ in range(max(size // 200, 1)):
        single = [(token,) for token in rng.choice(200, size=160, p=share).tolist()]
        strewn = [pairs[i] for i in rng.integers(20, size=10)]
        strewn += [triples[i] for i in rng.integers(10, size=6)]
        parts = [*single, *strewn]
        order = rng.permutation(len(parts)).tolist()
        docs.append(np.array([token for at in order for token in parts[at]]))
    inner = {gram[i : i + 2] for gram in triples for i in range(2)}
    return docs, set(pairs) | inner, set(triples)


def report_planted(config: Any, report: Any) -> None:
    rows = []
    for seed in range(5):
        docs, pairs, triples = planted_text(config.planted, seed)
        if seed == 0:
            report.data("planted", np.concatenate(docs).tobytes(), kind="synthetic")
        counts = text.count_grams(docs, vocab_size=200)
        row: dict[str, Any] = {"seed": seed}
        for name, subsume in (("", False), (", subsumed ones left out", True)):
            made = text.build_lexicon(
                counts, (len(pairs), len(triples)), subsume=subsume
            )
            grams = [made.gram(200 + i) for i in range(len(made))]
            for length, truth in ((2, pairs), (3, triples)):
                hits = [gram in truth for gram in grams if len(gram) == length]
                row[f"{length}-grams{name}"] = float(np.mean(hits))
        rows.append(row)
    report.table("Precision of the lexicon on planted collocations", rows)
    for id_, name, reason in (
        ("planted_bigrams", "2-grams", "chance pairs of rare tokens score as high"),
        (
            "planted_trigrams", "3-grams",
            "a planted pair beside the commonest token scores above a rare triple",
        ),
    ):  # fmt: skip
        values = [row[name] for row in rows]
        mean = round(float(np.mean(values)), 4)
        report.claim(
            id_, f"share of the best {name} that were planted, as many as were",
            paper="none: a check of the t-statistic", measured=mean, unit="share",
            op=">=", bound=0.95, ci95=student_interval(values), n=len(values),
            reason=reason,
        )  # fmt: skip


def report_brown(config: Any, report: Any) -> None:
    """What the lexicon of one half of Brown is worth in the other half."""
    path = testing.data("text/brown.txt.gz")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [words_of(line) for line in file.read(config.brown).splitlines()]
    report.data("text/brown.txt.gz", path)
    names = {w: i for i, w in enumerate(dict.fromkeys(w for x in lines for w in x))}
    docs = [np.array([names[w] for w in line], np.int64) for line in lines]
    halves = [text.count_grams(docs[i::2], vocab_size=len(names)) for i in (0, 1)]
    spell = list(names)
    shares, examples = [], []
    for here, there in (halves, halves[::-1]):
        made = text.build_lexicon(here, (1000, 500), min_count=3)
        for length in (2, 3):
            scores = dict(
                zip(map(tuple, there.grams(length).tolist()),
                    text.gram_scores(there, length).tolist())
            )  # fmt: skip
            grams = [made.gram(len(names) + i) for i in range(len(made))]
            ours = [gram for gram in grams if len(gram) == length]
            shares += [float(scores.get(gram, 0.0) > 1.645) for gram in ours]
            examples += [(length, gram, scores.get(gram, 0.0)) for gram in ours[:8]]
    rows = [
        {"n-gram": " ".join(spell[i] for i in gram), "t in the other half": round(t, 1)}
        for _, gram, t in examples[: len(examples) // 2]
    ]
    report.table("Best n-grams of one half of Brown", rows)
    report.claim(
        "brown_halves",
        "n-grams of one half's lexicon with t > 1.645 in the other half",
        paper="none: the lexicon was never released",
        measured=round(float(np.mean(shares)), 4), unit="share", op=">=", bound=0.9,
        n=len(shares), reason="Brown is small: many n-grams belong to one document",
    )  # fmt: skip
