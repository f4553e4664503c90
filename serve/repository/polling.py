"""What has changed in a model repository's folder since it was last looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

Stamp = tuple[tuple[str, int, int], ...]
"""Path, time of change and size of every file of a model."""

_MAX_FILES = 10_000


class Changes(NamedTuple):
    """Names of models."""

    to_load: list[str]
    to_unload: list[str]


def stamp_of(model_dir: Path) -> Stamp:
    """Of the files that are there now; of a folder with very many, the first."""
    return tuple(sorted(entry for entry, _ in zip(_files(model_dir), range(_MAX_FILES), strict=False)))


def changes(before: Mapping[str, Stamp], now: Mapping[str, Stamp]) -> Changes:
    """Models that are new or others than before, and those that are gone; in the order of their names."""
    to_load = [name for name, stamp in sorted(now.items()) if before.get(name) != stamp]
    return Changes(to_load, sorted(before.keys() - now.keys()))


def _files(folder: Path) -> Iterator[tuple[str, int, int]]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(parent, name)
            try:
                found = os.stat(path)
            except OSError:
                continue  # taken away meanwhile: the next look will tell
            yield path, found.st_mtime_ns, found.st_size
