"""mypyc's class attributes, which are a hint to the compiler, and what a class does at run time to be both.

An instance of a compiled class keeps its attributes in C and has no ``__dict__``, so `pickle` does not find them: a
class that travels between processes hands over `attributes_of` itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["attributes_of", "mypyc_attr", "set_attributes"]

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:

    def mypyc_attr(*flags, **values):
        """Leave the class as it is: mypy_extensions need not be installed where nothing is compiled."""
        return lambda cls: cls


def attributes_of(thing: object) -> dict[str, Any]:
    """All attributes of *thing* by name, for ``__getstate__``: compiled ones, and those of a Python subclass."""
    names = [*getattr(thing, "__mypyc_attrs__", ()), *getattr(thing, "__dict__", ())]
    return {name: getattr(thing, name) for name in names if name != "__dict__" and hasattr(thing, name)}


def set_attributes(thing: object, state: dict[str, Any]) -> None:
    """Give *thing* the attributes that `attributes_of` found, for ``__setstate__``."""
    for name, value in state.items():
        setattr(thing, name, value)
