"""The survey's table, its page, and the menu that it points to."""

import importlib.resources
import re

import pytest

from jtok.compress import methods, taxonomy, taxonomy_page
from jtok.errors import ArgumentError


def test_the_page_is_that_of_the_table():
    file = importlib.resources.files("jtok.compress") / "TAXONOMY.md"
    assert file.read_text(encoding="utf-8") == taxonomy_page()


def test_every_row_is_whole():
    rows = taxonomy()
    later = [row for row in rows if row.arxiv is None]
    assert len(rows) == 179 and len(later) == 27
    assert list(rows[-27:]) == later
    assert len({row.name for row in rows}) == 179
    ids = [row.arxiv for row in rows if row.arxiv]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"\d{4}\.\d{5}", one) for one in ids)
    for row in rows:
        assert row.families and row.modalities and row.name
        assert bool(row.idea) == (row.arxiv is not None)
        assert "|" not in row.idea and not row.idea.endswith(".")


def test_rows_by_family_and_modality():
    named = lambda *which: {row.name for row in taxonomy(*which)}
    assert {"AIM", "DivPrune", "VisionZip"} <= named("similarity")
    assert "AIM" in named("attention", "video") and "AIM" not in named("query")
    assert named(None, "encoder") >= {"ToMe", "DeCo", "Perceiver"}
    by_name = {row.name: row for row in taxonomy()}
    assert by_name["FastV"].trained is False and by_name["BLIP-2"].trained is True
    assert by_name["DART"].trained == "either"
    assert by_name["Token Turing Machines"].trained is None
    assert by_name["BLIP-2"].arxiv == "2301.12597"


def test_what_jtok_offers_is_on_the_menu():
    menu = methods()
    offered = {name for row in taxonomy() for name in row.methods}
    assert offered <= set(menu)
    # Every method has a paper here. PiToMe is younger than the list, both pools are
    # everybody's, and baselines are nobody's.
    younger = {"pitome", "pitome_bsm", "pitome_text", "adaptive_pooling", "max_pooling"}
    own = {name for name, row in menu.items() if row.family != "baseline"}
    assert own - offered == younger


@pytest.mark.parametrize("which", [("pooling",), (None, "smell")])
def test_unknown_families_are_refused(which):
    with pytest.raises(ArgumentError, match=f"got '{which[-1]}', expected one of"):
        taxonomy(*which)
