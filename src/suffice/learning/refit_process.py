"""Computes posteriors in a child process of idle priority.

A refit is 60 ms of linear algebra for three models. In a thread it would delay requests by up to
6 ms each if cores are few, because it takes turns with the event loop. A thread of low priority
could be suspended while it holds the GIL. A process cannot.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from suffice.errors import ArtifactError

if TYPE_CHECKING:
    from suffice.learning.posterior import Posterior
    from suffice.learning.regression import OnlineRegression

SCHEMA = "fit-1"
TIMEOUT_S = 10.0  # a lease has at least 15 s left, and a refit in this process needs some of them
POLL_S = 0.1  # between two checks whether to stop

# The child lowers its priority before it imports NumPy.
CHILD_PROGRAM = """
import os
try:
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
except (AttributeError, OSError):  # not Linux, or forbidden
    if hasattr(os, "nice"):
        os.nice(19)
from suffice.learning.refit_process import main
main()
"""

_log = logging.getLogger("suffice.learning")


class _Header(msgspec.Struct, frozen=True):
    model_scale: float
    shared_scale: float
    noise: float


def pack_posterior(posterior: Posterior) -> bytes:
    """The posterior as bytes."""
    from suffice.artifacts.npz import pack_state

    arrays = {
        "weights": posterior.weights,
        "intercept": posterior.intercept,
        "labels": posterior.labels,
    }
    header = _Header(posterior.model_scale, posterior.shared_scale, posterior.noise)
    return pack_state(SCHEMA, header, arrays)


def unpack_posterior(raw: bytes) -> Posterior:
    """The posterior of `pack_posterior`'s bytes. Raises ArtifactError if they are damaged."""
    from suffice.artifacts.npz import mismatch_error, unpack_state
    from suffice.learning.posterior import Posterior

    header, arrays = unpack_state(raw, SCHEMA, _Header)
    try:
        return Posterior(
            arrays["weights"], arrays["intercept"], arrays["labels"],
            header.model_scale, header.shared_scale, header.noise,
        )  # fmt: skip
    except KeyError as error:
        raise mismatch_error(SCHEMA, f"no {error}") from None


def posterior_in_subprocess(
    regression: OnlineRegression, state: bytes, stopping: Callable[[], bool]
) -> Posterior | None:
    """The regression's posterior, computed by a child process.

    It is computed in this process if no child can be started, or if none finishes in time.

    Args:
        regression: The regression.
        state: Its state.
        stopping: Whether to give up.

    Returns:
        None if `stopping` returned True meanwhile.
    """
    try:
        child = _spawn(state)
    except OSError as error:
        _log.warning("posteriors are computed in the gateway's process: %s", error)
        return regression.posterior()
    try:
        for _ in range(int(TIMEOUT_S / POLL_S)):
            try:
                stdout, stderr = child.communicate(timeout=POLL_S)
            except subprocess.TimeoutExpired:
                if stopping():
                    return None
                continue
            if child.returncode == 0:
                return unpack_posterior(stdout)
            _log.warning("a refit process failed: %s", stderr.decode("utf-8", "replace"))
            break
        else:
            _log.info("a refit process got too little CPU time in %g s", TIMEOUT_S)
    except ArtifactError as error:
        _log.warning("a refit process failed: %s", error)
    finally:
        child.kill()
        child.communicate()
    return None if stopping() else regression.posterior()


def _spawn(state: bytes) -> subprocess.Popen[bytes]:
    """Start the child. Raises OSError: no program, no memory, no room for a temporary file."""
    with tempfile.TemporaryFile() as file:  # a pipe would have to be fed meanwhile
        file.write(state)
        file.seek(0)
        return subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD_PROGRAM],  # -P: no imports from the working folder
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl-C in a terminal is for the gateway, which ends the child
        )


def main() -> None:
    """Read a regression's state from stdin and write its posterior to stdout."""
    from suffice.learning.regression import OnlineRegression

    regression = OnlineRegression.from_state(sys.stdin.buffer.read())
    sys.stdout.buffer.write(pack_posterior(regression.posterior()))
