"""Read configs from YAML, set single values, and name what is wrong by its path in the file."""

import json
from collections.abc import Iterable
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ich.config.data import Data
from ich.config.schema import Config
from ich.config.section import Section, Unused
from ich.errors import IchError, one_line


def overrides_of(section: str, values: dict[str, Any]) -> list[str]:
    """Return values of a section as overrides, as `load` takes them."""
    return [f"{section}.{key}={json.dumps(value)}" for key, value in values.items()]  # JSON is YAML


_RENAMED = {
    "predict.test_time": "is now called predict.tta; rename it",
    "machine.tensorboard": "is now a value of machine.log_to: tensorboard; set that",
}
"""Keys of earlier versions, and what replaces them."""


class _AnyConfig(BaseModel):
    """The section that every kind of config has."""

    data: Data


_Model = TypeVar("_Model", bound=BaseModel)


class _OnceLoader(yaml.SafeLoader):
    """Refuses duplicate keys, of which YAML's own loader silently takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        duplicates = [key for place, key in enumerate(keys) if key in keys[:place]]
        if duplicates:
            raise yaml.YAMLError(f"{duplicates[0]} stands twice in one section, line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def load(path: Path, overrides: Iterable[str] = ()) -> Config:
    """Read a config and set single values of it.

    Args:
        path: a YAML file.
        overrides: `section.key=value` each; the value is read as YAML.

    Raises:
        IchError: no such file, no YAML, an unknown key or a value that does not fit, each named by its path in the
            file; an override that is not of the form, or that sets a key without effect.
    """
    return _load(path, overrides, Config)


def load_data(path: Path, overrides: Iterable[str] = ()) -> Data:
    """Read the data section of a config that may be of another kind, as a blend's is.

    Args:
        path, overrides: as `load` takes them.

    Raises:
        IchError: as `load` does.
    """
    return _load(path, overrides, _AnyConfig).data


def _load(path: Path, overrides: Iterable[str], schema: type[_Model]) -> _Model:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _OnceLoader)
    except OSError as error:
        raise IchError(f"config {path} cannot be read: {one_line(error)}; configs/ holds examples") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise IchError(f"config {path} is no YAML: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise IchError(
            f"config {path} holds {type(content).__name__}, expected sections of keys; configs/ holds examples"
        )
    return _validated(content, overrides, f"config {path}", schema)


def of_values(content: dict, overrides: Iterable[str], source: str) -> Config:
    """Make a config of sections of keys, as YAML gives them.

    Args:
        overrides: as `load` takes them.
        source: what the content is, for messages.

    Raises:
        IchError: as `load`.
    """
    return _validated(content, overrides, source, Config)


def _validated(content: dict, overrides: Iterable[str], source: str, schema: type[_Model]) -> _Model:
    content = {key: {} if value is None else value for key, value in content.items()}  # an empty section
    unused = Unused({_set(content, override) for override in overrides}, {})
    try:
        config = schema.model_validate(content, context=unused)
        if isinstance(config, Config):
            config._unused = unused.messages
        return config
    except ValidationError as error:
        raise IchError(f"{source}: " + "; ".join(map(_message, error.errors()))) from error


def differences(config: Config, other: Config) -> list[str]:
    """Return the values in which two configs train differently, `path: one's / other's`.

    Sections that do not change a training are ignored: a run knows its data by their digests, and the second stage has
    a directory of its own.
    """
    ignored = {"data", "predict", "sequence", "machine"}
    flat_one, flat_other = (dict(_flatten(c.model_dump(mode="json", exclude=ignored))) for c in (config, other))
    keys = [*flat_one, *(key for key in flat_other if key not in flat_one)]
    return [
        f"{key}: {flat_one.get(key)} / {flat_other.get(key)}"
        for key in keys
        if flat_one.get(key) != flat_other.get(key)
    ]


def _flatten(section: dict, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _set(content: dict, override: str) -> str:
    """Set a value of nested sections, or a whole section; return its key."""
    path, equals, text = override.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise IchError(f"--set {override!r} is not of the form section.key=value")
    for key in keys[:-1]:
        content = content.setdefault(key, {})
        if not isinstance(content, dict):
            raise IchError(f"--set {override!r}: {key} is no section")
    try:
        content[keys[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise IchError(f"--set {override!r}: the value is no YAML: {one_line(error)}") from error
    return path.strip()


def _message(error: ErrorDetails) -> str:
    """Return a sentence about an error of pydantic's, with the key's path in the file."""
    loc = [part for part in error["loc"] if part not in ("|preset", "|window")]
    where = ".".join(map(str, loc))
    if error["type"] == "extra_forbidden":
        if where in _RENAMED:
            return f"{where} {_RENAMED[where]}"
        section: type[BaseModel] = Config
        for part in loc[:-1]:
            if isinstance(part, str):  # else it is a place in a list
                section = _section_within(section.model_fields[part].annotation) or section
        return f"{where} is no known key; there are {', '.join(section.model_fields)}"
    if error["type"] == "missing":
        return f"{where} is missing"
    value = error["input"]
    if error["type"] in ("string_type", "path_type") and not isinstance(value, (list, dict, NoneType)):
        key = ".".join(part for part in loc if isinstance(part, str))
        return (
            f"{where} is {value}, which YAML reads as {type(value).__name__}, expected text; put it into quotes, on a"
            f" command line --set \"{key}='…'\""
        )
    return f"{where} is {one_line(repr(error['input']))}: {one_line(error['msg'])}"


def _section_within(annotation: Any) -> type[Section] | None:
    """Return the section that a field holds, also in a list or among other types."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_within, get_args(annotation))), None)
