"""Captioners over tiny random models of real architectures: what they draw, and that a batch never changes it."""

import gc
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from reinforce.captioners import Captioner, CaptionRequest, FakeCaptioner, load_captioner
from reinforce.captioners.cleaning import MAX_REDRAWS, clean_caption, distinct_captions, draw_distinct
from reinforce.captioners.sampling import NucleusSampler, gumbel_noise, nucleus, philox4x32
from reinforce.config import CaptionerConfig
from reinforce.microbatch import MicroBatch
from reinforce.weights import ModelError

CPU = torch.device("cpu")
PAD, START, END, IMAGE = range(4)
WORDS = ["[PAD]", "[START]", "[END]", "<image>", *(f"w{i}" for i in range(4, 64))]
PROMPT = "w10 w11"
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> "
    "{% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}{% if add_generation_prompt %}w5{% endif %}"
)


@pytest.fixture(autouse=True, scope="module")
def _quiet_and_offline() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # it may have been imported before
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        from transformers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        yield
        torch.set_num_threads(threads)


def _save_tokenizer(folder: Path) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[PAD]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="[START]",
        eos_token="[END]",
        pad_token="[PAD]",
        extra_special_tokens=["<image>"],
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def _save_model(model: Any, folder: Path, spread: float) -> None:
    """Saves it with larger weights, so that captions depend on the image and on what was drawn before."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(std=spread * (4 if "embed" in name or "wte" in name else 1))
    model.save_pretrained(folder)
    # What a checkpoint may ask of `generate`, none of which may reach our captions.
    path = folder / "generation_config.json"
    own = json.loads(path.read_text()) if path.exists() else {}
    meddling = {"num_beams": 3, "repetition_penalty": 5.0, "max_length": 3, "min_p": 0.9, "suppress_tokens": [7, 8, 9]}
    path.write_text(json.dumps({**own, **meddling}))


def _make_vision_encoder_decoder(folder: Path) -> None:
    from transformers import (
        GPT2Config,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    encoder = ViTConfig(**sizes, image_size=16, patch_size=8)
    decoder = GPT2Config(
        vocab_size=64, n_positions=32, n_embd=16, n_layer=2, n_head=2, bos_token_id=START, eos_token_id=END
    )
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        encoder, decoder, decoder_start_token_id=START, pad_token_id=PAD, eos_token_id=END
    )
    _save_model(VisionEncoderDecoderModel(config), folder, 0.2)
    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.4] * 3, image_std=[0.3] * 3).save_pretrained(
        folder
    )
    _save_tokenizer(folder)


def _make_blip(folder: Path) -> None:
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tokens = {"bos_token_id": START, "sep_token_id": END, "pad_token_id": PAD, "eos_token_id": 63}
    text = {**sizes, **tokens, "vocab_size": 64, "encoder_hidden_size": 16, "max_position_embeddings": 32}
    config = BlipConfig(text_config=text, vision_config={**sizes, "image_size": 16, "patch_size": 8})
    _save_model(BlipForConditionalGeneration(config), folder, 0.2)
    BlipImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    _save_tokenizer(folder)


def _make_git(folder: Path) -> None:
    from transformers import CLIPImageProcessor, GitConfig, GitForCausalLM

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    tokens = {"bos_token_id": START, "eos_token_id": END, "pad_token_id": PAD}
    vision = {**sizes, "image_size": 16, "patch_size": 8}
    config = GitConfig(**sizes, **tokens, vision_config=vision, vocab_size=64, max_position_embeddings=32)
    _save_model(GitForCausalLM(config), folder, 0.3)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    _save_tokenizer(folder)


def _make_llava(folder: Path) -> None:
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    vision = CLIPVisionConfig(**sizes, image_size=16, patch_size=8)
    text = LlamaConfig(
        **sizes, vocab_size=64, max_position_embeddings=64, pad_token_id=PAD, bos_token_id=START, eos_token_id=END
    )
    model = LlavaForConditionalGeneration(LlavaConfig(vision_config=vision, text_config=text, image_token_id=IMAGE))
    model.generation_config.eos_token_id = END
    _save_model(model, folder, 0.2)
    LlavaProcessor(
        image_processor=CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}),
        tokenizer=_save_tokenizer(folder),
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(folder)


def _make_coca(folder: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    text = {"context_length": 16, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "attentional_pool": True}
    model_config = {
        "embed_dim": 16,
        "vision_cfg": {**vision, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**text, "embed_cls": True, "output_tokens": True, "hf_tokenizer_name": "local"},
        "multimodal_cfg": {**text, "attn_pooler_heads": 2},
        "custom_text": True,
    }
    config = {"model_cfg": model_config, "preprocess_cfg": {"mean": [0.4] * 3, "std": [0.3] * 3}}
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    _save_tokenizer(folder)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.5)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "open_clip_model.safetensors"
    )


MAKERS: dict[str, Callable[[Path], None]] = {
    "blip": _make_blip,
    "coca": _make_coca,
    "llava": _make_llava,
    "vision-encoder-decoder": _make_vision_encoder_decoder,
    "git": _make_git,
}
SEEDS = {"blip": 0, "coca": 1, "llava": 2, "vision-encoder-decoder": 3, "git": 7}
"""Weights with which captions depend on the image and few are empty."""


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of one of the tiny models, made when first asked for."""
    made: dict[str, Path] = {}

    def folder_of(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp(kind)
            with torch.random.fork_rng():
                torch.manual_seed(SEEDS[kind])
                MAKERS[kind](made[kind])
        return made[kind]

    return folder_of


@pytest.fixture(scope="module")
def load(model_folder: Callable[[str], Path]) -> Callable[..., Any]:
    def load(kind: str, batch_size: int = 4, **settings: Any) -> Captioner:
        return load_captioner("tiny", _config(model_folder(kind), kind, **settings), device=CPU, batch_size=batch_size)

    return load


def _config(folder: Path, kind: str, **settings: Any) -> CaptionerConfig:
    defaults: dict[str, Any] = {"max_new_tokens": 6, "num_captions": 3, "prompt": PROMPT if kind == "llava" else ""}
    model = (
        {"kind": "open_clip", "model": f"local-dir:{folder}"}
        if kind == "coca"
        else {"kind": "transformers", "model": str(folder)}
    )
    return CaptionerConfig(**{**defaults, **model, **settings})


def _requests(count: int, size: int = 16) -> list[CaptionRequest]:
    pixels = np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return [CaptionRequest(stem="s", key=f"k{i}", seed=2**63 + 7 * i, image=image) for i, image in enumerate(pixels)]


def _caption_all(captioner: Captioner, requests: list[CaptionRequest], at_once: int) -> dict[str, list[str]]:
    batches = [requests[i : i + at_once] for i in range(0, len(requests), at_once)]
    return {
        request.key: captions
        for batch in batches
        for request, captions in zip(batch, captioner.caption(batch), strict=True)
    }


# The noise


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    words = philox4x32(*([torch.tensor(int(word, 16)) for word in line.split()] for line in (counter, key)))
    assert " ".join(f"{int(word):08x}" for word in words) == expected


def test_noise_is_that_of_its_seed_caption_step_and_token_alone() -> None:
    def noise(low: int, high: int, caption: int, step: int, token: int) -> float:
        return gumbel_noise(torch.tensor([[low, high]]), torch.tensor([caption]), step, torch.tensor([[token]])).item()

    points = [(1, 2, 3, 4, 5), (9, 2, 3, 4, 5), (1, 9, 3, 4, 5), (1, 2, 9, 4, 5), (1, 2, 3, 9, 5), (1, 2, 3, 4, 9)]
    assert len({noise(*point) for point in points}) == len(points)
    rows = gumbel_noise(torch.tensor([[9, 2], [1, 2]]), torch.tensor([3, 3]), 4, torch.tensor([[0, 5], [7, 5]]))
    assert rows[:, 1].tolist() == [noise(9, 2, 3, 4, 5), noise(1, 2, 3, 4, 5)]


# The nucleus


def _nucleus_sets(logits: Tensor, top_p: float, temperature: float = 1.0) -> list[list[int]]:
    log_probs, tokens = nucleus(logits, top_p, temperature)
    return [row[log_prob > -torch.inf].tolist() for row, log_prob in zip(tokens, log_probs, strict=True)]


def test_nucleus_is_the_smallest_set_that_reaches_top_p() -> None:
    logits = torch.tensor([[0.15, 0.5, 0.05, 0.3], [0.97, 0.01, 0.01, 0.01]]).log()
    assert _nucleus_sets(logits, 0.79) == [[1, 3], [0]]
    assert _nucleus_sets(logits, 0.81) == [[1, 3, 0], [0]]
    assert _nucleus_sets(logits, 1e-9) == [[1], [0]]
    assert _nucleus_sets(logits, 1.0) == [[1, 3, 0, 2], [0, 1, 2, 3]]
    # At temperature 1/2 probabilities are squared: 0.25 of 0.365, then 0.09 more.
    assert _nucleus_sets(logits[:1], 0.68, 0.5) == [[1]]
    assert _nucleus_sets(logits[:1], 0.69, 0.5) == [[1, 3]]


def test_nucleus_takes_equal_tokens_by_id_however_many_there_are() -> None:
    logits = torch.zeros(2, 5000)
    logits[1, 4000] = 3.0
    first, second = _nucleus_sets(logits, 0.5)
    assert first == list(range(2500))
    assert second[0] == 4000
    assert second[1:] == list(range(len(second) - 1))


def _draw(probabilities: list[float], count: int, top_p: float = 1.0, temperature: float = 1.0) -> Tensor:
    sampler = NucleusSampler(range(count), [0], end_ids=[], top_p=top_p, temperature=temperature, device=CPU)
    return sampler.draw(torch.tensor([probabilities]).log().expand(count, -1))


def test_draws_follow_the_distribution_cut_at_the_nucleus() -> None:
    count = 20_000
    drawn = _draw([0.05, 0.4, 0.1, 0.25, 0.2], count, top_p=0.8)
    counts = torch.bincount(drawn, minlength=5)
    assert counts[[0, 2]].tolist() == [0, 0]
    expected = torch.tensor([0.4, 0.25, 0.2]) / 0.85 * count
    chi_square = ((counts[[1, 3, 4]] - expected) ** 2 / expected).sum().item()
    assert chi_square < 13.8  # 1 in 1,000 for two degrees of freedom


def test_temperature_sharpens_the_distribution() -> None:
    share = (_draw([0.75, 0.25], 4000, temperature=0.5) == 0).float().mean().item()
    assert share == pytest.approx(0.9, abs=0.02)


def test_a_row_ends_at_its_end_token_and_stays_ended() -> None:
    sampler = NucleusSampler([1, 2], [0], end_ids=[2, 3], top_p=0.1, temperature=1.0, device=CPU)
    for winners in ([4, 5], [3, 6], [7, 2]):
        drawn = sampler.draw(torch.nn.functional.one_hot(torch.tensor(winners), 8).float() * 9)
    assert drawn.tolist() == [2, 2]
    assert sampler.all_ended()
    assert sampler.texts(str) == [["[4]"], ["[5, 6]"]]


@pytest.mark.parametrize("bad", [[math.nan, 0.0, 0.0], [0.0, math.inf, 0.0], [-math.inf] * 3])
def test_a_row_of_bad_logits_fails_its_sample_only(bad: list[float]) -> None:
    sampler = NucleusSampler([1, 2], [0, 1], end_ids=[0], top_p=0.1, temperature=1.0, device=CPU)
    good = [-math.inf, 0.0, 1.0]
    sampler.draw(torch.tensor([good, bad, good, good]))
    sampler.draw(torch.tensor([good] * 4))
    assert sampler.texts(str) == [None, ["[2, 2]", "[2, 2]"]]


def test_bad_logits_after_the_end_are_no_failure() -> None:
    sampler = NucleusSampler([1], [0], end_ids=[0], top_p=0.1, temperature=1.0, device=CPU)
    for logits in ([0.0, 9.0], [9.0, 0.0], [math.nan, 0.0]):
        sampler.draw(torch.tensor([logits]))
    assert sampler.texts(str) == [["[1]"]]


# Cleaning and redrawing


def test_captions_are_cleaned() -> None:
    assert clean_caption("  a\tcat\r\n on \x00 a\x07mat\ufffd \ud800") == "a cat on a mat"
    clean_caption("\ud83d broken \udc00").encode()  # must be storable
    assert clean_caption("né à Köln 猫 👩\u200d🚀") == "né à Köln 猫 👩\u200d🚀"
    assert distinct_captions(["b", " ", "a", "b ", "c", "d"], 3) == ["b", "a", "c"]


def test_repeats_and_empties_are_redrawn_a_few_times() -> None:
    written = [["a", "a"], ["b", "c"], ["d", ""], None, ["e", "e"]]
    further: dict[int, list[str] | None] = {0: ["a", "f", "g"], 2: ["", "d", " "], 4: None}
    calls = []

    def draw(samples: Any, captions: range) -> list[list[str] | None]:
        calls.append((list(samples), captions))
        return [written[i] if captions.start == 0 else further[i] for i in samples]

    captions = draw_distinct(5, num_captions=2, micro_batch=MicroBatch(8), draw=draw)
    assert captions == [["a", "f"], ["b", "c"], ["d"], [], ["e"]]
    assert calls == [([0, 1, 2, 3, 4, 4, 4, 4], range(2)), ([0, 2, 4, 4], range(2, 2 + MAX_REDRAWS))]


def test_redraws_run_in_a_halved_micro_batch_too() -> None:
    calls = []

    def draw(samples: Any, captions: range) -> list[list[str] | None]:
        calls.append((list(samples), captions))
        if len(samples) * len(captions) > 6:
            raise torch.OutOfMemoryError
        return [[f"{i} {caption // 2}" for caption in captions] for i in samples]

    captions = draw_distinct(5, num_captions=1, micro_batch=MicroBatch(5), draw=draw)
    assert (captions, calls) == ([[f"{i} 0"] for i in range(5)], [([0, 1, 2, 3, 4], range(1))])
    calls.clear()
    micro_batch = MicroBatch(8)
    assert draw_distinct(3, num_captions=2, micro_batch=micro_batch, draw=draw) == [
        [f"{i} 0", f"{i} 1"] for i in range(3)
    ]
    assert micro_batch.size == 2
    further = range(2, 2 + MAX_REDRAWS)
    assert calls[2:] == [([0, 1], range(2)), ([2, 2], range(2)), ([0, 1], further), ([2, 2], further)]


# Models


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_captions_do_not_depend_on_the_batch(load: Callable[..., Any], kind: str) -> None:
    requests = _requests(10)
    alone = _caption_all(load(kind, batch_size=1), requests, 1)
    assert _caption_all(load(kind, batch_size=3), requests, 3) == alone
    assert _caption_all(load(kind, batch_size=16), requests[::-1], 10) == alone
    assert len({caption for captions in alone.values() for caption in captions}) > 15


def _towers(captioner: Any, kind: str) -> tuple[torch.nn.Module, torch.nn.Module]:
    """The modules of a captioner that see a row an image, and a row a caption."""
    model = captioner._model
    towers: dict[str, Callable[[], tuple[torch.nn.Module, torch.nn.Module]]] = {
        "vision-encoder-decoder": lambda: (model.encoder, model.decoder),
        "blip": lambda: (model.vision_model, model.text_decoder),
        "git": lambda: (captioner._inputs._encoder, model),
        "llava": lambda: (model.model.vision_tower, model.model.language_model),
        "coca": lambda: (model.visual, model.text.token_embedding),
    }
    return towers[kind]()


def _refuse_above(module: torch.nn.Module, limit: int) -> None:
    """Has a module run out of memory on more than `limit` rows."""

    def check(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        rows = next(len(value) for value in [*args, *kwargs.values()] if isinstance(value, Tensor))
        if rows > limit:
            raise torch.OutOfMemoryError(f"{rows} rows")

    module.register_forward_pre_hook(check, with_kwargs=True)
    gc.freeze()  # what libraries hold would take half a second of every collection after an error


@pytest.mark.parametrize("part", ["images", "text"])
@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_captions_outlive_a_halved_micro_batch(load: Callable[..., Any], kind: str, part: str) -> None:
    requests = _requests(11)
    expected = load(kind, batch_size=11).caption(requests)
    captioner = load(kind, batch_size=11)
    images, text = _towers(captioner, kind)
    _refuse_above(*((images, 2) if part == "images" else (text, 2 * captioner.num_captions)))
    assert captioner.caption(requests) == expected
    assert captioner.micro_batch == 2
    assert captioner.caption(requests[3:]) == expected[3:]


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_a_sample_that_does_not_fit_alone_is_an_error(load: Callable[..., Any], kind: str) -> None:
    captioner = load(kind)
    _refuse_above(_towers(captioner, kind)[1], captioner.num_captions - 1)
    with pytest.raises(torch.OutOfMemoryError, match="3 rows"):
        captioner.caption(_requests(4))


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_another_seed_or_image_gives_other_captions(load: Callable[..., Any], kind: str) -> None:
    first = _requests(1)[0]
    other_seed = replace(first, seed=first.seed + 2**40)
    other_image = replace(first, image=_requests(2)[1].image)
    captioner = load(kind, top_p=0.9)
    captions = captioner.caption([first, other_seed, other_image])
    assert captions[0] != captions[1]
    greedy = load(kind, top_p=1e-6, num_captions=1)
    described = greedy.caption([first, other_seed, other_image])
    assert described[0] == described[1]
    assert described[0] != described[2]


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_captions_are_clean_text_within_the_bound(load: Callable[..., Any], kind: str) -> None:
    for captions in load(kind, num_captions=2).caption(_requests(4)):
        assert 1 <= len(captions) <= 2
        for caption in captions:
            words = caption.split()
            assert 1 <= len(words) <= 6
            assert set(words) <= set(WORDS[4:])


@pytest.mark.parametrize(
    ("kind", "kept"), [("vision-encoder-decoder", 2), ("blip", 2), ("git", 2), ("coca", 2), ("llava", 0)]
)
def test_a_prompt_is_kept_where_the_model_continues_it(load: Callable[..., Any], kind: str, kept: int) -> None:
    requests = _requests(3)
    prompted = load(kind, prompt=PROMPT, top_p=1e-6, num_captions=1).caption(requests)
    if kept:
        assert all(caption.startswith(PROMPT + " ") for [caption] in prompted)
    assert max(len(caption.split()) for [caption] in prompted) == 6 + kept
    other = load(kind, prompt="w20 w30", top_p=1e-6, num_captions=1).caption(requests)
    assert [text.split()[kept:] for [text] in prompted] != [text.split()[kept:] for [text] in other]


def _reference(kind: str, folder: Path, request: CaptionRequest, sampler: NucleusSampler) -> str:
    """A caption by plain forward passes over one image and the whole text so far, without a cache."""
    from transformers import AutoModelForImageTextToText

    assert request.image is not None
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    clip = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    mean, std = ([0.4] * 3, [0.3] * 3) if kind == "vision-encoder-decoder" else clip
    pixels = torch.from_numpy((request.image / 255 - mean) / std).float().permute(2, 0, 1)[None]
    # llava's turn: 4 places of the image, the prompt, and the word with which the template has the answer begin.
    ids = [IMAGE] * 4 + [10, 11, 5] if kind == "llava" else [START]
    name = "decoder_input_ids" if kind == "vision-encoder-decoder" else "input_ids"
    new: list[int] = []
    with torch.no_grad():
        while len(new) < 6 and END not in new:
            inputs = {name: torch.tensor([ids + new]), "pixel_values": pixels}
            new.append(int(sampler.draw(model(**inputs, use_cache=False).logits[:, -1])))
    return " ".join(WORDS[i] for i in new if i > IMAGE)


@pytest.mark.parametrize("top_p", [1e-6, 0.8])
@pytest.mark.parametrize("kind", ["vision-encoder-decoder", "blip", "git", "llava"])
def test_cached_generation_draws_from_the_logits_of_plain_forward_passes(
    load: Callable[..., Any], model_folder: Callable[[str], Path], kind: str, top_p: float
) -> None:
    requests = _requests(4)
    captions = load(kind, top_p=top_p, num_captions=1).caption(requests)
    expected = []
    for request in requests:
        sampler = NucleusSampler([request.seed], [0], end_ids=[END], top_p=top_p, temperature=1.0, device=CPU)
        expected.append(_reference(kind, model_folder(kind), request, sampler))
    assert "" not in expected, "or a redraw would take its place"
    assert [text for [text] in captions] == expected
    assert len(set(expected)) > 1


@pytest.mark.parametrize(
    ("kind", "prompt_length"), [("vision-encoder-decoder", 1), ("blip", 1), ("git", 1), ("llava", 7)]
)
def test_the_cache_saves_all_but_the_last_token(load: Callable[..., Any], kind: str, prompt_length: int) -> None:
    captioner = load(kind, num_captions=2, temperature=3.0)
    decoder = captioner._model.text_decoder if kind == "blip" else captioner._model
    fed: list[int] = []
    name = "decoder_input_ids" if kind == "vision-encoder-decoder" else "input_ids"
    hook = decoder.register_forward_pre_hook(
        lambda _module, _args, kwargs: fed.append(kwargs[name].shape[1]), with_kwargs=True
    )
    assert all(len(texts) == 2 for texts in captioner.caption(_requests(4))), "or a redraw would be counted too"
    hook.remove()
    assert fed == [prompt_length, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_each_image_is_encoded_once_for_all_captions(load: Callable[..., Any], kind: str) -> None:
    captioner = load(kind, num_captions=5, temperature=3.0)
    encoder, _ = _towers(captioner, kind)
    encoded: list[int] = []
    hook = encoder.register_forward_hook(
        lambda _module, args, kwargs, _out: encoded.append(len(args[0] if args else kwargs["pixel_values"])),
        with_kwargs=True,
    )
    captions = captioner.caption(_requests(4))
    hook.remove()
    assert all(len(texts) == 5 for texts in captions), "or a redraw would be counted too"
    assert encoded == [4]


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_a_bad_output_costs_its_own_sample_only(load: Callable[..., Any], kind: str) -> None:
    captioner = load(kind)
    requests = _requests(4)
    expected = captioner.caption(requests)
    embedding = {
        "vision-encoder-decoder": lambda: captioner._model.encoder,
        "blip": lambda: captioner._model.vision_model,
        "git": lambda: captioner._inputs._encoder,
        "llava": lambda: captioner._model.model.multi_modal_projector,
        "coca": lambda: captioner._model.visual,
    }[kind]()

    def spoil(_module: Any, _args: Any, output: Any) -> Any:
        hook.remove()  # redraws of other samples are left alone
        tensor = output if isinstance(output, Tensor) else output[1] if kind == "coca" else output[0]
        tensor[1] = math.nan
        return output

    hook = embedding.register_forward_hook(spoil)
    captions = captioner.caption(requests)
    assert captions == [expected[0], [], expected[2], expected[3]]


def test_coca_draws_from_the_logits_of_open_clips_own_forward(
    load: Callable[..., Any], model_folder: Callable[[str], Path]
) -> None:
    import open_clip

    model = open_clip.create_model(f"local-dir:{model_folder('coca')}").eval()
    for request in _requests(3):
        assert request.image is not None
        image = torch.from_numpy((request.image / 255 - 0.4) / 0.3).float().permute(2, 0, 1)[None]
        expected = []
        for caption in range(2):
            sampler = NucleusSampler(
                [request.seed], [caption], end_ids=[END, PAD], top_p=0.9, temperature=1.3, device=CPU
            )
            ids = [START]
            with torch.no_grad():
                while len(ids) < 7 and ids[-1] not in (END, PAD):
                    logits = model(image, torch.tensor([ids]), output_labels=False)["logits"]
                    ids.append(int(sampler.draw(logits[:, -1])))
            expected.append(" ".join(WORDS[i] for i in ids if i > IMAGE))
        captioner = load("coca", num_captions=2, temperature=1.3, top_p=0.9)
        found = captioner.caption([request])[0]
        assert found == expected or len(set(expected) - {""}) < 2


def _coca(**text: Any) -> Any:
    """A CoCa of two layers in float64, with weights large enough that every token and every image counts."""
    import open_clip

    sizes = {"context_length": 9, "vocab_size": 32, "width": 16, "heads": 2, "layers": 2}
    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8, "attentional_pool": True}
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = open_clip.CoCa(
            embed_dim=16,
            vision_cfg={**vision, "attn_pooler_heads": 2, "output_tokens": True},
            text_cfg={**sizes, "output_tokens": True, "embed_cls": True, **text},
            multimodal_cfg={**sizes, "heads": 4, "ls_init_value": text.get("ls_init_value")},
        )
        for weight in model.parameters():
            weight.data.normal_(std=0.4)
    return model.double().eval()


@pytest.mark.parametrize("prompt_length", [1, 3])
@pytest.mark.parametrize("text", [{}, {"embed_cls": False}, {"ls_init_value": 1.0}], ids=["class", "none", "scale"])
@torch.inference_mode()
def test_cocas_cached_logits_are_those_of_open_clips_forward(text: dict[str, Any], prompt_length: int) -> None:
    from reinforce.captioners.coca import CachedText

    model, generator = _coca(**text), torch.Generator().manual_seed(0)
    embs = torch.randn(2, 5, 16, dtype=torch.float64, generator=generator)
    tokens = torch.randint(1, 32, (6, 9), generator=generator)
    cached = CachedText(model, embs, num_captions=3, max_tokens=9)
    images = {"image_latent": embs[:, 0], "image_embs": embs.repeat_interleave(3, 0)}
    whole = model(None, tokens, **images, output_labels=False)["logits"]
    fed = 0
    for length in range(prompt_length, 10):
        logits = cached.next_logits(tokens[:, fed:length])
        if model.text.cls_emb is None:  # open_clip's own cuts no mask to a shorter text
            expected = whole[:, length - 1]
        else:
            expected = model(None, tokens[:, :length], **images, output_labels=False)["logits"][:, -1]
        torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
        assert (logits[:3, None] - logits[None, 3:]).abs().amax(2).min() > 0.01, "or rows could be swapped"
        fed = length


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"no_causal_mask": True}, "reads in both directions"),
        ({"qk_norm": True}, "attention with extras"),
        ({"pad_id": 1}, "pad_id is 0, its text tower's 1"),
    ],
)
def test_a_coca_that_cannot_be_cached_is_refused(text: dict[str, Any], message: str) -> None:
    from reinforce.captioners.coca import check_coca

    check_coca("published", _coca())
    with pytest.raises(ModelError, match=f"model odd: .*{message}"):
        check_coca("odd", _coca(**text))


