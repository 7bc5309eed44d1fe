"""Refits in a process of their own, which takes only what CPU time nobody else wants.

A refit is 60 ms of linear algebra for three models, and a thread that computes costs the requests of
those 60 ms up to 6 ms each where cores are few: it takes turns with the event loop. A thread of low
priority would be worse, as it may be put off while it holds the interpreter. A process is not.
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
    from suffice.learning.regression import Fit, OnlineRegression

SCHEMA = "fit-1"
TIMEOUT_S = 10.0  # a lease has 15 s left at least, and a refit made here needs some of them
_LOOK_S = 0.1  # between two looks whether to stop

# First of all it steps back: before NumPy is imported.
_CHILD = """
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


class _Card(msgspec.Struct, frozen=True):
    own: float
    shared: float
    noise: float


def packed(fit: Fit) -> bytes:
    from suffice.artifacts.npz import pack_state

    arrays = {"weights": fit.weights, "intercept": fit.intercept, "labels": fit.labels}
    return pack_state(SCHEMA, _Card(fit.own, fit.shared, fit.noise), arrays)


def unpacked(raw: bytes) -> Fit:
    """Raises ArtifactError."""
    from suffice.artifacts.npz import mismatch_error, unpack_state
    from suffice.learning.regression import Fit

    card, a = unpack_state(raw, SCHEMA, _Card)
    try:
        return Fit(a["weights"], a["intercept"], a["labels"], card.own, card.shared, card.noise)
    except KeyError as error:
        raise mismatch_error(SCHEMA, f"no {error}") from None


def refit(learner: OnlineRegression, state: bytes, stopped: Callable[[], bool]) -> Fit | None:
    """`learner.refit()` of a child process; of this one where there is no child to be had, or none
    that is done in time. state: the learner's. None: stopped meanwhile."""
    try:
        child = _begun(state)
    except OSError as error:
        _log.warning("refits are made in the gateway's own process: %s", error)
        return learner.refit()
    try:
        for _ in range(int(TIMEOUT_S / _LOOK_S)):
            try:
                out, said = child.communicate(timeout=_LOOK_S)
            except subprocess.TimeoutExpired:
                if stopped():
                    return None
                continue
            if child.returncode == 0:
                return unpacked(out)
            _log.warning("a refit failed in its own process: %s", said.decode("utf-8", "replace"))
            break
        else:
            _log.info("a refit got no CPU time in %g s: it is made where all else is", TIMEOUT_S)
    except ArtifactError as error:
        _log.warning("a refit failed in its own process: %s", error)
    finally:
        child.kill()
        child.communicate()
    return None if stopped() else learner.refit()


def _begun(state: bytes) -> subprocess.Popen[bytes]:
    """The child at work. Raises OSError: no program, no memory, nowhere for a temporary file."""
    with tempfile.TemporaryFile() as given:  # a pipe would have to be fed meanwhile
        given.write(state)
        given.seek(0)
        return subprocess.Popen(
            [sys.executable, "-P", "-c", _CHILD],  # -P: nothing beside the config is imported
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            start_new_session=True,  # a terminal's Ctrl-C is for the gateway, which ends the child
        )


def main() -> None:
    """What the child does."""
    from suffice.learning.regression import OnlineRegression

    sys.stdout.buffer.write(packed(OnlineRegression.from_state(sys.stdin.buffer.read()).refit()))
