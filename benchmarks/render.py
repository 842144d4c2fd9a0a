"""Renders the cases of a results file as a Markdown table; ``TABLES`` names the functions that do.

A benchmark prints its table with the same function after a run. Times are medians; "x" marks a
ratio of times.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

Cases = list[dict[str, Any]]

OURS = "adaptive_infonce"
PRODUCTS = "bare products"


def table(header: str, align: str, rows: Iterable[Iterable[object]]) -> str:
    """Joins ``header``, its columns divided by "|", and ``rows``; ``align`` has an "l" or "r" for
    each column.
    """
    columns = [column.strip() for column in header.split("|")]
    if len(columns) != len(align):
        raise ValueError(
            f"table: expected {len(columns)} letters in align for {columns}, got {align!r}"
        )
    rule = "|".join("---" if side == "l" else "---:" for side in align)
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in [columns, *rows]]
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def significant(value: float, digits: int = 3) -> str:
    """Formats ``value`` > 0 with ``digits`` significant digits and no exponent: 0.242, 50.1,
    589,607 as 590,000.
    """
    places = digits - 1 - math.floor(math.log10(value))
    return f"{round(value, places):,.{max(places, 0)}f}"


# The loss
# -------------------------------------------------------------------------------------------------------------


def loss(cases: Cases) -> str:
    """Milliseconds of ours in float32, others' time over ours, and how much faster ours gets at
    lower precision.
    """

    def row(case: dict[str, Any]) -> list[str]:
        ms = case["ms"]
        ours = ms[OURS]
        best = min(t for name, t in ms.items() if not name.startswith((OURS, PRODUCTS)))
        ratios = [ms["eager, literal"] / ours, best / ours, ms[PRODUCTS] / ours]
        ratios += [
            ours / ms[f"{OURS}, {precision}"] for precision in ("bfloat16", "high", "medium")
        ]
        return [
            case["kind"],
            f"{case['rows']:,} x {case['d']}",
            f"{ours:.2f}",
            *(f"{each:.1f}x" for each in ratios),
        ]

    header = (
        "inputs | B x d | ours, ms | literal eager | best of PyTorch | bare products | bfloat16 | "
        "high | medium"
    )
    return table(header, "llrrrrrrr", map(row, cases))


def loss_error(cases: Cases) -> str:
    """Largest error of a gradient against float64, in units of the gradient's largest value."""
    kinds = ("eager", "highest", "high", "medium")
    rows = (
        [
            case["kind"],
            f"{case['rows']:,} x {case['d']}",
            *(f"{case['error'][kind]:.0e}" for kind in kinds),
        ]
        for case in cases
    )
    return table(
        'inputs | B x d | PyTorch eager | ours, "highest" | "high" | "medium"', "llrrrr", rows
    )


def blocks(cases: Cases) -> str:
    """Milliseconds of ours within blocks, and the time of the others over ours."""

    def row(case: dict[str, Any]) -> list[str]:
        ours, *others = (case["ms"][name] for name in ("block", "bmm", "bmm, compiled", "all rows"))
        sizes = [f"{case['rows']:,} x {case['d']}", str(case["block"])]
        return [*sizes, significant(ours), *(f"{other / ours:.1f}x" for other in others)]

    return table(
        "B x d | block | ours, ms | bmm | bmm, compiled | all rows", "lrrrrr", map(row, cases)
    )


def host(cases: Cases) -> str:
    """Microseconds of the host before the driver launches the kernels, forward and with backward
    and update.
    """
    times = [(kind, of) for kind in ("forward", "step") for of in ("least", "median")]
    rows = (
        [
            case["part"],
            case["name"],
            *(f"{case['us'][x][y]:.0f}" for x, y in times),
            case["launches"] or "",
        ]
        for case in cases
    )
    return table(
        "part | call | forward, µs | median | step, µs | median | kernels", "llrrrrr", rows
    )


