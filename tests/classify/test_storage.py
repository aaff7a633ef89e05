"""Folders of classifiers, and what is predicted from them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok.classify import (
    ClassifierConfig,
    HeadConfig,
    TextClassifier,
    WordList,
    init_classifier,
    load_classifier,
    predict_texts,
    read_texts,
    save_classifier,
    word_weights,
)
from jtok.errors import (
    ArgumentError,
    CheckpointError,
    MissingFileError,
    UnsupportedCheckpointError,
    VocabMismatchError,
    WriteError,
)
from jtok.nn import LamaPooler, MaxPooler, fold_context
from jtok.testing import assert_close
from tests.contracts.poolers import POOLERS, WIDTH

WORDS = WordList(("good", "bad", "film"))
LAMA = LamaPooler(WIDTH, heads=2, learn_scale=True, score_scale=2.0)


def model_of(pooler, **options):
    head = HeadConfig(pooler=pooler, classes=3, word_mlp=False, **options)
    config = ClassifierConfig(5, head, embedding=4, state=3)
    return TextClassifier(init_classifier(config, jax.random.key(0)), config, WORDS)


@pytest.mark.parametrize("name", POOLERS)
def test_round_trip(tmp_path, name):
    model = model_of(POOLERS[name], hidden=2, penalty=0.5)
    save_classifier(model, tmp_path / "c")
    again = load_classifier(tmp_path / "c")
    assert (again.config, again.words) == (model.config, model.words)
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_half_precision_round_trip(tmp_path):
    head = HeadConfig(LamaPooler(WIDTH, dtype="bfloat16"), classes=2)
    config = ClassifierConfig(5, head, embedding=4, state=3, dtype="bfloat16")
    model = TextClassifier(init_classifier(config, jax.random.key(0)), config, WORDS)
    save_classifier(model, tmp_path / "c")
    jax.tree.map(np.testing.assert_array_equal, load_classifier(tmp_path / "c").params, model.params)  # noqa: E501  # fmt: skip


def test_a_failed_save_leaves_the_old_folder(tmp_path, monkeypatch):
    save_classifier(model_of(LAMA), tmp_path / "c")
    monkeypatch.setattr(WordList, "to_json", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_classifier(model_of(MaxPooler(WIDTH)), tmp_path / "c")
    monkeypatch.undo()
    assert load_classifier(tmp_path / "c").config.head.pooler == LAMA
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("keep")
    with pytest.raises(WriteError, match="holds files but no 'config.json'"):
        save_classifier(model_of(LAMA), tmp_path / "mine")


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(TypeError):  # ArgumentTypeError, if the tests' hook were not
        save_classifier(3, tmp_path / "c")
    model = model_of(LAMA)
    with pytest.raises(VocabMismatchError, match="words: has 4 ids, the embedding 5"):
        save_classifier(model.replace(words=WordList(("a", "b"))), tmp_path / "c")
    folded = fold_context(model.params["head"]["pooler"])
    params = model.params | {"head": model.params["head"] | {"pooler": folded}}
    with pytest.raises(ArgumentError, match="not laid out as its configuration says"):
        save_classifier(model.replace(params=params), tmp_path / "c")

    class Other(LamaPooler):
        pass

    with pytest.raises(ArgumentError, match="its pooler is a Other, expected one of"):
        save_classifier(model_of(Other(WIDTH)), tmp_path / "c")


def edit(folder, **fields):
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_damage_is_told(tmp_path):
    folder = tmp_path / "c"
    fresh = lambda: save_classifier(model_of(LAMA), folder)
    fresh()
    edit(folder, model_type="bert")
    with pytest.raises(UnsupportedCheckpointError, match="is of model_type 'bert'"):
        load_classifier(folder)
    fresh()
    edit(folder, state=0)
    with pytest.raises(CheckpointError, match="damaged: state: got 0"):
        load_classifier(folder)
    fresh()
    edit(folder, head={"classes": 3})
    with pytest.raises(CheckpointError, match="damaged: 'pooler'"):
        load_classifier(folder)
    fresh()
    edit(folder, embedding=7)
    with pytest.raises(CheckpointError, match=r"embed is \(5, 4\), expected \(5, 7\)"):
        load_classifier(folder)
    fresh()
    (folder / "words.json").write_text(WordList(("a",)).to_json())
    with pytest.raises(VocabMismatchError, match="has 3 ids, the embedding 5 rows"):
        load_classifier(folder)
    (folder / "words.json").unlink()
    with pytest.raises(MissingFileError, match=r"words\.json: is missing"):
        load_classifier(folder)


def test_predictions_do_not_depend_on_the_company():
    model = model_of(LAMA)
    texts = ["Good film", "bad", "", "good bad " * 9 + "film"]
    made = predict_texts(model, texts, batch=2, sizes=(2, 8))
    assert_close(made.probabilities.sum(1), np.ones(4, np.float32))
    assert (made.probabilities.argmax(1) == made.labels).all()
    for row, text in enumerate(texts):
        alone = predict_texts(model, [text], batch=1, sizes=(2, 8))
        assert_close(alone.probabilities[0], made.probabilities[row])
    cut = predict_texts(model, ["good bad " * 4], batch=1, sizes=(8,))
    assert_close(cut.probabilities[0], made.probabilities[3])
    empty = jax.nn.softmax(model.params["head"]["labels"]["bias"])
    assert_close(made.probabilities[2], empty)
    assert predict_texts(model, []).labels.shape == (0,)


def test_weights_of_the_words_of_a_text():
    model = model_of(LAMA)
    seen = word_weights(model, "A GOOD film", sizes=(8,))
    assert seen.words == ("a", "good", "film") and seen.weights.shape == (2, 3)
    made = read_texts(model.params, model.config, jnp.array([[1, 2, 4]]))
    assert_close(seen.weights, made.attention[0])
    assert seen.label == int(made.logits[0].argmax())
    assert word_weights(model, "a b c d", sizes=(2,)).words == ("a", "b")
    with pytest.raises(ArgumentError, match="a MaxPooler', expected a pooler"):
        word_weights(model_of(MaxPooler(WIDTH)), "good")
    other = dataclasses.replace(model.config, vocab_size=9)
    with pytest.raises(VocabMismatchError, match="the embedding 9 rows"):
        predict_texts(model.replace(config=other), ["good"])
