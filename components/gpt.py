"""The network: its settings, how its parts turn ids into logits, and the loss.

Shape suffixes: B sequences, T positions, S of them scored (the last ones), C model width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, get_args, get_type_hints

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.attention import Attention, rotary_tables
from components.block import Block, LayerOrder, layer_order
from components.embeddings import BigramHash, ContentSmearGate, SmearGate
from components.errors import UserError
from components.fused_mlp import HIDDEN_MULTIPLE, MODEL_MULTIPLE
from components.layers import Embedding, Fakeable, Linear, rms_norm, seen_weight
from components.mlp import MLP
from components.quantization import Quantizer
from components.storage import StorageRule, assign

if TYPE_CHECKING:
    from components.generation import Cache

MAX_STEPS = 1024
"""The most blocks that a forward pass may run; more is a mistake or a malicious file."""

MAX_SIZE = 1 << 20
"""The largest width or table that a network may have; more is a mistake or a malicious file."""

DEFAULT_POSITIONS = 2048
"""Positions of a network until `GPT.reserve_positions` asks for others: the records' sequence length."""

Smear = Literal["static", "content", "none"]


@dataclass(frozen=True)
class GPTConfig:
    """What the weights alone do not say of the network; stored in every exported artifact.

    Args:
        vocab_size: Pieces in the tokenizer's vocabulary.
        num_layers: Transformer blocks; the first half of the steps through them feeds skips to the second.
        model_dim: Width of the residual stream, in channels.
        num_heads: Query heads a block; each is model_dim / num_heads wide.
        num_kv_heads: Key and value heads a block (grouped-query attention).
        mlp_mult: MLP hidden width over model_dim.
        tie_embeddings: Whether the output head is the token table.
        tied_embed_init_std: Standard deviation of the token table's initial values when tied.
        logit_softcap: Bound c of the logits, c * tanh(z / c).
        rope_base: Base of the rotary position frequencies.
        rope_dims: Channels of each head that positions rotate, an even number; 0 for all.
        qk_gain_init: Initial gain of each query head.
        bigram_vocab_size: Rows of the bigram hash table; 0 for no bigram embedding.
        bigram_dim: Width of the bigram hash table, in channels.
        output_proj_init: Initial attention and MLP output projections: "zero" as the public run measured, or
            "scaled", orthogonal over sqrt(2 * num_layers).
        smear: How a position takes from the one before it: "static" by a share per channel, "content" by a share that
            the position's own channels decide and that is zero where a document begins, or "none".
        smear_across_documents: Whether the static smear mixes a document's first token with the document before it, as
            the public run did; the challenge's later rulings ask for false.
        smear_width: Channels that decide the content smear's share.
        bos_id: The id that begins a document.
        xsa_last_n: Layers, counted from the last, whose heads leave out the direction of the position's own value
            (exclusive self attention).
        ln_scale: Whether the normed inputs of layer i, from 0, are divided by sqrt(i + 1).
        mlp_leak: Slope below zero of the activation that the MLP squares, from 0 (ReLU) to 1.
        skip_gates: Whether skips are mixed into the stream by learned sigmoid gates instead of added to it.
        loop_start: First of the layers that are run again.
        loop_end: Last of the layers that are run again.
        num_loops: How many more times these layers are run in a row; 0 for no loop.
        parallel_from: First layer whose MLP reads what its attention reads; null for none.
        gate_width: Channels that each attention head's output gate reads; 0 for no gates.
    """

    vocab_size: int = 1024
    num_layers: int = 10
    model_dim: int = 512
    num_heads: int = 8
    num_kv_heads: int = 4
    mlp_mult: float = 3.0
    tie_embeddings: bool = True
    tied_embed_init_std: float = 0.005
    logit_softcap: float = 30.0
    rope_base: float = 10000.0
    rope_dims: int = 0
    qk_gain_init: float = 1.5
    bigram_vocab_size: int = 4096
    bigram_dim: int = 128
    output_proj_init: Literal["zero", "scaled"] = "zero"
    smear: Smear = "static"
    smear_across_documents: bool = True
    smear_width: int = 12
    bos_id: int = 1
    xsa_last_n: int = 0
    ln_scale: bool = False
    mlp_leak: float = 0.0
    skip_gates: bool = False
    loop_start: int = 0
    loop_end: int = 0
    num_loops: int = 0
    parallel_from: int | None = None
    gate_width: int = 0

    def __post_init__(self) -> None:
        """Reject impossible settings.

        Raises:
            UserError: A setting is of another type or out of its range, or contradicts another.
        """
        for name, hint in get_type_hints(GPTConfig).items():
            _check_type(name, getattr(self, name), hint)
        self._check_sizes()
        self._check_layers()

    def _check_sizes(self) -> None:
        for name in ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; set it to at least 1.")
        for name in ("vocab_size", "model_dim", "bigram_vocab_size", "bigram_dim"):
            if getattr(self, name) > MAX_SIZE:
                raise UserError(f"model.{name} is {getattr(self, name):,}; set it to at most {MAX_SIZE:,}.")
        for name in ("mlp_mult", "tied_embed_init_std", "logit_softcap", "rope_base"):
            if getattr(self, name) <= 0:
                raise UserError(f"model.{name} is {getattr(self, name)}; set it above 0.")
        if not 1 <= self.mlp_mult * self.model_dim <= MAX_SIZE:
            raise UserError(
                f"model.mlp_mult {self.mlp_mult} times model.model_dim {self.model_dim} is {self.hidden_dim:,} "
                f"channels; make it 1 to {MAX_SIZE:,}."
            )
        if self.model_dim % (2 * self.num_heads):
            raise UserError(
                f"model.model_dim {self.model_dim} over model.num_heads {self.num_heads} gives no heads of "
                "an even width; choose a width that is a multiple of twice the heads."
            )
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"model.num_kv_heads {self.num_kv_heads} does not divide model.num_heads {self.num_heads}; "
                "choose one that does."
            )
        if self.bigram_vocab_size and (self.bigram_vocab_size < 2 or self.bigram_dim < 1):
            raise UserError(
                f"model.bigram_vocab_size {self.bigram_vocab_size} with model.bigram_dim {self.bigram_dim} cannot "
                "make a table; use at least 2 rows of 1 channel, or model.bigram_vocab_size 0 for no table."
            )
        if not -1 <= self.bos_id < self.vocab_size:
            raise UserError(
                f"model.bos_id is {self.bos_id}; set it to an id below model.vocab_size {self.vocab_size}, or to -1 "
                "for a vocabulary without one."
            )
        if self.rope_dims % 2 or not 0 <= self.rope_dims <= self.head_dim:
            raise UserError(
                f"model.rope_dims is {self.rope_dims}; set it to an even number of the {self.head_dim} channels of a "
                "head, or to 0 for all of them."
            )
        if not 0 <= self.mlp_leak <= 1:
            raise UserError(f"model.mlp_leak is {self.mlp_leak}; set it from 0 to 1.")
        if not 0 <= self.gate_width <= self.model_dim:
            raise UserError(
                f"model.gate_width is {self.gate_width}; set it from 0, for no gates, to model.model_dim "
                f"{self.model_dim}."
            )
        if self.smear == "content" and not 1 <= self.smear_width <= self.model_dim:
            raise UserError(
                f"model.smear_width is {self.smear_width}; set it from 1 to model.model_dim {self.model_dim}."
            )

    def _check_layers(self) -> None:
        last = self.num_layers - 1
        if not 0 <= self.xsa_last_n <= self.num_layers:
            raise UserError(f"model.xsa_last_n is {self.xsa_last_n}; set it from 0 to the {self.num_layers} layers.")
        if self.parallel_from is not None and not 0 <= self.parallel_from <= last:
            raise UserError(
                f"model.parallel_from is {self.parallel_from}; set it to a layer from 0 to {last}, or to null for none."
            )
        if self.num_loops < 0:
            raise UserError(f"model.num_loops is {self.num_loops}; set it to 0 for no loop, or above.")
        if self.num_loops and self.loop_end < self.loop_start:
            raise UserError(
                f"model.loop_end {self.loop_end} is before model.loop_start {self.loop_start}; set it to the last of "
                "the layers that are run again."
            )
        if self.num_loops and not 0 <= self.loop_start <= self.loop_end <= last:
            raise UserError(
                f"model.loop_start {self.loop_start} to model.loop_end {self.loop_end} goes beyond layers 0 to {last}; "
                "loop layers that the network has."
            )
        num_steps = self.num_layers + self.num_loops * (self.loop_end - self.loop_start + 1)
        if num_steps > MAX_STEPS:
            raise UserError(
                f"model.num_layers {self.num_layers} and model.num_loops {self.num_loops} make {num_steps:,} steps "
                f"through the layers; make it at most {MAX_STEPS:,}."
            )

    @property
    def head_dim(self) -> int:
        """Width of a query, key or value head, in channels."""
        return self.model_dim // self.num_heads

    @property
    def hidden_dim(self) -> int:
        """Width of an MLP between its two products, in channels."""
        return int(self.mlp_mult * self.model_dim)

    def layer_order(self, looping: bool) -> LayerOrder:
        """Which layer each step of a forward pass runs.

        Args:
            looping: Whether the loop is on; without a loop, both orders are the same.
        """
        return layer_order(self.num_layers, self.loop_start, self.loop_end, self.num_loops if looping else 0)

    def describe(self) -> str:
        """The network in a phrase, for people."""
        parts = [
            f"{self.num_layers} blocks of width {self.model_dim}",
            f"{self.num_heads} query and {self.num_kv_heads} key/value heads",
            f"MLP {self.mlp_mult:g} times as wide",
            "gated U-Net skips" if self.skip_gates else "U-Net skips",
        ]
        if self.smear != "none":
            parts.append("SmearGate" if self.smear == "static" else "SmearGate by content")
        if self.bigram_vocab_size:
            parts.append(f"a hash table of {self.bigram_vocab_size:,} token pairs, {self.bigram_dim} wide")
        if self.num_loops:
            parts.append(f"layers {self.loop_start} to {self.loop_end} run {self.num_loops + 1} times")
        if self.parallel_from is not None:
            parts.append(f"attention and MLP in parallel from layer {self.parallel_from}")
        if self.xsa_last_n:
            parts.append(f"exclusive self attention in the last {self.xsa_last_n} layers")
        if self.gate_width:
            parts.append("gated attention heads")
        if self.rope_dims:
            parts.append(f"positions in {self.rope_dims} of {self.head_dim} channels of a head")
        if self.ln_scale:
            parts.append("norms scaled by depth")
        if self.mlp_leak:
            parts.append(f"an activation that leaks {self.mlp_leak:g}")
        return f"{', '.join(parts)}; a vocabulary of {self.vocab_size:,} pieces"


