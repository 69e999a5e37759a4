"""Plain values: data classes that nobody changes once they are made.

For the type checker they are frozen. At run time they are not: a frozen data class goes through
`object.__setattr__` for each field, and a ping makes nine such values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def plain(cls: type[T]) -> type[T]:
    """Class decorator: compared, hashed and printed by its fields; `field(repr=False)` for a secret."""
    return dataclass(slots=True, unsafe_hash=True)(cls)
