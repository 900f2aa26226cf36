"""Files that hold a mapping in YAML: deployments, clusters, studies, prices."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from simulator.errors import InputError

__all__ = ["read_mapping"]


def read_mapping(path: str | Path, holds: str, section: str = "") -> dict[Any, Any]:
    """The mapping in the file at *path*; *holds* says in words what of.

    *section*: where the file has a part of this name, as a run's ``config.yaml`` has, that part alone.
    Raises `InputError` for a file that cannot be read, is not YAML, holds something else, or states a key twice.
    """
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(path, f"cannot be read: {error.strerror or error}") from None
    except _TwiceError as error:
        raise InputError(path, "is stated before, too", line=error.line, field=error.key) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(path, f"is not YAML: {' '.join(str(error).split())}") from None
    if isinstance(values, dict) and section in values:
        values = values[section]
    if not isinstance(values, dict):
        raise InputError(path, f"must hold a mapping{holds}")
    return values


class _TwiceError(Exception):
    def __init__(self, key: object, line: int) -> None:
        super().__init__(key)
        self.key, self.line = str(key), line


class _Loader(yaml.SafeLoader):
    """YAML wants keys to be unique (1.2.2, section 3.2.1.1); PyYAML takes the last of equal ones."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As `yaml.SafeLoader` does it, once the keys are seen to differ; ``<<`` may bring a key again."""
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise _TwiceError(key, key_node.start_mark.line + 1)
            seen.add(key if isinstance(key, Hashable) else str(key))
        return super().construct_mapping(node, deep)
