"""A stand-in for `save_fit` that computes nothing from a fit, for tests of what comes before it."""

from __future__ import annotations

import json
from pathlib import Path


def save_nothing(fit: object, directory: str | Path, force: bool = False) -> Path:
    """Write a folder whose only content is that nothing is left out."""
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fit.json").write_text(json.dumps({"notes": []}))
    return folder
