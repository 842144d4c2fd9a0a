"""Renders the cases of a results file as a Markdown table; ``TABLES`` names the functions that do.

A benchmark prints its table with the same function after a run. Times are medians; "x" marks a
ratio of times.
"""

import math
from collections.abc import Callable, Iterable
from string import Formatter
from typing import Any

Case = dict[str, Any]
Cases = list[Case]

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


class Cell(Formatter):
    """Formats as ``str.format`` does, and three things more: "{a / b:.1f}" is a quotient, "{a?}" is
    nothing where there is no a, and the format "3d" gives a number > 0 three significant digits.
    """

    def get_field(self, name: str, *values: Any) -> Any:
        if name.endswith("?"):
            try:
                return self.get_field(name[:-1], *values)
            except KeyError:
                return None, name
        over, *under = (super(Cell, self).get_field(each, *values)[0] for each in name.split(" / "))
        return over / under[0] if under else over, name

    def format_field(self, value: Any, form: str) -> str:
        if value is None:
            return ""
        return significant(value) if form == "3d" else super().format_field(value, form)


def of_cases(header: str, align: str, row: str, cases: Iterable[Case | Cases]) -> str:
    """Makes a table with a row for each case, or for several, whose cells show "a / b" where these
    differ. ``row`` has the cells, divided by "|", each for ``Cell``.
    """
    cells = [cell.strip() for cell in row.split("|")]
    groups = (case if isinstance(case, list) else [case] for case in cases)
    merged = (
        [
            " / ".join(dict.fromkeys(Cell().vformat(cell, (), case) for case in group))
            for cell in cells
        ]
        for group in groups
    )
    return table(header, align, merged)


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
    found = []
    for case in cases:
        others = (t for name, t in case["ms"].items() if not name.startswith((OURS, PRODUCTS)))
        lower = {key: case["ms"][f"{OURS}, {key}"] for key in ("bfloat16", "high", "medium")}
        found.append(case | lower | {"ours": case["ms"][OURS], "best": min(others)})
    return of_cases(
        "inputs | B x d | ours, ms | literal eager | best of PyTorch | bare products | bfloat16 | "
        "high | medium",
        "llrrrrrrr",
        "{kind} | {rows:,} x {d} | {ours:.2f} | {ms[eager, literal] / ours:.1f}x | "
        "{best / ours:.1f}x | {ms[bare products] / ours:.1f}x | {ours / bfloat16:.1f}x | "
        "{ours / high:.1f}x | {ours / medium:.1f}x",
        found,
    )


def loss_error(cases: Cases) -> str:
    """Largest error of a gradient against float64, in units of the gradient's largest value."""
    return of_cases(
        'inputs | B x d | PyTorch eager | ours, "highest" | "high" | "medium"',
        "llrrrr",
        "{kind} | {rows:,} x {d} | {error[eager]:.0e} | {error[highest]:.0e} | {error[high]:.0e} | "
        "{error[medium]:.0e}",
        cases,
    )


def blocks(cases: Cases) -> str:
    """Milliseconds of ours within blocks, and the time of the others over ours."""
    return of_cases(
        "B x d | block | ours, ms | bmm | bmm, compiled | all rows",
        "lrrrrr",
        "{rows:,} x {d} | {block} | {ms[block]:3d} | {ms[bmm] / ms[block]:.1f}x | "
        "{ms[bmm, compiled] / ms[block]:.1f}x | {ms[all rows] / ms[block]:.1f}x",
        cases,
    )


def host(cases: Cases) -> str:
    """Microseconds of the host before the driver launches the kernels, forward and with backward
    and update.
    """
    return of_cases(
        "part | call | forward, µs | median | step, µs | median | kernels",
        "llrrrrr",
        "{part} | {name} | {us[forward][least]:.0f} | {us[forward][median]:.0f} | "
        "{us[step][least]:.0f} | {us[step][median]:.0f} | {launches}",
        (case | {"launches": case["launches"] or None} for case in cases),
    )


