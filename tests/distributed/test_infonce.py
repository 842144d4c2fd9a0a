"""Negatives from all ranks: W ranks give the loss and gradients of one process with all rows."""

import importlib.util
import os
from dataclasses import dataclass, field

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from adaftr_fast import AdaptiveInfoNCE, adaptive_infonce, sigmoid_contrast
from adaftr_fast.distributed import gather
from adaftr_fast.ops.infonce.candidates import Candidates, CrossRankBatch
from tests.distributed.ranks import on_ranks

D = 6


@dataclass(frozen=True)
class Case:
    rows: tuple[int, ...]  # B of each rank
    extra: tuple[int, ...] = ()  # candidates of each rank that are no row's positive
    in_place: bool = False  # row r's positive is candidate r, in spite of extra
    options: dict = field(default_factory=dict)
    grouped: bool = False
    weighted: bool = False
    ignored: bool = False
    biased: bool = False
    scalar_tau: bool = False
    labeled: bool = False
    dtype: torch.dtype = torch.float64


CASES = {
    "even": Case((5, 5)),
    "float32": Case((40, 40), dtype=torch.float32),
    "bfloat16": Case((40, 17), dtype=torch.bfloat16),
    "uneven": Case((7, 2)),
    "an empty rank": Case((0, 4)),
    "no rows at all": Case((0, 0)),
    "extra columns": Case((4, 3), extra=(2, 5)),
    "groups, weights, ignored rows": Case((6, 4), extra=(1, 2), grouped=True, weighted=True, ignored=True),
    "symmetric": Case((5, 3), options={"symmetric": True}, grouped=True, weighted=True),
    "symmetric, an empty rank": Case((5, 0), extra=(0, 3), options={"symmetric": True}, ignored=True),
    "one tau": Case((5, 3), scalar_tau=True),
    "sum": Case((5, 3), options={"reduction": "sum"}, weighted=True),
    "none": Case((5, 3), options={"reduction": "none"}, weighted=True, ignored=True),
    "reference": Case((5, 3), options={"backend": "reference"}),
    "biased": Case((5, 4), extra=(2, 1), biased=True, grouped=True, weighted=True),
    "extra columns, each row's positive in its place": Case((4, 3), extra=(2, 5), in_place=True),
    "ignore above": Case((7, 6), options={"ignore_above": 0.5}, grouped=True),
    "blocks, one of all rows of a rank": Case((4, 11), options={"block": 4}, weighted=True),
    "blocks, an empty rank": Case((0, 6), options={"block": 4, "symmetric": True}),
    "margin": Case((7, 6), options={"margin": 0.5, "symmetric": True}),
    "label smoothing": Case((5, 4), extra=(2, 1), options={"label_smoothing": 0.2}, grouped=True, ignored=True),
    "positive groups": Case((6, 5), extra=(1, 3), options={"label_smoothing": 0.1}, labeled=True, weighted=True),
    "symmetric positive groups": Case((6, 5), options={"symmetric": True}, labeled=True),
    "positive groups, an empty rank": Case((0, 9), labeled=True),
}

if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None:
    CASES |= {
        "triton": Case((40, 33), extra=(0, 2), in_place=True, options={"backend": "triton"}),
        "triton, symmetric": Case((33, 7), options={"backend": "triton", "symmetric": True}, weighted=True),
    }

SIGMOID_CASES = ("extra columns", "groups, weights, ignored rows", "symmetric, an empty rank")


def inputs(case: Case) -> list[dict]:
    """Returns the arguments of every rank."""
    random = torch.Generator().manual_seed(1)
    extra = case.extra or (0,) * len(case.rows)

    def draw(*size):
        return torch.randn(*size, generator=random, dtype=torch.float64).to(case.dtype)

    ranks = []
    tau = draw(1)[0].float().abs() + 0.1
    for rows, more in zip(case.rows, extra):
        each = {"a": draw(rows, D), "b": draw(rows + more, D), "tau": tau}
        if not case.scalar_tau:
            each["tau"] = draw(rows).abs().float() + 0.1
            if case.options.get("symmetric"):
                each["tau_b"] = draw(rows + more).abs().float() + 0.1
        if case.labeled:  # every label is on some rank
            each["label"] = torch.arange(rows) % 3
            each["column_label"] = torch.arange(rows + more).flip(0) % 3
            each["label"][2::6] = -100
        elif case.ignored or (case.extra and not case.in_place):
            each["positive"] = torch.randperm(rows + more, generator=random)[:rows]
        if case.ignored:
            each["positive"][::3] = -100
        if case.grouped:
            each["row_group"] = torch.randint(3, (rows,), generator=random)
            each["column_group"] = torch.randint(3, (rows + more,), generator=random)
        if case.weighted:
            each["weight"] = draw(rows).abs()
        if case.biased:
            each["column_bias"] = draw(rows + more)
        ranks.append(each)
    return ranks


