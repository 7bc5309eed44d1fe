"""Which clients may call. Keys are compared as digests, in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from hashlib import sha256

from suffice.errors import UnauthorizedError


class Auth:
    """Checks the client's key. With no keys configured every client may call."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        digests = [sha256(k.encode()).digest() for k in keys if k]
        self._ids = {d: "key_" + d.hex()[:12] for d in digests}

    @property
    def open(self) -> bool:
        """Whether no key is needed."""
        return not self._ids

    def check(self, headers: Mapping[bytes, bytes]) -> str | None:
        """Check the key that a request carries.

        Args:
            headers: lower-case names to values; `authorization: Bearer` and `x-api-key` are read.

        Returns:
            The id of the key; None if no key is needed.

        Raises:
            UnauthorizedError: there is no key, or it is unknown.
        """
        if not self._ids:
            return None
        key = headers.get(b"x-api-key")
        if key is None:
            scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
            key = value.strip() if scheme.lower() == b"bearer" else None
        if not key:
            raise UnauthorizedError(
                "This gateway asks for a key.",
                remedy="Send it as 'authorization: Bearer KEY' or 'x-api-key: KEY'.",
                code="missing_api_key",
            )
        digest = sha256(key).digest()
        match = None
        for known, key_id in self._ids.items():  # compare all of them: no early exit to time
            if hmac.compare_digest(known, digest):
                match = key_id
        if match is None:
            raise UnauthorizedError("This key is not known here.")
        return match
