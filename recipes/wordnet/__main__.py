"""Makes the list of WordNet's synset names from the Debian package `wordnet-base`.

python -m recipes.wordnet --work build/wordnet
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import subprocess
from pathlib import Path

from annotary.curation._frequencies import Malformed
from annotary.curation._wordnet import SHIPPED, each_once, read_names
from recipes.starter.packages import fresh

PACKAGE = "wordnet-base"
NAMES = 86_554
"""MetaCLIP's table 1 says 86,654, which counts the hundred numbers that its list begins with."""

_LICENCE_LINES = 29
"""Lines at the head of each of WordNet's data files."""


def main() -> None:
    """Make the list, and say what is in it."""
    parser = argparse.ArgumentParser(prog="python -m recipes.wordnet", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/wordnet"))
    parser.add_argument("--wordnet", type=Path, help="a folder with data.noun …, instead")
    parser.add_argument("--output", type=Path, default=SHIPPED)
    values = parser.parse_args()
    folder = values.wordnet or _fetched(values.work)
    malformed = Malformed()
    names = each_once(read_names(folder, malformed))
    if len(names) != NAMES or malformed.count:
        raise SystemExit(f"{len(names):,} names, {malformed.count} bad lines; not WordNet 3.0?")
    values.output.parent.mkdir(parents=True, exist_ok=True)
    content = _compressed("".join(f"{name}\n" for name in names).encode())
    values.output.write_bytes(content)
    values.output.with_name("LICENCE.txt").write_text(_licence(folder), encoding="utf-8")
    digest = hashlib.sha256(gzip.decompress(content)).hexdigest()
    print(f"{len(names):,} names, {len(content):,} bytes; sha256 of the text {digest}")


def _fetched(work: Path) -> Path:
    """The folder of WordNet's files, downloaded and unpacked once."""
    folder = work / "package"
    if not folder.is_dir():
        temporary = fresh(folder)
        subprocess.run(["apt-get", "download", PACKAGE], check=True, cwd=temporary)
        for package in sorted(temporary.glob("*.deb")):
            subprocess.run(["dpkg-deb", "-x", str(package), str(temporary)], check=True)
            package.unlink()
        temporary.rename(folder)
    return folder / "usr" / "share" / "wordnet"


def _compressed(text: bytes) -> bytes:
    """Compressed so that the same text gives the same bytes: without a time or a name."""
    file = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=file, mtime=0) as packed:
        packed.write(text)
    return file.getvalue()


def _licence(folder: Path) -> str:
    """The licence, as it stands at the head of the data files: each line behind its number."""
    head = (folder / "data.noun").read_text(encoding="latin-1").split("\n")[:_LICENCE_LINES]
    lines = [line.strip().partition(" ")[2].strip() for line in head]
    return "\n".join(lines).strip() + "\n"


if __name__ == "__main__":
    main()
