"""The network: a U-Net-skipped GPT with BigramHash, SmearGate, grouped-query attention and a squared-ReLU MLP.

Shape suffixes: B sequences, T positions, S of them scored (the last ones), C model width, H query heads, K key/value
heads, D head width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from components.errors import UserError
from components.layers import Embedding, Fakeable, Linear, rms_norm, seen_weight
from components.quantization import Quantizer
from components.storage import StorageRule, assign


@dataclass(frozen=True)
class GPTConfig:
    """What the weights alone do not say of the network; stored in every exported artifact.

    Args:
        vocab_size: Pieces in the tokenizer's vocabulary.
        num_layers: Transformer blocks; the first half feeds skips to the second.
        model_dim: Width of the residual stream, in channels.
        num_heads: Query heads a block; each is model_dim / num_heads wide.
        num_kv_heads: Key and value heads a block (grouped-query attention).
        mlp_mult: MLP hidden width over model_dim.
        tie_embeddings: Whether the output head is the token table.
        tied_embed_init_std: Standard deviation of the token table's initial values when tied.
        logit_softcap: Bound c of the logits, c * tanh(z / c).
        rope_base: Base of the rotary position frequencies.
        qk_gain_init: Initial gain of each query head.
        bigram_vocab_size: Rows of the bigram hash table; 0 for no bigram embedding.
        bigram_dim: Width of the bigram hash table, in channels.
        output_proj_init: Initial attention and MLP output projections: "zero" as the public run measured, or
            "scaled", orthogonal over sqrt(2 * num_layers).
        smear_across_documents: Whether SmearGate mixes a document's first token with the document before it, as the
            public run did; the challenge's later rulings ask for false.
        bos_id: The id that begins a document.
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
    qk_gain_init: float = 1.5
    bigram_vocab_size: int = 4096
    bigram_dim: int = 128
    output_proj_init: Literal["zero", "scaled"] = "zero"
    smear_across_documents: bool = True
    bos_id: int = 1

    def __post_init__(self) -> None:
        """Refuse what cannot be built.

        Raises:
            UserError: A size is not positive, or heads do not divide the width.
        """
        for name in ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads"):
            if getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}; set it to at least 1.")
        for name in ("mlp_mult", "tied_embed_init_std", "logit_softcap", "rope_base"):
            if getattr(self, name) <= 0:
                raise UserError(f"model.{name} is {getattr(self, name)}; set it above 0.")
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

    def describe(self) -> str:
        """The network in a phrase, for people."""
        parts = [
            f"{self.num_layers} blocks of width {self.model_dim}",
            f"{self.num_heads} query and {self.num_kv_heads} key/value heads",
            f"MLP {self.mlp_mult:g} times as wide",
            "U-Net skips",
            "SmearGate",
        ]
        if self.bigram_vocab_size:
            parts.append(f"a hash table of {self.bigram_vocab_size:,} token pairs, {self.bigram_dim} wide")
        return f"{', '.join(parts)}; a vocabulary of {self.vocab_size:,} pieces"


