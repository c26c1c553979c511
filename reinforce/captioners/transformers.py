"""Captions from transformers' image-text-to-text models, with their key-value cache.

Two families. Image-to-text models that continue a text (VisionEncoderDecoder, BLIP, GIT) get the view normalised on
the device. All others (LLaVA, Qwen-VL, SmolVLM, ...) get it through their own processor, in a chat turn with `prompt`
if they have a chat template. Sampling is ours: a logits processor leaves one finite logit. `generate` is
told to sample all the same, as only then it takes `num_return_sequences`, with which it encodes an image once. A chat's
prompt, and an image's keys and values for cross-attention, are computed once a caption there.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from reinforce.captioners import CaptionRequest
from reinforce.captioners.cleaning import draw_distinct
from reinforce.captioners.sampling import SAMPLER, NucleusSampler
from reinforce.captioners.transformers_model import (
    ContinuingInputs,
    ProcessorInputs,
    load_transformers,
    own_the_sampling,
)
from reinforce.config import CaptionerConfig
from reinforce.microbatch import MicroBatch
from reinforce.weights import ModelError, autocast_dtype


class TransformersCaptioner:
    """An image-text-to-text model. `prompt` is continued (and kept) by image-to-text models, answered by the others."""

    field: str | None = None
    is_remote = False

    def __init__(self, name: str, config: CaptionerConfig, *, device: torch.device, batch_size: int) -> None:
        assert config.model is not None, "CaptionerConfig checks it"
        self._autocast_dtype = autocast_dtype(config.precision, device)
        loaded = load_transformers(config.model, config.revision, config.sha256)
        self.name, self.num_captions = name, config.num_captions
        self._config, self._device, self._micro_batch = config, device, MicroBatch(batch_size)
        self._loaded, self._model = loaded, loaded.model.to(device)
        family = ContinuingInputs if loaded.continues else ProcessorInputs
        self._inputs: ContinuingInputs | ProcessorInputs = family(loaded, config.prompt, device)
        self.image_size: int | None = self._inputs.image_size
        self._end_ids = own_the_sampling(loaded, config.max_new_tokens)
        self._check_context()

    @property
    def micro_batch(self) -> int:
        return self._micro_batch.size

    def describe(self) -> dict[str, Any]:
        return {
            **self.content(),
            "model": self._config.model,
            "revision": self._config.revision,
            "architecture": type(self._model).__name__,
            "tokenizer": type(self._loaded.tokenizer).__name__,
        }

    def content(self) -> dict[str, Any]:
        sampling = self._config.model_dump(
            include={"kind", "prompt", "num_captions", "max_new_tokens", "top_p", "temperature", "precision"}
        )
        weights = {"weights_sha256": self._loaded.weights_sha256, "tokenizer_sha256": self._loaded.tokenizer_sha256()}
        ends = {"end_ids": self._end_ids, "sampler": SAMPLER}
        return {**sampling, **self._inputs.content(), **weights, **ends}

    @torch.inference_mode()
    def caption(self, requests: Sequence[CaptionRequest]) -> list[list[str]]:
        images = [request.image for request in requests if request.image is not None]
        assert len(images) == len(requests), "a captioner with an image_size is given images"

        def draw(samples: Sequence[int], captions: range) -> list[list[str] | None]:
            sampler = NucleusSampler(
                [requests[i].seed for i in samples],
                captions,
                end_ids=self._end_ids,
                top_p=self._config.top_p,
                temperature=self._config.temperature,
                device=self._device,
            )
            with torch.autocast(self._device.type, self._autocast_dtype, enabled=self._autocast_dtype is not None):
                self._model.generate(
                    **self._inputs.of([images[i] for i in samples]),
                    logits_processor=LogitsProcessorList([_KeepDrawnToken(sampler)]),
                    num_return_sequences=len(captions),
                    custom_generate=_greedily,
                )
            return sampler.texts(self._decode)

        return draw_distinct(len(requests), num_captions=self.num_captions, micro_batch=self._micro_batch, draw=draw)

    def _decode(self, ids: list[int]) -> str:
        return str(self._loaded.tokenizer.decode([*self._inputs.kept_prompt_ids, *ids], skip_special_tokens=True))

    def _check_context(self) -> None:
        text_config = self._model.config.get_text_config(decoder=True)
        limit = getattr(text_config, "max_position_embeddings", None)
        needed = self._inputs.prompt_length + self._config.max_new_tokens
        if isinstance(limit, int) and needed > limit:
            raise ModelError(
                f"max_new_tokens {self._config.max_new_tokens} with a prompt of {self._inputs.prompt_length} tokens "
                f"exceeds the model's context of {limit}"
            )


def _greedily(model: Any, input_ids: Tensor, *, generation_config: Any, **arguments: Any) -> Any:
    """What `generate` does to sample, but for its draw among one token, which on a CPU costs more than all of ours."""
    generation_config.do_sample = False
    return model._sample(input_ids, generation_config=generation_config, **arguments)


class _KeepDrawnToken(LogitsProcessor):  # type: ignore[misc]
    """Leaves 0 at the token the sampler draws and -inf elsewhere, so that every way to decode picks that token."""

    def __init__(self, sampler: NucleusSampler) -> None:
        self._sampler = sampler

    def __call__(
        self, input_ids: Int64[Tensor, "rows length"], scores: Float[Tensor, "rows vocabulary"]
    ) -> Float[Tensor, "rows vocabulary"]:
        drawn = self._sampler.draw(scores)
        return torch.full_like(scores, -torch.inf).scatter_(1, drawn[:, None], 0.0)
