"""Vocabularies of encoders: RoBERTa's pair, XLM-RoBERTa's order of ids, BERT's list."""

import io
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers

from jtok.errors import CheckpointError, UnsupportedCheckpointError
from jtok.text import Vocabulary

TEXT = "the cat sat on the mat. Über allen Gipfeln ist Ruh, 你好 world's 42"


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    place = tmp_path_factory.mktemp("roberta")
    trained = tokenizers.ByteLevelBPETokenizer()
    controls = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator([TEXT] * 9, vocab_size=300, special_tokens=controls)
    trained.save_model(str(place))
    return place, trained


def test_a_pair_of_roberta_stands_between_its_control_tokens(roberta, tmp_path):
    place, trained = roberta
    vocabulary = Vocabulary.load(place)
    assert vocabulary.round_trips
    wanted = {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3, "mask": 4}
    assert vocabulary.special == wanted
    inner = trained.encode(TEXT).ids
    assert vocabulary.encode(TEXT).tolist() == [0, *inner, 2]
    assert vocabulary.encode(TEXT, specials=False).tolist() == inner
    assert vocabulary.decode_bytes(vocabulary.encode(TEXT)).decode() == TEXT
    # The mask takes the space before it, as in the released tokenizer.
    masked = vocabulary.encode("the <mask> sat").tolist()
    assert masked == [0, *trained.encode("the").ids, 4, *trained.encode(" sat").ids, 2]
    vocabulary.save(tmp_path)
    assert Vocabulary.load(tmp_path).encode(TEXT).tolist() == [0, *inner, 2]
    pair = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ids = pair.encode("the", "cat").ids
    assert (ids[0], ids[-1], ids.count(2)) == (0, 2, 3)


def test_a_pair_without_them_stays_as_it_is(roberta, tmp_path):
    place, _ = roberta
    table = json.loads((place / "vocab.json").read_text())
    del table["<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps(table))
    (tmp_path / "merges.txt").write_text((place / "merges.txt").read_text())
    plain = Vocabulary.load(tmp_path)
    assert plain.special == {} and 0 not in plain.encode(TEXT)


@pytest.fixture(scope="module")
def pieces():
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 20), model_writer=made, vocab_size=34,
        model_type="unigram", character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    return made.getvalue()


def test_xlm_roberta_counts_pieces_as_fairseq(pieces, tmp_path):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(pieces)
    vocabulary = Vocabulary.load(tmp_path)
    official = sentencepiece.SentencePieceProcessor(model_proto=pieces)
    for text in (TEXT, "a new cat", "未知 Ω"):
        inner = [id_ + 1 if id_ else 3 for id_ in official.encode(text)]
        assert vocabulary.encode(text).tolist() == [0, *inner, 2], text
    size = official.get_piece_size()
    wanted = {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3}
    assert vocabulary.special == {**wanted, "mask": size + 1}
    assert vocabulary.size == size + 2 and not vocabulary.round_trips
    for id_ in (3, 7, size - 1):
        surface = official.id_to_piece(id_).replace("\u2581", " ").encode()
        assert vocabulary.decode_bytes([id_ + 1]) == surface
    # The same file under another name keeps its own ids.
    (tmp_path / "other.model").write_bytes(pieces)
    plain = Vocabulary.load(tmp_path / "other.model")
    ids = plain.encode(TEXT, specials=False)
    np.testing.assert_array_equal(ids, official.encode(TEXT))


def test_other_files_of_that_name_are_refused(pieces, tmp_path):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(pieces)
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"tokenizer_class": "CamembertTokenizer"}))
    with pytest.raises(UnsupportedCheckpointError, match="as CamembertTokenizer does"):
        Vocabulary.load(tmp_path)
    config.write_text(json.dumps({"tokenizer_class": "XLMRobertaTokenizerFast"}))
    assert Vocabulary.load(tmp_path).special["mask"] == 35
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 20), model_writer=made, vocab_size=34,
        model_type="bpe", character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "sentencepiece.bpe.model").write_bytes(made.getvalue())
    with pytest.raises(CheckpointError, match="expected a Unigram model"):
        Vocabulary.load(tmp_path)


def test_a_list_of_bert(tmp_path):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "##s"]
    tokens += ["u", "##ber", "!"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n")
    vocabulary = Vocabulary.load(tmp_path)
    # What BertTokenizer of transformers 5.24 gives.
    wanted = [2, 5, 6, 8, 7, 9, 10, 11, 4, 3]
    assert vocabulary.encode("The CATS sat Über! [MASK]").tolist() == wanted
    assert not vocabulary.round_trips and vocabulary.special["mask"] == 4
    assert vocabulary.decode_bytes([5, 6, 8]) == b"thecats"