def _check_type(name: str, value: Any, hint: Any) -> None:
    """Reject a setting that is not of its declared type; a file may hold anything.

    Raises:
        UserError: It is of another type, or a number that float32 cannot represent.
    """
    types = get_args(hint) or (hint,)
    if isinstance(types[0], str):
        if value not in types:
            raise UserError(f"model.{name} is {value!r}; set it to one of {', '.join(types)}.")
    elif float in types:
        if type(value) not in (int, float) or not abs(value) <= torch.finfo(torch.float32).max:
            raise UserError(f"model.{name} is {value!r}; set it to a finite number.")
    elif type(value) not in types:
        wanted = "true or false" if bool in types else "a whole number"
        raise UserError(f"model.{name} is {value!r}; set it to {wanted}.")


def _smear(config: GPTConfig) -> SmearGate | ContentSmearGate | None:
    if config.smear == "static":
        return SmearGate(config.model_dim, config.smear_across_documents, config.bos_id)
    return ContentSmearGate(config.smear_width, config.bos_id) if config.smear == "content" else None


def _block(config: GPTConfig, layer: int) -> Block:
    attention = Attention(
        config.model_dim,
        config.num_heads,
        config.num_kv_heads,
        config.qk_gain_init,
        exclusive=layer >= config.num_layers - config.xsa_last_n,
        gate_width=config.gate_width,
    )
    return Block(
        attention,
        MLP(config.model_dim, config.hidden_dim, config.mlp_leak),
        config.model_dim,
        norm_scale=1 / math.sqrt(layer + 1) if config.ln_scale else 1.0,
        parallel=config.parallel_from is not None and layer >= config.parallel_from,
    )


