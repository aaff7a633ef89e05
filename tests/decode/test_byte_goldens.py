"""Byte probabilities against the official code and against brute force."""

import numpy as np
import pytest

from jtok.decode import (
    byte_ensemble,
    byte_level,
    nucleus,
    scale_temperature,
    token_prompt,
)
from jtok.decode._byte_covers import search
from jtok.testing import assert_close, load_golden
from tests.text.byte_vocabularies import (
    FOLDER,
    byte_vocabulary,
    golden_bytes,
    golden_pieces,
    ids_of,
    strings,
    toy_lm,
)


def probs(logs):
    return np.exp(logs.astype(np.float64))


def by_cover(covers, skip):
    """Covers as a mapping, without the ids before the text."""
    return {(cover.ids[skip:], cover.remainder): cover.log_weight for cover in covers}


def assert_covers(file, rows, got, weights, skip):
    ids, owner = file["cover_ids"], file["cover_x"]
    rest = strings(file["cover_rem"], file["cover_rem_len"])
    for row in rows:
        own = np.flatnonzero(owner == row)
        want = {(tuple(ids_of(ids[i])), rest[i]): weights[i] for i in own}
        found = by_cover(got[row], skip)
        assert found.keys() == want.keys()
        for key, weight in want.items():
            assert found[key] == pytest.approx(weight, rel=1e-4, abs=1e-4)


def test_bytes_without_a_pattern():
    file, vocabulary = golden_bytes("bpe_raw", "none", "<|end|>")
    texts, lm = strings(file["x"], file["x_len"]), toy_lm(file)
    by_byte = byte_level(lm, vocabulary)
    state = by_byte.start(texts, absolute=True)
    assert_close(probs(by_byte.distribution(state)), file["p_next_renorm"], atol=1e-6)
    assert_close(by_byte.logprob(texts), file["logp_prefix"], atol=1e-6)
    masked = byte_level(lm, vocabulary, masking="mask")
    got = probs(masked.next_byte_logprobs(texts))
    assert_close(got, file["p_next_masked"], atol=1e-6)
    naive = probs(token_prompt(lm, vocabulary).next_byte_logprobs(texts))
    assert_close(naive, file["p_next_naive"], atol=1e-6)
    weights = file["cover_logp"]
    covers = by_byte.covers(state)
    assert_covers(file, range(len(texts)), covers, weights, skip=1)
    grammar = by_byte.tables.grammar
    for text, count in zip(texts, file["left_contexts"], strict=True):
        found = search(by_byte.tables, (300,), grammar.start, text)
        lefts = {node.ids for node, *_ in found.lefts}
        lefts |= {(node.parent or node).ids for node in found.ends}
        assert len(lefts) == count


@pytest.mark.parametrize("name", ["spm_A", "spm_B"])
def test_pieces_from_scratch(name):
    file, vocabulary = golden_pieces(name)
    texts = strings(file["x"], file["x_len"])
    options = {"alphabet": "sentencepiece", "compat": "official"}
    by_byte = byte_level(toy_lm(file), vocabulary, **options)
    state = by_byte.start(texts, absolute=True)
    assert_close(
        probs(by_byte.symbol_logprobs(state)), file["p_next_renorm"], atol=1e-6
    )
    logs = [row.log_mass() for row in state.rows]
    assert_close(np.asarray(logs), file["logp_prefix_renorm"], rtol=1e-6, atol=1e-6)
    weights = file["cover_logp_renorm"]
    assert_covers(file, range(len(texts)), by_byte.covers(state), weights, skip=1)


@pytest.mark.parametrize("name", ["spm_A", "spm_B"])
@pytest.mark.parametrize(
    "masking, array, atol",
    [("renorm", "p_next_renorm", 1e-6), ("mask", "p_next_exact", 5e-6),
     ("fast", "p_next_fast", 5e-6)],
)  # fmt: skip
def test_pieces_byte_by_byte(name, masking, array, atol):
    file, vocabulary = golden_pieces(name)
    texts, case = strings(file["x"], file["x_len"]), file["case"]
    by_byte = byte_level(
        toy_lm(file), vocabulary, masking=masking, alphabet="sentencepiece"
    )
    for number in np.unique(case):
        rows = np.flatnonzero(case == number)
        state = by_byte.start(texts[rows[0]])
        for before, row in zip([rows[0], *rows], rows, strict=False):
            for byte in texts[row][len(texts[before]) :]:
                state = by_byte.push(state, byte)
            got = probs(by_byte.symbol_logprobs(state)[0])
            assert_close(got, file[array][row], atol=atol, name=f"row {row}")


def test_ensemble_of_both():
    file = load_golden(f"{FOLDER}/ensemble.npz")
    members = []
    for name in ("spm_A", "spm_B"):
        own, vocabulary = golden_pieces(name)
        members.append(
            byte_level(
                toy_lm(own), vocabulary, masking="mask", alphabet="sentencepiece"
            )
        )
    both = byte_ensemble(members)
    texts, case = strings(file["x"], file["x_len"]), file["case"]
    for number in np.unique(case):
        rows = np.flatnonzero(case == number)
        state = both.start(texts[rows[0]])
        for before, row in zip([rows[0], *rows], rows, strict=False):
            for byte in texts[row][len(texts[before]) :]:
                state = both.push(state, byte)
            got = probs(both.symbol_logprobs(state)[0])
            assert_close(got, file["p_next_mean"][row], atol=5e-6, name=f"row {row}")


def test_temperature_and_nucleus():
    file = load_golden(f"{FOLDER}/sampling.npz")
    for i, row in enumerate(file["p"].astype(np.float64)):
        for k, temperature in enumerate(file["temps"].tolist()):
            got = scale_temperature(row, temperature)
            assert_close(got, file["p_temp"][i, k], atol=1e-6)
        for k, top_p in enumerate(file["top_p"].tolist()):
            assert_close(nucleus(row, top_p), file["p_top"][i, k], atol=1e-6)


def test_markov_in_closed_form():
    file = load_golden(f"{FOLDER}/markov.npz")
    tokens = [bytes([byte]) for byte in range(256)] + [b"AA"]
    vocabulary = byte_vocabulary(tokens, [(65, 65)], "none", "<|end|>")
    texts = strings(file["x"], file["x_len"])
    for params, want in zip(file["params"], file["out"], strict=True):
        lm = markov_lm(*params)
        exact, naive = byte_level(lm, vocabulary), token_prompt(lm, vocabulary)
        logs = exact.logprob(texts)
        for text, log, row in zip(texts, logs, want, strict=True):
            state = exact.start(text)
            weights = state.rows[0].symbols(exact.tables)
            assert weights[65] / weights.sum() == pytest.approx(row[0], abs=1e-12)
            state = naive.start(text)
            weights = state.rows[0].symbols(naive.tables)
            assert weights[65] / weights.sum() == pytest.approx(row[1], abs=1e-12)
            assert np.exp(log) == pytest.approx(row[2], rel=1e-11)


def markov_lm(after_a, after_b, at_start):
    """The token model of a first-order chain over A and B with the token AA."""

    def logits(ids):
        out = np.full(258, -np.inf)
        if ids[-1] == 65:  # after a single A there is no second one
            out[66] = 0.0
            return out
        q = {256: after_a, 66: after_b}.get(int(ids[-1]), at_start)
        with np.errstate(divide="ignore"):
            out[[256, 65, 66]] = np.log([q * after_a, q * (1 - after_a), 1 - q])
        return out

    return logits
