"""Models from the Hugging Face hub: what a repository holds, downloads that go on where they stopped, and checks.

Files lie in the hub's own cache, where every other program finds them: `HF_HOME`, `HF_ENDPOINT` (a mirror),
`HF_HUB_OFFLINE` and `HF_TOKEN` mean what they always do. Beside them, `annotary.json` notes which commit a name stood
for when it was fetched and what its files were, so that a name keeps its meaning and a run needs no network.

A file is fetched to a name of its own and gets its place when its checksum is right: the hub's (its ETag is the sha256
of large files and git's sha1 of small ones), and the one that the caller expects.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeAlias

from annotary.errors import ModelError, UsageError

PREFIX = "hf:"
RECORD_FILE = "annotary.json"

Progress: TypeAlias = Callable[[str, int, int], None]
"""Told the file's name, how many of its bytes are here, and how many it has."""

_ATTEMPTS = 5
"""How often a download is taken up again when nothing more comes; what comes starts the count anew."""

_PAUSE = 1.0
"""Seconds before the first new attempt; each further pause without progress is twice as long."""

_FOR_NOW = (408, 429, 500, 502, 503, 504)
"""Answers of servers that may be better next time."""

_PIECE = 1 << 20
"""Bytes that are read at a time for a checksum."""


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository of the hub at a revision.

    Attributes:
        name: `owner/name`.
        revision: A branch, a tag or a commit.
    """

    name: str
    revision: str = "main"

    def __post_init__(self) -> None:
        part = r"[A-Za-z0-9][\w.-]*"
        if not re.fullmatch(f"{part}/{part}", self.name) or ".." in self.name:
            raise UsageError(
                f"{PREFIX}{self.name} names no repository; write {PREFIX}OWNER/NAME, or"
                f" {PREFIX}OWNER/NAME@REVISION"
            )
        if not re.fullmatch(r"[\w][\w./+-]*", self.revision) or ".." in self.revision:
            raise UsageError(f"{self.revision!r} cannot be a revision of {self.name}")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The repository that `hf:owner/name` or `hf:owner/name@revision` names.

        Raises:
            UsageError: The text names none.
        """
        name, at, revision = text.removeprefix(PREFIX).partition("@")
        return cls(name, revision if at else "main")

    @property
    def is_pinned(self) -> bool:
        """Whether the revision is a commit, which never changes."""
        return re.fullmatch("[0-9a-f]{40}", self.revision) is not None

    def __str__(self) -> str:
        return PREFIX + self.name + ("" if self.revision == "main" else f"@{self.revision}")


