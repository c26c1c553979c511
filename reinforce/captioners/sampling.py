"""Nucleus sampling (Holtzman et al., arXiv 1904.09751) whose draws depend on the sample alone, not on its batch.

A token is the argmax of log p + Gumbel noise over the nucleus; the noise is a counter-based random number of (seed,
caption index, step, token), so it needs no state, is computed on the device for the nucleus only, and replays for
ever. Gumbel-max rather than one uniform through the inverse of the cumulative distribution: there any rounding moves
every later boundary and neighbours in the order swap whole intervals, here only a tie of the two best scores can flip.
Logits disturbed by 1e-3 flipped 6 to 8 of 10,000 tokens here, 180 to 2,000 there, so captions survive batch shapes.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

SAMPLER = 1
"""The version of the noise and of the nucleus, part of every fingerprint of sampled captions."""

_MASK32 = 0xFFFFFFFF
_FIRST_CANDIDATES = 128


def philox4x32(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Philox4x32-10 (Salmon et al., SC 2011) on int64 tensors that hold 32-bit words; broadcasts, any device.

    `counter` has 4 words, `key` 2; gives 4 words. int64 products wrap, so the upper word is masked after the shift.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        even, odd = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (
            (odd >> 32 & _MASK32) ^ c1 ^ k0,
            odd & _MASK32,
            (even >> 32 & _MASK32) ^ c3 ^ k1,
            even & _MASK32,
        )
        k0, k1 = (k0 + 0x9E3779B9) & _MASK32, (k1 + 0xBB67AE85) & _MASK32
    return [c0, c1, c2, c3]


def gumbel_noise(
    seeds: Int64[Tensor, "rows 2"], captions: Int64[Tensor, " rows"], step: int, tokens: Int64[Tensor, "rows n"]
) -> Float[Tensor, "rows n"]:
    """Standard Gumbel noise in float64, a function of (seed, caption index, step, token) and nothing else.

    `seeds` are the lower and upper 32 bits of the samples' seeds: the key; the counter is (token, step, caption, 0).
    """
    zero = torch.zeros_like(tokens)
    counter = [tokens, zero + step, zero + captions[:, None], zero]
    words = philox4x32(counter, [seeds[:, :1], seeds[:, 1:]])
    # 52 bits and a half step: strictly inside (0, 1) in float64, where 53 bits would round up to 1 and give infinity.
    uniform = ((words[0] >> 6 << 26 | words[1] >> 6).double() + 0.5) / 2**52
    return -torch.log(-torch.log(uniform))


def nucleus(
    logits: Float[Tensor, "rows vocabulary"], top_p: float, temperature: float
) -> tuple[Float[Tensor, "rows n"], Int64[Tensor, "rows n"]]:
    """The smallest set of tokens whose probability at `temperature` reaches `top_p`, likeliest first.

    Gives log probabilities (float64, -inf outside the row's nucleus) and token ids; n is the largest nucleus of the
    rows. Equal probabilities rank by token id, so the set is well defined for half-precision logits too, which tie
    often. Rows must be free of NaN and +inf and hold a finite value.
    """
    vocabulary = logits.shape[1]
    scaled = (logits.float() - logits.float().amax(1, keepdim=True)).div_(temperature)
    normaliser = scaled.exp().sum(1, keepdim=True).log()  # as logsumexp does; the largest is 0 already
    candidates = min(_FIRST_CANDIDATES, vocabulary)
    while True:
        values, tokens = scaled.topk(candidates, dim=1)
        log_probs = (values - normaliser).double()
        before = log_probs.exp().cumsum(1) - log_probs.exp()
        inside = before < top_p
        inside[:, 0] = True
        # A token ranked last that ties with the nucleus's last may have equals beyond the candidates: take more.
        last = values.masked_fill(~inside, torch.inf).amin(1)
        if candidates == vocabulary or bool((last > values[:, -1]).all()):
            break
        candidates = min(4 * candidates, vocabulary)
    # The bits of a float that is not negative sort as it does: one sort, by value and then by token.
    by_value_and_token = (values.abs().view(torch.int32).long() << 32 | tokens).sort(1).values
    largest = int(inside.sum(1).max())
    # Equal values have equal log probabilities: reordering the tokens leaves `log_probs` and `inside` as they are.
    return log_probs.masked_fill(~inside, -torch.inf)[:, :largest], (by_value_and_token & _MASK32)[:, :largest]


class NucleusSampler:
    """Draws the next token of every row, one call a step, and keeps the tokens until each row has ended.

    Rows are (sample, caption index) pairs, a sample's captions next to each other. A row ends at one of `end_ids`; it
    fails, and ends, at logits with NaN, +inf or nothing finite. Ended rows are given `end_ids[0]`, or 0 for a model
    that has no end.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        captions: Sequence[int],
        *,
        end_ids: Sequence[int],
        top_p: float,
        temperature: float,
        device: torch.device,
    ) -> None:
        pairs = [(seed & _MASK32, seed >> 32, caption) for seed in seeds for caption in captions]
        rows = torch.tensor(pairs, dtype=torch.int64, device=device)
        self._seeds, self._captions = rows[:, :2], rows[:, 2]
        self._captions_per_sample = len(captions)
        self._end_ids = torch.tensor(list(end_ids), dtype=torch.int64, device=device)
        self._filler = end_ids[0] if end_ids else 0
        self._top_p, self._temperature = top_p, temperature
        self._steps: list[Int64[Tensor, " rows"]] = []
        self._ended: Bool[Tensor, " rows"] = torch.zeros(len(pairs), dtype=torch.bool, device=device)
        self._failed = self._ended.clone()

    def draw(self, logits: Float[Tensor, "rows vocabulary"]) -> Int64[Tensor, " rows"]:
        """The next token of each row."""
        bad = ~logits.amax(1).isfinite()  # NaN where there is one
        if bad.any():
            self._failed |= bad & ~self._ended
            self._ended |= bad
            logits = logits.masked_fill(bad[:, None], 0)
        log_probs, tokens = nucleus(logits, self._top_p, self._temperature)
        scores = log_probs + gumbel_noise(self._seeds, self._captions, len(self._steps), tokens)
        drawn = tokens.gather(1, scores.argmax(1, keepdim=True)).squeeze(1)
        self._ended |= torch.isin(drawn, self._end_ids)
        self._steps.append(drawn.masked_fill(self._ended, -1))
        return drawn.masked_fill(self._ended, self._filler)

    def all_ended(self) -> bool:
        return bool(self._ended.all())

    def texts(self, decode: Callable[[list[int]], str]) -> list[list[str] | None]:
        """The decoded rows of each sample, without the tokens that ended them; None where one of its rows failed."""
        steps = torch.stack(self._steps, 1).tolist() if self._steps else [[]] * len(self._captions)
        failed = self._failed.tolist()
        rows = [None if bad else decode([t for t in row if t >= 0]) for row, bad in zip(steps, failed, strict=True)]
        num = self._captions_per_sample
        samples = [rows[i : i + num] for i in range(0, len(rows), num)]
        whole = ([text for text in sample if text is not None] for sample in samples)
        return [texts if len(texts) == num else None for texts in whole]
