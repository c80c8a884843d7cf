"""ERASE: coding rates and propagation against their definitions, the read-out against scikit-learn, and what a training
may look at."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from graph_data import make_nodes, network, with_features
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from contracts.digests import derive_seed
from contracts.errors import ConfigError, DataError, Diverged, InvalidInput
from recipes.graph.coding_rate import CodingRateReduction, class_coding_rate, coding_rate, effective_rank
from recipes.graph.erase import EraseConfig, Labelled, _known, erase, fit_read_out, train_erase
from recipes.graph.label_propagation import (
    Propagator,
    corrected_labels,
    denoise_labels,
    propagate_labels,
    semantic_labels,
)
from recipes.graph.sampling import InEdges
from recipes.graph.training import NodeTrainingConfig, node_classifier
from recipes.keeping import Keeping
from recipes.predict import predict_logits
from sources.example_set import ExampleSet
from sources.planted_poison import label_noise

NUM, DIM, CLASSES = 23, 6, 4
QUICK = EraseConfig(epochs=6, lr=0.01)
encoder = network(rows="l1")


def _rows(seed: int, num: int = NUM, dim: int = DIM) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(num, dim)))


def _labels(seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, CLASSES, NUM))


def flat(model: nn.Module) -> Tensor:
    return torch.cat([value.flatten() for value in model.state_dict().values()])


# ---- coding rates ---------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 999), eps=st.floats(0.01, 2), num=st.integers(1, 12))
def test_rates_are_their_definition_on_either_side(seed, eps, num):
    """Diagonal membership matrices, logdet of the (N, N) and the (d, d) matrix."""
    z = _rows(seed, num)
    labels = torch.from_numpy(np.random.default_rng(seed + 1).integers(0, CLASSES, num))
    whole = 0.5 * torch.logdet(torch.eye(num) + 0.7 * DIM / (num * eps) * z @ z.T)
    assert float(coding_rate(z, eps=eps, expand=0.7)) == pytest.approx(float(whole), rel=1e-5, abs=1e-9)
    apart = 0.0
    for c in range(CLASSES):
        member = torch.diag((labels == c).double())
        if size := float(member.trace()):
            inner = torch.eye(DIM) + DIM / (size * eps) * z.T @ member @ z
            apart += size / (2 * num) * float(torch.logdet(inner))
    found = class_coding_rate(z, labels, num_classes=CLASSES, eps=eps)
    assert float(found) == pytest.approx(apart, rel=1e-5, abs=1e-9)
    assert float(coding_rate(z, eps=eps)) - float(found) >= -1e-6  # delta_R, g1 = 1
    alone = class_coding_rate(z, torch.zeros(num, dtype=torch.int64), num_classes=1, eps=eps)
    assert float(alone) == pytest.approx(float(coding_rate(z, eps=eps)), rel=1e-6)


def test_the_loss_expands_the_whole_and_compresses_the_classes():
    z, labels = _rows(0).requires_grad_(), _labels(1)
    loss = CodingRateReduction(eps=0.3, expand=2.0, compress=0.5)(z, labels, CLASSES)
    expected = -2.0 * coding_rate(z, eps=0.3, expand=0.5) + 0.5 * class_coding_rate(
        z, labels, num_classes=CLASSES, eps=0.3
    )
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    assert torch.autograd.gradcheck(
        lambda rows: CodingRateReduction(eps=0.3, expand=2.0, compress=0.5)(rows, labels, CLASSES), (z,)
    )
    with pytest.raises(InvalidInput, match=r"outside 0\.\.1"):
        class_coding_rate(z, labels, num_classes=2, eps=0.3)


def test_a_matrix_that_single_precision_cannot_factor_is_factored_in_double(monkeypatch):
    z, real, asked = _rows(3).float(), torch.linalg.cholesky_ex, []

    def failing(matrix: Tensor) -> Any:
        asked.append(matrix.dtype)
        root, failed = real(matrix)
        return (root * torch.nan, failed + 1) if matrix.dtype == torch.float32 else (root, failed)

    expected = coding_rate(z, eps=0.1)
    monkeypatch.setattr(torch.linalg, "cholesky_ex", failing)
    torch.testing.assert_close(coding_rate(z, eps=0.1), expected)
    assert asked == [torch.float32, torch.float64]


def test_effective_rank_counts_directions():
    assert effective_rank(torch.ones(9, 4)) == pytest.approx(1, abs=1e-6)
    assert effective_rank(torch.eye(5)[:3]) == pytest.approx(3)
    assert effective_rank(torch.zeros(3, 2)) == 0
    assert effective_rank(_rows(0, 400)) > 5.9


# ---- propagation ----------------------------------------------------------------------------------------------------


@st.composite
def graphs(draw):
    num = draw(st.integers(1, 8))
    ends = st.integers(0, num - 1)
    return num, np.array(draw(st.lists(st.tuples(ends, ends), max_size=20)), np.int64).reshape(-1, 2).T


def dense(num: int, edges: np.ndarray, normalization: str, among: set[int] | None = None) -> np.ndarray:
    """The normalised adjacency matrix, entry by entry."""
    a = np.zeros((num, num))
    for i, j in edges.T.tolist():
        if i != j and (among is None or {i, j} <= among):
            a[i, j] = a[j, i] = 1
    degree, out = a.sum(1), np.zeros((num, num))
    for i in range(num):
        for j in range(num):
            if a[i, j]:
                out[i, j] = {
                    "column": 1 / degree[j],
                    "row": 1 / degree[i],
                    "sym": 1 / math.sqrt(degree[i] * degree[j]),
                }[normalization]
    return out


@pytest.mark.parametrize("normalization", ["column", "row", "sym"])
@given(graph=graphs(), data=st.data())
def test_propagation_is_a_product_with_a_dense_matrix(normalization, graph, data):
    num, edges = graph
    among = data.draw(st.none() | st.sets(st.integers(0, num - 1)))
    nodes = None if among is None else np.array(sorted(among), np.int64)
    found = Propagator.of(edges, num, steps=3, keep=0.3, normalization=normalization, among=nodes)
    y = np.random.default_rng(0).random((num, 2))
    a, expected = dense(num, edges, normalization, among), y
    for _ in range(3):
        expected = 0.7 * a @ expected + 0.3 * expected
    np.testing.assert_allclose(found(y), expected, atol=1e-12)
    np.testing.assert_array_equal(dataclasses.replace(found, keep=1.0)(y), y)
    if normalization == "row":
        linked = a.sum(1) > 0
        np.testing.assert_allclose(a[linked].sum(1), 1)


def test_row_and_column_differ_and_neighbours_of_many_edges_count_less_by_column():
    star = np.array([[0, 0, 0], [1, 2, 3]])
    y = np.eye(4)
    by = {n: Propagator.of(star, 4, steps=1, keep=0.0, normalization=n)(y) for n in ("column", "row")}
    assert by["column"][1, 0] == pytest.approx(1 / 3) and by["row"][1, 0] == 1
    assert by["column"][0, 1] == 1 and by["row"][0, 1] == pytest.approx(1 / 3)


def test_what_is_no_propagation_is_refused():
    with pytest.raises(InvalidInput, match=r"outside 0\.\.2"):
        Propagator.of(np.array([[0], [3]]), 3, steps=1, keep=0.5, normalization="row")
    with pytest.raises(InvalidInput, match="normalization = 'none'"):
        Propagator.of(np.array([[0], [1]]), 3, steps=1, keep=0.5, normalization="none")


def test_denoised_labels_are_of_training_nodes_and_their_edges_alone():
    """Nodes 0 and 1 are training nodes, linked by node 2, which is none: nothing passes."""
    edges = np.array([[0, 1, 0], [2, 2, 3]])
    train = np.array([0, 1, 3])
    inner = Propagator.of(edges, 4, steps=2, keep=0.5, normalization="column", among=train)
    found = denoise_labels(np.array([0, 1, 1]), train, inner, num_classes=2)
    assert not found[2].any()
    np.testing.assert_allclose(found[1], [0, 0.25])  # alone: only kept
    np.testing.assert_allclose(found[[0, 3]], [[0.5, 0.5], [0.5, 0.5]])


def test_semantic_labels_are_cosines_with_prototypes_of_training_nodes():
    z = np.random.default_rng(2).normal(size=(7, 3))
    denoised, train = np.zeros((7, 3)), np.array([5, 0, 2])
    denoised[train] = [[0.1, 0.3, 0], [0.2, 0.1, 0], [0, 0.4, 0]]  # class 2 has nobody: no crash, and no likeness
    found = semantic_labels(z, denoised, train)
    prototypes = [z[0], (z[5] + z[2]) / 2]
    for v in range(7):
        for c, mu in enumerate(prototypes):
            cosine = z[v] @ mu / np.linalg.norm(z[v]) / np.linalg.norm(mu)
            assert found[v, c] == pytest.approx(abs(cosine))
    assert not found[:, 2].any() and (cosines := z @ prototypes[0]).min() < 0 < cosines.max()


def test_corrected_labels_mix_and_are_propagated():
    edges = np.array([[0, 1], [1, 2]])
    whole = Propagator.of(edges, 4, steps=2, keep=0.4, normalization="row")
    denoised, semantic = np.random.default_rng(0).random((2, 4, 3))
    found = corrected_labels(denoised, semantic, whole, trust=0.3)
    mixed = 0.3 * denoised + 0.7 * semantic
    np.testing.assert_allclose(found, whole(np.exp(mixed) / np.exp(mixed).sum(1, keepdims=True)))
    without = corrected_labels(denoised, semantic, whole, trust=1.0)
    np.testing.assert_array_equal(without, corrected_labels(denoised, semantic[::-1], whole, trust=1.0))


# ---- the read-out ---------------------------------------------------------------------------------------------------


def test_the_read_out_is_scikit_learns_and_a_class_without_a_row_is_never_answered():
    rng = np.random.default_rng(1)
    rows = F.normalize(torch.from_numpy(rng.normal(size=(40, 5)) + 2), dim=1).numpy()
    everywhere = F.normalize(torch.from_numpy(rng.normal(size=(500, 5))), dim=1).numpy()
    for kinds in ([0, 1, 2], [1, 3]):
        labels = rng.choice(kinds, 40)
        weight, bias = fit_read_out(rows, labels, 4)
        theirs = LogisticRegression(max_iter=1000).fit(rows, labels).predict_proba(everywhere)
        logits = everywhere @ weight.T + bias
        ours = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        known = np.isin(np.arange(4), kinds)
        np.testing.assert_allclose(ours[:, known] / ours[:, known].sum(1, keepdims=True), theirs, atol=1e-10)
        assert (logits[:, ~known].max(1) < logits[:, known].min(1) - 3.7).all()  # log 41
    weight, bias = fit_read_out(rows, np.full(40, 2), 3)
    assert not weight.any() and bias.argmax() == 2 and (bias[2] - bias[:2] > 3.7).all()


# ---- the training ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def train() -> ExampleSet:
    return make_nodes().part("train")


def test_one_epoch_by_hand(train):
    """Labels from the training pass, one step of Adam on the rates, the read-out on the changed encoder."""
    config = EraseConfig(epochs=1, lr=0.01, validation=0.0, eps=0.4, expand=1.5, steps=2)
    model = network(rows="l1", dropout=0.0)
    found = erase(model, train, config=config, seed=3)
    alone = train.by_id().only(np.arange(len(train)))
    x, edges = torch.from_numpy(alone.x.features), torch.from_numpy(alone.x.edge_index)
    own, y, num = model(3), alone.y, len(train)
    optimizer = torch.optim.Adam(
        [*own.first.parameters(), *own.second.parameters()], lr=0.01, weight_decay=5e-4, amsgrad=True
    )
    z = own.embed(x, edges)
    a = dense(num, edges.numpy(), "column")
    denoised = np.eye(3)[y]
    for _ in range(2):
        denoised = 0.4 * a @ denoised + 0.6 * denoised
    q = semantic_labels(z.detach().double().numpy(), denoised, np.arange(num))
    q = np.exp(0.6 * denoised + 0.4 * q)
    q /= q.sum(1, keepdims=True)
    for _ in range(2):
        q = 0.4 * a @ q + 0.6 * q
    labels = q.argmax(1)
    rate = class_coding_rate(z, torch.from_numpy(labels), num_classes=3, eps=0.4)
    (rate - 1.5 * coding_rate(z, eps=0.4)).backward()
    optimizer.step()
    after = F.normalize(own.embed(x, edges).detach(), dim=1).double().numpy()
    weight, bias = fit_read_out(after, labels, 3)
    torch.testing.assert_close(found.head.weight.detach().double(), torch.from_numpy(weight), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found.head.bias.detach().double(), torch.from_numpy(bias), rtol=1e-3, atol=1e-4)
    for ours, theirs in zip(found.second.parameters(), own.second.parameters(), strict=True):
        torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-4, atol=1e-5)


def test_same_seed_same_bits_in_any_order_and_from_members_alone(train, rng_left_alone):
    with rng_left_alone():
        first = erase(encoder, train, config=QUICK, seed=1)
    mixed = train.take(np.random.default_rng(0).permutation(len(train)))
    assert torch.equal(flat(first), flat(erase(encoder, mixed, config=QUICK, seed=1)))
    features = train.x.features.copy()
    features[np.setdiff1d(np.arange(len(features)), train.x.members)] += 9
    assert torch.equal(flat(first), flat(erase(encoder, with_features(train, features), config=QUICK, seed=1)))
    assert not torch.equal(flat(first), flat(erase(encoder, train, config=QUICK, seed=2)))
    assert not first.training


def _all(train: ExampleSet, share: float = 0.3) -> tuple[Tensor, Tensor, Labelled]:
    alone = train.by_id().only(np.arange(len(train)))
    known = _known(alone, share=share, seed=0)
    return torch.from_numpy(alone.x.features), torch.from_numpy(alone.x.edge_index), known


def test_validation_labels_choose_the_epoch_and_do_nothing_else(train):
    """Under two sets of validation labels every epoch is the same; what is kept is the best of each."""
    x, edges, known = _all(train)
    other = dataclasses.replace(known, val_labels=(known.val_labels + 1) % 3)
    kept, read = [], []
    for one in (known, other):
        model = encoder(0)
        read.append(train_erase(model, x, edges, one, config=EraseConfig(epochs=12, lr=0.01), seed=0))
        kept.append(model)
    rates = [[(e.epoch, e.expanded, e.compressed, e.effective_rank) for e in run] for run in read]
    assert rates[0] == rates[1]
    for model, run, one in zip(kept, read, (known, other), strict=True):
        with torch.no_grad():
            said = model(x=x, edge_index=edges, nodes=torch.from_numpy(one.val)).argmax(1).numpy()
        assert (said == one.val_labels).mean() == max(e.accuracy for e in run)


def test_a_run_ends_when_nothing_has_become_better_for_as_long_as_its_patience(train):
    x, edges, known = _all(train)
    config = EraseConfig(epochs=200, lr=1e-6, patience=4)  # nothing changes: the first epoch stays the best
    read = train_erase(network(rows="l1", dropout=0.0)(0), x, edges, known, config=config, seed=0)
    assert [one.epoch for one in read] == [1, 2, 3, 4, 5]


def test_without_validation_nodes_the_last_epoch_is_kept(train):
    x, edges, known = _all(train, share=0.0)
    assert len(known.val) == 0 and len(known.train) == len(train)
    read = train_erase(encoder(0), x, edges, known, config=EraseConfig(epochs=3), seed=0)
    assert [one.epoch for one in read] == [3] and math.isnan(read[0].accuracy)


def test_it_can_be_left_early_also_at_the_initialisation(train):
    start = erase(encoder, train, config=QUICK, seed=1, stop_after=0)
    fresh = encoder(1)
    assert torch.equal(start.first.lin.weight, fresh.first.lin.weight)
    assert not torch.equal(start.head.weight, fresh.head.weight)
    early = erase(encoder, train, config=QUICK, seed=1, stop_after=2)
    assert torch.equal(flat(early), flat(erase(encoder, train, config=dataclasses.replace(QUICK, epochs=2), seed=1)))


@pytest.mark.parametrize("validation", [0.0, 0.2])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(train, validation, store):
    config = dataclasses.replace(QUICK, epochs=6, validation=validation)
    straight, told = erase(encoder, train, config=config, seed=1), []
    erase(encoder, train, config=config, seed=1, stop_after=4, checkpoints=store, checkpoint_every=2)
    resumed = erase(
        encoder,
        train,
        config=config,
        seed=1,
        checkpoints=store,
        checkpoint_every=2,
        progress=lambda done, *_: told.append(done),
    )
    assert torch.equal(flat(resumed), flat(straight)) and told[0] == 5
    again = erase(encoder, train, config=config, seed=1, checkpoints=store, checkpoint_every=2)
    assert torch.equal(flat(again), flat(straight)), "a finished run is read, its best epoch included"
    faster = dataclasses.replace(config, lr=0.02)
    other = erase(encoder, train, config=faster, seed=1, checkpoints=store)
    assert torch.equal(flat(other), flat(erase(encoder, train, config=faster, seed=1))), "that of another run is not"


def test_a_run_out_of_patience_ends_where_it_ended_when_it_is_taken_up_again(train, store):
    x, edges, known = _all(train)
    config = EraseConfig(epochs=200, lr=1e-6, patience=4)
    keeping = Keeping(store=store, name="run", every=1)
    first = train_erase(network(rows="l1", dropout=0.0)(0), x, edges, known, config=config, seed=0, keeping=keeping)
    again = train_erase(network(rows="l1", dropout=0.0)(0), x, edges, known, config=config, seed=0, keeping=keeping)
    assert [one.epoch for one in again] == [one.epoch for one in first] == [1, 2, 3, 4, 5]


def test_it_corrects_what_the_graph_contradicts():
    """Three of ten labels are wrong: more of the corrected ones are right, fewer without the first step, and the model
    says what is right of nodes whose given label is wrong, as cross-entropy on the given labels does not."""
    clean = make_nodes(300).part("train").by_id()
    noisy, changed = label_noise(clean, rate=0.3, kind="symmetric", seed=0)
    wide = network(rows="l1", hidden=32, heads=4, dim=32)
    config = EraseConfig(epochs=40, lr=0.01, validation=0.0)
    right: dict[bool, float] = {}
    for denoise in (True, False):
        x, edges, known = _all(noisy, share=0.0)
        found: list[np.ndarray] = []
        train_erase(
            wide(0),
            x,
            edges,
            known,
            config=dataclasses.replace(config, denoise=denoise),
            seed=0,
            watch=lambda epoch, q, labels, found=found: found.append(labels),
        )
        right[denoise] = float((found[-1] == clean.y).mean())
    assert right[True] > right[False] + 0.03 and right[True] > (noisy.y == clean.y).mean() + 0.1
    wrong = clean.subset(changed)
    ours = erase(wide, noisy, config=config, seed=0)
    plain = node_classifier(wide, noisy, config=NodeTrainingConfig(lr=0.01, epochs=100), seed=0)
    accuracy = [(predict_logits(model, wrong).argmax(1) == wrong.y).mean() for model in (ours, plain)]
    assert accuracy[0] > accuracy[1] + 0.1


# ---- sampled surroundings -------------------------------------------------------------------------------------------


@given(graph=graphs(), data=st.data())
def test_surroundings_are_so_many_in_edges_of_every_node_met(graph, data):
    """Against sets: distinct edges of the graph, as many as there are up to the size, of the nodes of each hop."""
    num, edges = graph
    edges = np.unique(edges, axis=1)
    asked = np.array(sorted(data.draw(st.sets(st.integers(0, num - 1), min_size=1))), np.int64)
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=3))
    nodes, local = InEdges.of(edges, num).sample(asked, sizes, np.random.default_rng(0))
    np.testing.assert_array_equal(nodes[: len(asked)], asked)
    assert len(set(nodes.tolist())) == len(nodes)
    drawn = [(int(nodes[a]), int(nodes[b])) for a, b in local.T]
    known = {(int(a), int(b)) for a, b in edges.T}
    assert len(set(drawn)) == len(drawn) and set(drawn) <= known
    met, frontier = set(asked.tolist()), set(asked.tolist())
    for size in sizes:
        for v in frontier:
            assert sum(b == v for _, b in drawn) == min(size, sum(b == v for _, b in known))
        frontier = {a for a, b in drawn if b in frontier} - met
        met |= frontier
    assert set(nodes.tolist()) == met


def test_every_neighbour_is_as_likely():
    edges = InEdges.of(np.stack([np.arange(1, 7), np.zeros(6, np.int64)]), 7)
    rng, counts = np.random.default_rng(0), np.zeros(7)
    for _ in range(3000):
        counts[edges.sample(np.array([0]), [2], rng)[0]] += 1
    assert counts[0] == 3000 and abs(counts[1:] - 1000).max() < 5 * math.sqrt(3000 * 2 / 9)


def test_with_all_neighbours_a_batch_is_embedded_as_by_the_whole_graph(train):
    x, edges, _ = _all(train, share=0.0)
    model, around = encoder(0).eval(), InEdges.of(edges.numpy(), len(x))
    own = np.random.default_rng(1).permutation(len(x))[:11]
    nodes, local = around.sample(own, [len(x)] * 2, np.random.default_rng(0))
    with torch.no_grad():
        found = model.embed(x[torch.from_numpy(nodes)], torch.from_numpy(local))[: len(own)]
        torch.testing.assert_close(found, model.embed(x, edges)[torch.from_numpy(own)])
        one_hop, fewer = around.sample(own, [len(x)], np.random.default_rng(0))
        cut = model.embed(x[torch.from_numpy(one_hop)], torch.from_numpy(fewer))[: len(own)]
    assert not torch.allclose(cut, found)  # a hop less is another answer


SAMPLED = dataclasses.replace(QUICK, neighbours=(3, 3), batch=16, denoising="propagation")


def test_a_sampled_epoch_by_hand(train):
    """Labels once, of the whole graph in eval mode; then a step a batch, each on the encoder that the last one left."""
    config = dataclasses.replace(SAMPLED, epochs=1, validation=0.0, neighbours=(99, 99), batch=20)
    x, edges, known = _all(train, share=0.0)
    ours, theirs = (network(rows="l1", dropout=0.0)(3) for _ in range(2))
    read = train_erase(ours, x, edges, known, config=config, seed=3)
    denoised = propagate_labels(
        known.train_labels,
        known.train,
        Propagator.of(edges.numpy(), len(x), steps=config.steps, keep=config.keep, normalization="sym"),
        num_classes=3,
    )
    with torch.no_grad():
        z = theirs.eval().embed(x, edges).double().numpy()
    q = corrected_labels(
        denoised,
        semantic_labels(z, denoised, known.train),
        config.propagator(edges.numpy(), len(x)),
        trust=config.trust,
    )
    labels = torch.from_numpy(q.argmax(1))
    weights = [p for name, p in theirs.named_parameters() if not name.startswith("head.")]
    optimizer = torch.optim.Adam(weights, lr=config.lr, weight_decay=config.weight_decay, amsgrad=True)
    order = np.random.default_rng(derive_seed("neighbours", 3, 1)).permutation(len(x))
    rates = []
    for start in range(0, len(x), 20):
        own = torch.from_numpy(order[start : start + 20])
        if len(own) < 2:
            continue
        z = theirs.eval().embed(x, edges)[own]
        whole = coding_rate(z, eps=config.eps)
        apart = class_coding_rate(z, labels[own], num_classes=3, eps=config.eps)
        optimizer.zero_grad()
        (apart - config.expand * whole).backward()
        optimizer.step()
        rates.append((float(whole.detach()), float(apart.detach())))
    assert len(rates) > 1
    assert (read[-1].expanded, read[-1].compressed) == pytest.approx(tuple(np.mean(rates, axis=0)), rel=1e-3)
    for mine, other in zip(ours.second.parameters(), theirs.second.parameters(), strict=True):
        torch.testing.assert_close(mine.detach(), other.detach(), rtol=1e-3, atol=1e-4)


def test_propagated_labels_start_from_the_given_ones_in_every_step(train):
    x, edges, known = _all(train, share=0.0)
    num = len(x)
    sym = Propagator.of(edges.numpy(), num, steps=3, keep=0.3, normalization="sym")
    given, a = np.eye(3)[known.train_labels], dense(num, edges.numpy(), "sym")
    rows = given
    for _ in range(3):
        rows = np.clip(0.7 * a @ rows + 0.3 * given, 0, 1)
    found = propagate_labels(known.train_labels, known.train, sym, num_classes=3)
    np.testing.assert_allclose(found, rows, atol=1e-12)
    smoothed = denoise_labels(known.train_labels, known.train, sym, num_classes=3)
    assert np.abs(found - smoothed).max() > 0.01
    still = dataclasses.replace(sym, keep=1.0)
    np.testing.assert_array_equal(propagate_labels(known.train_labels, known.train, still, num_classes=3), given)


def test_a_sampled_run_has_the_same_bits_in_any_order_and_taken_up_again(train, store, rng_left_alone):
    with rng_left_alone():
        whole = erase(encoder, train, config=SAMPLED, seed=1)
    turned = train.take(np.random.default_rng(0).permutation(len(train)))
    torch.testing.assert_close(flat(erase(encoder, turned, config=SAMPLED, seed=1)), flat(whole), rtol=0, atol=0)
    more: dict[str, Any] = {"checkpoints": store, "checkpoint_every": 1}
    erase(encoder, train, config=SAMPLED, seed=1, stop_after=3, **more)
    torch.testing.assert_close(flat(erase(encoder, train, config=SAMPLED, seed=1, **more)), flat(whole), rtol=0, atol=0)
    other = erase(encoder, train, config=dataclasses.replace(SAMPLED, neighbours=(1, 1)), seed=1)
    assert not torch.equal(flat(other), flat(whole))


def test_a_sampled_run_corrects_what_the_graph_contradicts():
    """The bench of the whole graph: more corrected labels are right than given ones."""
    clean = make_nodes(300).part("train").by_id()
    noisy, _ = label_noise(clean, rate=0.3, kind="symmetric", seed=0)
    x, edges, known = _all(noisy, share=0.0)
    found: list[np.ndarray] = []
    config = dataclasses.replace(SAMPLED, epochs=15, validation=0.0, batch=60, neighbours=(5, 5), steps=8)
    wide = network(rows="l1", hidden=32, heads=4, dim=32)
    train_erase(wide(0), x, edges, known, config=config, seed=0, watch=lambda epoch, q, labels: found.append(labels))
    assert (found[-1] == clean.y).mean() > (noisy.y == clean.y).mean() + 0.1


def test_what_cannot_be_trained_is_refused(train):
    with pytest.raises(ConfigError, match="2 layers"):
        EraseConfig(neighbours=(5,))
    with pytest.raises(ConfigError, match=r"model\.config\.rows: l1"):
        erase(network(rows="none"), train, config=QUICK, seed=0)
    few = train.take(np.array([int(np.flatnonzero(train.y == k)[0]) for k in range(3)]))
    with pytest.raises(DataError, match=r"recipe\.config\.validation to 0"):
        erase(encoder, few, config=QUICK, seed=0)
    assert erase(encoder, few, config=dataclasses.replace(QUICK, validation=0.0), seed=0) is not None
    broken = train.x.features.copy()
    broken[train.x.members[0], 0] = np.nan
    with pytest.raises(Diverged, match="epoch 1"):
        erase(encoder, with_features(train, broken), config=QUICK, seed=0)
