"""mypyc's class attributes, which are a hint to the compiler and nothing at run time."""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["mypyc_attr"]

if TYPE_CHECKING:
    from mypy_extensions import mypyc_attr
else:

    def mypyc_attr(*flags, **values):
        """Leave the class as it is: mypy_extensions need not be installed where nothing is compiled."""
        return lambda cls: cls
