"""Partitions are disjoint, complete, as large as asked for, and the same for the same seed."""

import functools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from common import deal as dealing
from common.errors import DataError
from common.partition import Request, local_split, partition_clients, plot_partition

LABELS = np.repeat(np.arange(10), 100)  # sorted by class, as mnist5k is
ALL = np.arange(1000)
properties = settings(max_examples=15, deadline=None)


def deal(scheme, labels=LABELS, positions=None, clients=10, seed=0, column=None, **options):
    positions = np.arange(len(labels)) if positions is None else positions
    request = Request(scheme, clients, **options)
    return partition_clients(labels, request, positions, seed=seed, column=column)


def classes_of(parts, labels=LABELS):
    return [set(labels[part].tolist()) for part in parts]


def as_lists(parts):
    return [part.tolist() for part in parts]


SCHEMES = {
    "iid": {},
    "dirichlet": {"alpha": 0.3},
    "pathological": {"classes_per_client": 3},
    "shard": {"shards_per_client": 2},
    "natural": {"column": np.arange(1000) % 10},
}


@pytest.mark.parametrize("scheme", SCHEMES)
@properties
@given(data=st.data())
def test_disjoint_complete_sorted_and_reproducible(scheme, data):
    seed = data.draw(st.integers(0, 2**32))
    positions = np.sort(
        np.random.default_rng(data.draw(st.integers(0, 99))).permutation(1000)[:600]
    )
    before = positions.copy()
    parts = deal(scheme, positions=positions, seed=seed, **SCHEMES[scheme])
    assert len(parts) == 10
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), positions)
    for part in parts:
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
    assert as_lists(parts) == as_lists(
        deal(scheme, positions=positions, seed=seed, **SCHEMES[scheme])
    )
    np.testing.assert_array_equal(positions, before)


@pytest.mark.parametrize("scheme", ["iid", "dirichlet", "pathological", "shard"])
def test_another_seed_is_another_partition(scheme):
    assert as_lists(deal(scheme, seed=1, **SCHEMES[scheme])) != as_lists(
        deal(scheme, seed=2, **SCHEMES[scheme])
    )


def test_the_seed_changes_the_draws_and_not_only_the_order():
    def sizes(seed):
        return [len(part) for part in deal("dirichlet", seed=seed, alpha=0.3)]

    def classes(seed):
        return classes_of(deal("pathological", seed=seed, classes_per_client=3))

    assert sizes(1) != sizes(2)
    assert classes(1) != classes(2)


@properties
@given(st.integers(1, 60), st.integers(0, 9))
def test_iid_shares_are_equal_and_mixed(clients, seed):
    parts = deal("iid", clients=clients, seed=seed)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    if clients <= 10:  # 100 examples of 10 classes: to miss one has probability 1e-5
        assert all(len(classes) >= 9 for classes in classes_of(parts))


@properties
@given(st.integers(2, 20), st.floats(0.2, 50), st.integers(0, 20), st.integers(0, 9))
def test_dirichlet_gives_the_minimum_or_says_that_it_cannot(clients, alpha, least, seed):
    try:
        parts = deal("dirichlet", clients=clients, alpha=alpha, min_examples=least, seed=seed)
    except DataError as exc:
        assert "no draw in 20" in str(exc)  # noqa: PT017 - either outcome is right
        assume(False)
    assert min(len(part) for part in parts) >= least
    assert sum(len(part) for part in parts) == 1000


def test_dirichlet_alpha_sets_the_skew():
    def mean_share_of_the_largest_class(alpha):
        shares = []
        for part in deal("dirichlet", alpha=alpha, seed=3):
            counts = np.bincount(LABELS[part])
            shares.append(counts.max() / counts.sum())
        return np.mean(shares)

    # Balanced would be 0.1.
    assert mean_share_of_the_largest_class(1000.0) < 0.15
    assert mean_share_of_the_largest_class(0.1) > 0.4


def test_dirichlet_is_drawn_again_for_the_minimum():
    # A draw leaves everybody 20 of the 1000 examples about once in 50 times; 11 are not enough.
    for seed in range(3):
        draws = dealing.by_dirichlet(LABELS, 20, 0.2, np.random.default_rng(seed))
        assert max(min(map(len, parts)) for parts in draws) < 20
        parts = deal("dirichlet", clients=20, alpha=0.2, min_examples=20, seed=seed)
        assert min(len(part) for part in parts) >= 20


def as_flower_deals(partitioner, **columns):
    """Sorted row numbers of each client."""
    rows = pytest.importorskip("datasets").Dataset.from_dict(
        {name: values.tolist() for name, values in columns.items()} | {"row": [*range(len(MIXED))]}
    )
    rows.select = functools.partial(rows.select, new_fingerprint="rows")  # or all is hashed
    partitioner.dataset = rows
    count = partitioner.num_partitions
    return [sorted(partitioner.load_partition(client)["row"][:]) for client in range(count)]


