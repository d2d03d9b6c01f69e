"""Entry point of the command line; heavy imports happen inside the commands."""

import os
import sys
import time

import typer

from sparsedet.cli import (
    checkpoint_commands,
    config_commands,
    data_commands,
    export_commands,
    inspect_commands,
    predict_commands,
    run_commands,
)

SECONDS_FOR_THE_FIRST = 5
"""How long a process that has failed lets the first of several speak: most errors are the same in all of them."""

app = typer.Typer(
    help="Sparse object detectors: train, prune, evaluate and compare AP versus sparsity.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
run_commands.add_to(app)
inspect_commands.add_to(app)
export_commands.add_to(app)
predict_commands.add_to(app)
app.add_typer(checkpoint_commands.app, name="checkpoint")
app.add_typer(config_commands.app, name="config")
app.add_typer(data_commands.app, name="data")


@app.callback()
def _options(debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error.")) -> None:
    """Declare the options that stand before a command; `main` reads them."""


def main() -> None:
    """Run the command line: exit 0 on success, 1 where a check failed, 2 on an error, 130 on Ctrl-C, 143 on SIGTERM."""
    from sparsedet.common.errors import SparseDetError

    is_one_of_several = os.environ.get("WORLD_SIZE", "1") != "1"  # to ask torch, its import would take seconds
    if is_one_of_several:  # warnings of torch's C++ parts, such as DDP's advice, come once from each process
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        app()
    except SparseDetError as error:
        if "--debug" in sys.argv:
            raise
        if not error.is_said:
            _say(error, os.environ.get("RANK", "0") if is_one_of_several else "0")
        sys.exit(2)
    except SystemExit as done:
        if not done.code and is_one_of_several:
            # Now and then a process that has talked over gloo aborts when torch tears down its own objects, with all
            # done and written; torchrun takes that for a failure, and ends the others.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        raise


def _say(error: Exception, process: str) -> None:
    sender = ""
    if process != "0":
        time.sleep(SECONDS_FOR_THE_FIRST)  # if the first fails too, the launcher ends this process meanwhile
        sender = f"process {process}: "
    print(f"{sender}error: {error}", file=sys.stderr)
