"""Who may call. Keys are compared as digests, in constant time."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from hashlib import sha256

from suffice.errors import UnauthorizedError


class Auth:
    """Checks the client's key. With no keys configured everybody on this host may call."""

    def __init__(self, keys: Iterable[str] = ()) -> None:
        digests = [sha256(k.encode()).digest() for k in keys if k]
        self._ids = {d: "key_" + d.hex()[:12] for d in digests}

    @property
    def open(self) -> bool:
        return not self._ids

    def check(self, headers: Mapping[bytes, bytes]) -> str | None:
        """The id of the key that the request carries; None where no key is asked for.

        Raises Unauthorized. Reads `authorization: Bearer` and `x-api-key`.
        """
        if not self._ids:
            return None
        given = headers.get(b"x-api-key")
        if given is None:
            scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
            given = value.strip() if scheme.lower() == b"bearer" else None
        if not given:
            raise UnauthorizedError(
                "This gateway asks for a key.",
                remedy="Send it as 'authorization: Bearer KEY' or 'x-api-key: KEY'.",
                code="missing_api_key",
            )
        digest = sha256(given).digest()
        found = None
        for known, key_id in self._ids.items():  # all of them: no early way out to time
            if hmac.compare_digest(known, digest):
                found = key_id
        if found is None:
            raise UnauthorizedError("This key is not known here.")
        return found
