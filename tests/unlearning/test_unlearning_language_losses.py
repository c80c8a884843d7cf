"""FLAT's divergences and loss, and the losses it is compared with: closed forms, suprema, limits."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from contracts.errors import ConfigError, DataError, UnknownName
from unlearning.language.divergences import DIVERGENCES, FDivergence
from unlearning.language.flat import flat_loss, mean_token_probability
from unlearning.language.losses import (
    dpo_loss,
    kl_to_reference,
    npo_loss,
    sequence_nll,
    simnpo_loss,
    token_mean_nll,
)

# The loss when template and forgotten answer are equally likely, p each: -g*(p) + f*(g*(p)).
AT_EQUAL = {
    "total_variation": lambda p: 0.0,
    "kl": lambda p: math.exp(p - 1) - p,
    "jensen_shannon": lambda p: 2 * math.log(math.cosh(p / 2)),
    "pearson": lambda p: p**2 / 4,
    "reverse_kl": lambda p: math.exp(-p) + p - 1,
    "squared_hellinger": lambda p: 2 * math.cosh(p) - 2,
    "neyman": lambda p: (1 - math.exp(-p / 2)) ** 2,
}
GENERATORS = {
    "kl": lambda u: u * math.log(u),
    "jensen_shannon": lambda u: u * math.log(u) - (u + 1) * math.log((u + 1) / 2),
    "pearson": lambda u: (u - 1) ** 2,
    "reverse_kl": lambda u: -math.log(u),
    "squared_hellinger": lambda u: (math.sqrt(u) - 1) ** 2,
    "jeffrey": lambda u: (u - 1) * math.log(u),
    "neyman": lambda u: (1 - u) ** 2 / u,
}


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("name", AT_EQUAL)
def test_the_loss_at_equal_probabilities_has_its_closed_form(name: str, p: float) -> None:
    assert float(flat_loss(double(p), double(p), divergence=name)) == pytest.approx(AT_EQUAL[name](p), abs=1e-6)


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("v", [0.01, 0.3, 0.9])
def test_the_conjugate_is_the_supremum(name: str, v: float) -> None:
    t = float(FDivergence(name).g_star(double(v)))
    found = minimize_scalar(
        lambda log_u: GENERATORS[name](math.exp(log_u)) - t * math.exp(log_u),
        bounds=(-15, 15),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert float(FDivergence(name).f_star_of_g_star(double(v))) == pytest.approx(-found.fun, abs=1e-6)


def test_total_variation_is_its_own_conjugate_inside_its_domain() -> None:
    v = torch.linspace(0, 1, 11, dtype=torch.float64)
    tv = FDivergence("total_variation")
    assert torch.equal(tv.f_star_of_g_star(v), tv.g_star(v))
    assert (tv.g_star(v).abs() <= 0.5).all()


@given(st.sampled_from(DIVERGENCES), st.floats(0.01, 0.99), st.floats(0.01, 0.99))
@settings(max_examples=80)
def test_the_loss_falls_in_the_template_and_rises_in_the_forgotten_answer(name: str, p_e: float, p_f: float) -> None:
    e, f = double(p_e).requires_grad_(), double(p_f).requires_grad_()
    by_e, by_f = torch.autograd.grad(flat_loss(e, f, divergence=name), (e, f))
    assert by_e < 0 < by_f


@given(st.sampled_from(DIVERGENCES), st.floats(-3, 3))
@settings(max_examples=60)
def test_the_gradients_are_those_of_the_values(name: str, v: float) -> None:
    divergence, step = FDivergence(name), 1e-5
    for of in (divergence.g_star, divergence.f_star_of_g_star):
        at = double(v).requires_grad_()
        (slope,) = torch.autograd.grad(of(at).sum(), at)
        numeric = (of(double(v + step)) - of(double(v - step))) / (2 * step)
        assert slope == pytest.approx(numeric, rel=1e-4, abs=1e-7)


def test_an_unknown_divergence_lists_the_known() -> None:
    with pytest.raises(UnknownName, match="total_variation"):
        FDivergence("hellinger")


def naive_probability(logits: Tensor, labels: Tensor) -> list[float]:
    found = []
    for z, aims in zip(logits.double(), labels, strict=True):
        terms = [float(z[t - 1].softmax(0)[aims[t]]) for t in range(1, len(aims)) if aims[t] != -100]
        found.append(sum(terms) / len(terms))
    return found


def example(padding: int = 0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits (2, T, 5) and labels: answers of three and of one token, then padding."""
    gen = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 6, 5, generator=gen) * 2
    labels = torch.tensor([[-100, -100, 1, 4, 2, -100], [-100, -100, -100, 3, -100, -100]])
    more = torch.randn(2, padding, 5, generator=gen)
    return torch.cat([logits, more], 1), torch.cat([labels, torch.full((2, padding), -100)], 1)


def test_the_probability_is_the_mean_over_an_answers_tokens() -> None:
    logits, labels = example()
    assert mean_token_probability(logits, labels).tolist() == pytest.approx(naive_probability(logits, labels), abs=1e-6)


def test_it_is_not_the_geometric_mean() -> None:
    logits, labels = example()
    nll, length = sequence_nll(logits, labels)
    geometric = torch.exp(-nll / length)
    assert mean_token_probability(logits, labels)[0] > geometric[0] + 0.01
    assert mean_token_probability(logits, labels)[1] == pytest.approx(geometric[1])  # an answer of one token


