"""The command line: one file for each command. `main` turns every error into words and a code."""

from __future__ import annotations

import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0 done, 1 the job failed, 2 bad usage or config."""
    from suffice.cli.app import build
    from suffice.errors import JobError, StoreError, SufficeError, UpstreamError

    try:
        build()(argv, prog_name="suffice")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except SufficeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, (JobError, StoreError, UpstreamError)) else 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output has left, as `head` does. Nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("SUFFICE_DEBUG"):
            raise
        print(
            f"error: this should not have happened: {type(error).__name__}: {error}\n"
            "Run it again with SUFFICE_DEBUG=1 for the traceback, and please report it.",
            file=sys.stderr,
        )
        return 1
    return 0


def entry() -> None:
    """The console script.

    Leaves without tearing the interpreter down: once in some hundred runs a native thread of the
    HTTP client that was still ending called into it and aborted the process (exit code -6).
    """
    code = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        code = code or 0  # nobody reads any more; that is no failure of ours
    os._exit(code)
