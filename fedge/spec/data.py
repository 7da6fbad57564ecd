"""The ``data`` section: the data set, its columns, and how its rows are dealt to the devices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import model_validator

from fedge import units
from fedge.errors import nearest
from fedge.spec.source import describe
from fedge.spec.values import SHARE_SCHEMA, Check, Section, Text, integer, key, real, whole


@dataclass(frozen=True)
class PartitionSpec:
    """How rows are dealt to devices: iid; dirichlet with its alpha; shards a device; by a column.

    groups: the labels, by name, that a group of devices holds; a label that no group names is everyone's.
    at_home: the share of a named label's rows that these devices alone hold; the rest is dealt to all.
    """

    kind: str = "iid"
    value: float | int | str | None = None
    groups: tuple[tuple[str, tuple[str, ...]], ...] = ()
    at_home: float = 1.0


def _partition(given: object) -> PartitionSpec:
    kinds = ("iid", "dirichlet", "shards", "by")
    if isinstance(given, PartitionSpec):
        return given
    if given == "iid":
        return PartitionSpec()
    if isinstance(given, str) and re.fullmatch(r"non[-_ ]?iid", given.lower()):
        raise ValueError(f"{given}: say how uneven: {{dirichlet: 0.3}}, {{shards: 2}}, or {{by: hospital}}")
    if isinstance(given, str):
        examples = {"dirichlet": "{dirichlet: 0.3}", "shards": "{shards: 2}", "by": "{by: hospital}"}
        if given in examples:
            raise ValueError(f"{given} needs its value: {examples[given]}")
        close = nearest(given, kinds)
        raise ValueError(
            f"expected iid, {', '.join(examples.values())}, got {describe(given)}" + (f"; {close}" if close else "")
        )
    if isinstance(given, Mapping) and "groups" in given:
        return _in_groups(given)
    if not isinstance(given, Mapping) or len(given) != 1:
        got = f"the keys {', '.join(map(str, given))}" if isinstance(given, Mapping) and given else describe(given)
        raise ValueError(f"expected iid, {{dirichlet: 0.3}}, {{shards: 2}} or {{by: hospital}}, got {got}")
    kind, value = next(iter(given.items()))
    try:
        if kind == "dirichlet":
            return PartitionSpec(kind, real(value, 0, 1e6, above=True))
        if kind == "shards":
            return PartitionSpec(kind, whole(value, least=1, most=100_000))
        if kind == "by" and isinstance(value, str) and value:
            return PartitionSpec(kind, value)
        if kind == "by":
            raise ValueError(f"expected a column's name, got {describe(value)}")
        if kind == "iid":
            raise ValueError("it takes no value; `partition: iid`")
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from None
    close = nearest(kind, kinds)
    raise ValueError(f"no partition '{kind}'; known: {', '.join(kinds)}" + (f"; {close}" if close else ""))


def _in_groups(given: Mapping[Any, Any]) -> PartitionSpec:
    """``{dirichlet: 0.3, groups: {pi: [cat, dog], phone: [bird]}, at_home: 60%}``; groups alone: evenly, all of it."""
    rest = {name: value for name, value in given.items() if name not in ("groups", "at_home")}
    spec = _partition(rest) if rest else PartitionSpec()
    if spec.kind not in ("iid", "dirichlet"):
        raise ValueError(f"groups go with dirichlet or stand alone, not with {spec.kind}")
    groups = given["groups"]
    if not isinstance(groups, Mapping) or not groups:
        raise ValueError(f"groups: expected each group's labels, such as {{pi: [cat, dog]}}, got {describe(groups)}")
    found = []
    for name, labels in groups.items():
        if not isinstance(labels, (list, tuple)) or not labels:
            raise ValueError(f"groups: {name}: expected a list of labels, got {describe(labels)}")
        for label in labels:
            if isinstance(label, bool) or not isinstance(label, (str, int)):
                raise ValueError(f"groups: {name}: expected a label's name, got {describe(label)}")
        found.append((str(name), tuple(str(label) for label in labels)))
    try:
        at_home = units.parse_share(given.get("at_home", 1.0), zero=False)
    except ValueError as error:
        raise ValueError(f"at_home: {error}") from None
    return PartitionSpec(spec.kind, spec.value, tuple(found), at_home)


def _write_partition(spec: PartitionSpec) -> Any:
    if spec.groups:
        plain = {} if spec.value is None else {spec.kind: spec.value}
        part = {} if spec.at_home == 1 else {"at_home": spec.at_home}
        return {**plain, "groups": {name: list(labels) for name, labels in spec.groups}, **part}
    return spec.kind if spec.value is None else {spec.kind: spec.value}


_PARTITION_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"const": "iid"},
        {
            "type": "object",
            "properties": {
                "dirichlet": {"type": "number", "exclusiveMinimum": 0},
                "groups": {
                    "type": "object",
                    "additionalProperties": {"type": "array", "items": {"type": ["string", "integer"]}, "minItems": 1},
                    "minProperties": 1,
                },
                "at_home": SHARE_SCHEMA,
            },
            "required": ["groups"],
            "additionalProperties": False,
        },
        *(
            {"type": "object", "properties": {name: schema}, "required": [name], "additionalProperties": False}
            for name, schema in {
                "dirichlet": {"type": "number", "exclusiveMinimum": 0},
                "shards": {"type": "integer", "minimum": 1},
                "by": {"type": "string"},
            }.items()
        ),
    ]
}


def _test(given: object) -> float | str:
    if isinstance(given, str) and given.strip() and not given.strip().endswith("%"):
        return given
    share = units.parse_share(given, zero=False)
    if share == 1:
        raise ValueError("100%: nothing is left to train on")
    return share


def _local_test(given: object) -> float | str:
    if given == "label_mix":
        return "label_mix"
    if isinstance(given, str) and not given.strip().endswith("%"):
        raise ValueError(f"expected label_mix or a share, such as 20%, got {describe(given)}")
    return _test(given)


def _write_share(value: float | str) -> str:
    return value if isinstance(value, str) else units.format_share(value)


class DataSpec(Section):
    """The data set, its columns, and how its rows are dealt to the devices."""

    dataset: Text = key("a bundled name, a file (csv, jsonl, parquet, npz), an image folder, or a Hub id")
    text: Text | None = key("column that holds the text", None)
    label: Text | None = key("column that holds the label", None)
    image: Text | None = key("column that holds the image", None)
    client: Text | None = key("column that names whose row it is", None)
    format: Text | None = key("the file's format, where its name doesn't say", None)
    test: (
        Annotated[float | str, Check(_test, {"anyOf": [*SHARE_SCHEMA["anyOf"], {"type": "string"}]}, _write_share)]
        | None
    ) = key("test rows: a share of the data, such as 20%, or a file", None)
    length: Annotated[int, integer(1, 1_000_000)] = key("tokens that a text is cut or padded to", 128)
    rows: Annotated[int, integer(1)] | None = key("use no more training rows than this", None)
    partition: Annotated[PartitionSpec, Check(_partition, _PARTITION_SCHEMA, _write_partition)] = key(
        "how rows are dealt to devices", PartitionSpec()
    )
    public: Annotated[int, integer(0)] = key("rows that server and devices share, for distillation", 0)
    local_test: Annotated[
        float | str,
        Check(_local_test, {"anyOf": [{"const": "label_mix"}, *SHARE_SCHEMA["anyOf"]]}, _write_share),
    ] = key(
        "a device's own test: label_mix reweights the test rows by its labels; a share keeps some of its rows",
        "label_mix",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        return {"dataset": given} if isinstance(given, str) else given