@dataclass(frozen=True, slots=True)
class Listing:
    """What a repository holds.

    Attributes:
        commit: That the revision stands for, 40 hexadecimal digits.
        sizes: Name to bytes (0 where the hub does not say) of the files at its top and in its folders, `folder/file`.
        licence: As the repository states it; empty when it does not.
    """

    commit: str
    sizes: Mapping[str, int]
    licence: str = ""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A repository's files that are on this machine.

    Attributes:
        directory: Where they are.
        commit: Of the repository.
        files: File name to sha256 as it was when the file was fetched; only of files that annotary fetched.
        licence: As the repository stated it.
    """

    directory: Path
    commit: str
    files: Mapping[str, str] = field(default_factory=dict)
    licence: str = ""


def is_offline() -> bool:
    """Whether `HF_HUB_OFFLINE` forbids connections."""
    return bool(_constants().HF_HUB_OFFLINE)


def on_disk(repository: Repository) -> Snapshot | None:
    """What is on this machine of a repository at a revision; None when nothing is."""
    folder = _folder(repository)
    record = _read_record(folder)
    commit = repository.revision
    if repository.revision in record:
        commit = record[repository.revision]["commit"]
    elif not repository.is_pinned:  # fetched by another program
        with contextlib.suppress(OSError, ValueError):
            commit = (folder / "refs" / repository.revision).read_text("utf-8").strip()
    directory = folder / "snapshots" / commit
    if not re.fullmatch("[0-9a-f]{40}", commit) or not directory.is_dir():
        return None
    files: dict[str, str] = {}
    licence = ""
    for noted in record.values():  # whatever name it was fetched by
        if noted["commit"] == commit:
            files |= noted["files"]
            licence = licence or noted["licence"]
    return Snapshot(directory, commit, files, licence)


def cached_digest(path: Path) -> str:
    """The sha256 that a file of the cache has, or must have, by the name under which the cache keeps its content.

    It is empty where the cache has no links. Small files, which the hub knows by git's sha1, are read.

    Raises:
        ModelError: A small file is not what the cache's name for it says.
    """
    tag = path.resolve().name if path.is_symlink() else ""
    if re.fullmatch("[0-9a-f]{64}", tag):
        return tag
    if not re.fullmatch("[0-9a-f]{40}", tag):
        return ""
    try:
        if not _fits(path, tag, ""):
            raise ModelError(f"{path} is damaged: it has not the checksum that it was fetched with")
        return _sha256(path)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}") from error


def list_files(repository: Repository, hint: str = "") -> Listing:
    """Ask the hub what a repository holds.

    Args:
        repository: Which one.
        hint: What to do when the hub cannot be reached, for the message.

    Raises:
        ModelError: It cannot be reached, or has no such repository or revision.
    """
    with _told(repository, hint):
        from huggingface_hub import HfApi

        api = HfApi(endpoint=_constants().ENDPOINT)
        try:
            info = api.model_info(
                repository.name,
                revision=repository.revision,
                files_metadata=True,
                timeout=_timeout(),
            )
            return _listing(info, repository)
        except (KeyError, TypeError, AttributeError) as error:  # JSON of another kind
            raise ValueError(f"{type(error).__name__}: {error}") from error


def _listing(info: Any, repository: Repository) -> Listing:
    """What the hub says of a repository, as far as it is what a hub says."""
    sizes = {
        entry.rfilename: entry.size if isinstance(entry.size, int) else 0
        for entry in info.siblings or ()
    }
    commit = info.sha or ""
    if not isinstance(commit, str) or not re.fullmatch("[0-9a-f]{40}", commit):
        raise ModelError(f"{_constants().ENDPOINT} gives no commit for {repository}")
    licence = (info.card_data.get("license") if info.card_data else None) or ""
    told = ", ".join(map(str, licence)) if isinstance(licence, list) else str(licence)
    near = {name: size for name, size in sizes.items() if _is_near(name)}
    return Listing(commit, near, told)


def _is_near(name: str) -> bool:
    """Whether a file is at the top of a repository or in a folder there. Names are a stranger's."""
    parts = name.split("/")
    return len(parts) <= 2 and "\\" not in name and not {"", ".", ".."} & set(parts)


def fetch(
    repository: Repository,
    listing: Listing,
    expected: Mapping[str, str],
    progress: Progress | None = None,
) -> Snapshot:
    """Fetch files of a repository, unless they are here and whole. `note` then gives the revision its meaning.

    Args:
        repository: Which one.
        listing: What it holds; the files are those of its commit.
        expected: Names of the files to their sha256; empty where only the hub knows it.
        progress: Is told how far each file is.

    Returns:
        These files, which are on this machine now.

    Raises:
        ModelError: A file cannot be had, or is not what was expected. What came of it stays for the next attempt,
            unless it was wrong.
    """
    digests: dict[str, str] = {}
    with _told(repository, "; what has come is kept, and annotary pull goes on from there"):
        for name, wanted in expected.items():
            digests[name] = _fetch_file(repository, listing.commit, name, wanted, progress)
    directory = _folder(repository) / "snapshots" / listing.commit
    return Snapshot(directory, listing.commit, digests, listing.licence)


def note(repository: Repository, snapshot: Snapshot) -> None:
    """Note that a revision stands for what was fetched, once all that is needed of it is here.

    Raises:
        ModelError: It cannot be written.
    """
    folder = _folder(repository)
    with _told(repository), _lock(folder, RECORD_FILE):
        record = _read_record(folder)
        before = record.get(repository.revision)
        files = dict(snapshot.files)
        if before is not None and before["commit"] == snapshot.commit:
            files = {**before["files"], **files}
        elif before is not None:  # its files stay, and can be asked for by their commit
            record.setdefault(before["commit"], before)
        entry = {"commit": snapshot.commit, "files": files, "licence": snapshot.licence}
        _write_record(folder, {**record, repository.revision: entry})


