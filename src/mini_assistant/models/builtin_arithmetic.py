"""Which questions are plain arithmetic, and the Python code that answers them. Pure; `builtin_code.py` asks here.

The grammar is small on purpose: a message is arithmetic only when all of it is. Numbers with dashes and slashes mean other things too
(dates, telephone numbers, ranges), so the less a message says that it wants to calculate, the plainer its expression must be. The code
holds numbers and operators, nothing else of the message, and its work is bounded: where whole numbers may grow beyond `DIGITS_MAX`
digits, it calculates with floating-point numbers, which overflow at once.
"""

import math
import re
from typing import NamedTuple

DIGITS_MAX = 4000
"""Digits of the largest whole number that is calculated exactly; Python prints no more than 4300."""

_QUESTION_CHARACTERS_MAX = 300
_DEPTH_MAX = 20
_EXPONENT_DIGITS_MAX = 9.0
_FACTORIAL_DIGITS_MAX = 4.0
_FLOAT_DIGITS = 309.0

_GREETING = r"(?:(?:hi|hello|hey|ok|okay|so|and|now|please|pls)\b[ ,.!:]*)*(?:(?:can|could|would|will) you (?:please )?)?"
_COMMAND = r"calculate|compute|evaluate|work out"
_WONDER = r"(?:tell me )?(?:what['\u2019]?s|what is|what are|what does|how much (?:is|are))"
_LEAD = re.compile(
    rf"{_GREETING}(?:(?P<command>{_COMMAND})|(?P<wonder>{_WONDER}))\b:? *(?:(?:the )?(?:result|value|answer) (?:of|to) )?(?:the )?"
)
_TAIL = re.compile(r" *(?:equals?\b)? *(?P<equals>=)?[ ,]*(?:please)? *(?:\?[?! ]*|\.)?$")

# Numbers that are joined without a space are often the name of something.
_JOINED = re.compile(r"\(?\d[\d.]*\)?(?:[-/]\(?\d[\d.]*\)?)+")
_JOINED_PAIR = re.compile(r"(\d+(?:\.\d+)?)([-/])(\d+(?:\.\d+)?)")
_YEAR = re.compile(r"(?:19|20)\d\d")
_SAYINGS = frozenset({"24/7", "9/11", "50/50", "20/20", "4/20", "7/11"})

_TOKEN = re.compile(
    r" *(?:(?P<number>(?:[1-9]\d{0,2}(?:,\d{3})+|0|[1-9]\d*)(?:\.\d+)?(?![\d.,]*\d))"
    r"|(?P<percent>(?:%|percent) of\b)"
    r"|(?P<function>(?:sqrt|abs|floor|ceil|exp|ln|log10|log2|sin|cos|tan|square root of|factorial of)\b|\u221a)"
    r"|(?P<operator>\*\*|//|(?:to the power of|multiplied by|divided by|plus|minus|times|modulo|mod|x)\b|[-+*/^%\xd7\xf7\u2212])"
    r"|(?P<suffix>!|factorial\b|squared\b|cubed\b)"
    r"|(?P<pi>pi\b|\u03c0)"
    r"|(?P<bracket>[()]))"
)
_SYNONYMS = {
    "**": "^",
    "to the power of": "^",
    "multiplied by": "*",
    "times": "*",
    "\xd7": "*",
    "divided by": "/",
    "\xf7": "/",
    "plus": "+",
    "minus": "-",
    "\u2212": "-",
    "modulo": "%",
    "mod": "%",
    "square root of": "sqrt",
    "\u221a": "sqrt",
}
# What a text that asks for nothing must contain: numbers have other things than these between them for many reasons.
_TELLING = frozenset({"+", "*", "^", "% of", "percent of", "factorial"})


class Calculation(NamedTuple):
    """What a question asks for. expression: as an answer shows it, such as `12 * (7 + 3)`. code: Python that prints the result."""

    expression: str
    code: str


