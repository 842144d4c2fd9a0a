"""Negatives from all ranks: W ranks give the loss and gradients of one process with all rows."""

import importlib.util
import os
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adaftr_fast import AdaptiveInfoNCE, adaptive_infonce
from adaftr_fast.ops.infonce.candidates import CrossRankBatch, Direction
from tests.distributed.ranks import on_ranks
from tests.ops.infonce.inputs import loss_and_gradients
from tests.ops.infonce.losses import EVERY

D = 6


class Case(NamedTuple):
    """A loss of tests/ops/infonce/losses.py with the rows and candidates of two ranks."""

    loss: str
    rows: tuple[int, int]
    columns: tuple[int, int]
    options: dict[str, Any] = {}  # noqa: RUF012  # never changed
    dtype: torch.dtype = torch.float64


SYMMETRIC = {"symmetric": True}
SUM = {"reduction": "sum"}
NONE = {"reduction": "none"}
CASES = {
    "even": Case("plain", (5, 5), (5, 5)),
    "float32": Case("plain", (40, 40), (40, 40), dtype=torch.float32),
    "bfloat16": Case("plain", (40, 17), (40, 17), dtype=torch.bfloat16),
    "an empty rank": Case("plain", (0, 4), (0, 4)),
    "no rows at all": Case("plain", (0, 0), (0, 0)),
    "groups, weights, ignored rows": Case("masks", (6, 4), (7, 6)),
    "one tau": Case("plain", (5, 3), (5, 3), {"tau": 0.3}),
    "sum": Case("masks", (5, 3), (5, 3), SUM),
    "none": Case("masks", (5, 3), (5, 3), NONE),
    "reference": Case("plain", (5, 3), (5, 3), {"backend": "reference"}),
    "biased": Case("column_bias", (5, 4), (7, 5)),
    "ignore above": Case("ignore_above", (7, 6), (7, 6)),
    "symmetric": Case("both, masks", (5, 3), (5, 3)),
    "blocks, one of all rows of a rank": Case("blocks", (2, 11), (2, 11)),
    "blocks, an empty rank": Case("both, blocks", (0, 6), (0, 6)),
    "margin": Case("margin", (7, 6), (7, 6), SYMMETRIC),
    "label smoothing": Case("smoothing, groups", (5, 4), (7, 5)),
    "positive groups": Case("smoothing, positives, groups", (6, 5), (7, 8)),
    "symmetric positive groups": Case("positives", (6, 5), (6, 5), SYMMETRIC),
    "positive groups, an empty rank": Case("positives", (0, 9), (0, 9)),
    "sigmoid": Case("sigmoid", (4, 3), (6, 8)),
    "sigmoid, positives, sum": Case("sigmoid, positives", (6, 4), (7, 6), SUM),
}

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None:
    CASES |= {
        "triton": Case("plain", (40, 33), (40, 35), {"backend": "triton"}),
        "triton, symmetric": Case("both", (33, 7), (33, 7), {"backend": "triton"}),
    }


def drawn(case: Case) -> tuple[list[Tensor], dict[str, Any]]:
    """Returns the tensors and options of one process, whose positive indices are of the
    row's rank.
    """
    rows = sum(case.rows)
    columns = sum(case.columns)
    tensors, options = EVERY[case.loss].drawn(rows, columns, D)
    tensors = list(tensors)
    options = options | case.options
    if "tau" in options:
        tensors[2] = torch.tensor(options.pop("tau"), dtype=torch.float64)
    if "positive_group" not in options and "block" not in options:
        own = torch.cat([torch.arange(count) for count in case.rows])
        index = options.get("positive_index", own)
        counts, first = (
            torch.tensor(x).repeat_interleave(torch.tensor(case.rows))
            for x in (case.columns, (0, case.columns[0]))
        )
        options["positive_index"] = torch.where(
            index == -100, -100, index % counts.clamp(min=1) + first
        )
    return tensors, options


def of_rank(case: Case, rank: int) -> tuple[list[Tensor], dict[str, Any]]:
    """Returns what ``rank`` passes, of which the positive indices count its own candidates."""
    (a, b, *others), options = drawn(case)
    row, column = (slice(sum(x[:rank]), sum(x[: rank + 1])) for x in (case.rows, case.columns))
    others = [x[part] if x.dim() else x for x, part in zip(others, (row, column))]
    if "positive_index" in EVERY[case.loss].options(4, 4):
        index = options["positive_index"]
        options["positive_index"] = torch.where(index == -100, -100, index - column.start)
    else:
        options.pop("positive_index", None)
    parts = {"positive_index": row, "row_group": row, "row_weight": row, "column_group": column}
    options |= {name: options[name][part] for name, part in parts.items() if name in options}
    if "positive_group" in options:
        of_rows, of_columns = options["positive_group"]
        options["positive_group"] = of_rows[row], of_columns[column]
    return [a[row], b[column], *others], options


def run(
    case: Case, tensors: list[Tensor], options: dict[str, Any], group: Any = None
) -> list[Tensor]:
    """Returns the loss, the gradients of the sum of its entries, also in the weights, and the
    statistics.
    """
    call = EVERY[case.loss].call
    weights = [options.pop("row_weight")] if "row_weight" in options else []
    if EVERY[case.loss].statistics:
        options["return_stats"] = True

    def loss(*x: Tensor, **given: Any) -> Any:
        more = {"row_weight": x[-1]} if weights else {}
        return call(*x[: len(tensors)], **given, **more, process_group=group)

    upstream = torch.ones(len(tensors[0])) if options.get("reduction") == "none" else None
    return loss_and_gradients(loss, [*tensors, *weights], case.dtype, upstream, **options)


