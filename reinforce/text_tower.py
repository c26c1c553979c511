"""open_clip's text towers on the first positions of their context alone, where they can do that.

Captions and labels fill a fifth of the context. open_clip's own forward pass adds and masks the whole of it, whatever
it is given; this one computes the same of what is there.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor


def text_encoder(model: Any) -> Callable[[Int[Tensor, "rows length"]], Tensor]:
    """A model's `encode_text`; where open_clip's own adds or masks the whole context whatever it is given, ours."""
    from open_clip import CLIP, CustomTextCLIP
    from open_clip.transformer import TextTransformer

    if type(model) is CLIP:
        return partial(_encode_text, model, model.text_pool_type, getattr(model, "text_eos_id", None))
    text: Any = getattr(model, "text", None)
    is_plain = type(model) is CustomTextCLIP and type(text) is TextTransformer
    # With a class token or a mask of the padding it cuts its mask itself.
    if is_plain and text.cls_emb is None and not text.use_pad_mask:
        return partial(_encode_text, text, text.pool_type, text.eos_id)
    encode_text: Callable[[Tensor], Tensor] = model.encode_text
    return encode_text


def _encode_text(tower: Any, pool_type: str, eos_id: int | None, ids: Int[Tensor, "rows length"]) -> Tensor:
    """What `open_clip.CLIP.encode_text` and `TextTransformer` compute, on the first positions of the context."""
    from open_clip.transformer import text_global_pool

    length = ids.shape[1]
    cast_dtype = tower.transformer.get_cast_dtype()
    hidden = tower.token_embedding(ids).to(cast_dtype) + tower.positional_embedding[:length].to(cast_dtype)
    mask = None if tower.attn_mask is None else tower.attn_mask[:length, :length]
    hidden = tower.ln_final(tower.transformer(hidden, attn_mask=mask))
    pooled: Tensor = text_global_pool(hidden, ids, pool_type, eos_token_id=eos_id)
    projection = tower.text_projection
    if isinstance(projection, torch.nn.Linear):
        pooled = projection(pooled)
    elif projection is not None:
        pooled = pooled @ projection
    return pooled
