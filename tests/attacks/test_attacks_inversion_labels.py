"""Labels read off the output layer: closed forms, and rates on random (example, mask) pairs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from inversion_helpers import net_of, victims

from attacks.gradient_inversion import LocalTraining, recover_labels, share
from attacks.gradient_inversion.labels import output_gradients, right_labels
from contracts.errors import InvalidInput, NotApplicable


def bias_gradient(logits, labels):
    """mean_b softmax - onehot: (R, K)."""
    return (torch.softmax(logits, -1) - torch.nn.functional.one_hot(labels, logits.shape[-1])).mean(1)


@given(st.integers(0, 10_000))
def test_the_bias_rule_is_exact_for_one_example(seed):
    generator = torch.Generator().manual_seed(seed)
    logits, labels = 5 * torch.randn(20, 1, 7, generator=generator), torch.randint(7, (20, 1), generator=generator)
    assert torch.equal(recover_labels(None, bias_gradient(logits, labels)), labels)


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh"])
def test_rates_on_a_hundred_pairs_under_dropout(activation):
    net = net_of(config={"hidden": [128, 128], "activation": activation, "dropout": 0.5}, shape=(1, 8, 8), classes=10)
    x, y = victims(net, 100, classes=10)
    weight, bias = output_gradients(net, share(net, x, y, seeds=range(100))[0])
    assert torch.equal(recover_labels(weight, bias), y)
    if activation == "relu":  # inputs of one sign: one negative row
        assert torch.equal(recover_labels(weight, bias, strategy="row_sum"), y)
    update, _ = share(net, x, y, seeds=range(100), local=LocalTraining(steps=1, lr=0.1))
    assert torch.equal(recover_labels(*output_gradients(net, update)), y)


def test_distinct_labels_of_an_untrained_model_are_all_found():
    generator = torch.Generator().manual_seed(0)
    logits = 0.1 * torch.randn(30, 4, 10, generator=generator)
    labels = torch.stack([torch.randperm(10, generator=generator)[:4].sort().values for _ in range(30)])
    gradient = bias_gradient(logits, labels)
    for strategy in ("analytic", "counting"):
        assert torch.equal(recover_labels(None, gradient, batch=4, strategy=strategy), labels)


def test_repeated_labels_are_counted_and_analytic_says_what_it_does_not_know():
    labels = torch.tensor([[2, 2, 2, 5], [1, 1, 3, 3]])
    gradient = bias_gradient(torch.zeros(2, 4, 6), labels)
    assert torch.equal(recover_labels(None, gradient, batch=4), labels)
    assert recover_labels(None, gradient, batch=4, strategy="analytic").tolist() == [[-1, -1, 2, 5], [-1, -1, 1, 3]]


def test_counting_is_the_loop_of_its_definition():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(5, (40, 6), generator=generator)
    gradient = bias_gradient(torch.randn(40, 6, 5, generator=generator), labels)
    found = recover_labels(None, gradient, batch=6, strategy="counting")
    for r in range(40):
        g, out = gradient[r].clone(), []
        step = g[g < 0].sum() / 6
        for c in (g < 0).nonzero()[:, 0].tolist():
            out.append(c)
            g[c] -= step
        while len(out) < 6:
            c = int(g.argmin())
            out.append(c)
            g[c] -= step
        assert found[r].tolist() == sorted(out)


def test_more_negative_classes_than_examples_keep_the_most_negative():
    gradient = torch.tensor([[-0.5, -0.1, -0.3, 0.9]])
    assert recover_labels(None, gradient, batch=2, strategy="analytic").tolist() == [[0, 2]]


def test_right_labels_count_copies():
    recovered, truth = torch.tensor([[0, 1, 1, 4]]), torch.tensor([[1, 1, 1, 0]])
    assert right_labels(recovered, truth).tolist() == [[True, True, False, True]]


def test_what_cannot_be_read_is_refused():
    gradient = torch.tensor([[0.5, -0.5]])
    with pytest.raises(NotApplicable, match="bias"):
        recover_labels(gradient[:, :, None], None, batch=2)
    with pytest.raises(NotApplicable, match="one example"):
        recover_labels(None, gradient, batch=2, strategy="bias")
    with pytest.raises(NotApplicable, match="weight"):
        recover_labels(None, gradient, strategy="row_sum")
    with pytest.raises(InvalidInput, match="strategy"):
        recover_labels(None, gradient, strategy="guess")
    with pytest.raises(InvalidInput, match="batch"):
        recover_labels(None, gradient, batch=0)
    assert recover_labels(torch.tensor([[[1.0], [-1.0]]]), None).tolist() == [[1]]