def loss_growth(cases: Cases) -> str:
    """Milliseconds and added peak memory of one step against B, for each form of the loss."""
    rows = {}
    for case in cases:
        row = rows.setdefault(case["rows"], {"rows": case["rows"]})
        row |= {f"{case['name']} {key}": case[key] for key in ("ms", "added MiB")}
    names = list(dict.fromkeys(case["name"] for case in cases))
    return of_cases(
        "B | " + " | ".join(f"{name}, ms | MiB" for name in names),
        "r" * (1 + 2 * len(names)),
        "{rows:,} | " + " | ".join(f"{{{n} ms?:3d}} | {{{n} added MiB?:3d}}" for n in names),
        (rows[number] for number in sorted(rows)),
    )


KINDS = {
    "half": "bfloat16",
    "bf16x3": "bfloat16 x 3",
    "tf32": "TF32",
    "ieee": "IEEE float32",
    "float64": "float64",
}


def compiled_kernels(**kernels: str) -> Callable[[Cases], str]:
    """Returns what makes the table of training kernels, under the names that are given, at the
    greatest width of each tiling.

    The cases are of one or more versions of the compiler, one after the other.
    """

    def order(versions: Cases) -> tuple[int, ...]:
        case = versions[0]
        kind = list(KINDS).index(case["kind"])
        kernel = list(kernels).index(case["kernel"])
        return (-case["arch"], kind, case["width"], kernel)

    def made(cases: Cases) -> str:
        found = {}
        for case in cases:
            is_shown = case["kernel"] in kernels and case["variant"] == "train"
            if is_shown and case["dtype"] != "float16":
                block_m, block_n, _, block_k, *rest = case["config"]
                tiling = (case["arch"], case["kind"], case["kernel"], block_m, block_n, block_k > 0)
                named = {"sweep": kernels[case["kernel"]], "products": KINDS[case["kind"]]}
                named |= {"matrix": _products(case["matrix"]), "copies": _copies(case)}
                found.setdefault((*tiling, *rest), []).append(case | named)
        groups = []
        for group in found.values():
            widest = max(case["width"] for case in group)
            groups.append([case for case in group if case["width"] == widest])
        return of_cases(
            "GPU | products, d | sweep | tile | registers | CTAs/SM | matrix instructions | copies "
            "| barriers | instructions | issue cycles",
            "lllrrrlrrrr",
            "sm_{arch} | {products}, {width:,} | {sweep} | {config[0]} x {config[1]} | {registers} "
            "| {programs} | {matrix} | {copies} | {barriers:,} | {instructions:,} | {issue:,}",
            sorted(groups, key=order),
        )

    return made


def _products(matrix: dict[str, int]) -> str:
    """HGMMA 64x64x16, 64x128x16: mnemonic and shapes."""
    names = [name.split(".") for name in matrix]
    shapes = ", ".join(name[1] for name in names if len(name) > 1)
    return f"{names[0][0]} {shapes}".strip()


def _copies(case: Case) -> str:
    narrow = case["narrow copies"]
    return f"{case['copies']} + {narrow}" if narrow else str(case["copies"])


def compiled_gluon(cases: Cases) -> str:
    """What the compiler makes of the sweeps in Gluon, in bfloat16."""
    sweeps = {"gluon_row_sweep": "row", "gluon_column_sweep": "column"}
    found = {}
    for case in cases:
        if case["kernel"] in sweeps and case["dtype"] == "bfloat16":
            key = (list(sweeps).index(case["kernel"]), case["width"], case["variant"])
            found.setdefault(key, []).append(case | {"sweep": sweeps[case["kernel"]]})
    return of_cases(
        "sweep | d | variant | tile | instructions | barriers | exponentials uncovered | "
        "instructions exposed | busiest unit, cycles | cycles",
        "lrlrrrrrrr",
        "{sweep} | {width} | {variant} | {config[0]} x {config[1]} | {instructions:,} | "
        "{barriers:,} | {uncovered:,} | {exposed:,} | {busiest?:,} | {cycles?:,}",
        (found[key] for key in sorted(found)),
    )


# The embedding
# --------------------------------------------------------------------------------------------------------


