"""Makes the small table that the runners are tried on in CI: every prompt and outcome is made up.

    python benchmarks/quality/synthetic.py [--out benchmarks/quality/synthetic]

Layouts, folder and model names are those of the real tables, so that every runner takes it
unchanged with `--data benchmarks/quality/synthetic`; nothing in it says anything about the models
of those names, and no figure from it is ever published.

A query is a template filled in: a topic, and a difficulty that lengthens it and adds steps. Whether
a model is right follows a logistic law in its skill at the topic less the difficulty. The cheap
model is as good as the expensive ones at two topics and poor at two: what there is to be learned. Costs
are tokens times a price. Seeded; the same seed gives the same table.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

HERE = Path(__file__).parent
QUERIES = 900  # of the pool
PAIR_QUERIES = {"mmlu": 600, "gsm8k": 300, "mt_bench": 72}

_THINGS = "apples tickets books lamps chairs stamps coins bottles pens tiles boxes maps".split()
_PLACES = "harbour market valley library station garden museum bakery bridge orchard".split()
_PEOPLE = "Ada Ben Clara Dmitri Eiko Farid Greta Hugo Ines Jonas Kofi Lena Mira Nils".split()
_TOPICS: dict[str, tuple[str, tuple[str, ...]]] = {
    "arithmetic": (
        "{who} buys {a} {things} for {b} coins each and sells {c} of them at the {place}.",
        (
            "Then a third of what is left is lost on the way.",
            "Each buyer gets a discount of {b} percent after the first {c}.",
            "The next day the price doubles and {a} more arrive.",
            "A tax of {c} coins is due on every dozen.",
        ),
    ),
    "code": (
        "Write a function `{things}_at_{place}` that returns the {a} largest values of a list.",
        (
            "It must run in O(n log {a}) time and keep the order of equals.",
            "Reject lists that hold None with a ValueError which names index {b}.",
            "Make it work on a stream of {c} million rows without holding them.",
            "Prove in a comment why the invariant holds after each step.",
        ),
    ),
    "summary": (
        "Summarise in {b} sentences what {who} saw at the {place}: {things} in every colour.",
        (
            "The crowd waited for {a} minutes and then went home in the rain.",
            "Somebody had painted the walls blue, and nobody knew why.",
            "An old man told a story about {c} {things} and a lost key.",
            "In the evening the lights went out and the music stopped.",
        ),
    ),
    "lookup": (
        "What is the name of the {place} where {who} keeps the {things}?",
        (
            "Answer with one word.",
            "It was opened {a} years ago.",
            "Choose from: north, south, east, west.",
            "If it is not known, say so.",
        ),
    ),
}


class Maker(NamedTuple):
    """A made-up model. skill: at each topic, in the order of `_TOPICS`, in logits."""

    name: str
    usd_per_mtok: float
    output_tokens: float
    skill: tuple[float, float, float, float]


POOL = (
    Maker("meta-llama/llama-3.1-8b-instruct", 0.1, 120.0, (0.2, 0.0, 3.2, 3.0)),
    Maker("mistralai/mistral-large-2512", 1.5, 160.0, (2.6, 1.2, 3.2, 3.1)),
    Maker("google/gemini-2.5-flash", 2.5, 200.0, (2.8, 2.4, 3.3, 3.1)),
    Maker("google/gemini-2.5-pro", 12.0, 500.0, (3.6, 3.4, 3.4, 3.2)),
)
PAIR = (
    Maker("mistralai/Mixtral-8x7B-Instruct-v0.1", 0.5, 150.0, (0.3, 0.0, 2.4, 2.2)),
    Maker("gpt-4-1106-preview", 20.0, 200.0, (2.6, 2.4, 2.8, 2.6)),
)


def _query(rng: np.random.Generator) -> tuple[str, str, int]:
    """(prompt, topic, difficulty 0 to 4)."""
    topic = str(rng.choice(list(_TOPICS)))
    opening, steps = _TOPICS[topic]
    hard = int(rng.integers(0, 5))
    parts = [opening, *(steps[i] for i in rng.permutation(len(steps))[:hard])]
    if topic == "arithmetic":
        parts.append("How many coins does {who} have at the end?")
    words = {
        "who": rng.choice(_PEOPLE), "things": rng.choice(_THINGS), "place": rng.choice(_PLACES),
        "a": rng.integers(3, 90), "b": rng.integers(2, 12), "c": rng.integers(4, 40),
    }  # fmt: skip
    return " ".join(parts).format(**words), topic, hard


def _outcomes(
    rng: np.random.Generator, models: tuple[Maker, ...], prompts: list[tuple[str, str, int]]
) -> list[dict[str, Any]]:
    topics = list(_TOPICS)
    rows: list[dict[str, Any]] = []
    for i, (prompt, topic, hard) in enumerate(prompts):
        luck = rng.logistic()  # shared: what is hard for one is hard for all
        for m in models:
            edge = m.skill[topics.index(topic)] - 0.55 * hard + 0.7 * luck + 0.7 * rng.logistic()
            tokens_in = len(prompt) // 4 + 8
            tokens_out = int(m.output_tokens * (0.5 + 0.35 * hard) * np.exp(rng.normal(0.0, 0.3)))
            rows.append(
                {
                    "query_id": f"q{i:04d}", "model": m.name, "score": float(edge > 0),
                    "input_tokens": tokens_in, "output_tokens": tokens_out,
                    "cost_usd": (tokens_in / 4 + tokens_out) * m.usd_per_mtok / 1e6,
                }
            )  # fmt: skip
    return rows


def _fresh(rng: np.random.Generator, count: int, taken: set[str]) -> list[tuple[str, str, int]]:
    out: list[tuple[str, str, int]] = []
    while len(out) < count:
        q = _query(rng)
        if q[0] not in taken:
            taken.add(q[0])
            out.append(q)
    return out


def tables(seed: int = 0) -> dict[str, tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Folder -> (queries, outcomes) as rows."""
    rng = np.random.default_rng(seed)
    taken: set[str] = set()
    pool = _fresh(rng, QUERIES, taken)
    queries = [
        {
            "query_id": f"q{i:04d}", "source": "synthetic", "benchmark": topic,
            "category": f"difficulty {hard}", "prompt": prompt, "n_turns": 1,
        }
        for i, (prompt, topic, hard) in enumerate(pool)
    ]  # fmt: skip
    made = {"paretobandit_val": (queries, _outcomes(rng, POOL, pool))}
    names = [b for b, count in PAIR_QUERIES.items() for _ in range(count)]
    pair = _fresh(rng, len(names), taken)
    queries = [
        {
            "query_id": f"q{i:04d}", "source": "synthetic", "benchmark": benchmark,
            "category": topic, "prompt": prompt, "n_turns": 2 if benchmark == "mt_bench" else 1,
            "contaminated": False, "prompt_turn2": "Explain." if benchmark == "mt_bench" else None,
        }
        for i, ((prompt, topic, _), benchmark) in enumerate(zip(pair, names, strict=True))
    ]  # fmt: skip
    outcomes = _outcomes(rng, PAIR, pair)
    for row in outcomes:
        for column in ("cost_usd", "input_tokens", "output_tokens"):  # unknown there
            del row[column]
        turns = (None, None)
        if names[int(row["query_id"][1:])] == "mt_bench":  # graded, the mean of two turns
            one, two = 0.2 + 0.7 * row["score"], 0.2 + 0.7 * rng.random()
            row["score"], turns = round((one + two) / 2, 3), (one, two)
        row["score_turn1"], row["score_turn2"] = turns
    made["routellm"] = (queries, outcomes)
    return made


def write(out: Path, seed: int = 0) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for folder, (queries, outcomes) in tables(seed).items():
        (out / folder).mkdir(parents=True, exist_ok=True)
        for name, rows in (("queries", queries), ("outcomes", outcomes)):
            path = out / folder / f"{name}.parquet"
            temporary = path.with_name(f".{path.name}.{os.getpid()}")
            pq.write_table(pa.Table.from_pylist(rows), temporary, compression="zstd")
            os.replace(temporary, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "synthetic")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.out, args.seed)
    for path in sorted(args.out.rglob("*.parquet")):
        print(f"{path.relative_to(args.out)}: {path.stat().st_size / 1000:.1f} kB")


if __name__ == "__main__":
    main()