def test_a_prompt_that_holds_cocas_padding_is_refused(load: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match=r"prompt 'w5 \[PAD\] w6': holds token 0"):
        load("coca", prompt="w5 [PAD] w6")


def test_coca_is_fed_every_token_once(load: Callable[..., Any]) -> None:
    captioner = load("coca", num_captions=2, temperature=3.0, prompt=PROMPT)
    fed: list[tuple[int, ...]] = []
    images: list[int] = []
    captioner._model.text.token_embedding.register_forward_hook(lambda _m, args, _out: fed.append(tuple(args[0].shape)))
    captioner._model.text_decoder.cross_attn[0].ln_1_kv.register_forward_hook(
        lambda _m, args, _out: images.append(len(args[0]))
    )
    assert all(len(texts) == 2 for texts in captioner.caption(_requests(4))), "or a redraw would be counted too"
    assert fed == [(8, 3), *[(8, 1)] * 5]
    assert images == [4]


def test_a_redraw_is_of_its_sample_alone(load: Callable[..., Any]) -> None:
    # Captions of one token repeat often, so that samples differ in how many draws they need.
    requests = _requests(16)
    settings = {"max_new_tokens": 1, "num_captions": 4, "top_p": 0.6}
    alone = _caption_all(load("coca", batch_size=1, **settings), requests, 1)
    assert _caption_all(load("coca", batch_size=16, **settings), requests, 16) == alone
    assert len({len(captions) for captions in alone.values()}) > 1


