"""JSON Schema of federation and device files, for editors that complete and check while one types."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic.json_schema import models_json_schema

from fedge.spec import catalogue as catalogues
from fedge.spec import faults
from fedge.spec.catalogue import Catalogue, CodecInfo, MethodInfo, OptionInfo
from fedge.spec.data import DataSpec
from fedge.spec.device import Group, LinkClass, Network, Profile, bundled_profiles, load_links
from fedge.spec.federation import KEYS, EmulationSpec, EvaluateSpec, ModelSpec
from fedge.spec.remote import RemoteSpec
from fedge.spec.stage import STAGES, StageKeys
from fedge.spec.values import SHARE_SCHEMA, Section

_DRAFT = "http://json-schema.org/draft-07/schema#"
_JSON = {"int": "integer", "float": "number", "bool": "boolean", "str": "string"}


def json_schema(kind: str = "federation", *, catalogue: Catalogue | None = None) -> dict[str, Any]:
    """The schema of a ``'federation'``, a ``'device'`` profile, or a file of ``'links'``."""
    if kind == "device":
        return {"$schema": _DRAFT, **_alone(Profile), "title": "fedge device profile"}
    if kind == "links":
        schema = _definitions(LinkClass)
        ref = {"$ref": "#/definitions/LinkClass"}
        return {"$schema": _DRAFT, "title": "fedge links", "type": "object", "additionalProperties": ref, **schema}
    return _federation(catalogue or catalogues.load())


def _definitions(*kinds: type[Section]) -> dict[str, Any]:
    _, schema = models_json_schema([(kind, "validation") for kind in kinds], ref_template="#/definitions/{model}")
    return {"definitions": schema.get("$defs", {})}


def _alone(kind: type[Section]) -> dict[str, Any]:
    definitions = _definitions(kind)["definitions"]
    return {**definitions.pop(kind.__name__), "definitions": definitions}


def _federation(catalogue: Catalogue) -> dict[str, Any]:
    fault_keys = {section for section, _ in faults.KINDS.values()}
    sections: tuple[type[Section], ...] = (
        ModelSpec,
        DataSpec,
        RemoteSpec,
        EmulationSpec,
        EvaluateSpec,
        Group,
        Network,
        StageKeys,
        *fault_keys,
    )
    definitions = _definitions(*sections)["definitions"]
    fault_schema = faults.schema({section.__name__: definitions.pop(section.__name__) for section in fault_keys})
    _offer_bundled(definitions)
    keys = definitions.pop("StageKeys")
    properties: dict[str, dict[str, Any]] = {
        "name": {"type": "string", "pattern": "^[a-z0-9][a-z0-9_-]*$"},
        "seed": {"type": "integer", "minimum": 0, "default": 0},
        "model": {"anyOf": [{"type": "string"}, {"$ref": "#/definitions/ModelSpec"}]},
        "data": {"anyOf": [{"type": "string"}, {"$ref": "#/definitions/DataSpec"}]},
        "devices": {
            "type": "object",
            "minProperties": 1,
            "additionalProperties": {"$ref": "#/definitions/Group"},
        },
        "remote": {"$ref": "#/definitions/RemoteSpec"},
        "emulation": {"$ref": "#/definitions/EmulationSpec"},
        "evaluate": {"$ref": "#/definitions/EvaluateSpec"},
        "stages": {
            "type": "array",
            "minItems": 1,
            "items": {"anyOf": [_stage(stage, keys, catalogue) for stage in STAGES]},
        },
        "faults": fault_schema,
    }
    return {
        "$schema": _DRAFT,
        "title": "fedge federation",
        "type": "object",
        "properties": {name: {**schema, "description": KEYS[name]} for name, schema in properties.items()},
        "patternProperties": {"^x-": {}},
        "additionalProperties": False,
        "required": ["model", "data", "devices", "stages"],
        "definitions": definitions,
    }


def _offer_bundled(definitions: dict[str, Any]) -> None:
    """Name the profiles and link classes that travel with fedge where a group of devices may choose one; in place."""
    links = {"enum": list(load_links())}
    definitions["Network"]["properties"]["name"] = {**links, "description": "a link class"}
    profiles = [name for name, profile in bundled_profiles().items() if not profile.refused]
    group = definitions["Group"]["properties"]
    group["profile"] |= {"anyOf": [{"enum": profiles}, {"type": "string", "pattern": r"\.ya?ml$|/"}]}
    group["network"] = {
        "anyOf": [links, {"$ref": "#/definitions/Network"}],
        "description": Group.model_fields["network"].description,
    }
    group["availability"] = {
        "anyOf": [dict(SHARE_SCHEMA), {"$ref": "#/definitions/Availability"}],
        "description": Group.model_fields["availability"].description,
    }


def _stage(stage: str, keys: Mapping[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    methods = catalogue.built(stage)
    names = [name for info in methods for name in (info.key, *info.aliases)]
    own = {name: schema for name, schema in keys["properties"].items() if name != "export" or stage == "deploy"}
    own["method"] = {
        "description": keys["properties"]["method"]["description"],
        "anyOf": [{"enum": ["auto", *names]}, {"type": "string", "pattern": ":"}],
    }
    own["candidates"] = {
        "description": keys["properties"]["candidates"]["description"],
        "type": "array",
        "minItems": 1,
        "items": {"anyOf": [{"enum": names}, {"type": "object", "minProperties": 1, "maxProperties": 1}]},
    }
    own["codec"] = {
        "description": keys["properties"]["codec"]["description"],
        "type": "array",
        "items": {
            "anyOf": [
                {"enum": [info.key for info in catalogue.codecs]},
                {"type": "string", "pattern": ":"},
                *_codecs(catalogue),
            ]
        },
    }
    fields = sorted({name for info in methods for name in info.fields})
    body = {
        "type": "object",
        "properties": own,
        "required": ["method"],
        "allOf": [
            {"if": _is({"pattern": ":"}), "else": {"propertyNames": {"enum": [*own, *fields]}}},
            *(
                {"if": _is({"enum": [info.key, *info.aliases]}), "then": {"properties": _options(info)}}
                for info in methods
                if info.fields
            ),
        ],
    }
    return {"type": "object", "properties": {stage: body}, "required": [stage], "additionalProperties": False}


def _is(method: Mapping[str, Any]) -> dict[str, Any]:
    return {"properties": {"method": method}, "required": ["method"]}


def _codecs(catalogue: Catalogue) -> list[dict[str, Any]]:
    """Each codec with a value of its first field, or with some of its fields; and those of the user's own."""
    found: list[dict[str, Any]] = [{"type": "object", "patternProperties": {":": {}}, "additionalProperties": False}]
    for info in catalogue.codecs:
        fields = {"type": "object", "properties": _options(info), "additionalProperties": False}
        alone = [_option(info.fields[info.main])] if info.main else []
        given = {"description": info.summary, "anyOf": [*alone, {"type": "null"}, fields]}
        found.append({"type": "object", "properties": {info.key: given}, "required": [info.key], "maxProperties": 1})
    return found


def _options(info: MethodInfo | CodecInfo) -> dict[str, Any]:
    return {name: _option(option) for name, option in info.fields.items()}


def _option(option: OptionInfo) -> dict[str, Any]:
    kind = option.type.split("|")[0].strip()
    schema: dict[str, Any] = {"type": _JSON.get(kind.removeprefix("list[").removesuffix("]"), "string")}
    if option.choices:
        schema["enum"] = list(option.choices)
    if kind.startswith("list["):
        schema = {"type": "array", "items": schema}
    if "None" in option.type:
        schema = {"anyOf": [schema, {"type": "null"}]}
    default = list(option.default) if isinstance(option.default, tuple) else option.default
    return {**schema, "description": option.doc, "default": default}
