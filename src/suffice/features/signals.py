"""A user message as numbers: counts that a person can read, in a fixed order, Unicode-safe and bounded.

Words are looked up in one dictionary, and bytes are counted by C-level methods. At most 1,025
characters are scored, so that no input costs more than a few hundred microseconds.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import log1p
from typing import Protocol

from suffice.features.user_message import UserMessage

SIGNAL_NAMES: tuple[str, ...] = (
    "log_chars",  # log(1 + characters of the last user message)
    "log_tokens",  # log(1 + estimated tokens of the same)
    "lines",  # log(1 + paragraphs and list items)
    "digits",  # share of characters
    "numbers",  # log(1 + count), like all counts below
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
    "lookup",  # a short look-up: weather, capital of, what time
    "stem",  # log(1 + characters before the first option of a multiple choice)
    "stop_words",  # share of the chunks
    "log_prompt_tokens",  # log(1 + estimated tokens of the whole prompt)
    "turns",
    "log_pasted",  # log(1 + characters of pasted material in the same message)
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

# Words of grammar. Their share separates prose from formulas, code and lists.
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


def _signals_by_word() -> dict[str, tuple[int, ...]]:
    signals: dict[str, tuple[int, ...]] = {}
    for name, words in _CLASSES.items():
        index = SIGNAL_NAMES.index(name)
        for word in words.split():
            known = signals.get(word, ())
            if index not in known:
                signals[word] = (*known, index)
    return signals


_WORDS = _signals_by_word()
# Terms of scripts without spaces: they count anywhere in the message.
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
# The last one is a call: a word with an opening parenthesis.
_CODE_MARKS = re.compile(r"```|[{};]$|=>|->|==|!=|</?[a-z]+>|traceback|error:|\w\(")
_LIST_MARK = re.compile(r"\(?[1-9a-e][.)]|[-*•]")  # a chunk that begins an item
# An option of a multiple choice is a letter as a separate word, in one style per question.
_OPTIONS = ((" A. ", " B. "), (" A) ", " B) "), (" (A) ", " (B) "))
_AND_THEN = re.compile(r"(?:and|und|et|y|e) then ")
_END_OF_SENTENCE = frozenset(".!?")

_N_SIGNALS = len(SIGNAL_NAMES)
_INDEX = {name: i for i, name in enumerate(SIGNAL_NAMES)}
_NUMBERS, _MATH, _CODE = _INDEX["numbers"], _INDEX["math"], _INDEX["code"]
_CONNECTIVES, _QUESTIONS, _SENTENCES = (
    _INDEX["connectives"],
    _INDEX["questions"],
    _INDEX["sentences"],
)
_PARTS, _COMMAS, _PARENTHESES, _QUOTES = (
    _INDEX["parts"],
    _INDEX["commas"],
    _INDEX["parentheses"],
    _INDEX["quotes"],
)
_LOG_CHARS, _LOG_TOKENS, _LINES, _DIGITS = (
    _INDEX["log_chars"],
    _INDEX["log_tokens"],
    _INDEX["lines"],
    _INDEX["digits"],
)
_NON_ASCII, _LOOKUP, _STEM, _STOP_WORDS, _LOG_PASTED = (
    _INDEX["non_ascii"],
    _INDEX["lookup"],
    _INDEX["stem"],
    _INDEX["stop_words"],
    _INDEX["log_pasted"],
)
_COUNTS = tuple(
    _INDEX[n]
    for n in (
        "numbers math code reasoning creative wh_words constraints connectives questions "
        "sentences parts commas parentheses quotes structure lookup "
    ).split()
)
_LOOKUP_CHUNKS = 14  # a longer message is not a look-up

# Classes of UTF-8 bytes. Every character that is not ASCII has exactly one lead byte.
_DIGIT_BYTES = b"0123456789"
_LEAD_BYTES = bytes(range(0xC0, 0x100))
_UNCOUNTED_BYTES = bytes(set(range(256)) - {*_DIGIT_BYTES, *_LEAD_BYTES, *b'$?.!,("'})
# Lead bytes of the scripts whose terms and marks are counted: U+0600 to U+063F, U+3000 to U+FFFF.
_SCRIPT_BYTES = bytes((0xD8, *range(0xE3, 0xF0)))


class Tokenizer(Protocol):
    """What the signals need of a tokenizer."""

    def read(self, chunks: Sequence[str]) -> tuple[bytes, bytes]:
        """The int32 ids of a text's pieces, and one byte per signal that a chunk counts for."""


def estimate_tokens(text: str) -> float:
    """Estimate the tokens of `text` without a tokenizer."""
    # About 4 ASCII characters per token, and the fewer the more bytes a character has: tokenizers
    # split such scripts finely (Chinese: about one token per character).
    if text.isascii():
        return len(text) / 4.0
    return _tokens_of(len(text), len(text.encode("utf-8", "surrogatepass")))


