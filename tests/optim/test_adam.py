"""The optimizers of tables against PyTorch's, and deferred Adam and AdamW in particular."""

import warnings

import pytest
import torch

from adaftr_fast import FusedEmbedding, optim
from adaftr_fast.nn.deferred import missed_steps, stored
from adaftr_fast.optim.adam import DeferredAdam
from tests.ops.marks import on_threads
from tests.tolerances import assert_same_bits

SIZES = [200, 3, 50]
TWINS = {
    "Adam": (optim.Adam, torch.optim.Adam, {}),
    "Adam with L2": (optim.Adam, torch.optim.Adam, {"weight_decay": 1e-2}),
    "AdamW": (optim.AdamW, torch.optim.AdamW, {"weight_decay": 1e-2}),
}
SPARSE = {
    "SGD": (optim.SGD, torch.optim.SGD, {}),
    "Adagrad": (optim.Adagrad, torch.optim.Adagrad, {}),
    "LazyAdam": (optim.LazyAdam, torch.optim.SparseAdam, {"eps": 1e-8}),
}


def train(two, name, steps, *, lr=1e-2, scale=1.0, batch=4, **options):
    """Takes ``steps`` steps of both optimizers, with a learning rate that falls and rises."""
    ours, theirs, own = (TWINS | SPARSE)[name]
    options = {**own, "lr": lr, **options}
    left = ours(two.ours, **options)
    right = theirs([two.theirs.weight], **options)
    for step in range(steps):
        for optimizer in (left, right):
            optimizer.param_groups[0]["lr"] = lr * (0.3 if step % 100 >= 50 else 1.0)
            optimizer.zero_grad()
        two.backward(two.ids(batch), scale)
        left.step()
        right.step()
    return left, right


# With gradients of 1e-6 and 1e-8, sqrt(v) is near and below ε, where the series must stay accurate.
@pytest.mark.parametrize(
    ("dtype", "tolerance", "scale"),
    [(torch.float32, 1e-6, 1.0), (torch.float32, 1e-6, 1e-8), (torch.float64, 1e-12, 1e-6)],
)
@pytest.mark.parametrize("name", [*TWINS, *SPARSE])
def test_300_steps_equal_torch(pair, name, dtype, tolerance, scale):
    torch.manual_seed(0)
    two = pair(SIZES, 8, dtype, sparse=name in SPARSE)
    train(two, name, 300, scale=scale)
    if name == "Adam with L2" and scale < 1:
        tolerance *= 3  # the table itself decays towards 0, and the distance is relative to it
    assert two.distance() <= tolerance


def outside_of_the_schedule(state):
    """Yields the state of an Adam after three steps with one wrong number, by what is wrong."""
    for clock in (
        {0: -1e15},
        {0: 2.0, 7: 3.0},
        {7: -1.0},
        {0: 63.5, 7: -0.5},
        {0: 64.0},
        {0: 2.0**31, 7: 2.0**31 - 3},
        {0: float("nan")},
        {7: float("inf")},
    ):
        wrong = [each.clone() for each in state]
        for place, value in clock.items():
            wrong[5][place] = value
        yield "the clock must be within the 64 steps of the schedule", wrong
    for horizon in (-1.0, 4096.0, float("nan"), float("inf"), 1e30):
        wrong = [each.clone() for each in state]
        wrong[5][6] = horizon
        yield "the horizon must be a whole number from 0 to 4095", wrong
    for step in (-1, -(2**31)):
        wrong = [each.clone() for each in state]
        wrong[1][:] = step
        yield "state tensor 1 must hold steps from 0 on", wrong


