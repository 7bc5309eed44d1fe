"""An evaluation as files: results.json, figures, and one HTML page that needs nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import msgspec

from suffice.lab.report.charts import figures
from suffice.lab.report.html import figure, require_folder, table, write_atomically
from suffice.lab.report.verdict import verdict

_CSS = """
:root{color-scheme:light}
body{font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;color:#1c1c1c;
background:#fafaf8;margin:0}
main{max-width:76rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.6rem;margin:0 0 .25rem}h2{font-size:1.15rem;margin:2.2rem 0 .6rem}
.facts{color:#555;margin:0}.verdict{background:#eef4f1;border-left:4px solid #3a7d44;
padding:.75rem 1rem;margin:1.2rem 0}.warn{background:#fff6e5;border-left:4px solid #d98e04;
padding:.6rem 1rem;margin:.8rem 0}.warn ul,.notes{margin:0;padding-left:1.2rem}
.scroll{overflow-x:auto}table{border-collapse:collapse;font-variant-numeric:tabular-nums;
font-size:.86rem;background:#fff}th,td{padding:.32rem .7rem;text-align:right;
border-bottom:1px solid #e4e4e0;white-space:nowrap}
th{white-space:normal;max-width:9rem;border-bottom:2px solid #bbb;
vertical-align:bottom}th:first-child,td:first-child{text-align:left}
td.words,th.words{text-align:left;white-space:normal;min-width:13rem}
tr.base td{color:#777}figure{margin:1rem 0;background:#fff;border:1px solid #e4e4e0;padding:.5rem}
figure img{width:100%;height:auto;display:block}figcaption{color:#555;font-size:.85rem;
padding:.4rem .5rem 0}.ci{color:#777;font-size:.92em}.notes li{margin:.25rem 0}
"""
_CAPTIONS = {
    "curves.png": "Cost and quality. Lines are hulls (what mixing a policy's own trade-offs "
    "reaches), faint dots its trade-offs; dashed: random mixing of single models.",
    "closeup.png": "The same without the oracle, drawn to where the policies differ.",
    "gains.png": "Gain over the zero router. A policy whose interval holds zero, or whose gain is "
    "no larger than the coin's, has not shown that it routes.",
}


def write(result: Mapping[str, Any], out: Path) -> list[Path]:
    """results.json, the figures and report.html in `out`, all of them or none. Returns the paths.

    Raises UsageError where `out` cannot be written.
    """
    require_folder(out)
    pictures = figures(result)
    contents = {
        "results.json": msgspec.json.format(msgspec.json.encode(result), indent=2) + b"\n",
        **pictures,
        "report.html": html(result, pictures).encode(),
    }
    return write_atomically(contents, out)


def html(result: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """The page: style and pictures inside, no request to anywhere."""
    from importlib.metadata import version

    unit = "USD per query" if result["cost_unit"] == "usd" else "share of strong calls"
    clusters = ""
    if result["n_clusters"] != result["n_queries"]:
        clusters = f" in {result['n_clusters']:,} groups"
    parts = [
        "<!doctype html><html lang=en><head><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width,initial-scale=1'>",
        f"<title>suffice eval: {escape(result['table'])}</title><style>{_CSS}</style></head>",
        f"<body><main><h1>{escape(result['table'])}</h1>",
        f"<p class=facts>{result['n_queries']:,} queries{clusters}, {len(result['models'])} models; "
        f"cost in {unit}. suffice {version('suffice')}, seed {result['seed']}.</p>",
        f"<p class=verdict>{escape(verdict(result))}</p>",
        _warnings(result["warnings"]),
        "<h2>Policies</h2>",
        _table(*_policy_rows(result)),
        f"<p class=facts>In brackets: {escape(result['intervals'])}.</p>",
        "".join(figure(data, _CAPTIONS[n]) for n, data in pictures.items()),
        "<h2>At the operating point</h2>",
        "<p>The cheapest trade-off on each curve that keeps 95 % of the best model's quality, or "
        f"the best one where none does. Losses are against {escape(result['reference'])}: gross "
        "counts what was lost where it was better, net is less what was won elsewhere.</p>",
        _table(*_operating_rows(result)),
        "<h2>At equal quality, at equal cost</h2>",
        _table(*_equal_rows(result)),
        "<h2>Other figures of merit</h2>",
        _table(*_other_rows(result)),
        "<h2>Models</h2>",
        _table(*_model_rows(result)),
        *_breakdowns(result),
        "<h2>How this was made</h2><ul class=notes>",
        "".join(f"<li>{escape(n)}</li>" for n in (*_METHOD, *result["notes"])),
        "</ul></main></body></html>",
    ]
    return "\n".join(p for p in parts if p)


_METHOD = (
    "area: mean height of the upper hull of a policy's trade-offs between the cost of the cheapest "
    "and of the dearest single model; gain: area less that of the zero router, the hull of the "
    "single models",
    "QNC: least cost at which the quality of the best single model is reached, relative to that "
    "model's cost",
    "APGR, CPT50, CPT80: share of the quality gap between the weak and the strong model recovered, "
    "averaged over shares of strong calls; share of strong calls at which half, or 80 %, is",
    "AIQ as RouterBench's paper and as its code define it; RouterArena's S at the best trade-off",
    "queries that share a prompt or a group are redrawn together",
)


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(w)}</li>" for w in warnings)
    return f"<div class=warn><ul>{items}</ul></div>"


_WORDS = ("how fitted", "share of calls")  # columns of text

Rows = tuple[Sequence[str], Sequence[Sequence[str]], Sequence[bool]]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], base: Sequence[bool]) -> str:
    return table(head, rows, [i for i, h in enumerate(head) if h in _WORDS], base)


def _n(value: float | None, digits: int = 4, sign: bool = False) -> str:
    if value is None:
        return "–"
    return f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"


def _with(value: float | None, ci: Sequence[float] | None, sign: bool = False) -> str:
    if value is None or ci is None:
        return _n(value, sign=sign)
    inner = ", ".join(_n(x, sign=sign) for x in ci)
    return f"{_n(value, sign=sign)} <span class=ci>[{inner}]</span>"


def _cost(value: float | None, result: Mapping[str, Any]) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if result["cost_unit"] == "strong_share" else f"${value:.3g}"


def _dim(result: Mapping[str, Any]) -> list[bool]:
    from suffice.lab.evaluate.evaluate import BASELINES

    return [n in BASELINES for n in result["policies"]]


def _policy_rows(result: Mapping[str, Any]) -> Rows:
    pair = result["strong"] is not None
    head = ["policy", "area", "gain over zero router", "QNC"]
    head += ["APGR", "CPT50", "CPT80"] if pair else []
    head.append("how fitted")
    rows = []
    for name, p in result["policies"].items():
        row = [
            escape(name),
            _with(p["area"], p["area_ci"]),
            _with(p["gain_over_zero_router"], p["gain_ci"], sign=True),
            _n(p["qnc"], 3),
        ]
        if pair:
            row += [_with(p["apgr"], p["apgr_ci"]), _n(p["cpt50"], 3), _n(p["cpt80"], 3)]
        rows.append([*row, escape(p["fitted"])])
    return head, rows, _dim(result)


def _operating_rows(result: Mapping[str, Any]) -> Rows:
    head = ["policy", "cost", "quality", "keeps 95 %", "gross loss", "net loss", "share of calls"]
    rows = []
    for name, p in result["policies"].items():
        o = p["operating_point"]
        share = sorted(o["share"].items(), key=lambda i: -i[1])
        shown = ", ".join(
            f"{escape(m.rsplit('/', 1)[-1])} {s:.0%}" for m, s in share[:3] if s >= 0.005
        )
        rows.append(
            [escape(name), _cost(o["cost"], result), _n(o["quality"]), "yes" if o["kept"] else "no",
             _n(o["gross_loss"]), _n(o["net_loss"]), shown]
        )  # fmt: skip
    return head, rows, _dim(result)


def _equal_rows(result: Mapping[str, Any]) -> Rows:
    first = next(iter(result["policies"].values()))
    head = ["policy"]
    head += [f"cost at {e['of_best']:.0%} of best quality" for e in first["at_equal_quality"]]
    head += [f"quality at {e['of_best']:.0%} of its cost" for e in first["at_equal_cost"]]
    rows = [
        [
            escape(name),
            *(_cost(e["cost"], result) for e in p["at_equal_quality"]),
            *(_n(e["quality"]) for e in p["at_equal_cost"]),
        ]
        for name, p in result["policies"].items()
    ]
    return head, rows, _dim(result)


def _other_rows(result: Mapping[str, Any]) -> Rows:
    head = ["policy", "AIQ (paper)", "AIQ (code)", "RouterArena S", "flips: white space",
            "flips: rewording", "µs per decision"]  # fmt: skip
    rows = []
    for name, p in result["policies"].items():
        f = p.get("flip_rate")
        flips = ["–", "–"] if f is None else [f"{f[k]:.1%}" for k in ("white_space", "rewording")]
        rows.append(
            [escape(name), _n(p["aiq_paper"]), _n(p["aiq_code"]), _n(p["routerarena"]), *flips,
             _n(p.get("overhead_us"), 0)]
        )  # fmt: skip
    return head, rows, _dim(result)


def _model_rows(result: Mapping[str, Any]) -> Rows:
    rows = [
        [escape(m), _n(v["quality"]), _cost(v["cost"], result)]
        for m, v in sorted(result["models"].items(), key=lambda i: i[1]["cost"])
    ]
    return ["model", "mean quality", "mean cost"], rows, [False] * len(rows)


def _breakdowns(result: Mapping[str, Any]) -> list[str]:
    found = {f"By {c}": parts for c, parts in result.get("by", {}).items()}
    if "leave_one_source_out" in result:
        found["Leave one source out"] = result["leave_one_source_out"]
    out = []
    pair = result["strong"] is not None
    figure, interval = ("apgr", "apgr_ci") if pair else ("gain_over_zero_router", "gain_ci")
    shown = [n for n in result["policies"] if n not in ("cheapest", "best", "zero_router")]
    for title, parts in found.items():
        kept = {k: v for k, v in parts.items() if v["policies"] is not None}
        out.append(f"<h2>{escape(title)}</h2>")
        out.append(f"<p>{'APGR' if pair else 'Gain over the zero router'} of each part.</p>")
        rows = []
        for name, part in kept.items():
            cells = [
                _with(p[figure], p[interval], sign=not pair) if p else "–"
                for p in (part["policies"].get(n) for n in shown)
            ]
            rows.append([escape(name), f"{part['n_queries']:,}", *cells])
        head = ["part", "queries", *(escape(n) for n in shown)]
        out.append(_table(head, rows, [False] * len(rows)))
        if len(kept) < len(parts):
            out.append(
                f"<p class=facts>{len(parts) - len(kept)} parts of fewer than 20 queries are left "
                "out.</p>"
            )
    return out
