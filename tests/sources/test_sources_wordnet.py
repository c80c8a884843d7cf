"""WordNet's nouns: a small file read against what stands in it, refusals by line, planted noise, and Debian's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from wordnet_file import LINES, write_wordnet

from contracts.errors import ConfigError, DataError
from contracts.methods import Asked
from sources.loading import detect, load
from sources.wordnet import CLASSES, ROOT, connected_part, hashed_words, parse

DEBIAN = Path(ROOT)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_wordnet(tmp_path)


def read(root: Path, **more: object):
    return load("wordnet", {"root": str(root), "num_nodes": 60, "dim": 32, **more}, seed=2)


def test_a_node_is_a_synset_with_its_gloss_class_and_links(root):
    data = read(root)
    assert data.task.name == "nodes" and len(data) == 60 and data.input_shape == (32,)
    assert data.class_names == ("noun.Tops", "noun.act", "noun.animal")
    by_id = dict(zip(data.example_id.tolist(), data.y.tolist(), strict=True))
    links = {tuple(sorted(data.x.node_id[[a, b]].tolist())) for a, b in data.x.edges.T}
    expected = set()
    for line in LINES:
        fields = line.split()
        offset, words = int(fields[0]), int(fields[3], 16)
        if offset in by_id:
            assert data.class_names[by_id[offset]] == f"noun.{CLASSES[int(fields[1]) - 3]}"
        rest = fields[5 + 2 * words : fields.index("|")]
        expected |= {
            tuple(sorted((offset, int(rest[p + 1]))))
            for p in range(0, len(rest), 4)
            if rest[p] != "+" and offset in by_id and int(rest[p + 1]) in by_id
        }
    assert links == expected and (np.sort(data.x.edges, axis=0)[0] < np.sort(data.x.edges, axis=0)[1]).all()
    first = data.positions([100])[0]
    assert data.origin[first] == "data.noun offset 00000100 (entity)"
    np.testing.assert_allclose(data.inputs(slice(0, 1))["x"], data.x.features)  # as they are: no column is rescaled
    assert "Princeton University" in data.provenance["licence"] and data.provenance["num_edges"] == len(links)


def test_the_part_is_connected_and_nearest_first():
    rng = np.random.default_rng(0)
    edges = rng.integers(0, 40, (2, 50))
    hops = np.full(40, 99)
    hops[0], level = 0, {0}
    while level:
        near = {b for a, b in [*edges.T.tolist(), *edges[::-1].T.tolist()] if a in level and hops[b] == 99}
        hops[list(near)] = hops[next(iter(level))] + 1
        level = near
    order = np.lexsort((np.arange(40), hops))
    for size in (1, 5, int((hops < 99).sum())):
        assert connected_part(edges, 40, size=size, start=0).tolist() == sorted(order[:size].tolist())
    with pytest.raises(DataError, match="num_nodes"):
        connected_part(edges, 40, size=int((hops < 99).sum()) + 1, start=0)


def test_words_are_hashed_node_by_node():
    texts = ["A dog; the dog barks", "barks", "the of", "4 £"]
    rows = hashed_words(texts, dim=4096)
    assert np.count_nonzero(rows, axis=1).tolist() == [2, 1, 0, 0]
    assert sorted(rows[0][rows[0] > 0].tolist()) == pytest.approx([1 / 3**0.5, (2 / 3) ** 0.5])
    np.testing.assert_array_equal(hashed_words(texts[1:2], dim=4096)[0], rows[1])


def test_noise_makes_training_labels_wrong_and_the_truth_is_kept(root):
    clean, noisy = read(root, num_nodes=90), read(root, num_nodes=90, noise=0.4)
    assert clean.digest != noisy.digest
    for data in (clean, noisy):
        truth = np.searchsorted(data.class_names, data.columns["true_class"])
        wrong = data.y != truth
        assert not wrong[data.split == "test"].any()
        assert wrong[data.split == "train"].mean() == pytest.approx(0.4 if data is noisy else 0, abs=0.2)
    assert noisy.provenance["planted_label_noise"] == {
        "rate": 0.4,
        "kind": "symmetric",
        "seed": 2,
        "everywhere": False,
    }
    both = read(root, num_nodes=90, noise=0.4, noise_everywhere=True)
    assert (both.y != clean.y)[both.split == "test"].mean() == pytest.approx(0.4, abs=0.25)
    np.testing.assert_array_equal(clean.columns["true_class"], noisy.columns["true_class"])
    pairs = read(root, num_nodes=90, noise=0.4, noise_kind="pair")
    moved = {(t, pairs.class_names[k]) for t, k in zip(pairs.columns["true_class"], pairs.y, strict=True)}
    assert len({pair for pair in moved if pair[0] != pair[1]}) == 3  # one other class of each


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda text: text.replace(" n 01 ", " v 01 ", 1), "line 3 is no noun"),
        (lambda text: text.replace("00000100 03", "00000100 02", 1), "line 3 is no noun"),
        (lambda text: text.replace(" | ", " ", 1), "line 3 is no noun"),
        (lambda text: text + LINES[0] + "\n", "holds an offset twice"),
        (lambda text: text.replace("@ 00000100", "@ 00000101"), "points to 00000101"),
        (lambda text: "  1 the licence alone\n", "holds no noun"),
    ],
)
def test_a_file_of_something_else_is_refused_by_line(tmp_path, change, says):
    file = write_wordnet(tmp_path) / "data.noun"
    file.write_text(change(file.read_text()))
    with pytest.raises(DataError, match=says):
        read(tmp_path)


def test_what_is_missing_is_named_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr("sources.wordnet.ROOT", str(tmp_path / "none"))
    with pytest.raises(DataError, match="apt-get install wordnet-base"):
        load("wordnet", {"root": str(tmp_path / "none")}, seed=0)
    with pytest.raises(DataError, match="60 were asked for"):
        write_wordnet(tmp_path, num=20)
        read(tmp_path)
    with pytest.raises(ConfigError, match="noise"):
        load("wordnet", {"noise": 1.0}, seed=0)


def test_a_folder_is_detected_by_its_file(root):
    kind, config, _ = detect(root, Asked())
    assert kind == "wordnet" and config == {"root": str(root)}
    with pytest.raises(ConfigError, match="lexicographer file"):
        detect(root, Asked(label="class"))


@pytest.mark.skipif(not (DEBIAN / "data.noun").exists(), reason="needs Debian's wordnet-base")
def test_debians_wordnet_is_the_graph_that_is_known():
    """82,115 nouns, 26 classes, and an edge joins two of one class nine times out of ten in the whole."""
    synsets = parse((DEBIAN / "data.noun").read_bytes(), name="data.noun")
    assert len(synsets) == 82_115 and {s.lexfile for s in synsets} == set(range(3, 29))
    data = load("wordnet", {}, seed=0)
    assert len(data) == 12_000 and data.num_classes == 26 and data.validate()
    ends = data.y[data.x.edges]
    assert 0.8 < (ends[0] == ends[1]).mean() < 0.9
    reached = connected_part(data.x.edges, len(data), size=len(data), start=0)
    assert len(reached) == len(data)
