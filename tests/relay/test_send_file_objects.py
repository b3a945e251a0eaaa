"""send_file: which objects are files, and which only look like one.

Rules of this file: a wrong object is refused before anything is sent, and the stream is free
afterwards.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio
from support.streams import drain, pattern, stream_and_peer

import trio_uring

if TYPE_CHECKING:
    from collections.abc import Callable

DATA = pattern(5000)


@pytest.fixture
def path(on_disk: Path) -> Path:
    found = on_disk / "file"
    found.write_bytes(DATA)
    return found


# -- files


async def test_a_file_of_trios(path: Path) -> None:
    stream, peer = stream_and_peer()
    async with await trio.open_file(path, "rb") as file:
        await file.seek(7)
        assert await trio_uring.send_file(stream, file, 10, 100) == 100
        assert await file.tell() == 110
        assert await file.read(5) == DATA[110:115]
    async with await trio.open_file(path) as text:
        with pytest.raises(ValueError, match="binary mode"):
            await trio_uring.send_file(stream, text)
    assert drain(peer) == DATA[10:110]
    await stream.aclose()
    peer.close()


async def test_a_cancelled_send_of_a_file_of_trios_sets_its_position(path: Path) -> None:
    await trio.Path(path).write_bytes(bytes(3_000_000))
    stream, peer = stream_and_peer()
    async with await trio.open_file(path, "rb") as file:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio_uring.send_file, stream, file)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert await file.tell() == stream.bytes_sent > 0
    await stream.aclose()
    peer.close()


@pytest.mark.parametrize("kind", ["TemporaryFile", "NamedTemporaryFile", "SpooledTemporaryFile"])
async def test_temporary_files(kind: str) -> None:
    """The spooled one moves from memory to the disk when its descriptor is asked for."""
    stream, peer = stream_and_peer()
    with getattr(tempfile, kind)() as file:
        file.write(DATA)
        file.flush()
        assert await trio_uring.send_file(stream, file, 1) == len(DATA) - 1
        assert file.tell() == len(DATA)
        assert await trio_uring.send_file(stream, trio.wrap_file(file), 0, 2) == 2
        assert file.tell() == 2
    assert drain(peer) == DATA[1:] + DATA[:2]
    await stream.aclose()
    peer.close()


class Line(io.FileIO):
    """A program's own kind of file."""


async def test_files_of_any_buffering(path: Path) -> None:
    stream, peer = stream_and_peer()
    files: list[Any] = [
        open(path, "rb", buffering=0),  # noqa: ASYNC230, SIM115
        open(path, "rb"),  # noqa: ASYNC230, SIM115
        open(path, "r+b"),  # noqa: ASYNC230, SIM115
        Line(path),
        io.BufferedReader(Line(path)),
    ]
    for file in files:
        with file:
            assert await trio_uring.send_file(stream, file, 0, 3) == 3
            assert file.tell() == 3
    assert drain(peer) == DATA[:3] * len(files)
    await stream.aclose()
    peer.close()


# -- what is none


def compressed(path: Path, module: Any, mode: str = "rb") -> Any:
    with module.open(path, "wb") as file:
        file.write(DATA)
    return module.open(path, mode)


def from_zip(path: Path) -> Any:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("name", DATA)
    with zipfile.ZipFile(path) as archive:
        return archive.open("name")


def from_tar(path: Path) -> Any:
    content = path.with_name("content")
    content.write_bytes(DATA)
    with tarfile.open(path, "w") as archive:
        archive.add(content, "name")
    return tarfile.open(path).extractfile("name")


class Asynchronous:
    """As aiofiles': its position could not be set."""

    mode = "rb"

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self.fileno, self.close = self._file.fileno, self._file.close

    async def seek(self, offset: int) -> None:
        raise AssertionError("nobody calls this")


@pytest.mark.filterwarnings("ignore:.*unclosed file:ResourceWarning")  # tarfile's
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda path: compressed(path, gzip), "GzipFile"),
        (lambda path: compressed(path, bz2), "BZ2File"),
        (lambda path: compressed(path, lzma), "LZMAFile"),
        (lambda path: io.BufferedReader(compressed(path, gzip)), "GzipFile"),
        (from_zip, "ZipExtFile"),
        (from_tar, "ExFileObject"),
        (lambda _: io.BytesIO(DATA), "BytesIO"),
        (Asynchronous, "Asynchronous"),
        (lambda path: trio.wrap_file(compressed(path, gzip)).wrapped, "GzipFile"),
    ],
    ids=[
        "gzip",
        "bz2",
        "lzma",
        "gzip, buffered",
        "zip",
        "tar",
        "memory",
        "asynchronous",
        "gzip of trio's",
    ],
)
async def test_what_makes_its_own_bytes(path: Path, make: Callable[[Path], Any], name: str) -> None:
    stream, peer = stream_and_peer()
    file = make(path)
    for given in (file, trio.wrap_file(file)) if isinstance(file, io.IOBase) else (file,):
        with pytest.raises(TypeError, match=name):
            await trio_uring.send_file(stream, given)
    file.close()
    await stream.send_all(b"free")
    assert drain(peer) == b"free"
    await stream.aclose()
    peer.close()


async def test_compressed_text(path: Path) -> None:
    """It has no mode to be told by."""
    stream, peer = stream_and_peer()
    with compressed(path, gzip, "rt") as file, pytest.raises(ValueError, match="binary mode"):
        await trio_uring.send_file(stream, file)
    await stream.aclose()
    peer.close()
