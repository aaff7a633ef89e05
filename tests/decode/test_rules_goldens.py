"""Rejection, typical acceptance and dynamic trees against the official code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.decode import (
    Proposal,
    Sampling,
    Tokens,
    dynamic,
    grow_tree,
    typical,
    walk_drafts,
)
from jtok.ops import Readout, Tree, row_keys
from jtok.testing import assert_close, candidate_law, chain_law, try_candidates

walk = jax.jit(walk_drafts, static_argnames=("replacement", "at_most"))
FOLDER = "speculative_verification"


def softmax(logits):
    exps = np.exp(logits - logits.max(-1, keepdims=True))
    return exps / exps.sum(-1, keepdims=True)


def with_root(array):
    """Rows for nodes 1, 2, ...; the root's is never read."""
    return np.concatenate([np.zeros_like(array[:, :1]), array], axis=1)


def proposal_of(tokens, tree, valid=None):
    valid = np.ones(tokens.shape, bool) if valid is None else valid
    return Proposal(jnp.asarray(tokens), jnp.asarray(valid), tree=tree)


# Exact enumeration, float64 ------------------------


def test_candidates_have_the_law_of_the_target(golden):
    file = golden(f"{FOLDER}/exact.npz")
    for case, (p, q) in enumerate(zip(file["p"], file["q"], strict=True)):
        for drafts in (1, 2, 3):
            for column, how in enumerate(("without", "with", "top")):
                law = candidate_law(p, q, drafts, how)
                assert np.abs(law.output - p).max() < 1e-12
                expected = file["accept_prob"][case, drafts - 1, column]
                assert abs(law.accepted - expected) < 1e-10


def test_an_argmax_draft_under_the_wrong_rule_has_another_law(golden):
    file = golden(f"{FOLDER}/exact.npz")
    p, q = file["p"], file["q"]
    for case in range(len(p)):
        best = int(q[case].argmax())
        refused, left = try_candidates(p[case], q[case], [best], [np.nextafter(1, 0)])
        kept = min(1, p[case, best] / q[case, best])
        law = kept * np.eye(p.shape[1])[best]
        law = law + (0 if refused == 0 else (1 - kept) * left)
        assert_close(law, file["greedy_draft_wrong_rule_output"][case], atol=1e-10)
        assert_close(np.abs(law - p[case]).sum() / 2, file["tv_error"][case])
    assert file["tv_error"].min() > 0.1


def test_a_chain_has_the_joint_law_of_the_target(golden):
    file = golden(f"{FOLDER}/exact.npz")
    p0, p1 = file["chain_p0"], file["chain_P1"]
    law = chain_law(p0, p1, file["chain_q0"], file["chain_Q1"])
    assert np.abs(law.joint - p0[:, None] * p1).max() < 1e-12
    assert_close(law.joint, file["chain_joint"], atol=1e-10)
    assert_close(law.emitted, file["chain_emitted_dist"], atol=1e-10)


# Chains and siblings, with the official code's uniforms ------------------------


@pytest.mark.parametrize("at_most", [False, True])
def test_chain_rejection(golden, at_most):
    file = golden(f"{FOLDER}/chain_rejection.npz")
    p, q = softmax(file["p_logits"]), softmax(file["q_logits"])
    cand, u = file["cand"], file["u"]
    got = walk(
        jnp.asarray(p), jnp.asarray(with_root(q)), jnp.asarray(with_root(u)),
        proposal_of(with_root(cand), Tree.chain(cand.shape[1])), at_most=at_most,
    )  # fmt: skip
    np.testing.assert_array_equal(got.node, file["n_accept"])
    assert_close(got.law, file["next_dist"], atol=1e-5)
    assert set(file["n_accept"].tolist()) == {0, 1, 2, 3, 4}
    for case in range(len(cand)):
        depth = 0
        while depth < 4:
            index, law = try_candidates(
                p[case, depth], q[case, depth], cand[case, [depth]], u[case, [depth]]
            )
            if index < 0:
                break
            depth += 1
        law = p[case, 4] if depth == 4 else law
        assert depth == file["n_accept"][case]
        assert_close(law, file["next_dist"][case], atol=1e-5)


