"""Early exit and its losses, written out as loops over layers, rows and tokens.

`w` is a list of a dict a layer, parameter by name as in `references.py`; `top` holds 'embed', 'positions', 'norm.weight'
and 'norm.bias'. Every layer is the additive block. Nothing here comes from the library it judges.
"""
import references as R
import torch
from torch import Tensor


def embed(top: dict, ids: Tensor) -> Tensor:
    "r_0: token and position."
    return torch.stack([torch.stack([top["embed"][int(i)] + top["positions"][t] for t, i in enumerate(row)]) for row in ids])


def logits(top: dict, r: Tensor) -> Tensor:
    "W_E N(r)."
    return R.layer_norm(top, "norm", r) @ top["embed"].T


def constant(w: dict) -> dict:
    "The same numbers, of which no gradient is asked."
    return {name: p.detach() for name, p in w.items()}


def streams(w: list, top: dict, ids: Tensor, heads: int) -> list:
    "r_0 .. r_L."
    rs = [embed(top, ids)]
    for layer in w: rs.append(R.vanilla(layer, rs[-1], heads))
    return rs


def judges(w: list, top: dict, rs: list, heads: int, timing: str) -> list:
    "u_1 .. u_L: one more application of a block, block and readout constant."
    out = []
    for i in range(len(w)):
        if timing == "own": layer, r = w[i], rs[i]                          # the layer itself, on its own input
        else: layer, r = w[i + 1] if i + 1 < len(w) else w[i], rs[i + 1]    # the next layer, on the layer's output
        out.append(logits(constant(top), R.vanilla(constant(layer), r, heads)))
    return out


def softmax(z: Tensor) -> Tensor:
    "eᶻ / Σ eᶻ."
    e = torch.exp(z)
    return e / e.sum()


def terms(z: list, u: list, labels: Tensor, noise: Tensor, ignore: int) -> tuple[dict, list]:
    "Of each layer, row and token all numbers that the losses are made of; and the tokens that count."
    tokens = [(b, t) for b in range(len(labels)) for t in range(labels.shape[1]) if labels[b, t] != ignore]
    n, found = len(z), {}
    for b, t in tokens:
        m = 1.
        for l in range(1, n + 1):
            q, p, y = softmax(z[l - 1][b, t]), softmax(u[l - 1][b, t]), int(labels[b, t])
            after = m if l < n and noise[l - 1, b, t] > p.max() else 0.
            found[l, b, t] = dict(x=-torch.log(q[y]), c=-torch.log(1 - p.max()), cy=-torch.log(1 - p[y]), logp=torch.log(p.max()), before=m, m=after, s=m - after,
                                  entropy=-(q * torch.log(q)).sum(), least=-torch.log(q.min()), sure=-torch.log(q.max()))
            m = after
    return found, tokens


def total(f, layers: range, e: dict, tokens: list) -> Tensor:
    "Σ over layers of the mean over tokens of f(this layer's numbers, those of the layer below)."
    return sum(f(e[l, b, t], e.get((l - 1, b, t))) for l in layers for b, t in tokens) / len(tokens)


