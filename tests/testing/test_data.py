import pytest

from jtok import testing
from jtok.errors import ArgumentError, DataNotFoundError


def test_finds_what_jtok_data_holds(tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("a")
    # Set after the import: the environment is read at the call.
    monkeypatch.setenv("JTOK_DATA", str(tmp_path))
    assert testing.data("text/a.txt") == tmp_path / "text" / "a.txt"
    assert testing.data("text") == tmp_path / "text"


def test_looks_beside_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("JTOK_DATA", raising=False)
    checkout = tmp_path / "checkout"
    found = tmp_path / "shared" / "data" / "only-here.txt"
    checkout.mkdir()
    found.parent.mkdir(parents=True)
    found.write_text("x")
    monkeypatch.chdir(checkout)
    assert testing.data("only-here.txt") == found


def test_jtok_data_goes_first(tmp_path, monkeypatch):
    for folder in ("named", "shared/data"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "both.txt").write_text(folder)
    (tmp_path / "checkout").mkdir()
    monkeypatch.chdir(tmp_path / "checkout")
    monkeypatch.setenv("JTOK_DATA", str(tmp_path / "named"))
    assert testing.data("both.txt").read_text() == "named"


def test_says_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.setenv("JTOK_DATA", str(tmp_path))
    with pytest.raises(DataNotFoundError) as caught:
        testing.data("text/none.txt")
    message = str(caught.value)
    assert message.startswith("text/none.txt: ")
    assert str(tmp_path) in message and "shared" in message and "JTOK_DATA" in message
    assert isinstance(caught.value, FileNotFoundError)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../secret", "a/../../b"])
def test_refuses_a_name_outside_the_folder(name):
    with pytest.raises(ArgumentError, match="^name: "):
        testing.data(name)