MIXED = np.random.default_rng(0).permutation(np.repeat(np.arange(7) * 2, 43))


# From datasets, or so says pyarrow.
@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")
def test_what_is_drawn_is_what_flowers_partitioners_draw():
    flower = pytest.importorskip("flwr_datasets.partitioner")
    seed = 2**63 + 5
    own = {"shuffle": False, "seed": seed}
    owners = np.array(["ann", "Bob", "Éva", "cyd"])[MIXED % 4]

    def rng():
        return np.random.default_rng(seed)

    pairs = [
        (dealing.evenly_sized(len(MIXED), 12), flower.IidPartitioner(12)),
        (
            next(dealing.by_dirichlet(MIXED, 12, 0.3, rng())),
            flower.DirichletPartitioner(12, "label", 0.3, min_partition_size=0, **own),
        ),
        (
            next(dealing.by_class(MIXED, 12, 3, rng())),
            flower.PathologicalPartitioner(
                12, "label", 3, class_assignment_mode="first-deterministic", **own
            ),
        ),
        (
            next(dealing.by_shard(MIXED, 12, 3, rng())),
            flower.ShardPartitioner(12, "label", 3, **own),
        ),
        (dealing.by_value(owners), flower.NaturalIdPartitioner("client")),
    ]
    for parts, partitioner in pairs:
        theirs = as_flower_deals(partitioner, label=MIXED, client=owners)
        assert [sorted(part.tolist()) for part in parts] == theirs, type(partitioner)


@properties
@given(st.integers(10, 40), st.integers(1, 10), st.integers(0, 9))
def test_pathological_gives_exactly_k_classes_and_uses_all(clients, k, seed):
    parts = deal("pathological", clients=clients, classes_per_client=k, seed=seed)
    assert [len(classes) for classes in classes_of(parts)] == [k] * clients
    assert set().union(*classes_of(parts)) == set(range(10))


def test_pathological_drops_what_nobody_was_given():
    parts = deal("pathological", clients=3, classes_per_client=1)
    assert [len(classes) for classes in classes_of(parts)] == [1] * 3
    assert sum(len(part) for part in parts) == 300


@properties
@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 9))
def test_shards_are_equal_runs_of_labels(clients, shards, seed):
    parts = deal("shard", clients=clients, shards_per_client=shards, seed=seed)
    size = 1000 // (clients * shards)
    assert [len(part) for part in parts] == [size * shards] * clients
    # A shard of at most 100 sorted examples touches at most 2 classes of 100.
    if size <= 100:
        assert max(len(classes) for classes in classes_of(parts)) <= 2 * shards
    assert len(set(np.concatenate(parts).tolist())) == size * shards * clients


def test_natural_clients_are_the_values_of_the_column():
    column = np.array(["ann", "bob", "cyd"])[np.arange(1000) % 3]
    parts = deal("natural", clients=3, column=column)
    assert [set(column[part].tolist()) for part in parts] == [{"ann"}, {"bob"}, {"cyd"}]


def test_natural_drops_small_and_surplus_clients():
    column = np.array([0] * 5 + [1] * 400 + [2] * 300 + [3] * 295)
    for seed in range(10):
        parts = deal("natural", clients=2, column=column, min_examples=100, seed=seed)
        owners = [set(column[part].tolist()) for part in parts]
        assert all(len(owner) == 1 and owner != {0} for owner in owners)
        assert owners[0] != owners[1]
    chosen = {
        tuple(int(column[part[0]]) for part in deal("natural", clients=2, column=column, seed=s))
        for s in range(20)
    }
    assert len(chosen) > 1  # which clients take part depends on the seed