def calculation_or_none(question: str) -> Calculation | None:
    """The calculation that a message asks for; None when it is anything but plain arithmetic."""
    if len(question) > _QUESTION_CHARACTERS_MAX:
        return None
    text = " ".join(question.lower().split())
    lead = _LEAD.match(text)
    body = text[lead.end() :] if lead else text
    tail = _TAIL.search(body)
    expression = body[: tail.start()] if tail else body
    is_plain = (lead is not None and lead["command"] is not None) or (tail is not None and tail["equals"] is not None)
    tokens = _tokens_or_none(expression)
    if not tokens or _is_name(expression, is_plain=is_plain):
        return None
    if not (lead or is_plain or any(token.kind == "function" or token.text in _TELLING for token in tokens)):
        return None
    try:
        return _calculation(tokens)
    except _NotArithmetic:
        return None


def _is_name(expression: str, *, is_plain: bool) -> bool:
    """Whether joined numbers are rather a date, a telephone number, a range or a saying. is_plain: the message says that they are not."""
    if _JOINED.fullmatch(expression) is None:
        return False
    pair = _JOINED_PAIR.fullmatch(expression)
    if pair is None:  # more than two numbers, or numbers in brackets
        return True
    first, operator, second = pair.groups()
    is_span = operator == "-" and (float(first) < float(second) or _YEAR.fullmatch(first) is not None)
    return not is_plain and (is_span or expression in _SAYINGS)


class _NotArithmetic(Exception):
    """The tokens are no expression, or there is nothing to calculate in them."""


class _TooLarge(Exception):
    """Whole numbers may grow beyond what is calculated exactly."""


class _Token(NamedTuple):
    kind: str
    text: str


_END = _Token("end", "")


def _tokens_or_none(expression: str) -> list[_Token] | None:
    """The parts of an expression; None when there is something else in it."""
    tokens: list[_Token] = []
    place = 0
    while place < len(expression):
        match = _TOKEN.match(expression, place)
        if match is None or match.lastgroup is None:
            return None
        text = match[match.lastgroup]
        tokens.append(_Token(match.lastgroup, _SYNONYMS.get(text, text)))
        place = match.end()
    return tokens


def _calculation(tokens: list[_Token]) -> Calculation:
    try:
        term = _Parser(tokens, is_exact=True).parse()
    except _TooLarge:
        term = _Parser(tokens, is_exact=False).parse()
    lines = ["import math", ""] if "math." in term.code else []
    if term.is_whole:
        lines.append(f"print({term.code})")
    else:
        lines += [f"result = {term.code}", 'print(result if isinstance(result, int) else f"{result:.15g}")']
    return Calculation(term.shown, "\n".join(lines))


class _Term(NamedTuple):
    """A part of an expression as it is shown and as Python.

    is_whole: whether its value is a whole number for sure. digits: of its value where that is a whole number, at most.
    """

    shown: str
    code: str
    is_whole: bool
    digits: float


