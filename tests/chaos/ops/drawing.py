"""Draws the cases of each op: ``sizes``, and the ``options`` that differ from their defaults."""

import random
from typing import Any

Drawn = dict[str, dict[str, Any]]
LAYOUTS = ("transposed", "padded", "strided", "offset", "expanded")
NOT_FINITE = ("nan", "inf", "-inf")
POSITIVE = ("random", "some ignored", "all ignored", "one")
FLOATS = ("float32", "float64", "bfloat16", "float16")
# Options of several ops: the probability, and the values.
SPOILED = {"spoiled": (0.1, NOT_FINITE)}
THREADS = {"threads": (0.5, (2, 3))}
LOSS = THREADS | {
    "dtype": (0.6, FLOATS), "layout_a": (0.3, LAYOUTS), "layout_b": (0.3, LAYOUTS), "positive": (0.5, POSITIVE),
    "precision": (0.2, ("high", "medium")), "reduction": (0.5, ("sum", "none")), "no_grad": (0.15, (True,)),
}  # fmt: skip


def size(random: random.Random, largest: int) -> int:
    """Returns a size up to ``largest``: often 0, 1 or beside a multiple of 16, else log-uniform."""
    kind = random.random()
    if kind < 0.12:
        return random.choice((0, 0, 1, 1, 2))
    if kind < 0.4:
        return min(
            largest, max(1, 16 * random.randint(1, max(1, largest // 16)) + random.randint(-1, 1))
        )
    return int(largest ** random.random())


def largest_batch(random: random.Random) -> int:
    """Returns a bound of the batch size: most cases are small, and a few fill several blocks and
    threads.
    """
    return random.choices((10, 50, 300, 1200), (4, 4, 3, 0.3))[0]


def at_least_one(random: random.Random, largest: int) -> int:
    return max(1, size(random, largest))


def some(random: random.Random, **choices: Any) -> dict[str, Any]:
    """Returns some of the options, each with one of its values: the first of a pair is its
    probability.
    """
    return {
        name: random.choice(values)
        for name, (chance, values) in choices.items()
        if random.random() < chance
    }


def powers(low: int, high: int) -> list[float]:
    return [10.0**power for power in range(low, high + 1)]


def infonce(random: random.Random) -> Drawn:
    rows = size(random, largest_batch(random))
    options = some(
        random, **LOSS, other_dtype=(0.1, FLOATS), layout_tau=(0.3, LAYOUTS),
        spread=(0.6, [0.0, *powers(-6, 4)]), tau=(0.4, powers(-4, 4)),
        tau_kind=(0.3, ("scalar", "0-dim")),
        groups=(0.4, (1, 2, 5, 100)), columns_grouped=(0.5, (True,)),
        weight=(0.4, ("uniform", "some zero", "all zero")), symmetric=(0.3, (True,)),
        frozen=(0.3, ("a", "b", "tau", "a b", "a tau", "b tau")),
        block=(0.15, (1, 2, 3, 4, 16, 33, 100)),
        own_precision=(0.2, ("float32", "bfloat16")),
        pattern=(0.2, ("equal rows", "jump", "positive", "far")), column_bias=(0.2, powers(-2, 3)),
        twice=(0.15, (True,)), ignore_above=(0.2, (0.1, 0.5, 0.9)),
    )  # fmt: skip
    if "block" in options:
        excluded = ("positive", "groups", "columns_grouped", "column_bias", "ignore_above")
        options = {key: value for key, value in options.items() if key not in excluded}
    if "ignore_above" in options:
        options.pop("symmetric", None)
        if "column_bias" in options:  # rounded to the type of the products
            rounding = ("dtype", "other_dtype", "precision", "own_precision")
            options = {key: value for key, value in options.items() if key not in rounding}
    sizes = {"rows": rows, "columns": columns_of(random, rows), "width": at_least_one(random, 130)}
    return {"sizes": sizes, "options": options}


def columns_of(random: random.Random, rows: int) -> int:
    """Returns a number of candidates: mostly as many as rows or more."""
    other = size(random, largest_batch(random))
    return random.choice((rows, rows, rows, rows + 1, rows + other, rows + other, other))


def infonce_spoiled(random: random.Random) -> Drawn:
    drawn = infonce(random)
    for name in ("symmetric", "twice", "tau_kind", "own_precision"):
        drawn["options"].pop(name, None)
    places = ("h_ctr", "h_ctr", "h_cvr", "h_cvr", "tau", "row_weight", "column_bias")
    where = random.choice(places[:-1] if "block" in drawn["options"] else places)
    drawn["options"] |= {"reduction": "none", "where": where, "value": random.choice(NOT_FINITE)}
    drawn["options"] |= {"weight": "uniform"} if where == "row_weight" else {}
    drawn["options"] |= {"column_bias": 1.0} if where == "column_bias" else {}
    return drawn


def _pairs(random: random.Random, **choices: Any) -> Drawn:
    """Draws a loss of pairs, most options as for the loss ``infonce``."""
    options = some(random, **LOSS | SPOILED | {"spread": (0.3, powers(-3, 2))} | choices)
    rows = size(random, largest_batch(random))
    sizes = {"rows": rows, "columns": columns_of(random, rows), "width": at_least_one(random, 130)}
    return {"sizes": sizes, "options": options}


def sigmoid(random: random.Random) -> Drawn:
    return _pairs(random, reduction=(0.5, ("sum",)), scale=(0.5, powers(-2, 1)))


def targets(random: random.Random) -> Drawn:
    target = random.choice(("labels", "labels", "margin", "label_smoothing"))
    numbers = {"labels": (1, 2, 7), "margin": (0.1, 1.0), "label_smoothing": (0.1, 0.5)}
    drawn = _pairs(
        random, symmetric=(0.3, (True,)), weight=(0.4, ("uniform",)),
        **{name: (0.2, values) for name, values in numbers.items()},
    )  # fmt: skip
    drawn["options"][target] = random.choice(numbers[target])
    if "labels" in drawn["options"]:
        drawn["options"] = {
            name: x for name, x in drawn["options"].items() if name not in ("positive", "margin")
        }
        drawn["sizes"]["columns"] = max(drawn["sizes"].values())
    return drawn


def lookup(random: random.Random) -> Drawn:
    fields = [
        at_least_one(random, random.choice((3, 60, 5000)))
        for _ in range(at_least_one(random, random.choice((4, 24))))
    ]
    options = some(
        random,
        dtype=(0.5, FLOATS), ids=(0.5, ("int32",)), layout_ids=(0.4, LAYOUTS), layout_grad=(0.4, LAYOUTS),
        distinct=(0.5, (1, 2, 9)), spread=(0.3, powers(-3, 3)), bad=(0.1, (-1, "last", 2**31 - 1)),
        missed=(0.3, (1, 3, 20)), no_grad=(0.1, (True,)), **THREADS, **SPOILED,
    )  # fmt: skip
    sizes = {
        "rows": size(random, largest_batch(random)),
        "width": at_least_one(random, 40),
        "fields": fields,
    }
    return {"sizes": sizes, "options": options}


def bags(random: random.Random) -> Drawn:
    drawn = lookup(random)
    drawn["sizes"]["rows"] = min(drawn["sizes"]["rows"], 300)
    drawn["sizes"]["longest"] = random.choice((0, 1, 4, 40))
    drawn["options"] |= some(
        random,
        mean=(0.5, (True,)),
        weights=(0.5, ("normal", "some zero")),
        layout_offsets=(0.2, ("strided", "offset")),
    )
    return drawn


def select(random: random.Random) -> Drawn:
    options = some(
        random,
        ids=(0.5, ("int32",)), weights=(0.3, ("normal",)), chosen=(0.3, (0.0, 1.0)), layout_ids=(0.4, LAYOUTS),
        layout_offsets=(0.2, ("strided", "offset")), **THREADS,
        fault=(0.2, ("short offsets", "other factors", "negative", "beyond")),
    )  # fmt: skip
    sizes = {
        "rows": size(random, 300),
        "fields": at_least_one(random, 24),
        "longest": random.choice((0, 1, 4, 40)),
    }
    return {"sizes": sizes, "options": options}


def steps(random: random.Random) -> Drawn:
    options = {"optimizer": random.choice(("sgd_", "adagrad_", "rowwise_adagrad_", "lazy_adam_"))} | some(
        random,
        dtype=(0.5, FLOATS), layout_grad=(0.3, ("offset",)), layout_rows=(0.2, ("offset",)),
        spread=(0.4, powers(-6, 4)), lr=(0.5, (0.0, 1e-6, 1.0, 100.0)), weight_decay=(0.5, (1e-6, 0.1, 2.0)),
        eps=(0.5, (1e-12, 1e-3, 1.0)), beta1=(0.3, (0.0, 0.5, 0.999)), beta2=(0.3, (0.0, 0.5, 0.9999)),
        fresh=(0.3, (True,)), **THREADS, **SPOILED,
    )  # fmt: skip
    table = at_least_one(random, random.choice((5, 100, 3000)))
    sizes = {
        "table": table,
        "rows": min(table, size(random, table)),
        "width": at_least_one(random, 40),
    }
    return {"sizes": sizes, "options": options}


def adam(random: random.Random) -> Drawn:
    options = some(
        random,
        dtype=(0.3, ("float64",)), optimizer=(0.6, ("AdamW",)), weight_decay=(0.5, (1e-6, 1e-2, 0.3)),
        lr=(0.4, (1e-6, 1e-3, 0.1)), eps=(0.4, (1e-12, 1e-3, 1.0)), beta1=(0.4, (0.0, 0.5, 0.99)),
        beta2=(0.4, (0.5, 0.99, 0.9999)), spread=(0.3, powers(-6, 3)), distinct=(0.5, (1, 2, 9)), **THREADS,
        schedule=(0.4, (True,)), flushes=(0.3, (True,)), bags=(0.4, (1, 5)), mean=(0.5, (True,)),
    )  # fmt: skip
    fields = [
        at_least_one(random, random.choice((3, 60, 300))) for _ in range(random.randint(1, 4))
    ]
    sizes = {
        "steps": random.choice((1, 2, 5, 20)),
        "rows": size(random, 40),
        "width": at_least_one(random, 40),
    }
    return {"sizes": sizes | {"fields": fields}, "options": options}


def mlp(random: random.Random) -> Drawn:
    inputs = [at_least_one(random, 200) for _ in range(random.choice((1, 1, 2, 3)))]
    stacks = [
        [at_least_one(random, 130) for _ in range(random.randint(1, 4))]
        for _ in range(random.randint(1, 3))
    ]
    options = some(
        random,
        dtype=(0.3, ("float64",)), reduced=(0.4, (True,)), half_inputs=(0.3, (True,)), layout_inputs=(0.4, LAYOUTS),
        layout_weights=(0.3, LAYOUTS), layout_grad=(0.4, LAYOUTS), spread=(0.4, powers(-4, 4)),
        rectified=(0.6, (0, 1, 9)), upstream=(0.4, (0.3, 0.7)), wanted=(0.3, (0.5,)), **THREADS, **SPOILED,
    )  # fmt: skip
    sizes = {"rows": size(random, largest_batch(random)), "inputs": inputs, "stacks": stacks}
    return {"sizes": sizes, "options": options}


def mixture(random: random.Random) -> Drawn:
    options = some(
        random,
        dtype=(0.5, ("float64", "bfloat16")), layout_experts=(0.4, LAYOUTS), layout_logits=(0.4, LAYOUTS),
        layout_grad=(0.4, LAYOUTS), spread=(0.4, powers(-4, 4)), logit_spread=(0.5, [0.0, *powers(-3, 4)]),
        upstream=(0.4, (0.3, 0.7)), **THREADS, **SPOILED,
    )  # fmt: skip
    sizes = {"rows": size(random, largest_batch(random))}
    sizes |= {
        "tasks": at_least_one(random, 9),
        "experts": at_least_one(random, 17),
        "width": at_least_one(random, 130),
    }
    return {"sizes": sizes, "options": options}
