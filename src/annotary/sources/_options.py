"""The options of sources."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Which images are taken, and how they are read."""

    recursive: bool = True
    """Go into the folders of a folder."""

    include_files: tuple[str, ...] = ()
    """Take only files that match this pattern, such as '*.jpg' or '2024/**'.

    May be given several times.
    """

    exclude_files: tuple[str, ...] = ()
    """Leave out files and folders that match this pattern. May be given several times."""

    timeout: float = 20.0
    """Seconds to wait for a server to connect, and for each piece of its answer."""

    retries: int = 2
    """How often a failed download is tried again."""

    max_bytes: int = 256 * 1024 * 1024
    """Largest encoded image that is read, in bytes."""

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ValueError(f"timeout must be positive, but got {self.timeout}")
        if self.retries < 0:
            raise ValueError(f"retries must not be negative, but got {self.retries}")
        if self.max_bytes < 1:
            raise ValueError(f"max_bytes must be positive, but got {self.max_bytes}")
