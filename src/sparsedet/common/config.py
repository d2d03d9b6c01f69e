"""The models that configuration files fill: strict, frozen, and with errors that say where and what to do."""

import json
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.representer import RoundTripRepresenter

from sparsedet.common.document import Document, KeyPath, format_path, key_paths
from sparsedet.common.errors import ConfigError, did_you_mean


class ConfigModel(BaseModel):
    """Base of everything that a configuration file can say: frozen, unknown keys forbidden."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


Model = TypeVar("Model", bound=ConfigModel)


def validate(model: type[Model], document: Document, path: KeyPath = ()) -> Model:
    """Fill `model` with the data at `path` of `document`.

    Raises:
        ConfigError: one line for each fault: place, key path, expected, got, what to do next.
    """
    data: Any = document.data
    for key in path:
        data = data[key]
    faults = [_none_fault(document, (*path, *found)) for found in key_paths(data) if _get(data, found) == "None"]
    if faults:
        raise ConfigError("\n".join(faults))
    try:
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        messages = [
            _fault(model, document, path, data, details)
            for details in error.errors(include_url=False)
            if not _follows(details)
        ]
        raise ConfigError("\n".join(dict.fromkeys(messages))) from error


def dump(model: ConfigModel) -> dict[str, Any]:
    """Return the resolved configuration as plain data that validates back to an equal model."""
    return model.model_dump(mode="json")


class _Representer(RoundTripRepresenter):
    """Writes null as ``null``, where ruamel leaves the place empty."""


_Representer.add_representer(
    type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
)


def to_yaml(data: Mapping[str, Any]) -> str:
    """Return plain data as YAML 1.2."""
    yaml = YAML()
    yaml.Representer = _Representer
    stream = StringIO()
    yaml.dump(dict(data), stream)
    return stream.getvalue()


def _get(data: Any, path: KeyPath) -> Any:
    for key in path:
        data = data[key]
    return data


def _follows(details: Any) -> bool:
    """Return whether a pydantic error only follows from another one: of a default, or of an entry of a list."""
    if details["type"] == "too_short":
        return bool(len(details["input"]) != details["ctx"]["actual_length"])
    return bool(details["type"] == "default_factory_not_called")


def _none_fault(document: Document, path: KeyPath) -> str:
    return (
        f"{document.position(path)}: {format_path(path)}: expected a value, got the text 'None'. "
        "Write null, or leave the key out."
    )


def _fault(model: type[ConfigModel], document: Document, path: KeyPath, data: Any, details: Any) -> str:
    """Say one pydantic error in the project's form."""
    location, fields = _locate(data, details["loc"], model)
    where = f"{document.position((*path, *location))}: {format_path((*path, *location)) or 'top level'}"
    value = details.get("input")
    kind = details["type"]
    context = details.get("ctx", {})
    if kind == "extra_forbidden":
        name = str(location[-1])
        known = sorted(fields)
        return (
            f"{where}: expected one of {known}, got the unknown key '{name}'.{did_you_mean(name, known)} "
            "Correct or remove it."
        )
    if kind == "missing":
        key = format_path((*path, *location))
        return f"{where}: expected a value, got nothing. Add the key, or give it with --set {key}=…"
    if kind == "union_tag_invalid":
        tags = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        tag = context["tag"]
        return f"{where}.type: expected one of {sorted(tags)}, got '{tag}'.{did_you_mean(tag, tags)} Correct it."
    if kind == "union_tag_not_found":
        return f"{where}: expected a mapping with the key 'type', got {_show(value)}. Add 'type:'."
    if kind == "value_error":
        return f"{where}: {context['error']}"
    return f"{where}: expected {_expected(details)}, got {_show(value)}. Correct the value."


def _expected(details: Any) -> str:
    """Turn pydantic's 'Input should be …' into the contract alone."""
    if details["type"] == "too_short":
        return f"at least {details['ctx']['min_length']} of them"
    text = str(details["msg"])
    for prefix in ("Input should be ", "Input should have ", "Value should be "):
        text = text.removeprefix(prefix)
    return text[0].lower() + text[1:] if text else "a valid value"


def _show(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"


def _locate(data: Any, location: Sequence[str | int], model: Any) -> tuple[KeyPath, set[str]]:
    """Drop the union tags that pydantic puts into `location`; also return the field names allowed there."""
    path: list[str | int] = []
    fields = set(model.model_fields)
    current: Any = model
    for position, key in enumerate(location):
        is_last = position == len(location) - 1
        is_tag = isinstance(data, dict) and key not in data and (key == data.get("type") or not is_last)
        if not isinstance(data, dict | list):  # a scalar has no keys: this names a branch of a union
            break
        if is_tag:
            current = _member(current, str(key))
            fields = set(getattr(current, "model_fields", fields))
            continue
        path.append(key)
        if not is_last and isinstance(data, dict):
            info = getattr(current, "model_fields", {}).get(key)
            current = info.annotation if info else None
            current = _only_model(current)
            fields = set(getattr(current, "model_fields", fields))
        data = (
            data.get(key)
            if isinstance(data, dict)
            else data[key]
            if isinstance(data, list) and isinstance(key, int) and key < len(data)
            else None
        )
    return tuple(path), fields


def _models(annotation: Any) -> Iterator[type[ConfigModel]]:
    """Yield the configuration classes named anywhere in a type annotation."""
    if isinstance(annotation, type) and issubclass(annotation, ConfigModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _only_model(annotation: Any) -> Any:
    found = list(_models(annotation))
    return found[0] if len(found) == 1 else annotation


def _member(annotation: Any, tag: str) -> Any:
    """Return the class of a union whose `type` is `tag`."""
    for candidate in _models(annotation):
        if tag in get_args(candidate.model_fields["type"].annotation if "type" in candidate.model_fields else None):
            return candidate
    return annotation
