"""What is to be labelled, one at a time: files, the images below folders, a stream of JPEGs on standard input.

What cannot be read is an `Unusable` among the others, so that the rest goes on; nothing is left out uncounted.
"""

import os
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from reinforce.deploy.label.errors import LabelError
from reinforce.deploy.label.jpeg_stream import JpegStream
from reinforce.formatting import format_count

MAX_IMAGE_BYTES = 128 << 20
"""Of a file, or of an image of a stream: what is larger is refused before it fills the memory of a small device."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Of images. A file that is named is opened whatever it is called."""

STREAM = "-"


@dataclass(frozen=True)
class Names:
    """Which files are taken from folders: those whose names end with one of `endings` and none of `but_not`, in any
    case. `kind` is what they are, in words."""

    kind: str = "image"
    endings: tuple[str, ...] = SUFFIXES
    but_not: tuple[str, ...] = ()

    def take(self, name: str) -> bool:
        return name.lower().endswith(self.endings) and not name.lower().endswith(self.but_not)

    def __str__(self) -> str:
        excluded = f", not {' '.join(self.but_not)}" if self.but_not else ""
        return f"{' '.join(self.endings)}{excluded}"


@dataclass(frozen=True)
class Encoded:
    """The bytes of one image; `source` is its path, or its place in the stream, from 0."""

    source: str | int
    data: bytes


@dataclass(frozen=True)
class Unusable:
    """Something that was to be labelled and cannot be, and why, in words."""

    source: str | int
    error: str


class Inputs:
    """Iterates over what `arguments` name, in that order, folders sorted; `notes` says what was passed over.

    Raises LabelError if the stream itself cannot be read.
    """

    def __init__(self, arguments: list[str], stream: BinaryIO | None = None, names: Names = Names()) -> None:
        self._arguments = arguments
        self._names = names
        self._stream = stream
        self._num_other_files = 0
        self._num_misread_files = 0
        self._num_skipped_bytes = 0

    def __iter__(self) -> Iterator[Encoded | Unusable]:
        for argument in self._arguments:
            if argument == STREAM:
                yield from self._from_stream()
            elif os.path.isdir(argument):
                yield from self._from_folder(argument)
            else:
                self._num_misread_files += argument.lower().endswith(self._names.but_not)
                yield _read(argument)

    def notes(self) -> list[str]:
        """What was passed over so far, counted, a line each."""
        notes = []
        if self._num_other_files:
            kind, files = self._names.kind, format_count(self._num_other_files, "file")
            notes.append(f"left out of the folders, as their names are no {kind}'s: {files}")
        if self._num_misread_files:
            kinds, files = " ".join(self._names.but_not), format_count(self._num_misread_files, "file")
            notes.append(f"read as RGB, though named as of another modality ({kinds}), see --modality: {files}")
        if self._num_skipped_bytes:
            notes.append(f"skipped in the stream, as they are no part of an image: {self._num_skipped_bytes:,} bytes")
        return notes

    def _from_stream(self) -> Iterator[Encoded | Unusable]:
        stream = JpegStream(self._stream or sys.stdin.buffer, MAX_IMAGE_BYTES)
        num_frames = 0
        try:
            for frame in stream:
                if frame.fault is None:
                    yield Encoded(num_frames, frame.data)
                else:
                    yield Unusable(num_frames, frame.fault)
                num_frames += 1
        except OSError as error:
            raise LabelError(f"label: standard input: {_words(error)}") from None
        self._num_skipped_bytes += stream.num_skipped_bytes
        if not num_frames:
            yield Unusable(STREAM, f"no JPEG in its {stream.num_skipped_bytes:,} bytes")

    def _from_folder(self, folder: str) -> Iterator[Encoded | Unusable]:
        unreadable: list[OSError] = []
        num_images = 0
        for path, folders, files in os.walk(folder, onerror=unreadable.append):
            folders.sort()
            for name in sorted(files):
                if self._names.take(name):
                    yield _read(os.path.join(path, name))
                    num_images += 1
                else:
                    self._num_other_files += 1
        for error in unreadable:
            yield Unusable(str(error.filename), _words(error))
        if not num_images and not unreadable:
            yield Unusable(folder, f"no {self._names.kind} in this folder ({self._names})")


def _read(path: str) -> Encoded | Unusable:
    try:
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())
            # What is no regular file, such as a pipe, has no size to go by.
            is_larger = stat.S_ISREG(status.st_mode) and status.st_size > MAX_IMAGE_BYTES
            data = b"" if is_larger else file.read(MAX_IMAGE_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        return Unusable(path, _words(error))
    if is_larger or len(data) > MAX_IMAGE_BYTES:
        return Unusable(path, f"larger than {MAX_IMAGE_BYTES >> 20} MiB")
    return Encoded(path, data)


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) and error.strerror else str(error)).lower()
