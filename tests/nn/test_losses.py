"""The published losses, against their formulas in float64 with all similarities stored."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

import adaftr_fast as af
from tests.distributed.ranks import on_ranks
from tests.tolerances import SLACK, assert_as_accurate

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


def ranking(*embeddings, scale=20.0, symmetric=False, normalize=True):
    anchors, candidates = embeddings[0], torch.cat(embeddings[1:])
    if normalize:
        anchors, candidates = F.normalize(anchors, dim=1), F.normalize(candidates, dim=1)
    logits, rows = scale * anchors @ candidates.T, torch.arange(len(anchors))
    loss = F.cross_entropy(logits, rows)
    return (loss + F.cross_entropy(logits[:, : len(rows)].T, rows)) / 2 if symmetric else loss


def drawn(count, dtype, rows=37, d=12):
    g = torch.Generator().manual_seed(count)
    return [torch.randn(rows, d, generator=g, dtype=torch.float64).to(dtype) for _ in range(count)]


def assert_equal_with_gradients(ours, formula, inputs, dtype):
    """Loss and gradients are as accurate as the formula's own at this dtype."""

    def results(function, dtype):
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        loss = function(*leaves)
        return [loss, *torch.autograd.grad(loss, leaves)]

    truth = results(formula, torch.float64)
    for own, true, pytorch in zip(results(ours, dtype), truth, results(formula, dtype)):
        assert_as_accurate(own, true, pytorch, dtype)


DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32])


@DTYPES
def test_nt_xent(dtype):
    assert_equal_with_gradients(losses.NTXentLoss(), nt_xent, drawn(2, dtype), dtype)


@DTYPES
@pytest.mark.parametrize("classes", [1, 5, 18, 1000])
def test_sup_con(dtype, classes):
    """18 classes of 37 rows: some have one row, which has no loss."""
    labels = torch.randint(classes, (37,), generator=torch.Generator().manual_seed(1)) - 3
    ours = losses.SupConLoss()
    assert_equal_with_gradients(lambda x: ours(x, labels), lambda x: sup_con(x, labels), drawn(1, dtype), dtype)


def test_sup_con_of_two_views_without_labels_is_nt_xent():
    z_0, z_1 = drawn(2, torch.float64)
    torch.testing.assert_close(losses.SupConLoss(0.5)(torch.stack((z_0, z_1), 1)), nt_xent(z_0, z_1))


def test_sup_con_of_three_views():
    views, labels = drawn(3, torch.float64), torch.arange(37) % 7
    loss = losses.SupConLoss()(torch.stack(views, 1), labels)
    torch.testing.assert_close(loss, sup_con(torch.cat(views), labels.repeat(3)))


def test_sup_con_without_positives_is_zero():
    (x,) = drawn(1, torch.float32)
    x.requires_grad_()
    loss = losses.SupConLoss()(x, torch.arange(37))
    loss.backward()
    assert loss == 0
    assert not x.grad.any()


@DTYPES
def test_clip(dtype):
    image, text = drawn(2, dtype)
    module = losses.CLIPLoss()
    assert module.logit_scale.exp().item() == pytest.approx(1 / 0.07)

    def ours(image, text, logit_scale):
        return torch.func.functional_call(module, {"logit_scale": logit_scale}, (image, text))

    assert_equal_with_gradients(ours, clip, [image, text, torch.tensor(2.5)], dtype)


def test_clip_takes_what_that_of_open_clip_takes():
    image, text = drawn(2, torch.float64)
    scale = torch.tensor(2.5, dtype=torch.float64, requires_grad=True)
    found = losses.CLIPLoss()(image, text, logit_scale=scale.exp(), output_dict=True)
    torch.testing.assert_close(found, {"contrastive_loss": clip(image, text, scale)})
    expected = torch.autograd.grad(clip(image, text, scale), scale)
    torch.testing.assert_close(torch.autograd.grad(found["contrastive_loss"], scale), expected)


def test_options_are_shown():
    shown = repr(losses.MultipleNegativesRankingLoss(30.0))
    assert shown == "MultipleNegativesRankingLoss(scale=30.0, symmetric=False, normalize=True)"
    shown = repr(af.AdaptiveInfoNCE(tau=0.1, symmetric=True))
    assert shown == "AdaptiveInfoNCE(tau=0.1, normalize=False, symmetric=True, reduction=mean, backend=auto)"
    assert repr(af.AdaptiveInfoNCE()).startswith("AdaptiveInfoNCE(tau=adaptive, tau_min=0.05, tau_max=1.0, ")


def test_clip_bounds_its_scale():
    image, text = drawn(2, torch.float64)
    module = losses.CLIPLoss(max_scale=20.0).eval()
    with torch.no_grad():
        module.logit_scale.fill_(9.0)
    loss = module(image, text)
    torch.testing.assert_close(loss, clip(image, text, torch.tensor(20.0).log()), check_dtype=False, rtol=1e-6, atol=0)
    loss.backward()
    assert module.logit_scale.grad == 0
    assert module.logit_scale == 9.0  # evaluation changes no parameter


