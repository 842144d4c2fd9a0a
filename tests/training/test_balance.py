"""Balances against the papers' equations in NumPy float64, and training with them."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from adaftr_fast.config import ModelConfig, OptimizerConfig, TrainingConfig
from adaftr_fast.errors import TrainingError
from adaftr_fast.models import build_model
from adaftr_fast.training.balance import GradientBalance, GradNorm, PCGrad
from adaftr_fast.training.checkpoint.weights import load_checkpoint, weights_of
from adaftr_fast.training.stepper import Stepper
from tests.models.inputs import THREE, TWO, batch, model
from tests.tolerances import assert_same_bits
from tests.training.conftest import before_step, interrupt, trainer

KINDS = ["uncertainty", "pcgrad", "gradnorm"]
LR = 0.01


def stepper(built, balance, **options):
    config = TrainingConfig(batch_size=40, balance=balance, **options)
    return Stepper(built, OptimizerConfig(lr=LR), config)


def each_gradient(built, data):
    """Returns the gradient of every term, dense by parameter, from a copy whose towers run one by
    one.
    """
    plain = copy.deepcopy(built)
    found = {}
    names, parameters = zip(*plain.named_parameters())
    for name, term in plain.loss(data).items():
        grads = torch.autograd.grad(term, parameters, retain_graph=True, materialize_grads=True)
        found[name] = {n: grad.to_dense().numpy() for n, grad in zip(names, grads)}
    return found


def shared_names(gradients, tasks):
    first = gradients[tasks[0]]
    return [n for n in first if sum(bool(np.any(gradients[task][n])) for task in tasks) > 1]


def flat(gradient, names):
    return np.concatenate([gradient[n].ravel() for n in names])


def algorithm_1(gradients, orders):
    """PCGrad's Algorithm 1, on flat gradients."""
    total = 0.0
    for g_i, order in zip(gradients, orders):
        g_pc = g_i.copy()
        for j in order:
            inner = g_pc @ gradients[j]
            if inner < 0:
                g_pc -= inner / (gradients[j] @ gradients[j]) * gradients[j]
        total = total + g_pc
    return total


def found_gradients(built, names):
    grads = {n: p.grad for n, p in built.named_parameters()}
    return np.concatenate([grads[n].to_dense().detach().numpy().ravel() for n in names])


def assert_weighs(built, gradients, scale):
    """Checks that the gradient is the sum of those of the terms, times ``scale``, by default 1."""
    names = list(next(iter(gradients.values())))
    total = sum(scale.get(term, 1.0) * flat(each, names) for term, each in gradients.items())
    np.testing.assert_allclose(found_gradients(built, names), total, rtol=1e-9, atol=1e-12)


def conflicting(tasks, seed=0):
    """Returns a batch whose last label contradicts the first one, so that gradients conflict."""
    data = batch(40, len(tasks), seed)
    data.labels[:, -1] = 1 - data.labels[:, 0]
    return data


OPTIONS = [("mmoe", THREE), ("cross_stitch", THREE), ("esmm", TWO), ("adaftr", TWO)]


@pytest.mark.parametrize(("name", "tasks"), OPTIONS)
def test_pcgrad_follows_algorithm_1_on_shared_parameters(name, tasks):
    built = model(name, tasks, l2=1e-3)
    data = conflicting(tasks)
    gradients = each_gradient(built, data)
    run = stepper(built, "pcgrad", seed=5)
    run.step(data, 7)
    shared = shared_names(gradients, tasks)
    assert any("embedding" in n for n in shared)
    assert not any(".towers." in f".{n}" for n in shared) or name in ("cross_stitch", "esmm")
    of_tasks = [flat(gradients[task], shared) for task in tasks]
    # both of its losses raise p_ctr
    assert min(a @ b for a in of_tasks for b in of_tasks) < 0 or name == "esmm"
    others = [gradients[term] for term in gradients.keys() - set(tasks)]
    expected = algorithm_1(of_tasks, run.balance.orders(7)) + sum(
        flat(each, shared) for each in others
    )
    np.testing.assert_allclose(found_gradients(built, shared), expected, rtol=1e-9, atol=1e-12)
    own = [n for n in gradients[tasks[0]] if n not in shared]
    plain = sum(flat(each, own) for each in gradients.values())
    np.testing.assert_allclose(found_gradients(built, own), plain, rtol=1e-9, atol=1e-12)


def test_pcgrad_draws_its_order_and_only_sums_gradients_that_agree():
    orders = [PCGrad(["a", "b", "c"], seed).orders(step) for seed in range(3) for step in range(3)]
    assert all(
        sorted(order) == sorted({0, 1, 2} - {i}) for each in orders for i, order in enumerate(each)
    )
    assert len({str(each) for each in orders}) > 2
    assert orders[4] == PCGrad(["a", "b", "c"], 1).orders(1)
    for gram in ([[2.0, 0.5], [0.5, 1.0]], [[0.0, 0.0], [0.0, 0.0]]):
        of_shared, of_own = PCGrad(TWO, 0).factors(torch.tensor(gram).double(), torch.ones(2), 1)
        assert of_shared.tolist() == of_own.tolist() == [1.0, 1.0]