def concatenated(ranks: list[dict]) -> dict:
    """Returns the arguments of one process with all rows."""
    whole = {name: torch.cat([each[name] for each in ranks]) for name in ranks[0] if ranks[0][name].dim() > 0}
    firsts = torch.tensor([0] + [len(each["b"]) for each in ranks]).cumsum(0)
    own = [each.get("positive", torch.arange(len(each["a"]))) for each in ranks]
    whole["positive"] = torch.cat([torch.where(y == -100, y, y + first) for y, first in zip(own, firsts)])
    return whole | {name: value for name, value in ranks[0].items() if value.dim() == 0}


def run(given: dict, case: Case, group=None) -> dict[str, torch.Tensor]:
    """Returns the loss, two statistics, and the gradients of the sum of the loss's entries."""
    given = {name: x.clone().requires_grad_(x.is_floating_point()) for name, x in given.items()}
    tau = (given["tau"], given["tau_b"]) if "tau_b" in given else given["tau"]
    names = {"positive": "positive_index", "weight": "row_weight"}
    labels = (given.pop("label"), given.pop("column_label")) if "label" in given else None
    if labels is not None or "block" in case.options:
        given.pop("positive", None)
    options = {names.get(n, n): given[n] for n in given if n not in ("a", "b", "tau", "tau_b")}
    options |= case.options | {"positive_group": labels, "process_group": group}
    if labels is not None:  # which has no statistics
        loss, stats = adaptive_infonce(given["a"], given["b"], tau, **options), None
    else:
        loss, stats = adaptive_infonce(given["a"], given["b"], tau, **options, return_stats=True)
    loss.sum().backward()
    gradients = {name: x.grad for name, x in given.items() if x.grad is not None}
    if stats is None:
        return {"loss": loss.detach()} | gradients
    return {"loss": loss.detach(), "lse": stats.lse, "entropy": stats.entropy} | gradients


def cases_on_a_rank(rank: int, size: int) -> dict[str, dict[str, torch.Tensor]]:
    chosen = {name: case for name, case in CASES.items() if len(case.rows) == size}
    return {name: run(inputs(case)[rank], case, dist.group.WORLD) for name, case in chosen.items()}


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
    parallel = DistributedDataParallel(model)  # keep a reference: DDP reduces nothing once it is garbage-collected
    loss = parallel(tower_rows()[rank])
    loss.backward()
    return {"loss": loss.detach()} | {name: p.grad for name, p in model.named_parameters()}


def count_collectives(rank: int, frozen: bool) -> int:
    """Returns the number of reduce-scatters in a backward."""
    calls, original = [], gather._reduce_scatter
    gather._reduce_scatter = lambda *arguments, **options: calls.append(original(*arguments, **options))
    a, b = torch.randn(4, D).requires_grad_(), torch.randn(4, D).requires_grad_(not frozen)
    adaptive_infonce(a, b, 0.5, process_group=dist.group.WORLD).backward()
    gather._reduce_scatter = original
    return len(calls)


def second_gradient(rank: int) -> dict[str, torch.Tensor]:
    case = CASES["uneven"]
    given = {name: x.clone().double().requires_grad_() for name, x in inputs(case)[rank].items()}
    loss = adaptive_infonce(given["a"], given["b"], given["tau"], process_group=dist.group.WORLD)
    first = torch.autograd.grad(loss, list(given.values()), create_graph=True)
    sum(g.square().sum() for g in first).backward()
    return {name: x.grad for name, x in given.items()}


def sigmoid(given: dict, reduction: str, group=None) -> dict[str, torch.Tensor]:
    """Returns the sigmoid loss and its gradients."""
    leaves = {name: given[name].clone().requires_grad_() for name in ("a", "b")}
    terms = {name: torch.tensor(x, requires_grad=True) for name, x in (("scale", 2.0), ("bias", -1.0))}
    loss = sigmoid_contrast(
        *leaves.values(), *terms.values(), positive_index=given["positive"], reduction=reduction, process_group=group
    )
    loss.backward()
    return {"loss": loss.detach()} | {name: x.grad for name, x in (leaves | terms).items()}


def gathered(rank: int) -> list:
    """Returns the candidates 10 r, 10 r + 1, ... of ranks r as this rank gathers them, their groups and positives."""
    own = torch.arange(3.0)[: rank + 1, None] + 10 * rank
    batch = CrossRankBatch("op", dist.group.WORLD, own, own, {})
    found = [
        batch.gather(Candidates(own, y, own[:, 0].long()), batch.columns) for y in (None, torch.tensor([0, -100, 9]))
    ]
    return [found[0].h[:, 0], found[0].group, found[0].positive is None, found[1].positive]


def error_message(rank: int, options: dict) -> str:
    """Returns the error on this rank where the ranks' settings differ."""
    a = torch.randn(4, D, requires_grad=True)
    b = torch.randn(4, D, requires_grad=options.get("frozen_on") != rank)
    own = {"positive_index": torch.tensor([0, 1, 2, 4])} if options.get("positive_on") == rank else {}
    own = own or ({"positive_index": torch.arange(4)} if "positive_on" in options else {})
    try:
        adaptive_infonce(
            a, b, 0.5, **own, symmetric=options.get("symmetric_on") == rank, process_group=dist.group.WORLD
        )
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


