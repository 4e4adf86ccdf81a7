"""Build hook: the catalogue (models/ and datasets/) travels inside the wheel.

An editable install reads both folders beside the checkout, so nothing is copied there: a copy would go stale
at the first edit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

CATALOGUE = {"models": "nlmegen/_models", "datasets": "nlmegen/_datasets"}


class CatalogueHook(BuildHookInterface):
    """Add the catalogue's folders to a wheel that is not editable."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Fill `force_include`; `version` is the kind of wheel ("standard" or "editable")."""
        if version == "editable":
            return
        for folder, place in CATALOGUE.items():
            source = Path(self.root) / folder
            if not source.is_dir():
                raise FileNotFoundError(f"the wheel carries {folder}/, which is not at {source}")
            build_data["force_include"][str(source)] = place
