"""CoCa captions (Yu et al., arXiv 2205.01917) from open_clip, encoding each image once for all of its captions.

open_clip's own `CoCa.generate` fails with transformers 5, draws from the global generator and has no key-value cache:
the loop here is over `coca.CachedText`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from reinforce.captioners import CaptionRequest
from reinforce.captioners.cleaning import draw_distinct
from reinforce.captioners.coca import CachedText, check_coca
from reinforce.captioners.inputs import normalised, tokenizer_sha256
from reinforce.captioners.sampling import SAMPLER, NucleusSampler
from reinforce.config import CaptionerConfig
from reinforce.microbatch import MicroBatch
from reinforce.sample import Pixels
from reinforce.weights import ModelError, autocast_dtype, load_open_clip


class OpenClipCaptioner:
    """A CoCa model that continues `prompt` (which stays part of the caption)."""

    field: str | None = None
    is_remote = False

    def __init__(self, name: str, config: CaptionerConfig, *, device: torch.device, batch_size: int) -> None:
        import open_clip

        assert config.model is not None, "CaptionerConfig checks it"
        self._autocast_dtype = autocast_dtype(config.precision, device)
        loaded = load_open_clip(config.model, checkpoint=config.checkpoint, sha256=config.sha256)
        if not isinstance(loaded.model, open_clip.CoCa):
            raise ModelError(f"model {config.model}: writes no captions; kind open_clip needs a CoCa model")
        check_coca(config.model, loaded.model)
        self.name, self.num_captions = name, config.num_captions
        self._config, self._device, self._micro_batch = config, device, MicroBatch(batch_size)
        self._model, self._weights_sha256 = loaded.model.to(device), loaded.weights_sha256
        self._text = _TextCodec(loaded.tokenizer, pad_id=loaded.model.pad_id)
        self._prompt_ids = [self._text.start_id, *self._text.encode(config.prompt)]
        self._check_prompt()
        self._mean, self._std = list(loaded.preprocess["mean"]), list(loaded.preprocess["std"])
        self.image_size: int | None = _side(config.model, loaded.preprocess["size"])

    @property
    def micro_batch(self) -> int:
        return self._micro_batch.size

    def describe(self) -> dict[str, Any]:
        return {
            **self.content(),
            "model": self._config.model,
            "checkpoint": self._config.checkpoint,
            "revision": self._config.revision,
            "tokenizer": self._text.name,
        }

    def content(self) -> dict[str, Any]:
        sampling = self._config.model_dump(
            include={"kind", "prompt", "num_captions", "max_new_tokens", "top_p", "temperature", "precision"}
        )
        preprocessing = {"image_size": self.image_size, "mean": self._mean, "std": self._std}
        weights = {"weights_sha256": self._weights_sha256, "tokenizer_sha256": self._text.sha256()}
        return {**sampling, **preprocessing, **weights, "sampler": SAMPLER}

    @torch.inference_mode()
    def caption(self, requests: Sequence[CaptionRequest]) -> list[list[str]]:
        if not requests:
            return []
        images = [request.image for request in requests if request.image is not None]
        assert len(images) == len(requests), "a captioner with an image_size is given images"
        with torch.autocast(self._device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None):
            embs = self._encode(images)

            def draw(samples: Sequence[int], captions: range) -> list[list[str] | None]:
                return self._draw(embs[list(samples)], [requests[i].seed for i in samples], captions)

            return draw_distinct(
                len(requests), num_captions=self.num_captions, micro_batch=self._micro_batch, draw=draw
            )

    def _encode(self, images: Sequence[Pixels]) -> Float[Tensor, "images queries dim"]:
        def forward(some: list[int]) -> Tensor:
            pixels = normalised([images[i] for i in some], self._mean, self._std, self._device)
            embs: Tensor = self._model.visual(pixels)[1]
            return embs

        return torch.stack(self._micro_batch.run(range(len(images)), forward))

    def _draw(
        self, embs: Float[Tensor, "images queries dim"], seeds: list[int], captions: range
    ) -> list[list[str] | None]:
        sampler = NucleusSampler(
            seeds,
            captions,
            end_ids=self._text.end_ids,
            top_p=self._config.top_p,
            temperature=self._config.temperature,
            device=self._device,
        )
        num_new, prompt = self._config.max_new_tokens, torch.tensor(self._prompt_ids, device=self._device)
        tokens = prompt.repeat(len(embs) * len(captions), 1)
        # The last token drawn is never fed back.
        text = CachedText(self._model, embs, num_captions=len(captions), max_tokens=len(prompt) + num_new - 1)
        for _ in range(num_new):
            tokens = sampler.draw(text.next_logits(tokens))[:, None]
            if sampler.all_ended():
                break
        return sampler.texts(lambda ids: self._text.decode(self._prompt_ids + ids))

    def _check_prompt(self) -> None:
        pad_id = self._model.pad_id
        if pad_id in self._prompt_ids:
            raise ModelError(f"prompt {self._config.prompt!r}: holds token {pad_id}, the model's padding; reword it")
        limit = min(self._model.context_length, self._model.text.context_length)
        # As in `_draw`: the last token drawn is never fed back.
        needed = len(self._prompt_ids) + self._config.max_new_tokens - 1
        if needed > limit:
            prompt = f"a prompt of {len(self._prompt_ids)} tokens"
            raise ModelError(
                f"max_new_tokens {self._config.max_new_tokens} with {prompt} exceeds the model's context of {limit}"
            )


class _TextCodec:
    """open_clip's two kinds of tokenizer, its own BPE and Hugging Face's, behind one face."""

    def __init__(self, tokenizer: Any, pad_id: int) -> None:
        inner = getattr(tokenizer, "tokenizer", None)
        self.name = type(inner or tokenizer).__name__
        self._tokenizer, self._is_hugging_face = inner or tokenizer, inner is not None
        if inner is None:
            self.start_id, end_id = tokenizer.sot_token_id, tokenizer.eot_token_id
        else:
            self.start_id = inner.cls_token_id if inner.bos_token_id is None else inner.bos_token_id
            end_id = inner.sep_token_id if inner.eos_token_id is None else inner.eos_token_id
        if self.start_id is None or end_id is None:
            raise ModelError(f"tokenizer {self.name}: has no token to start or to end a text with")
        self.end_ids = list(dict.fromkeys([end_id, pad_id]))
        self._special_ids = {*self._tokenizer.all_special_ids, self.start_id, *self.end_ids}

    def sha256(self) -> str:
        vocabulary = self._tokenizer.vocab_size
        return tokenizer_sha256(self.encode, self.decode, vocabulary)

    def encode(self, text: str) -> list[int]:
        if self._is_hugging_face:
            return list(self._tokenizer.encode(text, add_special_tokens=False))
        return list(self._tokenizer.encode(text))

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode([i for i in ids if i not in self._special_ids]))


def _side(model: str, size: int | Sequence[int]) -> int:
    sides = {size} if isinstance(size, int) else set(size)
    if len(sides) != 1:
        raise ModelError(f"model {model}: images of {size} are not square; only square clean views are made")
    return int(sides.pop())
