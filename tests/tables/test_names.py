import pytest

from mhimdist.tables.names import KnownNames, alike, bare, begins_names, examples, rounded, rule_that_joins


@pytest.mark.parametrize(
    "name", ["a", "a.svs", "x/a.TIFF", "C:\\x\\a.mrxs", "a.svs.h5", " a ", "a.ome.tif", "./a.csv", "a.pt"]
)
def test_the_bare_name(name: str) -> None:
    assert bare(name) == "a"


def test_letters_that_macos_takes_apart_are_the_same() -> None:
    assert KnownNames(["a\u0308"]).meant_by("ä.svs") == ["a\u0308"]


def test_characters_of_no_width_make_no_difference() -> None:
    assert KnownNames(["a1", "b\u200b"]).meant_by("a\u200c1\ufeff.svs") == ["a1"]
    assert KnownNames(["a1", "b\u200b"]).meant_by("b") == ["b\u200b"]
    assert KnownNames(["a", "a\u200b"]).meant_by("a") == ["a"]
    assert alike(["a\u00ad1", "a1"]) == ["a1", "a\u00ad1"]


@pytest.mark.parametrize("name", ["1.23457E+11", "1,23457e+11", " 2E+12 "])
def test_names_that_a_spreadsheet_rounded(name: str) -> None:
    assert rounded(["a", name]).startswith(f"; a spreadsheet has rounded {name!r}: write the names as text")
    assert rounded(["S19E+1", "1.5", "12E+3", ""]) == ""


def test_what_a_name_can_mean() -> None:
    names = KnownNames(["a", "x/b", "c.svs", "c.tif", "101", "7"])
    expected = {"a.svs": ["a"], "b": ["x/b"], "c": ["c.svs", "c.tif"], "c.svs": ["c.svs"], "101.0": ["101"]}
    expected |= {"101,0": ["101"]}
    assert {name: names.meant_by(name) for name in expected} == expected
    assert [names.meant_by(name) for name in ("A", "0101", "007", "7.5", "")] == [[]] * 5


@pytest.mark.parametrize(
    ("missing", "free", "said"),
    [
        (["A.svs", "B.svs"], ["a", "b"], "they differ from slides only in upper and lower case"),
        (["7", "12"], ["007", "012", "013"], "they differ from slides only in zeros in front of numbers"),
        (["7.0", "12.0"], ["007", "012"], "they differ from slides only in zeros in front of numbers"),
        (["Slide 1", "Slide 2"], ["slide_1", "slide-2"], "they differ from slides only in spaces, hyphens"),
        (["TCGA-DX1", "TCGA-DX2"], ["TCGA-DX1.0A", "TCGA-DX2.0B"], "only in what follows the first dot"),
        (["A", "B", "zzz"], ["a", "b"], "2 of them differ from slides only in upper and lower case"),
    ],
)
def test_the_rule_that_would_join_is_named(missing: list[str], free: list[str], said: str) -> None:
    assert said in rule_that_joins(missing, free)


@pytest.mark.parametrize(
    ("missing", "free"),
    [(["x", "y"], ["a", "b"]), (["A", "x", "y"], ["a"]), (["A"], ["a", "a.svs"]), ([], [])],
)
def test_no_rule_is_named_that_does_not_join(missing: list[str], free: list[str]) -> None:
    assert rule_that_joins(missing, free) == ""


def test_names_of_cases_begin_those_of_slides() -> None:
    assert begins_names(["P1", "P2"], ["P1_a", "P1_b.svs", "P2-a"])
    assert not begins_names(["P1", "P2"], ["P10", "P2"])
    assert not begins_names(["P1", "x", "y"], ["P1_a"])
    assert examples(["c", "b", "a"]) == "'a', 'b'"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["P1", "p1", "P2"], ["P1", "p1"]),
        (["P1 ", "P 1", "P2"], ["P 1", "P1 "]),
        (["M\u00fcller", "Mu\u0308ller"], ["Mu\u0308ller", "M\u00fcller"]),
        (["1 11", "11 1", "P1", "P-1", "P_1", "P01"], []),
        (["P1", "P1"], []),
    ],
)
def test_names_that_are_nearly_the_same(names: list[str], expected: list[str]) -> None:
    assert alike(names) == expected


def test_advice_names_no_option_that_only_one_command_has() -> None:
    said = rule_that_joins(["a1.svs - 20x"], ["a1"])
    assert said == "; they differ from slides only in what follows the first dot; write them alike"