def test_tables_that_tasks_look_up_by_themselves_are_aligned():
    """Two look-ups of different rows of one table, in gradients of different layouts."""
    table = torch.nn.Embedding(6, 2, sparse=True, dtype=torch.float64)
    torch.manual_seed(0)
    upstream = torch.randn(2, 2, 2).double()
    losses = [(table(torch.tensor(ids)) * up).sum() for ids, up in zip(([4, 1], [1, 1]), upstream)]
    terms = dict(zip("ab", losses)) | {"other": (table.weight[2] * 3).sum()}
    exact = [
        torch.autograd.grad(loss, table.weight, retain_graph=True)[0].to_dense() for loss in losses
    ]

    class Fixed(GradientBalance):
        def factors(self, products, losses, step):
            self.products = products
            return torch.tensor([2.0, -1.0]).double(), torch.ones(2).double()

    balance = Fixed("ab")
    balance.backward(terms, [table.weight], 1, lambda values: values)
    dense = torch.stack([each.flatten() for each in exact])
    torch.testing.assert_close(balance.products, dense @ dense.T)
    expected = 2 * exact[0] - exact[1]
    expected[2] += 3.0
    torch.testing.assert_close(table.weight.grad.to_dense(), expected)


@pytest.mark.parametrize("name", ["adaftr", "single_dnn"])
def test_uncertainty_follows_equation_10(name):
    built = model(name, l2=1e-3)
    data = batch()
    gradients = each_gradient(built, data)
    losses = {n: x.item() for n, x in built.loss(data).items()}
    run = stepper(built, "uncertainty")
    s = np.array([0.3, -0.7])
    run.balance.log_variances.data.copy_(torch.from_numpy(s))
    terms = run.step(data, 1)
    assert {n: x.item() for n, x in terms.items() if "/" not in n} == losses
    np.testing.assert_allclose(
        [terms[f"weight/{task}"].item() for task in TWO], np.exp(-s), rtol=1e-12
    )
    expected = [-np.exp(-each) * losses[task] + 0.5 for each, task in zip(s, TWO)]
    np.testing.assert_allclose(run.balance.log_variances.grad.numpy(), expected, rtol=1e-9)
    assert_weighs(built, gradients, dict(zip(TWO, np.exp(-s))))
    # the optimizer moved it
    assert not torch.equal(run.balance.log_variances.detach(), torch.from_numpy(s))


def test_gradnorm_follows_equation_2():
    tasks = THREE
    alpha = 0.8
    built = model("mmoe", tasks, l2=1e-3)
    run = stepper(built, "gradnorm", gradnorm_alpha=alpha)
    w = np.ones(len(tasks))
    first = None
    for number in range(1, 4):
        data = batch(tasks=len(tasks), seed=number)
        plain = copy.deepcopy(built)
        del plain.balance
        gradients = each_gradient(plain, data)
        losses = np.array([plain.loss(data)[task].item() for task in tasks])
        first = losses if first is None else first
        run.step(data, number)
        shared = shared_names(gradients, tasks)
        norms = np.array([np.linalg.norm(flat(gradients[task], shared)) for task in tasks])
        rates = losses / first
        target = (w * norms).mean() * (rates / rates.mean()) ** alpha
        expected = np.sign(w * norms - target) * norms  # the gradient of Eq. 2
        np.testing.assert_allclose(run.balance.weights.grad.numpy(), expected, rtol=1e-7)
        assert_weighs(built, gradients, dict(zip(tasks, w)))
        w = run.balance.weights.detach().numpy().copy()
        np.testing.assert_allclose(w.sum(), len(tasks), rtol=1e-12)
    assert len(set(w.round(6))) > 1


def gradnorm_step(balance, losses, norms):
    """Gives the balance one step and returns the gradient of its weights."""
    products = torch.diag(torch.tensor(norms, dtype=torch.float64) ** 2)
    balance.factors(products, torch.tensor(losses, dtype=torch.float64), 1)
    return balance.weights.grad.tolist()


def test_gradnorm_of_losses_and_weights_of_0():
    """A task without a loss is left out until it has one."""
    balance = GradNorm(["a", "b", "c"], 1.0, torch.float64)
    # mean(G) = 2, rates 1
    assert gradnorm_step(balance, [2.0, 0.0, 4.0], [1.0, 0.0, 3.0]) == [-1.0, 0.0, 3.0]
    assert balance.initial[[0, 2]].tolist() == [2.0, 4.0]
    # rates 0.6, 1.2, 1.2
    assert gradnorm_step(balance, [1.0, 5.0, 4.0], [1.0, 5.0, 3.0]) == [-1.0, 5.0, -3.0]
    assert balance.initial.tolist() == [2.0, 5.0, 4.0]
    assert gradnorm_step(balance, [0.0] * 3, [0.0] * 3) == [0.0] * 3
    fresh = GradNorm(["a", "b"], 1.5, torch.float64)
    assert gradnorm_step(fresh, [0.0, 0.0], [0.0, 0.0]) == [0.0, 0.0]
    for negative, expected in (
        ([-1.0, 1.0, 3.0], [0.0, 0.75, 2.25]),
        ([-1.0, -2.0, -2.0], [1.0] * 3),
    ):
        with torch.no_grad():
            balance.weights.copy_(torch.tensor(negative))
        balance.after_update()
        assert balance.weights.tolist() == expected