@pytest.mark.parametrize("how", ["with", "without"])
def test_several_candidates(golden, how):
    file = golden(f"{FOLDER}/multi_candidate.npz")
    read = lambda name: file[f"{how}_{name}"]
    p, q, cand, u = read("p"), read("q"), read("cand"), read("u")
    accepted, residual = read("accepted"), read("residual")
    nodes = cand.shape[1] + 1
    laws, drawn = (np.repeat(x[:, None], nodes, axis=1) for x in (p, q))
    tree, replacement = Tree.star(nodes - 1), how == "with"

    def run(valid):
        return walk(
            jnp.asarray(laws), jnp.asarray(drawn), jnp.asarray(with_root(u)),
            proposal_of(with_root(cand), tree, valid), replacement=replacement,
        )  # fmt: skip

    everything = np.ones((len(cand), nodes), bool)
    np.testing.assert_array_equal(run(everything).node - 1, accepted)
    assert len(set(accepted.tolist())) >= 4
    # Without the accepted candidate and those after it: what they were tried with.
    tried = np.where(accepted < 0, nodes - 1, accepted)[:, None]
    before = np.arange(nodes)[None] <= tried
    got = run(before)
    assert not np.asarray(got.node).any()
    assert_close(got.law, residual, atol=1e-5)
    for case in range(len(cand)):
        index, left = try_candidates(
            p[case], q[case], cand[case], u[case], replacement=replacement
        )
        assert index == accepted[case]
        assert_close(left, residual[case], atol=1e-5)


# EAGLE-2's trees with point masses ------------------------


def parents(mask):
    """The last ancestor before a node, from ancestor masks `[..., nodes, nodes]`."""
    nodes = mask.shape[-1]
    strict = (mask > 0) & ~np.eye(nodes, dtype=bool)
    last = nodes - 1 - np.argmax(strict[..., ::-1], axis=-1)
    return np.where(strict.any(-1), last, -1).astype(np.int32)


def visits(parent, tokens, laws, u):
    """The tree walked in plain Python: path, law at the end, node of each uniform."""
    at, law, path, spent = 0, laws[0].astype(np.float64), [0], []
    while True:
        children = [n for n in range(len(parent)) if parent[n] == at]
        uniforms = u[len(spent) : len(spent) + len(children)]
        index, law = try_candidates(law, None, tokens[children], uniforms)
        spent += children[: len(children) if index < 0 else index + 1]
        if index < 0:
            return path, law, spent
        at = children[index]
        path.append(at)
        law = laws[at].astype(np.float64)


@pytest.mark.parametrize("at_most", [False, True])
def test_point_masses_in_a_tree(golden, at_most):
    trees, file = (
        golden(f"{FOLDER}/eagle2_tree.npz"),
        golden(f"{FOLDER}/eagle2_verify.npz"),
    )
    which, u = file["case"], file["u"]
    tokens, depth = trees["tokens"][which], trees["depth"][which]
    parent = parents(trees["mask"])[which]
    laws = softmax(file["target_logits"])
    uniforms = np.zeros(tokens.shape, np.float32)
    for case in range(len(which)):
        path, law, spent = visits(parent[case], tokens[case], laws[case], u[case])
        assert len(spent) == file["n_uniform_used"][case]
        uniforms[case, spent] = u[case, : len(spent)]
        nodes = file["path_nodes"][case]
        assert path == nodes[nodes >= 0].tolist()
        assert len(path) - 1 == file["n_accept"][case]
        assert_close(law, file["final_dist"][case], atol=1e-5)
    proposal = Proposal(
        jnp.asarray(tokens), jnp.ones(tokens.shape, bool), parent=jnp.asarray(parent),
        depth=jnp.asarray(depth), max_depth=int(depth.max()),
    )  # fmt: skip
    got = walk(
        jnp.asarray(laws), None, jnp.asarray(uniforms), proposal, at_most=at_most
    )
    ends = np.take_along_axis(file["path_nodes"], file["n_accept"][:, None], axis=1)
    np.testing.assert_array_equal(got.node, ends[:, 0])
    assert_close(got.law, file["final_dist"], atol=1e-5)