def test_padding_changes_the_official_reduction_and_not_the_default() -> None:
    short, long = example(), example(padding=6)
    default = [mean_token_probability(*batch) for batch in (short, long)]
    official = [mean_token_probability(*batch, reduction="official") for batch in (short, long)]
    assert torch.equal(*default)
    assert official[0].shape == (1,)
    # four counted tokens in 2 * 5 and in 2 * 11 positions
    assert float(official[0] / official[1]) == pytest.approx(11 / 5, rel=1e-5)
    assert float(official[0]) == pytest.approx(float((default[0] * torch.tensor([3, 1])).sum() / 10), rel=1e-5)
    losses = [flat_loss(p, p.flip(0) * 0.5, divergence="kl") for p in (default[1], official[1])]
    assert abs(float(losses[0] - losses[1])) > 0.05


def test_another_reduction_is_refused() -> None:
    with pytest.raises(ConfigError, match="'official'"):
        mean_token_probability(*example(), reduction="sum")


def test_a_memorised_answer_starts_saturated() -> None:
    """The gradient of P carries p (1 - p): it vanishes at both ends."""
    sizes = []
    for gap in (0.0, 4.0, 12.0):
        logits = torch.zeros(1, 2, 5)
        logits[0, 0, 1] = gap
        logits.requires_grad_()
        labels = torch.tensor([[-100, 1]])
        sizes.append(float(torch.autograd.grad(mean_token_probability(logits, labels).sum(), logits)[0].norm()))
    assert sizes[2] < 1e-4 < sizes[1] < sizes[0]


# ---- the other losses ---------------------------------------------------------------------------------------------


def test_nll_is_summed_and_the_token_mean_weighs_tokens_alike() -> None:
    logits, labels = example()
    nll, length = sequence_nll(logits, labels)
    logp = logits.double().log_softmax(-1)
    wanted = [-(logp[0, 1, 1] + logp[0, 2, 4] + logp[0, 3, 2]), -logp[1, 2, 3]]
    assert nll.tolist() == pytest.approx([float(w) for w in wanted], rel=1e-5)
    assert length.tolist() == [3, 1]
    assert float(token_mean_nll(logits, labels)) == pytest.approx(float(sum(wanted)) / 4, rel=1e-5)


def test_an_object_with_logits_reads_as_its_logits() -> None:
    logits, labels = example()

    class Answer:
        def __init__(self) -> None:
            self.logits = logits

    assert torch.equal(token_mean_nll(Answer(), labels), token_mean_nll(logits, labels))


def test_a_sequence_without_counted_tokens_is_refused() -> None:
    logits, labels = example()
    labels[1] = -100
    with pytest.raises(DataError, match=r"\[1\]"):
        sequence_nll(logits, labels)
    labels[1, 0] = 3  # nothing predicts the first token
    with pytest.raises(DataError, match=r"\[1\]"):
        sequence_nll(logits, labels)


def test_npo_tends_to_gradient_ascent_on_the_summed_nll() -> None:
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, 6, dtype=torch.float64, generator=gen)
    net = nn.Linear(6, 5).double()
    with torch.no_grad():
        net.weight.copy_(torch.randn(5, 6, generator=gen))
    labels = torch.tensor([[-100, 1, 2, 3], [-100, -100, 4, 0], [-100, -100, -100, 2]])
    with torch.no_grad():
        reference = sequence_nll(net(x), labels)[0] + torch.tensor([0.5, -1.0, 2.0])

    def flat(loss: Tensor) -> Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))])

    nll = sequence_nll(net(x), labels)[0]
    ascent = flat(-nll.mean())
    small, large = (flat(npo_loss(sequence_nll(net(x), labels)[0], reference, beta=beta)) for beta in (1e-4, 3.0))
    assert float(torch.cosine_similarity(small, ascent, dim=0)) > 0.999
    assert torch.allclose(small, ascent, rtol=1e-3, atol=1e-3)
    assert float(torch.cosine_similarity(large, ascent, dim=0)) < 0.999


def test_dpo_without_a_template_is_npo_and_a_likelier_template_lowers_it() -> None:
    nll, ref = double(3.0, 7.0), double(2.0, 8.0)
    assert torch.equal(dpo_loss(nll, ref, beta=0.1), npo_loss(nll, ref, beta=0.1))
    taught = [
        dpo_loss(nll, ref, beta=0.1, template=t, template_ref=double(5.0, 5.0))
        for t in (double(5.0, 5.0), double(1.0, 1.0))
    ]
    assert torch.equal(taught[0], npo_loss(nll, ref, beta=0.1))
    assert taught[1] < taught[0]
    margin = 0.1 * (5 - 1 + np.array([1.0, -1.0]))
    assert float(taught[1]) == pytest.approx(float(20 * np.log1p(np.exp(-margin)).mean()))


def test_simnpo_by_its_equation() -> None:
    nll, length = double(2.0, 9.0), double(2.0, 3.0)
    wanted = 2 / 4.5 * np.log1p(np.exp(-4.5 * (np.array([1.0, 3.0]) - 0.5))).mean()
    assert float(simnpo_loss(nll, length, beta=4.5, delta=0.5)) == pytest.approx(wanted)


def test_kl_is_from_the_reference_to_the_model_on_counted_tokens_alone() -> None:
    logits, labels = example(padding=3)
    reference, _ = example(padding=3, seed=1)
    counted = [(b, t - 1) for b in range(2) for t in range(1, 9) if labels[b, t] != -100]
    p, q = (z.double().softmax(-1) for z in (reference, logits))
    wanted = np.mean([float((p[at] * (p[at].log() - q[at].log())).sum()) for at in counted])
    assert float(kl_to_reference(logits, reference, labels)) == pytest.approx(wanted, rel=1e-5)
    assert float(kl_to_reference(logits, logits, labels)) == pytest.approx(0, abs=1e-7)
    changed = reference.clone()
    changed[:, 7:] += 5  # padding
    assert torch.equal(kl_to_reference(logits, changed, labels), kl_to_reference(logits, reference, labels))
