"""Renders the cases of a GPU's results as Markdown tables. Times are medians; "x" is another's time
over ours.
"""

from __future__ import annotations

from collections.abc import Iterator

from benchmarks.render import Case, Cases, of_cases

OURS = "ours"


def with_others(cases: Cases, stage: str, *names: str) -> Iterator[Case]:
    """Yields ours of each value of ``names`` that was timed, with each other contestant's time over
    ours, or why it has none. Ours with chosen kernels is a contestant of its own, "ours, gluon,
    narrow".
    """
    groups = {}
    for case in cases:
        if case["stage"] == stage and all(name in case for name in names):
            chosen = (case[name] for name in ("sweeps", "blocks") if name in case)
            contestant = ", ".join([case["contestant"], *chosen])
            groups.setdefault(tuple(case[name] for name in names), {})[contestant] = case
    for group in groups.values():
        ours = group.pop(OURS, {})
        if "seconds" in ours:
            others = []
            for name, case in group.items():
                state = "wrong" if "wrong" in case else "failed"
                if "seconds" in case:
                    state = f"{case['seconds'] / ours['seconds']:.2f}x"
                if not name.startswith(f"{OURS}, again"):
                    others.append(f"{name} {state}")
            yield ours | {"ms": 1e3 * ours["seconds"], "others": ", ".join(others)}


def gpu_loss(cases: Cases) -> str:
    """Milliseconds of ours, its rate, added memory, and the others' time over ours."""
    names = ("precision", "batch", "width", "mode")
    found = with_others(cases, "loss", *names)
    return of_cases(
        "precision | B x d | mode | ours, ms | TFLOP/s | added MiB | others over ours",
        "lllrrrl",
        "{precision} | {batch:,} x {width} | {mode} | {ms:.3f} | {tflops:.0f} | {MiB:.0f} | "
        "{others}",
        (
            case | {"MiB": case["peak_bytes"] / 2**20}
            for case in sorted(found, key=lambda case: [case[name] for name in names])
        ),
    )


def gpu_headline(cases: Cases) -> str:
    """Milliseconds of each choice of kernels beside the model's, and how far its results are from
    float64.
    """
    rows = []
    for case in (case for case in cases if case["stage"] == "headline"):
        modelled = " to ".join(f"{each:g}" for each in case.get("modelled ms", []))
        measured = case.get("wrong") or case.get("skipped") or "failed"
        if "seconds" in case:
            measured = f"{1e3 * case['seconds']:.2f}"
        errors = ", ".join(f"{name} {value:.1e}" for name, value in case.get("error", {}).items())
        rows.append(case | {"modelled": modelled, "measured": measured, "errors": errors})
    return of_cases(
        "kernels | modelled, ms | measured, ms | errors",
        "lrrl",
        "{kernels} | {modelled} | {measured} | {errors}",
        rows,
    )


def gpu_embedding(cases: Cases) -> str:
    """Milliseconds of ours and the others' time over ours, of look-ups, steps and bags."""
    rows = [
        case | {"about": ", ".join(f"{name} {case[name]}" for name in names)}
        for names in (("batch", "fields", "width"), ("batch", "ids a bag", "width"))
        for case in with_others(cases, "embedding", "case", "ids", *names)
    ]
    return of_cases(
        " | ids | workload | ours, ms | others over ours",
        "lllrl",
        "{case} | {ids} | {about} | {ms:.3f} | {others}",
        rows,
    )


def gpu_training(cases: Cases) -> str:
    """Samples a second of whole epochs."""
    return of_cases(
        "model | precision | batch | graph | samples/s",
        "llrlr",
        "{model} | {precision} | {batch} | {graph} | {samples/s:,.0f}",
        (case for case in cases if case["stage"] == "training" and "samples/s" in case),
    )


TABLES = {made.__name__: made for made in (gpu_headline, gpu_loss, gpu_embedding, gpu_training)}
