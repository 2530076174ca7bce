"""Groups of duplicates: what is found, what is kept, and that neither the order nor links change it."""

from __future__ import annotations

import os
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.catalog import duplicates_images
from annotary.catalog.duplicates import DuplicateOptions, Fingerprint, Group, find_duplicates
from annotary.errors import OutputError

EVERY = DuplicateOptions(by="exact,phash,embedding", distance=4, cosine=0.9)


def unit(*numbers: float) -> np.ndarray:
    vector = np.array(numbers, np.float32)
    return vector / np.linalg.norm(vector)


def names(groups) -> list[list[str]]:
    return [[member.image for member in group.members] for group in groups]


def plain(groups) -> list[tuple]:
    return [tuple((m.image, m.is_kept, m.why, m.by, m.also) for m in g.members) for g in groups]


@st.composite
def fingerprints(draw) -> list[Fingerprint]:
    """Images some of which have hashes, bytes and vectors in common or nearly so."""
    count = draw(st.integers(0, 14))
    bits = st.integers(0, 2**12 - 1).map(lambda value: value | value << 52)
    result = []
    for i in range(count):
        content = draw(st.integers(0, 12))
        generator = random.Random(f"content {content}")
        angle = draw(st.floats(0, 3.0))
        own = Fingerprint(
            image=f"{'x' * draw(st.integers(0, 2))}{i}",
            bytes=draw(st.integers(1, 3)),
            width=draw(st.integers(1, 2)),
            height=draw(st.integers(1, 2)),
            sha256=f"{i:064}",
            phash=draw(st.none() | bits),
            vector=unit(np.cos(angle), np.sin(angle)) if draw(st.booleans()) else None,
        )
        if draw(st.booleans()):  # one of a few contents: the same bytes, and so the same everything
            angle = generator.random() * 3
            own = replace(
                own,
                bytes=5,
                width=1,
                height=1,
                sha256=f"c{content:063}",
                phash=generator.getrandbits(12),
                vector=unit(np.cos(angle), np.sin(angle)),
            )
        result.append(own)
    return result


def better(image: Fingerprint) -> tuple:
    return (-image.width * image.height, -image.bytes, len(image.image), image.image)


def are_near(one: Fingerprint, other: Fingerprint, options: DuplicateOptions) -> bool:
    if "exact" in options.kinds and one.sha256 == other.sha256:
        return True
    is_hashed = "phash" in options.kinds and None not in (one.phash, other.phash)
    if is_hashed and (one.phash ^ other.phash).bit_count() <= options.distance:
        return True
    if "embedding" in options.kinds and one.vector is not None and other.vector is not None:
        return bool(one.vector @ other.vector >= options.cosine - 2e-6)
    return False


def expected(images: list[Fingerprint], options: DuplicateOptions) -> dict[str, set[str]]:
    """Every image that is kept in a group, and all it may have: by comparing all with all."""
    kept: list[Fingerprint] = []
    covered: dict[str, set[str]] = {}
    for image in sorted(images, key=better):
        near = {one.image for one in kept if are_near(one, image, options)}
        if near:
            covered[image.image] = near
        else:
            kept.append(image)
    return covered


@given(
    fingerprints(),
    st.randoms(use_true_random=False),
    st.sampled_from(["exact", "phash", "embedding", "exact,phash", "exact,phash,embedding"]),
)
def test_groups_are_those_of_comparing_all_with_all_whatever_the_order(images, shuffler, by):
    options = replace(EVERY, by=by)
    groups = list(find_duplicates(images, options))
    found = {m.image: g.kept.image for g in groups for m in g.others}
    covered = expected(images, options)
    assert found.keys() == covered.keys()
    assert all(kept in covered[image] for image, kept in found.items())
    # A partition: nobody is in two groups, and every group has someone to keep and someone to go.
    members = [member.image for group in groups for member in group.members]
    assert len(members) == len(set(members))
    assert all(g.kept.is_kept and len(g.members) >= 2 for g in groups)
    assert not any(m.is_kept for g in groups for m in g.others)
    assert [g.number for g in groups] == list(range(1, len(groups) + 1))
    shuffled = list(images)
    shuffler.shuffle(shuffled)
    assert plain(find_duplicates(shuffled, options)) == plain(groups)


