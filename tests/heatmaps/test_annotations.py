"""Outlines in ASAP's XML and in GeoJSON, and files that are refused."""

import json

import pytest

from mhimdist.errors import DataError
from mhimdist.heatmaps import annotations

ASAP = """<?xml version="1.0"?>
<ASAP_Annotations>
  <Annotations>
    <Annotation Name="Annotation 0" Type="Polygon" PartOfGroup="Tumor" Color="#F4FA58">
      <Coordinates>
        <Coordinate Order="1" X="200.5" Y="100" />
        <Coordinate Order="0" X="100" Y="100" />
        <Coordinate Order="2" X="200" Y="300.25" />
      </Coordinates>
    </Annotation>
    <Annotation Name="a dot" Type="Dot" PartOfGroup="None" Color="#F4FA58">
      <Coordinates><Coordinate Order="0" X="1" Y="2" /></Coordinates>
    </Annotation>
    <Annotation Name="_2" Type="Spline" PartOfGroup="None" Color="#F4FA58">
      <Coordinates>
        <Coordinate Order="0" X="1" Y="2" /><Coordinate Order="1" X="3" Y="4" />
        <Coordinate Order="2" X="5" Y="0" />
      </Coordinates>
    </Annotation>
  </Annotations>
  <AnnotationGroups>
    <Group Name="Tumor" PartOfGroup="None" Color="#00ff00"><Attributes /></Group>
  </AnnotationGroups>
</ASAP_Annotations>
"""


def test_asap_outlines_are_read_in_order(tmp_path):
    path = tmp_path / "tumor_001.xml"
    path.write_text(ASAP)
    tumor, other = annotations.read(path)
    assert tumor.group == "Tumor"
    assert tumor.points_P2.tolist() == [[100, 100], [200.5, 100], [200, 300.25]]
    assert other.group == ""
    assert other.points_P2.tolist() == [[1, 2], [3, 4], [5, 0]]


RING = [[0, 0], [4, 0], [4, 4], [0, 0]]
POLYGON = {"type": "Polygon", "coordinates": [RING, [[1, 1], [2, 1], [2, 2], [1, 1]]]}
FEATURE = {
    "type": "Feature",
    "geometry": POLYGON,
    "properties": {"objectType": "annotation", "classification": {"name": "Tumor", "color": [200, 0, 0]}},
}
COLLECTED = {"type": "GeometryCollection", "geometries": [POLYGON, {"type": "Point", "coordinates": [0, 0]}]}


@pytest.mark.parametrize(
    ("tree", "groups"),
    [
        ({"type": "FeatureCollection", "features": [FEATURE, FEATURE]}, ["Tumor"] * 4),
        ([FEATURE], ["Tumor"] * 2),
        (FEATURE | {"properties": None}, ["", ""]),
        (POLYGON, ["", ""]),
        ({"type": "MultiPolygon", "coordinates": [[RING], [RING]]}, ["", ""]),
        (COLLECTED, ["", ""]),
        ({"type": "FeatureCollection", "features": []}, []),
    ],
)
def test_geojson_polygons_are_read_with_their_holes(tmp_path, tree, groups):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(tree))
    outlines = annotations.read(path)
    assert [outline.group for outline in outlines] == groups
    if groups:
        assert outlines[0].points_P2.tolist() == RING


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    "<ASAP_Annotations>&b;</ASAP_Annotations>"
)
FOREIGN = '<!DOCTYPE a SYSTEM "file:///etc/passwd"><ASAP_Annotations></ASAP_Annotations>'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.xml", BOMB, r"a\.xml declares a document type \(DOCTYPE\)"),
        ("a.xml", FOREIGN, r"a\.xml declares a document type"),
        ("a.xml", ASAP[:-30], r"a\.xml is not a whole annotation file"),
        ("a.xml", ASAP.replace('X="100"', 'X="?"'), "an annotation cannot be read.*'\\?'"),
        ("a.xml", ASAP.replace('X="100"', 'X="nan"'), "outline 0 of 'Tumor' has a point that is not finite"),
        ("a.xml", ASAP.replace('X="100" ', ""), "an annotation cannot be read.*KeyError: 'X'"),
        ("a.xml", "<svg></svg>", "expected ASAP_Annotations as the XML's root, got svg"),
        ("a.json", "[{]", r"a\.json is not a whole annotation file"),
        ("a.json", "[" * 200_000, r"a\.json is not a whole annotation file"),
        ("a.json", '{"type": "Circle"}', "an annotation cannot be read.*'Circle' is not a geometry"),
        ("a.json", "3", "an annotation cannot be read"),
        ("a.json", '{"type": "Polygon", "coordinates": [[["x", 1]]]}', "an annotation cannot be read"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        annotations.read(path)
