import json

import numpy as np
import pytest

from jtok.errors import ArgumentError, CheckpointError, DataNotFoundError
from jtok.testing import Golden, load_golden
from tests import conftest


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "slug").mkdir()
    arrays = {"x": np.arange(3), "grad_a": np.ones(2), "grad_b": np.zeros(2)}
    np.savez(tmp_path / "slug" / "a.npz", **arrays)
    return tmp_path


def test_reading_is_recorded_and_listing_is_not(folder):
    golden = load_golden("slug/a.npz", root=folder)
    assert sorted(golden) == ["grad_a", "grad_b", "x"]
    assert "x" in golden and "y" not in golden and len(golden) == 3
    assert golden.unread() == ["grad_a", "grad_b", "x"]
    np.testing.assert_array_equal(golden["x"], [0, 1, 2])
    assert golden.unread() == ["grad_a", "grad_b"]
    assert dict(golden.items())["grad_a"].shape == (2,)
    assert golden.unread() == []


def test_ignored_arrays_need_a_reason_and_a_match(folder):
    golden = load_golden("slug/a.npz", root=folder)
    with pytest.raises(ArgumentError, match="^reason: "):
        golden.ignore("x", reason=" ")
    with pytest.raises(ArgumentError, match="grad_z"):
        golden.ignore("grad_z*", reason="none")
    golden.ignore("grad_*", reason="no gradient here")
    assert golden.unread() == ["x"]


def test_a_second_load_remembers(folder):
    load_golden("slug/a.npz", root=folder)["x"]
    assert "x" not in load_golden("slug/a.npz", root=folder).unread()


def test_a_wrong_name_names_near_ones():
    with pytest.raises(KeyError, match=r"did you mean tree_ids\?"):
        Golden("a.npz", {"tree_ids": 1})["tree_id"]


def test_json_counts_by_its_keys(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"cases": [1], "note": "n"}))
    golden = load_golden("a.json", root=tmp_path)
    assert golden["cases"] == [1]
    assert golden.unread() == ["note"]


@pytest.mark.parametrize("name", ["a.npz", "a.json"])
def test_a_damaged_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"not that")
    with pytest.raises(CheckpointError, match=name):
        load_golden(name, root=tmp_path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataNotFoundError, match=r"b\.npz"):
        load_golden("b.npz", root=tmp_path)


def test_the_account_lists_unread_and_unloaded(folder):
    np.savez(folder / "slug" / "b.npz", y=np.arange(2))
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    (folder / "model" / "model.safetensors").write_bytes(b"")
    accounts = {str(folder / "slug" / "a.npz"): ["x"]}
    problems = conftest.unread_arrays(folder, accounts)
    assert problems == ["slug/a.npz: x", "slug/b.npz: never loaded"]