def on_a_rank(rank: int) -> dict:
    """Computes everything that the tests need of several ranks, to start the processes once."""
    world = dist.group.WORLD
    results = {name: run(inputs(case)[rank], case, world) for name, case in CASES.items()}
    results["parallel"] = {"all": parallel_gradients(rank, world), "rank": parallel_gradients(rank, None)}
    results["collectives"] = [count_collectives(rank, frozen=False), count_collectives(rank, frozen=True)]
    results["second"] = second_gradient(rank)
    results["sigmoid"] = {
        (name, reduction): sigmoid(inputs(CASES[name])[rank], reduction, world)
        for name in SIGMOID_CASES
        for reduction in ("mean", "sum")
    }
    with torch.no_grad():
        results["no_grad"] = towers(world)(tower_rows()[rank])
    differing = ({"frozen_on": 1}, {"symmetric_on": 1}, {"positive_on": 1})
    results["errors"] = [error_message(rank, options) for options in differing]
    return results


@pytest.fixture(scope="module")
def ranks() -> list[dict]:
    return on_ranks(on_a_rank, 2)


def combined(parts: list[torch.Tensor], truth: torch.Tensor, scaled: bool) -> torch.Tensor:
    """Combines the ranks' parts; ``scaled``: each is W times its share."""
    found = torch.cat(parts) if truth.dim() else torch.stack(parts).sum()
    return found / len(parts) if scaled else found


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients_equal_one_process(name, ranks):
    case = CASES[name]
    given, got = inputs(case), [results[name] for results in ranks]
    expected = run(concatenated(given), case)
    for key, truth in expected.items():
        mean = "reduction" not in case.options and key not in ("lse", "entropy")
        found = combined([each[key] for each in got], truth, mean)
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 8e-3}[case.dtype]
        scale = max(truth.abs().max().item(), 1.0) if truth.numel() else 1.0
        assert found.shape == truth.shape
        assert truth.numel() == 0 or (found - truth).abs().max() <= tolerance * scale, key
    assert all(set(each) == set(expected) for each in got)


@pytest.mark.parametrize("name", SIGMOID_CASES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_sigmoid_loss_and_gradients_equal_one_process(name, reduction, ranks):
    got = [each["sigmoid"][name, reduction] for each in ranks]
    for key, truth in sigmoid(concatenated(inputs(CASES[name])), reduction).items():
        torch.testing.assert_close(combined([each[key] for each in got], truth, reduction == "mean"), truth)


@pytest.mark.parametrize("negatives", ["all", "rank"])
def test_ddp_mean_equals_one_process(negatives, ranks):
    got, model = [each["parallel"][negatives] for each in ranks], towers()
    batches = [torch.cat(tower_rows())] if negatives == "all" else tower_rows()
    loss = torch.stack([model(x) for x in batches]).mean()
    loss.backward()
    torch.testing.assert_close(torch.stack([each["loss"] for each in got]).mean(), loss.detach())
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().max() > 0
        for each in got:
            torch.testing.assert_close(each[name], parameter.grad)


def test_no_collective_in_backward_for_frozen_candidates(ranks):
    assert [each["collectives"] for each in ranks] == [[1, 0]] * 2


def test_loss_without_gradients(ranks):
    for each in ranks:
        assert torch.equal(each["no_grad"], each["parallel"]["all"]["loss"])


def test_double_backward_equals_one_process(ranks):
    case = CASES["uneven"]
    whole = {name: x.double().requires_grad_() for name, x in concatenated(inputs(case)).items() if name != "positive"}
    loss = 2 * adaptive_infonce(whole["a"], whole["b"], whole["tau"])  # the sum of the ranks' losses
    first = torch.autograd.grad(loss, list(whole.values()), create_graph=True)
    sum(g.square().sum() for g in first).backward()
    for name, x in whole.items():
        torch.testing.assert_close(torch.cat([each["second"][name] for each in ranks]), x.grad)


def test_own_candidates_come_first():
    """Row r's positive is then candidate r, and the kernels need no mask but on the diagonal."""
    orders = [[0, 10, 11, 20, 21, 22], [10, 11, 20, 21, 22, 0], [20, 21, 22, 0, 10, 11]]
    for (h, group, in_place, positive), order in zip(on_ranks(gathered, 3), orders):
        assert h.tolist() == group.tolist() == order
        assert in_place
        assert positive.tolist() == [0, -100, -1]


def test_differing_settings_are_refused_on_all_ranks(ranks):
    frozen, symmetric, outside = zip(*(each["errors"] for each in ranks))
    needs = "adaptive_infonce: whether h_cvr needs a gradient must be the same on all ranks, got 1 on rank 0 and 0 on "
    assert set(frozen) == {needs + "rank 1"}
    assert all("symmetric must be the same on all ranks" in each for each in symmetric)
    assert outside[0] == ""
    assert "positive_index must be in [0, 8)" in outside[1]
