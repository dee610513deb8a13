"""Signs and scales of the ReflexFlow terms; masks and weights apply to all of them."""

import pytest
import torch

from rollout_trainer.training.objective.config import ReflexFlowConfig
from rollout_trainer.training.objective.losses import (
    COLUMNS,
    TERMS,
    Loss,
    LossConfig,
    adr,
    batch_loss,
    fc_weight,
    masked_mean,
    mean_terms,
    min_snr,
    terms_of,
)
from rollout_trainer.training.objective.states import Goal, RolledRows, RolledStates


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_adr_gradient_points_back():
    """The model drifted to x_hat; a step against ADR's gradient must turn its velocity towards x_hat - x0."""
    x0, drift = randn(3, 4, 5, 5), 0.2 * randn(3, 4, 5, 5, seed=1)
    noise = randn(3, 4, 5, 5, seed=2)
    x_hat = 0.5 * x0 + 0.5 * noise + drift
    v = (noise - x0).requires_grad_()  # the velocity of a model that ignores its drift
    adr(v, x_hat, x0, None).sum().backward()
    v_next = v.detach() - 1e-3 * v.grad

    def angle(a):
        return torch.nn.functional.cosine_similarity(a.flatten(1), (x_hat - x0).flatten(1))

    assert (angle(v_next) > angle(v.detach())).all()
    # ... and following the turned velocity from x_hat lands nearer to the data
    scale = (x_hat - x0).flatten(1).norm(dim=1) / v_next.flatten(1).norm(dim=1)
    landed = [x_hat - a * scale.view(-1, 1, 1, 1) for a in (v.detach(), v_next)]
    far, near = [(x - x0).flatten(1).norm(dim=1) for x in landed]
    assert (near < far).all()


def test_adr_lies_between_0_and_4():
    x0, x_hat = randn(2, 4, 3, 3), randn(2, 4, 3, 3, seed=1)
    assert adr(7 * (x_hat - x0), x_hat, x0, None) == pytest.approx(0, abs=1e-12)
    assert adr(-(x_hat - x0), x_hat, x0, None) == pytest.approx(4)


def test_fc_weight_grows_where_the_biased_prediction_is_short():
    clean = torch.tensor([[[[1.0, 1.0, 1.0, 1.0]]]])
    biased = torch.tensor([[[[0.2, 1.0, 1.0, 1.6]]]])
    w = fc_weight(ReflexFlowConfig(alpha=1.0), clean, biased, None).flatten()
    assert w[0] > 1
    assert w[1] == w[2] == 1
    assert w[3] < 1
    assert w.min() >= 0  # clamped: a negative weight would reward the error


def test_l1_reproduces_the_tiny_weights_of_simpletuner():
    """SimpleTuner: on a 16x128x128 latent the weights of `l1` are 0.99998 .. 1.00002."""
    clean, biased = randn(1, 16, 128, 128), randn(1, 16, 128, 128, seed=1)
    l1 = fc_weight(ReflexFlowConfig(fc_norm="l1"), clean, biased, None)
    assert 0.99996 < l1.min() < 0.99999
    assert 1.00001 < l1.max() < 1.00004


def test_mean_norm_does_not_depend_on_latent_size():
    small = fc_weight(ReflexFlowConfig(), randn(1, 16, 8, 8), randn(1, 16, 8, 8, seed=1), None)
    large = fc_weight(ReflexFlowConfig(), randn(1, 16, 96, 96), randn(1, 16, 96, 96, seed=1), None)
    assert small.std() == pytest.approx(float(large.std()), rel=0.05)


def case(b=4, rows=(1, 3)):
    output, target, x0, x_hat = (randn(b, 2, 4, 4, seed=s, dtype=torch.float32) for s in range(4))
    index = torch.tensor(rows)
    clean = randn(len(rows), 2, 4, 4, seed=9, dtype=torch.float32)
    sigma = torch.full((b,), 0.5)
    x0, x_hat = x0[index], x_hat[index]
    states = RolledStates(x_hat, sigma[index], x_hat, x0, x0, {}, None)
    return output, Goal(target), sigma, RolledRows(index, states, clean)


def test_a_rows_weight_counts_in_every_term_but_adr():
    output, goal, sigma, rolled = case()
    reflex = ReflexFlowConfig(alpha=0.7, beta1=0.0)
    weight = (1 + sigma) ** 2 * torch.tensor([1.0, 2.0, 3.0, 4.0])
    loss = batch_loss(LossConfig(), reflex, "epsilon", output, goal, sigma, rolled=rolled, weight=weight)
    error = (output - goal.output).square().mean((1, 2, 3))
    torch.testing.assert_close(loss.base, (error * weight).mean())
    plain = batch_loss(LossConfig(), reflex, "epsilon", output[1:2], Goal(goal.output[1:2]), sigma[1:2])
    alone = batch_loss(
        LossConfig(), reflex, "epsilon", output[1:2], Goal(goal.output[1:2]), sigma[1:2], weight=weight[1:2]
    )
    torch.testing.assert_close(alone.total, plain.total * weight[1])