class BigramHash(nn.Module):
    """An embedding of each token's hashed pair with the token before it."""

    optimizer_groups: ClassVar = {"scale": "scalars"}

    def __init__(self, num_buckets: int, dim: int, model_dim: int, num_layers: int) -> None:
        super().__init__()
        self.num_buckets = num_buckets
        self.embed = Embedding(num_buckets, dim)
        self.proj = Linear(dim, model_dim)
        self.scale = nn.Parameter(torch.tensor(0.05))
        # The table starts at zero, so the projection must not, at any width: with both at zero neither has a gradient.
        nn.init.zeros_(self.embed.weight)
        with torch.no_grad():
            self.proj.weight.mul_(1 / math.sqrt(2 * num_layers))

    def buckets(self, ids_BT: Tensor) -> Tensor:
        """Hash bucket of every position, int32 [B, T]; a sequence's first position has the last bucket to itself."""
        ids = ids_BT.to(torch.int32)
        pairs = torch.bitwise_xor(36313 * ids[:, 1:], 27191 * ids[:, :-1]) % (self.num_buckets - 1)
        return F.pad(pairs, (1, 0), value=self.num_buckets - 1)

    def forward(self, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """Embedding [B, T, C] of the pairs, in ``dtype``."""
        h = self.proj(self.embed(self.buckets(ids_BT)).to(dtype))
        return h * self.scale.to(dtype)


class SmearGate(nn.Module):
    """Mix every position with the one before it, by a learned share per channel."""

    optimizer_groups: ClassVar = {"gate": "scalars"}

    def __init__(self, model_dim: int, across_documents: bool, bos_id: int) -> None:
        super().__init__()
        self.across_documents = across_documents
        self.bos_id = bos_id
        self.gate = nn.Parameter(torch.zeros(model_dim))

    def forward(self, x_BTC: Tensor, ids_BT: Tensor) -> Tensor:
        """``(1 - g) x_t + g x_{t-1}``, nothing standing before position 0 (nor before a document, if so asked)."""
        gate = torch.sigmoid(self.gate).to(x_BTC.dtype)
        previous = F.pad(x_BTC[:, :-1], (0, 0, 1, 0))
        if self.across_documents:
            return (1 - gate) * x_BTC + gate * previous
        gate = gate * (ids_BT != self.bos_id).unsqueeze(-1)
        return (1 - gate) * x_BTC + gate * previous


def rotary_tables(num_positions: int, head_dim: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Cosines and sines [T, D / 2] of the rotary embedding (Su et al., arXiv 2104.09864), float32."""
    frequencies = base ** -(torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(num_positions, device=device, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def rotate(x_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Rotate the first half a of each head against the second half b: ``[a cos + b sin, -a sin + b cos]``."""
    a, b = x_BHTD.chunk(2, dim=-1)
    return torch.cat((a * cos_TD + b * sin_TD, b * cos_TD - a * sin_TD), dim=-1)


class Attention(nn.Module):
    """Causal grouped-query attention over RMS-normed, rotated queries and keys."""

    optimizer_groups: ClassVar = {"q_gain": "scalars"}

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads = config.num_heads, config.num_kv_heads
        self.head_dim = config.model_dim // config.num_heads
        kv_dim = self.num_kv_heads * self.head_dim
        self.c_q = Linear(config.model_dim, config.model_dim)
        self.c_k = Linear(config.model_dim, kv_dim)
        self.c_v = Linear(config.model_dim, kv_dim)
        self.proj = Linear(config.model_dim, config.model_dim)
        self.q_gain = nn.Parameter(torch.full((self.num_heads,), config.qk_gain_init))

    def _heads(self, x_BTE: Tensor, num_heads: int) -> Tensor:
        return x_BTE.unflatten(-1, (num_heads, self.head_dim)).transpose(1, 2)

    def forward(self, x_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor, num_queries: int) -> Tensor:
        """Attend from the last ``num_queries`` positions S to all before them; [B, S, C]."""
        q_BHSD = rms_norm(self._heads(self.c_q(x_BTC[:, -num_queries:]), self.num_heads))
        # A gain commutes with a rotation, and before it no unscaled rotated queries must be kept for its gradient.
        q_BHSD = rotate(
            q_BHSD * self.q_gain.to(q_BHSD.dtype)[:, None, None], cos_TD[-num_queries:], sin_TD[-num_queries:]
        )
        k_BKTD = rotate(rms_norm(self._heads(self.c_k(x_BTC), self.num_kv_heads)), cos_TD, sin_TD)
        v_BKTD = self._heads(self.c_v(x_BTC), self.num_kv_heads)
        num_positions = x_BTC.size(1)
        mask_ST = None  # the kernels' own causal mask takes the first query for the first position
        if num_queries < num_positions:
            mask_ST = torch.ones(num_queries, num_positions, dtype=torch.bool, device=x_BTC.device)
            mask_ST = mask_ST.tril(num_positions - num_queries)
        y_BHSD = F.scaled_dot_product_attention(
            q_BHSD,
            k_BKTD,
            v_BKTD,
            attn_mask=mask_ST,
            is_causal=mask_ST is None,
            enable_gqa=self.num_kv_heads != self.num_heads,
        )
        return self.proj(y_BHSD.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """``proj(relu(fc(x))^2)``."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        hidden = int(config.mlp_mult * config.model_dim)
        self.fc = Linear(config.model_dim, hidden)
        self.proj = Linear(hidden, config.model_dim)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Map every position by itself; [B, T, C] in and out."""
        return self.proj(F.relu(self.fc(x_BTC)).square())


class Block(nn.Module):
    """Attention and MLP on a per-channel mix of the residual stream and the network's input."""

    optimizer_groups: ClassVar = {"attn_scale": "scalars", "mlp_scale": "scalars", "resid_mix": "scalars"}

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.attn = Attention(config)
        self.mlp = MLP(config)
        self.attn_scale = nn.Parameter(torch.ones(config.model_dim))
        self.mlp_scale = nn.Parameter(torch.ones(config.model_dim))
        self.resid_mix = nn.Parameter(torch.stack((torch.ones(config.model_dim), torch.zeros(config.model_dim))))

    def forward(self, x_BTC: Tensor, x0_BTC: Tensor, cos_TD: Tensor, sin_TD: Tensor, num_wanted: int) -> Tensor:
        """One step of the residual stream for the last ``num_wanted`` positions S, [B, S, C].

        Args:
            x_BTC: The stream.
            x0_BTC: The network's normed, smeared input.
            cos_TD: Cosines of the rotary embedding.
            sin_TD: Its sines.
            num_wanted: Positions that anything after this block looks at; keys and values are of all T.
        """
        mix = self.resid_mix.to(x_BTC.dtype)
        x_BTC = mix[0] * x_BTC + mix[1] * x0_BTC
        attended_BSC = self.attn(rms_norm(x_BTC), cos_TD, sin_TD, num_wanted)
        x_BSC = x_BTC[:, -num_wanted:] + self.attn_scale.to(x_BTC.dtype) * attended_BSC
        return x_BSC + self.mlp_scale.to(x_BTC.dtype) * self.mlp(rms_norm(x_BSC))


class GPT(nn.Module):
    """The whole network. Weights are float32; under autocast the residual stream is of autocast's dtype."""

    optimizer_groups: ClassVar = {"skip_weights": "scalars"}

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.tok_emb = Embedding(config.vocab_size, config.model_dim)
        self.bigram = (
            BigramHash(config.bigram_vocab_size, config.bigram_dim, config.model_dim, config.num_layers)
            if config.bigram_vocab_size
            else None
        )
        self.smear = SmearGate(config.model_dim, config.smear_across_documents, config.bos_id)
        self.num_skips = config.num_layers // 2
        self.skip_weights = nn.Parameter(torch.ones(self.num_skips, config.model_dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.lm_head = None if config.tie_embeddings else Linear(config.model_dim, config.vocab_size, "head")
        self._initialize()

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
            quantizer: What rounds them.

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

    @property
    def is_faking(self) -> bool:
        """Whether forward passes see some weights as export will store them."""
        return any(isinstance(module, Fakeable) and module.fake is not None for module in self.modules())

    def shapes(self) -> dict[str, torch.Size]:
        """The shape of each parameter, by its name."""
        return {name: p.shape for name, p in self.named_parameters()}

    def logits(self, input_ids_BT: Tensor, num_scored: int) -> Tensor:
        """Softcapped next-token logits of the last ``num_scored`` positions S, float32 [B, S, V].

        The last block's queries, its MLP and the head are computed for those positions alone: exact, since nothing
        else looks at the others.
        """
        device = input_ids_BT.device
        dtype = (
            torch.get_autocast_dtype(device.type)
            if torch.is_autocast_enabled(device.type)
            else self.tok_emb.weight.dtype
        )
        x = self.tok_emb(input_ids_BT)
        if self.bigram is not None:
            x = x + self.bigram(input_ids_BT, dtype)
        x = self.smear(rms_norm(x).to(dtype), input_ids_BT)
        x0 = x
        skips: list[Tensor] = []
        cos, sin = rotary_tables(
            input_ids_BT.size(1), self.config.model_dim // self.config.num_heads, self.config.rope_base, device
        )
        cos, sin = cos.to(dtype), sin.to(dtype)
        for i, block in enumerate(self.blocks):
            if i >= self.num_skips and skips:
                x = x + self.skip_weights[i - self.num_skips].to(dtype) * skips.pop()
            last = i == self.config.num_layers - 1
            x = block(x, x0, cos, sin, num_scored if last else x.size(1))
            if i < self.num_skips:
                skips.append(x)
        head = seen_weight(self.tok_emb if self.lm_head is None else self.lm_head)
        z = F.linear(rms_norm(x), head.to(dtype)).float()
        return self.config.logit_softcap * torch.tanh(z / self.config.logit_softcap)

    def forward(self, input_ids_BT: Tensor, target_ids_BS: Tensor) -> Tensor:
        """Cross-entropy of each target, in nats, float32 [B, S]; targets are those of the last S positions."""
        logits = self.logits(input_ids_BT, target_ids_BS.size(1))
        return F.cross_entropy(logits.flatten(0, 1), target_ids_BS.flatten(), reduction="none").view_as(target_ids_BS)


def load_weights(network: GPT, weights: Mapping[str, Tensor], source: str) -> None:
    """Give a network the weights that were read from a file.

    Args:
        network: The network.
        weights: Float weights by name.
        source: The file, for the error message.

    Raises:
        UserError: The weights are of another network.
    """
    expected = network.shapes()
    found = {name: weight.shape for name, weight in weights.items()}
    differing = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
    if differing:
        name = differing[0]
        here, there = (list(shapes[name]) if name in shapes else "none" for shapes in (expected, found))
        raise UserError(
            f"{source} holds the weights of another network: {name} is {there} there and {here} in the "
            "configuration's network; give the model settings that it was trained with."
        )
    network.load_state_dict(weights)
