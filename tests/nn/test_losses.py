"""The published losses, against their formulas in float64 with all similarities stored."""

import math
from functools import partial

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import adaftr_fast as af
from tests.distributed.ranks import on_ranks
from tests.tolerances import assert_as_accurate

losses = af.nn.losses


def nt_xent(z_0, z_1, tau=0.5):
    z = F.normalize(torch.cat((z_0, z_1)), dim=1)
    logits = (z @ z.T / tau).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(z)).roll(len(z_0)))


def sup_con(features, labels, tau=0.1):
    z = F.normalize(features, dim=1)
    itself = torch.eye(len(z), dtype=torch.bool)
    log_p = (z @ z.T / tau).masked_fill(itself, -torch.inf).log_softmax(1)
    positive = (labels[:, None] == labels) & ~itself
    count = positive.sum(1)
    row = -torch.where(positive, log_p, 0).sum(1) / count.clamp(min=1)
    return row.sum() / (count > 0).sum().clamp(min=1)


def clip(image, text, logit_scale):
    logits = logit_scale.exp() * F.normalize(image, dim=1) @ F.normalize(text, dim=1).T
    rows = torch.arange(len(logits))
    return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2


def clip_with_scale(image, text, logit_scale):
    return torch.func.functional_call(
        losses.CLIPLoss(), {"logit_scale": logit_scale}, (image, text)
    )


def ranking(*embeddings, scale=20.0, symmetric=False, normalize=True):
    anchors = embeddings[0]
    candidates = torch.cat(embeddings[1:])
    if normalize:
        anchors = F.normalize(anchors, dim=1)
        candidates = F.normalize(candidates, dim=1)
    logits = scale * anchors @ candidates.T
    rows = torch.arange(len(anchors))
    loss = F.cross_entropy(logits, rows)
    return (loss + F.cross_entropy(logits[:, : len(rows)].T, rows)) / 2 if symmetric else loss


def ranking_loss(*embeddings, **options):
    return losses.MultipleNegativesRankingLoss(**options)(embeddings, labels=None)


def drawn(count, dtype=torch.float64, rows=37, d=12):
    g = torch.Generator().manual_seed(count)
    return [torch.randn(rows, d, generator=g, dtype=torch.float64).to(dtype) for _ in range(count)]


def labels(classes):
    """18 classes of 37 rows: some have one row, which has no loss."""
    return torch.randint(classes, (37,), generator=torch.Generator().manual_seed(1)) - 3


