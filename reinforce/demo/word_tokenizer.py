"""The small tokenizer of the demo's models: byte-level BPE learned on generated captions, 700 pieces.

Every word of a caption is one token; any other text falls back to letters and bytes, so nothing is unknown. CLIP's
own vocabulary would be 6 MB a model.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from reinforce.demo.captions import describe
from reinforce.demo.scenes import TRAINING_SEEDS, draw_scene

_VOCAB_SIZE = 700


def save_tokenizer(folder: Path, max_length: int) -> Any:
    """Learns the tokenizer, writes it into a model's folder and returns it."""
    rng = np.random.default_rng(TRAINING_SEEDS)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator((describe(draw_scene(TRAINING_SEEDS + i), rng) for i in range(8000)), trainer)
    # Last, so that the end has the highest number: CLIP's text tower finds the end by argmax.
    tokenizer.add_special_tokens(["<pad>", "<start>", "<end>"])
    ends = [(token, tokenizer.token_to_id(token)) for token in ("<start>", "<end>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<start> $A <end>", special_tokens=ends)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<start>",
        eos_token="<end>",
        pad_token="<pad>",
        model_max_length=max_length,
        padding_side="right",
        truncation_side="right",
    )
    fast.save_pretrained(folder)
    forget_where_it_was(folder)
    return fast


def forget_where_it_was(folder: Path) -> None:
    """Removes what transformers notes in tokenizer_config.json about how the tokenizer was once loaded."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    kept = {key: value for key, value in config.items() if key not in ("is_local", "local_files_only")}
    path.write_text(json.dumps(kept, indent=2) + "\n")