def test_open_clips_own_tokenizer_works(tmp_path: Path) -> None:
    import open_clip

    from reinforce.captioners.open_clip import _TextCodec

    text = _TextCodec(open_clip.SimpleTokenizer(), pad_id=0)
    ids = text.encode("a photo of a cat")
    assert (text.start_id, text.end_ids) == (49406, [49407, 0])
    assert clean_caption(text.decode([49406, *ids, 49407, 0, 0])) == "a photo of a cat"


# What a dataset records of a captioner


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_content_has_what_changes_captions_and_no_place(
    load: Callable[..., Any], model_folder: Callable[[str], Path], tmp_path: Path, kind: str
) -> None:
    captioner = load(kind)
    described = captioner.describe()
    for field in ("kind", "model", "revision", "weights_sha256", "prompt", "num_captions", "max_new_tokens", "top_p"):
        assert field in described
    for field in ("temperature", "precision", "image_size", "mean", "std", "tokenizer"):
        assert field in described
    assert described["image_size"] == captioner.image_size == 16
    content = captioner.content()
    assert json.loads(json.dumps(content)) == content
    assert str(model_folder(kind)) not in json.dumps(content)
    moved = tmp_path / "moved"
    moved.symlink_to(model_folder(kind))
    again = load_captioner("other", _config(moved, kind), device=CPU, batch_size=7)
    assert again.content() == content
    for change in ({"top_p": 0.5}, {"temperature": 2.0}, {"max_new_tokens": 5}, {"num_captions": 1}, {"prompt": "w9"}):
        assert load(kind, **change).content() != content


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_weights_of_another_sha256_are_refused(load: Callable[..., Any], kind: str) -> None:
    load(kind, sha256=load(kind).content()["weights_sha256"])
    with pytest.raises(ModelError, match="sha256 is"):
        load(kind, sha256="0" * 64)


