"""Monitors certified thresholds by auditing a sample of decisions.

`AuditSampler` makes labels in the gateway's event loop. `CertificateWatcher` reads them back from the
store in a thread and updates a sequential test per certificate. `CertificateMonitor` joins the two: while
a test raises an alarm, the route's reference model serves. Routes with a table `audit` have one.
"""

from __future__ import annotations

from suffice.monitoring.certificate_monitor import CertificateMonitor
from suffice.monitoring.certificate_watcher import (
    CertificateWatcher,
    ServedCertificate,
    WatchedRoute,
)
from suffice.monitoring.labelling import AUDIT_SOURCE, AuditedRoute, MonitorDependencies
from suffice.monitoring.sampling import AuditSample, AuditSampler, is_sampled
from suffice.store.protocols import AUDIT_ROUTE_PREFIX

__all__ = [
    "AUDIT_ROUTE_PREFIX",
    "AUDIT_SOURCE",
    "AuditSample",
    "AuditSampler",
    "AuditedRoute",
    "CertificateMonitor",
    "CertificateWatcher",
    "MonitorDependencies",
    "ServedCertificate",
    "WatchedRoute",
    "is_sampled",
]