def loss_growth(cases: Cases) -> str:
    """Milliseconds and added peak memory of one step against B, for each form of the loss."""
    found = {
        (
            case["name"],
            case["rows"],
        ): f"{significant(case['ms'])} | {significant(case['added MiB'])}"
        for case in cases
    }
    names = list(dict.fromkeys(name for name, _ in found))
    sizes = sorted({rows for _, rows in found})
    header = "B | " + " | ".join(f"{name}, ms | MiB" for name in names)
    return table(
        header,
        "r" * (1 + 2 * len(names)),
        ([f"{b:,}", *(found.get((n, b), " | ") for n in names)] for b in sizes),
    )


KINDS = {
    "half": "bfloat16",
    "bf16x3": "bfloat16 x 3",
    "tf32": "TF32",
    "ieee": "IEEE float32",
    "float64": "float64",
}


def compiled(cases: Cases) -> str:
    """What the compiler makes of the training kernels of InfoNCE at the greatest width of each
    tiling.
    """
    sweeps = {
        "row_sweep": "row",
        "anchor_sweep": "anchors",
        "bounded_sweep": "bounded",
        "column_sweep": "column",
    }
    return _compiled(cases, sweeps)


def compiled_sigmoid(cases: Cases) -> str:
    """What the compiler makes of the training kernels of the sigmoid loss at the greatest width of
    each tiling.
    """
    return _compiled(cases, {"sigmoid_rows": "rows", "sigmoid_columns": "columns"})


def compiled_symmetric(cases: Cases) -> str:
    """What the compiler makes of the training kernels of the symmetric loss at the greatest width
    of each tiling.
    """
    return _compiled(cases, {"symmetric_sums": "sums", "symmetric_gradient": "gradient"})


def compiled_gluon(cases: Cases) -> str:
    """What the compiler makes of the sweeps in Gluon, in bfloat16; "a / b" where versions of Triton
    differ.
    """
    sweeps = {"gluon_row_sweep": "row", "gluon_column_sweep": "column"}
    found: dict[tuple[str, int, str], Cases] = {}
    for case in cases:
        if case["kernel"] in sweeps and case["dtype"] == "bfloat16":
            key = sweeps[case["kernel"]], case["width"], case["variant"]
            found.setdefault(key, []).append(case)

    def row(key: tuple[str, int, str]) -> list[str]:
        names = "instructions", "barriers", "uncovered", "exposed", "busiest", "cycles"
        figures = (
            [f"{case[name]:,}" if name in case else "" for name in names] for case in found[key]
        )
        tile = "{} x {}".format(*found[key][0]["config"])
        merged = (" / ".join(dict.fromkeys(values)) for values in zip(*figures))
        return [key[0], str(key[1]), key[2], tile, *merged]

    order = sorted(found, key=lambda key: (key[0] == "column", *key))
    header = (
        "sweep | d | variant | tile | instructions | barriers | exponentials uncovered | "
        "instructions exposed"
    )
    return table(header + " | busiest unit, cycles | cycles", "lrlrrrrrrr", map(row, order))


def _compiled(cases: Cases, kernels: dict[str, str]) -> str:
    """The kernels of ``kernels``, under the names it gives them.

    The cases are of one or more versions of the compiler, one after the other; "a / b" where their
    figures differ.
    """
    found: dict[tuple[Any, ...], Cases] = {}
    for case in cases:
        if case["kernel"] in kernels and case["variant"] == "train" and case["dtype"] != "float16":
            block_m, block_n, _, block_k, *rest = case["config"]
            tiling = (block_m, block_n, block_k > 0, *rest)
            found.setdefault((case["arch"], case["kind"], case["kernel"], tiling), []).append(case)

    def row(versions: Cases) -> list[str]:
        figures = (
            [
                str(case["registers"]),
                str(case["programs"]),
                _products(case["matrix"]),
                _copies(case),
            ]
            + [f"{case[key]:,}" for key in ("barriers", "instructions", "issue")]
            for case in versions
        )
        first = versions[0]
        what = f"{KINDS[first['kind']]}, {first['width']:,}"
        tile = "{} x {}".format(*first["config"])
        merged = (" / ".join(dict.fromkeys(values)) for values in zip(*figures))
        return [f"sm_{first['arch']}", what, kernels[first["kernel"]], tile, *merged]

    def order(versions: Cases) -> tuple[int, ...]:
        first = versions[0]
        return (
            -first["arch"],
            list(KINDS).index(first["kind"]),
            first["width"],
            list(kernels).index(first["kernel"]),
        )

    widest = (max(case["width"] for case in group) for group in found.values())
    shown = [
        [c for c in group if c["width"] == width] for group, width in zip(found.values(), widest)
    ]
    header = "GPU | products, d | sweep | tile | registers | CTAs/SM | matrix instructions | copies"
    header += " | barriers | instructions | issue cycles"
    return table(header, "lllrrrlrrrr", map(row, sorted(shown, key=order)))