def _fetch_file(
    repository: Repository, commit: str, name: str, wanted: str, progress: Progress | None
) -> str:
    """Bring one file into the cache; gives its sha256."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    endpoint, folder = _constants().ENDPOINT, _folder(repository)
    address = hf_hub_url(repository.name, name, revision=commit, endpoint=endpoint)
    about = get_hf_file_metadata(address, timeout=_timeout(), endpoint=endpoint)
    tag = about.etag or ""
    if not re.fullmatch("[0-9a-f]{64}|[0-9a-f]{40}", tag):
        raise ModelError(f"{endpoint} gives no checksum for {name} of {repository}; is it a hub?")
    if len(tag) == 64 and wanted not in ("", tag):
        raise _another(repository, name, tag, wanted)
    blob, pointer = folder / "blobs" / tag, folder / "snapshots" / commit / name
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _lock(folder, tag):
        present = pointer if pointer.is_file() else blob
        if present.is_file():
            if _fits(present, tag, wanted):
                if progress is not None:
                    progress(name, present.stat().st_size, present.stat().st_size)
            else:  # it was damaged on this disk
                blob.unlink(missing_ok=True)
                pointer.unlink(missing_ok=True)
        if not pointer.is_file() and not blob.is_file():
            part = blob.with_name(f"{tag}.annotary-part")
            _check_space(folder, about.size, part)
            headers = _utils().build_hf_headers(library_name="annotary")
            _download(
                address, headers, part, about.size, lambda d, a: _report(progress, name, d, a)
            )
            if not _fits(part, tag, wanted):
                is_whole, found = _fits(part, tag, ""), _sha256(part)
                part.unlink()
                if is_whole:
                    raise _another(repository, name, found, wanted)
                raise ModelError(
                    f"{name} of {repository} came damaged (sha256 {found}); it was thrown away, and the"
                    " next pull fetches it anew"
                )
            os.replace(part, blob)
    path = hf_hub_download(
        repository.name,
        name,
        revision=commit,
        cache_dir=folder.parent,
        endpoint=endpoint,
        library_name="annotary",
    )
    return _sha256(Path(path))


def _download(
    address: str,
    headers: Mapping[str, str],
    part: Path,
    size: int | None,
    report: Callable[[int, int], None],
) -> None:
    """Fetch a file, from where an earlier attempt ended; a broken connection is taken up again."""
    from huggingface_hub.errors import HfHubHTTPError

    left, pause, most = _ATTEMPTS, _PAUSE, part.stat().st_size if part.exists() else 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        if size is None or before > size:
            part.unlink(missing_ok=True)
            before = 0
        if before and before == size:
            return
        problem: Exception | None = None
        try:
            _receive(address, headers, part, before, lambda here: report(here, size or 0))
        except _connection_errors() as error:
            problem = error
        except HfHubHTTPError as error:
            if error.response.status_code not in _FOR_NOW:
                raise
            problem = error
        here = part.stat().st_size if part.exists() else 0
        if problem is None and (size is None or here == size):
            return
        left, pause = (_ATTEMPTS, _PAUSE) if here > most else (left - 1, pause)
        most = max(most, here)
        if left <= 0:
            raise problem or _connection_errors()[0](f"it ends after {here:,} bytes")
        time.sleep(pause)
        pause *= 2


def _receive(
    address: str,
    headers: Mapping[str, str],
    part: Path,
    here: int,
    report: Callable[[int], None],
) -> None:
    """Ask once for what is missing, and write what comes."""
    from huggingface_hub import get_session

    # Compressed on the way, the bytes could not be counted.
    asked = {**headers, "Accept-Encoding": "identity"}
    if here:
        asked["Range"] = f"bytes={here}-"
    with get_session().stream("GET", address, headers=asked, timeout=_timeout()) as answer:
        _utils().hf_raise_for_status(answer)
        if answer.status_code != 206:
            here = 0
        with part.open("ab" if here else "wb", buffering=0) as file:
            report(here)
            for piece in answer.iter_bytes():
                file.write(piece)
                here += len(piece)
                report(here)


def _another(repository: Repository, name: str, found: str, wanted: str) -> ModelError:
    return ModelError(
        f"{name} of {repository} is another file at {_constants().ENDPOINT} than it should be: sha256"
        f" {found}, expected {wanted}"
    )


def _report(progress: Progress | None, name: str, done: int, total: int) -> None:
    if progress is not None:
        progress(name, done, total)


def _fits(path: Path, tag: str, wanted: str) -> bool:
    """Whether a file has the checksum that the hub tells, and the one that was expected."""
    if len(tag) == 40:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                digest.update(piece)
        if digest.hexdigest() != tag:
            return False
        tag = ""
    needed = {tag, wanted} - {""}
    return not needed or needed == {_sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_space(folder: Path, size: int | None, part: Path) -> None:
    free = shutil.disk_usage(folder).free
    missing = (size or 0) - (part.stat().st_size if part.exists() else 0)
    if missing > free:
        raise OSError(errno.ENOSPC, f"{missing:,} bytes are needed and {free:,} are free")


def _lock(folder: Path, name: str) -> Any:
    """The hub's own kind of lock for something of a repository, where the hub has them."""
    path = folder.parent / ".locks" / folder.name / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    return _utils().WeakFileLock(path)


