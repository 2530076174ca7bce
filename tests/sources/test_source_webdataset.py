from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annotary.errors import NothingToDo, UsageError
from annotary.records import Failure, Item
from annotary.sources import SourceOptions, open_sources, webdataset
from annotary.sources._tar import LONGEST_HEADER

END = 1024  # bytes of zeros


def tarred(
    path: str, members: dict[str, bytes] | list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT
) -> str:
    pairs = list(members.items()) if isinstance(members, dict) else members
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    mode = "w:gz" if path.endswith("gz") else "w"
    with tarfile.open(path, mode, format=form, errors="surrogateescape") as archive:
        for name, data in pairs:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def opened(*arguments: str, **options: object) -> list[Item | Failure]:
    return list(open_sources(arguments, SourceOptions(**options)))  # type: ignore[arg-type]


def names(results: list[Item | Failure]) -> list[str]:
    assert all(isinstance(result, Item) for result in results), results
    return [result.image for result in results]


@pytest.mark.parametrize("name", ["x.tar", "X.TAR", "x.tar.gz", "in/x.tgz"])
def test_items(name: str) -> None:
    tarred(name, {"a.jpg": b"A", "a.txt": b"a cat", "sub/b.png": b"B", "sub/b.json": b"{}"})
    assert opened(name) == [
        Item(f"{name}/a.jpg", data=b"A", relative="a.jpg"),
        Item(f"{name}/sub/b.png", data=b"B", relative="sub/b.png"),
    ]


def test_what_webdataset_writes() -> None:
    wds = pytest.importorskip("webdataset")
    tars = pytest.importorskip("webdataset.tariterators")
    Path("shards").mkdir()
    with wds.ShardWriter("shards/%03d.tar", maxcount=2, verbose=0) as writer:
        for number in range(5):
            sample = {"__key__": f"in/{number:04}", "jpg": bytes([number]), "json": {"n": number}}
            writer.write({**sample, "mask.png": b"mask", "depth.png": b"depth"})
    results = opened("shards/{000..002}.tar")
    assert names(results) == [f"shards/{n // 2:03}.tar/in/{n:04}.jpg" for n in range(5)]
    assert [item.data for item in results] == [bytes([n]) for n in range(5)]
    # What WebDataset itself reads from these.
    read = []
    for shard in range(3):
        with Path(f"shards/{shard:03}.tar").open("rb") as file:
            opened_shard = [{"url": str(shard), "stream": file}]
            samples = tars.group_by_keys(tars.tar_file_expander(opened_shard))
            read += [(sample["__key__"], sample["jpg"]) for sample in samples]
    assert read == [(item.relative.removesuffix(".jpg"), item.data) for item in results]


KEYS = st.lists(
    st.text(alphabet="ab/", min_size=1, max_size=3).filter(
        lambda key: "//" not in key and key[0] != "/" and key[-1] != "/"
    ),
    min_size=1, max_size=6, unique=True,
)  # fmt: skip
ENDINGS = st.lists(
    st.sampled_from(["jpg", "PNG", "seg.png", "a.b.webp", "txt", "json", "cls"]),
    min_size=1, max_size=5, unique=True,
)  # fmt: skip


@given(KEYS.flatmap(lambda keys: st.tuples(*(st.tuples(st.just(key), ENDINGS) for key in keys))))
def test_samples(samples: tuple[tuple[str, list[str]], ...]) -> None:
    pairs = [(f"{key}.{ending}", b"x") for key, endings in samples for ending in endings]
    expected = []
    for key, endings in samples:
        images = [e for e in endings if e.lower().endswith(("jpg", "png", "webp"))]
        best = [e for e in images if "." not in e]
        expected += [f"{key}.{ending}" for ending in best or images]
    tarred("x.tar", pairs)
    results = list(webdataset.items("x.tar", SourceOptions()))
    assert [item.relative for item in results] == expected


def test_photos_with_dots_in_their_names_are_not_lost() -> None:
    many = [f"Screenshot 2026.01.{n:02}.png" for n in range(40)]
    few = ["v1.0.jpg", "v1.1.jpg", "w.1.jpg"]
    tarred("x.tar", dict.fromkeys(many + few, b"x"))
    assert [item.relative for item in opened("x.tar")] == many + few