UNEVEN = Case("plain", (7, 2), (7, 2))


class TwoTowers(nn.Module):
    def __init__(self, group=None) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, D), nn.Linear(8, D)
        self.contrast = AdaptiveInfoNCE(tau="scalar", process_group=group)

    def forward(self, x):
        return self.contrast(self.left(x), self.right(x))


def towers(group=None) -> TwoTowers:
    torch.manual_seed(0)
    return TwoTowers(group).double()


def tower_rows() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    return [torch.randn(rows, 8, generator=random, dtype=torch.float64) for rows in (9, 9)]


def parallel_gradients(rank: int, group) -> dict[str, torch.Tensor]:
    model = towers(group)
    # keep a reference: DDP reduces nothing once it is garbage-collected
    parallel = DistributedDataParallel(model)
    loss = parallel(tower_rows()[rank])
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters()}


def second_gradient(tensors: list[Tensor], group=None, **options: Any) -> list[Tensor]:
    leaves = [x.requires_grad_() for x in tensors]
    loss = adaptive_infonce(*leaves, process_group=group, **options)
    # of the sum of ranks' losses
    first = torch.autograd.grad(loss if group else 2 * loss, leaves, create_graph=True)
    sum(g.square().sum() for g in first).backward()
    return [x.grad for x in leaves]


def gathered(rank: int) -> list:
    """Returns the candidates 10 r, 10 r + 1, ... of ranks r as this rank gathers them, their groups
    and positives.
    """
    own = torch.arange(3.0)[: rank + 1, None] + 10 * rank
    batch = CrossRankBatch("op", dist.group.WORLD, own, own, {})
    found = [
        batch.gather(Direction(own, own, y, column_group=own[:, 0].long()), batch.columns)
        for y in (None, torch.tensor([0, -100, 9]))
    ]
    first, second = found
    return [first.candidates[:, 0], first.column_group, first.positive is None, second.positive]


def error_message(rank: int, option: str) -> str:
    """Returns the error on this rank where a setting of rank 1 differs."""
    a = torch.randn(4, D, requires_grad=True)
    b = torch.randn(4, D, requires_grad=option != "frozen" or rank == 0)
    given = {"symmetric": option == "symmetric" and rank == 1}
    if option == "positive":
        given["positive_index"] = torch.tensor([0, 1, 2, 3 + rank])
    try:
        adaptive_infonce(a, b, 0.5, **given, process_group=dist.group.WORLD)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


def on_a_rank(rank: int) -> dict:
    """Computes everything that the tests need of several ranks, to start the processes once."""
    world = dist.group.WORLD
    results = {name: run(case, *of_rank(case, rank), world) for name, case in CASES.items()}
    results["parallel"] = {
        "all": parallel_gradients(rank, world),
        "rank": parallel_gradients(rank, None),
    }
    results["second"] = second_gradient(of_rank(UNEVEN, rank)[0], world)
    differing = ("frozen", "symmetric", "positive")
    results["errors"] = [error_message(rank, option) for option in differing]
    return results


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return on_ranks(on_a_rank, 2)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_one_process(name, ranks):
    case = CASES[name]
    expected = run(case, *drawn(case))
    mean = "reduction" not in case.options
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 8e-3}[case.dtype]
    sizes = len(drawn(case)[0]) + ("row_weight" in drawn(case)[1])
    for place, (truth, *parts) in enumerate(
        zip(expected, *(each[name] for each in ranks), strict=True)
    ):
        found = torch.cat(parts) if truth.dim() else torch.stack(parts).sum()
        assert found.shape == truth.shape
        if truth.dtype == torch.bool:
            assert torch.equal(found, truth)
        elif truth.numel():
            # each part is W times its share
            found = found / 2 if mean and place <= sizes else found
            assert (found - truth).abs().max() <= tolerance * max(truth.abs().max().item(), 1.0), (
                place
            )


@pytest.mark.parametrize("negatives", ["all", "rank"])
def test_ddp_mean_equals_one_process(negatives, ranks):
    got = [each["parallel"][negatives] for each in ranks]
    model = towers()
    batches = [torch.cat(tower_rows())] if negatives == "all" else tower_rows()
    loss = torch.stack([model(x) for x in batches]).mean()
    loss.backward()
    torch.testing.assert_close(torch.stack([each["loss"] for each in got]).mean(), loss.detach())
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0
        for each in got:
            torch.testing.assert_close(each[name], parameter.grad)


def test_double_backward_equals_one_process(ranks):
    tensors, options = drawn(UNEVEN)
    for truth, *parts in zip(
        second_gradient(tensors, **options), *(each["second"] for each in ranks), strict=True
    ):
        torch.testing.assert_close(torch.cat(parts), truth)


def test_own_candidates_come_first():
    """Row r's positive is then candidate r, and the kernels need no mask but on the diagonal."""
    orders = [[0, 10, 11, 20, 21, 22], [10, 11, 20, 21, 22, 0], [20, 21, 22, 0, 10, 11]]
    for (h, group, in_place, positive), order in zip(on_ranks(gathered, 3), orders):
        assert h.tolist() == group.tolist() == order
        assert in_place
        assert positive.tolist() == [0, -100, -1]


def test_differing_settings_are_refused_on_all_ranks(ranks):
    frozen, symmetric, outside = zip(*(each["errors"] for each in ranks))
    needs = (
        "adaptive_infonce: whether h_cvr needs a gradient must be the same on all ranks, got 1 on "
        "rank 0 and 0 on "
    )
    assert set(frozen) == {needs + "rank 1"}
    assert all("symmetric must be the same on all ranks" in each for each in symmetric)
    assert outside[0] == ""
    assert "positive_index must be in [0, 8)" in outside[1]
