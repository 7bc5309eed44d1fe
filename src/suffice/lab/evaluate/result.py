"""The object that `suffice eval --json` prints. Keys are added, never renamed."""

from __future__ import annotations

from typing import NotRequired, TypedDict

BASELINES = ("cheapest", "best", "random", "length", "zero_router", "oracle")

Interval = tuple[float, float]


class EqualQuality(TypedDict):
    """Cost at a part of the best single model's quality."""

    of_best: float
    quality: float
    cost: float | None
    zero_router_cost: float | None


class EqualCost(TypedDict):
    """Quality at a part of the best single model's cost."""

    of_best: float
    cost: float
    quality: float | None
    zero_router_quality: float | None


# The cheapest trade-off that keeps a part of the best model's quality, else the best one.
OperatingPoint = TypedDict(  # noqa: UP013  ("kept" is a JSON key, not a name to use)
    "OperatingPoint",
    {
        "keeps": float,
        "kept": bool,
        "cost": float,
        "quality": float,
        "gross_loss": float,
        "net_loss": float,
        "share": dict[str, float],
        "trade_off": int,
    },
)


class FlipRates(TypedDict):
    """Share of decisions that change when the same question is worded differently."""

    white_space: float
    white_space_each: dict[str, float]
    rewording: float
    rewording_each: dict[str, float]
    n_queries: int


class PolicyResult(TypedDict):
    """The figures of one policy; pair metrics are None for more than two models."""

    curve: list[list[float]]
    area: float
    area_ci: Interval | None
    gain_over_zero_router: float
    gain_ci: Interval | None
    qnc: float | None
    apgr: float | None
    cpt50: float | None
    cpt80: float | None
    apgr_ci: Interval | None
    fitted: str
    at_equal_quality: list[EqualQuality]
    at_equal_cost: list[EqualCost]
    aiq_paper: float
    aiq_code: float
    operating_point: OperatingPoint
    routerarena: float | None
    flip_rate: NotRequired[FlipRates]
    overhead_us: NotRequired[float]


class PartPolicyResult(TypedDict):
    """The figures of one policy on a part of the table."""

    area: float
    area_ci: Interval | None
    gain_over_zero_router: float
    gain_ci: Interval | None
    qnc: float | None
    apgr: float | None
    apgr_ci: Interval | None
    cpt50: float | None
    cpt80: float | None
    fitted: str


class ModelMeans(TypedDict):
    """Means of a single model."""

    quality: float
    cost: float


class PartResult(TypedDict):
    """An evaluation of a part of the table; no policies if it has too few queries."""

    n_queries: int
    models: NotRequired[dict[str, ModelMeans]]
    policies: dict[str, PartPolicyResult] | None


class EvaluationResult(TypedDict):
    """The whole result."""

    table: str
    n_queries: int
    models: dict[str, ModelMeans]
    cost_unit: str
    policies: dict[str, PolicyResult]
    n_queries_in_table: int
    n_clusters: int
    strong: str | None
    weak: str | None
    reference: str
    intervals: str
    seed: int
    warnings: list[str]
    notes: list[str]
    by: NotRequired[dict[str, dict[str, PartResult]]]
    leave_one_source_out: NotRequired[dict[str, PartResult]]
