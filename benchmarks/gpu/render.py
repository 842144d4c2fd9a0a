"""Renders the cases of a GPU's results as Markdown tables. Times are medians; "x" is another's time
over ours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.render import table

Cases = list[dict[str, Any]]
OURS = "ours"


def grouped(
    cases: Cases, stage: str, names: tuple[str, ...]
) -> dict[tuple[Any, ...], dict[str, dict[str, Any]]]:
    """Returns the timed contestants, those that failed or were wrong too, by the values of
    ``names``.

    Ours with chosen kernels is a contestant of its own, "ours, gluon, narrow".
    """
    found: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = {}
    for case in cases:
        if case["stage"] == stage and all(name in case for name in names):
            contestant = ", ".join(
                [case["contestant"], *(case[name] for name in ("sweeps", "blocks") if name in case)]
            )
            found.setdefault(tuple(case[name] for name in names), {})[contestant] = case
    return found


def against(group: dict[str, dict[str, Any]]) -> str:
    """Returns each other contestant's time over ours, or why it has none."""
    ours = group[OURS]["seconds"]
    shown = []
    for name, case in group.items():
        if name == OURS or name.startswith(f"{OURS}, again"):
            continue
        state = (
            f"{case['seconds'] / ours:.2f}x"
            if "seconds" in case
            else "wrong"
            if "wrong" in case
            else "failed"
        )
        shown.append(f"{name} {state}")
    return ", ".join(shown)


def gpu_loss(cases: Cases) -> str:
    """Milliseconds of ours, its rate, added memory, and the others' time over ours."""
    names = ("precision", "batch", "width", "mode")
    groups = {
        key: group
        for key, group in grouped(cases, "loss", names).items()
        if "seconds" in group.get(OURS, {})
    }
    rows = []
    for (precision, batch, width, mode), group in sorted(groups.items()):
        ours = group[OURS]
        figures = [
            f"{1e3 * ours['seconds']:.3f}",
            f"{ours['tflops']:.0f}",
            f"{ours['peak_bytes'] / 2**20:.0f}",
        ]
        rows.append([precision, f"{batch:,} x {width}", mode, *figures, against(group)])
    header = "precision | B x d | mode | ours, ms | TFLOP/s | added MiB | others over ours"
    return table(header, "lllrrrl", rows)


def gpu_headline(cases: Cases) -> str:
    """Milliseconds of each choice of kernels beside the model's, and how far its results are from
    float64.
    """
    rows = []
    for case in (case for case in cases if case["stage"] == "headline"):
        modelled = " to ".join(f"{each:g}" for each in case.get("modelled ms", []))
        why = case.get("wrong") or case.get("skipped") or "failed"
        measured = f"{1e3 * case['seconds']:.2f}" if "seconds" in case else why
        errors = ", ".join(f"{name} {value:.1e}" for name, value in case.get("error", {}).items())
        rows.append([case["kernels"], modelled, measured, errors])
    return table("kernels | modelled, ms | measured, ms | errors", "lrrl", rows)


def gpu_embedding(cases: Cases) -> str:
    """Milliseconds of ours and the others' time over ours, of look-ups, steps and bags."""
    rows = []
    for names in (
        ("case", "ids", "batch", "fields", "width"),
        ("case", "ids", "batch", "ids a bag", "width"),
    ):
        for key, group in grouped(cases, "embedding", names).items():
            if "seconds" in group.get(OURS, {}):
                about = ", ".join(f"{name} {value}" for name, value in zip(names[2:], key[2:]))
                rows.append(
                    [key[0], key[1], about, f"{1e3 * group[OURS]['seconds']:.3f}", against(group)]
                )
    return table(" | ids | workload | ours, ms | others over ours", "lllrl", rows)


def gpu_training(cases: Cases) -> str:
    """Samples a second of whole epochs."""
    rows = [
        [
            *(str(case.get(name, "")) for name in ("model", "precision", "batch", "graph")),
            f"{case['samples/s']:,.0f}",
        ]
        for case in cases
        if case["stage"] == "training" and "samples/s" in case
    ]
    return table("model | precision | batch | graph | samples/s", "llrlr", rows)


TABLES: dict[str, Callable[[Cases], str]] = {
    "gpu_headline": gpu_headline,
    "gpu_loss": gpu_loss,
    "gpu_embedding": gpu_embedding,
    "gpu_training": gpu_training,
}
