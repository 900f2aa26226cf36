"""The build hook: compiles the hot modules (`simulator.compiled`) while the project is being installed.

Without a C compiler, or with ``SERVESIM_PURE=1``, the project is installed as plain Python and runs at about half the
speed; ``sim --version`` says which it is.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompileHook(BuildHookInterface[Any]):
    """Puts the machine code beside its sources; an editable installation finds it there, a wheel takes it along."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel" or os.environ.get("SERVESIM_PURE") or not self._compile():
            return
        if version == "standard":
            build_data["artifacts"].append("/simulator/compiled/*-*-*/**")
            build_data["pure_python"], build_data["infer_tag"] = False, True

    def _compile(self) -> bool:
        sys.path.insert(0, str(Path(self.root)))
        from simulator import compiled
        from simulator.compiled.build import CompileError, build

        try:
            if not compiled.folder().is_dir():
                build()
        except CompileError as error:
            self.app.display_warning(f"installed as plain Python, at about half the speed: {error}")
            return False
        return True
