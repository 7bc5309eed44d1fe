"""A made-up world for the feedback loop: topics, prompts of many wordings, models that are good at
different topics, and what each answer is worth.

Everything is drawn from a seed: which model is good at which topic, by how much, how wrong the
operator's guesses of the models are, how long answers are, who gives feedback, when, or never.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

WORTH_USD = 0.02  # of a good answer: the route's objective
# USD per million tokens in and out
PRICES = (("swift/light", 0.15, 0.60), ("harbor/medium", 0.40, 1.60), ("summit/large", 2.50, 10.0))
MODELS = tuple(name for name, *_ in PRICES)

_THINGS = (
    "river bakery garden museum bicycle library harbour orchestra lighthouse market festival train "
    "winter island kitchen school mountain theatre hotel bridge forest village airport newspaper "
    "football wedding office neighbour holiday painting"
).split()

# topic -> (templates, its words). {t}: such a word; {x}: a thing of any topic.
_TOPICS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "code": (
        (
            "Write a Python function that validates a {t} for the {x} app and returns a list of errors",
            "Why does this {t} raise a TypeError when the {x} table is empty?",
            "Refactor the {t} below so that the {x} module has no circular import",
            "How do I mock a {t} in a unit test of the {x} service?",
            "My {t} deadlocks under load. The code handles {x} records with async workers",
            "Add type annotations and docstrings to the {t} of our {x} package",
        ),
        (
            "JSON parser|SQL query|regular expression|REST endpoint|linked list|hash table|decorator|"
            "recursive function|class hierarchy|thread pool|database migration|CSV loader|Docker "
            "image|websocket handler|binary search|React component|cache layer|unit test|git hook"
        ),
    ),
    "story": (
        (
            "Write a short story about {t} who finds a secret near the {x}",
            "Continue this tale: {t} walked past the {x} and the rain would not stop",
            "A poem in four stanzas about {t} and the old {x}, please",
            "Describe {t} at the {x} as the opening scene of a novel",
            "Invent a bedtime fairy tale with {t}, a {x} and a happy ending",
            "Write a dialogue full of tension between {t} and a stranger by the {x}",
        ),
        (
            "a lonely dragon|two estranged sisters|an old sailor|a forgetful wizard|a shy ghost|a "
            "runaway princess|a tired detective|the last gardener|a talking fox|a clockmaker|an "
            "orphan boy|a retired thief|a homesick astronaut|the blind painter|a jealous king"
        ),
    ),
    "maths": (
        (
            "Prove that {t} holds for every positive integer, with the {x} example as a check",
            "Compute {t} and show each step; the {x} in the exercise is only decoration",
            "A {x} has 12 rooms and 5 doors. Using {t}, how many ways are there to walk through?",
            "Solve the equation that follows from {t} when x = 3 and y = 7",
            "What is the expected value if we apply {t} to 40 tickets of the {x}?",
            "Find the maximum of the function given by {t} on the interval [0, 5]",
        ),
        (
            "the binomial theorem|integration by parts|the pigeonhole principle|a geometric series|"
            "Bayes' theorem|the chain rule|modular arithmetic|matrix diagonalisation|a Taylor "
            "expansion|the intermediate value theorem|Fermat's little theorem|a Markov chain|the "
            "quadratic formula|induction|Lagrange multipliers"
        ),
    ),
    "law": (
        (
            "Summarise the {t} clause in this lease of a {x} and say who bears the risk",
            "Can a tenant of the {x} terminate under {t} without notice?",
            "Draft a paragraph on {t} for a contract between two companies about a {x}",
            "Which court has jurisdiction over {t} if the {x} lies abroad?",
            "Explain the liability that {t} creates for the owner of a {x}",
            "Is {t} enforceable against the buyer of the {x}, and on what ground?",
        ),
        (
            "indemnity|force majeure|limitation of liability|breach of warranty|confidentiality|"
            "arbitration|intellectual property|negligence|severability|assignment|non-compete|"
            "misrepresentation|statutory notice|retention of title|consumer protection"
        ),
    ),
    "medicine": (
        (
            "What are the first symptoms of {t} in adults who work at a {x}?",
            "Explain to a patient how {t} is treated and what dose is usual",
            "Which blood tests tell {t} apart from an infection caught on holiday at the {x}?",
            "Can {t} be made worse by exercise, such as walking from the {x} every day?",
            "List the side effects of the drugs that doctors prescribe for {t}",
            "My mother, 71, has {t}. Which warning signs mean hospital?",
        ),
        (
            "asthma|type 2 diabetes|migraine|pneumonia|hypertension|anaemia|rheumatoid arthritis|"
            "atrial fibrillation|hypothyroidism|gout|epilepsy|coeliac disease|chronic kidney "
            "disease|sciatica|eczema"
        ),
    ),
    "support": (
        (
            "Answer this customer politely: her {t} from the {x} shop arrived broken",
            "Rewrite the email so that it sounds friendlier: your {t} is late, sorry, {x} closed",
            "A client is angry that the {t} was charged twice. Draft a reply from the {x} team",
            "Where can I change the {t} in my account? I bought it at the {x}",
            "Turn these notes into a message to the customer: {t}, refund, {x}, Monday",
            "Write a short apology for the outage that hit {t} and everyone at the {x}",
        ),
        (
            "order|subscription|invoice|parcel|gift card|delivery address|password|booking|refund|"
            "discount code|loyalty points|monthly plan|warranty claim|newsletter|receipt"
        ),
    ),
}  # fmt: skip
TOPICS = tuple(_TOPICS)

_BEFORE = (
    "", "", "", "Hi, ", "Quick question: ", "Could you help? ", "I need this today. ",
    "For a friend: ", "Hello! I have been thinking about this for a while. ", "Please: ",
)  # fmt: skip
_AFTER = (
    "", "", "", " Thanks!", " Keep it short.", " As detailed as you can, please.",
    " In plain English.", " I am new to this.", " Use bullet points where it helps.",
    " It is for a presentation at the {x} next week, so mind the tone.",
)  # fmt: skip

SOURCES = ("user", "test", "judge")


class Request(NamedTuple):
    """One query and the scores its answer will get. luck: (k,) in [0, 1), an
    answer of a model is good where it is below the model's chance; sources: who says so, first the
    one that counts; delay: how many requests later they say it; doubt: whether the first word is
    the opposite and is put right later."""

    id: str
    topic: int
    prompt: str
    output_tokens: int
    luck: tuple[float, ...]
    sources: tuple[str, ...]
    delay: int
    doubt: bool


class World(NamedTuple):
    """chance: (topics, k) of a good answer; guess: (k,) what the operator tells the router."""

    chance: FloatArray
    guess: tuple[float, ...]

    def good(self, r: Request, model: int) -> bool:
        return r.luck[model] < self.chance[r.topic, model]


def world(seed: int, operator: str = "claims") -> World:
    """Each topic has one model that is good at it (82 to 94 %), two topics a model; the others are
    poor to middling there, more expensive ones somewhat better. What the operator enters for each
    model: `claims`, how good it is where it is good, as vendors' figures have it, within 0.05; or
    `means`, how good it is on the whole, within 0.1."""
    rng = np.random.default_rng([seed, 1])
    k = len(MODELS)
    level = np.array([0.48, 0.53, 0.60])
    chance = level + rng.uniform(-0.12, 0.12, (len(TOPICS), k))
    good_at = rng.permutation(np.arange(len(TOPICS)) % k)
    chance[np.arange(len(TOPICS)), good_at] = rng.uniform(0.82, 0.94, len(TOPICS))
    errs = rng.uniform(-1.0, 1.0, k)
    guess = (
        chance.max(axis=0) + 0.05 * errs
        if operator == "claims"
        else chance.mean(axis=0) + 0.1 * errs
    )
    return World(chance, tuple(round(float(g), 2) for g in guess))


def requests(seed: int, n: int, missing: float = 0.3) -> list[Request]:
    """n queries in random order. 30 % are never scored; of the others one in five late, by up to
    200 requests, one in ten by two sources, one in thirty at first the wrong way round."""
    rng = np.random.default_rng([seed, 2])
    out = []
    for i in range(n):
        topic = int(rng.integers(len(TOPICS)))
        templates, own = _TOPICS[TOPICS[topic]]
        text = _pick(rng, _BEFORE) + _pick(rng, templates) + _pick(rng, _AFTER)
        text = text.replace("{t}", _pick(rng, own.split("|")))
        while "{x}" in text:
            text = text.replace("{x}", _pick(rng, _THINGS), 1)
        scored = rng.random() >= missing
        sources = tuple(rng.permutation(SOURCES)[: 2 if rng.random() < 0.1 else 1].tolist())
        out.append(
            Request(
                f"q{seed}-{i}",
                topic,
                text,
                int(np.clip(rng.lognormal(5.7, 0.5), 40, 1500)),
                tuple(_hash(f"{seed}/{i}/{m}") for m in MODELS),
                sources if scored else (),
                int(rng.integers(10, 200)) if rng.random() < 0.2 else 0,
                bool(rng.random() < 1 / 30),
            )
        )
    return out


def usd(r: Request, model: int, input_tokens: float | None = None) -> float:
    """What an answer of the model costs; input_tokens: as the provider counts, None = about."""
    _, i, o = PRICES[model]
    tokens = len(r.prompt) / 4 if input_tokens is None else input_tokens
    return (tokens * i + r.output_tokens * o) / 1e6


def values(w: World, stream: list[Request]) -> tuple[FloatArray, NDArray[np.intp]]:
    """((n, k) expected worth of each model's answer less its cost, in units of a good answer;
    (n,) the right model). Costs are those of an answer of mean length: a policy cannot know more of a
    query before it is answered."""
    usual = float(np.mean([r.output_tokens for r in stream]))
    cost = np.array(
        [
            [usd(r._replace(output_tokens=round(usual)), j) for j in range(len(MODELS))]
            for r in stream
        ]
    )
    value = w.chance[[r.topic for r in stream]] - cost / WORTH_USD
    return value, np.argmax(value, axis=1)


def _pick(rng: np.random.Generator, words: tuple[str, ...] | list[str]) -> str:
    return words[int(rng.integers(len(words)))]


def _hash(text: str) -> float:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64
