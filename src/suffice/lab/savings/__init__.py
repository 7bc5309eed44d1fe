"""Savings against single models, and quality against a reference model, of recorded traffic.

read_traffic(store) -> Traffic -> build_report() -> SavingsReport -> terminal, HTML, JSON, PNG
"""

from suffice.lab.savings.records import RouteReport, SavingsReport
from suffice.lab.savings.references import Reference, reference_models
from suffice.lab.savings.report import build_report

__all__ = ["Reference", "RouteReport", "SavingsReport", "build_report", "reference_models"]