def embedding(cases: Cases) -> str:
    """Look-ups, steps and bags, and for look-ups and steps the share that the least memory traffic
    would take.
    """
    return of_cases(
        " | workload | ours, ms | each peer's time over ours | floor, MB | copied at, GB/s | share "
        "of the floor",
        "llrlrrr",
        f"{WORKLOAD} | {{floor_mb?:.1f}} | {{copy_gb_per_s?:.0f}} | {{floor_ms / ms[ours]?:.0%}}",
        _with_peers(case for case in cases if "ours" in case["ms"]),
    )


def embedding_summary(cases: Cases) -> str:
    """Look-ups and steps of the first workload, and bags."""
    first = cases[0]["workload"]
    return of_cases(
        " | workload | ours, ms | each peer's time over ours",
        "llrl",
        WORKLOAD,
        _with_peers(each for each in cases if each["workload"] == first or each["case"] == "bags"),
    )


WORKLOAD = "{case} | {workload} | {ms[ours]:.2f} | {peers}"


def _with_peers(cases: Iterable[Case]) -> Iterable[Case]:
    for case in cases:
        ms = case["ms"]
        peers = (f"{name} {ms[name] / ms['ours']:.1f}x" for name in ms if name != "ours")
        yield case | {"peers": ", ".join(peers)}


def embedding_growth(cases: Cases) -> str:
    """Milliseconds of a step of exact Adam for equal batches of small and of large tables."""
    ms = next(case["ms"] for case in cases if case["case"] == "growth")
    rows = {}
    for key, value in ms.items():
        name, _, size = key.rpartition(", V=")
        rows.setdefault(name, {"name": name})[f"V={int(size):,}"] = value
    _, small, large = next(iter(rows.values()))
    return of_cases(
        f" | {small} | {large} | growth",
        "lrrr",
        f"{{name}} | {{{small}:.2f}} | {{{large}:.2f}} | {{{large} / {small}:.1f}}x",
        rows.values(),
    )


# Data, metrics, serving
# -----------------------------------------------------------------------------------------------


def metrics(cases: Cases) -> str:
    """Seconds of each metric at its first call, and memory."""
    found = []
    for case in cases:
        rows, users = (part.split()[0] for part in case["case"].split(", "))
        found.append(case | {"rows": rows, "users": users, "GiB": case["MiB"] / 1024})
    return of_cases(
        "rows | users | AUC | GAUC | log-loss | AUC of scikit-learn | memory beyond the rows",
        "rrrrrrr",
        "{rows} | {users} | {seconds[AUC]:.2f} | {seconds[GAUC]:.2f} | {seconds[log-loss]:.2f} | "
        "{seconds[AUC of scikit-learn]?:.2f} | {GiB:.1f} GiB",
        found,
    )


def loader(cases: Cases) -> str:
    """Rows a second from a prepared file to batches."""
    return of_cases(
        "ids a field | bytes a row on disk | million rows/s | DataLoader by rows | DataLoader by indices",
        "rrrrr",
        "{ids a field:,} | {bytes a row} | {million rows/s:3d} | "
        "{DataLoader by rows, million rows/s:3d} | {DataLoader by indices, million rows/s:3d}",
        cases,
    )


def memory(cases: Cases) -> str:
    """MB of the peak of anonymous memory of each command, by length of the log; empty where it was
    not measured.
    """
    return of_cases(
        "rows | --memory, GB | prepare, parquet | prepare, text | predict",
        "rrrrr",
        "{rows:,} | {memory:g} | {peak MB[prepare, parquet]?} | {peak MB[prepare, text]?} | "
        "{peak MB[predict]?}",
        cases,
    )


def headline(cases: Cases) -> str:
    """Wall time, rate, peak of memory and files of each stage."""
    return of_cases(
        "rows | stage | seconds | rows/s | peak of memory, MB | files, MB",
        "rlrrrr",
        "{rows:,} | {stage} | {seconds:,.0f} | {of stage / seconds?:3d} | {peak_mb:,} | "
        "{disk_mb:,.0f}",
        (
            figures | {"rows": case["rows"], "stage": stage} | own
            for case in cases
            for stage, figures in case["stages"].items()
            for rows in [case["rows of stages"]]
            for own in [{"of stage": rows[stage]} if stage in rows else {}]
        ),
    )