def test_accumulated_parts_give_the_uncertainty_of_the_whole_batch():
    found = []
    for parts in (1, 4):
        built = model("mmoe")
        run = stepper(built, "uncertainty", accumulate=parts)
        run.step(batch(), 1)
        found.append(
            (
                run.balance.log_variances.grad,
                found_gradients(built, ["embedding.weight", "gates.weight"]),
            )
        )
    torch.testing.assert_close(found[0][0], found[1][0])
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("balance", KINDS)
def test_clipping_leaves_learned_weights_alone(balance):
    learned = []
    for clip_norm in (0.0, 1e-3):
        built = model("mmoe", l2=0.0)
        run = Stepper(
            built,
            OptimizerConfig(clip_norm=clip_norm),
            TrainingConfig(batch_size=40, balance=balance),
        )
        run.step(batch(), 1)
        learned.append([p.grad for p in run.balance.parameters()])
    norm = np.linalg.norm(
        found_gradients(built, [n for n, _ in built.named_parameters() if "balance" not in n])
    )
    assert norm == pytest.approx(1e-3, rel=1e-3)
    assert_same_bits(*learned)


def model_of_runs():
    return build_model(
        ModelConfig(name="mmoe", expert_hidden=[8], tower_hidden=[8, 4]), [50, 20, 3], TWO
    )


@pytest.mark.parametrize("balance", KINDS)
def test_an_interrupted_run_ends_with_the_same_bits(splits, tmp_path, balance):
    def run_in(name):
        torch.manual_seed(0)
        return trainer(
            model_of_runs(), splits, tmp_path / name, batch_size=200, max_epochs=2, balance=balance
        )

    whole = run_in("whole")
    result = whole.fit()
    stopped = run_in("run")
    before_step(stopped, 8, interrupt)
    assert stopped.fit().interrupted
    again = run_in("run")
    assert again.resume()
    found = again.fit()
    assert [each["train"] for each in found.epochs] == [each["train"] for each in result.epochs]
    assert_same_bits(again.model.state_dict(), whole.model.state_dict())
    shown = {n for n in found.epochs[0]["train"] if "/" in n}
    assert shown == {f"weight/{task}" for task in TWO if balance != "pcgrad"}
    saved, _ = load_checkpoint(tmp_path / "run/best")
    assert saved.keys() == weights_of(model_of_runs()).keys()


@pytest.mark.parametrize("balance", KINDS)
def test_losses_that_cannot_be_balanced_are_refused(balance):
    built = model("mmoe")
    run = stepper(built, balance)
    run.loss = lambda batch: {"click": built.loss(batch)["click"]}
    with pytest.raises(
        TrainingError, match="expected a term of the loss for the task 'conversion', got click"
    ):
        run.step(batch(), 1)
    run.loss = built.loss
    with torch.no_grad():
        built.towers[1].logit.bias.fill_(float("nan"))
    before = [p.clone() for p in built.parameters()]
    with pytest.raises(TrainingError, match="the loss is not finite"):
        run.step(batch(), 1)
    assert all(torch.equal(a, b) or a.isnan().all() for a, b in zip(before, built.parameters()))


def test_options_that_need_one_backward_are_refused():
    for name, value in (("accumulate", 2), ("compile", True), ("tables", "torchrec")):
        assert TrainingConfig(balance="uncertainty", **{name: value})
        message = rf"expected none or uncertainty with training\.{name} = \w+, got 'pcgrad'"
        with pytest.raises(ValueError, match=rf"training\.balance: {message}"):
            TrainingConfig(balance="pcgrad", **{name: value})


def test_a_name_of_the_model_is_not_taken():
    built = model("mmoe")
    built.balance = torch.nn.Linear(1, 1)
    with pytest.raises(TrainingError, match="MMoE has an attribute 'balance' of its own"):
        stepper(built, "pcgrad")
    assert stepper(built, "none")
    del built.balance
    assert type(stepper(built, "pcgrad").balance) is not type(stepper(built, "gradnorm").balance)


@pytest.mark.parametrize(("name", "tasks"), [("ple", THREE), ("esmm", THREE), ("adaftr", TWO)])
def test_training_kernels_in_float32_give_the_gradients_of_float64(name, tasks):
    """The kernels run several backwards over one forward, and return zeros for the towers of other
    tasks.
    """
    found = []
    for dtype in (torch.float64, torch.float32):
        built = model(name, tasks, l2=1e-3).to(dtype)
        data = conflicting(tasks)
        stepper(built, "pcgrad").step(replace(data, labels=data.labels.to(dtype)), 3)
        found.append({n: p.grad.to_dense().double() for n, p in built.named_parameters()})
    for n, exact in found[0].items():
        torch.testing.assert_close(
            found[1][n], exact, rtol=1e-4, atol=1e-5 * exact.abs().max().item(), msg=n
        )
