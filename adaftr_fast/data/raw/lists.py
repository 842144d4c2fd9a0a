"""Finds out which text columns hold lists, such as tags.

A wrong guess costs more than a missed one, so titles, addresses, names, paths and numbers must not pass.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

MARKS = "|;,"
SHARE = 0.25  # of the values have several tokens
FEWEST_LISTS = 20  # distinct ones
REUSE = 2  # lists per distinct token: lists combine the same tokens, while every title and place brings its own
MIXED = 0.8  # of the tokens that follow others also begin a list, and conversely: tags do, cities and countries do not
THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(,[0-9]{3})*")
BRACKETS = "[{(\"'"  # a list that another program has printed


def find_separator(values: pa.ChunkedArray) -> str | None:
    """Returns the separator of a column of lists, with the spaces around it; None if it does not hold lists.

    Args:
        values: the first values of a column, text.
    """
    values = values.drop_null()
    values = values.filter(pc.not_equal(values, ""))  # no tokens, as a missing value
    for mark in MARKS:
        share = pc.mean(pc.match_substring(values, mark)).as_py()  # None without values
        if share is not None and share >= SHARE:
            texts = pc.unique(values).to_pylist()
            separator = next(each for each in (f" {mark} ", f"{mark} ", mark) if _same_count(texts, mark, each))
            if _are_lists(texts, separator):
                return separator
    return None


def _same_count(texts: list[str], mark: str, separator: str) -> bool:
    return all(text.count(mark) == text.count(separator) for text in texts)


def _are_lists(texts: list[str], separator: str) -> bool:
    if any(text[:1] in BRACKETS for text in texts) or all(map(THOUSANDS.fullmatch, texts)):
        return False
    lists = [text.split(separator) for text in texts]
    lengths = [len(tokens) for tokens in lists]
    if max(lengths) < 3 or min(lengths) == max(lengths):  # columns in one, such as a city and its state
        return False
    distinct = {token for tokens in lists for token in tokens}
    if any(token != token.strip() or not token for token in distinct):
        return False
    backwards = [tokens[::-1] for tokens in lists]
    return len(lists) >= max(FEWEST_LISTS, REUSE * len(distinct)) and _are_mixed(lists) and _are_mixed(backwards)


def _are_mixed(lists: list[list[str]]) -> bool:
    """Returns whether most tokens that follow others also begin a list."""
    first, later = {tokens[0] for tokens in lists}, [token for tokens in lists for token in tokens[1:]]
    return sum(token in first for token in later) >= MIXED * len(later)
