"""The options of sources."""

from __future__ import annotations

from dataclasses import dataclass, field

from annotary.sources._shard import Shard


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Which images are taken, and how they are read."""

    recursive: bool = True
    """Go into the folders of a folder."""

    include_files: tuple[str, ...] = field(default=(), metadata={"metavar": "PATTERN"})
    """Take only files that match this pattern, such as '*.jpg' or '2024/**'.

    May be given several times.
    """

    exclude_files: tuple[str, ...] = field(default=(), metadata={"metavar": "PATTERN"})
    """Leave out files and folders that match this pattern. May be given several times."""

    shard: str | None = field(default=None, metadata={"metavar": "I/N"})
    """Do only a part of the images, for many machines: 2/8 is the second of eight.

    Which images that are depends on their names below what is named, not on their order or number.
    """

    image_column: str | None = field(default=None, metadata={"metavar": "NAME"})
    """Column of a CSV or Parquet table that holds the images: paths, addresses or encoded bytes.

    Otherwise the first column with a usual name is taken, such as image, path, file_name or url.
    """

    timeout: float = 20.0
    """Seconds to wait for a server to connect, and for each piece of its answer."""

    retries: int = 2
    """How often a failed download is tried again."""

    max_bytes: int = 256 * 1024 * 1024
    """Largest encoded image that is read, in bytes."""

    def __post_init__(self) -> None:
        Shard.of(self.shard)
        if not self.timeout > 0:
            raise ValueError(f"timeout must be positive, but got {self.timeout}")
        if self.retries < 0:
            raise ValueError(f"retries must not be negative, but got {self.retries}")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes must be positive, but got {self.max_bytes}")
