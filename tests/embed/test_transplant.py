"""A whole model gets another vocabulary, is saved, loaded and given its own back."""

import json
import os
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jtok import embed, models
from jtok.embed import __main__ as command
from jtok.errors import ArgumentError, ArgumentTypeError, VocabMismatchError
from jtok.models import GenerationConfig
from jtok.testing import tiny_model
from jtok.text import Vocabulary
from tests.contracts.embeddings import MORE, vocabularies


def with_chat(vocabulary):
    config = vocabulary.tokenizer_config
    config |= {"chat_template": "{{ messages[0].content }}", "padding_side": "left"}
    return Vocabulary.from_json(vocabulary.tokenizer_json(), config)


@pytest.fixture(scope="module")
def base():
    source, _ = vocabularies()
    model = tiny_model(vocab_size=source.size + 2)
    generation = GenerationConfig((0,), 0, None, json.dumps({"temperature": 0.5}))
    return model.replace(vocabulary=source, generation_config=generation)


@pytest.fixture(scope="module")
def target():
    trained = Vocabulary.train_bpe([MORE * 8], 290, ("<|user|>", "<|end|>"))
    roles = dict.fromkeys(("bos_token", "eos_token"), "<|end|>")
    return with_chat(Vocabulary.from_json(trained.tokenizer_json(), roles))


@pytest.fixture(scope="module")
def donor(target):
    return tiny_model(vocab_size=target.size, seed=3).replace(vocabulary=target)


def test_everything_follows_the_new_vocabulary(base, donor, target, tmp_path):
    with pytest.warns(UserWarning, match="123"):
        made = embed.transplant(base, donor, embed.omp(donor, k=8))
    assert made.vocabulary == target and made.config.vocab_size == target.size
    assert made.params["embed"]["tokens"].shape == (target.size, 32)
    assert made.params["unembed"]["kernel"].shape == (target.size, 32)
    assert made.generation_config.eos_token_ids == (1,)
    assert made.generation_config.bos_token_id == 1
    models.save(made, tmp_path / "out")
    fields = json.loads((tmp_path / "out/config.json").read_text())
    assert fields["vocab_size"] == target.size and fields["eos_token_id"] == 1
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation["temperature"] == 0.5 and generation["eos_token_id"] == 1
    back = models.load(tmp_path / "out")
    assert back.vocabulary.chat_template == target.chat_template
    assert back.vocabulary.tokenizer_config["padding_side"] == "left"
    record = embed.transplant_record(back)
    assert record["method"] == "omp" and record["rows"]["output"]["made"] > 0
    assert record["source_vocabulary"] == base.vocabulary.hash
    ids = jnp.asarray(target.encode("the lantern is there"))[None]
    np.testing.assert_array_equal(back(ids).logits, made(ids).logits)


