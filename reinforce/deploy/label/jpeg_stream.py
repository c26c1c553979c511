"""A stream of JPEGs, one after another, cut into images by their markers.

As `ffmpeg -f image2pipe -c:v mjpeg` or a camera writes them. Segments are stepped over by their length, because a
thumbnail inside one is a JPEG of its own; the compressed data between them is searched for the next marker. What lies
between images (padding, the boundaries of a multipart stream) is skipped and counted. Holds one image and a read ahead.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

_READ_BYTES = 1 << 16
_START = b"\xff\xd8\xff"
_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}
"""TEM and the restart markers."""
_MAY_HOLD_IMAGES = {0xFE, *range(0xE0, 0xF0)}
"""Comments and what applications add, such as thumbnails."""
_MARKER_IN_SCAN = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Any marker but a restart; FF 00 is a stuffed byte, FF FF fills."""

_CUT = "truncated: the stream ends within it"
_NEXT_WITHIN = "truncated: the next image begins within it"


@dataclass(frozen=True)
class Frame:
    """One image of a stream; `fault` says in words why it cannot be decoded, and then `data` is empty."""

    data: bytes
    fault: str | None = None


class JpegStream:
    """Iterates over the images of `file`; `num_skipped_bytes` counts what lay between them so far.

    An image of more than `max_bytes` is a fault. After damage the search goes on within what was read of the image, as
    a wrong length leads into the next one; after other faults, behind it.
    """

    def __init__(self, file: BinaryIO, max_bytes: int) -> None:
        self.num_skipped_bytes = 0
        self._file = file
        self._max_bytes = max_bytes
        self._buffer = bytearray()

    def __iter__(self) -> Iterator[Frame]:
        while self._seek_start():
            end, fault = self._find_end()
            frame = Frame(bytes(memoryview(self._buffer)[:end])) if fault is None else Frame(b"", fault)
            del self._buffer[:end]
            yield frame

    def _fill(self) -> bool:
        # Not read(): of a live stream it would wait until that many bytes are there.
        data = self._file.read1(_READ_BYTES)  # type: ignore[attr-defined]
        self._buffer += data
        return bool(data)

    def _has(self, num_bytes: int) -> bool:
        while len(self._buffer) < num_bytes:
            if not self._fill():
                return False
        return True

    def _seek_start(self) -> bool:
        """Brings the next image to the front of the buffer; False at the end of the stream."""
        while (start := self._buffer.find(_START)) < 0:
            is_partial = 2 if self._buffer.endswith(_START[:2]) else int(self._buffer.endswith(_START[:1]))
            self._skip(len(self._buffer) - is_partial)
            if not self._fill():
                self._skip(len(self._buffer))
                return False
        self._skip(start)
        return True

    def _skip(self, num_bytes: int) -> None:
        self.num_skipped_bytes += num_bytes
        del self._buffer[:num_bytes]

    def _find_end(self) -> tuple[int, str | None]:
        """Where the image at the front ends, and what is wrong with it, if anything is."""
        position, is_in_head = 2, True
        while position < self._max_bytes:
            if not self._has(position + 2):
                return len(self._buffer), _CUT
            lead, marker = self._buffer[position : position + 2]
            if lead != 0xFF:
                # Not here: a length that is wrong, or that the next image's bytes are taken for, leads too far.
                start = self._buffer.find(_START, 2)
                return position if start < 0 else start, "damaged: no marker where one has to be"
            if marker == 0xFF:
                position += 1
            elif marker == _EOI:
                return position + 2, None
            elif marker == _SOI:
                return position, _NEXT_WITHIN
            elif marker in _WITHOUT_LENGTH:
                position += 2
            elif not self._has(position + 4):
                return len(self._buffer), _CUT
            else:
                end = position + 2 + int.from_bytes(self._buffer[position + 2 : position + 4])
                start = self._start_within(position + 2, end, is_in_head and marker in _MAY_HOLD_IMAGES)
                if start >= 0:
                    return start, _NEXT_WITHIN
                position = end
                if marker == _SOS:
                    position, is_in_head = self._end_of_scan(end), False
        return min(position, len(self._buffer)), f"larger than {self._max_bytes >> 20} MiB"

    def _start_within(self, position: int, end: int, may_hold_images: bool) -> int:
        """Where the next image begins in a segment from its length on, as the segment is cut; -1 if it does not.

        One that may hold images is cut for certain only if the next image's first bytes are its length or its last.
        """
        # Two bytes more: the first of the next image may be taken for its last.
        self._has(end + 2)
        if not may_hold_images:
            return self._buffer.find(_START, position, end + 2)
        as_length = self._buffer.find(_START, position, position + 4)
        return as_length if as_length >= 0 else self._buffer.find(_START, end - 2, end + 2)

    def _end_of_scan(self, position: int) -> int:
        """Where the next marker behind compressed data is; the end of the buffer if there is none, or none near."""
        while True:
            if found := _MARKER_IN_SCAN.search(self._buffer, position):
                return found.start()
            # The last byte may be the first half of a marker.
            position = max(position, len(self._buffer) - 1)
            if position >= self._max_bytes or not self._fill():
                return len(self._buffer)
