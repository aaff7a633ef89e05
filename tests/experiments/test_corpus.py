"""The standard library as a corpus: split by file, nothing shared, prompts cut well."""

import pytest

from experiments import corpus
from experiments.corpus import held_out_prompts, standard_library
from jtok.errors import ArgumentError


@pytest.fixture(scope="module")
def library():
    return standard_library()


def test_split_is_by_file_and_no_passage_is_shared(library):
    held = {p for kind in ("code", "english") for p in corpus_passages(library, kind)}
    assert len(held) > 100
    trained = (*library.train_code, *library.train_english)
    leaked = [p for text in trained for p in corpus._passages(text) if p in held]
    assert leaked == []
    assert len(library.held_out_code) / len(library.train_code) == pytest.approx(
        0.05, abs=0.03
    )
    assert len(library.held_out_english) >= 5


def corpus_passages(library, kind):
    return [p for text in library.held_out(kind) for p in corpus._passages(text)]


def test_no_tests_no_packages_no_generated_tables():
    names = [name for name, _ in corpus._code_files()]
    assert {"argparse.py", "json/decoder.py"} <= set(names)
    assert not [n for n in names if "site-packages" in n or n.startswith("test/")]
    assert not [n for n in names if n.startswith(("encodings/", "_sysconfigdata"))]


def test_fewer_files_keep_what_is_held_out(library):
    few = standard_library(10)
    assert len(few.train_code) == 10
    assert few.held_out_code == library.held_out_code
    assert few.sha256 != library.sha256


@pytest.mark.parametrize("kind", ["code", "english"])
def test_prompts_stand_in_held_out_texts(library, kind):
    prompts = held_out_prompts(kind, count=80, characters=200)
    assert prompts == held_out_prompts(kind, count=80, characters=200)
    assert prompts != held_out_prompts(kind, count=80, characters=200, seed=1)
    assert len(set(prompts)) == 80
    texts = library.held_out(kind)
    for prompt in prompts:
        assert 60 <= len(prompt) <= 200
        assert any(prompt in text for text in texts)
        assert prompt == prompt.rstrip()


def test_refused_prompts():
    with pytest.raises(ArgumentError, match="kind"):
        held_out_prompts("poetry")
    with pytest.raises(ArgumentError, match="expected 1 to"):
        held_out_prompts("english", count=10**6)
    with pytest.raises(ArgumentError, match="characters"):
        held_out_prompts("code", characters=0)
