"""The GPT-2 architecture as nanoGPT trains it: fused attention, fused AdamW, all logits at once. Imports nothing from memlab."""
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (u.view(b, t, self.heads, c // self.heads).transpose(1, 2) for u in self.qkv(self.ln1(x)).split(c, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        x = x + self.proj(y)
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class GPT(nn.Module):
    def __init__(self, vocab, length, layers, width, heads):
        super().__init__()
        self.tok, self.pos = nn.Embedding(vocab, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.ln = nn.LayerNorm(width)
        for p in self.parameters():
            if p.dim() > 1: nn.init.normal_(p, std=.02)

    def forward(self, ids, targets):
        x = self.tok(ids) + self.pos.weight[:ids.shape[1]]
        for block in self.blocks: x = block(x)
        logits = self.ln(x) @ self.tok.weight.T
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def trainer(vocab, length, layers, width, heads, precision):
    "A function that takes one optimizer step on a batch of ids (b, length + 1)."
    model = GPT(vocab, length, layers, width, heads)
    groups = [dict(params=[p for p in model.parameters() if p.dim() > 1], weight_decay=.1), dict(params=[p for p in model.parameters() if p.dim() < 2], weight_decay=0.)]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(.9, .95), fused=True)

    def step(ids):
        with torch.autocast('cpu', torch.bfloat16, enabled=precision == 'bfloat16'):
            loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss
    return step