IMPOSSIBLE = {
    "no clients": ("iid", {"clients": 0}, "0 clients"),
    "more clients than examples": ("iid", {"clients": 1001}, "need 1001, but 1000 are left"),
    "minimum too high": ("dirichlet", {"min_examples": 101}, "need 1010, but 1000 are left"),
    "alpha zero": ("dirichlet", {"alpha": 0.0}, "alpha is 0"),
    "alpha nan": ("dirichlet", {"alpha": float("nan")}, "alpha is nan"),
    "minimum out of reach": ("dirichlet", {"alpha": 0.01, "min_examples": 90}, "no draw in 20"),
    "too many classes": ("pathological", {"classes_per_client": 11}, "11 classes per client"),
    "no classes": ("pathological", {"classes_per_client": 0}, "0 classes per client"),
    "class too rare": (
        "pathological",
        {"labels": np.array([0] * 99 + [1]), "clients": 10, "classes_per_client": 2},
        "no draw in 20",
    ),
    "too many shards": ("shard", {"shards_per_client": 101}, "cannot be cut"),
    "no column": ("natural", {}, "needs a column"),
    "too few natural": ("natural", {"column": np.arange(1000) % 4}, "the column has 4"),
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
def test_the_impossible_is_refused_in_one_line(case):
    scheme, options, message = IMPOSSIBLE[case]
    with pytest.raises(DataError, match=message) as caught:
        deal(scheme, **options)
    assert "\n" not in str(caught.value)


def test_nothing_is_printed(capfd):
    for scheme, options in SCHEMES.items():
        deal(scheme, **options)
    assert capfd.readouterr() == ("", "")


@properties
@given(st.lists(st.integers(0, 5), max_size=60), st.floats(0, 0.9), st.integers(0, 99), st.data())
def test_local_split_is_disjoint_complete_and_stratified(labels, fraction, seed, data):
    whole = np.array([9, *labels], np.int64)
    positions = np.arange(1, len(whole))  # all but the first
    client = data.draw(st.integers(0, 1000))
    train, test = local_split(positions, whole, client=client, test_fraction=fraction, seed=seed)
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), positions)
    assert len(train) > 0 or not labels
    if labels:
        assert len(test) == min(int(len(labels) * fraction + 0.5), len(labels) - 1)
    for label in set(labels):
        share = (whole[positions] == label).sum() * fraction
        assert abs((whole[test] == label).sum() - share) <= 1 + 1e-9
    again = local_split(positions, whole, client=client, test_fraction=fraction, seed=seed)
    np.testing.assert_array_equal(test, again[1])


@properties
@given(
    clients=st.integers(2, 60),
    classes=st.integers(2, 62),
    of_each=st.integers(1, 3),
    fraction=st.floats(0, 1 / 3),
    first=st.integers(0, 1000),
    seed=st.integers(0, 99),
)
def test_no_class_vanishes_from_training_because_clients_are_small(
    clients, classes, of_each, fraction, first, seed
):
    labels = np.tile(np.arange(classes), clients * of_each)
    parts = np.arange(len(labels)).reshape(clients, -1)
    trained = [
        local_split(part, labels, client=client, test_fraction=fraction, seed=seed)[0]
        for client, part in enumerate(parts, first)
    ]
    assert len(np.unique(labels[np.concatenate(trained)])) == classes


def test_fonts_of_which_each_has_one_image_of_a_character_train_all_characters():
    labels = np.tile(np.arange(62), 80)
    parts = np.arange(len(labels)).reshape(80, 62)
    trained = [
        local_split(part, labels, client=client, test_fraction=0.25, seed=0)[0]
        for client, part in enumerate(parts)
    ]
    counts = np.bincount(labels[np.concatenate(trained)], minlength=62)
    # A font keeps 46 or 47 of 62 characters: 60 fonts of 80 train a character, give or take one.
    assert counts.min() >= 58
    assert counts.max() <= 62


@properties
@given(
    st.lists(st.lists(st.integers(0, 7), min_size=1, max_size=4), min_size=20, max_size=40),
    st.floats(0, 0.25),
    st.integers(0, 99),
)
def test_a_class_that_several_small_clients_hold_is_trained_by_one_of_them(held, fraction, seed):
    labels = np.concatenate([np.array(own, np.int64) for own in held])
    ends = np.cumsum([len(own) for own in held])[:-1]
    trained = [
        labels[local_split(part, labels, client=client, test_fraction=fraction, seed=seed)[0]]
        for client, part in enumerate(np.split(np.arange(len(labels)), ends))
    ]
    holders = np.bincount(np.concatenate([np.unique(own) for own in held]), minlength=8)
    counts = np.bincount(np.concatenate(trained), minlength=8)
    assert (counts[holders >= 6] > 0).all()


def test_local_split_differs_between_clients():
    _, first = local_split(ALL, LABELS, client=0, test_fraction=0.3, seed=0)
    _, second = local_split(ALL, LABELS, client=1, test_fraction=0.3, seed=0)
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize(("clients", "classes"), [(1, 2), (50, 10), (300, 100)])
def test_the_image_is_a_png_that_shows_every_client(tmp_path, clients, classes):
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, classes, rng.integers(0, 50)) for _ in range(clients)]
    path = tmp_path / "deep" / "partition.png"
    plot_partition(labels, [f"class {k}" for k in range(classes)], path)
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.width >= 600
        assert len(image.convert("RGB").getcolors(10**6)) > 5
    assert [file.name for file in path.parent.iterdir()] == ["partition.png"]
