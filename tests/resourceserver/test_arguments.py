"""Arguments: which numbers are integers, and what a caller is told of an unknown argument."""

import json
from collections.abc import Mapping
from enum import IntEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import ResourceServer, running_resource_server

from gatehouse.resourceserver.catalogue import Catalogue, Scope, ToolGroup
from gatehouse.resourceserver.catalogue.input_schema import unknown_argument
from gatehouse.resourceserver.catalogue.signature import arguments_model
from gatehouse.resourceserver.dispatch.payload import explain, read_arguments


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Level(IntEnum):
    LOW = 1
    HIGH = 2


class Circle(Strict):
    kind: Literal["circle"]
    radius: int


class Square(Strict):
    kind: Literal["square"]
    side: int
    labels: dict[str, int] = {}


MODEL = arguments_model(
    "draw",
    {
        "count": (int, 1),
        "small": (Annotated[int, Field(ge=0, le=9)], 1),
        "maybe": (int | None, None),
        "either": (int | str, 1),
        "level": (Level, Level.LOW),
        "choice": (Literal[1, 2], 1),
        "counts": (list[int], []),
        "pair": (tuple[int, Circle] | None, None),
        "shape": (Annotated[Circle | Square, Field(discriminator="kind")] | None, None),
        "shapes": (list[Circle], []),
        "plain": (Circle | Square | None, None),
        "ratio": (float, 0.5),
        "text": (str, ""),
        "flag": (bool, False),
        "anything": (Any, None),
    },
)
SCHEMA = MODEL.model_json_schema()


def read(sent: Mapping[str, Any]) -> dict[str, Any]:
    arguments, _ = read_arguments(MODEL, sent)
    return arguments.model_dump(exclude_unset=True)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ('{"count": 5.0}', {"count": 5}),
        ('{"count": 5e2}', {"count": 500}),
        ('{"count": -0.0}', {"count": 0}),
        ('{"count": 9007199254740991.0}', {"count": 2**53 - 1}),
        ('{"small": 9.0}', {"small": 9}),
        ('{"maybe": 3.0}', {"maybe": 3}),
        ('{"either": 3.0}', {"either": 3}),
        ('{"level": 2.0}', {"level": 2}),
        ('{"choice": 2.0}', {"choice": 2}),
        ('{"counts": [1.0, 2, 3.0]}', {"counts": [1, 2, 3]}),
        ('{"pair": [1.0, {"kind": "circle", "radius": 2.0}]}', {"pair": (1, {"kind": "circle", "radius": 2})}),
        ('{"shape": {"kind": "circle", "radius": 2.0}}', {"shape": {"kind": "circle", "radius": 2}}),
        (
            '{"shape": {"kind": "square", "side": 1.0, "labels": {"square": 7.0}}}',
            {"shape": {"kind": "square", "side": 1, "labels": {"square": 7}}},
        ),
        ('{"plain": {"kind": "circle", "radius": 2.0}}', {"plain": {"kind": "circle", "radius": 2}}),
    ],
)
def test_a_whole_number_with_a_zero_fraction_is_an_integer(sent: str, expected: dict[str, Any]) -> None:
    arguments = read(json.loads(sent))
    assert arguments == expected
    assert ".0" not in json.dumps(arguments)


@pytest.mark.parametrize(
    "sent",
    [
        *('{"count": 5.5}', '{"count": 1e-9}', '{"count": 9007199254740992.0}', '{"count": 1e300}', '{"count": "5.0"}'),
        *('{"count": "5"}', '{"count": true}', '{"count": [5.0]}', '{"count": {"int": 5.0}}', '{"count": null}'),
        *('{"small": 10.0}', '{"level": 3.0}', '{"choice": 3.0}', '{"counts": [1.0, 1.5]}', '{"counts": 1.0}'),
        *('{"flag": 1.0}', '{"flag": 1}', '{"text": 1.0}', '{"shape": {"kind": "circle", "radius": 2.5}}'),
        *('{"shape": {"kind": "circle", "side": 2.0}}', '{"either": 2.5}', '{"surplus": 1.0}'),
    ],
)
def test_any_other_value_for_an_integer_is_refused(sent: str) -> None:
    with pytest.raises(ValidationError):
        read(json.loads(sent))


