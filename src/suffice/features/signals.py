"""An ask as numbers: counts that a person can read, in a fixed order, Unicode-safe and bounded.

Words are looked up in one dictionary; characters are counted by C-level methods. At most 1,025
characters are looked at, so that no input costs more than a few hundred microseconds.
"""

from __future__ import annotations

import re
from math import log1p
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from suffice.features.user_message import Ask

if TYPE_CHECKING:
    from suffice.features.wordpiece import WordPiece

SIGNAL_NAMES: tuple[str, ...] = (
    "log_chars",  # log(1 + characters of the last human ask)
    "log_tokens",  # log(1 + estimated tokens of it)
    "lines",  # log(1 + paragraphs and list items)
    "digits",  # share of characters
    "numbers",  # log(1 + count), as all counts below
    "math",
    "code",
    "reasoning",
    "creative",
    "wh_words",
    "constraints",
    "connectives",
    "questions",
    "sentences",
    "parts",  # enumerated parts, "and then", several questions
    "commas",
    "parentheses",
    "quotes",
    "non_ascii",  # share of characters
    "structure",  # asks for a table, JSON, a list, steps
    "lookup",  # short retrieval-style ask: weather, capital of, what time
    "stem",  # log(1 + characters of it before the first option of a multiple choice)
    "stop_words",  # share of chunks
    "log_prompt_tokens",  # log(1 + estimated tokens of the whole prompt)
    "turns",
    "log_pasted",  # log(1 + characters of pasted material beside the ask)
    "tools",
)

_CLASSES: dict[str, str] = {
    "math": (
        "prove proof theorem lemma integral derivative equation equations polynomial matrix "
        "eigenvalue eigenvalues prime primes modulo probability expected converge converges "
        "convergence limit sum product solve solutions geometry triangle algebra calculus sqrt "
        "frac sin cos tan log induction irrational divisible inequality bijection vector topology "
        "beweise beweis satz gleichung gleichungen integral ableitung wahrscheinlichkeit "
        "prouve prouver démontre démontrer démontrez théorème équation intégrale dérivée "
        "demuestra demostrar demuestre teorema ecuación integral derivada probabilidad "
        "prove prova demonstre equação dimostra dimostrare equazione "
        "докажи докажите теорема уравнение интеграл вероятность सिद्ध प्रमेय समीकरण أثبت برهن"
    ),
    "code": (
        "code function class method def return import async await python javascript typescript "
        "java rust golang sql query regex api endpoint bug debug exception traceback stack "
        "compile compiler segfault null pointer thread threads deadlock race mutex git docker "
        "kubernetes algorithm complexity refactor unittest pytest schema database index json "
        "html css react node npm bash shell script variable loop array recursion bytecode "
        "funktion fehler código función fonction código código-fonte codice funzione код функция"
    ),
    "reasoning": (
        "why explain derive prove design compare contrast analyse analyze evaluate debug optimise "
        "optimize justify reason reasoning tradeoff tradeoffs plan strategy architecture "
        "implications critique assess diagnose investigate summarise summarize detail detailed "
        "thoroughly rigorous rigorously step steps consider infer deduce determine review "
        "warum erkläre erklären vergleiche analysiere begründe entwirf leite fasse "
        "pourquoi explique expliquez compare analyse justifie conçois résume détail "
        "explica compara analiza justifica diseña resume detalle porque spiega confronta "
        "analizza progetta riassumi explique compare analise projete resuma "
        "почему объясни сравни проанализируй обоснуй спроектируй समझाइए समझाओ तुलना विश्लेषण "
        "اشرح قارن حلل لماذا 설명 비교 분석"
    ),
    "creative": (
        "story poem essay novel song lyrics haiku limerick screenplay dialogue slogan write "
        "draft compose rewrite blog speech letter invent imagine schreibe gedicht geschichte "
        "écris poème histoire escribe poema cuento scrivi poesia storia escreva напиши стих"
    ),
    "wh_words": (
        "what who when where which whose how wer was wann wo welche wie qui que quoi quand où "
        "quel quelle comment qué quién cuándo dónde cuál cómo chi cosa quando dove quale come "
        "quem onde qual кто что когда где какой как क्या कौन कब कहाँ कैसे ما من متى أين كيف"
    ),
    "constraints": (
        "must should only exactly least most without except avoid never always ensure unless "
        "maximum minimum constraint constraints require requires required limit within valid "
        "strictly muss nur genau höchstens mindestens ohne doit seulement exactement sans "
        "debe solo exactamente máximo mínimo sin deve solo esattamente senza должен только ровно"
    ),
    "connectives": (
        "and then because therefore however although while since if else given assuming suppose "
        "such both either whereas after before finally und dann weil wenn et puis parce si "
        "y luego porque e poi perché и затем потому если"
    ),
    "structure": (
        "table json yaml csv xml list bullet bullets outline sections markdown columns schema "
        "format headings tabelle liste tableau lista tabla tabella таблица список"
    ),
    "lookup": (
        "weather today tomorrow capital time date hello hi hey thanks thank spell synonym "
        "define meaning translate convert president population height distance price currency "
        "birthday wetter heute hauptstadt übersetze hallo météo aujourd'hui capitale traduis "
        "bonjour clima tiempo hoy capital traduce hola tempo oggi capitale traduci ciao hoje "
        "traduza olá погода сегодня столица переведи привет मौसम आज राजधानी नमस्ते الطقس اليوم "
        "عاصمة مرحبا 날씨 오늘 수도 안녕"
    ),
}