def test_a_checkpoint_that_lacks_weights_is_refused(model_folder: Callable[[str], Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for path in model_folder("blip").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    lost = next(name for name in weights if "crossattention.output.dense.weight" in name)
    del weights[lost]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="lacks 1 weights"):
        load_captioner("c", _config(tmp_path, "blip"), device=CPU, batch_size=1)


@pytest.mark.parametrize("kind", ["llava", "coca", "blip"])
def test_what_does_not_fit_the_context_is_refused(load: Callable[..., Any], kind: str) -> None:
    with pytest.raises(ModelError, match=r"max_new_tokens 100 .* context of"):
        load(kind, max_new_tokens=100)


def test_a_chat_model_needs_a_prompt(load: Callable[..., Any]) -> None:
    with pytest.raises(ModelError, match="prompt: a chat model needs one"):
        load("llava", prompt="")


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "transformers", "model": "/nowhere/at/all"},
        {"kind": "transformers", "model": "no-such-org/no-such-model"},
        {"kind": "open_clip", "model": "local-dir:/nowhere"},
        {"kind": "open_clip", "model": "coca_ViT-B-32:no_such_tag"},
        {"kind": "files", "path": "/nowhere/captions.parquet"},
        {"kind": "files", "path": "/nowhere"},
        {"kind": "files", "path": "/nowhere/*.parquet"},
    ],
)
def test_what_is_not_there_is_said_in_one_line(settings: dict[str, Any]) -> None:
    with pytest.raises(ModelError) as raised:
        load_captioner("c", CaptionerConfig(**settings), device=CPU, batch_size=1)
    message = str(raised.value)
    assert "\n" not in message
    assert (settings.get("model") or settings["path"]) in message