def _tokens_of(chars: int, utf8_bytes: int) -> float:
    extra = utf8_bytes - chars  # 1 for é or я, 2 for 字, 3 for an emoji
    wide = extra / 2.0
    return max(0.0, chars - wide) / 4.0 + wide * 0.9


def count_chunk(chunk: str) -> tuple[int, ...]:
    """The indices of the signals that a lower-case chunk counts for, one per count."""
    counted: list[int] = []
    words = _TOKEN.findall(chunk)
    if len(words) == 1 and words[0] in _STOP:
        counted.append(_STOP_WORDS)
    for word in words:
        signals = _WORDS.get(word)
        if signals is not None:
            counted += signals
        elif word[0] in "0123456789":
            counted.append(_NUMBERS)
    if _LIST_MARK.fullmatch(chunk):
        counted.append(_PARTS)
    counted += [_MATH] * len(_MATH_MARKS.findall(chunk))
    counted += [_CODE] * len(_CODE_MARKS.findall(chunk))
    return tuple(counted)


def question_stem_chars(message: UserMessage) -> int:
    """Characters before the first option of a multiple choice; all of them if there is none."""
    text = message.text
    if "B" not in text or "A" not in text:
        return message.chars
    for first, second in _OPTIONS:
        start = text.find(first)
        if start < 0:
            continue
        # They share the space between them if the first option is empty.
        after = text.find(second, start + len(first) - 1)
        if after < 0:
            continue
        start = text.rfind(first, start, after + 1)  # "vitamin A. ..." may precede the options
        # The part that a long message lost was between its two halves.
        return start if start < len(text) // 2 else start + max(0, message.chars - len(text))
    return message.chars


def message_signals(message: UserMessage, tokenizer: Tokenizer) -> tuple[list[float], bytes]:
    """Compute the signals that depend on the message alone.

    Returns:
        All signals (n_signals,), those of the conversation at 0, and the int32 ids of its pieces.
    """
    text, chars = message.text, message.chars
    length = len(text)
    encoded = text.encode("utf-8", "surrogatepass")
    marks = encoded.translate(None, _UNCOUNTED_BYTES)
    ids, counted = tokenizer.read(message.chunks)
    v = [0.0] * _N_SIGNALS
    for i in counted:
        v[i] += 1.0
    v[_LOG_CHARS] = log1p(chars)
    v[_LOG_TOKENS] = log1p(_tokens_of(length, len(encoded)) * (chars / length if length else 1.0))
    v[_LINES] = log1p(message.lines)
    if length:
        v[_DIGITS] = (len(marks) - len(marks.translate(None, _DIGIT_BYTES))) / length
    if len(encoded) != length:
        v[_NON_ASCII] = (len(marks) - len(marks.translate(None, _LEAD_BYTES))) / length
        if len(marks) != len(marks.translate(None, _SCRIPT_BYTES)):
            _count_scripts(text, v)
    v[_MATH] += marks.count(b"$") // 2  # formulas between dollars
    if message.code:
        v[_CODE] += 2.0
    questions = marks.count(b"?")
    v[_QUESTIONS] += questions
    v[_SENTENCES] += encoded.count(b". ") + (text[-1:] in _END_OF_SENTENCE)
    v[_SENTENCES] += encoded.count(b"? ") if questions else 0
    v[_SENTENCES] += encoded.count(b"! ") if b"!" in marks else 0
    if v[_CONNECTIVES]:
        lower = text.lower()
        if " then " in lower:
            v[_PARTS] += len(_AND_THEN.findall(lower))
    v[_PARTS] += max(0.0, v[_QUESTIONS] - 1.0)
    v[_COMMAS] = marks.count(b",")
    v[_PARENTHESES] = marks.count(b"(")
    v[_QUOTES] = marks.count(b'"') / 2
    n_chunks = len(message.chunks)
    if n_chunks > _LOOKUP_CHUNKS:
        v[_LOOKUP] = 0.0
    for i in _COUNTS:
        if v[i]:
            v[i] = log1p(v[i])
    v[_STEM] = log1p(question_stem_chars(message))
    if n_chunks:
        v[_STOP_WORDS] /= n_chunks
    v[_LOG_PASTED] = log1p(message.attached)
    return v, ids


def _count_scripts(text: str, v: list[float]) -> None:
    """Count the terms and the punctuation of scripts that are not written with ASCII marks."""
    for term, i in _ANYWHERE:
        if term in text:
            v[i] += 1.0
    v[_QUESTIONS] += text.count("？") + text.count("؟")
    v[_SENTENCES] += text.count("。") + text.count("！") + text.count("？")
