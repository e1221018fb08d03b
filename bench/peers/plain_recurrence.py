"""Recurrences as one writes them first: inputs of all tokens are projected at once, then a loop over tokens."""
import torch
import torch.nn.functional as F
from torch import nn


class Context(nn.Module):
    "h' = LN(h + GELU(W h + u))"

    def __init__(self, width):
        super().__init__()
        self.state, self.input, self.norm = nn.Linear(width, width, bias=False), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x):
        h, out = x.new_zeros(len(x), x.shape[-1]), []
        for u in self.input(x).unbind(1):
            h = self.norm(h + F.gelu(u + self.state(h)))
            out.append(h)
        return torch.stack(out, 1)


class GRU(nn.Module):
    "h' = (1 - z) n + z h"

    def __init__(self, width):
        super().__init__()
        self.state, self.input, self.bias = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 3 * width), nn.Parameter(torch.zeros(width))

    def forward(self, x):
        h, out = x.new_zeros(len(x), x.shape[-1]), []
        for u in self.input(x).unbind(1):
            (ur, uz, un), (hr, hz, hn) = u.chunk(3, -1), self.state(h).chunk(3, -1)
            r, z = torch.sigmoid(ur + hr), torch.sigmoid(uz + hz)
            n = torch.tanh(un + r * (hn + self.bias))
            h = (1 - z) * n + z * h
            out.append(h)
        return torch.stack(out, 1)


KINDS = dict(context=Context, gru=GRU)