@pytest.mark.parametrize("name", TWINS)
def test_a_state_outside_of_its_schedule_raises(pair, name):
    two = pair([5, 3], 4, torch.float32, sparse=False)
    optimizer, _ = train(two, name, 3)
    weight = stored(two.ours.weight)
    state = optimizer.state[two.ours.weight].own.tensors
    ids = torch.zeros(1, 2, dtype=torch.int64)
    rows = torch.tensor([0, 5])
    starts = two.ours.offsets
    ops = torch.ops.adaftr_fast
    calls = {
        "fused_embedding": lambda s: ops.fused_embedding(weight, ids, starts, s),
        "embedding_bags": lambda s: ops.embedding_bags(
            weight, ids[0], torch.arange(3), None, starts, False, s
        ),
        "embedding_adam_": lambda s: ops.embedding_adam_(
            weight.clone(), s, rows, weight[rows], 0.1
        ),
        "embedding_adam_flush_": lambda s: ops.embedding_adam_flush_(weight.clone(), s),
    }
    for call, run in calls.items():
        run([each.clone() for each in state])
        for message, wrong in outside_of_the_schedule(state):
            with pytest.raises(RuntimeError, match=f"{call}: {message}"):
                run(wrong)


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_counters_out_of_range_are_not_restored(pair, name):
    two = pair([5, 3], 4, torch.float32, sparse=False)
    optimizer, _ = train(two, name, 3)
    saved = {key: value.clone() for key, value in optimizer.snapshot().items()}
    before = {key: value.clone() for key, value in optimizer.state_dict()["state"][0].items()}
    wrong = [("0.counts", 0, -5), ("0.counts", 1, 4), ("0.current", 2, 4), ("0.current", 2, -1)]
    wrong += [("0.clock", place, -1e15) for place in (0, 6, 7)]
    for key, place, value in wrong:
        changed = saved | {key: saved[key].clone()}
        changed[key][place] = value
        with pytest.raises(ValueError, match=rf"{name}.restore: saved: .* must"):
            optimizer.restore(changed)
    for key in ("0.series", "0.powers", "0.clock", "0.current"):
        with pytest.raises(ValueError, match=rf"{key[2:]} must be \[.*, got \["):
            optimizer.restore(saved | {key: saved[key][:1]})
        with pytest.raises(ValueError, match=rf"{key[2:]} must be \[.*, got None"):
            optimizer.restore({each: value for each, value in saved.items() if each != key})
    optimizer.restore(saved)
    assert_same_bits(optimizer.state_dict()["state"][0], before)


@pytest.mark.parametrize("name", ["Adam", "LazyAdam"])
def test_a_step_that_is_no_count_is_not_loaded(name):
    emb = FusedEmbedding([3], 2)
    optimizer = getattr(optim, name)(emb)
    emb(torch.zeros(1, 1, dtype=torch.int64)).sum().backward()
    optimizer.step()  # the state begins here
    saved = optimizer.state_dict()
    for step in (-1.0, 1e15, float("nan"), 0.5):
        saved["state"][0]["step"] = torch.tensor(step)
        with pytest.raises(ValueError, match="table 0: step must be a whole number from 0 to"):
            optimizer.load_state_dict(saved)


def test_new_rows_take_the_steps_since_growth_alone():
    emb = FusedEmbedding([3], 2)
    optimizer = optim.AdamW(emb, lr=0.1, weight_decay=0.5)
    first = torch.zeros(1, 1, dtype=torch.int64)
    for step in range(5):
        if step == 3:
            emb.grow(0, 5)
            fresh = emb.field_weight(0)[3:].clone()
        optimizer.zero_grad()
        emb(first).sum().backward()
        optimizer.step()
    torch.testing.assert_close(emb.field_weight(0)[3:], fresh * (1 - 0.1 * 0.5) ** 2)


def step_one_row(two, row, left, right):
    """Takes a step in which only ``row`` has a gradient."""
    grad = torch.full((1, 8), 0.1, dtype=two.ours.weight.dtype)
    two.ours.weight.grad = torch.sparse_coo_tensor(
        [[row]], grad, two.ours.weight.shape, is_coalesced=True, check_invariants=True
    )
    two.theirs.weight.grad.zero_()[row] = grad
    left.step()
    right.step()


def check_rows_that_skip(pair, name, steps):
    """After step 300, skipped steps are applied in closed form. Tolerance rule: the error is at
    most that of PyTorch's float32, which rounds in each of those steps.
    """
    tables = {}
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        two = pair([300], 8, dtype, sparse=False)
        with torch.no_grad():
            start = torch.randn(300, 8, generator=torch.Generator().manual_seed(1)) * 0.01
            two.ours.weight.copy_(start)
            two.theirs.weight.copy_(start)
        left, right = train(two, name, 20, batch=30)
        for step in range(steps):
            step_one_row(two, step % 2, left, right)
        two.ours.flush()
        tables[dtype] = two.ours.weight.detach().double(), two.theirs.weight.detach().double()
    truth = tables[torch.float64][1]
    ours, theirs = (((t - truth).norm() / truth.norm()).item() for t in tables[torch.float32])
    assert ((tables[torch.float64][0] - truth).norm() / truth.norm()).item() <= 1e-12
    assert ours <= theirs + 1e-6


@pytest.mark.parametrize("name", TWINS)
def test_rows_that_skip_thousands_of_steps(pair, name):
    check_rows_that_skip(pair, name, 2000)


def test_evaluation_and_state_dict_see_current_rows(pair):
    torch.manual_seed(0)
    two = pair(SIZES, 8, torch.float32, sparse=False)
    left, right = train(two, "Adam", 40)
    every = torch.arange(200)[:, None].expand(200, 3).minimum(torch.tensor(SIZES) - 1)
    expected = two.theirs(every + two.ours.offsets[:-1]).flatten(1)
    assert missed_steps(two.ours.weight)
    # reads current values, writes none
    torch.testing.assert_close(two.ours(every), expected, rtol=1e-5, atol=1e-7)
    for look in (lambda: two.ours.state_dict()["weight"], lambda: two.ours.eval().weight):
        assert missed_steps(two.ours.weight)
        expected = two.theirs.weight.detach()
        torch.testing.assert_close(look().detach(), expected, rtol=1e-5, atol=1e-7)
        two.backward(two.ids(4))
        left.step()
        right.step()