INPUTS = {
    "parquet": "parquet, with the lists of five multi-valued fields, of which the last token "
    "is read",
    "aliccp": "Ali-CCP's raw layout: skeleton and common features",
    "ids alone": "ids in memory, the program alone",
}


def predict(cases: Cases) -> str:
    """Rows a second of ``adaftr-fast predict`` by kind of input."""
    found = (case | {"input": INPUTS[case["predict"]]} for case in cases if "predict" in case)
    return of_cases("input | rows/s, all cores", "lr", "{input} | {rows/s:3d}", found)


def requests(cases: Cases) -> str:
    """Milliseconds of one request on one thread, by program and number of rows."""
    rows = {}
    heads = {}
    for case in cases:
        if "request" in case:
            size = case["rows"]
            row = rows.setdefault(case["request"], {"name": case["request"]})
            row |= {f"{size} {q}": case[f"{q} ms"] for q in ("p50", "p99")}
            heads[size] = f"{size} row{'s' if size > 1 else ''}, p50 ms | p99 ms"
    return of_cases(
        "one thread | " + " | ".join(heads.values()),
        "l" + "rr" * len(heads),
        "{name} | " + " | ".join(f"{{{size} p50:.2f}} | {{{size} p99:.2f}}" for size in heads),
        rows.values(),
    )


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
    known = {name for case in cases for name in case["samples/s"]}
    names = [name for name in TRAINERS if name in known]
    return of_cases(
        " | ".join(["ids a field", *(TRAINERS[name] for name in names), "share of L_cl"]),
        "r" * (len(names) + 2),
        f"{_rates(names)} | {{share of L_cl in the step:.0%}}",
        map(_in_thousands, cases),
    )


PLAIN = [f"plain PyTorch MMoE, {form}" for form in ("dense", "compiled", "sparse")]
LIBRARIES = ["torch-rechub MMoE", "torch-rechub MMoE, bare step", "DeepCTR-Torch MMoE"]


def training_summary(cases: Cases) -> str:
    """Thousands of samples a second of ours, and of MMoE in other libraries, on one or
    more CPUs.
    """
    names = ["AdaFTR", "AdaFTR, bfloat16", "MMoE", *PLAIN, *LIBRARIES]
    header = " | ".join(name.replace(" MMoE", "") for name in names)
    row = f"{{cpu}} | {_rates(names)}"
    right = "r" * (1 + len(names))
    return of_cases(f"CPU | ids a field | {header}", f"l{right}", row, map(_in_thousands, cases))


def _rates(names: list[str]) -> str:
    return " | ".join(["{ids a field:,}", *(f"{{samples/s[{name}]?:3d}}" for name in names)])


def _in_thousands(case: Case) -> Case:
    return case | {"samples/s": {name: rate / 1e3 for name, rate in case["samples/s"].items()}}


def training_ratios(cases: Cases) -> str:
    """Rate of our MMoE over the rate of the other libraries' MMoE."""
    others = ("torch-rechub MMoE", "torch-rechub MMoE, bare step", "DeepCTR-Torch MMoE")
    rows = []
    for case in cases:
        rates = case["samples/s"]
        ratios = (f"{significant(rates['MMoE'] / rates[other], 2)}x" for other in others)
        rows.append([f"{case['ids a field']:,}", *ratios])
    return table("ids a field | torch-rechub | its bare step | DeepCTR-Torch", "rrrr", rows)


def against(cases: Cases) -> str:
    """Milliseconds of a training step at another commit and now, and the median ratio
    of the turns.
    """
    return of_cases(
        "fields | before | a step of | before, ms | now, ms | now / before",
        "rllrrr",
        "{fields} | {before} | {name} | {step[before, ms]:.1f} | {step[now, ms]:.1f} | "
        "{step[ratio]}",
        (case | {"name": n, "step": step} for case in cases for n, step in case["steps"].items()),
    )