def _products(matrix: dict[str, int]) -> str:
    """HGMMA 64x64x16, 64x128x16: mnemonic and shapes."""
    names = [name.split(".") for name in matrix]
    shapes = ", ".join(name[1] for name in names if len(name) > 1)
    return f"{names[0][0]} {shapes}".strip()


def _copies(case: dict[str, Any]) -> str:
    narrow = case["narrow copies"]
    return f"{case['copies']} + {narrow}" if narrow else str(case["copies"])


# The embedding
# --------------------------------------------------------------------------------------------------------


def embedding(cases: Cases) -> str:
    """Look-ups, steps and bags, and for look-ups and steps the share that the least memory traffic
    would take.
    """

    def row(case: dict[str, Any]) -> list[str]:
        if "floor_ms" not in case:
            return [*_embedding_row(case), "", "", ""]
        share = case["floor_ms"] / case["ms"]["ours"]
        return [
            *_embedding_row(case),
            f"{case['floor_mb']:.1f}",
            f"{case['copy_gb_per_s']:.0f}",
            f"{share:.0%}",
        ]

    header = (
        " | workload | ours, ms | each peer's time over ours | floor, MB | copied at, GB/s | share "
        "of the floor"
    )
    return table(header, "llrlrrr", (row(case) for case in cases if "ours" in case["ms"]))


def embedding_summary(cases: Cases) -> str:
    """Look-ups and steps of the first workload, and bags."""
    shown = [
        case for case in cases if case["workload"] == cases[0]["workload"] or case["case"] == "bags"
    ]
    return table(
        " | workload | ours, ms | each peer's time over ours", "llrl", map(_embedding_row, shown)
    )


def embedding_growth(cases: Cases) -> str:
    """Milliseconds of a step of exact Adam for equal batches of small and of large tables."""
    ms = next(case["ms"] for case in cases if case["case"] == "growth")
    names, sizes = (
        list(dict.fromkeys(part)) for part in zip(*(key.rsplit(", V=", 1) for key in ms))
    )
    rows = []
    for name in names:
        small, large = (ms[f"{name}, V={size}"] for size in sizes)
        rows.append([name, f"{small:.2f}", f"{large:.2f}", f"{large / small:.1f}x"])
    return table(
        " | " + " | ".join(f"V={int(size):,}" for size in sizes) + " | growth", "lrrr", rows
    )


def _embedding_row(case: dict[str, Any]) -> list[str]:
    ours = case["ms"]["ours"]
    peers = ", ".join(
        f"{name} {ms / ours:.1f}x" for name, ms in case["ms"].items() if name != "ours"
    )
    return [case["case"], case["workload"], f"{ours:.2f}", peers]


# Data, metrics, serving
# -----------------------------------------------------------------------------------------------


def metrics(cases: Cases) -> str:
    """Seconds of each metric at its first call, and memory."""

    def row(case: dict[str, Any]) -> list[str]:
        rows, users = (part.split()[0] for part in case["case"].split(", "))
        seconds = [
            f"{case['seconds'][name]:.2f}" if name in case["seconds"] else "" for name in columns
        ]
        return [rows, users, *seconds, f"{case['MiB'] / 1024:.1f} GiB"]

    columns = ("AUC", "GAUC", "log-loss", "AUC of scikit-learn")
    return table(
        f"rows | users | {' | '.join(columns)} | memory beyond the rows", "rrrrrrr", map(row, cases)
    )


def loader(cases: Cases) -> str:
    """Rows a second from a prepared file to batches."""
    rows = (
        [
            f"{case['ids a field']:,}",
            case["bytes a row"],
            significant(case["million rows/s"]),
            significant(case["DataLoader in memory, million rows/s"]),
        ]
        for case in cases
    )
    return table(
        "ids a field | bytes a row on disk | million rows/s | DataLoader in memory", "rrrr", rows
    )


