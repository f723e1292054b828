"""What every exercise has: a check that says what is wrong with an answer, and a memory of how it went."""

from __future__ import annotations

import dis
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

MARKS = {"passed": "✔", "open": "○", "wrong": "✘"}


class Hint(Exception):
    """Raised by a check: what is wrong with an answer, without giving the right one away."""


class _Open(Exception):
    """The three dots of the stub are still there."""


@dataclass(frozen=True)
class Outcome:
    """How an answer did: "passed", "open" or "wrong", and for a wrong one the hint."""

    state: str
    hint: str = ""


class Exercise:
    """A check with its place in the course. Calling it is what a notebook does: it prints, and never raises.

    Attributes:
        name: the check's name, as in `checks.affinities`.
        lesson: two digits.
        number: from 1, in the order of the lesson.
        title: a few words.
        points: what a right answer is worth in `make grade`.
        outcome: of the latest answer in this process.
    """

    def __init__(self, check: Callable[..., None], lesson: str, number: int, title: str, points: int) -> None:
        self.check, self.name, self.__doc__ = check, check.__name__, check.__doc__
        self.lesson, self.number, self.title, self.points = lesson, number, title, points
        self.outcome = Outcome("open")

    def __call__(self, *answers: Any) -> None:
        """Judge the answers, remember the outcome and print it."""
        self.outcome = self.judge(*answers)
        print(self)
        if self.outcome.state == "open":
            print("  Replace the three dots in the cell above by your answer, and run both cells again.")
        elif self.outcome.hint:
            print(f"  {self.outcome.hint}")

    def __str__(self) -> str:
        return f"{MARKS[self.outcome.state]} {int(self.lesson)}.{self.number} {self.title}: {self.outcome.state}"

    def judge(self, *answers: Any) -> Outcome:
        """The outcome of the answers; whatever they raise becomes a hint."""
        if any(answer is ... for answer in answers):
            return Outcome("open")
        for name in (name for answer in answers for name in _from_library(answer)):
            return Outcome("wrong", f"This is done by {name} of the library: write it yourself")
        try:
            self.check(*answers)
        except _Open:
            return Outcome("open")
        except Hint as hint:
            return Outcome("wrong", str(hint))
        except (Exception, SystemExit) as error:  # of the student's code; a check itself must not raise any other
            return Outcome("wrong", f"Your code stopped with {type(error).__name__}: {error}{_line(error)}")
        return Outcome("passed")


EXERCISES: dict[str, Exercise] = {}  # by name, in the order of the lessons


def exercise(lesson: str, title: str, points: int = 1) -> Callable[[Callable[..., None]], Exercise]:
    """Make an `Exercise` of a check: a function of the answers that raises `Hint` when one is wrong.

    Args:
        lesson: two digits.
        title: a few words, printed with the outcome.
        points: what a right answer is worth in `make grade`.
    """

    def register(check: Callable[..., None]) -> Exercise:
        made = Exercise(check, lesson, 1 + len(of_lesson(lesson)), title, points)
        assert made.name not in EXERCISES, f"two exercises are called {made.name}"
        EXERCISES[made.name] = made
        return made

    return register


def of_lesson(lesson: str) -> list[Exercise]:
    """The exercises of a lesson, in order."""
    return [one for one in EXERCISES.values() if one.lesson == lesson]


def report(lesson: str) -> None:
    """Print which exercises of a lesson ("01") are passed, open or wrong."""
    states = [one.outcome.state for one in of_lesson(lesson)]
    counts = ", ".join(f"{states.count(state)} {state}" for state in MARKS)
    print(f"Exercises of lesson {lesson}: {counts}")
    for one in of_lesson(lesson):
        print(f"  {one}")


def require(condition: bool, hint: str) -> None:
    """Raise `Hint` unless a condition holds."""
    if not condition:
        raise Hint(hint)


def ask(answer: Callable, *arguments: Any) -> Any:
    """Call what a student wrote; hints when that is no function, gives nothing back or changes its arguments."""
    require(callable(answer), f"A function is wanted, not {type(answer).__name__}: give its name, without ()")
    copies = [one.copy() if isinstance(one, np.ndarray) else None for one in arguments]
    result = answer(*arguments)
    if result is ...:
        raise _Open
    require(result is not None, "Your function gives nothing back: does it end with `return`?")
    for copy, one in zip(copies, arguments, strict=True):
        unchanged = copy is None or np.array_equal(copy, one, equal_nan=copy.dtype.kind == "f")
        require(unchanged, "Your function changes the array that it was given: work on a copy")
    return result


def ask_array(answer: Callable, *arguments: Any, shape: tuple[int, ...]) -> np.ndarray:
    """As `ask`, for a function that gives an array of a known shape."""
    result = np.asarray(ask(answer, *arguments))
    require(result.dtype.kind in "biuf", f"Your function should give an array of numbers, not of {result.dtype}")
    require(result.shape == shape, f"The result has the shape {result.shape}, and {shape} was expected")
    return result


def compare(result: np.ndarray, right: np.ndarray, mistakes: dict[str, np.ndarray], otherwise: str) -> None:
    """Hint if an array differs from the right one.

    Args:
        result: what the student's function gave.
        right: what is right, of the same shape.
        mistakes: by hint, what typical mistakes give.
        otherwise: the hint for any other difference; "{n}" in it becomes the number of wrong values, "{at}" the index
            of the first one, a tuple if there are several axes.
    """
    wrong = ~np.isclose(result, right)
    if not wrong.any():
        return
    for hint, mistake in mistakes.items():
        require(not np.allclose(result, mistake), hint)
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    raise Hint(otherwise.format(n=np.sum(wrong), at=at[0] if len(at) == 1 else at))


def _from_library(answer: Any) -> list[str]:
    """Functions and classes of the library that an answer is, inherits from or uses, also by helpers of its own."""
    parts = [answer, *vars(answer).values()] if isinstance(answer, type) else [answer]
    names = next((one.__globals__ for one in parts if isinstance(one, FunctionType)), {})
    found, seen, left = [], [], [answer]
    while left:
        one = left.pop()
        if any(one is other for other in seen):
            continue
        seen.append(one)
        family = one.__mro__ if isinstance(one, type) else [one] if isinstance(one, FunctionType) else []
        found += [each.__name__ for each in family if str(each.__module__).startswith("fgnet_lib.")]
        if isinstance(one, type):
            left += vars(one).values()
        elif family and one.__globals__ is names:
            left += _used(one.__code__, names)
    return found


def _used(code: CodeType, names: dict[str, Any]) -> list[Any]:
    """What code, and the code within it, means by global names and imports; of modules of the library what it takes."""
    used, value = [], None
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            value = names.get(instruction.argval)
        elif instruction.opname == "IMPORT_NAME":
            value = sys.modules.get(instruction.argval)
        elif instruction.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM") and isinstance(value, ModuleType):
            value = getattr(value, instruction.argval, None) if value.__name__.startswith("fgnet_lib") else None
        else:
            value = None
        used.append(value)
    within = [one for one in code.co_consts if isinstance(one, CodeType)]
    return used + [one for inner in within for one in _used(inner, names)]


def _line(error: BaseException) -> str:
    """Where in the student's cell an error arose: the frame that `ask` called; empty when there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    called = [after for frame, after in zip(frames, frames[1:], strict=False) if frame.name == "ask"]
    return f" (line {called[0].lineno} of your cell)" if called else ""
