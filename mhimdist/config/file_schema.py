"""The JSON Schema of files of settings, from which editors complete and underline."""

from collections.abc import Mapping, Sequence
from typing import Any

from mhimdist.config.fields import file_fields
from mhimdist.config.options import Options
from mhimdist.config.schedules import Schedule
from mhimdist.config.setting_words import in_file_words

DRAFT = "https://json-schema.org/draft/2020-12/schema"
NONE = {"const": "none"}


def schema_of(
    options: type[Options], kind: str, sections: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """The JSON Schema of the files of one kind.

    Args:
        options: the class of their settings.
        kind: their word for `kind`.
        sections: schemas of their other parts, by key; each may have `$defs`.
    """
    made = options.model_json_schema()
    definitions = made.pop("$defs", {})
    fields = file_fields(options)
    properties = {key: value for key, value in made["properties"].items() if key in fields}
    made["properties"] = {
        "kind": {"const": kind, "description": "what the file is for: the command that runs it"},
        **properties,
    }
    for key, section in (sections or {}).items():
        definitions |= section.get("$defs", {})
        made["properties"][key] = {name: value for name, value in section.items() if name != "$defs"}
    schedules = {"Schedule", *(each.__name__ for each in Schedule.__subclasses__())}
    for each in (made, *definitions.values()):
        for key, value in each.get("properties", {}).items():
            each["properties"][key] = _of_file(value, schedules)
    return {"$schema": DRAFT, "title": f"mhimdist {kind}", **made, "$defs": definitions}


def schema_of_all(schemas: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """One schema for files of several kinds, which choose by their key `kind`.

    Args:
        schemas: the schema of each kind.
    """
    definitions: dict[str, Any] = {}
    for kind, schema in schemas.items():
        definitions |= schema["$defs"]
        definitions[f"file of {kind}"] = {
            key: value for key, value in schema.items() if key not in ("$defs", "$schema")
        }
    return {
        "$schema": DRAFT,
        "title": "mhimdist",
        "type": "object",
        "required": ["kind"],
        "properties": {"kind": {"enum": list(schemas), "description": "the command that runs the file"}},
        "allOf": [
            {
                "if": {"properties": {"kind": {"const": kind}}, "required": ["kind"]},
                "then": {"$ref": f"#/$defs/file of {kind}".replace(" ", "%20")},
            }
            for kind in schemas
        ],
        "$defs": definitions,
    }


def _of_file(schema: dict[str, Any], schedules: set[str]) -> dict[str, Any]:
    """The schema of a value as a file writes it."""
    schema = {key: value for key, value in schema.items() if key not in ("title", "discriminator")}
    if "description" in schema:
        schema["description"] = in_file_words(schema["description"])
    if isinstance(schema.get("default"), Mapping) or schema.get("default", "") is None:
        del schema["default"]
    if "$ref" in schema:
        name = schema.pop("$ref")
        members: Sequence[Any] = [{"$ref": name}, {"type": "null"}]
        if name.rpartition("/")[2] in schedules:
            members = [*members, {"type": "number"}]
        return {**schema, "anyOf": members}
    if "oneOf" in schema:  # a group without its name is one of the default's
        groups = schema.pop("oneOf")
        return {**schema, "anyOf": [*groups, {"type": "null"}]}
    if "anyOf" in schema and {"type": "null"} in schema["anyOf"]:
        schema["anyOf"] = [*schema["anyOf"], NONE]
    if schema.get("type") == "array" and schema.get("items", {}).get("type") == "integer":
        described: dict[str, Any] = {
            key: schema.pop(key) for key in ("description", "default") if key in schema
        }
        return {
            **described,
            "anyOf": [schema, {"type": "integer"}, {"type": "string", "pattern": r"^\d+(\s*,\s*\d+)*$"}],
        }
    return schema