def memory(cases: Cases) -> str:
    """MB of the peak of anonymous memory of each command, by length of the log; empty where it was
    not measured.
    """
    commands = ("prepare, parquet", "prepare, text", "predict")
    rows = (
        [
            f"{case['rows']:,}",
            f"{case['memory']:g}",
            *(str(case["peak MB"].get(name, "")) for name in commands),
        ]
        for case in cases
    )
    return table("rows | --memory, GB | prepare, parquet | prepare, text | predict", "rrrrr", rows)


def headline(cases: Cases) -> str:
    """Wall time, rate, peak of memory and files of each stage."""
    rows = (
        [
            f"{case['rows']:,}",
            name,
            f"{stage['seconds']:,.0f}",
            significant(case["rows of stages"][name] / stage["seconds"])
            if name in case["rows of stages"]
            else "",
            f"{stage['peak_mb']:,}",
            f"{stage['disk_mb']:,.0f}",
        ]
        for case in cases
        for name, stage in case["stages"].items()
    )
    return table("rows | stage | seconds | rows/s | peak of memory, MB | files, MB", "rlrrrr", rows)


INPUTS = {
    "parquet": "parquet, with the lists of five multi-valued fields, of which the last token "
    "is read",
    "aliccp": "Ali-CCP's raw layout: skeleton and common features",
    "ids alone": "ids in memory, the program alone",
}


def predict(cases: Cases) -> str:
    """Rows a second of ``adaftr-fast predict`` by kind of input."""
    rows = (
        [INPUTS[case["predict"]], significant(case["rows/s"])]
        for case in cases
        if "predict" in case
    )
    return table("input | rows/s, all cores", "lr", rows)


def requests(cases: Cases) -> str:
    """Milliseconds of one request on one thread, by program and number of rows."""
    found = {(case["request"], case["rows"]): case for case in cases if "request" in case}
    names, sizes = (list(dict.fromkeys(part)) for part in zip(*found))
    rows = (
        [name, *(f"{found[name, size][f'{q} ms']:.2f}" for size in sizes for q in ("p50", "p99"))]
        for name in names
    )
    heads = (f"{size} row{'s' if size > 1 else ''}, p50 ms | p99 ms" for size in sizes)
    return table("one thread | " + " | ".join(heads), "l" + "rr" * len(sizes), rows)


# Training
# -------------------------------------------------------------------------------------------------------------


TRAINERS = {
    "AdaFTR": "AdaFTR",
    "AdaFTR, bfloat16": "bfloat16",
    "AdaFTR, recommended": "recommended",
    "AdaFTR, recommended, whole batch": "over the whole batch",
    "AdaFTR without L_cl": "without L_cl",
    "MMoE": "MMoE",
    "torch-rechub MMoE": "torch-rechub's MMoE",
    "torch-rechub MMoE, bare step": "its bare step",
    "DeepCTR-Torch MMoE": "DeepCTR-Torch's MMoE",
}


def training(cases: Cases) -> str:
    """Thousands of samples a second, and the share of the contrastive loss in AdaFTR's step."""
    shown = [name for name in TRAINERS if any(name in case["samples/s"] for case in cases)]
    rows = (
        [*_samples_per_second(case, shown), f"{case['share of L_cl in the step']:.0%}"]
        for case in cases
    )
    header = " | ".join(["ids a field", *(TRAINERS[name] for name in shown), "share of L_cl"])
    return table(header, "r" * (len(shown) + 2), rows)


def against(cases: Cases) -> str:
    """Milliseconds of a training step at another commit and now, and the median ratio
    of the turns.
    """
    rows = [
        [
            case["fields"],
            case["before"],
            name,
            *(f"{step[each]:.1f}" for each in ("before, ms", "now, ms")),
            step["ratio"],
        ]
        for case in cases
        for name, step in case["steps"].items()
    ]
    return table(
        "fields | before | a step of | before, ms | now, ms | now / before", "rllrrr", rows
    )