def _folder(repository: Repository) -> Path:
    """Where the hub's cache keeps a repository."""
    cache = Path(_constants().HF_HUB_CACHE).expanduser()
    return cache / ("models--" + repository.name.replace("/", "--"))


def _read_record(folder: Path) -> dict[str, Any]:
    """Revision to commit, files and licence, as noted; what is no such note is as if it were not there."""
    try:
        noted = json.loads((folder / RECORD_FILE).read_text("utf-8"))
        return {
            str(revision): {
                "commit": str(entry["commit"]),
                "files": {str(name): str(digest) for name, digest in entry["files"].items()},
                "licence": str(entry["licence"]),
            }
            for revision, entry in noted.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Note what was fetched, all or nothing."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=folder, prefix=f".{RECORD_FILE}.", delete=False
    ) as file:
        json.dump(record, file, indent=1)
    os.replace(file.name, folder / RECORD_FILE)


@contextmanager
def _told(repository: Repository, hint: str = "") -> Iterator[None]:
    """Whatever goes wrong with the hub as one line."""
    from huggingface_hub import errors

    endpoint = _constants().ENDPOINT
    unreachable: tuple[type[Exception], ...] = (*_connection_errors(), errors.FileMetadataError)
    try:
        yield
    except errors.OfflineModeIsEnabled as error:
        raise ModelError(f"HF_HUB_OFFLINE forbids to ask {endpoint} for {repository}") from error
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{repository} is given only to those who accepted its terms: do so at"
            f" {endpoint}/{repository.name}, then set HF_TOKEN or run hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelError(f"{repository.name} has no revision {repository.revision!r}") from error
    except errors.RepositoryNotFoundError as error:
        raise ModelError(
            f"{endpoint} has no {repository.name}, or shows it only to those who may see it (HF_TOKEN)"
        ) from error
    except errors.EntryNotFoundError as error:
        raise ModelError(f"{repository} has not all files of the model: {_first(error)}") from error
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        hint = " (set HF_TOKEN or run hf auth login)" if code in (401, 403) else ""
        raise ModelError(f"{endpoint} answers {code} for {repository}{hint}") from error
    except unreachable as error:
        raise ModelError(
            f"cannot fetch {repository} from {endpoint}: {_first(error)}{hint}"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            cache = _constants().HF_HUB_CACHE
            raise ModelError(
                f"the disk of {cache} is full: {repository} needs more room; HF_HOME names another place"
            ) from error
        where = f"{error.filename}: " if error.filename else ""
        raise ModelError(f"cannot fetch {repository}: {where}{_first(error)}") from error
    except ValueError as error:
        raise ModelError(f"{endpoint} gives no sense for {repository}: {_first(error)}") from error


def _connection_errors() -> tuple[type[Exception], ...]:
    """What the library under huggingface_hub raises when a connection fails; which library it is has changed."""
    _utils()  # they import the library
    return tuple(
        getattr(sys.modules[library], name)
        for library in ("httpx2", "httpx")
        if library in sys.modules
        for name in ("TransportError", "StreamError")
    )


def _timeout() -> float:
    return float(_constants().HF_HUB_DOWNLOAD_TIMEOUT)


def _constants() -> Any:
    """The settings of huggingface_hub, imported without its telemetry."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants

    return constants


def _utils() -> Any:
    import huggingface_hub.utils

    return huggingface_hub.utils


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


__all__: Sequence[str] = (
    *("Listing", "Progress", "Repository", "Snapshot"),
    *("cached_digest", "fetch", "is_offline", "list_files", "note", "on_disk"),
)