# Words that carry grammar and little else. Their share tells prose from formulas, code and lists.
_STOP = frozenset(
    (
        "the of and a an to in is that it was for on are as with his they at be this from i have or "
        "by had not but what all were when we there can your which their said if do will each about "
        "how up out them then she he her him has its my me you no so some would could should than "
        "these those who where why did does been being am into more most such any other only also "
        "der die das ein eine einen einem einer und oder ist sind war nicht mit von zu zum zur im "
        "auf für als auch es ich du er sie wir ihr den dem des dass wie was bei aus nach über "
        "le la les un une des du de et ou est sont était ne pas avec pour dans sur par au aux ce "
        "cette ces que qui je tu il elle nous vous ils elles se sa son ses "
        "el los las una uno y o es son era no con por para en del al que se su sus lo como más yo "
        "il lo gli i una di e o è sono era non con per in da del della che si suo sua come più io "
        "os um uma do da dos das em no na nos nas ao e ou é são não com por para que se seu sua "
        "и в во не что он на я с со как а то все она так его но да ты к у же вы за бы по "
        "और का की के में है हैं से को पर यह कि في من على إلى عن أن هذا هذه التي الذي و لا ما هو هي"
    ).split()
)


def _table() -> dict[str, tuple[int, ...]]:
    table: dict[str, tuple[int, ...]] = {}
    for name, words in _CLASSES.items():
        at = SIGNAL_NAMES.index(name)
        for word in words.split():
            known = table.get(word, ())
            if at not in known:
                table[word] = (*known, at)
    return table


_WORDS = _table()
# Scripts without spaces: looked for anywhere in the ask.
_ANYWHERE: tuple[tuple[str, int], ...] = tuple(
    (term, SIGNAL_NAMES.index(name))
    for name, terms in {
        "math": "证明 方程 积分 概率 定理 証明 方程式 積分 確率 증명 방정식",
        "code": "代码 函数 程序 调试 コード 関数 バグ 코드 함수",
        "reasoning": "解释 分析 比较 为什么 设计 总结 详细 説明 分析 比較 なぜ 設計 要約 설명해",
        "creative": "写一 诗 故事 書いて 物語 詩 써줘",
        "lookup": "天气 今天 首都 你好 翻译 天気 今日 こんにちは 翻訳",
        "wh_words": "什么 谁 哪 怎么 何 誰 どこ いつ 무엇 어디",
    }.items()
    for term in terms.split()
)

_TOKEN = re.compile(r"[^\W_]+")
_MATH_MARKS = re.compile(r"\\[a-z]{2,}|[=<>≤≥∑∫√∞∀∃∈⊂≡±×÷^]")
# The last is a call: an opening parenthesis right behind a word.
_CODE_MARKS = re.compile(r"```|[{};]$|=>|->|==|!=|</?[a-z]+>|traceback|error:|\w\(")
_LIST_MARK = re.compile(r"\(?[1-9a-e][.)]|[-*•]")  # a chunk that begins an item
# An option of a multiple choice is its letter as a word of its own, in one style throughout.
_OPTIONS = ((" A. ", " B. "), (" A) ", " B) "), (" (A) ", " (B) "))
_AND_THEN = re.compile(r"(?:and|und|et|y|e) then ")
_DIGITS = b"0123456789"
_ENDS = frozenset(".!?")

