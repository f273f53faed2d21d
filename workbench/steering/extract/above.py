"""The upper part of a model, run on a stream that is known: what z_steer differentiates.

The stream h_l of fixed tokens is recorded once. Then, for any addition,

    log p(x_t | x_<t, h_l + addition)        one value for each token that is to be predicted

comes from one pass of the model's own forward in which blocks 0 … l hand on `h_l + addition` without being computed,
so masks, position codes, the last norm and what is done to the logits are the model's own. Padding stands on the right,
which causal attention never looks at, and no product with a weight is computed for it (`workbench.patching.products`);
only positions that predict a wanted token are unembedded. The addition is the only thing that is differentiated:
parameters are frozen in effect, keep no inputs for a backward pass and collect no gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from workbench.errors import ModelError, PromptError
from workbench.hooks.tensors import output_tensor
from workbench.model.language_model import LanguageModel
from workbench.patching.products import Rows, trimmed


class Above:
    """Blocks above a layer, over the recorded stream of some rows of tokens.

    Args:
        model: the language model.
        rows: token ids, each a prefix and what is to be predicted.
        n_prefix: tokens of the prefix, the same for all; at least 1.
        layer: the stream after this block is recorded.

    Attributes:
        stream: [row, position, d_model] after block `layer`.
        lengths: tokens of each row.

    Raises:
        ModelError: no such layer.
        PromptError: a row with nothing after its prefix.

    Example:
        >>> above = Above(model, [[1, 504, 3575]], n_prefix=1, layer=7)
        >>> z = torch.zeros(1, 3, 576, requires_grad=True)
        >>> above.score(z)[0].sum().backward()
    """

    def __init__(
        self, model: LanguageModel, rows: Sequence[Sequence[int]], n_prefix: int, layer: int
    ) -> None:
        if not 0 <= layer < model.n_layers:
            raise ModelError(f"{model.name} has blocks 0–{model.n_layers - 1}, not {layer}.")
        short = [i for i, row in enumerate(rows) if len(row) <= n_prefix]
        if n_prefix < 1 or not rows or short:
            raise PromptError(
                f"Row {short[0] if short else 0} has nothing to predict after {n_prefix} tokens of prefix: "
                "give at least one token of prefix and one after it."
            )
        self.model, self.layer, self.n_prefix = model, layer, n_prefix
        self.lengths = tuple(len(row) for row in rows)
        longest = max(self.lengths)
        filled = [
            [*row, *[row[-1]] * (longest - len(row))] for row in rows
        ]  # causal: what follows is never seen
        self.ids: Int[Tensor, "row position"] = torch.tensor(filled, device=model.device)
        self._as_tuple = False
        self.stream: Float[Tensor, "row position d_model"] = self._record()

    def score(
        self, addition: Float[Tensor, "row position d_model"], rows: Sequence[int] | None = None
    ) -> tuple[Float[Tensor, "row target"], Float[Tensor, "row target"]]:
        """Log-probabilities of the tokens after the prefix, and by how much their logits lead.

        Args:
            addition: what is added to the stream of each row; positions up to the longest of these rows.
            rows: which rows; all by default.

        Returns:
            Log p of each token in nats, and its logit minus the largest other logit (above 0: greedy decoding takes
            it), detached; 0 and infinity where a row is shorter than the longest.
        """
        chosen = list(range(len(self.lengths))) if rows is None else list(rows)
        width = max(self.lengths[i] for i in chosen)
        ids = self.ids[chosen, :width]
        ends = torch.tensor([self.lengths[i] for i in chosen], device=ids.device)
        at = torch.arange(width, device=ids.device)
        wanted = (at[None] >= self.n_prefix - 1) & (at[None] < ends[:, None] - 1)
        stream = self.stream[chosen, :width] + addition.to(self.stream.device)
        real = _real(ends.tolist(), width, ids.device)
        replaying = self._replaying(stream.to(self.stream.dtype), wanted)
        with torch.inference_mode(False), replaying, trimmed(self.model, real):
            logits = self.model.hf(input_ids=ids, use_cache=False).logits[0]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        targets = ids[:, 1:][wanted[:, :-1]]
        logs = -cross_entropy(logits, targets, reduction="none")
        with torch.no_grad():
            own = logits.gather(1, targets[:, None])[:, 0]
            lead = own - logits.detach().scatter(1, targets[:, None], -torch.inf).max(1).values
        shape = (len(chosen), width - self.n_prefix)
        inside = wanted[:, self.n_prefix - 1 : -1]
        found = logs.new_zeros(shape).masked_scatter(inside, logs)
        return found, lead.new_full(shape, torch.inf).masked_scatter(inside, lead)

    @torch.no_grad()
    def _record(self) -> Tensor:
        kept: list[Any] = []

        def keep(_module: Any, _args: Any, output: Any) -> None:
            kept.append(output)

        handle = self.model.block(self.layer).register_forward_hook(keep)
        try:
            with torch.inference_mode(False):
                self.model.hf(input_ids=self.ids, use_cache=False, logits_to_keep=1)
        finally:
            handle.remove()
        self._as_tuple = not isinstance(kept[0], Tensor)
        return output_tensor(kept[0], f"blocks.{self.layer}.hook_resid_post").detach()

    @contextmanager
    def _replaying(self, stream: Tensor, wanted: Bool[Tensor, "row position"]) -> Iterator[None]:
        """Blocks up to the layer give the stream; the unembedding sees the wanted positions, as [1, position, d]."""
        blocks = [self.model.block(layer) for layer in range(self.layer + 1)]
        unembed = self.model.module(self.model.catalog.map.paths["unembed"])

        def hand_on(*_args: Any, **_kwargs: Any) -> Any:
            return (stream,) if self._as_tuple else stream

        handle = unembed.register_forward_pre_hook(lambda _module, args: (args[0][wanted][None], *args[1:]))
        try:
            for block in blocks:
                block.__dict__["forward"] = hand_on
            yield
        finally:
            handle.remove()
            for block in blocks:
                block.__dict__.pop("forward", None)


def _real(lengths: Sequence[int], width: int, device: Any) -> Rows:
    """All real tokens; what is padding is copied from its row's first token, and nothing asks for its gradient."""
    real: Int[Tensor, " computed"] = torch.cat(
        [torch.arange(n) + row * width for row, n in enumerate(lengths)]
    ).to(device)
    firsts = torch.cumsum(torch.tensor([0, *lengths[:-1]]), 0)
    at = torch.arange(width)
    copied = torch.cat([torch.where(at < n, at, 0) + firsts[row] for row, n in enumerate(lengths)])
    return Rows((len(lengths), width), real, copied.to(device), real)