def test_options_may_change_during_training(pair):
    torch.manual_seed(0)
    two = pair(SIZES, 8, torch.float64, sparse=False)
    left, right = train(two, "AdamW", 20)
    for options in ({"betas": (0.8, 0.99)}, {"weight_decay": 0.1}, {"eps": 1e-4}):
        for optimizer in (left, right):
            optimizer.param_groups[0].update(options)
        for _ in range(5):
            left.zero_grad()
            right.zero_grad()
            two.backward(two.ids(4))
            left.step()
            right.step()
    assert two.distance() <= 1e-12


@pytest.mark.parametrize("cycles", [False, True])
def test_betas_that_cycle_are_warned_of_once(monkeypatch, cycles):
    optim.adam._warn_of_changes.cache_clear()
    passes = []
    apply = DeferredAdam.apply
    monkeypatch.setattr(
        DeferredAdam, "apply", lambda self, weight: (passes.append(1), apply(self, weight))
    )
    emb = FusedEmbedding(SIZES, 8)
    optimizer = optim.AdamW(emb)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=0.1, total_steps=8, cycle_momentum=cycles
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(8):
            if step == 4:
                optimizer.param_groups[0]["eps"] = 1e-6  # one change is no cycle
            optimizer.zero_grad()
            emb(torch.full((1, 3), step % 2)).sum().backward()
            optimizer.step()
            schedule.step()
    assert len(passes) == (7 if cycles else 1)
    found = [str(each.message) for each in caught]
    assert len(found) == cycles
    assert all("cycle_momentum=False" in each for each in found)
    assert all(each.filename == __file__ for each in caught)


def test_bitwise_equal_for_any_thread_count():
    tables = []
    for count in (1, 2):
        torch.manual_seed(0)
        emb = FusedEmbedding([3000, 5000], 8)
        optimizer = optim.Adam(emb, lr=0.01)
        with on_threads(count):
            for _ in range(8):
                optimizer.zero_grad()
                emb(torch.randint(0, 3000, (5000, 2))).sin().sum().backward()
                optimizer.step()
            emb.flush()
        tables.append(emb.weight.detach())
    assert torch.equal(*tables)


def test_deferred_lookup_compiles_to_one_graph():
    emb = FusedEmbedding(SIZES, 8, sparse=False)
    optimizer = optim.Adam(emb, lr=0.1)
    compiled = torch.compile(emb, fullgraph=True, backend="aot_eager")
    ids = torch.zeros(4, 3, dtype=torch.int64)
    for step in range(4):
        optimizer.zero_grad()
        compiled(ids + step % 2).square().sum().backward()
        optimizer.step()
    torch.testing.assert_close(compiled(ids), emb(ids))


def test_new_optimizer_replaces_the_old_one():
    emb = FusedEmbedding(SIZES, 8)
    optimizer = optim.Adam(emb, lr=0.1)
    for step in range(3):
        emb.weight.grad = None
        emb(torch.full((1, 3), step % 2)).sum().backward()
        optimizer.step()
    current = emb(torch.zeros(1, 3, dtype=torch.int64))
    optim.SGD(emb)
    assert missed_steps(emb.weight) is None
    torch.testing.assert_close(emb(torch.zeros(1, 3, dtype=torch.int64)), current)


@pytest.mark.parametrize("padding_idx", [None, 0])
def test_missed_steps_do_not_move_reset_rows(padding_idx):
    emb = FusedEmbedding([6], 3, padding_idx=padding_idx)
    optimizer = optim.Adam(emb, lr=0.1)
    for row in (1, 2):
        optimizer.zero_grad()
        emb(torch.tensor([[row]])).sum().backward()
        optimizer.step()
    torch.manual_seed(0)
    emb.reset_parameters()
    torch.manual_seed(0)
    assert torch.equal(emb.field_weight(0), FusedEmbedding([6], 3, padding_idx=padding_idx).weight)


def test_a_parameter_of_another_class_is_refused():
    class Marked(torch.nn.Parameter):
        pass

    emb = FusedEmbedding(SIZES, 8)
    optim.Adam(emb)
    other = FusedEmbedding(SIZES, 8)
    other.weight = Marked(other.weight.detach())
    with pytest.raises(
        TypeError, match=r"AdamW: a table must be a plain nn.Parameter, .* got a Marked"
    ):
        optim.AdamW([emb, other])
    optim.LazyAdam(other)