def test_an_open_clip_model_without_captions_is_refused(tmp_path: Path) -> None:
    import open_clip
    from safetensors.torch import save_file

    vision = {"image_size": 16, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1, "hf_tokenizer_name": "x"}
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    _save_tokenizer(tmp_path)
    model = open_clip.create_model(f"local-dir:{tmp_path}", load_weights=False)
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()},
        tmp_path / "open_clip_model.safetensors",
    )
    with pytest.raises(ModelError, match="writes no captions"):
        load_captioner("c", _config(tmp_path, "coca"), device=CPU, batch_size=1)


# Captions that are already there


def _files(**settings: Any) -> Captioner:
    return load_captioner("f", CaptionerConfig(kind="files", **settings), device=CPU, batch_size=8)


def _ask(captioner: Captioner, *keys: str, stem: str = "s") -> list[list[str]]:
    return captioner.caption([CaptionRequest(stem=stem, key=key, seed=0, image=None) for key in keys])


def test_a_field_hands_over_what_was_found() -> None:
    captioner = _files(field="json.synthetic", num_captions=2)
    request = CaptionRequest(stem="s", key="k", seed=0, image=None, found=("", " a  cat\n", "a cat", "two", "three"))
    assert captioner.caption([request, replace(request, found=())]) == [["a cat", "two"], []]
    assert captioner.image_size is None
    assert captioner.content() == {"kind": "files", "field": "json.synthetic", "num_captions": 2}