CASES = {  # the loss, its formula, and the number of inputs
    "NTXentLoss": (losses.NTXentLoss(), nt_xent, 2),
    "CLIPLoss": (clip_with_scale, clip, 2),
    **{
        f"SupConLoss, {n} classes": (
            partial(losses.SupConLoss(), labels=labels(n)),
            partial(sup_con, labels=labels(n)),
            1,
        )
        for n in (1, 5, 18, 1000)
    },
    **{
        f"ranking of {n}, {options}": (
            partial(ranking_loss, **options),
            partial(ranking, **options),
            n,
        )
        for n, options in (
            (2, {}),
            (3, {"symmetric": True}),
            (5, {}),
            (5, {"symmetric": True}),
            (3, {"scale": 0.3, "normalize": False}),
        )
    },
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients(name, dtype):
    """They are as accurate as the formula's own at this dtype."""
    ours, formula, count = CASES[name]
    inputs = drawn(count, dtype) + ([torch.tensor(2.5)] if name == "CLIPLoss" else [])

    def results(function, dtype):
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        loss = function(*leaves)
        return [loss, *torch.autograd.grad(loss, leaves)]

    truth = results(formula, torch.float64)
    for own, true, pytorch in zip(results(ours, dtype), truth, results(formula, dtype)):
        assert_as_accurate(own, true, pytorch, dtype)


def test_sup_con_of_views():
    """Of two without labels it is that of NT-Xent."""
    z_0, z_1, z_2 = drawn(3)
    torch.testing.assert_close(
        losses.SupConLoss(0.5)(torch.stack((z_0, z_1), 1)), nt_xent(z_0, z_1)
    )
    label = torch.arange(37) % 7
    loss = losses.SupConLoss()(torch.stack((z_0, z_1, z_2), 1), label)
    torch.testing.assert_close(loss, sup_con(torch.cat((z_0, z_1, z_2)), label.repeat(3)))


def test_sup_con_without_positives_is_zero():
    x = drawn(1, torch.float32)[0].requires_grad_()
    loss = losses.SupConLoss()(x, torch.arange(37))
    loss.backward()
    assert loss == 0
    assert not x.grad.any()


def test_clip_takes_what_that_of_open_clip_takes():
    image, text = drawn(2)
    scale = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    found = losses.CLIPLoss()(image, text, logit_scale=scale.exp(), output_dict=True)
    torch.testing.assert_close(found, {"contrastive_loss": clip(image, text, scale)})
    expected = torch.autograd.grad(clip(image, text, scale), scale)
    torch.testing.assert_close(torch.autograd.grad(found["contrastive_loss"], scale), expected)


def test_options_are_shown():
    shown = repr(losses.MultipleNegativesRankingLoss(30.0))
    assert shown == "MultipleNegativesRankingLoss(scale=30.0, symmetric=False, normalize=True)"
    shown = repr(af.AdaptiveInfoNCE(tau=0.1, symmetric=True))
    assert (
        shown
        == "AdaptiveInfoNCE(tau=0.1, normalize=False, symmetric=True, reduction=mean, backend=auto)"
    )
    assert repr(af.AdaptiveInfoNCE()).startswith(
        "AdaptiveInfoNCE(tau=adaptive, tau_min=0.05, tau_max=1.0, "
    )


def test_clip_bounds_its_scale():
    """Evaluation changes no parameter; training brings the scale back from beyond its bound."""
    image, text = drawn(2)  # unrelated, so a lower scale has a lower loss
    module = losses.CLIPLoss(max_scale=20.0).eval()
    assert losses.CLIPLoss().logit_scale.exp().item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        module.logit_scale.fill_(9.0)
    loss = module(image, text)
    torch.testing.assert_close(
        loss, clip(image, text, torch.tensor(20.0).log()), check_dtype=False, rtol=1e-6, atol=0
    )
    loss.backward()
    assert module.logit_scale.grad == 0
    assert module.logit_scale == 9.0
    module.train()
    # before the first backward, forward may run again
    (module(image, text) + module(text, image)).backward()
    assert module.logit_scale.item() == pytest.approx(math.log(20))
    assert module.logit_scale.grad > 0
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert module.logit_scale < math.log(20)


ACROSS_RANKS = {
    "NTXentLoss": lambda group, x, y, z: losses.NTXentLoss(process_group=group)(x, y),
    "CLIPLoss": lambda group, x, y, z: losses.CLIPLoss(process_group=group)(x, y),
    "SupConLoss": lambda group, x, y, z: losses.SupConLoss(process_group=group)(
        x, z.detach()[:, 0].mul(3).long()
    ),
    "SupConLoss of views": lambda group, x, y, z: losses.SupConLoss(process_group=group)(
        torch.stack((x, y), 1)
    ),
    "MultipleNegativesRankingLoss": lambda group, *x: losses.MultipleNegativesRankingLoss(
        process_group=group
    )(x),
}


def losses_on_a_rank(rank, sizes, group=True):
    """Each loss of this rank's rows and its gradients."""
    results = {}
    for name, loss in ACROSS_RANKS.items():
        leaves = [x.split(sizes)[rank].requires_grad_() for x in drawn(3)]
        value = loss(dist.group.WORLD if group else None, *leaves)
        value.backward()
        results[name] = [value.detach(), *(x.grad for x in leaves if x.grad is not None)]
    return results


def test_the_mean_of_the_ranks_losses_is_that_of_one_process():
    ranks = on_ranks(losses_on_a_rank, 2, [20, 17])
    for name, (value, *true) in losses_on_a_rank(0, [37], group=False).items():
        found, *gradients = zip(*(rank[name] for rank in ranks))
        torch.testing.assert_close(sum(found) / 2, value, msg=name)
        torch.testing.assert_close([torch.cat(each) / 2 for each in gradients], true, msg=name)


X = torch.ones(3, 2)


@pytest.mark.parametrize(
    ("loss", "inputs", "message"),
    [
        ("NTXentLoss", (X, X[1:]), r"z_1 must have the shape of z_0, \(3, 2\), got \(2, 2\)"),
        ("CLIPLoss", (X, X[1:]), "text_features must have the shape of image_features"),
        ("SupConLoss", (X, X[0]), r"labels must have shape \(3,\), got \(2,\)"),
        ("SupConLoss", (X,), r"labels must have shape \(3,\), got None"),
        ("SupConLoss", (X[0],), r"features must be \[B, d\] or \[B, V, d\], got \[2\]"),
        ("MultipleNegativesRankingLoss", ([X],), "expected at least 2 embeddings, got 1"),
        ("MultipleNegativesRankingLoss", ([X, X[1:]],), r"embeddings\[1\] must have"),
    ],
)
def test_bad_input(loss, inputs, message):
    with pytest.raises(ValueError, match=f"{loss}: {message}"):
        getattr(losses, loss)()(*inputs)


def test_clip_refuses_a_scale_beyond_its_bound():
    with pytest.raises(ValueError, match="0 < init_scale <= max_scale"):
        losses.CLIPLoss(200.0)
