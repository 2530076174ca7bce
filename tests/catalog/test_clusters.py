"""Clusters: what is found, that blocks and samples do not change it, and what clusters are called."""

from __future__ import annotations

import numpy as np
import pytest

from annotary.catalog import clusters as module
from annotary.catalog.clusters import NOISE, TRIED, ClusterOptions, find_clusters
from annotary.catalog.clusters_names import names_by_tags, names_by_texts
from annotary.errors import UsageError

pytest.importorskip("sklearn")


def clouds(count: int, number: int = 4, *, dimensions: int = 16, noise: int = 0, spread=0.25):
    """Unit vectors around some directions, shuffled, the cloud of each, and -1 for what is anywhere."""
    generator = np.random.default_rng(2)
    directions = np.linalg.qr(generator.normal(size=(dimensions, dimensions)))[0][:number]
    own = np.concatenate([np.arange(count) % number, np.full(noise, -1)])
    generator.shuffle(own)
    vectors = directions[own] + spread * generator.normal(size=(len(own), dimensions)) / 4
    vectors[own == -1] = generator.normal(size=(noise, dimensions))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), own


def agree(labels: np.ndarray, own: np.ndarray) -> bool:
    """Whether two ways of labelling make the same groups."""
    pairs = set(zip(labels.tolist(), own.tolist(), strict=True))
    return len(pairs) == len(set(labels.tolist())) == len(set(own.tolist()))


def check(found, vectors: np.ndarray) -> None:
    """What holds of all clusters."""
    count = len(found.sizes)
    assert found.labels.dtype == np.int32
    assert set(found.labels.tolist()) <= {NOISE, *range(count)}
    assert found.sizes.tolist() == [int((found.labels == i).sum()) for i in range(count)]
    assert sorted(found.sizes.tolist(), reverse=True) == found.sizes.tolist()
    assert found.sizes.all()
    for i in range(count):
        mean = vectors[found.labels == i].astype(np.float64).mean(axis=0)
        np.testing.assert_allclose(found.centres[i], mean / np.linalg.norm(mean), atol=1e-5)
    members = found.labels != NOISE
    cosines = (vectors[members] * found.centres[found.labels[members]]).sum(axis=1)
    np.testing.assert_allclose(found.distances[members], 1 - cosines, atol=1e-5)


@pytest.mark.parametrize("clusters", [4, None])
def test_kmeans_finds_the_clouds_and_their_number(clusters, monkeypatch):
    monkeypatch.setattr(module, "TRIED", (2, 3, 4, 5, 6, 8))
    vectors, own = clouds(400)
    found = find_clusters(vectors, ClusterOptions(clusters=clusters))
    assert agree(found.labels, own)
    check(found, vectors)
    assert bool(found.silhouettes) == (clusters is None)


def test_the_number_is_a_peak_of_the_silhouettes_and_two_only_if_clearly():
    best = module._best_number
    assert best({2: 0.2, 3: 0.17, 4: 0.15, 5: 0.16, 6: 0.158, 8: 0.11, 10: 0.12, 12: 0.1}) == 5
    assert best({2: 0.6, 3: 0.3, 4: 0.35, 5: 0.3}) == 2
    assert best({2: 0.2, 3: 0.19, 4: 0.1}) == 2
    assert best({2: 0.1, 3: 0.2, 4: 0.3}) == 4
    assert best({}) == 1


def test_learning_from_a_sample_in_blocks_finds_the_same(monkeypatch):
    vectors, own = clouds(1000)
    monkeypatch.setattr(module, "_BLOCK", 77)
    for method in ("kmeans", "hdbscan"):
        told = {"clusters": 4} if method == "kmeans" else {"min_size": 8}
        found = find_clusters(vectors, ClusterOptions(method, sample=200, **told))
        members = found.labels != NOISE
        assert members.mean() > 0.9
        assert agree(found.labels[members], own[members])
        check(found, vectors)


def test_the_same_seed_gives_the_same_and_the_order_of_images_does_not_matter_much():
    vectors, _ = clouds(500, 7, spread=2.0)
    options = ClusterOptions(clusters=7, sample=100)
    first, again = find_clusters(vectors, options), find_clusters(vectors, options)
    assert np.array_equal(first.labels, again.labels)
    assert np.array_equal(first.distances, again.distances)
    check(first, vectors)
    # With all of them in the sample, sorted by cluster or not, centres come to rest at means.
    order = np.argsort(first.labels, kind="stable")
    whole = ClusterOptions(clusters=7, sample=500)
    shuffled, ordered = find_clusters(vectors, whole), find_clusters(vectors[order], whole)
    inertia = [float(found.distances.sum()) for found in (shuffled, ordered)]
    assert inertia[0] == pytest.approx(inertia[1], rel=0.05)