def floor(cases: Cases) -> str:
    """Milliseconds that the parts of a step take alone, their sum, the step, and the share that the
    sum is of it.
    """
    parts = list(cases[0]["parts, ms"])
    return of_cases(
        " | ".join(["fields", "model", *parts, "floor, ms", "step, ms", "floor / step"]),
        "rl" + "r" * (len(parts) + 3),
        "{fields} | {model} | "
        + " | ".join(f"{{parts, ms[{part}]:.2f}}" for part in parts)
        + " | {floor, ms:.2f} | {step, ms:.2f} | {floor, ms / step, ms:.2f}",
        cases,
    )


def recipes(cases: Cases) -> str:
    """Time and added memory of our losses, and those of the libraries over ours; empty where they
    do not fit.
    """

    def row(case: Case) -> list[str]:
        cells = [case["recipe"], case["library"], f"{case['rows']:,}"]
        for key in ("ms", "added MiB"):
            ours = max(case[key]["ours"], 0.01)
            library = case[key].get("library")
            cells += [significant(ours), "" if library is None else f"{library / ours:.1f}x"]
        return cells

    header = "loss | library | B | ours, ms | library | ours, added MiB | library"
    return table(header, "llrrrrr", map(row, cases))


def arm_tiles(cases: Cases) -> str:
    """Instructions of a turn of each tile's inner loop, and its cycles beside the bound of its
    multiply-adds.
    """
    return of_cases(
        "target | type | A | rows | instructions | on the stack | multiply-adds | Neoverse V1 | "
        "Neoverse V2",
        "lllrrrrrr",
        "`{target}` | {type} | {A} | {rows} | {instructions} | {on the stack} | {multiply-adds} | "
        "{cycles[neoverse-v1]:.2f} ({bound[neoverse-v1] / cycles[neoverse-v1]:.0%}) | "
        "{cycles[neoverse-v2]:.2f} ({bound[neoverse-v2] / cycles[neoverse-v2]:.0%})",
        cases,
    )


def defaults(cases: Cases) -> str:
    """Test AUC in percent / predicted over observed of each contestant, by table and task."""
    titles = list(dict.fromkeys(title for case in cases for title in case["auc"]))
    rows = [
        [
            f"{case['table']} ({case['rows']:,})",
            case["task"],
            *(
                f"{100 * case['auc'][title]:.2f} / {case['ratio'][title]:.2f}"
                if title in case["auc"]
                else ""
                for title in titles
            ),
        ]
        for case in cases
    ]
    by_all = [case for case in cases if case["auc"].keys() == set(titles)]
    rows.append(["mean", f"{len(cases)} tasks", *_means(cases, titles)])
    if 0 < len(by_all) < len(cases):
        rows.append(["mean", f"the {len(by_all)} of all columns", *_means(by_all, titles)])
    header = " | ".join(["table (rows)", "task", *titles])
    return table(header, "ll" + "r" * len(titles), rows)


def _means(cases: Cases, titles: list[str]) -> list[str]:
    """Returns the mean AUC of each contestant in percent, "" for one that lacks some of the cases."""
    return [
        f"{100 * sum(case['auc'][title] for case in cases) / len(cases):.2f}"
        if all(title in case["auc"] for case in cases)
        else ""
        for title in titles
    ]


TABLES = {
    made.__name__: made
    for made in (
        loss,
        loss_error,
        loss_growth,
        blocks,
        host,
        recipes,
        compiled_gluon,
        arm_tiles,
        embedding,
        embedding_summary,
        embedding_growth,
        metrics,
        defaults,
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
TABLES["compiled"] = compiled_kernels(
    row_sweep="row", anchor_sweep="anchors", bounded_sweep="bounded", column_sweep="column"
)
TABLES["compiled_sigmoid"] = compiled_kernels(sigmoid_rows="rows", sigmoid_columns="columns")
TABLES["compiled_symmetric"] = compiled_kernels(
    symmetric_sums="sums", symmetric_gradient="gradient"
)
