"""The options of a configuration as a flat list, and the TOML text that shows or stores them.

A settings model is a tree of pydantic models. Its leaves are options with dotted names such as `inversion.iterations`.
TOML has no null, so `None` is written as the string "none", which only an option that may be None reads back as None.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel

NONE = "none"


@dataclass(frozen=True)
class Option:
    """One leaf of a settings tree: its dotted name, its value there, what it means and which types it takes."""

    name: str
    value: Any
    description: str
    accepts: frozenset[Any]

    @property
    def may_be_none(self) -> bool:
        return types.NoneType in self.accepts


def options_of(settings: BaseModel, prefix: str = "") -> dict[str, Option]:
    """Every option below `settings` by dotted name, in the order of their definition."""
    return {option.name: option for option in _walk(settings, prefix)}


def _walk(settings: BaseModel, prefix: str) -> Iterator[Option]:
    tables = []
    for key, field in type(settings).model_fields.items():
        value = getattr(settings, key)
        if isinstance(value, BaseModel):
            tables.append((f"{prefix}{key}.", value))
        else:
            yield Option(f"{prefix}{key}", value, field.description or "", frozenset(_alternatives(field.annotation)))
    for below, table in tables:
        yield from _walk(table, below)


def _alternatives(annotation: Any) -> Iterator[Any]:
    """The members of a union, or the annotation itself."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for member in typing.get_args(annotation):
            yield from _alternatives(member)
    elif typing.get_origin(annotation) is typing.Annotated:
        yield from _alternatives(typing.get_args(annotation)[0])
    else:
        yield annotation


def as_toml(
    settings: BaseModel, origins: Mapping[str, str] | None = None, defaults: Mapping[str, Option] | None = None
) -> str:
    """The options as TOML that reads back to the same settings, each below a comment that says what it means.

    origins     where each value comes from, by dotted name; said after every value that is not a default
    defaults    the options at their defaults, said after every value that differs from them
    """
    lines: list[str] = []
    table = ""
    for name, option in options_of(settings).items():
        above, _, key = name.rpartition(".")
        if above != table:
            lines += ["", f"[{above}]"] if lines else [f"[{above}]"]
            table = above
        if option.description:
            lines.append(f"# {' '.join(option.description.split())}")
        lines.append(f"{key} = {toml_value(option.value)}{_remark(option, origins, defaults)}")
    return "\n".join(lines) + "\n"


def _remark(option: Option, origins: Mapping[str, str] | None, defaults: Mapping[str, Option] | None) -> str:
    """Origin and default of one value as a comment at the end of its line; empty for a value left at its default."""
    origin = (origins or {}).get(option.name, "default")
    if origins is None or origin == "default":
        return "" if origins is None else "  # default"
    default = (defaults or {}).get(option.name)
    if default is None:
        return f"  # {origin}"
    return f"  # {origin}; default {toml_value(default.value)}"


def toml_value(value: Any) -> str:
    """One value as TOML.

    >>> toml_value(None), toml_value("a\\"b"), toml_value((1, 2.5)), toml_value(True), toml_value(1e-4)
    ('"none"', '"a\\\\"b"', '[1, 2.5]', 'true', '0.0001')
    """
    if value is None:
        return f'"{NONE}"'
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return repr(float(value))
    if isinstance(value, str | PurePath):
        # JSON escapes everything that TOML wants escaped except the delete character.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list | tuple):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{toml_value(str(key))} = {toml_value(item)}' for key, item in value.items())}}}"
    raise TypeError(f"A value of type {type(value).__name__} has no TOML form.")