def test_the_surest_way_and_the_nearest_kept_image_are_told():
    wide = Fingerprint("wide", width=9, height=9, sha256="a", phash=0)
    groups = find_duplicates(
        [
            wide,
            replace(wide, image="copy"),
            Fingerprint("near", width=2, height=2, sha256="b", phash=0b11),
            Fingerprint("nearer", width=1, height=1, sha256="c", phash=0b1111_0000),
            Fingerprint("other", width=8, height=8, sha256="d", phash=0b11_1111_0000),
        ],
        EVERY,
    )
    first, second = groups
    assert [(m.image, m.by, m.distance) for m in first.members] == [
        ("copy", None, None),
        ("wide", "exact", 0.0),
        ("near", "phash", 2.0),
    ]
    # It is 4 bits from the better of the kept ones, and 2 from the other.
    assert [(m.image, m.distance) for m in second.members] == [("other", None), ("nearer", 2.0)]


def test_a_photo_and_itself_without_its_colours_do_not_stand_for_each_other():
    size = {"width": 9, "height": 9}
    colour = Fingerprint("colour.jpg", bytes=10, phash=7, chroma=90, **size)
    grey = Fingerprint("grey.png", bytes=99, phash=7, chroma=0, **size)  # the larger file
    tinged = Fingerprint("tinged.jpg", bytes=5, phash=6, chroma=12, **size)
    unknown = replace(grey, image="unknown.png", chroma=None)
    assert names(find_duplicates([colour, grey])) == []
    assert names(find_duplicates([colour, unknown])) == [["unknown.png", "colour.jpg"]]
    assert names(find_duplicates([colour, tinged])) == [["colour.jpg", "tinged.jpg"]]
    assert names(find_duplicates([grey, tinged])) == [["grey.png", "tinged.jpg"]]
    assert names(find_duplicates([colour, replace(grey, phash=6)])) == []
    copy = replace(colour, image="copy.jpg", bytes=9)
    assert names(find_duplicates([colour, grey, copy])) == [["colour.jpg", "copy.jpg"]]
    # As a leak between training and test images it counts.
    assert names(find_duplicates([grey], against=[colour])) == [["colour.jpg", "grey.png"]]


def test_a_chain_is_no_group():
    """Each is 4 bits from the next: whoever is not near the kept one itself is not in its group."""
    chain = [
        Fingerprint(f"{i}", width=100 - i, height=1, sha256=f"{i}", phash=(1 << 4 * i) - 1)
        for i in range(6)
    ]
    assert names(find_duplicates(chain, EVERY)) == [["0", "1"], ["2", "3"], ["4", "5"]]
    # The middle of three is the best: both others are near it.
    assert names(find_duplicates([replace(chain[1], width=500), chain[0], chain[2]], EVERY)) == [
        ["1", "0", "2"]
    ]


def write(name: str, content: bytes = b"x", modified: float = 1000.0) -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (modified, modified))
    return name


def of_file(name: str, **known) -> Fingerprint:
    return Fingerprint(name, path=name, **{"sha256": "same", **known})


def test_who_is_kept_and_why():
    def kept(*images: Fingerprint) -> tuple[str, str]:
        (group,) = find_duplicates(images)
        return group.kept.image, group.kept.why

    small = of_file(write("a/small", modified=1), width=10, height=10, bytes=500, phash=1)
    large = of_file(write("a/large.jpg", modified=2), width=20, height=10, bytes=100, phash=1)
    assert kept(small, large) == ("a/large.jpg", "most pixels")
    assert kept(replace(large, width=10), small) == ("a/small", "largest file")
    old = replace(small, bytes=100)
    assert kept(replace(large, width=10), old) == ("a/small", "oldest file")
    write("a/small", modified=2)
    assert kept(replace(large, width=10), old) == ("a/small", "shortest name")
    write("a/smell", modified=2)
    assert kept(replace(old, image="a/smell", path="a/smell"), old) == ("a/small", "first by name")


