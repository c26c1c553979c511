"""The text half of a CoCa with a key-value cache, over open_clip's own modules: a step costs one token a caption.

open_clip's `forward` takes the whole text so far through both transformers for every token, and projects the keys and
values of an image for each of its captions again. Neither is needed. Both masks are causal, and the class token that
the text tower appends comes after all others, so what a token left behind never changes; and the captions of an image
are queries of one cross-attention, side by side. Memory: 8 bytes of self-attention a caption, token, layer and dim of
both transformers in fp32, and as much an image, query, layer and dim of cross-attention.
"""

from typing import Any

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from reinforce.weights import ModelError


def check_coca(name: str, model: Any) -> None:
    """Raises `ModelError` for a CoCa whose earlier tokens see later ones, or whose blocks are not those of this file.

    The published ones pass. With a text tower from transformers, open_clip's forward leaves out the first token rather
    than the class token: it has nothing to begin a caption with.
    """
    from open_clip.transformer import ResidualAttentionBlock, TextTransformer

    if not isinstance(model.text, TextTransformer) or model.text.attn_mask is None:
        raise ModelError(f"model {name}: its text tower reads in both directions; captions need a causal one")
    if not all(isinstance(block, ResidualAttentionBlock) for block in model.text.transformer.resblocks):
        raise ModelError(f"model {name}: its text tower has attention with extras (qk_norm or scales); use a plain one")
    if model.text.pad_id != model.pad_id:
        raise ModelError(
            f"model {name}: pad_id is {model.pad_id}, its text tower's {model.text.pad_id}; make them equal"
        )


class CachedText:
    """The captions of some images while they are written, `num_captions` rows an image, next to each other.

    `model` is an `open_clip.CoCa` that `check_coca` passed; rows take at most `max_tokens` tokens, the prompt's too.
    """

    def __init__(
        self, model: Any, embs: Float[Tensor, "images queries dim"], *, num_captions: int, max_tokens: int
    ) -> None:
        self._tower, self._decoder = model.text, model.text_decoder
        self._length = 0
        num_rows = len(embs) * num_captions
        self._tower_caches = [_Cache(num_rows, max_tokens) for _ in self._tower.transformer.resblocks]
        self._decoder_caches = [_Cache(num_rows, max_tokens) for _ in self._decoder.resblocks]
        self._image_keys_values = [_image_keys_values(block, embs) for block in self._decoder.cross_attn]

    def next_logits(self, tokens: Int64[Tensor, "rows length"]) -> Float[Tensor, "rows vocabulary"]:
        """Appends `tokens` to the rows, first the prompt and then one token a call; the logits of what follows.

        No token is the model's padding: open_clip would hide the keys of the one after it.
        """
        end = self._length + tokens.shape[1]
        x = self._tower.token_embedding(tokens) + self._tower.positional_embedding[self._length : end]
        self._length = end
        for block, cache in zip(self._tower.transformer.resblocks, self._tower_caches, strict=True):
            x = _self_attend(block, x, cache)
        if self._tower.cls_emb is None:
            x = self._tower.ln_final(x)
        decoder = self._decoder
        blocks = zip(decoder.resblocks, self._decoder_caches, decoder.cross_attn, self._image_keys_values, strict=True)
        for block, cache, cross, keys_values in blocks:
            x = _cross_attend(cross, _self_attend(block, x, cache), keys_values)
        logits: Tensor = decoder.ln_final(x[:, -1]) @ decoder.text_projection
        return logits


class _Cache:
    """The keys and values of one layer, in a buffer made at the first call, which knows their type."""

    def __init__(self, num_rows: int, max_tokens: int) -> None:
        self._shape = num_rows, max_tokens
        self._buffer: Tensor | None = None
        self._length = 0

    def extend(
        self, keys_values: Float[Tensor, "2 rows heads length head_dim"]
    ) -> Float[Tensor, "2 rows heads total head_dim"]:
        """Adds those of the newest tokens and gives all so far, as a view."""
        _, rows, heads, length, head_dim = keys_values.shape
        num_rows, max_tokens = self._shape
        assert rows == num_rows, "every row is extended"
        if self._buffer is None:
            self._buffer = keys_values.new_empty(2, num_rows, heads, max_tokens, head_dim)
        start, self._length = self._length, self._length + length
        self._buffer[:, :, :, start : self._length] = keys_values
        return self._buffer[:, :, :, : self._length]


def _self_attend(block: Any, x: Float[Tensor, "rows length dim"], cache: _Cache) -> Float[Tensor, "rows length dim"]:
    attention = block.attn
    parts = _heads(attention, F.linear(block.ln_1(x), attention.in_proj_weight, attention.in_proj_bias))
    keys, values = cache.extend(parts[1:])
    # Several tokens come only at the beginning, where none is before them; one token sees all so far.
    attended = F.scaled_dot_product_attention(parts[0], keys, values, is_causal=x.shape[1] > 1)
    return _feed_forward(block, x, attended)


def _cross_attend(
    block: Any,
    x: Float[Tensor, "rows length dim"],
    keys_values: Float[Tensor, "2 images heads queries head_dim"],
) -> Float[Tensor, "rows length dim"]:
    """All tokens of all captions of an image are the queries of one attention: none masks another."""
    attention, (keys, values) = block.attn, keys_values
    dim = x.shape[2]
    projected = F.linear(block.ln_1(x), attention.in_proj_weight[:dim], attention.in_proj_bias[:dim])
    [queries] = _heads(attention, projected.view(len(keys), -1, dim))
    return _feed_forward(block, x, F.scaled_dot_product_attention(queries, keys, values))


def _image_keys_values(
    block: Any, embs: Float[Tensor, "images queries dim"]
) -> Float[Tensor, "2 images heads queries head_dim"]:
    attention, dim = block.attn, embs.shape[2]
    projected = F.linear(block.ln_1_kv(embs), attention.in_proj_weight[dim:], attention.in_proj_bias[dim:])
    return _heads(attention, projected).contiguous()


def _heads(
    attention: Any, projected: Float[Tensor, "batch length parts_dim"]
) -> Float[Tensor, "parts batch heads length head_dim"]:
    """Splits queries, keys and values, or those of them that were projected, into parts and heads."""
    batch, length, _ = projected.shape
    return projected.view(batch, length, -1, attention.num_heads, attention.head_dim).permute(2, 0, 3, 1, 4)


def _feed_forward(
    block: Any, x: Float[Tensor, "rows length dim"], attended: Float[Tensor, "batch heads tokens head_dim"]
) -> Float[Tensor, "rows length dim"]:
    """The rest of a block after its attention, whose output may be grouped by image."""
    x = x + block.ls_1(block.attn.out_proj(attended.transpose(1, 2).reshape(x.shape)))
    mlp: Tensor = block.ls_2(block.mlp(block.ln_2(x)))
    return x + mlp
