"""Keeps what is derived from a model's files on this machine: compiled trees, engines, quantised copies.

Enters: a key and how to build. Leaves: a folder with the finished files, built once however many processes ask. Called
by the backends while they load.

    <root>/                      mode 0700, ours
        <name>-<key>/            the files, and manifest.json with their SHA-256; its time is when it was last used
        <name>-<key>.lock        held while somebody checks or builds the entry
        <name>-<key>.use         held, shared, by every process that uses it: such an entry is not evicted

An entry is written beside its place and renamed into it, so a process that dies leaves nothing half-written behind; one
that does not match its manifest is built again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from serve.errors import DependencyFailed

MANIFEST = "manifest.json"
_KEY_DIGITS = 32


def artefact_key(content: Path, *parts: str) -> str:
    """The key of what is derived from the file `content` by tools of these versions, on this kind of processor."""
    digest = hashlib.sha256()
    for part in (_sha256(content), *parts):
        digest.update(f"{len(part)}:{part}".encode())
    return digest.hexdigest()[:_KEY_DIGITS]


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Model and instruction sets of the processor: what code compiled for the native machine depends on."""
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    fields = dict(line.split(":", 1) for line in cpuinfo.read_text(errors="replace").splitlines() if ":" in line)
    values = {name.strip(): " ".join(sorted(value.split())) for name, value in fields.items()}
    return f"{platform.machine()} " + "; ".join(values[name] for name in wanted if name in values)


class ArtefactCache:
    """A folder of derived artefacts of at most `max_bytes`, the least recently used evicted; safe between processes."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._in_use: dict[str, int] = {}

    def get_or_build(self, key: str, name: str, build: Callable[[Path], None], progress: Callable[[str], None]) -> Path:
        """The folder of entry `name`-`key`, filled by `build(folder)` when it is not there yet; not to be written to.

        The entry stays in use, and in place, until `close` or the end of the process. Raises DependencyFailed when the
        cache folder is not safe to use, or full; what `build` raises otherwise passes through.
        """
        self._check_root()
        entry = self._root / f"{name}-{key}"
        try:
            with _locked(Path(f"{entry}.lock"), fcntl.LOCK_EX):
                self._hold(entry)
                if not _is_whole(entry):
                    progress(f"building {name}")
                    self._build(entry, build)
                os.utime(entry / MANIFEST)
            self._evict()
        except OSError as error:
            raise DependencyFailed(_why(self._root, error)) from error
        return entry

    def close(self) -> None:
        """Gives the entries up: they may be evicted."""
        for descriptor in self._in_use.values():
            os.close(descriptor)
        self._in_use.clear()

    def _check_root(self) -> None:
        """Makes the folder; raises DependencyFailed unless it is a real folder of ours that nobody else can open."""
        try:
            self._root.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                self._root.mkdir(mode=0o700)
            found = self._root.lstat()
        except OSError as error:
            raise DependencyFailed(_why(self._root, error)) from error
        if not stat.S_ISDIR(found.st_mode):
            raise DependencyFailed(f"cache folder {self._root} is a link or a file; allowed: a folder")
        if found.st_uid != os.geteuid():
            raise DependencyFailed(f"cache folder {self._root} belongs to user {found.st_uid}; allowed {os.geteuid()}")
        if found.st_mode & 0o077:
            mode = stat.S_IMODE(found.st_mode)
            raise DependencyFailed(f"cache folder {self._root} has mode {mode:04o}; allowed 0700 (chmod 700 it)")

    def _build(self, entry: Path, build: Callable[[Path], None]) -> None:
        """Fills a sibling of `entry` and renames it into place; the caller holds the entry's lock."""
        for left_behind in self._root.glob(f"{entry.name}.tmp*"):
            shutil.rmtree(left_behind, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{entry.name}.tmp", dir=self._root))
        try:
            build(folder)
            (folder / MANIFEST).write_text(json.dumps(_digests(folder)))
            shutil.rmtree(entry, ignore_errors=True)
            folder.rename(entry)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _hold(self, entry: Path) -> None:
        """Marks the entry as in use by this process."""
        if entry.name not in self._in_use:
            self._in_use[entry.name] = _lock(Path(f"{entry}.use"), fcntl.LOCK_SH)

    def _evict(self) -> None:
        """Removes the least recently used entries that nobody uses until the rest fits."""
        manifests = sorted(self._root.glob(f"*/{MANIFEST}"), key=_last_used)
        sizes = {manifest.parent: _size_bytes(manifest.parent) for manifest in manifests}
        total_bytes = sum(sizes.values())
        for entry, size_bytes in sizes.items():
            if total_bytes <= self._max_bytes:
                return
            if entry.name not in self._in_use and _try_remove(entry):
                total_bytes -= size_bytes


def _try_remove(entry: Path) -> bool:
    """Removes an entry unless a process builds, checks or uses it."""
    at_once = fcntl.LOCK_EX | fcntl.LOCK_NB
    try:
        with _locked(Path(f"{entry}.lock"), at_once), _locked(Path(f"{entry}.use"), at_once):
            shutil.rmtree(entry, ignore_errors=True)
    except BlockingIOError:
        return False
    return True


@contextlib.contextmanager
def _locked(path: Path, operation: int) -> Iterator[None]:
    descriptor = _lock(path, operation)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(path: Path, operation: int) -> int:
    """Locks the file at `path` (flock) and returns the descriptor that holds the lock until it is closed."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, operation)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_whole(entry: Path) -> bool:
    """Whether the entry is there with exactly the files, and their content, that its manifest names."""
    try:
        manifest = json.loads((entry / MANIFEST).read_bytes())
        return bool(manifest == _digests(entry))
    except (OSError, ValueError):
        return False


def _digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {str(path.relative_to(folder)): _sha256(path) for path in sorted(files)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _last_used(manifest: Path) -> float:
    """When the entry was last asked for; 0 when it has gone meanwhile."""
    with contextlib.suppress(OSError):
        return manifest.stat().st_mtime
    return 0.0


def _size_bytes(entry: Path) -> int:
    total_bytes = 0
    for path in entry.rglob("*"):
        with contextlib.suppress(OSError):
            total_bytes += path.stat().st_size if path.is_file() else 0
    return total_bytes


def _why(root: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"cache folder {root} is full: {error.strerror}; free space or set another cache folder"
    return f"cache folder {root} cannot be used: {error.strerror or error}"
