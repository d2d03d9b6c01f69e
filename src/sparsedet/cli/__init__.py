"""The ``sparsedet`` command: each subcommand parses, calls one function and prints."""
