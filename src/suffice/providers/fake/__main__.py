"""The command of the fake upstream: `python -m suffice.providers.fake --script FILE --port PORT`."""

from __future__ import annotations

import argparse
import signal
import sys

from suffice.errors import SufficeError
from suffice.providers.fake.script import Script, load_script
from suffice.providers.fake.server import FakeUpstream


def main() -> int:
    """Serve until SIGINT or SIGTERM; returns the exit code."""
    parser = argparse.ArgumentParser(description="A scripted fake model provider on loopback.")
    parser.add_argument("--script", help="a JSON or TOML file; default: every model answers")
    parser.add_argument("--port", type=int, default=9009)
    args = parser.parse_args()
    try:
        script = load_script(args.script) if args.script else Script(any_model=True)
        fake = FakeUpstream(script, port=args.port).start()
    except SufficeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"fake upstream at {fake.base_url}; models: {', '.join(script.models) or 'any'}")
    try:
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    finally:
        fake.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