# Typical acceptance ------------------------


@pytest.mark.parametrize("compat", [None, "official"])
def test_typical_acceptance_of_medusa(golden, compat):
    file = golden(f"{FOLDER}/greedy_typical.npz")
    file.ignore("greedy_*", reason="read by tests/decode/test_goldens.py")
    tree = Tree.from_paths([path[path >= 0].tolist() for path in file["paths"]])
    tokens, logits = file["tree_tokens"], file["tree_logits"]
    retrieve = file["retrieve"]
    settings = zip(file["typical_posterior_threshold"], file["typical_posterior_alpha"])
    settings = np.array(list(settings), np.float64).round(6)
    for eps, alpha in {tuple(pair) for pair in settings.tolist()}:
        cases = np.flatnonzero((settings == (eps, alpha)).all(axis=1))
        rows = jnp.asarray(logits[cases])
        read = Readout(jnp.argmax(rows, -1).astype(jnp.int32), rows=rows)
        how = Sampling(
            row_keys(jnp.arange(len(cases))),
            jnp.asarray(file["typical_temperature"][cases]),
        )
        context = Tokens(
            jnp.zeros((len(cases), 4), jnp.int32), jnp.full(len(cases), 2), how
        )
        rule = typical(eps, alpha, compat=compat)
        got = jax.jit(rule.accept)(proposal_of(tokens[cases], tree), read, context)
        for row, case in enumerate(cases):
            length, best = file["typical_accept_len"][case], file["typical_best"][case]
            assert got.drafts[row] == length
            path = np.asarray(got.path[row])
            kept = file["candidates"][case, best, : length + 1]
            np.testing.assert_array_equal(tokens[case, path[: length + 1]], kept)
            np.testing.assert_array_equal(got.emitted[row, :length], kept[1:])
            assert (path[length + 1 :] == -1).all()
            end = retrieve[best, length]
            assert got.emitted[row, length] == logits[case, end].argmax()


# EAGLE-2's growth ------------------------


def test_growth_of_eagle2(golden):
    file = golden(f"{FOLDER}/eagle2_tree.npz")
    beam, expansions, num_nodes = map(int, file["params"])
    table = jax.nn.log_softmax(jnp.asarray(file["table"]), axis=-1)
    cases = jnp.arange(len(table))[:, None]

    def look(level, tokens, parent):
        at = jax.lax.dynamic_slice_in_dim(tokens, level * beam, beam, 1)
        gains, ids = jax.lax.top_k(table[cases, at], beam)
        return ids, gains

    grow = jax.jit(
        lambda root: grow_tree(look, root, dynamic(beam, expansions, num_nodes))
    )
    got = grow(jnp.asarray(file["root"]))
    np.testing.assert_array_equal(got.tokens, file["tokens"])
    np.testing.assert_array_equal(got.depth, file["depth"])
    np.testing.assert_array_equal(got.parent, parents(file["mask"]))
    _, _, ancestors = got.shape()
    np.testing.assert_array_equal(ancestors, file["mask"] > 0)
    assert got.valid.all() and got.deepest == expansions + 1
    for case in range(len(table)):
        rows = leaf_paths(np.asarray(got.parent[case]))
        official = [row[row >= 0].tolist() for row in file["retrieve"][case]]
        assert sorted(rows) == sorted(row for row in official if row)
        # The order in which siblings are verified: that of their nodes.
        ordered = [row[row >= 0].tolist() for row in file["retrieve_sorted"][case]]
        padded = lambda row: [*row, *[99] * (len(file["depth"][0]) - len(row))]
        assert sorted(rows, key=padded) == [row for row in ordered if row]


def leaf_paths(parent):
    """Node ids from the root to every leaf."""
    paths = {0: [0]}
    for node in range(1, len(parent)):
        paths[node] = [*paths[parent[node]], node]
    inner = set(parent.tolist())
    return [path for node, path in paths.items() if node not in inner]
