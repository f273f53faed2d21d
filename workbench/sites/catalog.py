"""The sites one model has: name map + module tree -> for each name, where its tensor lives.

What the residual sites mean, on every architecture (and checked by running it, see `check_bookkeeping`):

    resid_pre + attn_out = resid_mid        resid_mid + mlp_out = resid_post        (sequential blocks)
    resid_pre + attn_out + mlp_out = resid_post                                     (parallel blocks)

so `attn_out` and `mlp_out` are what is *added to the stream*: after the post-norm where a block has one
(Gemma 2). `resid_mid` has no module of its own: later code reads it twice (norm branch and skip branch),
so editing a norm's input would miss the skip branch. It is read as resid_pre + attn_out and edited through
attn_out. Parallel blocks (NeoX, GPT-J) have no `resid_mid`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from workbench.sites.namemap import NameMap
from workbench.sites.names import expand

Where = Literal["input", "output", "mid", "pattern"]

PER_BLOCK = (
    "hook_resid_pre",
    "attn.hook_q",
    "attn.hook_k",
    "attn.hook_v",
    "attn.hook_pattern",
    "attn.hook_z",
    "hook_attn_out",
    "hook_resid_mid",
    "mlp.hook_pre",
    "mlp.hook_pre_linear",
    "mlp.hook_post",
    "hook_mlp_out",
    "hook_resid_post",
)
DIMS = {
    "q": ("batch", "position", "head", "d_head"),
    "pattern": ("batch", "head", "query", "key"),
    "neurons": ("batch", "position", "d_mlp"),
    "stream": ("batch", "position", "d_model"),
    "logits": ("batch", "position", "d_vocab"),
}


@dataclass(frozen=True)
class Site:
    """A place whose tensor can be read or edited.

    Attributes:
        name: TransformerLens name, for instance `blocks.7.attn.hook_z`.
        layer: block number, or None outside the blocks.
        part: the name without `blocks.N.`.
        module: path of the Hugging Face submodule the tensor passes through.
        where: `input` or `output` of that module; `mid` and `pattern` are special (see the module's text).
        heads: number of heads the last dimension is split into, or 0.
        columns: columns of a fused output that belong to the site, or empty.
        dims: names of the tensor's dimensions.
        flat: the module works on [batch * position, d] (OPT's MLP), or may (experts).
    """

    name: str
    layer: int | None
    part: str
    module: str
    where: Where
    dims: tuple[str, ...] = DIMS["stream"]
    heads: int = 0
    columns: tuple[int, ...] = field(default=(), repr=False)
    flat: bool = False

    def __str__(self) -> str:
        return self.name


class Catalog:
    """All sites of one model, in the order of its forward pass.

    Example:
        >>> catalog = Catalog(hf_model, name_map, "smollm2-135m", n_heads=9, n_kv_heads=3)
        >>> catalog.resolve("blocks.{0,1}.attn.hook_z")[1].module
        'model.layers.1.self_attn.o_proj'
    """

    def __init__(
        self, hf_model: Any, name_map: NameMap, model_name: str, *, n_heads: int, n_kv_heads: int
    ) -> None:
        self.model_name = model_name
        self.map = name_map
        self._modules = dict(hf_model.named_modules())
        self._n_heads, self._n_kv_heads = n_heads, n_kv_heads
        self.blocks_path = name_map.paths["blocks"]
        self.n_layers = len(self._modules[self.blocks_path])
        self.missing: dict[str, str] = {}
        self._sites: dict[str, Site] = {}
        self._add_all()

    @property
    def names(self) -> list[str]:
        """Every site name, in the order of the forward pass."""
        return list(self._sites)

    def __getitem__(self, name: str) -> Site:
        return self._sites[name]

    def has_module(self, path: str) -> bool:
        """Whether the model has a submodule at `path` (the adapter names some that only other sizes have)."""
        return path in self._modules

    def resolve(self, patterns: str | Iterable[str]) -> list[Site]:
        """Sites that names, globs or lists stand for. Raises `SiteError` naming the nearest, or the reason."""
        names = expand(
            patterns,
            self.names,
            n_layers=self.n_layers,
            model_name=self.model_name,
            why_missing=self._why_missing,
        )
        return [self._sites[name] for name in names]

    def drop(self, parts: Iterable[str], reason: str) -> None:
        """Take sites away whose meaning did not hold on this model (see `workbench.sites.check`)."""
        for part in parts:
            self.missing[part] = reason
            for name in [n for n, site in self._sites.items() if site.part == part]:
                del self._sites[name]

    def _why_missing(self, name: str) -> str | None:
        part = name.split(".", 2)[2] if name.startswith("blocks.") and name.count(".") >= 2 else name
        reason = self.missing.get(part)
        if reason is None and (short := part.removeprefix("attn.").removeprefix("mlp.")) != part:
            reason = self.missing.get(short)
        return f"{self.model_name} ({self.map.architecture}) has no {part}: {reason}" if reason else None

    # -- building --------------------------------------------------------------------------------------

    def _add_all(self) -> None:
        paths = self.map.paths
        if "project_in" in paths and paths["project_in"] in self._modules:
            self._add(Site("hook_embed", None, "hook_embed", paths["project_in"], "output"))
        else:
            self._add(Site("hook_embed", None, "hook_embed", paths["embed"], "output"))
        if paths.get("pos_embed") in self._modules:
            self._add(Site("hook_pos_embed", None, "hook_pos_embed", paths["pos_embed"], "output"))
        else:
            self.missing["hook_pos_embed"] = "positions are not embedded and added (rotary or none)"
        parts = {part: self._block_part(part) for part in PER_BLOCK}
        for layer in range(self.n_layers):
            for part, made in parts.items():
                if isinstance(made, str):
                    self.missing[part] = made
                    continue
                path, where, extra = made
                prefix = f"{self.blocks_path}.{layer}"
                module = f"{prefix}.{path}" if path else prefix
                if module not in self._modules:
                    self.missing.setdefault(part, f"block {layer} has no submodule {path!r}")
                    continue
                self._add(Site(f"blocks.{layer}.{part}", layer, part, module, where, **extra))
        if "ln_final" in paths:
            self._add(Site("ln_final.hook_out", None, "ln_final.hook_out", paths["ln_final"], "output"))
        else:
            self.missing["ln_final.hook_out"] = "there is no norm before the unembedding"
        self._add(
            Site(
                "unembed.hook_out",
                None,
                "unembed.hook_out",
                paths["unembed"],
                "output",
                dims=DIMS["logits"],
            )
        )

    def _add(self, site: Site) -> None:
        self._sites[site.name] = site

    def _block_part(self, part: str) -> tuple[str, Where, dict[str, Any]] | str:
        """(path in the block, where, extra fields of `Site`), or the reason why there is none."""
        paths, kinds = self.map.paths, self.map.kinds
        moe = "MoE" in kinds.get("block.mlp", "")
        experts = "its neurons live inside routed experts, of which each token uses a few"
        mlp_out = paths.get("block.mlp.out")
        flat = "block.mlp" not in paths and mlp_out is not None  # OPT: fc1 and fc2 hang from the block itself
        match part:
            case "hook_resid_pre":
                return "", "input", {}
            case "hook_resid_post":
                return "", "output", {}
            case "hook_resid_mid":
                if self.map.parallel:
                    return "its blocks are parallel: attention and MLP read the same resid_pre"
                attention = self._block_part("hook_attn_out")
                return attention if isinstance(attention, str) else (attention[0], "mid", {})
            case "hook_attn_out":
                post = paths.get("block.ln1_post") or paths.get("block.attn")
                return (post, "output", {}) if post else "it has no attention"
            case "hook_mlp_out":
                post = paths.get("block.ln2_post") or paths.get("block.mlp") or mlp_out
                if post is None:
                    return "TransformerLens names no MLP in its blocks"
                # Some modules of experts (Llama 4's) give [batch * position, d], too.
                return post, "output", {"flat": (flat or moe) and "block.ln2_post" not in paths}
            case "attn.hook_q" | "attn.hook_k" | "attn.hook_v":
                return self._projection(part[-1])
            case "attn.hook_z":
                out = paths.get("block.attn.o")
                extra = {"dims": DIMS["q"], "heads": self._n_heads}
                return (out, "input", extra) if out else "its attention has no output projection of its own"
            case "attn.hook_pattern":
                attention_path = paths.get("block.attn")
                extra = {"dims": DIMS["pattern"]}
                return (attention_path, "pattern", extra) if attention_path else "it has no attention"
            case "mlp.hook_post":
                if moe or mlp_out is None:
                    return experts if moe else "TransformerLens names no output projection in its MLP"
                return mlp_out, "input", {"dims": DIMS["neurons"], "flat": flat}
            case "mlp.hook_pre" | "mlp.hook_pre_linear":
                if moe:
                    return experts
                gate, up = paths.get("block.mlp.gate"), paths.get("block.mlp.in")
                if part == "mlp.hook_pre_linear" and gate is None:
                    return "its MLP is not gated: there is only hook_pre"
                chosen = (gate or up) if part == "mlp.hook_pre" else up
                if chosen is None or "Joint" in kinds.get("block.mlp", ""):
                    return "its MLP fuses gate and up projections"
                return chosen, "output", {"dims": DIMS["neurons"], "flat": flat}
        raise AssertionError(part)

    def _projection(self, which: str) -> tuple[str, Where, dict[str, Any]] | str:
        heads = self._n_heads if which == "q" else self._n_kv_heads
        extra: dict[str, Any] = {"dims": DIMS["q"], "heads": heads}
        path = self.map.paths.get(f"block.attn.{which}")
        if path and f"{self.blocks_path}.0.{path}" in self._modules:
            return path, "output", extra
        fused = self.map.paths.get("block.attn.qkv")
        if fused is None:
            return f"its attention has no {which} projection of its own"
        columns = getattr(self.map.fused, which)
        if not columns:
            return self.map.fused_problem or "its fused projection could not be split"
        return fused, "output", extra | {"columns": columns}
