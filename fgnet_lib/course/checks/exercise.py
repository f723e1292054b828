"""What every exercise has: a check that says what is wrong with an answer, and a memory of how it went."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
from IPython import get_ipython
from torch import Tensor

MARKS = {"passed": "✔", "open": "○", "wrong": "✘"}


class Hint(Exception):
    """Raised by a check: what is wrong with an answer, without giving the right one away."""


class Slip(Hint):
    """A hint about the form of an answer, such as its shape: the student sees it at once, without a smaller hint."""


class _Open(Exception):
    """The three dots of the stub are still there."""


@dataclass(frozen=True)
class Outcome:
    """How an answer did.

    Attributes:
        state: "passed", "open" or "wrong".
        hint: what is wrong; empty for the other states.
        slip: whether the hint is about the form of the answer or an error of its code, and not about its thought.
    """

    state: str
    hint: str = ""
    slip: bool = False


class Exercise:
    """A check with its place in the course. Calling it is what a notebook does: it prints, and never raises.

    Attributes:
        name: the check's name, as in `checks.affinities`.
        lesson: two digits.
        number: from 1, in the order of the lesson.
        title: a few words.
        first_hint: where a student who is wrong might look, before the check says what is wrong.
        points: what a right answer is worth in `make grade`.
        outcome: of the latest answer in this process.
    """

    def __init__(
        self, check: Callable[..., None], lesson: str, number: int, title: str, first_hint: str, points: int
    ) -> None:
        self.check, self.name, self.__doc__ = check, check.__name__, check.__doc__
        self.lesson, self.number, self.title = lesson, number, title
        self.first_hint, self.points = first_hint, points
        self.outcome = Outcome("open")

    def __call__(self, *answers: Any) -> None:
        """Judge the answers, remember the outcome and print it; in a notebook, also show the picture of a right answer.

        The first wrong thought gets the exercise's first hint. The next one gets the hint that fits the mistake.
        """
        before, self.outcome = self.outcome, self.judge(*answers)
        print(self)
        if self.outcome.state == "open":
            print("  Replace the three dots in the cell above by your answer, and run both cells again.")
        elif self.outcome.state == "passed":
            self._show(*answers)
        elif self.outcome.slip or (before.state == "wrong" and not before.slip):
            print(f"  {self.outcome.hint}")
        else:
            print(f"  {self.first_hint}\n  To read what is wrong with your answer, run this cell again.")

    def __str__(self) -> str:
        return f"{MARKS[self.outcome.state]} {int(self.lesson)}.{self.number} {self.title}: {self.outcome.state}"

    def judge(self, *answers: Any) -> Outcome:
        """Return the outcome of the answers; whatever they raise becomes a hint."""
        if any(answer is ... for answer in answers):
            return Outcome("open")
        for name in filter(None, map(_library_name, answers)):
            return Outcome("wrong", f"This is {name} of the library: write your own", slip=True)
        try:
            self.check(*answers)
        except _Open:
            return Outcome("open")
        except Hint as hint:
            return Outcome("wrong", str(hint), isinstance(hint, Slip))
        except (Exception, SystemExit) as error:  # of the student's code; a check itself must not raise any other
            return Outcome("wrong", f"Your code stopped with {explain(error)}{_line(error, answers)}", slip=True)
        return Outcome("passed")

    def _show(self, *answers: Any) -> None:
        """In a notebook, show what right answers make beside what was expected, if the exercise has a picture."""
        if getattr(get_ipython(), "kernel", None) is None:
            return
        from fgnet_lib.course.checks.pictures import PICTURES, plt  # here, because the grader should not wait for it

        if self.name in PICTURES:
            PICTURES[self.name](*answers)
            plt.show()


_CONTAINERS = {np.ndarray: "array", Tensor: "tensor", dict: "dictionary", list: "list"}  # what a student could change
_COPY = "work on a copy, because others still need it"

EXERCISES: dict[str, Exercise] = {}  # by name, in the order of the lessons


def exercise(lesson: str, title: str, first_hint: str, points: int = 1) -> Callable[[Callable[..., None]], Exercise]:
    """Return a decorator that turns a check into an `Exercise` and registers it in `EXERCISES`.

    A check is a function of the answers that raises `Hint` when an answer is wrong::

        @exercise("01", "the size of a section", "How many voxels are in a row?")
        def section_size(answer):
            require(call(answer, (5, 20, 30)) == 600, "Multiply the rows by the columns")

    Args:
        lesson: two digits.
        title: a few words, printed with the outcome.
        first_hint: printed after the first wrong answer: where to look, or a small example to try by hand.
        points: what a right answer is worth in `make grade`.
    """

    def register(check: Callable[..., None]) -> Exercise:
        new = Exercise(check, lesson, 1 + len(of_lesson(lesson)), title, first_hint, points)
        assert new.name not in EXERCISES, f"two exercises are called {new.name}"
        EXERCISES[new.name] = new
        return new

    return register


def of_lesson(lesson: str) -> list[Exercise]:
    """Return the exercises of a lesson (two digits), in order."""
    return [entry for entry in EXERCISES.values() if entry.lesson == lesson]


def report(lesson: str) -> None:
    """Print which exercises of a lesson ("01") are passed, open or wrong."""
    states = [entry.outcome.state for entry in of_lesson(lesson)]
    counts = ", ".join(f"{states.count(state)} {state}" for state in MARKS)
    print(f"Exercises of lesson {lesson}: {counts}")
    for entry in of_lesson(lesson):
        print(f"  {entry}")


def explain(error: BaseException, length: int = 200) -> str:
    """Return an error's type and the beginning of its text in one line; the type alone when it cannot give a text."""
    try:
        text = str(error)[: 2 * length]
    except (Exception, SystemExit):
        text = ""
    line = " ".join(f"{type(error).__name__}: {text}".split()).removesuffix(":")
    return line if len(line) <= length else f"{line[: length - 4]} ..."


