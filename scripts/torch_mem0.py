"""Mem-0's training step in PyTorch on Hugging Face's Qwen3-VL, for `bench_train.py` to measure against.

The modules carry the reference's names, so that parameters move over by the rules of `mem0_jax.convert`. Dropout is
off; noise and times come with the batch. Axis letters: B consecutive frames of one lane, S tokens, H width, C action
horizon, D inner width of the action head, R draws per frame.
"""

# pyright: reportMissingImports=false

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from mem0_jax.heads.classifier import ClassifierConfig
from mem0_jax.heads.dit import DiTConfig
from mem0_jax.memory.bank import MemoryConfig
from mem0_jax.policies.mem0 import Mem0Config


class Unchanged(nn.Module):
    """In place of the final norm, which Mem-0's features do not pass through; its weight stays."""

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, as it is."""
        return x


def hugging_face(config: Mem0Config) -> nn.Module:
    """Qwen3-VL with random weights, scaled dot-product attention, without a language-model head."""
    text, vision, tokens = (getattr(config.backbone, part) for part in ("text", "vision", "tokens"))
    rope = {"mrope_interleaved": True, "mrope_section": list(text.mrope_section), "rope_type": "default"}
    text_config = {name: value for name, value in vars(text).items() if name != "mrope_section"}
    text_config |= {"rope_scaling": rope, "rope_parameters": rope | {"rope_theta": text.rope_theta}}
    vision_config = vars(vision) | {"in_channels": 3}
    vision_config["deepstack_visual_indexes"] = list(vision.deepstack_visual_indexes)
    settings = transformers.Qwen3VLConfig(
        text_config=text_config | {"pad_token_id": tokens.pad},
        vision_config=vision_config,
        image_token_id=tokens.image,
        video_token_id=tokens.video,
        vision_start_token_id=tokens.vision_start,
        vision_end_token_id=tokens.vision_end,
    )
    model = transformers.Qwen3VLModel._from_config(settings, attn_implementation="sdpa")
    model.language_model.norm = Unchanged(model.language_model.norm.weight)
    model.config.text_config.use_cache = False
    return model


class RankEncoder(nn.Module):
    """Embeds how many frames ago a feature was stored."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width // 4, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, rank: Tensor) -> Tensor:
        """[frames] counted back from now, 1 the newest -> [frames, H]."""
        half = self.mlp[0].in_features // 2
        frequency = torch.exp(-math.log(30.0) * torch.arange(half, device=rank.device) / half)
        angle = rank[:, None] * frequency
        return self.mlp(torch.cat([angle.cos(), angle.sin()], -1))


class MemoryBank(nn.Module):
    """Walks frame by frame, as the reference does: read, then store."""

    def __init__(self, width: int, config: MemoryConfig):
        super().__init__()
        self.window_position_encoder = RankEncoder(width)
        for branch in ("cross_attn1", "cross_attn2"):
            setattr(self, branch, nn.MultiheadAttention(width, config.num_heads, batch_first=True))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.size, self.window, self.anchor = config.window_size, [], None

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H] -> window and anchor outputs [B, H]."""
        outputs = [self.step(feature[None]) for feature in features]
        return torch.cat([window for window, _ in outputs]), torch.cat([anchor for _, anchor in outputs])

    def step(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """[1, H] -> two of [1, H]."""
        outputs = feature, feature
        if self.anchor is not None:
            past = torch.cat(self.window)
            rank = torch.arange(len(past), 0, -1, device=past.device)
            past = self.norm1(past + self.window_position_encoder(rank))[None]
            first = self.norm2(self.anchor)[None]
            outputs = (
                feature + self.cross_attn1(self.norm1(feature)[None], past, past, need_weights=False)[0][0],
                feature + self.cross_attn2(self.norm2(feature)[None], first, first, need_weights=False)[0][0],
            )
        stored = feature.detach()
        self.window = [*self.window, stored][-self.size :]
        self.anchor = stored if self.anchor is None else self.anchor
        return outputs


class Attention(nn.Module):
    """Multi-head attention under diffusers' names."""

    def __init__(self, width: int, key_width: int, heads: int):
        super().__init__()
        self.to_q, self.to_k, self.to_v = nn.Linear(width, width), *(nn.Linear(key_width, width) for _ in range(2))
        self.to_out, self.heads = nn.ModuleList([nn.Linear(width, width)]), heads

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x [B, S, D] attends to context [B, K, key_width] -> [B, S, D]."""
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.projected(x, context))
        return self.to_out[0](functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def projected(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, S, D], keys and values [B, K, D], before they are cut into heads."""
        return self.to_q(x), self.to_k(context), self.to_v(context)