def test_a_file_that_is_gone_is_never_kept_in_place_of_one_that_is_there():
    # As a catalogue tells it that was filled before somebody removed the better file.
    gone = Fingerprint("gone.jpg", path="gone.jpg", width=200, height=100, bytes=900, phash=1)
    left = of_file(write("left.jpg"), width=20, height=10, bytes=100, phash=1, sha256="own")
    more = of_file(write("more.jpg"), width=10, height=10, bytes=100, phash=1, sha256="other")
    for images in ([gone, left, more], [more, left, gone]):
        (group,) = find_duplicates(images)
        assert (group.kept.image, group.kept.why) == ("left.jpg", "most pixels")
        why = {member.image: member.why for member in group.others}
        assert why["gone.jpg"].endswith("; its file is gone already")
        assert "gone" not in why["more.jpg"]
    (group,) = find_duplicates([gone, left])
    assert (group.kept.image, group.kept.why) == ("left.jpg", "the other file is gone")
    # Where all are gone, as for a catalogue of another machine, the order is as ever.
    other = replace(gone, image="x.jpg", path="x.jpg", width=100)
    (group,) = find_duplicates([other, gone])
    assert (group.kept.image, group.kept.why) == ("gone.jpg", "most pixels")


def test_one_file_under_several_names_is_no_duplicate_of_itself():
    write("photos/original.jpg")
    os.link("photos/original.jpg", "photos/hard.jpg")
    Path("photos/soft.jpg").symlink_to("original.jpg")
    told = [
        "photos/original.jpg",
        "photos/hard.jpg",
        "photos/soft.jpg",
        "./photos/../photos/original.jpg",
    ]
    assert not list(find_duplicates(of_file(name, phash=7) for name in told))
    write("photos/copy of it.jpg", modified=2000)
    (group,) = find_duplicates(
        [*(of_file(name) for name in told), of_file("photos/copy of it.jpg")]
    )
    assert [m.image for m in group.members] == ["photos/hard.jpg", "photos/copy of it.jpg"]
    assert group.kept.also == (
        "photos/soft.jpg",
        "photos/original.jpg",
        "./photos/../photos/original.jpg",
    )
    # A link is told by the name of the file, however short its own is.
    Path("a.jpg").symlink_to("photos/original.jpg")
    linked = [of_file("a.jpg"), of_file("photos/original.jpg"), of_file("photos/copy of it.jpg")]
    (group,) = find_duplicates(linked)
    assert (group.kept.image, group.kept.also) == ("photos/original.jpg", ("a.jpg",))
    # What is no file, such as an address, is told from others by its name.
    assert not list(find_duplicates([Fingerprint("http://x/a", sha256="s")] * 2))


def test_plain_images_without_a_hash_are_compared_by_their_bytes_alone():
    blank = [Fingerprint(f"{i}", sha256=f"{i}", phash=None, width=1, height=1) for i in range(3)]
    assert not list(find_duplicates(blank))
    assert names(find_duplicates([*blank, replace(blank[2], image="33")])) == [["2", "33"]]


def test_against_a_reference_only_pairs_across_count_and_the_reference_stays():
    train = [
        Fingerprint("train/1", width=50, height=50, sha256="1", phash=0),
        Fingerprint("train/2", width=50, height=50, sha256="2", phash=1),
        Fingerprint("train/3", width=50, height=50, sha256="3", phash=0xFFFF_0000),
    ]
    test = [
        Fingerprint("test/1", width=9, height=9, sha256="1", phash=0),
        Fingerprint("test/far", width=5, height=5, sha256="t", phash=0b1111),
        Fingerprint("test/far copy", width=5, height=5, sha256="t", phash=0b1111),
    ]
    (group,) = find_duplicates(train, EVERY, against=test)
    assert [(m.image, m.is_kept, m.by) for m in group.members] == [
        ("test/1", True, None),
        ("train/1", False, "exact"),
        ("train/2", False, "phash"),
    ]
    assert group.kept.why == "of the reference"
    assert not list(find_duplicates(train, EVERY, against=[]))


