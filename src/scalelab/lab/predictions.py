"""A guess made before the result shows, and how far off it was.

A reader who has committed to a number reads the result; one who has not, looks at it.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from types import EllipsisType
from typing import Any

import numpy as np

from scalelab.core.errors import LabError
from scalelab.core.units import format_bytes, format_seconds

Value = float | str

_NUMBER = re.compile(r"[+-]?(\d{1,3}(,\d{3})+(\.\d*)?|\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
# Spaces and hyphens of every kind, but not the sign in 1e-3.
_SPACES_AND_HYPHENS = re.compile(r"\s|(?<!\de)[-\u2010\u2011\u2013]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What was guessed.

    Attributes:
        guess: a number, or one of some choices as text.
        unit: of the number; "" for counts and choices.
        low, high: an interval the reader would bet on, where one was given.
    """

    guess: Value
    unit: str = ""
    low: float | None = None
    high: float | None = None


def make_prediction(name: str, guess: Any, unit: str, low: Any, high: Any) -> Prediction | None:
    """The prediction, or None while it is not written (None or ... in its place).

    True and False mean "yes" and "no"; a text such as "7 nats", in the unit asked for, means its number.

    Raises:
        LabError: a guess that is neither a finite number nor a text, or an interval without the guess in it.
    """
    if is_blank(guess):
        return None
    if isinstance(guess, bool | np.bool_):
        guess = "yes" if guess else "no"
    if isinstance(guess, str):
        number = _number_in(guess, unit)
        if number is None:
            return Prediction(guess=guess, unit=unit)
        guess = number
    value = read_number(f"the guess of {name!r}", guess)
    ends = [
        None if is_blank(end) else read_number(f"an end of {name!r}'s interval", end) for end in (low, high)
    ]
    if ends == [None, None]:
        return Prediction(guess=value, unit=unit)
    if ends[0] is None or ends[1] is None or not ends[0] <= value <= ends[1]:
        raise LabError(
            f"the interval of {name!r} must hold the guess: low {low!r}, guess {guess!r}, high {high!r}"
        )
    return Prediction(guess=value, unit=unit, low=ends[0], high=ends[1])


def is_blank(value: object) -> bool:
    """Whether the reader has not written anything: None, ..., or an empty text."""
    return value is None or isinstance(value, EllipsisType) or (isinstance(value, str) and value == "")


def read_number(what: str, value: Any) -> float:
    """A finite float from anything that is one number (a tensor of one element too).

    Raises:
        LabError: it is not.
    """
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if isinstance(value, bool) or not math.isfinite(number):
        raise LabError(f"{what} must be a finite number, got {value!r}")
    return number


def compare(prediction: Prediction, measured: Value) -> str:
    """How the guess stands to what was measured: "32 % high", "right", "4.0 times too low", "inside ..."."""
    if isinstance(prediction.guess, str) or isinstance(measured, str):
        return "right" if _says_the_same(prediction.guess, measured, prediction.unit) else "not so"
    parts = [_distance(prediction.guess, measured)]
    if prediction.low is not None and prediction.high is not None:
        inside = prediction.low <= measured <= prediction.high
        parts.append(
            f"{'inside' if inside else 'outside'} your interval "
            f"{show(prediction.low)} to {show(prediction.high)}"
        )
    return ", ".join(parts)


def show(value: Value, unit: str = "") -> str:
    """A value with its unit, in three figures, thousands apart."""
    if isinstance(value, str):
        text = value
    elif unit in ("B", "bytes") and abs(value) >= 1024:
        return format_bytes(value)
    elif unit == "s" and abs(value) >= 60:
        return format_seconds(value)
    elif value == int(value) and abs(value) < 1000:
        text = str(int(value))
    elif abs(value) >= 1000:
        # Three figures are all that a guess or a measurement of this kind is good for.
        digits = 3 - 1 - math.floor(math.log10(abs(value)))
        text = f"{round(value, digits):,.0f}" if abs(value) < 1e9 else _powers_of_ten(value)
    else:
        text = f"{value:.3g}"
    return f"{text} {unit}".strip()


def _number_in(text: str, unit: str) -> float | None:
    """The number a text starts with, if nothing but the unit follows it."""
    found = _NUMBER.match(text.strip())
    if found is None or _plain(text.strip()[found.end() :]) not in ("", _plain(unit)):
        return None
    number = float(found[0].replace(",", ""))
    return number if math.isfinite(number) else None


def _says_the_same(guess: Value, measured: Value, unit: str) -> bool:
    """Whether two answers of which one is a text agree: as numbers where both are, else as words."""
    numbers = [_number_in(value, unit) if isinstance(value, str) else value for value in (guess, measured)]
    if None not in numbers:
        return numbers[0] == numbers[1]
    return _plain(str(guess)) == _plain(str(measured))


def _plain(text: str) -> str:
    """A text without case, spaces and hyphens: "Warm-up" and "warmup" are one answer."""
    return _SPACES_AND_HYPHENS.sub("", text.casefold())


def _powers_of_ten(value: float) -> str:
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def _distance(guess: float, measured: float) -> str:
    if guess == measured:
        return "right"
    if guess * measured <= 0:  # a ratio says nothing across zero
        return f"off by {show(guess - measured)}"
    ratio = guess / measured
    side = "high" if abs(guess) > abs(measured) else "low"
    if not 0.5 <= ratio <= 2:
        return f"{max(ratio, 1 / ratio):.1f} times too {side}"
    percent = abs(ratio - 1) * 100
    return f"{percent:.0f} % {side}" if percent >= 0.5 else "right within 0.5 %"
