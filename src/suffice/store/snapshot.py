"""Snapshots are named after their content, so that one version can never mean two things."""

from __future__ import annotations

import re
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from suffice.errors import ArtifactError, UsageError
from suffice.store.records import PolicySnapshot

_KIND = re.compile(r"[a-z][a-z0-9_]{0,31}")


def make_snapshot(
    *,
    route: str,
    kind: str,
    content: bytes,
    created_s: float,
    parent: str | None = None,
    card: Mapping[str, Any] | None = None,
    created_by: str = "",
) -> PolicySnapshot:
    """A snapshot of `content` whose version is a hash of route, kind and content.

    >>> make_snapshot(route="auto", kind="policy", content=b"x", created_s=0.0).version
    'policy-2156d99003466e4c'

    Args:
        route: The route that the policy serves.
        kind: 1 to 32 lower-case letters, digits and underscores; new snapshots use "policy".
        content: The policy's bytes.
        created_s: Unix time.
        parent: The version that this one was learned from.
        card: How the policy came about, as JSON can hold it.
        created_by: Who made it: "learner", "cli" or a name.

    Returns:
        The snapshot, not stored yet.

    Raises:
        UsageError: `kind` is invalid.
    """
    if not _KIND.fullmatch(kind):
        raise UsageError(
            f"kind: {kind!r} is not a valid kind of snapshot.",
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


def verify_snapshot(snapshot: PolicySnapshot) -> None:
    """Check that content, digest and version belong together.

    Raises:
        ArtifactError: The content was damaged, or the version is that of other content.
    """
    digest = sha256(snapshot.content).hexdigest()
    if digest != snapshot.digest:
        raise ArtifactError(
            f"Snapshot {snapshot.version}: its bytes have the digest {digest[:12]}..., not"
            f" {snapshot.digest[:12]}...: it was damaged or changed.",
            remedy="It is not used; the policy that serves now stays.",
        )
    expected = _version(snapshot.route, snapshot.kind, snapshot.digest)
    if snapshot.version != expected:
        raise ArtifactError(
            f"Snapshot {snapshot.version}: the version of its content is {expected}.",
            remedy="Make snapshots with suffice.store.make_snapshot.",
        )


def _version(route: str, kind: str, digest: str) -> str:
    identity = sha256(f"{route}\0{kind}\0{digest}".encode()).hexdigest()
    return f"{kind}-{identity[:16]}"
