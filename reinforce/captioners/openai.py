"""Captions from a server that speaks OpenAI's chat completions: vLLM, SGLang, llama.cpp, and many that are hosted.

The clean view goes as a JPEG of quality 95 without chroma subsampling: a third of the bytes of a PNG, and a tenth or
less of the time to make one. One request asks for all captions of an image where the server heeds `n`, else there is a
request for each caption.
"""

import base64
import hashlib
import io
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from reinforce.captioners import CaptionRequest
from reinforce.captioners.cleaning import MAX_REDRAWS, distinct_captions
from reinforce.captioners.endpoint import Endpoint, RefusedError, all_of
from reinforce.config import CaptionerConfig
from reinforce.sample import Pixels
from reinforce.weights import ModelError

_CONTENT = {"kind", "model", "prompt", "num_captions", "max_new_tokens", "top_p", "temperature", "image_size"}


class OpenAICaptioner:
    """A model behind an endpoint, which is sent the clean view and `prompt` as the user's turn.

    Captions differ between runs: the server samples, in batches of its own, and may change its model under one name.
    A committed shard is never computed again, and text embeddings are made from the captions beside them, so a dataset
    stays consistent; the same recipe built twice gives two datasets.
    """

    field: str | None = None
    micro_batch: int | None = None
    is_remote = True

    def __init__(self, name: str, config: CaptionerConfig) -> None:
        """Raises `ModelError` if the endpoint does not serve the model, `EndpointError` if it does not answer."""
        assert config.endpoint is not None, "CaptionerConfig checks it"
        self.name, self.num_captions = name, config.num_captions
        self.image_size: int | None = config.image_size
        self._config = config
        key_hint = f"; the key is read from the environment variable {config.api_key_env}"
        self._endpoint = Endpoint(
            config.endpoint,
            title=f"model {config.model} at {config.endpoint}",
            key=os.environ.get(config.api_key_env, "").strip(),
            hints={401: key_hint, 403: key_hint, 404: "; endpoint is a base URL such as http://host:8000/v1"},
            concurrency=config.concurrency,
            timeout_s=config.timeout_s,
            retries=config.retries,
        )
        self._heeds_n = config.num_captions > 1
        grey = np.full((config.image_size, config.image_size, 3), 128, np.uint8)
        self._probe = CaptionRequest(stem="", key="", seed=0, image=grey)
        self._endpoint.run(self._check())

    def describe(self) -> dict[str, Any]:
        return {**self.content(), "endpoint": self._config.endpoint}

    def content(self) -> dict[str, Any]:
        return {**self._config.model_dump(include=_CONTENT), "sampler": "server"}

    def caption(self, requests: Sequence[CaptionRequest]) -> list[list[str]]:
        """Sends up to `concurrency` requests at once. A sample whose image is refused has no captions.

        Raises `EndpointError` where the endpoint fails for good, so that no shard is written without its captions, and
        `ModelError` for what every image would meet.
        """
        return self._endpoint.run(self._caption_all(requests))

    def cancel(self) -> None:
        self._endpoint.cancel()

    async def _caption_all(self, requests: Sequence[CaptionRequest]) -> list[list[str]]:
        written = await all_of(self._caption(request) for request in requests)
        if requests and all(captions is None for captions in written):
            # Bad images, or a server that takes none at all? A plain one tells.
            await self._ask(self._probe, range(1))
        return [captions or [] for captions in written]

    async def _caption(self, request: CaptionRequest) -> list[str] | None:
        """None if the image is refused."""
        captions: list[str] | None = None
        try:
            captions = distinct_captions(await self._draw(request, range(self.num_captions)), self.num_captions)
            if len(captions) < self.num_captions:
                further = range(self.num_captions, self.num_captions + MAX_REDRAWS)
                captions = distinct_captions([*captions, *await self._draw_singly(request, further)], self.num_captions)
        except RefusedError:
            pass
        return captions

    async def _draw(self, request: CaptionRequest, indices: range) -> list[str]:
        """A raw text for each caption index. Servers that ignore `n`, or refuse it, are asked once for each."""
        texts: list[str] = []
        if self._heeds_n:
            try:
                texts = await self._ask(request, indices)
            except RefusedError:
                texts = []  # the image, or `n`: one by one tells
        if len(texts) < len(indices):
            texts += await self._draw_singly(request, indices[len(texts) :])
            self._heeds_n = False
        return texts

    async def _draw_singly(self, request: CaptionRequest, indices: range) -> list[str]:
        texts = await all_of(self._ask(request, range(index, index + 1)) for index in indices)
        return [text for some in texts for text in some]

    async def _ask(self, request: CaptionRequest, indices: range, *, retries: int | None = None) -> list[str]:
        def body() -> bytes:
            return json.dumps(self._payload(request, indices)).encode()

        return await self._endpoint.ask("/chat/completions", _texts, body=body, retries=retries)

    def _payload(self, request: CaptionRequest, indices: range) -> dict[str, Any]:
        assert request.image is not None, "a captioner with an image_size is given images"
        image = {"type": "image_url", "image_url": {"url": _data_url(request.image)}}
        payload = {
            "model": self._config.model,
            "messages": [{"role": "user", "content": [image, {"type": "text", "text": self._config.prompt}]}],
            "max_tokens": self._config.max_new_tokens,
            "top_p": self._config.top_p,
            "temperature": self._config.temperature,
            "seed": _seed(request.seed, indices.start),
        }
        return payload | ({"n": len(indices)} if len(indices) > 1 else {})

    async def _check(self) -> None:
        """Asks for the list of models; where that does not name the model, which proves little, for a caption."""
        try:
            served = await self._endpoint.ask("/models", _model_names, retries=1)
        except ModelError:
            served = []
        if self._config.model not in served:
            await self._ask(self._probe, range(1), retries=1)


def _data_url(image: Pixels) -> str:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _seed(view_seed: int, caption: int) -> int:
    """31 bits, which every server takes."""
    data = view_seed.to_bytes(8, "little") + caption.to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(data, digest_size=4).digest(), "little") & 0x7FFFFFFF


def _texts(answer: bytes) -> list[str]:
    """The text of each choice, empty where there is none; raises for anything else than a chat completion."""
    contents = [choice["message"].get("content") for choice in json.loads(answer)["choices"]]
    if not contents:
        raise ValueError("no choices")
    return [content if isinstance(content, str) else "" for content in contents]


def _model_names(answer: bytes) -> list[str]:
    """What a list of models names; nothing if it is none."""
    try:
        return [model["id"] for model in json.loads(answer)["data"]]
    except (ValueError, LookupError, TypeError):
        return []
