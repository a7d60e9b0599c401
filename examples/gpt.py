"""A small GPT in pure PyTorch: rotary positions, causal attention by ``scaled_dot_product_attention``, pre-norm, and one
matrix for the embedding and the head.

It takes any length up to ``max_length``, and has no parameter that belongs to a position, so what it learns on short rows
holds on long ones. Below it are a step of its training, its evaluation, and the text that is held out for that. Read
next: :mod:`train_gpt`, which trains it in five ways.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from corpus import EOS, build_corpus
from torch import nn
from torch.nn import functional as F

HELD_OUT = 20  # one in so many documents is evaluated on, and not trained on


class Block(nn.Module):
    """Attention and a feed-forward layer, each added to what it reads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(rotated(q, cos, sin), rotated(k, cos, sin), v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class GPT(nn.Module):
    """Token ids of shape (rows, length) and their labels in, the mean cross entropy out."""

    def __init__(self, vocab_size: int, *, layers: int, width: int, heads: int, max_length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:  # what writes to the residual stream is smaller, the more layers write there
                nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if "out" in name or "down" in name else 0.02)
        cos, sin = rotations(max_length, width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x, length = self.tokens(ids), ids.shape[1]
        for block in self.blocks:
            x = block(x, self.cos[:length], self.sin[:length])
        logits = F.linear(self.norm(x), self.tokens.weight)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def rotations(max_length: int, size: int, base: float = 10_000.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of each position's angles, ``(max_length, size / 2)`` each: position / base^(2 i / size)."""
    angles = torch.outer(torch.arange(max_length), base ** -(torch.arange(0, size, 2) / size))
    return angles.cos(), angles.sin()


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the two halves of each head's vector against each other, by the angles of its position."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


# -- its training and evaluation ---------------------------------------------------------------------------------------


def update(model: GPT, optimizer: torch.optim.Optimizer, ids: torch.Tensor, labels: torch.Tensor, rate: float) -> float:
    """One optimizer step with this learning rate; the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    loss = model(ids, labels)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


@torch.no_grad()
def evaluate(model: GPT, rows: torch.Tensor) -> float:
    """The mean loss of rows that have the label of their last token at their end."""
    losses = [model(part[:, :-1], part[:, 1:]) * len(part) for part in rows.split(8)]
    return torch.stack(losses).sum().item() / len(rows)


def split_corpus(folder: Path, max_tokens: int | None) -> Path:
    """Write the documents to train on and those held out, each into a file of its own; the path of the first."""
    tokens = np.fromfile(build_corpus(folder / "stdlib.bin", max_tokens=max_tokens)[0], dtype="uint16")
    ends = tokens == EOS
    if ends.sum() < HELD_OUT:
        raise ValueError(f"one in {HELD_OUT} documents is held out, and max_tokens={max_tokens} leaves {ends.sum()}: give more")
    held_out = (np.cumsum(ends) - ends) % HELD_OUT == HELD_OUT - 1
    tokens[~held_out].tofile(folder / "train.bin")
    tokens[held_out].tofile(folder / "held_out.bin")
    return folder / "train.bin"


def held_out_rows(path: Path, rows: int, length: int) -> torch.Tensor:
    """Rows of ``length`` tokens and the label of the last, at equal distances in the documents held out beside ``path``."""
    tokens = np.fromfile(path.with_name("held_out.bin"), dtype="uint16").astype(np.int64)
    starts = np.linspace(0, len(tokens) - length - 1, rows).astype(int)
    return torch.from_numpy(np.stack([tokens[start : start + length + 1] for start in starts]))


def positive(text: str) -> int:
    """An option that counts something, from 1 on."""
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be an integer of 1 or more, got {text!r}")
    return int(text)
