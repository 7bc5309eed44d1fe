"""What a snapshot is called: by what it holds, so that one name can never mean two things."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from suffice.errors import ArtifactError, UsageError
from suffice.types import PolicySnapshot

_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}")


def snapshot(
    *,
    route: str,
    kind: str,
    content: bytes,
    created_s: float,
    parent: str | None = None,
    card: Mapping[str, Any] | None = None,
    created_by: str = "",
) -> PolicySnapshot:
    """A snapshot of `content`, named after it. kind: lower-case letters, digits and _, at most 32.

    >>> snapshot(route="auto", kind="brain", content=b"x", created_s=0.0).version
    'brain-6117f8b8e9ac1b3c'

    Raises UsageError for a kind that is no name.
    """
    if not _KIND.fullmatch(kind):
        raise UsageError(
            f"kind: {kind!r} is no name of a kind of snapshot.",
            remedy="Use 1 to 32 lower-case letters, digits and _.",
        )
    digest = sha256(content).hexdigest()
    return PolicySnapshot(
        version=_version(route, kind, digest),
        route=route,
        kind=kind,
        created_s=created_s,
        content=content,
        digest=digest,
        parent=parent,
        card=card or {},
        created_by=created_by,
    )


def verify(s: PolicySnapshot) -> None:
    """Raises ArtifactError where the bytes are not those of the digest, or the name is another's."""
    found = sha256(s.content).hexdigest()
    if found != s.digest:
        raise ArtifactError(
            f"Snapshot {s.version}: its bytes have the digest {found[:12]}..., not"
            f" {s.digest[:12]}...: it was damaged or changed.",
            remedy="It is not used; the one before stays.",
        )
    expected = _version(s.route, s.kind, s.digest)
    if s.version != expected:
        raise ArtifactError(
            f"Snapshot {s.version}: what it holds is called {expected}.",
            remedy="Make snapshots with suffice.store.snapshot.",
        )


def _version(route: str, kind: str, digest: str) -> str:
    of = sha256(f"{route}\0{kind}\0{digest}".encode()).hexdigest()
    return f"{kind}-{of[:16]}"
