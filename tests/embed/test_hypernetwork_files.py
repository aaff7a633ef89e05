"""Folders of networks: our own, and the released format."""

import json

import jax
import numpy as np
import pytest
from flax import serialization, traverse_util

from jtok.embed import load_hypernetwork, predict_rows, save_hypernetwork
from jtok.errors import (
    CheckpointError,
    MissingFileError,
    VocabMismatchError,
    WriteError,
)
from jtok.testing import load_golden, tiny_vocabulary
from tests.embed.networks import FILES, golden_network, official_tree

FIELDS = {
    "tied": {"hn_embed_lang_id": True, "langs": ["en", "de", "sw"],
             "hn_predict_bias": True, "separate_out_embeddings": False},
    "untied": {"hn_embed_lang_id": False, "n_langs": 3, "hn_predict_bias": False,
               "separate_out_embeddings": True},
}  # fmt: skip


def released(folder, name, change=lambda tree: tree, **fields):
    """A folder as it is released, with the golden's weights."""
    flat = change(dict(official_tree(name)))
    tree = traverse_util.unflatten_dict(flat, "/")
    (folder / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(tree))
    config = {
        "model_type": "mistral", "hn_surface_maxlen": 7, "hn_n_layers": 3,
        "hn_hidden_size": 32, "hn_intermediate_size": 64, "hn_num_attention_heads": 4,
        "hn_rescale_embeddings": True, "hn_n_extra_tokens": 5, "pad_token_id": 2,
        "original_vocab_size": 50, "n_embd": 16, **FIELDS[name], **fields,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", sorted(FILES))
def test_released_weights(tmp_path, name):
    extra = {"target_priors_projection/kernel": np.ones((2, 2), np.float32),
             "model/pooler/dense/kernel": np.ones((2, 2), np.float32)}  # fmt: skip
    network = load_hypernetwork(released(tmp_path, name, lambda t: t | extra))
    own, language, source = golden_network(name)
    assert network.config == own.config and network.vocabulary is None
    assert network.languages == (("en", "de", "sw") if name == "tied" else ())
    file = load_golden(FILES[name])
    said = "de" if name == "tied" else None
    assert language == (1 if name == "tied" else None)
    got = predict_rows(network, source, file["surface_forms"], language=said).input
    np.testing.assert_allclose(got, file["before_rescale_in"], rtol=1e-4, atol=1e-5)


def test_every_leaf_without_a_place_is_listed(tmp_path):
    def change(tree):
        tree["surplus/kernel"] = np.ones((1, 1), np.float32)
        tree["scaler/w"] = np.ones((1, 3), np.float32)
        del tree["bias_projection/bias"]
        return tree

    with pytest.raises(CheckpointError) as error:
        load_hypernetwork(released(tmp_path, "tied", change))
    for part in ("no leaf bias_projection/bias", "unknown leaf surplus/kernel",
                 "scaler/w is (1, 3), expected (1, 16)"):  # fmt: skip
        assert part in str(error.value)


def test_damaged_files(tmp_path):
    folder = released(tmp_path, "tied")
    whole = (folder / "flax_model.msgpack").read_bytes()
    (folder / "flax_model.msgpack").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=r"flax_model.msgpack: damaged"):
        load_hypernetwork(folder)
    released(tmp_path, "tied", hn_num_attention_heads=5)
    with pytest.raises(CheckpointError, match=r"config.json: damaged"):
        load_hypernetwork(folder)
    with pytest.raises(MissingFileError, match="there is no network"):
        (tmp_path / "empty").mkdir()
        load_hypernetwork(tmp_path / "empty")


def test_a_round_trip_keeps_all_and_knows_its_vocabulary(tmp_path):
    network, _, _ = golden_network("tied")
    vocabulary = tiny_vocabulary()
    network = network.replace(vocabulary=vocabulary.hash, languages=("a", "b", "c"))
    save_hypernetwork(network, tmp_path / "net")
    back = load_hypernetwork(tmp_path / "net", vocabulary=vocabulary)
    assert back.config == network.config and back.languages == network.languages
    assert back.vocabulary == vocabulary.hash
    same = jax.tree.map(lambda a, b: bool((a == b).all()), network.params, back.params)
    assert all(jax.tree.leaves(same))
    with pytest.raises(VocabMismatchError, match="made for the vocabulary"):
        load_hypernetwork(tmp_path / "net", vocabulary=tiny_vocabulary(270))


def test_an_output_that_cannot_be_written_stays(tmp_path):
    network, _, _ = golden_network("tied")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(WriteError, match=r"network.json"):
        save_hypernetwork(network, tmp_path / "mine")
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["notes.txt"]
    save_hypernetwork(network, tmp_path / "net")
    text = (tmp_path / "net" / "network.json").read_text()
    (tmp_path / "net" / "network.json").write_text(
        text.replace('"heads": 4', '"heads": 5')
    )
    with pytest.raises(CheckpointError, match="damaged"):
        load_hypernetwork(tmp_path / "net")
