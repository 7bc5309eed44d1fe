"""Loads the policy of a route from its spec, with its certificate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from suffice import features, policies
from suffice.artifacts import certificate
from suffice.errors import ConfigError
from suffice.types import Policy

if TYPE_CHECKING:
    from suffice.config import RouteSpec  # pydantic: 100 ms


def load_policy(spec: RouteSpec, source: str) -> Policy:
    """Return the policy that a route's spec names, under the route's certificate if it has one.

    The certificate is the one that the spec names, else the one next to the artifact.

    Args:
        spec: The route.
        source: Path of the config file, for relative paths and error messages.

    Raises:
        ArtifactError: If the artifact or the certificate cannot be read or served.
        ConfigError: If the policy is unknown or cannot be certified.
    """
    policy: Policy
    if policies.is_path(spec.policy):
        policy = policies.load_trained(resolve_path(spec.policy, source))
    else:
        try:
            policy = policies.make(spec.policy, features.SIGNAL_NAMES)
        except ValueError as error:
            raise ConfigError(
                f"{error}.", field=f"routes.{spec.name}.policy", source=source
            ) from None
    path = certificate_path(spec, source)
    if path is None or (spec.certificate is None and not path.exists()):
        return policy
    if not isinstance(policy, policies.Certifiable):
        raise ConfigError(
            f"The policy {spec.policy!r} cannot be certified.",
            field=f"routes.{spec.name}.certificate",
            source=source,
        )
    return policy.with_certificate(certificate.load(path))


def certificate_path(spec: RouteSpec, source: str) -> Path | None:
    """Return where a route's certificate is or would be; `None` if the config gives no place."""
    if spec.certificate is not None:
        return Path(resolve_path(spec.certificate, source))
    if policies.is_path(spec.policy):
        return certificate.default_path(resolve_path(spec.policy, source))
    return None


def resolve_path(name: str, source: str) -> str:
    """Return a file that the config names: next to the config if it exists there, else as given."""
    path = Path(source).parent / name
    return str(path if path.exists() else name)