@pytest.mark.parametrize("text_type", [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_captions_are_found_by_key(tmp_path: Path, text_type: pa.DataType) -> None:
    keys = ["ß", "b", "a", None, "猫", "é"]
    lists = [["x"], ["one", "two", "three"], [], ["lost"], [None, "neko"], None]
    table = pa.table({"key": pa.array(keys).cast(text_type), "captions": lists, "unused": range(6)})
    pq.write_table(table, tmp_path / "c.parquet", row_group_size=2)
    captioner = _files(path=str(tmp_path / "c.parquet"), num_captions=2)
    found = _ask(captioner, "猫", "b", "missing", "a", "é", "ß", "zz", "")
    assert found == [["neko"], ["one", "two"], [], [], [], ["x"], [], []]


def test_rows_of_a_key_are_joined_in_the_order_of_the_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"key": ["k", "j", "k"], "captions": ["3", "0", "4"]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"key": ["k", "k"], "captions": ["1", None]}), tmp_path / "a.parquet")
    (tmp_path / "deep").mkdir()
    pq.write_table(pa.table({"key": ["k"], "captions": ["5"]}), tmp_path / "deep" / "c.parquet")
    (tmp_path / "notes.txt").write_text("not captions")
    assert _ask(_files(path=str(tmp_path), num_captions=9), "k", "j") == [["1", "3", "4", "5"], ["0"]]
    assert _ask(_files(path=f"{tmp_path}/*.parquet", num_captions=9), "k") == [["1", "3", "4"]]
    assert _ask(_files(path=f"{tmp_path}/**/*.parquet", num_captions=9), "k") == [["1", "3", "4", "5"]]
    assert _ask(_files(path=f"file://{tmp_path}/b.parquet", num_captions=9), "k") == [["3", "4"]]