def floor(cases: Cases) -> str:
    """Milliseconds that the parts of a step take alone, their sum, the step, and the share that the
    sum is of it.
    """
    parts = list(cases[0]["parts, ms"])
    rows = (
        [
            case["fields"],
            case["model"],
            *(f"{case['parts, ms'][part]:.2f}" for part in parts),
            f"{case['floor, ms']:.2f}",
            f"{case['step, ms']:.2f}",
            f"{case['floor, ms'] / case['step, ms']:.2f}",
        ]
        for case in cases
    )
    header = " | ".join(["fields", "model", *parts, "floor, ms", "step, ms", "floor / step"])
    return table(header, "rl" + "r" * (len(parts) + 3), rows)


def training_summary(cases: Cases) -> str:
    """Thousands of samples a second of ours, and of MMoE in other libraries, on one or
    more CPUs.
    """
    shown = ("AdaFTR", "AdaFTR, bfloat16", "MMoE", "torch-rechub MMoE", "DeepCTR-Torch MMoE")
    header = (
        "CPU | ids a field | AdaFTR | AdaFTR, bfloat16 | MMoE | torch-rechub's MMoE | "
        "DeepCTR-Torch's MMoE"
    )
    return table(
        header, "lrrrrrr", ([case["cpu"], *_samples_per_second(case, shown)] for case in cases)
    )


def training_ratios(cases: Cases) -> str:
    """Rate of our MMoE over the rate of the other libraries' MMoE."""
    others = ("torch-rechub MMoE", "torch-rechub MMoE, bare step", "DeepCTR-Torch MMoE")
    rows = (
        [
            f"{case['ids a field']:,}",
            *(
                f"{significant(case['samples/s']['MMoE'] / case['samples/s'][o], 2)}x"
                for o in others
            ),
        ]
        for case in cases
    )
    return table("ids a field | torch-rechub | its bare step | DeepCTR-Torch", "rrrr", rows)


def _samples_per_second(case: dict[str, Any], names: Iterable[str]) -> list[str]:
    rates = case["samples/s"]
    return [
        f"{case['ids a field']:,}",
        *(significant(rates[name] / 1e3) if name in rates else "" for name in names),
    ]


def recipes(cases: Cases) -> str:
    """Time and added memory of our losses, and those of the libraries over ours; empty where they
    do not fit.
    """

    def row(case: dict[str, Any]) -> list[str]:
        cells = [case["recipe"], case["library"], f"{case['rows']:,}"]
        for key in ("ms", "added MiB"):
            ours, library = max(case[key]["ours"], 0.01), case[key].get("library")
            cells += [significant(ours), "" if library is None else f"{library / ours:.1f}x"]
        return cells

    header = "loss | library | B | ours, ms | library | ours, added MiB | library"
    return table(header, "llrrrrr", map(row, cases))


def arm_tiles(cases: Cases) -> str:
    """Instructions of a turn of each tile's inner loop, and its cycles beside the bound of its
    multiply-adds.
    """

    def row(case: dict[str, Any]) -> list[str]:
        names = [f"`{case['target']}`", case["type"], case["A"], str(case["rows"])]
        counts = [str(case[name]) for name in ("instructions", "on the stack", "multiply-adds")]
        bound, cycles = case["bound"], case["cycles"]
        return [
            *names,
            *counts,
            *(f"{cycles[cpu]:.2f} ({bound[cpu] / cycles[cpu]:.0%})" for cpu in cycles),
        ]

    header = (
        "target | type | A | rows | instructions | on the stack | multiply-adds | Neoverse V1 | "
        "Neoverse V2"
    )
    return table(header, "lllrrrrrr", map(row, cases))


TABLES: dict[str, Callable[[Cases], str]] = {
    made.__name__: made
    for made in (
        loss,
        loss_error,
        loss_growth,
        blocks,
        host,
        recipes,
        compiled,
        compiled_sigmoid,
        compiled_symmetric,
        compiled_gluon,
        arm_tiles,
        embedding,
        embedding_summary,
        embedding_growth,
        metrics,
        loader,
        memory,
        headline,
        predict,
        requests,
        against,
        floor,
        training,
        training_summary,
        training_ratios,
    )
}