def exit_losses(e: dict, tokens: list, n: int) -> dict:
    "The twelve, by name."
    over = lambda f, first=1: total(f, range(first, n + 1), e, tokens)
    last = lambda f: total(f, range(n, n + 1), e, tokens)
    mean = lambda name, l: sum(e[l, b, t][name] for b, t in tokens) / len(tokens)
    words, left = last(lambda i, _: i["x"]), over(lambda i, _: i["x"] * i["s"])
    k = next((l for l in range(1, n + 1) if -mean("logp", l) < 0.1), n)
    return {
        "entropy": words + over(lambda i, _: i["entropy"]),
        "least": words + over(lambda i, _: i["least"]),
        "argmax": words + over(lambda i, _: i["sure"]),
        "threshold": mean("x", k) + sum(mean("sure", l) for l in range(1, k + 1)),
        "1-noise": words + over(lambda i, _: i["logp"]) / n,
        "2-test": words + sum(torch.log(1 - torch.exp(mean("logp", l))) for l in range(1, n + 1)) / n,
        "3-test": over(lambda i, _: i["x"] * i["c"] * i["m"]) + words,
        "4-test": over(lambda i, _: ((i["x"] - 1) * i["s"] + 1) * i["c"] * i["m"]) + last(lambda i, _: i["x"] * i["m"]),
        "5-test as written": over(lambda i, below: ((below["x"] - 1) * below["s"] + 1) * i["c"] * i["before"], 2) + last(lambda i, _: i["x"] * i["before"]),
        "5-test": over(lambda i, _: i["c"] * i["before"], 2) + left,
        "6-test-1": left - over(lambda i, _: i["cy"] * i["before"], 2),
        "6-test-2": left - over(lambda i, _: i["c"] * i["before"], 2),
    }


def leave(w: list, top: dict, ids: Tensor, heads: int, rule) -> tuple[Tensor, list]:
    """The stream with which every token leaves, and after which layer; `rule(layer, x before, x after, logits, b, t)`.

    Every layer runs on all tokens; whoever has left keeps its stream, which is what later tokens read.
    """
    r = embed(top, ids)
    depth = [[len(w)] * ids.shape[1] for _ in ids]
    gone = [[False] * ids.shape[1] for _ in ids]
    for l, layer in enumerate(w, 1):
        new, x = R.vanilla(layer, r, heads), R.layer_norm(top, "norm", r)
        r = torch.stack([torch.stack([r[b, t] if gone[b][t] else new[b, t] for t in range(ids.shape[1])]) for b in range(len(ids))])
        y, z = R.layer_norm(top, "norm", r), logits(top, r)
        for b in range(len(ids)):
            for t in range(ids.shape[1]):
                if l < len(w) and not gone[b][t] and rule(l, x[b, t], y[b, t], z[b, t], b, t): gone[b][t], depth[b][t] = True, l
    return R.layer_norm(top, "norm", r), depth


def cosine(a: Tensor, b: Tensor) -> float:
    "a·b / |a||b|."
    return float((a @ b / ((a @ a) * (b @ b)) ** 0.5).detach())


# -- layer feedback ---------------------------------------------------------------------------------------------------

def feedback(w: list, x: Tensor, heads: int, sees: str, detach: bool = False, first: bool = False, mix: Tensor | None = None) -> Tensor:
    "Layers that read token by token: layer l of a token reads all layers of earlier ones, a mixture of them, or its own layer of each."
    out = []
    for seq in x:
        past, row = [], []   # of each token: what each layer may read, (key, value) a head
        for r in seq:
            rs, here = [r], []
            for l, layer in enumerate(w):
                u, a = R.layer_norm(layer, "norm1", r), []
                mine = [(R.K(layer, i, heads, u), R.V(layer, i, heads, u)) for i in range(heads)]
                for i in range(heads):
                    seen = [entry for token in past for entry in (token if sees == "layers" else [token[l]])] + [mine]
                    if first: seen = seen[:1]
                    a.append(R.head(R.Q(layer, i, heads, u), [entry[i][0] for entry in seen], [entry[i][1] for entry in seen]))
                y = r + R.linear(layer, "attn.out", torch.cat(a))
                r = y + R.M(layer, R.layer_norm(layer, "norm2", y))
                rs.append(r); here.append(mine)
            if sees == "mixed":
                m = sum(p * r for p, r in zip(softmax(mix), rs))
                here = [[(R.K(layer, i, heads, u), R.V(layer, i, heads, u)) for i in range(heads)] for layer in w for u in [R.layer_norm(layer, "norm1", m)]]
            past.append([[(k.detach(), v.detach()) if detach else (k, v) for k, v in entry] for entry in here])
            row.append(r)
        out.append(torch.stack(row))
    return torch.stack(out)