class Modulation(nn.Module):
    """Scale and shift of a LayerNorm without weights, from the time embedding."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x [B, S, D] and the time embedding [B, D] -> [B, S, D]."""
        scale, shift = self.linear(functional.silu(time))[:, None].chunk(2, -1)
        return functional.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class FeedForward(nn.Module):
    """tanh-GELU MLP under diffusers' names."""

    def __init__(self, width: int):
        super().__init__()
        inner = nn.Module()
        inner.proj = nn.Linear(width, 4 * width)
        self.net = nn.ModuleList([inner, nn.Identity(), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        return self.net[2](functional.gelu(self.net[0].proj(x), approximate="tanh"))


class Block(nn.Module):
    """Modulated attention and an MLP, each with its residual."""

    def __init__(self, width: int, key_width: int, heads: int):
        super().__init__()
        self.norm1, self.attn1, self.ff = Modulation(width), Attention(width, key_width, heads), FeedForward(width)

    def forward(self, x: Tensor, time: Tensor, context: Tensor | None) -> Tensor:
        """x [B, S, D], time [B, D]; without a context [B, K, key_width] x attends to itself."""
        h = self.norm1(x, time)
        x = x + self.attn1(h, h if context is None else context)
        return x + self.ff(functional.layer_norm(x, x.shape[-1:]))


class Layers(nn.Module):
    """`layer1`, `layer2`, ... of the given (inputs, outputs)."""

    def __init__(self, *sizes: tuple[int, int]):
        super().__init__()
        for number, (inputs, outputs) in enumerate(sizes, 1):
            setattr(self, f"layer{number}", nn.Linear(inputs, outputs))


class MLP(Layers):
    """Two layers with ReLU between."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        return self.layer2(functional.relu(self.layer1(x)))


def sinusoid(position: Tensor, width: int, shift: int, cos_first: bool) -> Tensor:
    """[B] -> [B, width]."""
    half = width // 2
    frequency = torch.exp(-math.log(10000.0) * torch.arange(half, device=position.device) / (half - shift))
    angle = position[:, None] * frequency
    parts = (angle.cos(), angle.sin()) if cos_first else (angle.sin(), angle.cos())
    return torch.cat(parts, -1)


class Transformer(nn.Module):
    """Time embedding, blocks that attend to the context and to themselves in turn, output projection."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.timestep_encoder, embedder = nn.Module(), nn.Module()
        embedder.linear_1, embedder.linear_2 = nn.Linear(256, config.width), nn.Linear(config.width, config.width)
        self.timestep_encoder.timestep_embedder = embedder
        widths = [config.context_width if i % 2 == 0 else config.width for i in range(config.num_layers)]
        self.transformer_blocks = nn.ModuleList([Block(config.width, w, config.num_heads) for w in widths])
        self.proj_out_1 = nn.Linear(config.width, 2 * config.width)
        self.proj_out_2 = nn.Linear(config.width, config.output_dim)

    def forward(self, x: Tensor, context: Tensor, timestep: Tensor) -> Tensor:
        """x [B, S, D], context [B, K, context_width], timestep [B] -> [B, S, output_dim]."""
        embedder = self.timestep_encoder.timestep_embedder
        time = embedder.linear_2(functional.silu(embedder.linear_1(sinusoid(timestep, 256, 1, True))))
        for number, block in enumerate(self.transformer_blocks):
            x = block(x, time, context if number % 2 == 0 else None)
        shift, scale = self.proj_out_1(functional.silu(time))[:, None].chunk(2, -1)
        return self.proj_out_2(functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift)


class ActionHead(nn.Module):
    """The velocity of noisy chunks."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        width, hidden = config.width, config.hidden_size
        self.model = Transformer(config)
        self.state_encoder = MLP((config.state_dim, hidden), (hidden, width))
        self.action_encoder = Layers((config.action_dim, width), (2 * width, width), (width, width))
        self.action_decoder = MLP((config.output_dim, hidden), (hidden, config.action_dim))
        self.position_embedding = nn.Embedding(config.max_positions, width)

    def forward(self, context: Tensor, state: Tensor, actions: Tensor, timestep: Tensor) -> Tensor:
        """Velocity [B, C, action_dim] of noisy `actions` of that shape; context [B, K, H], state [B, state_dim]."""
        encoder, horizon = self.action_encoder, actions.shape[1]
        tokens = encoder.layer1(actions)
        tau = sinusoid(timestep, tokens.shape[-1], 0, False)[:, None].expand_as(tokens)
        tokens = encoder.layer3(functional.silu(encoder.layer2(torch.cat([tokens, tau], -1))))
        tokens = tokens + self.position_embedding.weight[:horizon]
        x = torch.cat([self.state_encoder(state)[:, None], tokens], 1)
        return self.action_decoder(self.model(x, context, timestep)[:, -horizon:])


class ResidualBlock(nn.Module):
    """Of the classifier."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(inputs), nn.Linear(inputs, outputs), nn.Linear(outputs, outputs)
        self.skip = nn.Linear(inputs, outputs) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs] -> [B, outputs]."""
        return self.fc2(functional.gelu(self.fc1(self.norm(x)))) + self.skip(x)


class Classifier(nn.Module):
    """Logits of a subtask's end."""

    def __init__(self, config: ClassifierConfig):
        super().__init__()
        sizes = config.hidden_sizes
        self.blocks = nn.ModuleList([ResidualBlock(*pair) for pair in pairwise(sizes)])
        self.final_norm, self.head = nn.LayerNorm(sizes[-1]), nn.Linear(sizes[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, sizes[0]] -> logits [B]."""
        for block in self.blocks:
            x = block(x)
        return self.head(self.final_norm(x))[:, 0]


class TorchMem0(nn.Module):
    """The whole policy; `forward` is the training loss of one lane's batch."""

    def __init__(self, config: Mem0Config):
        super().__init__()
        self.config = config
        self.qwen_model = nn.Module()
        self.qwen_model.model = nn.Module()
        self.qwen_model.model.model = hugging_face(config)
        self.memory_bank = MemoryBank(config.backbone.text.hidden_size, config.memory)
        self.action_model, self.classifier = ActionHead(config.action), Classifier(config.classifier)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        """Of a batch from `to_torch`."""
        config = self.config
        dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        with torch.autocast(batch["input_ids"].device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            image, text = self.features(batch)
            context = torch.stack([*self.memory_bank(image), text], 1).float()
        logits = self.classifier(context.flatten(1))
        labels = batch["subtask_end"].float()
        weight = torch.tensor(config.classifier.pos_weight, device=labels.device)
        entropy = functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight, reduction="none")
        right = torch.where(labels > 0, logits.sigmoid(), (-logits).sigmoid())
        ends = (entropy * (1 - right) ** config.classifier.focal_gamma).mean()
        return config.lambda_action * self.action_loss(batch, context) + config.lambda_classifier * ends

    def features(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Pooled image and text features [B, H] of the last layer's states."""
        tokens, ids = self.config.backbone.tokens, batch["input_ids"]
        names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", "mm_token_type_ids")
        inputs = {name: batch[name] for name in names if name in batch}
        hidden = self.qwen_model.model.model(**inputs, use_cache=False).last_hidden_state
        place = torch.arange(ids.shape[1], device=ids.device)
        start, middle, end = (
            (ids == token).int().argmax(1, keepdim=True)
            for token in (tokens.vision_start, tokens.vision_end, tokens.im_end)
        )

        def mean(first: Tensor, last: Tensor) -> Tensor:
            inside = ((place > first) & (place < last)).to(hidden.dtype)
            return torch.einsum("bs,bsh->bh", inside / inside.sum(1, keepdim=True).clamp(min=1), hidden)

        return mean(start, middle), mean(middle, end)

    def action_loss(self, batch: dict[str, Tensor], context: Tensor) -> Tensor:
        """Mean squared error of the velocity over R draws."""
        flow = self.config.flow
        actions, noise, time = batch["action"].repeat(flow.draws, 1, 1), batch["noise"], batch["time"]
        point = (1 - time[:, None, None]) * noise + time[:, None, None] * actions
        context, state = context.repeat(flow.draws, 1, 1), batch["state"].repeat(flow.draws, 1)
        velocity = self.action_model(context, state, point, (time * flow.buckets).trunc())
        return functional.mse_loss(velocity, actions - noise)


def to_torch(batch: dict[str, Any], config: Mem0Config, device: str) -> dict[str, Tensor]:
    """One lane's batch [1, T, ...] of the policy's entries as Hugging Face's and the heads' inputs."""
    flat = {name: value if name in ("noise", "time") else value[0] for name, value in batch.items()}
    patch, (height, width) = config.backbone.vision.patch_size, config.image_size
    frames = len(flat["input_ids"])
    ids = torch.from_numpy(flat["input_ids"]).long()
    pixels = torch.from_numpy(flat["patches"]).flatten(0, -2).float() / 127.5 - 1.0
    made: dict[str, Tensor] = {
        "input_ids": ids,
        "attention_mask": torch.from_numpy(flat["attention_mask"]).long(),
        "pixel_values": pixels,
        "image_grid_thw": torch.tensor([[1, height // patch, width // patch]]).repeat(frames, 1),
        **{name: torch.from_numpy(flat[name]) for name in ("state", "action", "subtask_end", "noise", "time")},
    }
    if int(transformers.__version__.split(".")[0]) >= 5:
        made["mm_token_type_ids"] = (ids == config.backbone.tokens.image).int()
    return {name: value.to(device) for name, value in made.items()}
