"""Draws the cases of each op: ``sizes``, and the ``options`` that differ from their defaults.

``OPS`` has for each op a function that draws its sizes, and its options: the probability that one
is given, and its values.
"""

LAYOUTS = ("transposed", "padded", "strided", "offset", "expanded")
SIDES = ("before", "after")  # of the inputs, where a protected page is
NOT_FINITE = ("nan", "inf", "-inf")
POSITIVE = ("random", "some ignored", "all ignored", "one")
FLOATS = ("float32", "float64", "bfloat16", "float16")


def size(random, largest):
    """Returns a size up to ``largest``: often 0, 1 or beside a multiple of 16, else log-uniform."""
    kind = random.random()
    if kind < 0.12:
        return random.choice((0, 0, 1, 1, 2))
    if kind < 0.4:
        beside = 16 * random.randint(1, max(1, largest // 16)) + random.randint(-1, 1)
        return min(largest, max(1, beside))
    return int(largest ** random.random())


def at_least_one(random, largest):
    return max(1, size(random, largest))


def several(random, count, largest):
    return [at_least_one(random, largest) for _ in range(count)]


def batch(random):
    """Returns a number of rows: most cases are small, and a few fill several blocks and threads."""
    return size(random, random.choices((10, 50, 300, 1200), (4, 4, 3, 0.3))[0])


def powers(low, high):
    return [10.0**power for power in range(low, high + 1)]


def pairs(random):
    """Draws the sizes of a loss: mostly as many candidates as rows or more."""
    rows = batch(random)
    other = batch(random)
    columns = random.choice((rows, rows, rows, rows + 1, rows + other, rows + other, other))
    return {"rows": rows, "columns": columns, "width": at_least_one(random, 130)}


def lookup(random):
    count = at_least_one(random, random.choice((4, 24)))
    fields = [at_least_one(random, random.choice((3, 60, 5000))) for _ in range(count)]
    return {"rows": batch(random), "width": at_least_one(random, 40), "fields": fields}


def bags(random):
    sizes = lookup(random)
    return sizes | {"rows": min(sizes["rows"], 300), "longest": random.choice((0, 1, 4, 40))}


def select(random):
    longest = random.choice((0, 1, 4, 40))
    return {"rows": size(random, 300), "fields": at_least_one(random, 24), "longest": longest}


def int8(random):
    return bags(random) | {"longest": random.choice((0, 1, 4))}


def segments(random):
    longest = random.choice((0, 1, 4, 40))
    return {"bags": size(random, 300), "width": at_least_one(random, 40), "longest": longest}


def lists(random):
    return {"tensors": several(random, random.randint(1, 6), random.choice((5, 300, 9000)))}


def columns(random):
    largest = random.choice((10, 200, 2000))
    return {"rows": size(random, largest), "columns": at_least_one(random, 40)}


def steps(random):
    table = at_least_one(random, random.choice((5, 100, 3000)))
    rows = min(table, size(random, table))
    return {"table": table, "rows": rows, "width": at_least_one(random, 40)}


def adam(random):
    fields = several(random, random.randint(1, 4), random.choice((3, 60, 300)))
    sizes = {"rows": size(random, 40), "width": at_least_one(random, 40), "fields": fields}
    return sizes | {"steps": random.choice((1, 2, 5, 20))}


def mlp(random):
    inputs = several(random, random.choice((1, 1, 2, 3)), 200)
    stacks = [several(random, random.randint(1, 4), 130) for _ in range(random.randint(1, 3))]
    return {"rows": batch(random), "inputs": inputs, "stacks": stacks}


def mixture(random):
    largest = {"tasks": 9, "experts": 17, "width": 130}
    return {"rows": batch(random)} | {name: at_least_one(random, n) for name, n in largest.items()}


def log_loss(random):
    return {"rows": batch(random), "tasks": at_least_one(random, 9)}


# fmt: off
SPOILED = {"spoiled": (0.1, NOT_FINITE)}
THREADS = {"threads": (0.5, (2, 3))}
LOSS = THREADS | {
    "dtype": (0.6, FLOATS), "layout_a": (0.3, LAYOUTS), "layout_b": (0.3, LAYOUTS),
    "positive": (0.5, POSITIVE), "precision": (0.2, ("high", "medium")),
    "reduction": (0.5, ("sum", "none")), "no_grad": (0.15, (True,)),
}
INFONCE = LOSS | {
    "other_dtype": (0.1, FLOATS), "layout_tau": (0.3, LAYOUTS), "spread": (0.6, [0.0, *powers(-6, 4)]),
    "tau": (0.4, powers(-4, 4)), "tau_kind": (0.3, ("scalar", "0-dim")), "groups": (0.4, (1, 2, 5, 100)),
    "columns_grouped": (0.5, (True,)), "weight": (0.4, ("uniform", "some zero", "all zero")),
    "symmetric": (0.3, (True,)), "frozen": (0.3, ("a", "b", "tau", "a b", "a tau", "b tau")),
    "block": (0.15, (1, 2, 3, 4, 16, 33, 100)), "own_precision": (0.2, ("float32", "bfloat16")),
    "pattern": (0.2, ("equal rows", "jump", "positive", "far")), "column_bias": (0.2, powers(-2, 3)),
    "twice": (0.15, (True,)), "ignore_above": (0.2, (0.1, 0.5, 0.9)),
}
PAIRS = LOSS | SPOILED | {"spread": (0.3, powers(-3, 2))}
TARGETS = {"labels": (1, 2, 7), "margin": (0.1, 1.0), "label_smoothing": (0.1, 0.5),
           "mask": (0.0, 0.5, 0.9)}
LOOKUP = THREADS | SPOILED | {
    "dtype": (0.5, FLOATS), "ids": (0.5, ("int32",)), "layout_ids": (0.4, LAYOUTS),
    "layout_grad": (0.4, LAYOUTS), "distinct": (0.5, (1, 2, 9)), "spread": (0.3, powers(-3, 3)),
    "bad": (0.1, (-1, "last", 2**31 - 1)), "missed": (0.3, (1, 3, 20)), "no_grad": (0.1, (True,)),
}
BAGS = {"layout_offsets": (0.2, ("strided", "offset"))}
OPS = {
    "infonce": (pairs, INFONCE),
    "infonce_spoiled": (pairs, INFONCE | {
        "symmetric": (0, ()), "twice": (0, ()), "tau_kind": (0, ()), "own_precision": (0, ()),
        "reduction": (1, ("none",)), "value": (1, NOT_FINITE),
        "where": (1, ("h_ctr", "h_ctr", "h_cvr", "h_cvr", "tau", "row_weight", "column_bias")),
    }),
    "sigmoid": (pairs, PAIRS | {"reduction": (0.5, ("sum",)), "scale": (0.5, powers(-2, 1))}),
    "targets": (pairs, PAIRS | {"symmetric": (0.3, (True,)), "weight": (0.4, ("uniform",))}
                | {name: (0.2, values) for name, values in TARGETS.items()}),
    "lookup": (lookup, LOOKUP),
    "bags": (bags, LOOKUP | BAGS | {"mean": (0.5, (True,)), "weights": (0.5, ("normal", "some zero"))}),
    "squares": (lookup, LOOKUP | {
        "dtype": (0.5, ("float64",)), "no_grad": (0, ()), "bad": (0, ()), "only": (0.3, ("output", "squares")),
    }),
    "int8": (int8, BAGS | {"ids": (0.5, ("int32",)), "bags": (0.5, (True,)), "mean": (0.5, (True,)),
                           "weights": (0.5, ("normal",))}),
    "segments": (segments, THREADS | BAGS | {"dtype": (0.5, ("float64",)), "ids": (0.5, ("int32",))}),
    "select": (select, THREADS | BAGS | {
        "ids": (0.5, ("int32",)), "weights": (0.3, ("normal",)), "chosen": (0.3, (0.0, 1.0)),
        "layout_ids": (0.4, LAYOUTS), "fault": (0.2, ("short offsets", "other factors", "negative", "beyond")),
    }),
    "steps": (steps, THREADS | SPOILED | {
        "optimizer": (1, ("sgd_", "adagrad_", "rowwise_adagrad_", "lazy_adam_")), "dtype": (0.5, FLOATS),
        "layout_grad": (0.3, ("offset",)), "layout_rows": (0.2, ("offset",)), "spread": (0.4, powers(-6, 4)),
        "lr": (0.5, (0.0, 1e-6, 1.0, 100.0)), "weight_decay": (0.5, (1e-6, 0.1, 2.0)),
        "eps": (0.5, (1e-12, 1e-3, 1.0)), "beta1": (0.3, (0.0, 0.5, 0.999)),
        "beta2": (0.3, (0.0, 0.5, 0.9999)), "fresh": (0.3, (True,)),
    }),
    "adam": (adam, THREADS | {
        "dtype": (0.3, ("float64",)), "optimizer": (0.6, ("AdamW",)), "weight_decay": (0.5, (1e-6, 1e-2, 0.3)),
        "lr": (0.4, (1e-6, 1e-3, 0.1)), "eps": (0.4, (1e-12, 1e-3, 1.0)), "beta1": (0.4, (0.0, 0.5, 0.99)),
        "beta2": (0.4, (0.5, 0.99, 0.9999)), "spread": (0.3, powers(-6, 3)), "distinct": (0.5, (1, 2, 9)),
        "schedule": (0.4, (True,)), "flushes": (0.3, (True,)),
    }),
    "mlp": (mlp, THREADS | SPOILED | {
        "dtype": (0.3, ("float64",)), "reduced": (0.4, (True,)), "half_inputs": (0.3, (True,)),
        "layout_inputs": (0.4, LAYOUTS), "layout_weights": (0.3, LAYOUTS), "layout_grad": (0.4, LAYOUTS),
        "spread": (0.4, powers(-4, 4)), "rectified": (0.6, (0, 1, 9)), "upstream": (0.4, (0.3, 0.7)),
        "wanted": (0.3, (0.5,)),
    }),
    "lists": (lists, THREADS | SPOILED | {
        "dtype": (0.5, FLOATS), "layout": (0.4, LAYOUTS), "spread": (0.4, powers(-4, 4)),
    }),
    "dense_adam": (lists, THREADS | {
        "dtype": (0.3, ("float64",)), "steps": (0.5, (1, 7, 1000)), "spread": (0.4, powers(-6, 4)),
    }),
    "columns": (columns, {"placed": (0.5, (True,)), "dtype": (0.5, ("int32",))}),
    "mixture": (mixture, THREADS | SPOILED | {
        "dtype": (0.5, ("float64", "bfloat16")), "layout_experts": (0.4, LAYOUTS),
        "layout_logits": (0.4, LAYOUTS), "layout_grad": (0.4, LAYOUTS), "spread": (0.4, powers(-4, 4)),
        "logit_spread": (0.5, [0.0, *powers(-3, 4)]), "upstream": (0.4, (0.3, 0.7)),
    }),
    "log_loss": (log_loss, THREADS | SPOILED | {
        "dtype": (0.3, ("float64",)), "layout_logits": (0.4, LAYOUTS), "layout_labels": (0.3, LAYOUTS),
        "spread": (0.5, powers(-4, 4)), "weighted": (0.5, (True,)),
    }),
}
# fmt: on


def draw(random):
    """Draws an op, its sizes, and some of its options that go together."""
    op = random.choice(list(OPS))
    sizes_of, choices = OPS[op]
    sizes = sizes_of(random)
    options = {
        name: random.choice(values)
        for name, (chance, values) in choices.items()
        if random.random() < chance
    }
    if random.random() < 0.6:
        options["guards"] = random.choice(SIDES)
    if op == "targets":
        target = random.choice(("labels", "labels", "margin", "label_smoothing", "mask"))
        options[target] = random.choice(TARGETS[target])
    if op == "targets" and "labels" in options:
        sizes["columns"] = max(sizes.values())
        _leave_out(options, "positive", "margin", "mask")
    if "mask" in options and "symmetric" in options:
        _leave_out(options, "positive")
    if options.get("where") in ("row_weight", "column_bias"):
        options |= (
            {"weight": "uniform"} if options["where"] == "row_weight" else {"column_bias": 1.0}
        )
        if options["where"] == "column_bias":
            options.pop("block", None)
    if "block" in options:
        _leave_out(options, "positive", "groups", "columns_grouped", "column_bias", "ignore_above")
    if "ignore_above" in options:
        _leave_out(options, "symmetric")
        if "column_bias" in options:  # rounded to the type of the products
            _leave_out(options, "dtype", "other_dtype", "precision", "own_precision")
    return {"op": op, "seed": random.randrange(2**31), "sizes": sizes, "options": options}


def _leave_out(options, *names):
    for name in names:
        options.pop(name, None)
