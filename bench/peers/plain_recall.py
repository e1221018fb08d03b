"""A GPT on recall as one writes it first: attention without positions, logits everywhere, PyTorch's cross-entropy and AdamW."""
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    def __init__(self, dim, heads, dk):
        super().__init__()
        self.heads, self.norm = heads, nn.RMSNorm(dim)
        self.q, self.k, self.v = (nn.Linear(dim, heads * dk, bias=False) for _ in range(3))
        self.out = nn.Linear(heads * dk, dim, bias=False)

    def forward(self, x):
        b, t, _ = x.shape
        h = self.norm(x)
        q, k, v = (p(h).view(b, t, self.heads, -1).transpose(1, 2) for p in (self.q, self.k, self.v))
        scores = (q @ k.transpose(-2, -1)) / q.shape[-1] ** .5
        future = torch.triu(torch.ones(t, t, dtype=torch.bool), 1)
        o = scores.masked_fill(future, float('-inf')).softmax(-1) @ v
        return x + self.out(o.transpose(1, 2).reshape(b, t, -1))


class GPT(nn.Module):
    def __init__(self, vocab, dim, heads, dk, layers):
        super().__init__()
        self.embed, self.blocks = nn.Embedding(vocab, dim), nn.Sequential(*(Block(dim, heads, dk) for _ in range(layers)))
        self.norm, self.head = nn.RMSNorm(dim), nn.Linear(dim, vocab, bias=False)

    def forward(self, ids): return self.head(self.norm(self.blocks(self.embed(ids))))


def trainer(vocab, dim, heads, dk, layers):
    "One optimizer step on tokens and labels (-100 where nothing is asked)."
    model = GPT(vocab, dim, heads, dk, layers)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    def step(ids, labels):
        loss = F.cross_entropy(model(ids).flatten(0, 1), labels.flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.)
        optimizer.step()
        return loss.item()
    return step
