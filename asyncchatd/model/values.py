"""Values: records that nobody changes once they are made, not by mistake either.

A ping makes nine of them, so making one must cost next to nothing. A frozen data class goes through
`object.__setattr__` for each field and takes three times as long as one that is not frozen; a `msgspec.Struct` is
made in C, frozen or not, and takes a fraction of both.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Annotated, TypeVar, get_type_hints

import msgspec

if TYPE_CHECKING:
    from dataclasses import replace  # whose calls the type checker checks field by field
else:
    from msgspec.structs import replace

__all__ = ["Hidden", "Value", "replace"]

T = TypeVar("T")

_HIDDEN = object()

Hidden = Annotated[T, _HIDDEN]
"""The type of a field that no `repr` shows: a secret, or what a customer wrote."""


class Value(msgspec.Struct, frozen=True):
    """The base class of values: compared and hashed by their fields, printed without the `Hidden` ones.

    A class says `frozen=True` itself, for the type checker. `replace` makes a changed copy.
    """

    def __repr__(self) -> str:
        shown = (f"{name}={getattr(self, name)!r}" for name in _shown(type(self)))
        return f"{type(self).__name__}({', '.join(shown)})"


@cache
def _shown(kind: type[Value]) -> tuple[str, ...]:
    """The names of the fields that a `repr` shows."""
    types = get_type_hints(kind, include_extras=True)
    marks = {name: getattr(of, "__metadata__", ()) for name, of in types.items()}
    return tuple(name for name in kind.__struct_fields__ if _HIDDEN not in marks[name])
