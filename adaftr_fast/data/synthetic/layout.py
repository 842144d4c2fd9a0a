"""Fields and rates of synthetic logs, in the form of Ali-CCP and of the paper's Ecomm-Ads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Owner = Literal["user", "item", "row"]


@dataclass(frozen=True)
class LogField:
    """One field of a log.

    Attributes:
        owner: entity the field is a property of. A field with 0 values is the id of this entity.
        values: number of distinct values; 0 for the id of the user or item.
        tokens: mean number of tokens of a multi-valued field before ``list_scale``; 1 for a single-valued field.
        missing: share of owners without a value.
    """

    name: str
    owner: Owner
    values: int
    tokens: int = 1
    missing: float = 0.0


@dataclass(frozen=True)
class Layout:
    """Fields and funnel of a log.

    Attributes:
        rates: share of impressions that reach each stage of the funnel, in order.
        spread: standard deviation over rows of each stage's logit, given the stage before.
        segments: user field and item field that together determine the relatedness of the tasks.
        group: field that identifies the user.
    """

    fields: tuple[LogField, ...]
    rates: dict[str, float]
    spread: float
    segments: tuple[str, str]
    group: str


def _aliccp() -> Layout:
    """Ali-CCP: field names, token counts, missing shares and rates of its training split (Ma et al. 2018)."""
    profile = {"121": 98, "122": 14, "124": 3, "125": 8, "126": 4, "127": 4, "128": 3, "129": 5}
    history = {"109_14": (12_000, 40), "110_14": (400_000, 250), "127_14": (100_000, 154), "150_14": (60_000, 136)}
    user = [LogField("101", "user", 0)]
    user += [LogField(name, "user", values, missing=0.36 * (name == "129")) for name, values in profile.items()]
    user += [LogField(name, "user", values, tokens) for name, (values, tokens) in history.items()]
    item = [LogField("205", "item", 0), LogField("206", "item", 5_000), LogField("207", "item", 300_000)]
    item += [LogField("210", "item", 80_000, tokens=6), LogField("216", "item", 100_000)]
    missing = {"508": 0.30, "509": 0.78, "702": 0.0, "853": 0.0}
    combined = [LogField(name, "row", 50_000, missing=share) for name, share in missing.items()]
    fields = (*user, *item, *combined, LogField("301", "row", 3))
    return Layout(fields, {"click": 0.03887, "conversion": 0.000214}, 1.0, ("121", "206"), "101")


def _ecomm() -> Layout:
    """Ecomm-Ads: "over one hundred categorical features" and three behaviours, at the rates of the paper's Table 2."""
    sizes = (3, 10, 30, 100, 300, 1_000, 10_000, 100_000)
    fields = [LogField("user", "user", 0), LogField("item", "item", 0)]
    counts: dict[Owner, int] = {"user": 48, "item": 34, "row": 16}
    for owner, count in counts.items():
        fields += [LogField(f"{owner}_{n:02d}", owner, sizes[n % len(sizes)]) for n in range(count)]
    fields += [LogField(f"user_list_{n}", "user", 50_000, tokens=50) for n in range(6)]
    fields += [LogField(f"item_list_{n}", "item", 5_000, tokens=6) for n in range(2)]
    rates = {"click": 0.0286, "view": 0.0124, "conversion": 0.00157}
    return Layout(tuple(fields), rates, 1.8, ("user_02", "item_02"), "user")


LAYOUTS = {"aliccp": _aliccp, "ecomm": _ecomm}