def test_terms_by_hand():
    output, goal, sigma, rolled = case()
    reflex = ReflexFlowConfig(alpha=0.7, beta1=0.3, beta2=0.9)
    loss = batch_loss(LossConfig(), reflex, "flow", output, goal, sigma, rolled=rolled)
    base = (output - goal.output).square().mean((1, 2, 3))
    e = rolled.clean - output[rolled.rows]
    w = (1 + 0.7 * e / e.abs().mean((1, 2, 3), keepdim=True)).clamp(min=0)
    fc = 0.9 * (w * (output - goal.output)[rolled.rows].square()).mean((1, 2, 3))
    drift = (rolled.states.x_hat - rolled.states.x0).flatten(1)
    v = output[rolled.rows].flatten(1)
    adr_ = 0.3 * (v / v.norm(dim=1, keepdim=True) - drift / drift.norm(dim=1, keepdim=True)).square().sum(1)
    torch.testing.assert_close(loss.base, base.mean())
    torch.testing.assert_close(loss.fc, fc.mean())
    torch.testing.assert_close(loss.adr, adr_.mean())
    torch.testing.assert_close(loss.total, (base[[0, 2]].sum() + (fc + adr_).sum()) / 4)


def test_rows_that_were_not_rolled_get_the_plain_gradient():
    """In SimpleTuner ADR was added to every row; here a row that was not rolled does not know of ReflexFlow."""
    output, goal, sigma, rolled = case()
    grads = []
    for terms in (rolled, None):
        out = output.clone().requires_grad_()
        batch_loss(LossConfig(), ReflexFlowConfig(), "flow", out, goal, sigma, rolled=terms).total.backward()
        grads.append(out.grad)
    assert torch.equal(grads[0][[0, 2]], grads[1][[0, 2]])
    assert not torch.equal(grads[0][[1, 3]], grads[1][[1, 3]])


def test_masks_apply_to_all_terms():
    """What lies outside of the mask changes no term and gets no gradient."""
    output, goal, sigma, rolled = case()
    mask = torch.ones(4, 1, 4, 4)
    mask[:, :, :, 2:] = 0
    spoiled = output + 100 * (1 - mask)
    terms = []
    for out in (output, spoiled):
        out = out.clone().requires_grad_()
        loss = batch_loss(LossConfig(), ReflexFlowConfig(), "flow", out, goal, sigma, mask, rolled=rolled)
        loss.total.backward()
        assert (out.grad * (1 - mask) == 0).all()
        terms.append(torch.stack([loss.total.detach(), loss.base, loss.fc, loss.adr]))
    torch.testing.assert_close(terms[0], terms[1])


def test_mask_of_ones_is_no_mask():
    value = randn(3, 4, 5, 5)
    torch.testing.assert_close(masked_mean(value, torch.ones(3, 1, 5, 5)), masked_mean(value, None))


def test_huber_is_mse_for_small_errors_and_linear_for_large_ones():
    out, target, sigma = torch.zeros(2, 1, 1, 1), torch.tensor([0.01, 50.0]).view(2, 1, 1, 1), torch.ones(2)
    huber = [
        batch_loss(
            LossConfig("huber", 0.5),
            ReflexFlowConfig(),
            "flow",
            out[i : i + 1],
            Goal(target[i : i + 1]),
            sigma[:1],
        )
        for i in range(2)
    ]
    assert huber[0].total == pytest.approx(0.01**2)
    assert huber[1].total == pytest.approx(2 * 0.5 * (50 - 0.25))


def test_min_snr_weights():
    sigma = torch.tensor([0.1, 1.0, 10.0])
    config = LossConfig(min_snr_gamma=5.0)
    torch.testing.assert_close(min_snr(config, "epsilon", sigma), torch.tensor([0.05, 1.0, 1.0]))
    torch.testing.assert_close(min_snr(config, "v", sigma), torch.tensor([5 / 101, 0.5, 0.01 / 1.01]))
    output, target = randn(3, 1, 2, 2, dtype=torch.float32), torch.zeros(3, 1, 2, 2)
    flow = batch_loss(config, ReflexFlowConfig(), "flow", output, Goal(target), sigma)
    assert flow.total == pytest.approx(float(output.square().mean()))  # flow models have no SNR weighting


def test_the_columns_are_the_parts_of_a_loss_and_the_validation():
    assert TERMS == ("total", "base", "fc", "adr")
    assert COLUMNS == ("total", "base", "fc", "adr", "validation")


def test_fc_and_adr_are_means_over_the_batches_that_rolled():
    nan = float("nan")
    parts = [(1.0, 2.0, 3.0, 4.0), (3.0, 4.0, nan, nan), (nan, 6.0, 5.0, 8.0)]
    means = mean_terms(terms_of([Loss(*map(torch.tensor, values)) for values in parts])).tolist()
    assert means[0] != means[0]  # a step that is not finite shows
    assert means[1:] == [4.0, 4.0, 6.0]
