"""ExifTool as the writer of XMP packets into GIF, AVIF, HEIC and JPEG XL files.

ExifTool (https://exiftool.org, by Phil Harvey; the Artistic licence or the GPL) is a program in Perl, found on the
path. Starting it takes 0.3 s, so that one process serves all images of a run (its option `-stay_open`): 2 to 40 ms an
image. It works on copies with plain names in a folder of its own, and never sees the images or their names.
"""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import weakref
from pathlib import Path

from annotary.errors import SidecarError
from annotary.sinks._blocks import PACKETS, RESTS, format_of
from annotary.sinks._containers import Container

ADDRESS = "https://exiftool.org"

TIMEOUT = 120.0
"""Seconds for one image; 12 megapixels take 0.04."""

_END_TIMEOUT = 5.0
"""Seconds that it has to end when it is told to."""

_UNTIL_THE_END = """\
{ cat; printf '\\n-stay_open\\nFalse\\n'; } |
    { "$1" -config "" -stay_open True -@ -; printf '\\n{ended}\\n'; }
rm -rf -- "$2"
"""
"""A process that is killed cannot end its ExifTool, which waits for more when its input ends. So the shell tells it to
stop then, and takes the folder away. The shell also tells when ExifTool ends on its own."""


class ExifTool:
    """ExifTool, started when the first image needs it. It is for one thread.

    Args:
        timeout: Seconds after which an image is given up.
    """

    def __init__(self, timeout: float = TIMEOUT) -> None:
        self._timeout = timeout
        self._process: _Process | None = None

    def with_packet(self, name: str, data: bytes, packet: bytes) -> bytes:
        """A file with another packet in it.

        Args:
            name: Its format, for messages.
            data: The file.
            packet: What the whole packet is to be.

        Raises:
            SidecarError: There is no ExifTool, or it cannot do it.
        """
        if self._process is None:
            self._process = _Process(_program(name))
        folder = self._process.folder
        try:
            (folder / "out").unlink(missing_ok=True)
            (folder / "in").write_bytes(data)
            (folder / "packet").write_bytes(packet)
            told = self._process.run(["-m", "-XMP<=packet", "-o", "out", "in"], self._timeout)
            if (folder / "out").exists():
                return (folder / "out").read_bytes()
        except OSError as error:
            self.close()
            raise SidecarError(f"ExifTool failed: {error.strerror or error}") from error
        except (
            BaseException
        ):  # Ctrl-C: what it still says would be taken for the answer to the next command
            self.close()
            raise
        raise SidecarError(f"ExifTool cannot write into it: {_reason(told)}")

    def close(self) -> None:
        """End the process, and wait until it is gone."""
        if self._process is not None:
            self._process.end()
            self._process = None


class _Process:
    """A running ExifTool and its folder. They go when `end` is called, when nobody has it any more, or at exit."""

    def __init__(self, program: str) -> None:
        try:
            self.folder = Path(tempfile.mkdtemp(prefix="annotary-"))
        except OSError as error:
            raise SidecarError(f"ExifTool needs a temporary folder: {error.strerror}") from error
        has_shell = os.name == "posix"
        direct = [program, "-config", "", "-stay_open", "True", "-@", "-"]
        watched = ["/bin/sh", "-c", _UNTIL_THE_END, "sh", program, str(self.folder)]
        try:
            # In a session of its own, so that Ctrl-C ends the run and not what the run is still writing.
            self._child = subprocess.Popen(
                watched if has_shell else direct,
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=has_shell,
            )
        except OSError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise SidecarError(f"ExifTool cannot be started: {error.strerror}") from error
        self.end = weakref.finalize(self, _end, self._child, self.folder)

    def run(self, arguments: list[str], timeout: float) -> str:
        """Give it a command, and wait until it is done.

        Returns:
            What it says.

        Raises:
            OSError: It is gone.
        """
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        timer = threading.Timer(timeout, _kill, (self._child,))
        timer.daemon = True
        timer.start()
        try:
            self._child.stdin.write(("\n".join(arguments) + "\n-execute\n").encode())
            self._child.stdin.flush()
            told: list[bytes] = []
            for line in self._child.stdout:
                if line.rstrip().endswith(b"{ready}"):
                    return b"".join(told).decode("utf-8", "replace")
                if line == b"{ended}\n":
                    break
                told.append(line)
        finally:
            timer.cancel()
        said = b"".join(told).decode("utf-8", "replace")
        raise OSError(f"it ended before it was done: {_reason(said)}")


def container_of(beginning: bytes, exiftool: ExifTool) -> Container | None:
    """A format that ExifTool writes, by the first bytes of a file (`_blocks.BEGINNING` are enough); None for others."""
    name = format_of(beginning)
    if name is None:
        return None
    # Bytes move in AVIF and HEIC, and numbers that say where they stand are written anew.
    has_index = name in ("AVIF", "HEIC")
    with_packet = functools.partial(exiftool.with_packet, name)
    return Container(name, PACKETS[name], with_packet, RESTS[name], has_index)


def _program(name: str) -> str:
    found = shutil.which("exiftool")
    if found is None:
        raise SidecarError(f"embedding in {name} needs ExifTool ({ADDRESS})")
    return os.path.abspath(found)  # noqa: PTH100 - it is started in another folder


def _reason(told: str) -> str:
    """The line that says what is wrong, without the names of the copies."""
    lines = [line.strip() for line in told.splitlines() if line.strip()]
    errors = [line.removeprefix("Error: ") for line in lines if line.startswith("Error: ")]
    chosen = (errors or lines or ["it says nothing"])[0]
    return chosen.removesuffix(" - in").removesuffix(" - out")


def _kill(child: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(OSError):
        if os.name == "posix":
            os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()


def _end(child: subprocess.Popen[bytes], folder: Path) -> None:
    """Tell it to stop; kill it when it does not."""
    assert child.stdin is not None
    assert child.stdout is not None
    with contextlib.suppress(OSError):
        child.stdin.write(b"-stay_open\nFalse\n")
        child.stdin.flush()
    with contextlib.suppress(OSError):
        child.stdin.close()
    try:
        child.wait(timeout=_END_TIMEOUT)
    except subprocess.TimeoutExpired:
        _kill(child)
        child.wait()
    child.stdout.close()
    shutil.rmtree(folder, ignore_errors=True)
