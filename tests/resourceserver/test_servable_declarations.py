"""A declaration that cannot be served is refused before the server starts."""

from collections.abc import Callable
from typing import Annotated, Any

import pytest
from jsonschema import Draft202012Validator
from pydantic import Field, RootModel
from support.results import HALF, Closed, Node

from gatehouse.resourceserver.catalogue import (
    ANY_VALID_TOKEN,
    Catalogue,
    InvalidCatalogue,
    Scope,
    ToolGroup,
    declare_resource,
)


class EitherOrText(RootModel[Node | str]):
    """Not always an object."""


class Undescribed:
    """Not a type that pydantic knows."""


def declared(result: Any = Closed, argument: Any = str, default: Any = ..., description: str = "Return.") -> Catalogue:
    async def tool(value: Any = None) -> Any:
        return None

    group = ToolGroup()
    tool.__doc__, tool.__annotations__ = description, {"value": argument, "return": result}
    tool.__defaults__ = None if default is ... else (default,)
    group.tool(scopes=ANY_VALID_TOKEN)(tool)
    return Catalogue("test", [Scope("a:b", "Nothing")], [group])


Pattern = Annotated[str, Field(pattern=r"^(?!-)[a-z-]+$")]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"argument": Pattern}, "the argument value, .* pattern cannot be compiled: look-around.* Write a simpler"),
        (
            {"argument": list[Annotated[str, Field(pattern="(")]]},
            "the argument value, .* unclosed group.* Write a simpler",
        ),
        ({"argument": Undescribed}, "the argument value, whose type JSON cannot represent: .* Use a type"),
        (
            {"argument": Callable[[], int]},
            "the argument value, whose type JSON cannot represent: .* Use",
        ),
        ({"argument": float, "default": float("inf")}, "the description of tool cannot be sent as JSON. NaN, Infinity"),
        ({"description": HALF}, "the description of tool cannot be sent as JSON. Half of a surrogate pair"),
        ({"result": EitherOrText}, "tool does not return a JSON object: EitherOrText can be something else. Put its"),
        ({"result": RootModel[list[str]]}, "does not return a JSON object"),
        ({"result": Annotated[str, Field()]}, "does not return a pydantic model. Annotate its result"),
    ],
)
def test_a_declaration_that_cannot_be_served_is_refused_with_its_reason(options: dict[str, Any], problem: str) -> None:
    assert declared().tools["tool"]
    with pytest.raises(InvalidCatalogue, match=rf"test_servable_declarations\.py:\d+: .*{problem}"):
        declared(**options)


@pytest.mark.parametrize("limit", ["", "30", "30/day", "0/minute", 30, ["30/minute"]])
def test_a_limit_that_is_no_rate_is_refused(limit: Any) -> None:
    def tool() -> Closed:
        """Return."""
        return Closed()

    ToolGroup().tool(scopes=ANY_VALID_TOKEN, limit="30/minute")(tool)
    with pytest.raises(InvalidCatalogue, match=r"test_servable_declarations\.py:\d+: tool has the limit .*30/minute"):
        ToolGroup().tool(scopes=ANY_VALID_TOKEN, limit=limit)(tool)


@pytest.mark.parametrize("argument", [Node, list[Node], Annotated[Node, Field(description="A tree.")]])
def test_an_argument_may_contain_itself(argument: Any) -> None:
    tool = declared(argument=argument).tools["tool"]
    Draft202012Validator.check_schema(dict(tool.input_schema))


@pytest.mark.parametrize("field", ["name", "instructions", "scope", "resource"])
def test_a_text_of_a_catalogue_that_cannot_be_sent_is_refused(field: str) -> None:
    texts = {name: HALF if name == field else "fine" for name in ("name", "instructions", "scope", "resource")}
    resource = declare_resource("a:b", lambda _: {}, name="a", description=texts["resource"], scopes=ANY_VALID_TOKEN)
    with pytest.raises(InvalidCatalogue, match=r"cannot be sent as JSON\. Half of a surrogate pair"):
        Catalogue(texts["name"], [Scope("a:b", texts["scope"])], [], [resource], instructions=texts["instructions"])


def exits(_: str) -> dict[str, Any]:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("read", "problem"),
    [
        (exits, "cannot be read: SystemExit: 3"),
        (lambda _: {"n": float("nan")}, "cannot be sent as JSON. NaN"),
        (lambda _: {"n": [{"x": float("inf")}]}, "cannot be sent as JSON. NaN"),
        (lambda _: {"n": HALF}, "cannot be sent as JSON. Half"),
        (lambda _: {"n": {HALF: 1}}, "cannot be sent as JSON. Half"),
        (lambda _: {"n": b"\xff"}, "cannot be sent as JSON. There is a type"),
        (lambda _: {float("nan"): 1}, "cannot be sent as JSON. NaN"),
        (lambda _: {1: "a", "1": "b"}, "cannot be sent as JSON. An object has the same member twice"),
        (lambda _: {"n": object()}, "cannot be sent as JSON. There is a type"),
    ],
)
def test_a_resource_that_cannot_be_served_is_refused_with_its_reason(read: Any, problem: str) -> None:
    reads: list[str] = []

    def sound(identifier: str) -> dict[str, Any]:
        reads.append(identifier)
        return {"of": identifier}

    options: dict[str, Any] = {"name": "a", "description": "a", "scopes": ANY_VALID_TOKEN}
    fine = Catalogue("test", [Scope("a:b", "")], [], [declare_resource("a:fine", sound, **options)])
    assert fine.contents("rs") is fine.contents("rs")
    assert (fine.contents("rs")["a:fine"], reads) == ('{"of":"rs"}', ["rs"])
    broken = Catalogue("test", [Scope("a:b", "")], [], [declare_resource("a:broken", read, **options)])
    with pytest.raises(InvalidCatalogue, match=f"a:broken {problem}"):
        broken.contents("rs")