class _Parser:
    """Reads an expression from its parts, with the precedence of Python, so that brackets need to stand only where they stood.

    is_exact: whether whole numbers are calculated as such. `parse` raises _NotArithmetic, and _TooLarge where it may not be exact.
    """

    def __init__(self, tokens: list[_Token], *, is_exact: bool) -> None:
        self._tokens = tokens
        self._is_exact = is_exact
        self._place = 0
        self._depth = 0
        self._operations = 0

    def parse(self) -> _Term:
        term = self._sum()
        if self._next is not _END or not self._operations:
            raise _NotArithmetic
        return term

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place] if self._place < len(self._tokens) else _END

    def _taken(self, *texts: str) -> str | None:
        """The text of the next token, which is taken, when it is one of these; None otherwise."""
        text = self._next.text
        if text not in texts:
            return None
        self._place += 1
        return text

    def _sum(self) -> _Term:
        left = self._product()
        while operator := self._taken("+", "-"):
            right = self._product()
            left = self._joined(left, f" {operator} ", right, max(left.digits, right.digits) + math.log10(2))
        return left

    def _product(self) -> _Term:
        left = self._factor()
        while operator := self._taken("*", "x", "/", "//", "%"):
            operator = "*" if operator == "x" else operator
            right = self._factor()
            digits = {"*": left.digits + right.digits, "%": right.digits}.get(operator, left.digits)
            left = self._joined(left, f" {operator} ", right, digits, is_whole=operator != "/")
        return left

    def _factor(self) -> _Term:
        self._depth += 1
        if self._depth > _DEPTH_MAX:
            raise _NotArithmetic
        if self._taken("-"):
            term = self._factor()
            term = term._replace(shown=f"-{term.shown}", code=f"-{term.code}")
        else:
            term = self._power()
        self._depth -= 1
        return term

    def _power(self) -> _Term:
        base = self._atom()
        if suffix := self._taken("squared", "cubed"):
            exponent = "2" if suffix == "squared" else "3"
            return self._raised(base, _Term(exponent, exponent, True, math.log10(int(exponent))))
        if self._taken("!", "factorial"):
            base = self._factorial(base, f"{base.shown}!")
        return self._raised(base, self._factor()) if self._taken("^") else base

    def _raised(self, base: _Term, exponent: _Term) -> _Term:
        if exponent.digits > _EXPONENT_DIGITS_MAX:
            raise _TooLarge
        term = self._joined(base, "^", exponent, base.digits * 10**exponent.digits, is_whole="-" not in exponent.code)
        return term._replace(code=f"{base.code} ** {exponent.code}")

    def _factorial(self, term: _Term, shown: str) -> _Term:
        self._operations += 1
        if not self._is_exact:
            return _Term(shown, f"math.gamma({term.code} + 1)", False, 0.0)
        if term.digits > _FACTORIAL_DIGITS_MAX:
            raise _TooLarge
        digits = math.lgamma(10**term.digits + 1) / math.log(10)
        return _Term(shown, f"math.factorial({term.code})", True, self._bounded(digits))

    def _atom(self) -> _Term:
        token = self._next
        self._place += 1
        if token.kind == "number":
            number = self._number(token.text)
            return self._share(number) if self._taken("% of", "percent of") else number
        if token.kind == "function":
            return self._called(token.text)
        if token.kind == "pi":
            return _Term("pi", "math.pi", False, 0.0)
        if token.text == "(":
            inner = self._bracketed()
            return inner._replace(shown=f"({inner.shown})", code=f"({inner.code})")
        raise _NotArithmetic

    def _number(self, text: str) -> _Term:
        code = text.replace(",", "")
        is_whole = self._is_exact and "." not in code
        if not is_whole:
            return _Term(text, code if "." in code else f"{code}.0", False, 0.0)
        return _Term(text, code, True, math.log10(max(1, int(code))))

    def _share(self, percent: _Term) -> _Term:
        self._operations += 1
        whole = self._factor()
        return _Term(f"{percent.shown}% of {whole.shown}", f"({percent.code} * {whole.code} / 100)", False, 0.0)

    def _bracketed(self) -> _Term:
        """What is in brackets, behind the first one."""
        term = self._sum()
        if not self._taken(")"):
            raise _NotArithmetic
        return term

    def _called(self, function: str) -> _Term:
        self._operations += 1
        argument = self._bracketed() if self._taken("(") else self._atom()
        if function == "factorial of":
            return self._factorial(argument, f"factorial({argument.shown})")
        shown = f"{function}({argument.shown})"
        if function == "abs":
            return argument._replace(shown=shown, code=f"abs({argument.code})")
        code = f"math.{'log' if function == 'ln' else function}({argument.code})"
        if function not in ("floor", "ceil"):
            return _Term(shown, code, False, 0.0)
        return (
            _Term(shown, code, True, max(argument.digits, _FLOAT_DIGITS)) if self._is_exact else _Term(shown, f"float({code})", False, 0.0)
        )

    def _joined(self, left: _Term, operator: str, right: _Term, digits: float, *, is_whole: bool = True) -> _Term:
        self._operations += 1
        shown = f"{left.shown}{' mod ' if operator == ' % ' else operator}{right.shown}"
        is_whole = is_whole and left.is_whole and right.is_whole
        return _Term(shown, f"{left.code}{operator}{right.code}", is_whole, self._bounded(digits))

    def _bounded(self, digits: float) -> float:
        if self._is_exact and digits > DIGITS_MAX:
            raise _TooLarge
        return digits
