"""Options of adaptive_infonce with several targets, and comparisons with their loss in PyTorch."""

import torch
import torch.nn.functional as F

import adaftr_fast as af
from tests.tolerances import assert_as_accurate


def ids(rows, columns, count, seed=1):
    """Returns random ids of rows and candidates; every row finds its id among the first candidates."""
    g = torch.Generator().manual_seed(seed)
    column = torch.randint(0, count, (columns,), generator=g)
    column[: min(count, columns)] = torch.arange(min(count, columns))
    return torch.randint(0, min(count, columns), (rows,), generator=g), column


def literal(a, b, tau, *, label_smoothing=0.0, margin=0.0, positive_index=None, positive_group=None, **options):
    """The loss of every row in PyTorch, with the similarities stored."""
    rows, columns = len(a), len(b)
    index = torch.arange(rows) if positive_index is None else positive_index.clamp(min=0)
    candidate = torch.ones(rows, columns, dtype=torch.bool)
    if "row_group" in options:
        candidate = options["row_group"][:, None] != options["column_group"]
    positive = F.one_hot(index, columns).bool() if columns else candidate
    if positive_group is None:
        candidate = candidate | positive
    else:
        positive = candidate & (positive_group[0][:, None] == positive_group[1])
    logits = ((a @ b.T).to(tau.dtype) - margin * positive.to(tau.dtype)) / tau[:, None]
    mean = [(x / x.sum(1, keepdim=True)).nan_to_num() for x in (positive.double(), candidate.double())]
    target = (1 - label_smoothing) * mean[0] + label_smoothing * mean[1]
    lse = logits.masked_fill(~candidate, -torch.inf).logsumexp(1)
    loss = lse - (target.to(logits.dtype) * logits).sum(1)
    ignored = positive_index if positive_group is None else positive_group[0]
    return loss if ignored is None else torch.where(ignored == -100, 0.0, loss)


def results(function, tensors, dtype, weight):
    """Returns the losses of the rows, and the gradients of their weighted sum."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    leaves = [t.to(dtype if i < 2 else wide).requires_grad_() for i, t in enumerate(tensors)]
    loss = function(*leaves)
    return [loss.detach(), *torch.autograd.grad((loss * weight.to(loss.dtype)).sum(), leaves)]


def assert_matches(tensors, dtype, backend="cpu", **options):
    """Compares the backend with the losses in PyTorch, in reduction "none" and "sum", by the tolerance rule."""
    rounded = [t.to(dtype).double() if i < 2 else t.float().double() for i, t in enumerate(tensors)]
    weight = torch.linspace(0.5, 2, len(tensors[0]), dtype=torch.float64)
    truth = results(lambda *x: literal(*x, **options), rounded, torch.float64, weight)
    eager = results(lambda *x: literal(*x, **options), rounded, dtype, weight)

    def ours(*x, **more):
        return af.adaptive_infonce(*x, backend=backend, **options, **more)

    none = results(lambda *x: ours(*x, reduction="none"), rounded, dtype, weight)
    total = results(lambda *x: ours(*x, reduction="sum", row_weight=weight), rounded, dtype, torch.ones(1))
    assert_as_accurate(total[0], (truth[0] * weight).sum(), (eager[0] * weight).sum(), dtype, "sum")
    for what, own, true, theirs in zip(("loss", "h_ctr", "h_cvr", "tau"), none, truth, eager):
        assert_as_accurate(own, true, theirs, dtype, what)
    for what, own, true, theirs in zip(("h_ctr", "h_cvr", "tau"), total[1:], truth[1:], eager[1:]):
        assert_as_accurate(own, true, theirs, dtype, what)


def options_of(case, rows, columns, labels=4):
    row, column = ids(rows, columns, labels)
    group = dict(zip(("row_group", "column_group"), ids(rows, columns, 7, seed=2)))
    group["column_group"][: min(labels, columns)] = 9  # the ids of all rows remain among the candidates
    index = ids(rows, columns, columns, seed=3)[0]
    index[::7] = -100
    ignored = row.clone()
    ignored[1::5] = -100
    return {
        "positives": {"positive_group": (row, column)},
        "positives, ignored rows": {"positive_group": (ignored, column)},
        "positives, groups": {"positive_group": (row, column), **group},
        "smoothing": {"label_smoothing": 0.1},
        "smoothing, groups": {"label_smoothing": 0.3, "positive_index": index, **group},
        "smoothing, positives, groups": {"label_smoothing": 0.2, "positive_group": (ignored, column), **group},
        "margin": {"margin": 0.35},
        "margin, groups": {"margin": 0.2, "positive_index": index, **group},
        "margin, smoothing": {"margin": 0.2, "label_smoothing": 0.5, "positive_index": index, **group},
    }[case]


CASES = (
    "positives",
    "positives, ignored rows",
    "positives, groups",
    "smoothing",
    "smoothing, groups",
    "smoothing, positives, groups",
    "margin",
    "margin, groups",
    "margin, smoothing",
)
