"""Outlines that a pathologist drew: ASAP's XML, as CAMELYON16 ships it, and GeoJSON.

Dimensions: P points of an outline, 2 the coordinates x and y in pixels of level 0.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.parsers import expat

import numpy as np

from mhimdist.errors import DataError

SUFFIXES = (".xml", ".geojson", ".json")
MAX_BYTES = 2**28
"""Longest file of annotations: CAMELYON16's longest has 7 MB."""
_AREAS = ("Polygon", "Spline", "Rectangle")


@dataclass(frozen=True, eq=False)
class Outline:
    """A closed line.

    Attributes:
        group: what it surrounds, such as "Tumor"; empty if the file does not say.
        points_P2: float64, P x 2; the last point is joined to the first.
    """

    group: str
    points_P2: np.ndarray


def read(path: Path) -> list[Outline]:
    """Read the areas in a file; dots and measured lines are left out.

    Raises:
        DataError: the file is neither ASAP's XML nor GeoJSON, is damaged, or declares a document type, with
            which a short XML file can take all memory or read other files.
    """
    if (size := path.stat().st_size) > MAX_BYTES:
        raise DataError(f"{path} has {size:,} bytes; a file of annotations has at most {MAX_BYTES:,}")
    try:
        outlines = _asap(path) if path.suffix.lower() == ".xml" else _geojson(path)
    except (expat.ExpatError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not a whole annotation file: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise DataError(
            f"{path}: an annotation cannot be read ({type(error).__name__}: {error}); expected ASAP's XML or "
            "GeoJSON with polygons"
        ) from None
    for number, outline in enumerate(outlines):
        if not np.isfinite(outline.points_P2).all():
            raise DataError(f"{path}: outline {number} of {outline.group!r} has a point that is not finite")
    return outlines


def _asap(path: Path) -> list[Outline]:
    found: list[Outline] = []
    root: list[str] = []
    current: dict[str, Any] | None = None

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal current
        if not root:
            root.append(tag)
            if tag != "ASAP_Annotations":
                raise DataError(f"{path}: expected ASAP_Annotations as the XML's root, got {tag}")
        if tag == "Annotation":
            group = attributes.get("PartOfGroup") or ""
            is_area = attributes.get("Type", "Polygon") in _AREAS
            current = {"group": "" if group == "None" else group, "is_area": is_area, "points": []}
        elif tag == "Coordinate" and current is not None:
            order = int(float(attributes.get("Order", len(current["points"]))))
            current["points"].append((order, float(attributes["X"]), float(attributes["Y"])))

    def end(tag: str) -> None:
        nonlocal current
        if tag == "Annotation" and current is not None:
            if current["is_area"] and len(current["points"]) > 2:
                points = [(x, y) for _, x, y in sorted(current["points"], key=lambda point: point[0])]
                found.append(Outline(current["group"], np.array(points, np.float64)))
            current = None

    def refuse(*_: object) -> None:
        raise DataError(f"{path} declares a document type (DOCTYPE), which ASAP's files do not: refused")

    # No entity can be declared without a document type.
    parser = expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.StartDoctypeDeclHandler = refuse
    with path.open("rb") as file:
        parser.ParseFile(file)
    return found


def _geojson(path: Path) -> list[Outline]:
    tree = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(tree, dict) and tree.get("type") == "FeatureCollection":
        features = tree["features"]
    else:
        features = tree if isinstance(tree, list) else [tree]
    found = []
    for feature in features:
        is_feature = feature["type"] == "Feature"
        properties = (feature.get("properties") or {}) if is_feature else {}
        group = (properties.get("classification") or {}).get("name") or properties.get("name") or ""
        for ring in _rings(feature["geometry"] if is_feature else feature):
            points_P2 = np.array([point[:2] for point in ring], np.float64).reshape(-1, 2)
            if len(points_P2) > 2:
                found.append(Outline(str(group), points_P2))
    return found


def _rings(geometry: dict[str, Any] | None) -> Iterator[list[Any]]:
    """The rings of all polygons in a geometry."""
    if geometry is None:
        return
    kind = geometry["type"]
    if kind == "Polygon":
        yield from geometry["coordinates"]
    elif kind == "MultiPolygon":
        for polygon in geometry["coordinates"]:
            yield from polygon
    elif kind == "GeometryCollection":
        for inner in geometry["geometries"]:
            yield from _rings(inner)
    elif kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise ValueError(f"{kind!r} is not a geometry")