def test_the_scale_of_clip_comes_back_from_beyond_its_bound():
    image, text = drawn(2, torch.float64)  # unrelated, so a lower scale has a lower loss
    module = losses.CLIPLoss(max_scale=20.0)
    with torch.no_grad():
        module.logit_scale.fill_(9.0)
    (module(image, text) + module(text, image)).backward()  # before the first backward, forward may run again
    assert module.logit_scale.item() == pytest.approx(math.log(20))
    assert module.logit_scale.grad > 0
    torch.optim.SGD(module.parameters(), lr=0.1).step()
    assert module.logit_scale < math.log(20)


@DTYPES
@pytest.mark.parametrize("embeddings", [2, 3, 5])
@pytest.mark.parametrize("symmetric", [False, True])
def test_multiple_negatives_ranking(dtype, embeddings, symmetric):
    ours = losses.MultipleNegativesRankingLoss(symmetric=symmetric)
    assert_equal_with_gradients(
        lambda *x: ours(x, labels=None), lambda *x: ranking(*x, symmetric=symmetric), drawn(embeddings, dtype), dtype
    )


def test_multiple_negatives_ranking_of_dot_products():
    embeddings = drawn(3, torch.float64)
    loss = losses.MultipleNegativesRankingLoss(scale=0.3, normalize=False)(embeddings)
    torch.testing.assert_close(loss, ranking(*embeddings, scale=0.3, normalize=False))


ACROSS_RANKS = {
    "NTXentLoss": lambda group, x, y, z: losses.NTXentLoss(process_group=group)(x, y),
    "CLIPLoss": lambda group, x, y, z: losses.CLIPLoss(process_group=group)(x, y),
    "SupConLoss": lambda group, x, y, z: losses.SupConLoss(process_group=group)(x, z.detach()[:, 0].mul(3).long()),
    "SupConLoss of views": lambda group, x, y, z: losses.SupConLoss(process_group=group)(torch.stack((x, y), 1)),
    "MultipleNegativesRankingLoss": lambda group, *x: losses.MultipleNegativesRankingLoss(process_group=group)(x),
}


def losses_on_a_rank(rank):
    """Each loss of this rank's rows, 20 or 17 of 37, and its gradients."""
    results = {}
    for name, loss in ACROSS_RANKS.items():
        leaves = [x.split(20)[rank].requires_grad_() for x in drawn(3, torch.float64)]
        value = loss(dist.group.WORLD, *leaves)
        value.backward()
        results[name] = [value.detach(), *(x.grad for x in leaves if x.grad is not None)]
    return results


def test_the_mean_of_the_ranks_losses_is_that_of_one_process():
    ranks = on_ranks(losses_on_a_rank, 2)
    for name, loss in ACROSS_RANKS.items():
        leaves = [x.requires_grad_() for x in drawn(3, torch.float64)]
        value = loss(None, *leaves)
        value.backward()
        found, *gradients = zip(*(rank[name] for rank in ranks))
        torch.testing.assert_close(sum(found) / 2, value.detach(), msg=name)
        true = [x.grad for x in leaves if x.grad is not None]
        torch.testing.assert_close([torch.cat(each) / 2 for each in gradients], true, msg=name)


def test_bfloat16_errs_by_its_rounding():
    z_0, z_1 = drawn(2, torch.bfloat16)
    loss = losses.NTXentLoss()(z_0, z_1)
    assert abs(loss - nt_xent(z_0.double(), z_1.double())) < SLACK[torch.bfloat16] * loss


@pytest.mark.parametrize(
    ("loss", "inputs", "message"),
    [
        ("NTXentLoss", (torch.ones(3, 2), torch.ones(4, 2)), r"z_1 must have the shape of z_0, \(3, 2\), got \(4, 2\)"),
        ("CLIPLoss", (torch.ones(3, 2), torch.ones(4, 2)), "text_features must have the shape of image_features"),
        ("SupConLoss", (torch.ones(3, 2), torch.ones(4)), r"labels must have shape \(3,\), got \(4,\)"),
        ("SupConLoss", (torch.ones(3, 2),), r"labels must have shape \(3,\), got None"),
        ("SupConLoss", (torch.ones(3),), r"features must be \[B, d\] or \[B, V, d\], got \[3\]"),
        ("MultipleNegativesRankingLoss", ([torch.ones(3, 2)],), "expected at least 2 embeddings, got 1"),
        ("MultipleNegativesRankingLoss", ([torch.ones(3, 2), torch.ones(2, 2)],), r"embeddings\[1\] must have"),
    ],
)
def test_bad_input(loss, inputs, message):
    with pytest.raises(ValueError, match=f"{loss}: {message}"):
        getattr(losses, loss)()(*inputs)


def test_clip_refuses_a_scale_beyond_its_bound():
    with pytest.raises(ValueError, match="0 < init_scale <= max_scale"):
        losses.CLIPLoss(200.0)
