"""Worker of train.py, run in torch's environment: a step of a Llama of about the size of the d384 model."""

import argparse
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common import serve

LAYERS, DIM, HEADS, FFN, VOCABULARY = 6, 384, 6, 1024, 256


def rotary_table(length: int, head_dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines of position times frequency, length x head_dim / 2."""
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.outer(torch.arange(length), frequencies)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Turns the pairs (x[i], x[i + half]) of each head by their position's angles."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cosines - b * sines, a * sines + b * cosines), dim=-1).to(x.dtype)


class Block(nn.Module):
    """Attention, then a gated feed-forward layer, each behind an RMSNorm and beside a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(DIM, eps=1e-5)
        self.qkv = nn.Linear(DIM, 3 * DIM, bias=False)
        self.out = nn.Linear(DIM, DIM, bias=False)
        self.ffn_norm = nn.RMSNorm(DIM, eps=1e-5)
        self.gate = nn.Linear(DIM, FFN, bias=False)
        self.up = nn.Linear(DIM, FFN, bias=False)
        self.down = nn.Linear(FFN, DIM, bias=False)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, HEADS, DIM // HEADS).permute(2, 0, 3, 1, 4)
        q, k = rotate(qkv[0], cosines, sines), rotate(qkv[1], cosines, sines)
        mixed = F.scaled_dot_product_attention(q, k, qkv[2], is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, DIM))
        y = self.ffn_norm(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Tokens and targets to the mean cross-entropy."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, DIM)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(DIM, eps=1e-5)
        self.head = nn.Linear(DIM, VOCABULARY, bias=False)
        cosines, sines = rotary_table(length, DIM // HEADS)
        self.register_buffer("cosines", cosines)
        self.register_buffer("sines", sines)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cosines, self.sines)
        return F.cross_entropy(self.head(self.norm(x)).float().flatten(0, 1), targets.flatten())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=("f32", "bf16"), required=True)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--length", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    model = Llama(options.length)
    loss_of = torch.compile(model) if options.compile else model
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
    tokens = torch.randint(VOCABULARY, (options.batch, options.length))

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bf16"):
            loss = loss_of(tokens, tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if not math.isfinite(loss.item()):
            raise ArithmeticError("the loss is not finite")

    serve(step, {"version": torch.__version__, "parameters": sum(p.numel() for p in parameters)})


if __name__ == "__main__":
    main()
