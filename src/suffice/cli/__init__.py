"""The command line: one file for each command. `main` turns every error into words and a code."""

from __future__ import annotations

import os
import sys


def main(argv: list[str] | None = None) -> int:
    """Run a command. Returns the exit code: 0 done, 1 the job failed, 2 bad usage or config."""
    import click

    from ..errors import JobError, StoreError, SufficeError, UpstreamError
    from .app import build

    try:
        result = build()(argv, prog_name="suffice", standalone_mode=False)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.exceptions.Abort:
        print("stopped.", file=sys.stderr)
        return 130
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        error.show()
        return 2
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
    return result if isinstance(result, int) else 0


def entry() -> None:
    """The console script."""
    sys.exit(main())
