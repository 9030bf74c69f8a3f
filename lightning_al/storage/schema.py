"""Dataclasses as files: every field is checked when it is read, and an error names the file and the field."""

import json
import types
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from lightning_al.storage.atomic_write import write_atomically

T = TypeVar("T")
REMEDY = "restore the file from a copy, or use the version of lightning_al that wrote it"


class DamagedFileError(ValueError):
    """A file of a run with missing or wrong content; the message names the file and the field."""


def from_mapping(schema: type[T], values: Any, source: str) -> T:
    """Return a dataclass made from the values of a file.

    Args:
        schema: The dataclass; its annotations are the expected types.
        values: A mapping from field names to values; names that are no fields are ignored.
        source: The file, and the position in it, for messages.

    Returns:
        An instance of `schema`.

    Raises:
        DamagedFileError: If a field is missing or holds a value of another type.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Point:
        ...     x: float
        >>> from_mapping(Point, {"x": 1.5}, "points.json")
        Point(x=1.5)
        >>> from_mapping(Point, {"x": "left"}, "points.json")
        Traceback (most recent call last):
        lightning_al.storage.schema.DamagedFileError: points.json: `x` is 'left', expected float; restore the file ...

    """
    if not isinstance(values, Mapping):
        raise DamagedFileError(f"{source} holds a {type(values).__name__}, expected fields with names; {REMEDY}.")
    hints = get_type_hints(schema)
    arguments = {}
    for field in fields(schema):  # type: ignore[arg-type]
        if field.name in values:
            arguments[field.name] = _convert(hints[field.name], values[field.name], source, field.name)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise DamagedFileError(f"{source} lacks the field `{field.name}`; {REMEDY}.")
    return schema(**arguments)


def load_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If it is not JSON.

    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _not_json(path, error) from error


def parse_json(line: bytes, source: str) -> Any:
    """Return the content of a line of a file with one JSON value per line.

    Args:
        line: The line.
        source: The file and the position in it, for the message.

    Raises:
        DamagedFileError: If it is not JSON.

    """
    try:
        return json.loads(line)
    except ValueError as error:
        raise _not_json(source, error) from error


def _not_json(source: Path | str, error: ValueError) -> DamagedFileError:
    return DamagedFileError(f"{source} is not valid JSON ({error}); {REMEDY}.")


def read_json(schema: type[T], path: Path) -> T:
    """Read a dataclass from a JSON file.

    Raises:
        FileNotFoundError: If there is no such file.
        DamagedFileError: If it is not JSON, or a field is missing or of another type.

    """
    return from_mapping(schema, load_json(path), str(path))


def write_json(path: Path, value: Any) -> None:
    """Write a dataclass as a JSON file, atomically, as `read_json` reads it."""
    write_atomically(path, json.dumps(asdict(value), indent=1) + "\n")


def _convert(expected: Any, value: Any, source: str, name: str) -> Any:
    """Return a value, and the entries of a container, as the types of its annotation."""
    origin, arguments = get_origin(expected), get_args(expected)
    if expected is Any:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (expected,) = (argument for argument in arguments if argument is not type(None))
        return _convert(expected, value, source, name)
    if is_dataclass(expected):
        return from_mapping(expected, value, f"{source}, {name}")  # type: ignore[arg-type]
    if origin is list and isinstance(value, list):
        if set(map(type, value)) == set(arguments):  # all at once, since there may be millions of numbers
            return value
        return [_convert(arguments[0], entry, source, f"{name}[{row}]") for row, entry in enumerate(value)]
    if origin is dict and isinstance(value, Mapping):
        return {str(key): _convert(arguments[1], entry, source, f"{name}.{key}") for key, entry in value.items()}
    if expected is float and type(value) is int:
        return float(value)
    if origin is None and type(value) is expected:  # exactly: True is no number
        return value
    expected_name = getattr(origin or expected, "__name__", expected)
    raise DamagedFileError(f"{source}: `{name}` is {value!r}, expected {expected_name}; {REMEDY}.")