def test_a_file_on_both_sides_is_told_and_never_suggested_to_go():
    write("one.jpg")
    Path("link.jpg").symlink_to("one.jpg")
    (group,) = find_duplicates([of_file("link.jpg")], against=[of_file("one.jpg")])
    kept, leaked = group.members
    assert (kept.image, leaked.image, leaked.by) == ("one.jpg", "link.jpg", "file")
    assert leaked.is_kept
    assert "very same file as one.jpg" in leaked.why


def test_many_copies_of_one_image_are_one_group():
    """Neither hashes nor vectors of copies are compared pair by pair: that would be millions."""
    vector = unit(1, 2, 3)
    copies = [
        Fingerprint(f"{i:04}", bytes=1, width=1, height=1, sha256="s", phash=1, vector=vector)
        for i in range(3000)
    ]
    (group,) = find_duplicates(copies, EVERY)
    assert group.kept.image == "0000"
    assert len(group.members) == 3000
    assert {member.by for member in group.others} == {"exact"}
    (by_look,) = find_duplicates(copies, DuplicateOptions(by="embedding"))
    assert len(by_look.members) == 3000


def test_names_that_are_no_unicode_and_hashes_of_all_bits_survive():
    strange = "photos/\udcff\ud800\n.jpg"
    top = 2**64 - 1
    (group,) = find_duplicates(
        [
            Fingerprint(strange, sha256="1", phash=top, width=2, height=2),
            Fingerprint("b", sha256="2", phash=top ^ 1 << 63, width=1, height=1),
        ]
    )
    assert [(m.image, m.distance) for m in group.members] == [(strange, None), ("b", 1.0)]


def test_members_as_json():
    (group,) = find_duplicates(
        [
            Fingerprint("a", sha256="1", phash=0, width=2, height=2, bytes=9),
            Fingerprint("b", path=write("b.jpg"), sha256="2", phash=3, width=1, height=1),
        ]
    )
    assert isinstance(group, Group)
    assert [member.to_json() for member in group.members] == [
        {"image": "a", "keep": True, "why": "most pixels", "bytes": 9, "width": 2, "height": 2},
        {
            "image": "b",
            "keep": False,
            "why": "2 of 64 bits from a",
            "by": "phash",
            "distance": 2.0,
            "width": 1,
            "height": 1,
            "path": "b.jpg",
        },
    ]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"by": "sha256"}, "by must be of exact, phash, embedding, but got 'sha256'"),
        ({"by": " , "}, "by must be of"),
        ({"distance": 17}, "distance must be 0..16 bits, but got 17"),
        ({"cosine": 0.0}, "cosine must be above 0 and at most 1"),
        ({"cosine": float("nan")}, "cosine must be above 0"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, complaint):
    with pytest.raises(ValueError, match=complaint):
        DuplicateOptions(**options)


def test_vectors_of_different_lengths_are_refused():
    images = [Fingerprint("a", vector=unit(1, 0)), Fingerprint("b", vector=unit(1, 0, 0))]
    with pytest.raises(ValueError, match="vectors must have 2 numbers, but b has 3"):
        list(find_duplicates(images, EVERY))


def test_a_full_disk_is_told_in_one_line_and_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    schema = duplicates_images._SCHEMA + "PRAGMA max_page_count = 20;"
    monkeypatch.setattr(duplicates_images, "_SCHEMA", schema)
    images = (Fingerprint(f"{i:0200}", sha256=f"{i % 7}") for i in range(5000))
    with pytest.raises(OutputError, match=r"cannot write temporary files \(.*full.*TMPDIR chooses"):
        list(find_duplicates(images))
    assert not list(tmp_path.iterdir())
