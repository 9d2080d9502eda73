"""Reads the type of a tool's result: a pydantic model whose JSON is an object, which is what MCP can carry."""

from collections.abc import Mapping
from typing import Annotated, Any, cast, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import CoreConfig, SchemaSerializer

_DEFINITIONS = "#/$defs/"


def unwrapped(hint: Any) -> Any:
    """Return the type within `Annotated`."""
    while get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    return hint


def object_schema(model: type[BaseModel]) -> dict[str, Any] | None:
    """Return the JSON schema of a model as it is serialized; None if its JSON is not always an object.

    MCP requires `"type": "object"` at the root. pydantic writes a reference there for a model that contains itself, and
    `anyOf` or `oneOf` for a root model of several.

    Raises:
        Exception: pydantic cannot describe the model.
    """
    schema = model.model_json_schema(mode="serialization")
    definitions = schema.get("$defs", {})
    root = {**schema, **_resolve({"$ref": schema["$ref"]}, definitions)} if "$ref" in schema else schema
    root.pop("$ref", None)
    return {**root, "type": "object"} if _is_object(root, definitions) else None


def strict_serializer(model: type[BaseModel]) -> SchemaSerializer:
    """Return a serializer of a model that keeps NaN and the infinities, so that they can be refused.

    By default, pydantic writes null for them where the type is Any. A model whose configuration has `ser_json_inf_nan`
    says what it means. The model must be completely defined.
    """
    own = {name: value for name, value in model.model_config.items() if name.startswith("ser_json_")}
    return SchemaSerializer(
        model.__pydantic_core_schema__, cast("CoreConfig", {"ser_json_inf_nan": "constants", **own})
    )


def _resolve(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follow references, each once: a model that consists only of itself never ends."""
    for _ in definitions:
        if "$ref" not in schema:
            break
        schema = definitions[schema["$ref"].removeprefix(_DEFINITIONS)]
    return schema


def _is_object(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> bool:
    if "type" in schema:
        return bool(schema["type"] == "object")
    alternatives = schema.get("anyOf", schema.get("oneOf", ()))
    resolved = [_resolve(alternative, definitions) for alternative in alternatives]
    return bool(resolved) and all(each.get("type") == "object" for each in resolved)