def require(condition: bool, hint: str) -> None:
    """Raise `Hint` unless a condition holds."""
    if not condition:
        raise Hint(hint)


def require_form(condition: bool, hint: str) -> None:
    """Raise `Slip` unless a condition on the form of an answer holds."""
    if not condition:
        raise Slip(hint)


def call(answer: Callable[..., Any], *arguments: Any) -> Any:
    """Call a student's function with copies of arrays, tensors, dictionaries and lists, and return its result.

    Raises:
        Hint: the answer is no function, returns nothing or an object with a comparison of its own, or changes an array,
            tensor, dictionary or list that it was given.
    """
    require_form(callable(answer), f"A function is wanted, not {type(answer).__name__}: give its name, without ()")
    copies = [deepcopy(each) if isinstance(each, tuple(_CONTAINERS)) else each for each in arguments]
    result = answer(*copies)
    if result is ...:
        raise _Open
    require_form(result is not None, "Your function gives nothing back: does it end with `return`?")
    require_form(
        not _compares_itself(result), "Your function should give plain numbers, text or arrays, no class of its own"
    )
    for copy, argument in zip(copies, arguments, strict=True):
        kind = next((name for kind, name in _CONTAINERS.items() if isinstance(argument, kind)), "")
        require(not kind or _are_equal(copy, argument), f"Your function changes the {kind} that it was given: {_COPY}")
    return result


def call_array(answer: Callable[..., Any], *arguments: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Call a student's function and return its result as an array of numbers of a known shape; () is a single number.

    Raises:
        Hint: as `call`, or the result is no array of numbers or has another shape.
    """
    result = call(answer, *arguments)
    if isinstance(result, Tensor):
        result = result.detach()
    wanted = "an array of numbers" if shape else "a single number"
    try:
        array = np.asarray(result)
    except ValueError as error:
        raise Slip("Your function should give an array, but its rows have different lengths") from error
    given = array.dtype if shape else type(result).__name__
    require_form(array.dtype.kind in "biuf", f"Your function should give {wanted}, not {given}")
    expected = shape or wanted
    require_form(array.shape == shape, f"The result has the shape {array.shape}, and {expected} was expected")
    return array


def require_equal(result: np.ndarray, right: np.ndarray, mistakes: dict[str, np.ndarray], otherwise: str) -> None:
    """Raise a `Hint` that fits the mistake when an array differs from the right one.

    Args:
        result: what the student's function returned.
        right: the right array, of the same shape.
        mistakes: hint -> the array that a typical mistake leads to.
        otherwise: the hint for any other difference; "{n}" in it becomes the number of wrong values, "{at}" the index
            of the first wrong value, a tuple if the array has several axes.
    """
    close = 1e-6 * np.abs(right).max(initial=0.01)  # what float32 loses where a sum is small
    wrong = ~np.isclose(np.asarray(result), right, atol=close)  # as an array of NumPy's own class
    if not wrong.any():
        return
    for hint, mistake in mistakes.items():
        require(not np.allclose(result, mistake, atol=close), hint)
    at = tuple(int(i) for i in np.argwhere(wrong)[0])
    raise Hint(otherwise.format(n=np.sum(wrong), at=at[0] if len(at) == 1 else at))


def _compares_itself(result: Any) -> bool:
    """Return whether a result, or a part of it, decides by Python code of its class what it is equal to."""
    parts = result if isinstance(result, list | tuple) else []
    if isinstance(result, dict):
        parts = [*result.keys(), *result.values()]
    own = any(isinstance(vars(kind).get("__eq__"), FunctionType) for kind in type(result).__mro__)
    return own or any(map(_compares_itself, parts))


def _library_name(answer: Any) -> str | None:
    """Name the library's function or class that an answer is, is bound to or inherits from; None if there is none."""
    answer = getattr(answer, "func", answer)  # of functools.partial
    family = [answer, *(answer if isinstance(answer, type) else type(answer)).__mro__]
    return next((part.__name__ for part in family if _is_from_library(part)), None)


def _is_from_library(part: Any) -> bool:
    return hasattr(part, "__name__") and str(getattr(part, "__module__", "")).startswith("fgnet_lib.")


def _are_equal(a: Any, b: Any) -> bool:
    """Return whether two arguments, or all their parts, are equal; nan equals nan."""
    if isinstance(b, np.ndarray | Tensor):
        return type(a) is type(b) and np.array_equal(a, b, equal_nan=np.asarray(b).dtype.kind == "f")
    if isinstance(b, dict):
        return list(a) == list(b) and all(_are_equal(a[key], b[key]) for key in b)
    if isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_are_equal, a, b))
    return bool(a == b)


def _line(error: BaseException, answers: Sequence[Any]) -> str:
    """Say on which line of the student's cell an error arose; empty when no line of it ran.

    What the cell defines is known by the file from which its functions, or the methods of its class, were compiled. So
    lines of libraries that the cell calls, or that call it (as PyTorch calls `forward`), are passed over.
    """
    kinds = [answer if isinstance(answer, type) else type(answer) for answer in answers]
    functions = [*answers, *(part for kind in kinds for part in vars(kind).values())]
    files = {function.__code__.co_filename for function in functions if isinstance(function, FunctionType)}
    lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename in files]
    return f" (line {lines[-1]} of your cell)" if lines else ""
