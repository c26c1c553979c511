"""Loads transformers' captioning models and makes their inputs: two families, told apart by what a prompt does."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)
from transformers.modeling_outputs import BaseModelOutput

from reinforce.captioners.inputs import normalised, tokenizer_sha256
from reinforce.sample import Pixels
from reinforce.weights import ModelError, check_sha256, transformers_folder, transformers_weights

DEFAULT_IMAGE_SIZE = 384
"""The side of the clean view for a model of dynamic resolution that names no size of its own."""

CONTINUING = {"vision-encoder-decoder", "blip", "git"}
"""Model types that continue a text: their prompt is the beginning of the caption."""

_SIZES = ("size", "crop_size", "max_image_size", "min_pixels", "max_pixels", "patch_size", "merge_size")
_STEPS = ("do_resize", "do_center_crop", "do_pad", "do_image_splitting", "do_normalize")
_PREPROCESSING = (*_SIZES, *_STEPS, "resample", "rescale_factor", "image_mean", "image_std")
"""The fields of an image processor that change what the model sees."""


@dataclass(frozen=True)
class TransformersModel:
    """A model in fp32 on the CPU. `processor` is only the image processor for the continuing family."""

    name: str
    model: Any
    tokenizer: Any
    processor: Any
    weights_sha256: str

    @property
    def continues(self) -> bool:
        return self.model.config.model_type in CONTINUING

    def tokenizer_sha256(self) -> str:
        def encode(text: str) -> list[int]:
            return list(self.tokenizer.encode(text, add_special_tokens=False))

        return tokenizer_sha256(encode, self.tokenizer.decode, len(self.tokenizer))


def load_transformers(name: str, revision: str | None, sha256: str | None) -> TransformersModel:
    """Loads a folder or a hub id. Raises `ModelError`, also for weights that are missing from the checkpoint."""
    folder = transformers_folder(name, revision)
    weights_sha256 = check_sha256(transformers_weights(folder), sha256)
    offline: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        continues = AutoConfig.from_pretrained(folder, **offline).model_type in CONTINUING
        # Only safetensors, and fp32 whatever the checkpoint was saved in: the precision is the recipe's.
        model, report = AutoModelForImageTextToText.from_pretrained(
            folder, **offline, dtype=torch.float32, use_safetensors=True, output_loading_info=True
        )
        # Checkpoints of the continuing family often lack a processor class: load its two parts.
        processor = (AutoImageProcessor if continues else AutoProcessor).from_pretrained(folder, **offline)
        tokenizer = AutoTokenizer.from_pretrained(folder, **offline) if continues else processor.tokenizer
    except Exception as error:  # a folder that is not what it seems raises anything, KeyError to AttributeError
        raise ModelError(f"model {name}: {type(error).__name__}: {' '.join(str(error).split())[:300]}") from None
    if report["missing_keys"] or report["mismatched_keys"]:
        missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
        raise ModelError(f"model {name}: the checkpoint lacks {len(missing)} weights, such as {missing[0]}")
    return TransformersModel(name, model.eval(), tokenizer, processor, weights_sha256)


def own_the_sampling(loaded: TransformersModel, max_new_tokens: int) -> list[int]:
    """Puts plain sampling in the place of the checkpoint's own generation config; returns the ids that end a caption.

    Penalties, beams, forced and suppressed tokens all go, in the submodules too that `generate` delegates to. Of the
    checkpoint's config only the special tokens' ids stay.
    """
    config, tokenizer = loaded.model.config, loaded.tokenizer
    if config.model_type == "blip":  # its generate ends at the separator, whatever the generation config says
        end_ids = [config.text_config.sep_token_id]
    else:
        own = loaded.model.generation_config.eos_token_id
        end_ids = [*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id, tokenizer.sep_token_id]
    end_ids = list(dict.fromkeys(i for i in end_ids if i is not None))
    for module in loaded.model.modules():
        previous = getattr(module, "generation_config", None)
        if previous is not None:
            pad_id = tokenizer.pad_token_id if previous.pad_token_id is None else previous.pad_token_id
            module.generation_config = GenerationConfig(
                bos_token_id=previous.bos_token_id,
                decoder_start_token_id=previous.decoder_start_token_id,
                eos_token_id=end_ids or None,
                pad_token_id=next(iter(end_ids), 0) if pad_id is None else pad_id,
                max_new_tokens=max_new_tokens,
                do_sample=True,
                top_k=0,
                use_cache=True,
            )
    return end_ids


class ContinuingInputs:
    """VisionEncoderDecoder, BLIP, GIT: pixels normalised on the device, and the caption so far."""

    def __init__(self, loaded: TransformersModel, prompt: str, device: torch.device) -> None:
        processor, config = loaded.processor, loaded.model.config
        self._device = device
        self.image_size = _processor_side(processor) or _vision_side(config)
        if self.image_size is None:
            raise ModelError(f"model {loaded.name}: its preprocessor_config.json names no square image size")
        self._mean, self._std = [0.0] * 3, [1.0] * 3
        if processor.do_normalize:
            self._mean, self._std = list(processor.image_mean), list(processor.image_std)
        self.kept_prompt_ids = list(loaded.tokenizer.encode(prompt, add_special_tokens=False)) if prompt else []
        start_id = _start_id(loaded)
        if start_id is None:
            raise ModelError(f"model {loaded.name}: has no token to start a caption with")
        # BLIP's generate overwrites the first token and drops the last.
        end = [config.text_config.sep_token_id] if config.model_type == "blip" else []
        self._ids = [start_id, *self.kept_prompt_ids, *end]
        self._encoder: Any = None
        if config.model_type == "git":
            self._encoder, loaded.model.git.image_encoder = loaded.model.git.image_encoder, _Encoded()
        self._ids_name = "decoder_input_ids" if config.model_type == "vision-encoder-decoder" else "input_ids"
        self.prompt_length = 1 + len(self.kept_prompt_ids)

    def content(self) -> dict[str, Any]:
        return {"image_size": self.image_size, "mean": self._mean, "std": self._std}

    def of(self, images: Sequence[Pixels]) -> dict[str, Tensor]:
        pixels = normalised(images, self._mean, self._std, self._device)
        if self._encoder is not None:
            pixels = self._encoder(pixel_values=pixels).last_hidden_state[:, None]
        return {"pixel_values": pixels, self._ids_name: torch.tensor([self._ids] * len(images), device=self._device)}


class _Encoded(torch.nn.Module):
    """In the place of GIT's vision encoder: hands over what was encoded before.

    `generate` has the encoder see an image once for each of its captions, as GIT lacks the method that would spare it.
    """

    def forward(self, pixel_values: Float[Tensor, "rows 1 tokens dim"], **_: Any) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=pixel_values[:, 0])


class ProcessorInputs:
    """All other models: their own processor makes tokens and pixels, from a chat turn if they have a template."""

    kept_prompt_ids: tuple[int, ...] = ()

    def __init__(self, loaded: TransformersModel, prompt: str, device: torch.device) -> None:
        self._processor, self._prompt, self._device = loaded.processor, prompt, device
        self._template: str | None = getattr(loaded.processor, "chat_template", None)
        if self._template and not prompt:
            raise ModelError(
                f"model {loaded.name}: prompt: a chat model needs one, such as 'Describe the image in one sentence.'"
            )
        loaded.tokenizer.padding_side = "left"
        self._image_processor = loaded.processor.image_processor
        if getattr(self._image_processor, "do_image_splitting", False):
            # Tiles would be enlarged parts of the clean view: a dozen times the cost, and nothing more to see.
            self._image_processor.do_image_splitting = False
        own_side = _vision_side(loaded.model.config) or _processor_side(self._image_processor, edges=False)
        self.image_size = own_side or DEFAULT_IMAGE_SIZE
        blank = torch.zeros(self.image_size, self.image_size, 3, dtype=torch.uint8).numpy()
        try:
            self.prompt_length = self.of([blank])["input_ids"].shape[1]
        except Exception as error:  # templates and processors raise anything for a prompt they do not take
            raise ModelError(
                f"model {loaded.name}: prompt {prompt!r}: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            ) from None

    def content(self) -> dict[str, Any]:
        fields = {name: getattr(self._image_processor, name, None) for name in _PREPROCESSING}
        template = None if self._template is None else hashlib.sha256(self._template.encode()).hexdigest()
        return {
            "image_size": self.image_size,
            "mean": _plain(fields["image_mean"]),
            "std": _plain(fields["image_std"]),
            "preprocessing": {name: _plain(value) for name, value in fields.items() if value is not None},
            "chat_template_sha256": template,
        }

    def of(self, images: Sequence[Pixels]) -> dict[str, Tensor]:
        views = [Image.fromarray(image) for image in images]
        if self._template is None:
            text = [self._prompt] * len(views)
            inputs = self._processor(images=views, text=text, return_tensors="pt", padding=True)
        else:
            # Some templates write today's date: the captions, and the fingerprint, would change by the day.
            fixed = {"date_string": "01 Jan 2024"} if "date_string" in self._template else {}
            turns = [[{"role": "user", "content": self._content(view)}] for view in views]
            inputs = self._processor.apply_chat_template(
                turns,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                processor_kwargs={"padding": True},
                **fixed,
            )
        return dict(inputs.to(self._device))

    def _content(self, view: Image.Image) -> list[dict[str, Any]]:
        return [{"type": "image", "image": view}, {"type": "text", "text": self._prompt}]


def _start_id(loaded: TransformersModel) -> int | None:
    tokenizer, generation = loaded.tokenizer, loaded.model.generation_config
    candidates = [generation.decoder_start_token_id, generation.bos_token_id, tokenizer.cls_token_id]
    if loaded.model.config.model_type == "blip":
        candidates = [loaded.model.config.text_config.bos_token_id]
    if loaded.model.config.model_type == "git":
        candidates = [tokenizer.cls_token_id, generation.bos_token_id]
    return next((i for i in [*candidates, tokenizer.bos_token_id] if i is not None), None)


def _vision_side(config: Any) -> int | None:
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", None)
    return _side(getattr(vision, "image_size", None))


def _processor_side(processor: Any, *, edges: bool = True) -> int | None:
    """The side in an image processor's `crop_size` or `size`. `edges` allows a `shortest_edge`, which newer
    processors use for a number of pixels."""
    if getattr(processor, "do_center_crop", False):
        side = _side(_plain(getattr(processor, "crop_size", None)))
        if side is not None:
            return side
    size = _plain(getattr(processor, "size", None))
    if isinstance(size, dict) and not edges:
        size = {name: value for name, value in size.items() if name in ("height", "width")}
    return _side(size)


def _side(size: Any) -> int | None:
    """An int, [n, n], {"height": n, "width": n} or {"shortest_edge": n} as one side; None for all else."""
    values = list(size.values()) if isinstance(size, dict) else size if isinstance(size, list | tuple) else [size]
    sides = set(values)
    return sides.pop() if len(sides) == 1 and isinstance(values[0], int) else None


def _plain(value: Any) -> Any:
    """A processor's field as JSON data: sizes lose their unset entries, enumerations become their values."""
    if hasattr(value, "items") or hasattr(value, "height"):
        pairs = value.items() if hasattr(value, "items") else vars(value).items()
        return {name: _plain(entry) for name, entry in pairs if entry is not None}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value
