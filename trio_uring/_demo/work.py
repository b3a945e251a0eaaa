"""Which files the clients of a file server fetch, and which downloads are cancelled on the way.

Rules of this file: the same seed gives the same work, so that both kinds of streams get the same.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .files import Download, File

if TYPE_CHECKING:
    from pathlib import Path

CUT_SHARE = 0.05  # share of the files that can be cut whose client is cancelled in the middle
CUT_SIZE_MIN = 16384  # bytes of the smallest file that can be cut


@dataclass(frozen=True)
class Work:
    """What is to be served, for both kinds of streams."""

    directory: Path
    files: list[File]
    clients: int
    seed: int

    def downloads(self, bytes_wanted: int) -> list[Download]:
        """The files in random order, repeated until there are enough bytes. Some of them are to be
        cut."""
        rng = random.Random(self.seed)
        downloads: list[Download] = []
        while bytes_wanted > 0:
            for file in rng.sample(self.files, len(self.files)):
                cut = (
                    rng.randrange(1, file.size // 2)
                    if file.size >= CUT_SIZE_MIN and rng.random() < CUT_SHARE
                    else None
                )
                downloads.append(Download(file, cut))
                bytes_wanted -= file.size
                if bytes_wanted <= 0:
                    break
        self._cut_one(downloads)
        return downloads

    def _cut_one(self, downloads: list[Download]) -> None:
        """Makes sure that, however few files there are, one is cut if one can be."""
        if all(download.cut is None for download in downloads):
            largest = max(downloads, key=lambda download: download.file.size)
            if largest.file.size >= CUT_SIZE_MIN:
                largest.cut = largest.file.size // 4