def test_a_stem_column_keeps_shards_apart(tmp_path: Path) -> None:
    table = pa.table({"key": ["k", "k", "j"], "captions": ["one", "two", "three"], "stem": ["x/0", "x/1", "x/1"]})
    pq.write_table(table, tmp_path / "c.parquet")
    captioner = _files(path=str(tmp_path))
    assert _ask(captioner, "k", "j", stem="x/0") == [["one"], []]
    assert _ask(captioner, "k", "j", stem="x/1") == [["two"], ["three"]]


def test_a_caption_file_is_recorded_by_its_bytes(tmp_path: Path) -> None:
    table = pa.table({"key": ["k"], "captions": ["one"]})
    for name in ("a.parquet", "b.parquet"):
        pq.write_table(table, tmp_path / name)
    first, second = (_files(path=str(tmp_path / name)) for name in ("a.parquet", "b.parquet"))
    assert first.content() == second.content()
    assert first.describe()["path"] == str(tmp_path / "a.parquet")
    pq.write_table(pa.table({"key": ["k"], "captions": ["two"]}), tmp_path / "b.parquet")
    assert _files(path=str(tmp_path / "b.parquet")).content() != first.content()
    with pytest.raises(ModelError, match="sha256 is"):
        _files(path=str(tmp_path / "a.parquet"), sha256="0" * 64)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"key": ["k"], "caption": ["x"]}, "needs columns key and captions, has key, caption"),
        ({"key": ["k"], "captions": [[["nested"]]]}, "c.parquet"),
        ({"key": [], "captions": []}, "no Parquet file with rows"),
    ],
)
def test_tables_that_hold_no_captions_are_refused(tmp_path: Path, table: dict[str, Any], message: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "c.parquet")
    with pytest.raises(ModelError, match=message) as raised:
        _files(path=str(tmp_path))
    assert "\n" not in str(raised.value)


def test_a_file_that_is_no_parquet_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.parquet").write_bytes(b"not parquet")
    with pytest.raises(ModelError, match=r"c\.parquet"):
        _files(path=str(tmp_path))


# The fake


def test_the_fake_follows_pixels_and_seed() -> None:
    fake: Captioner = FakeCaptioner(image_size=16, num_captions=2)
    first, second = _requests(2)
    captions = fake.caption([first, second, replace(first, seed=1), first])
    assert captions[0] == captions[3]
    assert len({text for texts in captions for text in texts}) == 6