class GPT(nn.Module):
    """The whole network. Weights are float32; under autocast the residual stream has autocast's dtype.

    Attributes:
        looping: Whether forward passes run the looped layer order. On from the start if the configuration has a loop,
            so that a network is scored as described; training that begins without the loop turns it off.
        rotary_cos: Cosines of the rotary embedding, float32 [reserved positions, rotated channels / 2]; not saved.
        rotary_sin: Their sines.
    """

    optimizer_groups: ClassVar = {"skip_weights": "scalars", "skip_gates": "scalars"}
    rotary_cos: Tensor
    rotary_sin: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.looping = config.num_loops > 0
        self.tok_emb = Embedding(config.vocab_size, config.model_dim)
        self.bigram = (
            BigramHash(config.bigram_vocab_size, config.bigram_dim, config.model_dim, config.num_layers)
            if config.bigram_vocab_size
            else None
        )
        self.smear = _smear(config)
        # The looped order, which is never shorter, uses all of them; the plain order, the first.
        num_skips = len(config.layer_order(looping=True).encoder)
        # One layer has none; an empty tensor that asked for a gradient would never get one, which several ranks refuse.
        self.skip_weights = nn.Parameter(torch.ones(num_skips, config.model_dim), requires_grad=num_skips > 0)
        self.skip_gates = (
            nn.Parameter(torch.zeros(num_skips, config.model_dim), requires_grad=num_skips > 0)
            if config.skip_gates
            else None
        )
        self.blocks = nn.ModuleList(_block(config, layer) for layer in range(config.num_layers))
        self.lm_head = None if config.tie_embeddings else Linear(config.model_dim, config.vocab_size, "head")
        self.reserve_positions(DEFAULT_POSITIONS)
        self._initialize()

    def reserve_positions(self, num_positions: int) -> None:
        """Make room for sequences of up to ``num_positions`` tokens; call before compiling.

        The rotary tables are buffers because a compiler would otherwise compute their sines inside every kernel that
        rotates.
        """
        channels = self.config.rope_dims or self.config.head_dim
        device = self.tok_emb.weight.device
        cos, sin = rotary_tables(num_positions, channels, self.config.rope_base, device)
        self.register_buffer("rotary_cos", cos, persistent=False)
        self.register_buffer("rotary_sin", sin, persistent=False)

    def _initialize(self) -> None:
        if self.lm_head is None:
            nn.init.normal_(self.tok_emb.weight, std=self.config.tied_embed_init_std)
        else:
            nn.init.zeros_(self.lm_head.weight)
        gain = 0.0 if self.config.output_proj_init == "zero" else 1 / math.sqrt(2 * self.config.num_layers)
        with torch.no_grad():
            for name, p in self.blocks.named_parameters():
                if name.endswith("proj.weight"):
                    p.mul_(gain)

    def enable_fake_quantization(self, rules: Iterable[StorageRule], quantizer: Quantizer) -> None:
        """Let forward passes see weights as export will store them, with straight-through gradients.

        Args:
            rules: How weights are stored, and which of them are faked.
            quantizer: Rounds them.

        Raises:
            UserError: A rule fakes a tensor that is neither a matrix of a linear layer nor a table.
        """
        self.disable_fake_quantization()
        for name, rule in assign(self.shapes(), rules).items():
            if not rule.qat:
                continue
            module = self.get_submodule(name.rpartition(".")[0])
            if not (isinstance(module, Fakeable) and name.endswith(".weight")):
                raise UserError(
                    f"The storage rule for {rule.names} asks late QAT to fake {name}, which is neither a matrix of a "
                    "linear layer nor a table; set its qat to false in export.storage."
                )
            module.fake = (quantizer, rule.kind)

    def disable_fake_quantization(self) -> None:
        """Let forward passes see the weights themselves again."""
        for module in self.modules():
            if isinstance(module, Fakeable):
                module.fake = None

    def fuse_mlps(self) -> None:
        """Let `components.fused_mlp` compute the MLPs from now on, on a CUDA GPU; call before compiling.

        Raises:
            UserError: It cannot, for this network's settings.
        """
        config = self.config
        if config.mlp_leak:
            raise UserError(
                f"model.fused_mlp computes the squared ReLU alone, and model.mlp_leak is {config.mlp_leak:g}; set "
                "model.fused_mlp to false, or model.mlp_leak to 0."
            )
        if config.model_dim % MODEL_MULTIPLE or config.hidden_dim % HIDDEN_MULTIPLE:
            raise UserError(
                f"model.fused_mlp needs widths that are multiples of {MODEL_MULTIPLE} for the stream and of "
                f"{HIDDEN_MULTIPLE} for the MLP, which are {config.model_dim} and {config.hidden_dim} here; set it to "
                "false, or change model.model_dim or model.mlp_mult."
            )
        for block in self.blocks:
            assert isinstance(block, Block)
            block.mlp.fused = True

    @property
    def is_faking(self) -> bool:
        """Whether forward passes see some weights as export will store them."""
        return any(isinstance(module, Fakeable) and module.fake is not None for module in self.modules())

    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each parameter, by its name."""
        return {name: p.shape for name, p in self.named_parameters()}

    def stream_dtype(self) -> torch.dtype:
        """The dtype of the residual stream: autocast's, if it is on."""
        weight = self.tok_emb.weight
        if torch.is_autocast_enabled(weight.device.type):
            return torch.get_autocast_dtype(weight.device.type)
        return weight.dtype

    def logits(self, input_ids_BT: Tensor, num_scored: int, cache: Cache | None = None) -> Tensor:
        """Softcapped next-token logits of the last ``num_scored`` positions S, float32 [B, S, V].

        Args:
            input_ids_BT: The text.
            num_scored: Positions whose logits are wanted.
            cache: What earlier calls computed for a beginning of the same text; this one adds the rest.
        """
        x = self.head_input(input_ids_BT, num_scored, cache)
        head = seen_weight(self.tok_emb if self.lm_head is None else self.lm_head)
        z = F.linear(x, head.to(x.dtype)).float()
        return self.config.logit_softcap * torch.tanh(z / self.config.logit_softcap)

    def head_input(self, input_ids_BT: Tensor, num_scored: int, cache: Cache | None = None) -> Tensor:
        """The head's input for the last ``num_scored`` positions S, [B, S, C].

        The last step's queries and MLP are computed for those positions only. This is exact, because nothing else uses
        the others.
        """
        num_positions = input_ids_BT.size(1)
        assert num_positions <= len(self.rotary_cos), f"reserve_positions for sequences of {num_positions} tokens"
        start = 0 if cache is None else cache.num_positions
        num_new = num_positions - start
        # A position's embedding depends on the two before it: smearing mixes in the one before, whose pair has another.
        x0 = x = self._embed(input_ids_BT[:, max(start - 2, 0) :], self.stream_dtype())[:, -num_new:]
        cos, sin = self.rotary_cos[start:num_positions], self.rotary_sin[start:num_positions]
        encoder, decoder = self.config.layer_order(self.looping)
        caches = [None] * (len(encoder) + len(decoder)) if cache is None else cache.steps
        skips: list[Tensor] = []
        for layer, step_cache in zip(encoder, caches, strict=False):
            x = self.blocks[layer](x, x0, cos, sin, num_new, step_cache)
            skips.append(x)
        for step, layer in enumerate(decoder):
            if skips:
                x = self._join(x, skips.pop(), step)
            last = step == len(decoder) - 1
            x = self.blocks[layer](x, x0, cos, sin, num_scored if last else num_new, caches[len(encoder) + step])
        return rms_norm(x)

    def _embed(self, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """The stream's first state [B, T, C], in ``dtype``: normed, and smeared before the norm or after it."""
        x = self.tok_emb(ids_BT)
        if self.bigram is not None:
            x = x + self.bigram(ids_BT, dtype)
        if isinstance(self.smear, ContentSmearGate):
            x = self.smear(x, ids_BT)
        x = rms_norm(x).to(dtype)
        if isinstance(self.smear, SmearGate):
            x = self.smear(x, ids_BT)
        return x

    def _join(self, x_BTC: Tensor, skip_BTC: Tensor, step: int) -> Tensor:
        """The stream with a decoder step's skip: their sum, or with skip gates, a mix by the gate's share."""
        weighted_BTC = self.skip_weights[step].to(x_BTC.dtype) * skip_BTC
        if self.skip_gates is None:
            return x_BTC + weighted_BTC
        return torch.lerp(weighted_BTC, x_BTC, torch.sigmoid(self.skip_gates[step]).to(x_BTC.dtype))

    def forward(self, input_ids_BT: Tensor, target_ids_BS: Tensor) -> Tensor:
        """Cross-entropy of each target, in nats, float32 [B, S]; targets are those of the last S positions."""
        logits = self.logits(input_ids_BT, target_ids_BS.size(1))
        return F.cross_entropy(logits.flatten(0, 1), target_ids_BS.flatten(), reduction="none").view_as(target_ids_BS)


def config_of(settings: Mapping[str, Any], source: str) -> GPTConfig:
    """The configuration that a file describes.

    Args:
        settings: The network's settings by name.
        source: The file, for the error message.

    Raises:
        UserError: There is no such network, or this program does not know it.
    """
    try:
        return GPTConfig(**settings)
    except UserError as error:
        raise UserError(f"{source} describes a network that cannot be built: {error}") from error
    except TypeError as error:
        raise UserError(
            f"{source} describes a network that this program does not know ({error}); use the program that wrote it."
        ) from error


def shapes_of(config: GPTConfig) -> dict[str, torch.Size]:
    """The shape of each parameter of a network with these settings, by its name, without allocating any."""
    with torch.device("meta"):
        return GPT(config).shapes()


def check_shapes(shapes: Mapping[str, torch.Size], weights: Mapping[str, Tensor], source: str) -> None:
    """Check that weights that were read from a file are those of a network.

    Args:
        shapes: The shape of each of the network's parameters, by name.
        weights: Float weights by name.
        source: The file, for the error message.

    Raises:
        UserError: The weights are of another network.
    """
    found = {name: weight.shape for name, weight in weights.items()}
    differing = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
    if differing:
        name = differing[0]
        here, there = (list(known[name]) if name in known else "none" for known in (shapes, found))
        raise UserError(
            f"{source} holds the weights of another network: {name} is {there} there and {here} in the "
            "configuration's network; give the model settings that it was trained with."
        )


def load_weights(network: GPT, weights: Mapping[str, Tensor], source: str) -> None:
    """Load weights that were read from a file into a network.

    Args:
        network: The network.
        weights: Float weights by name.
        source: The file, for the error message.

    Raises:
        UserError: The weights are of another network.
    """
    check_shapes(network.shapes(), weights, source)
    network.load_state_dict(weights)
