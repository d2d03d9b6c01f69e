"""The command line, run in this process."""

import contextlib
import io
import sys
from typing import NamedTuple
from unittest import mock

import pytest

from sparsedet.cli.main import main


class Done(NamedTuple):
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture(scope="session")
def sparsedet():
    """Function of the arguments of a command: what it left."""
    return _run


def _run(*arguments):
    """Run the command line in this process; importing torch anew for every command would take minutes."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(sys, "argv", ["sparsedet", *map(str, arguments)]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            main()
        except SystemExit as done:
            code = done.code
    return Done(code or 0, out.getvalue(), err.getvalue())
