import errno
import fcntl
import multiprocessing
import os
import subprocess
import sys
import threading

import pytest

from sparsedet.common.errors import StorageError
from sparsedet.common.lock import LOCK_FILE, locked

TRY = """
import sys
import threading
from pathlib import Path
from sparsedet.common.errors import StorageError
from sparsedet.common.lock import locked
try:
    with locked(Path(sys.argv[1])):
        print("free")
except StorageError as error:
    print(error)
"""


def try_elsewhere(folder):
    done = subprocess.run([sys.executable, "-c", TRY, str(folder)], capture_output=True, text=True, check=True)
    return done.stdout


def test_another_process_is_told_who_holds_the_folder(tmp_path):
    with locked(tmp_path):
        assert f"got one in use by process {os.getpid()} on" in try_elsewhere(tmp_path)
        # A process that opens and closes the file itself gives its lock away.
        subprocess.run(["sh", "-c", "printf '{' > $0", str(tmp_path / LOCK_FILE)], check=True)
        assert "got one in use by another process. Wait for that run" in try_elsewhere(tmp_path)


def test_a_lock_can_be_waited_for(tmp_path):
    begun, end = (multiprocessing.get_context("fork").Event() for _ in range(2))

    def hold():
        with locked(tmp_path, "other", waits=True):
            begun.set()
            end.wait()
            (tmp_path / "done").touch()

    holder = multiprocessing.get_context("fork").Process(target=hold)
    holder.start()
    begun.wait()
    assert try_elsewhere(tmp_path) == "free\n"  # another lock of the same folder
    threading.Timer(0.2, end.set).start()
    with locked(tmp_path, "other", waits=True):
        assert (tmp_path / "done").exists()
    holder.join()


def test_the_folder_is_free_afterwards_whatever_the_file_says(tmp_path):
    with pytest.raises(ValueError, match="inside"), locked(tmp_path):
        raise ValueError("inside")
    assert try_elsewhere(tmp_path) == "free\n"
    (tmp_path / LOCK_FILE).write_text('{"process": 1, "machine": "gone"}')
    assert try_elsewhere(tmp_path) == "free\n"


def test_forked_processes_that_outlive_a_run_do_not_hold_its_folder(tmp_path):
    end = multiprocessing.get_context("fork").Event()
    with locked(tmp_path):
        worker = multiprocessing.get_context("fork").Process(target=end.wait)
        worker.start()
    try:
        assert try_elsewhere(tmp_path) == "free\n"
    finally:
        end.set()
        worker.join()


def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch):
    def fail(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", fail)
    with locked(tmp_path):
        pass


def test_a_lock_that_is_held_is_an_error(tmp_path, monkeypatch):
    def fail(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")  # what some systems say instead of EAGAIN

    monkeypatch.setattr(fcntl, "lockf", fail)
    with pytest.raises(StorageError, match="expected a folder that no other run writes to"), locked(tmp_path):
        pass
