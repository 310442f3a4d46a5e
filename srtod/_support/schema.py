"""Values from files, read as the types of a schema: what does not fit is refused with its place and what it should be.

A schema is a `msgspec.Struct`. The description of a field, `Annotated[int, Meta(description="an integer")]`, says in
errors what its value must be.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, get_type_hints

import msgspec
import numpy as np

__all__ = ["decode_each", "read_as"]

Schema = TypeVar("Schema", bound=msgspec.Struct)

_MISSING = re.compile(r"missing required field `(\w+)`")
_FIELD = re.compile(r"at `\$\.(\w+)")


def read_as(schema: type[Schema], value: Any, where: str) -> Schema:
    """A mapping as a schema's type; keys that the schema does not have are left aside.

    Args:
        schema: the type.
        value: what was read, or given from Python: NumPy's numbers and arrays are numbers and lists.
        where: what errors call it.

    Raises:
        ValueError: if it is no mapping, a key is missing, or a value is of another type or out of its range.
    """
    try:
        return msgspec.convert(value, schema)
    except msgspec.ValidationError:
        pass
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be a JSON object, got {type(value).__name__}")
    known = {name: value[name] for name in schema.__struct_fields__ if name in value}
    try:
        return msgspec.convert(msgspec.to_builtins(known, enc_hook=_plain), schema)
    except msgspec.ValidationError as error:
        if missing := _MISSING.search(str(error)):
            raise ValueError(f"{where} has no {missing[1]!r}") from None
        [name] = _FIELD.findall(str(error))
        raise ValueError(
            f"{where}: {name!r} must be {_description(schema, name)}, got {reprlib.repr(known[name])}"
        ) from None


def decode_each(schema: type[Schema], entries: list[msgspec.Raw]) -> Iterator[Schema]:
    """Entries of JSON as a schema's type, one at a time; the list is empty in the end.

    Each is let go once it is read: what is read and what is still to be read are never there in full together.

    Raises:
        msgspec.DecodeError: if an entry does not fit; `read_as` then finds words for it.
    """
    decode = msgspec.json.Decoder(schema).decode
    entries.reverse()
    while entries:
        yield decode(entries.pop())


def _plain(value: Any) -> Any:
    """What `msgspec` does not know, as what it knows."""
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else repr(value)


def _description(schema: type[msgspec.Struct], name: str) -> str:
    hint = get_type_hints(schema, include_extras=True)[name]
    [description] = [meta.description for meta in hint.__metadata__ if meta.description]
    return str(description)
