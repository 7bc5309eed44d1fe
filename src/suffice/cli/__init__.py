"""The command line: one file per command. `main` turns every error into a message and an exit code."""

from __future__ import annotations

import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: Arguments without the program name; None = those of the process.

    Returns:
        The exit code: 0 done, 1 the job failed, 2 bad usage or config, 130 interrupted.
    """
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
        # The reader of our output has closed it, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("SUFFICE_DEBUG"):
            raise
        print(
            f"Internal error: {type(error).__name__}: {error}\n"
            "Please report it. Run it again with SUFFICE_DEBUG=1 for the traceback.",
            file=sys.stderr,
        )
        return 1
    return 0


def entry() -> None:
    """The console script.

    It exits without shutting the interpreter down: in about 1 of 100 runs a native thread of the
    HTTP client called into the interpreter during shutdown and aborted the process (exit code -6).
    """
    code = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        pass  # the reader has closed the pipe, which is not an error
    os._exit(code)