_I = {name: i for i, name in enumerate(SIGNAL_NAMES)}
_N = len(SIGNAL_NAMES)
_COUNTS = tuple(
    _I[n]
    for n in (
        "numbers math code reasoning creative wh_words constraints connectives questions "
        "sentences parts commas parentheses quotes structure lookup "
    ).split()
)


def estimate_tokens(text: str) -> float:
    """Tokens of `text` without a tokenizer: about 4 characters of ASCII each, 1.6 bytes less the
    more of it is written in scripts that tokenizers split finely (Chinese: one a character)."""
    n = len(text)
    if text.isascii():
        return n / 4.0
    extra = len(text.encode("utf-8", "surrogatepass")) - n  # 1 for é or я, 2 for 字, 3 for an emoji
    wide = extra / 2.0
    return max(0.0, n - wide) / 4.0 + wide * 0.9


def count_chunk(chunk: str) -> tuple[int, ...]:
    """The signals that a chunk of the ask counts for, one as often as it does. The chunk is in lower
    case and holds no white space; what comes out is remembered, so the work may be plain."""
    hits: list[int] = []
    words = _TOKEN.findall(chunk)
    if len(words) == 1 and words[0] in _STOP:
        hits.append(22)
    for word in words:
        known = _WORDS.get(word)
        if known is not None:
            hits += known
        elif word[0] in "0123456789":
            hits.append(4)
    if _LIST_MARK.fullmatch(chunk):
        hits.append(14)
    hits += [5] * len(_MATH_MARKS.findall(chunk))
    hits += [6] * len(_CODE_MARKS.findall(chunk))
    return tuple(hits)


def stem_chars(ask: Ask) -> int:
    """Characters before the first option of a multiple choice; all of them where there is none.
    Work is linear in the text, which `Ask` bounds."""
    text = ask.text
    for first, second in _OPTIONS:
        at = text.find(first)
        if at < 0:
            continue
        # They share the space between them where the first option is empty.
        after = text.find(second, at + len(first) - 1)
        if after < 0:
            continue
        at = text.rfind(first, at, after + 1)  # "vitamin A. ..." may stand before the options
        # What was left out of a long ask lies between its two halves.
        return at if at < len(text) // 2 else at + max(0, ask.chars - len(text))
    return ask.chars


def ask_signals(ask: Ask, pieces: WordPiece) -> tuple[list[float], list[int]]:
    """(all signals that depend on the ask alone (n_signals,), ids of its pieces)."""
    text = ask.text
    v = [0.0] * _N
    chars = ask.chars
    v[0] = log1p(chars)
    scale = chars / len(text) if text else 1.0
    v[1] = log1p(estimate_tokens(text) * scale)
    v[2] = log1p(ask.lines)
    low = text.lower()
    ids, chunks = pieces.read(low, v)
    raw = text.encode("utf-8", "surrogatepass")
    if text:
        v[3] = (len(raw) - len(raw.translate(None, _DIGITS))) / len(text)
    if len(raw) != len(text):
        v[18] = sum(map(len, re.findall(r"[^\x00-\x7f]+", text))) / len(text)
        for term, i in _ANYWHERE:
            if term in text:
                v[i] += 1.0
        v[12] += text.count("？") + text.count("؟")
        v[13] = text.count("。") + text.count("！") + text.count("？")
    if "$" in text:
        v[5] += text.count("$") // 2  # formulas between dollars
    if ask.code:
        v[6] += 2.0
    v[12] += text.count("?")
    v[13] += text.count(". ") + text.count("? ") + text.count("! ") + (text[-1:] in _ENDS)
    if " then " in low:
        v[14] += len(_AND_THEN.findall(low))
    v[14] += max(0.0, v[12] - 1.0)
    v[15] = text.count(",")
    v[16] = text.count("(")
    v[17] = text.count('"') / 2
    if chunks > 14:
        v[20] = 0.0  # a long ask is no look-up, whatever words it holds
    for i in _COUNTS:
        if v[i]:
            v[i] = log1p(v[i])
    v[21] = log1p(stem_chars(ask))
    if chunks:
        v[22] /= chunks
    v[25] = log1p(ask.pasted)
    return v, ids


def to_array(values: list[float]) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)
