"""Captioners write captions of the clean view, or hand over those someone already has.

A `Captioner` is loaded from a recipe by `load_captioner`; `FakeCaptioner` stands in for one in tests. What a captioner
writes for a sample depends on the sample's pixels and seed, not on the batch it came in.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from reinforce.config import CaptionerConfig
from reinforce.sample import Pixels


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """One sample to caption. `image` is its clean view at the captioner's `image_size`, None if that is None."""

    stem: str
    key: str
    seed: int
    """The sample's `view_seed`."""
    image: Pixels | None
    found: tuple[str, ...] = ()
    """What the source sample holds under the captioner's `field` (kind files)."""


class Captioner(Protocol):
    """Writes captions for samples."""

    @property
    def name(self) -> str: ...
    @property
    def image_size(self) -> int | None:
        """The side of the clean view it wants; None if it needs no image."""

    @property
    def field(self) -> str | None:
        """The JSON field of the source samples it reads, as `json.NAME`; None if it reads none."""

    @property
    def num_captions(self) -> int: ...
    @property
    def micro_batch(self) -> int | None:
        """Samples of a forward pass, fewer since the device ran out of memory; None if it takes any number."""

    @property
    def is_remote(self) -> bool:
        """Whether another machine does the work, and the device of this one could do something else meanwhile."""

    def describe(self) -> dict[str, Any]:
        """JSON data for signal.json: what it is, where it came from, how it samples."""
        ...

    def content(self) -> dict[str, Any]:
        """The part of `describe` that changes captions, for the fingerprint: never a path or a hub's name."""
        ...

    def caption(self, requests: Sequence[CaptionRequest]) -> list[list[str]]:
        """At most `num_captions` clean, distinct captions a request, possibly none. Odd content raises nothing."""
        ...


@runtime_checkable
class RemoteCaptioner(Protocol):
    """A captioner on a server, whose answer another thread may be waiting for."""

    def cancel(self) -> None:
        """Ends a `caption` that is under way; it raises."""


def load_captioner(name: str, config: CaptionerConfig, *, device: torch.device, batch_size: int) -> Captioner:
    """Loads the captioner that a recipe calls `name`, for micro-batches of `batch_size`.

    Raises `ModelError`; `EndpointError`, a `StorageError`, where a server does not answer.
    """
    if config.kind == "files":
        from reinforce.captioners.files import load_files_captioner

        return load_files_captioner(name, config)
    if config.kind == "open_clip":
        from reinforce.captioners.open_clip import OpenClipCaptioner

        return OpenClipCaptioner(name, config, device=device, batch_size=batch_size)
    if config.kind == "openai":
        from reinforce.captioners.openai import OpenAICaptioner

        return OpenAICaptioner(name, config)
    from reinforce.captioners.transformers import TransformersCaptioner

    return TransformersCaptioner(name, config, device=device, batch_size=batch_size)


class FakeCaptioner:
    """Captions that are a function of the pixels, the seed and the caption index. No weights."""

    field: str | None = None
    micro_batch: int | None = None
    is_remote = False

    def __init__(self, name: str = "fake", *, image_size: int | None = 32, num_captions: int = 2) -> None:
        self.name, self.image_size, self.num_captions = name, image_size, num_captions

    def describe(self) -> dict[str, Any]:
        return {"kind": "fake", "model": "fake", "num_captions": self.num_captions, "image_size": self.image_size}

    def content(self) -> dict[str, Any]:
        return {"kind": "fake", "num_captions": self.num_captions, "image_size": self.image_size}

    def caption(self, requests: Sequence[CaptionRequest]) -> list[list[str]]:
        return [[self._write(request, index) for index in range(self.num_captions)] for request in requests]

    def _write(self, request: CaptionRequest, index: int) -> str:
        pixels = b"" if request.image is None else request.image.tobytes()
        digest = hashlib.blake2b(pixels + request.seed.to_bytes(8, "little"), digest_size=4).hexdigest()
        return f"picture {digest}, caption {index}"
