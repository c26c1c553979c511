"""Captions a second of a CoCa: ours against open_clip's own `generate`, once a caption.

    python -m tests.benchmarks.captions                     (about three minutes, one thread)

coca_ViT-B-32 with random weights on random images, in fp32; both sides always write 30 tokens. The projection to the
vocabulary is scaled so that a nucleus of 0.9 has about a hundred tokens, near what a trained model has. The third side
is our loop without the cache: open_clip's `forward` over the text so far, the image encoded once.

open_clip 3.3 imports `BeamSearchScorer`, which transformers 5 no longer has, and switches `generate` off without it.
Sampling does not use it: a stand-in for it, set before open_clip is imported, is all that is needed here.
"""

import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from reinforce.captioners import CaptionRequest
from reinforce.captioners.inputs import normalised
from reinforce.captioners.open_clip import OpenClipCaptioner
from reinforce.captioners.sampling import NucleusSampler
from reinforce.config import CaptionerConfig
from tests.benchmarks.timing import RATIO, Cost, Costs, alternate

ARCHITECTURE = "coca_ViT-B-32"
NUM_IMAGES, NUM_CAPTIONS, NUM_TOKENS, TOP_P = 8, 5, 30, 0.9
NUM_ROUNDS = 3
CPU = torch.device("cpu")
OURS, GENERATE, PLAIN = "cached", "generate", "not cached"

REPEATS = {OURS: 1, GENERATE: NUM_CAPTIONS, PLAIN: NUM_IMAGES}
"""How often a side does what is timed of it for all captions: `generate` gives one an image, the last one image all."""


def make_captioner(folder: Path) -> OpenClipCaptioner:
    """Random weights on the way through a file, as captioners are loaded. No token ends a caption."""
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model(ARCHITECTURE)
    with torch.no_grad():  # open_clip leaves it uninitialised
        model.text_decoder.text_projection.normal_(std=0.2)
    checkpoint = folder / "open_clip_model.safetensors"
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, checkpoint)
    config = CaptionerConfig(
        kind="open_clip",
        model=ARCHITECTURE,
        checkpoint=str(checkpoint),
        num_captions=NUM_CAPTIONS,
        max_new_tokens=NUM_TOKENS,
        top_p=TOP_P,
    )
    captioner = OpenClipCaptioner("coca", config, device=CPU, batch_size=NUM_IMAGES)
    captioner._text.end_ids = []
    return captioner


def make_requests(size: int) -> list[CaptionRequest]:
    images = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, size, size, 3), dtype=np.uint8)
    return [CaptionRequest(stem="s", key=str(i), seed=i, image=image) for i, image in enumerate(images)]


def make_sides(captioner: OpenClipCaptioner, requests: list[CaptionRequest]) -> dict[str, Callable[[], object]]:
    model: Any = captioner._model
    views = [request.image for request in requests if request.image is not None]
    images = normalised(views, captioner._mean, captioner._std, CPU)
    start_id = captioner._text.start_id

    def ours() -> None:
        captions = captioner.caption(requests)
        assert all(len(texts) == NUM_CAPTIONS for texts in captions), "or redraws were timed too"

    def generate() -> None:
        # Its length counts the token it starts with, and that of its end, which it forces upon the last place.
        length = NUM_TOKENS + 1
        settings = {"generation_type": "top_p", "top_p": TOP_P, "seq_len": length, "min_seq_len": length - 1}
        assert model.generate(images, **settings, sot_token_id=start_id).shape == (NUM_IMAGES, length)

    @torch.inference_mode()
    def plain() -> None:
        latent, embs = (x.repeat_interleave(NUM_CAPTIONS, 0) for x in model._encode_image(images[:1]))
        sampler = NucleusSampler([0], range(NUM_CAPTIONS), end_ids=[], top_p=TOP_P, temperature=1.0, device=CPU)
        tokens = torch.full((NUM_CAPTIONS, 1), start_id)
        for _ in range(NUM_TOKENS):
            logits = model(None, tokens, image_latent=latent, image_embs=embs, output_labels=False)["logits"]
            tokens = torch.cat([tokens, sampler.draw(logits[:, -1])[:, None]], 1)

    return {OURS: ours, GENERATE: generate, PLAIN: plain}


def of_all_captions(name: str, costs: Costs) -> Costs:
    return Costs([Cost(REPEATS[name] * run.cpu_s, REPEATS[name] * run.wall_s) for run in costs.runs])


def main() -> None:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)  # open_clip warns of the random weights
    transformers.generation.BeamSearchScorer = object
    with tempfile.TemporaryDirectory() as folder:
        captioner = make_captioner(Path(folder))
    assert captioner.image_size is not None
    sides = make_sides(captioner, make_requests(captioner.image_size))
    sides[OURS]()  # the slow ones run long enough without a warm-up
    costs = alternate(sides, NUM_ROUNDS, with_warm_up=False)
    whole = {name: of_all_captions(name, of_side) for name, of_side in costs.items()}
    print(f"{NUM_IMAGES} images, {NUM_CAPTIONS} captions each of {NUM_TOKENS} tokens; cost against ours: {RATIO}\n")
    print("| loop | captions/s (CPU) | cost against ours |")
    print("|---|---|---|")
    for name, of_side in whole.items():
        rate = NUM_IMAGES * NUM_CAPTIONS / of_side.cpu_s
        print(f"| {name} | {rate:.2f} | {of_side.against(whole[OURS])} |")


if __name__ == "__main__":
    main()