def test_a_fraction_stays_where_the_schema_does_not_say_integer() -> None:
    sent = {"ratio": 2.0, "anything": {"count": 5.0}, "count": 5.0}
    arguments, normal = read_arguments(MODEL, sent)
    assert json.dumps(normal) == '{"ratio": 2.0, "anything": {"count": 5.0}, "count": 5}'
    assert json.dumps(sent) == '{"ratio": 2.0, "anything": {"count": 5.0}, "count": 5.0}'
    assert isinstance(getattr(arguments, "ratio"), float)  # noqa: B009 - the model is made at run time


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        ({"zzyzx": 1}, f"unknown argument; the arguments are: {', '.join(MODEL.model_fields)}"),
        ({"shapes": [{"kind": "circle", "radius": 1, "zzyzx": 1}]}, "shapes.0: unknown member; the members are: "),
        (
            {"shape": {"kind": "square", "side": 1, "zzyzx": 1}},
            "shape.square: unknown member; the members are: kind, radius, side, labels",
        ),
        ({"pair": [1, {"kind": "circle", "radius": 1, "zzyzx": 1}]}, "pair.1: unknown member; the members are: kind"),
    ],
    ids=["top", "list", "union", "tuple"],
)
def test_an_unknown_argument_is_refused_with_the_names_that_exist(sent: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        read(sent)
    message = explain(caught.value, SCHEMA)
    assert told in message
    assert "zzyzx" not in message


def test_two_unknown_arguments_are_explained_once() -> None:
    with pytest.raises(ValidationError) as caught:
        read({"first": 1, "second": 2, "count": "secret"})
    message = explain(caught.value, SCHEMA)
    assert message.count("unknown argument") == 1
    assert "count: Input should be a valid integer" in message
    assert "secret" not in message


def test_tens_of_thousands_of_problems_are_not_listed() -> None:
    """CWE-400: a call that lists 90,000 unknown arguments would hold up all others for seconds."""
    unknown = dict.fromkeys(map(str, range(10_001)), 1)
    for sent in (unknown, {"shape": {"kind": "circle", "radius": 5, **unknown}}):
        with pytest.raises(ValidationError) as caught:
            read(sent)
        assert explain(caught.value, SCHEMA).endswith("in more than 10000 places.")


@pytest.mark.parametrize(
    ("schema", "parent", "told"),
    [
        ({}, (), "unknown argument; there are no arguments"),
        ({"properties": {"a": {}}}, (), "unknown argument; the arguments are: a"),
        ({"properties": {"a": {"$ref": "#/$defs/B"}}}, ("a",), "a: unknown member; there are no members"),
        ({"additionalProperties": {"properties": {"b": {}}}}, ("x",), "x: unknown member; the members are: b"),
        ({"properties": {"a": {"items": True}}}, ("a", 0), "a.0: unknown member; there are no members"),
    ],
)
def test_any_input_schema_can_be_read(schema: dict[str, Any], parent: tuple[int | str, ...], told: str) -> None:
    assert unknown_argument(schema, parent) == told


group = ToolGroup()


class Sum(BaseModel):
    total: int


@group.tool(scopes=["t:use"], read_only=True)
async def add(first: int, second: int = 0) -> Sum:
    """Add."""
    return Sum(total=first + second)


CATALOGUE = Catalogue("Numbers", [Scope("t:use", "Use")], [group])


@pytest.mark.anyio
async def test_a_call_reads_whole_numbers_and_names_the_arguments(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    async with running_resource_server(tmp_path, resourceserver_template, clock, CATALOGUE) as server:
        token = server.issuer.token("t:use")
        assert await server.result("add", token, first=2.0, second=3) == {"total": 5}
        failure = await unknown(server, token)
    assert "unknown argument; the arguments are: first, second" in failure
    assert "zzyzx" not in failure
    assert "8315" not in failure


async def unknown(server: ResourceServer, token: str) -> str:
    return await server.failure("add", token, first=1, zzyzx=8315)