def test_hdbscan_leaves_out_what_is_like_nothing_else():
    vectors, own = clouds(400, noise=60)
    for sample in (10_000, 230):
        found = find_clusters(vectors, ClusterOptions("hdbscan", sample=sample, min_size=10))
        check(found, vectors)
        assert len(found.sizes) == 4
        assert (found.labels[own == -1] == NOISE).mean() > 0.7
        members = (own != -1) & (found.labels != NOISE)
        assert members.sum() > 0.9 * 400
        assert agree(found.labels[members], own[members])


def test_many_dimensions_are_reduced_for_hdbscan():
    vectors, own = clouds(300, dimensions=120)
    found = find_clusters(vectors, ClusterOptions("hdbscan"))
    members = found.labels != NOISE
    assert members.mean() > 0.8
    assert agree(found.labels[members], own[members])


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
@pytest.mark.parametrize("count", [1, 2, 3, 10])
def test_few_images_and_equal_ones_are_no_trouble(method, count):
    equal = np.tile(np.eye(1, 8, dtype=np.float32), (count, 1))
    found = find_clusters(equal, ClusterOptions(method))
    assert len(found.labels) == count
    assert len(found.sizes) <= 1
    assert not found.distances[found.labels != NOISE].any()
    different, _ = clouds(count)
    found = find_clusters(
        different, ClusterOptions(method, min_size=2 if method == "hdbscan" else None)
    )
    check(found, different)


def test_more_clusters_than_different_vectors():
    vectors = np.repeat(np.eye(3, 8, dtype=np.float32), 5, axis=0)
    found = find_clusters(vectors, ClusterOptions(clusters=6))
    assert found.sizes.tolist() == [5, 5, 5]


def test_a_file_in_memory_is_as_good_as_an_array(tmp_path):
    vectors, _ = clouds(300)
    mapped = np.memmap(tmp_path / "vectors", np.float32, "w+", shape=vectors.shape)
    mapped[:] = vectors
    options = ClusterOptions(clusters=5, sample=150)
    assert np.array_equal(
        find_clusters(mapped, options).labels, find_clusters(vectors, options).labels
    )


def test_what_cannot_be_done_is_said():
    with pytest.raises(UsageError, match="there are no vectors"):
        find_clusters(np.empty((0, 8), np.float32))
    with pytest.raises(UsageError, match="--clusters 9 needs as many images, but there are 8"):
        find_clusters(np.eye(8, dtype=np.float32), ClusterOptions(clusters=9))
    for options, complaint in (
        ({"clusters": 0}, r"clusters must be 1\.\.10,000"),
        ({"clusters": 3, "method": "hdbscan"}, "clusters is for --method kmeans"),
        ({"min_size": 1, "method": "hdbscan"}, "min_size must be at least 2"),
        ({"min_size": 10}, "min_size is for --method hdbscan"),
        ({"sample": 99}, "sample must be at least 100"),
        ({"clusters": 200, "sample": 150}, "sample must be at least the number of clusters"),
    ):
        with pytest.raises(ValueError, match=complaint):
            ClusterOptions(**options)
    assert tuple(sorted(TRIED)) == TRIED


def test_tags_that_set_clusters_apart_name_them():
    cats = [(0, ["photo", "cat", "animal"])] * 6 + [(0, ["photo", "cat", "sofa"])] * 2
    dogs = [(1, ["photo", "dog", "animal"])] * 7 + [(1, ["photo", "dog", "dog", "rare"])]
    plain = [(2, ["photo"])] * 4
    nothing = [(3, [])] * 2
    noise = [(NOISE, ["photo", "car"])] * 4
    names = names_by_tags([*cats, *dogs, *plain, *nothing, *noise], 4)
    assert names[0] == ("cat", "animal", "sofa")
    assert names[1] == ("dog", "animal", "rare")
    # What all have names nothing; neither does what only noise has.
    assert names[2:] == [(), ()]
    assert names_by_tags([*cats, *dogs], 2, top=1) == [("cat",), ("dog",)]


def test_the_only_cluster_is_named_by_what_most_of_it_has():
    assert names_by_tags([(0, ["cat", "x"]), (0, ["cat"]), (0, ["cat", "sofa"])], 1) == [("cat",)]


def test_words_near_the_centres_name_clusters():
    """Images and words each have something in common that is far from the other's."""
    axes = np.eye(6, dtype=np.float32)
    common_image, common_text = 3 * axes[4], 3 * axes[5]
    images = np.stack([common_image + axes[i] for i in (0, 1, 2)])
    texts = np.stack([common_text + axes[i] for i in (2, 1, 0, 3)])
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (images, texts)]
    names = names_by_texts(unit[0], unit[0].mean(axis=0), ["sky", "dog", "cat", "car"], unit[1], 1)
    assert names == [("cat",), ("dog",), ("sky",)]
    assert names_by_texts(unit[0], unit[0].mean(axis=0), [], np.empty((0, 6)), 1) == [()] * 3
    assert len(names_by_texts(unit[0][:1], unit[0][0], ["a", "b"], unit[1][:2], 3)[0]) == 2