def test_with_patterns_exactly_what_matches_is_taken() -> None:
    tarred("x.tar", dict.fromkeys(["a.jpg", "a.seg.png", "in/b.jpg", "in/b.txt", "in/c.jpg"], b"x"))

    def taken(**options: object) -> list[str]:
        return [item.relative for item in opened("x.tar", **options)]

    assert taken(include_files=("*.seg.png",)) == ["a.seg.png"]
    assert taken(include_files=("in/b.*",)) == ["in/b.jpg", "in/b.txt"]
    assert taken(exclude_files=("in",)) == ["a.jpg"]
    assert taken(exclude_files=("in/",)) == ["a.jpg"]
    assert taken(exclude_files=("*.jpg",)) == ["a.seg.png"]


def test_a_tar_of_a_folder() -> None:
    for path in ("photos/in/a.jpg", "photos/b.jpg", "photos/.hidden/c.jpg", "photos/._b.jpg"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(path.encode())
    Path("photos/link.jpg").symlink_to("b.jpg")
    os.mkfifo("photos/pipe.jpg")
    with tarfile.open("x.tar", "w") as archive:
        archive.add("photos", arcname=".")
    results = opened("x.tar")
    assert sorted(names(results)) == ["x.tar/b.jpg", "x.tar/in/a.jpg"]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_names(form: int) -> None:
    odd = ["Käse.jpg", "a b\n.jpg", os.fsdecode(b"caf\xe9.jpg")]
    if form != tarfile.USTAR_FORMAT:
        odd.append("d" * 150 + "/" + "e" * 300 + ".jpg")
    tarred("x.tar", dict.fromkeys(odd, b"x"), form)
    assert [item.relative for item in opened("x.tar")] == odd


@pytest.mark.parametrize(
    "name",
    ["../a.jpg", "in/../../a.jpg", "/etc/a.jpg", "C:/a.jpg", "c:a.jpg", "..\\a.jpg", "\\a.jpg"],
)
def test_nothing_leads_outside(name: str) -> None:
    tarred("x.tar", {name: b"x", "b.jpg": b"B"})
    outside, inside = opened("x.tar")
    message = "its path in the archive leads outside of it"
    assert outside == Failure(f"x.tar/{name}", "UnreachableImage", message)
    assert inside.image == "x.tar/b.jpg"


def test_a_member_that_is_too_large_is_passed_over() -> None:
    large = b"\0" * 30_000_000
    tarred("x.tar.gz", {"a.jpg": b"A" * 1000, "b.jpg": large, "c.jpg": b"C"})
    tracemalloc.start()
    results = opened("x.tar.gz", max_bytes=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert [result.image for result in results] == [f"x.tar.gz/{name}.jpg" for name in "abc"]
    assert isinstance(results[1], Failure)
    assert results[1].message == "larger than 1,000 bytes (--max-bytes)"
    assert peak < 3_000_000


def test_memory_stays_flat() -> None:
    size, count = 100_000, 300
    with tarfile.open("x.tar", "w") as archive:
        for number in range(count):
            for ending in ("jpg", "txt", "seg.png"):
                member = tarfile.TarInfo(f"{number:05}.{ending}")
                member.size = size
                archive.addfile(member, io.BytesIO(bytes(size)))
    items = webdataset.items("x.tar", SourceOptions())
    next(items)
    tracemalloc.start()
    taken = sum(isinstance(item, Item) for item in items)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert taken == count - 1
    assert peak < 10 * size


def test_other_shards_are_not_held_either() -> None:
    tarred("x.tar", {f"{n}.jpg": b"x" for n in range(100)})
    options = SourceOptions(shard="3/7")
    found = list(webdataset.items("x.tar", options))
    assert len(found) == 100
    given = [item for item in found if item is not None]
    assert given == opened("x.tar", shard="3/7")
    assert 0 < len(given) < 40


class TestDamage:
    """Four images of 1,000 bytes: each takes a header of 512 bytes and 1,024 of content."""

    @pytest.fixture
    def whole(self) -> bytes:
        tarred("whole.tar", {f"{n}.jpg": b"x" * 1000 for n in range(4)})
        return Path("whole.tar").read_bytes()

    def broken(self, data: bytes, name: str = "x.tar") -> tuple[int, str]:
        """How many images come, and what is said; another argument follows."""
        Path(name).write_bytes(data)
        Path("next.jpg").touch()
        *images, failure, after = opened(name, "next.jpg")
        assert after.image == "next.jpg"
        assert isinstance(failure, Failure)
        assert failure.image == name
        assert failure.error == "UnreachableImage"
        assert all(isinstance(image, Item) for image in images)
        return len(images), failure.message

    @pytest.mark.parametrize(
        ("length", "count", "why"),
        [
            (2 * 1536 + 512 + 100, 2, "unexpected end of data"),
            (2 * 1536 + 100, 2, "damaged, truncated header"),
            (2 * 1536, 2, "it ends without the mark of its end"),
            (4 * 1536, 4, "it ends without the mark of its end"),
            (100, 0, "damaged, truncated header"),
            (0, 0, "empty file"),
        ],
    )
    def test_cut(self, whole: bytes, length: int, count: int, why: str) -> None:
        told = (
            f"only {count} images of this archive could be read"
            if count
            else "this archive cannot be read"
        )
        message = f"{told}: {why}"
        assert self.broken(whole[:length]) == (count, message)

    @given(cut=st.integers(0, 4 * 1536))
    def test_cut_anywhere(self, cut: int) -> None:
        tarred("whole.tar", {f"{n}.jpg": b"x" * 1000 for n in range(4)})
        data = Path("whole.tar").read_bytes()
        count, _ = self.broken(data[:cut])
        # The padding behind the last content that is whole may be missing.
        assert count == (cut + 24) // 1536

    @given(data=st.data(), form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    def test_any_damage_is_a_failure(self, data: st.DataObject, form: int) -> None:
        names = ["a.jpg", "d" * 150 + "/b.jpg", "é.jpg", "c.jpg"]
        content = bytearray(
            Path(tarred("whole.tar", dict.fromkeys(names, b"x"), form)).read_bytes()
        )
        is_header = [at for at in range(0, len(content) - 512, 512) if any(content[at : at + 512])]
        for _ in range(data.draw(st.integers(1, 3))):
            at = data.draw(st.sampled_from(is_header)) + data.draw(st.integers(0, 511))
            content[at] = data.draw(st.integers(0, 255))
            if data.draw(
                st.booleans()
            ):  # the sum is right, so that what is in the header is believed
                start = at // 512 * 512
                content[start + 148 : start + 156] = b" " * 8
                total = sum(content[start : start + 512])
                content[start + 148 : start + 156] = b"%06o\0 " % total
        Path("x.tar").write_bytes(content)
        for result in webdataset.items("x.tar", SourceOptions(max_bytes=10_000)):
            assert isinstance(result, Item | Failure)
            assert result.image.startswith("x.tar")

    def test_a_damaged_header_is_not_the_end(self, whole: bytes) -> None:
        data = bytearray(whole)
        data[2 * 1536 + 10] ^= 0xFF
        count, message = self.broken(bytes(data))
        assert count == 2
        assert message == "only 2 images of this archive could be read: damaged, bad checksum"

    def test_what_waits_for_the_rest_of_its_sample_is_given(self) -> None:
        names = [f"a.{n}.jpg" for n in range(4)]
        data = Path(tarred("whole.tar", dict.fromkeys(names, b"x" * 1000))).read_bytes()
        count, message = self.broken(data[: 3 * 1536])
        assert (count, message.partition(":")[0]) == (
            3,
            "only 3 images of this archive could be read",
        )

    def test_one_image(self, whole: bytes) -> None:
        assert "only 1 image of this archive could be read" in self.broken(whole[:1600])[1]

    def test_no_tar(self) -> None:
        assert self.broken(b"\xff\xd8\xff" * 1000)[0] == 0
        assert self.broken(b"\x1f\x8b" + b"x" * 1000, "x.tgz")[0] == 0

    @pytest.mark.parametrize("kept", [0.05, 0.5, 0.98])
    def test_gzip_cut(self, kept: float) -> None:
        tarred("whole.tgz", {f"{n}.jpg": os.urandom(1000) for n in range(20)})
        data = Path("whole.tgz").read_bytes()
        count, message = self.broken(data[: int(len(data) * kept)], "x.tgz")
        assert count < 20
        assert "Compressed file ended before the end-of-stream marker was reached" in message

    def test_gzip_damaged(self) -> None:
        tarred("whole.tgz", {f"{n}.jpg": os.urandom(1000) for n in range(200)})
        data = bytearray(Path("whole.tgz").read_bytes())
        data[len(data) // 2 : len(data) // 2 + 100] = bytes(100)
        count, _ = self.broken(bytes(data), "x.tgz")
        assert count <= 200

    def test_what_is_behind_the_end_is_not_lost(self, whole: bytes) -> None:
        Path("x.tar").write_bytes(whole + tarred_bytes({"5.jpg": b"5"}))
        assert [item.relative for item in opened("x.tar")] == [
            "0.jpg", "1.jpg", "2.jpg", "3.jpg", "5.jpg",
        ]  # fmt: skip
        assert self.broken(whole + b"junk" * 200)[0] == 4
        Path("x.tgz").write_bytes(gzip.compress(whole[: 4 * 1536]) + gzip.compress(bytes(END)))
        assert len(opened("x.tgz")) == 4

    def test_a_header_cannot_claim_memory(self, whole: bytes) -> None:
        header = tarfile.TarInfo("x")
        header.type = tarfile.XHDTYPE
        header.size = 4_000_000_000
        tracemalloc.start()
        data = whole[:1536] + header.tobuf(tarfile.GNU_FORMAT) + bytes(10 * LONGEST_HEADER)
        count, message = self.broken(data)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        told = "damaged, a header of more than 1,048,576 bytes"
        assert (count, message.rpartition(": ")[2]) == (1, told)
        assert peak < 40 * LONGEST_HEADER

    def test_a_size_without_end_ends_with_the_file(self, whole: bytes) -> None:
        member = tarfile.TarInfo("x.jpg")
        member.size = 2**80
        Path("x.tar").write_bytes(whole[:1536] + member.tobuf(tarfile.GNU_FORMAT) + whole)
        image, large, failure = opened("x.tar")
        assert isinstance(image, Item)
        assert large.message == "larger than 268,435,456 bytes (--max-bytes)"
        assert (
            failure.message == "only 1 image of this archive could be read: unexpected end of data"
        )

    def test_headers_that_follow_headers(self) -> None:
        header = tarfile.TarInfo("x")
        header.type = tarfile.GNUTYPE_LONGNAME
        data = header.tobuf(tarfile.GNU_FORMAT) * 5000
        assert self.broken(data)[0] == 0

    def test_sparse_files(self, whole: bytes) -> None:
        member = tarfile.TarInfo("x.jpg")
        member.type = tarfile.GNUTYPE_SPARSE
        Path("x.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + whole)
        sparse, *others = opened("x.tar")
        message = "a sparse file, which is not read from archives"
        assert sparse == Failure("x.tar/x.jpg", "UnreachableImage", message)
        assert len(others) == 4

    def test_no_permission(self) -> None:
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        Path(tarred("x.tar", {"a.jpg": b"x"})).chmod(0)
        (failure,) = opened("x.tar")
        assert failure.message.endswith("cannot be read: Permission denied")


def tarred_bytes(members: dict[str, bytes]) -> bytes:
    return Path(tarred("bytes.tar", members)).read_bytes()


class TestArguments:
    def test_accepts(self) -> None:
        tarred("s/1.tar", {})
        Path("s/{x}.tar").touch()
        Path("folder.tar").mkdir()
        accepted = (
            "s/1.tar",
            "s/{1..3}.tar",
            "s/{x}.tar",
            "http://x/a.TAR?b",
            "https://x/{0..9}.tgz",
        )
        assert all(webdataset.accepts(argument) for argument in accepted)
        others = (
            "s/2.tar",
            "s/{2..3}.tar",
            "folder.tar",
            "http://x/a.jpg?b=c.tar",
            "s",
            "a.tar.jpg",
        )
        assert not any(webdataset.accepts(argument) for argument in others)

    def test_an_address_of_a_tar_is_no_image(self) -> None:
        (item,) = opened("http://127.0.0.1:9/a.jpg?of=x.tar")
        assert item.url == "http://127.0.0.1:9/a.jpg?of=x.tar"

    def test_all_that_braces_name_must_be_there(self) -> None:
        tarred("s/1.tar", {"a.jpg": b"x"})
        tarred("s/3.tar", {"a.jpg": b"x"})
        with pytest.raises(UsageError) as caught:
            open_sources(["s/{1..3}.tar"], SourceOptions())
        assert str(caught.value) == "no such file: 's/2.tar', of 's/{1..3}.tar'"
        with pytest.raises(UsageError, match=r"no such file or folder: 's/\{4..5\}.tar'"):
            open_sources(["s/{4..5}.tar"], SourceOptions())
        with pytest.raises(UsageError, match="names more than 100,000 files"):
            open_sources(["http://127.0.0.1/{0..9999999999}.tar"], SourceOptions())

    def test_a_file_that_has_braces_in_its_name(self) -> None:
        tarred("{1..3}.tar", {"a.jpg": b"x"})
        assert names(opened("{1..3}.tar")) == ["{1..3}.tar/a.jpg"]

    def test_nothing_found(self) -> None:
        tarred("x.tar", {"a.txt": b"x"})
        with pytest.raises(
            NothingToDo, match=r"no images in x.tar: looked for .avif, .avifs, .*\.webp$"
        ):
            opened("x.tar")
        with pytest.raises(
            NothingToDo, match=r"no images in x.tar: looked for files that match '\*.x'$"
        ):
            opened("x.tar", include_files=("*.x",))
