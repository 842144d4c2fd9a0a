"""Infers how a text file holds values: words for a missing value, marks of numbers, forms of times.

What two readings would give different values for is left to the user: a wrong guess is silent, a
missing one is not.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from itertools import product
from shlex import quote

import pyarrow as pa
import pyarrow.compute as pc

from adaftr_fast.data.encode.written import plain_numbers, times
from adaftr_fast.data.raw.text import MISSING
from adaftr_fast.data.schema.types import TextFormat
from adaftr_fast.errors import DataError

DUMPED = "\\N"  # for a missing value, as databases write it, and nothing else
PLAIN = ("", ".")
MARKS = (*product(("", ",", "'", " ", "\u00a0"), "."), *product(("", ".", " ", "\u00a0"), ","))
"""Marks of thousands and of decimals that are tried."""
DAYS = (
    "%d/%m/%Y",
    "%m/%d/%Y",
    "%d-%m-%Y",
    "%m-%d-%Y",
    "%d.%m.%Y",
    "%Y-%m-%d",
    "%Y/%m/%d",
    "%d %b %Y",
    "%b %d, %Y",
    "%d/%m/%y",
    "%m/%d/%y",
    "%d.%m.%y",
)
CLOCKS = ("", " %H:%M", " %H:%M:%S", "T%H:%M", "T%H:%M:%S", " %I:%M %p", " %I:%M:%S %p")
DATES = tuple(map("".join, product(DAYS, CLOCKS)))


def infer_format(columns: Mapping[str, pa.Array], delimiter: str, given: TextFormat) -> TextFormat:
    """Returns the format of text whose first values are known. What ``given`` sets stays as it is.

    Args:
        columns: the first values of each column, text.
        delimiter: that of the columns; "" if nothing separates them.
        given: the default where nothing is set.
    """
    distinct = {
        name: set(pc.unique(values.drop_null()).to_pylist()) for name, values in columns.items()
    }
    words = {
        word for texts in distinct.values() for word in texts if word.strip().lower() in MISSING
    }
    # the marks with which all other values of a column are numbers
    fits = {
        name: [each for each in _possible(delimiter) if all(map(_number(*each).fullmatch, rest))]
        for name, texts in distinct.items()
        if (rest := texts - words)
    }
    form = given
    if (given.thousands, given.decimal) == PLAIN:
        numbers = {name: distinct[name] - words for name, each in fits.items() if each}
        thousands, decimal = _marks(numbers, fits)
        form = replace(form, thousands=thousands, decimal=decimal)
    if not given.null:
        found = words & {DUMPED}
        for name, each in fits.items():
            if (form.thousands, form.decimal) in each:
                found |= distinct[name] & words
        form = replace(form, null=tuple(sorted(found)))
        _warn_of_words({name: texts & (words - found) for name, texts in distinct.items()})
    return form


def _warn_of_words(columns: Mapping[str, set[str]]) -> None:
    """Warns of words that may mean a missing value and are read as values, by column."""
    if words := sorted(set().union(*columns.values())):
        shown = "; ".join(
            f"{name}: {', '.join(map(repr, sorted(texts)))}"
            for name, texts in columns.items()
            if texts
        )
        option = f"--null {' '.join(map(quote, words))} (in Python null={words})"
        warnings.warn(
            f"read as values, not as missing: {shown}; {option} reads them as missing", stacklevel=4
        )


def _possible(delimiter: str) -> list[tuple[str, str]]:
    """Returns the marks that the values of columns may have.

    A decimal comma needs columns that no comma separates. Where nothing separates them, as in
    parquet, it also needs a mark of thousands: values such as "12,3" may be lists.
    """
    return [
        each for each in MARKS if each[1] == "." or (delimiter != "," and (delimiter or each[0]))
    ]


@cache
def _number(thousands: str, decimal: str) -> re.Pattern[str]:
    fraction = rf"(?:{re.escape(decimal)}[0-9]*)?"
    grouped = rf"|[0-9]{{1,3}}(?:{re.escape(thousands)}[0-9]{{3}})+{fraction}" if thousands else ""
    return re.compile(rf"[+-]?(?:[0-9]+{fraction}(?:[eE][+-]?[0-9]+)?{grouped})")


def _has_numbers(texts: Iterable[str], thousands: str, decimal: str) -> bool:
    """Returns whether texts with marks of thousands may not be lists of numbers of three digits."""
    mark = re.escape(thousands)
    grouped = re.compile(
        rf"[+-]?(?:[0-9]{{1,2}}(?:{mark}[0-9]{{3}})+|[0-9]{{1,3}}(?:{mark}[0-9]{{3}})+{re.escape(decimal)}.*)"
    )
    return any(map(grouped.fullmatch, texts))


def _marks(
    texts: Mapping[str, set[str]], fits: Mapping[str, list[tuple[str, str]]]
) -> tuple[str, str]:
    """Returns the marks of all columns of numbers; those of plain numbers also if the marks cannot
    be told.

    Args:
        texts: the texts of the columns that are numbers with some marks.
        fits: those marks.
    """
    marked = [name for name in texts if PLAIN not in fits[name]]
    if not marked:
        return PLAIN
    common = [each for each in MARKS if all(each in fits[name] for name in texts)]
    has_groups = bool(common and common[0][0])
    if has_groups and not any(_has_numbers(texts[name], *common[0]) for name in marked):
        common = []
    if not common or any(_values(texts, each) != _values(texts, common[0]) for each in common[1:]):
        shown = ", ".join(f"{name} ({min(texts[name])!r})" for name in marked)
        how = "--thousands and --decimal (in Python thousands=, decimal=) say what the marks mean"
        warnings.warn(
            f"read as text, since the marks of their numbers have several meanings: {shown}; {how}",
            stacklevel=4,
        )
        return PLAIN
    return common[0]


def _values(texts: Mapping[str, set[str]], marks: tuple[str, str]) -> list[list[float]]:
    """Returns the numbers of all columns, as they are with some marks."""
    form = TextFormat(thousands=marks[0], decimal=marks[1])
    arrays = [pa.array(sorted(each), pa.string()) for each in texts.values()]
    return [plain_numbers(each, form).cast(pa.float64()).to_pylist() for each in arrays]


def infer_dates(name: str, values: pa.Array) -> tuple[str, ...]:
    """Returns the forms of a column of times, text; () if some value is no time.

    Raises:
        DataError: day and month cannot be told apart.
    """
    rest = pc.unique(values.drop_null())
    found: list[str] = []
    while len(rest):
        fits = {}
        for form in DATES:
            read = times(rest, TextFormat(dates=(form,)), pa.timestamp("us"))
            # a form with a year of four digits reads also one of two
            fits[form] = pc.and_(read.is_valid(), pc.greater(pc.year(read), 999)).fill_null(False)
        best = max(DATES, key=lambda form: fits[form].true_count)
        if not fits[best].true_count:
            return ()
        others = [form for form in DATES if form != best and fits[form].equals(fits[best])]
        # the other order of day and month
        others += [form for form in found if form.replace("%m", "%d") == best.replace("%m", "%d")]
        if others:
            example = rest.filter(fits[best])[0].as_py()
            forms = " or ".join(map(repr, sorted([best, *others])))
            how = "--dates (in Python dates=) says which"
            raise DataError(f"{name}: the form of times such as {example!r} may be {forms}; {how}")
        found.append(best)
        rest = rest.filter(pc.invert(fits[best]))
    return tuple(found)