def test_text_of_shared_tokens_reads_as_before(base, target):
    """Where every token of a text is shared, hidden states are those of the base."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = embed.transplant(base, target, embed.zero())
    text = "oh my"
    old, new = base.vocabulary.encode(text), target.encode(text)
    assert base.vocabulary.decode(old) == target.decode(new) == text
    found = [m(jnp.asarray(i)[None], logits="none").hidden
             for m, i in ((base, old), (made, new))]  # fmt: skip
    np.testing.assert_array_equal(*found)


def test_the_way_back(base, donor):
    with pytest.warns(UserWarning):
        made = embed.transplant(base, donor, embed.subword())
    trained = made.replace(params=jax.tree.map(lambda x: x + 1, made.params))
    back = embed.restore(trained, base)
    assert back.vocabulary == base.vocabulary
    assert back.generation_config == base.generation_config
    assert embed.transplant_record(back) is None
    assert back.config.vocab_size == base.config.vocab_size
    for part, name in (("embed", "tokens"), ("unembed", "kernel")):
        np.testing.assert_array_equal(back.params[part][name], base.params[part][name])
    norm = back.params["final_norm"]["scale"]
    np.testing.assert_array_equal(norm, base.params["final_norm"]["scale"] + 1)
    kept = embed.restore(trained, base, keep_shared=True)
    changed = np.asarray(
        kept.params["embed"]["tokens"] - base.params["embed"]["tokens"]
    )
    rows = embed.transplant_record(made)["rows"]["input"]
    assert (changed[:, 0] > 0.5).sum() == rows["copied"] + rows["role"]
    with pytest.raises(VocabMismatchError, match="the model came from"):
        embed.restore(made, donor)
    with pytest.raises(ArgumentError, match="not transplanted"):
        embed.restore(base, base)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_padded_rows_never_win(family, target):
    source, _ = vocabularies()
    model = tiny_model(vocab_size=source.size, family=family)
    model = model.replace(vocabulary=source)
    with pytest.warns(UserWarning):
        made = embed.transplant(model, target, embed.mean(), pad_to_multiple_of=64)
    assert made.config.vocab_size == 320 and target.size == 290
    ids = jax.random.randint(jax.random.key(0), (4, 16), 0, target.size)
    assert int(made(ids).logits.argmax(-1).max()) < target.size


def test_bfloat16_stays(base, target):
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), base.params)
    config = models.config_from(
        json.loads(embed.transplant(base, base.vocabulary, embed.zero()).config.source),
        dtype="bfloat16",
    )
    model = base.replace(params=narrow, config=config)
    with pytest.warns(UserWarning):
        made = embed.transplant(model, target, embed.subword())
    assert made.params["embed"]["tokens"].dtype == jnp.bfloat16
    assert made.config.dtype == "bfloat16"


def test_what_is_refused(base, donor, target):
    with pytest.raises(ArgumentError, match="without a vocabulary"):
        embed.transplant(base.replace(vocabulary=None), target, embed.zero())
    with pytest.raises(ArgumentTypeError, match="target: got int"):
        embed.transplant(base, 3, embed.zero())
    with pytest.raises(ArgumentError, match="pad_to_multiple_of: got 0"):
        embed.transplant(base, target, embed.zero(), pad_to_multiple_of=0)
    with pytest.raises(ArgumentError, match="at most 2.., the number of shared"):
        embed.transplant(base, target, embed.omp(donor, k=289))
    extra = {**base.params["embed"], "extra": jnp.zeros((1, 32))}
    masked = base.replace(params={**base.params, "embed": extra})
    with pytest.raises(ArgumentError, match="extra rows"):
        embed.transplant(masked, target, embed.zero())
    filler = tiny_model(vocab_size=282, family="Dream")
    with pytest.raises(ArgumentError, match="without a mask token"):
        embed.transplant(
            filler.replace(vocabulary=base.vocabulary), target, embed.zero()
        )


@pytest.fixture(scope="module")
def folders(base, donor, tmp_path_factory):
    root = tmp_path_factory.mktemp("transplant")
    models.save(base, root / "base")
    models.save(donor, root / "donor")
    return root


def test_the_command_writes_a_model(folders, base, donor, capsys):
    out = folders / "made"
    arguments = [str(folders / "base"), str(folders / "donor"), str(out)]
    with pytest.warns(UserWarning):
        assert (
            command.main([*arguments, "--k", "4", "--resume", str(folders / "parts")])
            == 0
        )
    said = capsys.readouterr()
    assert json.loads(said.out)["method"] == "omp" and "output rows" in said.err
    made = models.load(out)
    with pytest.warns(UserWarning):
        wanted = embed.transplant(base, donor, embed.omp(donor, k=4))
    np.testing.assert_array_equal(
        made.params["embed"]["tokens"], wanted.params["embed"]["tokens"]
    )
    assert sorted(os.listdir(folders / "parts"))


def test_a_failed_transplant_leaves_nothing(folders, capsys):
    before = sorted(os.listdir(folders))
    base, donor = str(folders / "base"), str(folders / "donor")
    assert command.main([base, donor, str(folders / "out"), "--k", "5000"]) == 1
    assert "the number of shared tokens" in capsys.readouterr().err
    assert command.main([base, str(folders / "none"), str(folders / "out")]) == 1
    blocked = folders / "donor" / "config.json" / "out"
    assert command.main([base, donor, str(blocked)]) == 1
    assert "out: cannot write" in capsys.readouterr().err
    assert sorted(os.listdir(folders)) == before
