"""One plain function for every named residual block: the equation, written out.

    f(w, r, heads, N=layer_norm) -> the stream after the layer

`w` maps a parameter's name to its tensor ('norm1.weight', 'attn.qkv.weight', 'mlp.up.bias', ...); `r` is the stream,
b t c (batch, time, channels); `N` is the norm. In the formulas x = N(r); A and M are the attention and MLP branches,
N₂ the second norm, A₂ and M₂ a second attention and a second MLP, ⊙ the product channel by channel, σ the logistic
function, r′ the result. A° is attention without value and output matrices: A°(u, z) takes its scores from u, averages
the full vectors of z in each head, and sums the heads.

Everything is a loop over sequences, positions and heads, so that each function can be checked against its formula by
eye. Nothing here comes from the library it judges. The identifiers in quotes are the source's names of its runs.
"""
import math

import torch
from torch import Tensor


# -- parts ------------------------------------------------------------------------------------------------------------

def linear(w: dict, name: str, u: Tensor) -> Tensor:
    "W u + b (no b when there is none)."
    out = u @ w[f"{name}.weight"].T
    return out + w[f"{name}.bias"] if f"{name}.bias" in w else out


def affine(w: dict, name: str, u: Tensor) -> Tensor:
    "g ⊙ u + b, as far as the norm has a gain g and a bias b."
    if f"{name}.weight" in w: u = u * w[f"{name}.weight"]
    if f"{name}.bias" in w: u = u + w[f"{name}.bias"]
    return u


def layer_norm(w: dict, name: str, u: Tensor) -> Tensor:
    "(u − mean u) / √(var u + ε), mean and biased variance over the channels, ε = 1e-5."
    c = u.shape[-1]
    centred = u - u.sum(-1, keepdim=True) / c
    variance = (centred ** 2).sum(-1, keepdim=True) / c
    return affine(w, name, centred / (variance + 1e-5) ** 0.5)


def rms_norm(w: dict, name: str, u: Tensor) -> Tensor:
    "u / √(mean u² + ε), ε = 1e-5."
    return affine(w, name, u / ((u ** 2).sum(-1, keepdim=True) / u.shape[-1] + 1e-5) ** 0.5)


def sigmoid(u: Tensor) -> Tensor:
    "1 / (1 + e⁻ᵘ)."
    return 1 / (1 + torch.exp(-u))


def gelu(u: Tensor) -> Tensor:
    "u Φ(u), Φ the normal distribution function."
    return u * 0.5 * (1 + torch.erf(u / math.sqrt(2)))


def M(w: dict, u: Tensor, name: str = "mlp") -> Tensor:
    "W₂ gelu(W₁ u + b₁) + b₂."
    return linear(w, f"{name}.out", gelu(linear(w, f"{name}.up", u)))


def keep_own(p: list) -> list:
    "The softmax as it is."
    return p


def mask_own(e: list) -> list:
    "Before the softmax: the last key does not take part."
    return [*e[:-1], 0 * e[-1]]


def delete_own(p: list) -> list:
    "After the softmax: the last weight is dropped, the others stay as they are."
    return [*p[:-1], 0 * p[-1]]


def own_one(p: list) -> list:
    "After the softmax: the last weight is one, the others stay as they are."
    return [*p[:-1], 0 * p[-1] + 1]


def normalised(e: list, z: Tensor) -> list:
    "Softmax: e_j / z."
    return [ej / z for ej in e]


def each_alone(e: list, z: Tensor) -> list:
    "Sigmoid of each score: e^s / (1 + e^s)."
    return [ej / (1 + ej) for ej in e]


def head(q: Tensor, keys: list, values: list, sink: Tensor | None = None, before=keep_own, after=keep_own, weigh=normalised) -> Tensor:
    """What one head reads at one position: Σ_j p_j v_j with p_j = e^{s_j} / Σ_i e^{s_i} and s_j = q·k_j / √d.

    The last key and value are the position's own. A sink adds e^{sink} to the sum below the bar and nothing above it;
    `before` and `after` change the own weight before and after the softmax. An empty softmax reads nothing.
    """
    e = before([torch.exp(q @ k / math.sqrt(len(q))) for k in keys])
    z = sum(e) if sink is None else sum(e) + torch.exp(sink)
    p = after(weigh(e, z) if z > 0 else e)
    o = torch.zeros_like(values[0])
    for pj, vj in zip(p, values): o = o + pj * vj
    return o


def rows(w: dict, name: str, part: int, i: int, heads: int, u: Tensor) -> Tensor:
    "Head i's query (part 0), key (part 1) or value (part 2) of the vector u: its rows of the joint matrix, times u."
    c, d = len(u), len(u) // heads
    mine = slice(part * c + i * d, part * c + (i + 1) * d)
    out = w[f"{name}.qkv.weight"][mine] @ u
    return out + w[f"{name}.qkv.bias"][mine] if f"{name}.qkv.bias" in w else out


def Q(w: dict, i: int, heads: int, u: Tensor, name: str = "attn") -> Tensor: return rows(w, name, 0, i, heads, u)
def K(w: dict, i: int, heads: int, u: Tensor, name: str = "attn") -> Tensor: return rows(w, name, 1, i, heads, u)
def V(w: dict, i: int, heads: int, u: Tensor, name: str = "attn") -> Tensor: return rows(w, name, 2, i, heads, u)


def A(w: dict, x: Tensor, heads: int, name: str = "attn", sink: bool = False, before=keep_own, after=keep_own, result=None, weigh=normalised) -> Tensor:
    "W_O concat_i[ Σ_{j≤t} softmax_j(Q_i x_t · K_i x_j / √d) V_i x_j ] + b_O; `result` may change a head's read-out."
    batch = []
    for seq in x:
        out = []
        for t in range(len(seq)):
            read = []
            for i in range(heads):
                q = Q(w, i, heads, seq[t], name)
                keys = [K(w, i, heads, seq[j], name) for j in range(t + 1)]
                values = [V(w, i, heads, seq[j], name) for j in range(t + 1)]
                o = head(q, keys, values, w[f"{name}.sink"][i] if sink else None, before, after, weigh)
                read.append(o if result is None else result(o, values[t]))
            out.append(linear(w, f"{name}.out", torch.cat(read)))
        batch.append(torch.stack(out))
    return torch.stack(batch)


def A0(w: dict, u: Tensor, z: Tensor, heads: int, sink: bool = False, before=keep_own, after=keep_own, result=None, weigh=normalised) -> Tensor:
    "A°(u, z) = Σ_i Σ_{j≤t} softmax_j(Q_i u_t · K_i u_j / √d) z_j."
    batch = []
    for scores, values in zip(u, z):
        out = []
        for t in range(len(scores)):
            total = torch.zeros_like(values[t])
            for i in range(heads):
                q = Q(w, i, heads, scores[t])
                keys = [K(w, i, heads, scores[j]) for j in range(t + 1)]
                o = head(q, keys, [values[j] for j in range(t + 1)], w["attn.sink"][i] if sink else None, before, after, weigh)
                total = total + (o if result is None else result(o, values[t]))
            out.append(total)
        batch.append(torch.stack(out))
    return torch.stack(batch)


def read_mean(w: dict, x: Tensor, heads: int, leaks: bool = False) -> tuple[list, list]:
    """Of each sequence, position and head what is read when the mean x̄ of the tokens stands before them, and the weight of x̄:
    softmax over (Q x_t · K x̄, Q x_t · K x_1, ... Q x_t · K x_t) / √d of V x̄, V x_1, ... V x_t (without V, of the vectors), x̄ over j ≤ t, or over all (a leak)."""
    out, weights = [], []
    for seq in x:
        row, part = [], []
        for t in range(len(seq)):
            seen = seq if leaks else seq[:t + 1]
            entries = [sum(seen) / len(seen), *seq[:t + 1]]
            reads = []
            for i in range(heads):
                e = [torch.exp(Q(w, i, heads, seq[t]) @ K(w, i, heads, u) / math.sqrt(x.shape[-1] // heads)) for u in entries]
                values = [V(w, i, heads, u) if "attn.out.weight" in w else u for u in entries]
                reads.append((sum(ej / sum(e) * v for ej, v in zip(e, values)), e[0] / sum(e)))
            row.append(torch.cat([o for o, _ in reads]) if "attn.out.weight" in w else sum(o for o, _ in reads))
            part.append(sum(p for _, p in reads) / heads)
        out.append(torch.stack(row)), weights.append(torch.stack(part)[:, None])
    return torch.stack(out), torch.stack(weights)


def Am(w: dict, x: Tensor, heads: int, leaks: bool = False) -> Tensor:
    "A(x) with the mean of the tokens before them; without matrices of values, A°(x, x) with it."
    read = read_mean(w, x, heads, leaks)[0]
    return linear(w, "attn.out", read) if "attn.out.weight" in w else read


def slanted_head(q: Tensor, keys: list, values: list, i: int, heads: int, sink: Tensor | None = None) -> Tensor:
    "`head` number i, from 0, with s_j = q·k_j / √d − (t − j) / 2^(8 (i+1) / heads): ALiBi."
    n = len(keys)
    e = [torch.exp(q @ k / math.sqrt(len(q)) - (n - 1 - j) / 2 ** (8 * (i + 1) / heads)) for j, k in enumerate(keys)]
    z = sum(e) if sink is None else sum(e) + torch.exp(sink)
    return sum(ej / z * v for ej, v in zip(e, values))


def As(w: dict, x: Tensor, heads: int, sink: bool = False) -> Tensor:
    "A(x) with ALiBi; without matrices of values, A°(x, x) with it."
    novalue = "attn.out.weight" not in w
    batch = []
    for seq in x:
        out = []
        for t in range(len(seq)):
            keys = lambda i: [K(w, i, heads, u) for u in seq[:t + 1]]
            values = lambda i: list(seq[:t + 1]) if novalue else [V(w, i, heads, u) for u in seq[:t + 1]]
            read = [slanted_head(Q(w, i, heads, seq[t]), keys(i), values(i), i, heads, w["attn.sink"][i] if sink else None) for i in range(heads)]
            out.append(sum(read) if novalue else linear(w, "attn.out", torch.cat(read)))
        batch.append(torch.stack(out))
    return torch.stack(batch)


def sink_share(w: dict, x: Tensor, heads: int) -> Tensor:
    "Mean over heads i of e^{sink_i} / (e^{sink_i} + Σ_{j≤t} e^{s_j}), one number a position: what attention leaves to its sink."
    batch = []
    for seq in x:
        out = []
        for t in range(len(seq)):
            total = 0
            for i in range(heads):
                q = Q(w, i, heads, seq[t])
                e = [torch.exp(q @ K(w, i, heads, seq[j]) / math.sqrt(len(q))) for j in range(t + 1)]
                total = total + torch.exp(w["attn.sink"][i]) / (torch.exp(w["attn.sink"][i]) + sum(e))
            out.append(total / heads)
        batch.append(torch.stack(out)[:, None])
    return torch.stack(batch)


def returned(a: Tensor, x: Tensor) -> Tensor:
    "Σ_c a_c x_c, one number a position."
    return (a * x).sum(-1, keepdim=True)


def halved_tanh(s: Tensor) -> Tensor:
    "2 σ(s) − 1 = tanh(s/2)."
    return 2 * sigmoid(s) - 1


def project_out(o: Tensor, v: Tensor) -> Tensor:
    "o − (o·v / v·v) v: what is left of o beside v."
    return o - (o @ v) / (v @ v) * v


# -- sums: attention writes, the MLP reads, both are added ------------------------------------------------------------

def vanilla(w, r, heads, N=layer_norm):
    "y = r + A(x); r′ = y + M(N₂(y))  ('7-test-3', '13-baseline')"
    x = N(w, "norm1", r)
    y = r + A(w, x, heads)
    return y + M(w, N(w, "norm2", y))


def parallel(w, r, heads, N=layer_norm):
    "r′ = r + A(x) + M(x)  ('10-resmlp')"
    x = N(w, "norm1", r)
    return r + A(w, x, heads) + M(w, x)


def x_escape(w, r, heads, N=layer_norm):
    "y = r + A(x); r′ = r + M(N₂(y))  ('10-x-escape': only the MLP sees attention)"
    x = N(w, "norm1", r)
    y = r + A(w, x, heads)
    return r + M(w, N(w, "norm2", y))


def res_escape(w, r, heads, N=layer_norm):
    "y = r + A(x); r′ = x + M(N₂(y))  ('10-resescape')"
    x = N(w, "norm1", r)
    y = r + A(w, x, heads)
    return x + M(w, N(w, "norm2", y))


def normed_skip(w, r, heads, N=layer_norm):
    "y = x + A(x); r′ = y + M(N₂(y))  ('8-reswithln')"
    x = N(w, "norm1", r)
    y = x + A(w, x, heads)
    return y + M(w, N(w, "norm2", y))


def attention_only(w, r, heads, N=layer_norm):
    "r′ = r + A(x)"
    x = N(w, "norm1", r)
    return r + A(w, x, heads)


def mlp_only(w, r, heads, N=layer_norm):
    "r′ = r + M(x)  ('10-resmlp-single-noattn')"
    x = N(w, "norm1", r)
    return r + M(w, x)


# -- products ---------------------------------------------------------------------------------------------------------

def axm(w, r, heads, N=layer_norm):
    "r′ = r + A(x) ⊙ M(x)  ('10-resmlp-single-attnxmlp')"
    x = N(w, "norm1", r)
    return r + A(w, x, heads) * M(w, x)


def times_plus(w, r, heads, N=layer_norm):
    "y = r ⊙ A(x); r′ = y + M(N₂(y))  ('8-timesplus')"
    x = N(w, "norm1", r)
    y = r * A(w, x, heads)
    return y + M(w, N(w, "norm2", y))


def plus_times(w, r, heads, N=layer_norm):
    "y = r + A(x); r′ = y ⊙ M(N₂(y))  ('10-plustimes')"
    x = N(w, "norm1", r)
    y = r + A(w, x, heads)
    return y * M(w, N(w, "norm2", y))


def times_times(w, r, heads, N=layer_norm):
    "y = r ⊙ A(x); r′ = y ⊙ M(N₂(y))  ('8-timestimes')"
    x = N(w, "norm1", r)
    y = r * A(w, x, heads)
    return y * M(w, N(w, "norm2", y))


def double_attention(w, r, heads, N=layer_norm):
    "y = r ⊙ A₂(x) + A(x); r′ = y + M(N₂(y))  ('8-doubleattn')"
    x = N(w, "norm1", r)
    y = r * A(w, x, heads, "attn2") + A(w, x, heads)
    return y + M(w, N(w, "norm2", y))


def double_double(w, r, heads, N=layer_norm):
    "y = r ⊙ A₂(x) + A(x); z = N₂(y); r′ = y ⊙ M₂(z) + M(z)  ('8-doubleattndoublemlp')"
    x = N(w, "norm1", r)
    y = r * A(w, x, heads, "attn2") + A(w, x, heads)
    z = N(w, "norm2", y)
    return y * M(w, z, "mlp2") + M(w, z)


# -- streams that forget ----------------------------------------------------------------------------------------------

def drop_attention_skip(w, r, heads, N=layer_norm):
    "y = A(x); r′ = y + M(N₂(y))  ('7-test-1')"
    x = N(w, "norm1", r)
    y = A(w, x, heads)
    return y + M(w, N(w, "norm2", y))


def drop_attention_skip_times(w, r, heads, N=layer_norm):
    "y = A(x); r′ = y ⊙ M(N₂(y))  ('8-everylayer-nores')"
    x = N(w, "norm1", r)
    y = A(w, x, heads)
    return y * M(w, N(w, "norm2", y))


def no_skip(w, r, heads, N=layer_norm):
    "r′ = M(N₂(A(x)))  ('8-everylayer-nores-true')"
    x = N(w, "norm1", r)
    return M(w, N(w, "norm2", A(w, x, heads)))


def axm_no_skip(w, r, heads, N=layer_norm):
    "r′ = A°(x, x) ⊙ M(x)  ('11-axm-nores')"
    x = N(w, "norm1", r)
    return A0(w, x, x, heads) * M(w, x)


# -- attention without value and output matrices ----------------------------------------------------------------------

def novalue(w, r, heads, N=layer_norm):
    "y = r + A°(x, x); r′ = y + M(N₂(y))"
    x = N(w, "norm1", r)
    y = r + A0(w, x, x, heads)
    return y + M(w, N(w, "norm2", y))


def parallel_novalue(w, r, heads, N=layer_norm):
    "r′ = r + A°(x, x) + M(x)  ('11-apm')"
    x = N(w, "norm1", r)
    return r + A0(w, x, x, heads) + M(w, x)


def axm_novalue(w, r, heads, N=layer_norm):
    "r′ = r + A°(x, x) ⊙ M(x)  ('10-resmlp-single-axm-novalue', '13-axm-novalue')"
    x = N(w, "norm1", r)
    return r + A0(w, x, x, heads) * M(w, x)


def attention_only_novalue(w, r, heads, N=layer_norm):
    "r′ = r + A°(x, x)  ('11-a-nomlp')"
    x = N(w, "norm1", r)
    return r + A0(w, x, x, heads)


# -- what the MLP reads when it is multiplied with attention ----------------------------------------------------------

def axm_mlp_reads_sum(w, r, heads, N=layer_norm):
    "a = A°(x, x); r′ = r + M(x + a) ⊙ a  ('11-axm-mlpinputmod2')"
    x = N(w, "norm1", r)
    a = A0(w, x, x, heads)
    return r + M(w, x + a) * a


def axm_mlp_reads_product(w, r, heads, N=layer_norm):
    "a = A°(x, x); r′ = r + M(x ⊙ a) ⊙ a  ('11-axm-mlpinputmod')"
    x = N(w, "norm1", r)
    a = A0(w, x, x, heads)
    return r + M(w, x * a) * a


def axm_mlp_reads_norm(w, r, heads, N=layer_norm):
    "a = A°(x, x); r′ = r + M(N₂(a)) ⊙ a  ('11-axm-mlpofy')"
    x = N(w, "norm1", r)
    a = A0(w, x, x, heads)
    return r + M(w, N(w, "norm2", a)) * a


def axm_mlp_reads_attention(w, r, heads, N=layer_norm):
    "a = A°(x, x); r′ = r + M(a) ⊙ a  ('11-axm-mlponattn')"
    x = N(w, "norm1", r)
    a = A0(w, x, x, heads)
    return r + M(w, a) * a


# -- what attention reads ---------------------------------------------------------------------------------------------

def axm_values_from_mlp(w, r, heads, N=layer_norm):
    "m = M(x); r′ = r + A°(x, m) ⊙ m  ('11-axm-mlpvalue', as logged)"
    x = N(w, "norm1", r)
    m = M(w, x)
    return r + A0(w, x, m, heads) * m


def axm_gated_values(w, r, heads, N=layer_norm):
    "r′ = r + A°(x, M(x) ⊙ x)  ('13-axm-targetednegate')"
    x = N(w, "norm1", r)
    return r + A0(w, x, M(w, x) * x, heads)


def axm_scores_from_mlp(w, r, heads, N=layer_norm):
    "m = M(x); r′ = r + A°(m, x) ⊙ m  ('11-axm-mlpvalue', as the journal has it)"
    x = N(w, "norm1", r)
    m = M(w, x)
    return r + A0(w, m, x, heads) * m


def attention_of_mlp_values(w, r, heads, N=layer_norm):
    "r′ = r + A°(x, M(x))  ('11-axm-attnofz')"
    x = N(w, "norm1", r)
    return r + A0(w, x, M(w, x), heads)


def attention_of_mlp_scores(w, r, heads, N=layer_norm):
    "r′ = r + A°(M(x), x)  ('11-a-kqmlp')"
    x = N(w, "norm1", r)
    return r + A0(w, M(w, x), x, heads)


def attention_of_mlp(w, r, heads, N=layer_norm):
    "m = M(x); r′ = r + A°(m, m)  ('11-a-mlpasinput')"
    x = N(w, "norm1", r)
    m = M(w, x)
    return r + A0(w, m, m, heads)


# -- the MLP sees attention only --------------------------------------------------------------------------------------

def mlp_of_attention(w, r, heads, N=layer_norm):
    "r′ = r + M(A(x))  ('11-mlponly-mlponattn-value')"
    x = N(w, "norm1", r)
    return r + M(w, A(w, x, heads))


def mlp_of_attention_novalue(w, r, heads, N=layer_norm):
    "r′ = r + M(A°(x, x))  ('11-mlponly-mlponattn')"
    x = N(w, "norm1", r)
    return r + M(w, A0(w, x, x, heads))


def mlp_of_attention_times(w, r, heads, N=layer_norm):
    "r′ = r ⊙ M(A°(x, x))  ('11-mlponly-mlponattn-times')"
    x = N(w, "norm1", r)
    return r * M(w, A0(w, x, x, heads))


def mlp_of_attention_own_deleted(w, r, heads, N=layer_norm):
    "r′ = r + M(A(x)), the own value's weight dropped after the softmax  ('14-nodiagonal-noattn-nomlpres')"
    x = N(w, "norm1", r)
    return r + M(w, A(w, x, heads, after=delete_own))


def parallel_mlp_reads_attention(w, r, heads, N=layer_norm):
    "a = A°(x, x); r′ = r + a + M(a)  ('11-apm-mlponattn')"
    x = N(w, "norm1", r)
    a = A0(w, x, x, heads)
    return r + a + M(w, a)


# -- gates ------------------------------------------------------------------------------------------------------------

def hidden_as_gate(w, r, heads, N=layer_norm):
    "r′ = r + g A°(x, x), g = σ(Σ gelu(W₁ x + b₁)), one number a position  ('12-gate-axg', first version)"
    x = N(w, "norm1", r)
    g = sigmoid(gelu(linear(w, "mlp.up", x)).sum(-1, keepdim=True))
    return r + g * A0(w, x, x, heads)


def attention_sum_as_gate(w, r, heads, N=layer_norm):
    "r′ = r + g M(x), g = Σ_c A°(x, x)_c, one number a position  ('12-axm-attentiongate')"
    x = N(w, "norm1", r)
    return r + A0(w, x, x, heads).sum(-1, keepdim=True) * M(w, x)


def mlp_as_gate(w, r, heads, N=layer_norm):
    "r′ = r + g A(x), g = σ(Σ_c M(x)_c), one number a position  ('12-gate-axg', second version)"
    x = N(w, "norm1", r)
    g = sigmoid(M(w, x).sum(-1, keepdim=True))
    return r + g * A0(w, x, x, heads)


def attention_as_gate(w, r, heads, N=layer_norm):
    "r′ = r + g M(x), g = σ(Σ_c A(x)_c), one number a position  ('12-axm-attentiongate', with a sigmoid)"
    x = N(w, "norm1", r)
    g = sigmoid(A0(w, x, x, heads).sum(-1, keepdim=True))
    return r + g * M(w, x)


def forget_gate(w, r, heads, N=layer_norm):
    "m = M(N₂(A°(x, x) + x)); r′ = m + r ⊙ (1 − σ(M₂(m)))  ('12-gate-mlpofattn')"
    x = N(w, "norm1", r)
    m = M(w, N(w, "norm2", A0(w, x, x, heads) + x))
    return m + r * (1 - sigmoid(M(w, m, "mlp2")))


def throughput_gate(w, r, heads, N=layer_norm):
    "r′ = (1 − τ) r + τ M([x ; A(x)]), τ = σ(a learned number)  ('18-throughputgate')"
    x = N(w, "norm1", r)
    tau = sigmoid(w["tau"])
    return (1 - tau) * r + tau * M(w, torch.cat([x, A(w, x, heads)], -1))


# -- the stream that a gate lets through ------------------------------------------------------------------------------

def select_1(w, r, heads, N=layer_norm):
    "a = A°(x, x); q = tanh(a·x / 2); r′ = M(x) ⊙ a + q r  ('14-axm-appselector')"
    x = N(w, "norm1", r)
    a = A0(w, x, x, heads)
    return M(w, x) * a + halved_tanh(returned(a, x)) * r


def select_2(w, r, heads, N=layer_norm):
    "a = A°(x, x); q = tanh(a·x / 2x·x); r′ = M(x) ⊙ a + q r  ('14-axm-appselector-2')"
    x = N(w, "norm1", r)
    a = A0(w, x, x, heads)
    return M(w, x) * a + halved_tanh(returned(a, x) / returned(x, x)) * r


def matrix_and_bias(w, x, a):
    "U m V a and b, where M(x) lists the k × k matrix m row by row, and then b."
    k, emitted = w["matrix.v.weight"].shape[0], M(w, x)
    out = torch.zeros_like(x)
    for i in range(len(x)):
        for t in range(x.shape[1]):
            m = emitted[i, t, :k * k].reshape(k, k)
            out[i, t] = w["matrix.u.weight"] @ (m @ (w["matrix.v.weight"] @ a[i, t]))
    return out, emitted[..., k * k:]


def select_3(w, r, heads, N=layer_norm):
    "q = tanh(a·x / 2x·x); r′ = U m V a + q b + q r  ('14-axm-appselector-3')"
    x = N(w, "norm1", r)
    a = A0(w, x, x, heads)
    q, (ma, b) = halved_tanh(returned(a, x) / returned(x, x)), matrix_and_bias(w, x, a)
    return ma + q * b + q * r


def select_4(w, r, heads, N=layer_norm):
    "q = tanh(|a·x| / 2x·x); r′ = (1 − q)(U m V a + b) + q r  ('14-axm-appselector-4')"
    x = N(w, "norm1", r)
    a = A0(w, x, x, heads)
    q, (ma, b) = halved_tanh(abs(returned(a, x)) / returned(x, x)), matrix_and_bias(w, x, a)
    return (1 - q) * (ma + b) + q * r


def select_5(w, r, heads, N=layer_norm):
    "q = tanh(|a·x| / 2x·x); r′ = (1 − q) U m V a + q (r + b)  ('14-axm-appselector-5')"
    x = N(w, "norm1", r)
    a = A0(w, x, x, heads)
    q, (ma, b) = halved_tanh(abs(returned(a, x)) / returned(x, x)), matrix_and_bias(w, x, a)
    return (1 - q) * ma + q * (r + b)


def E(w, x, heads, N=layer_norm, sink=True):
    "a + M(N₂(x + a)) with a = A(x): both branches at once  (the source's 'vanilla executor')"
    a = A(w, x, heads, sink=sink)
    return a + M(w, N(w, "norm2", x + a))


def Ec(w, x, heads, N=layer_norm):
    "M([N₂(x) ; A(x)])  (the source's 'concat executor')"
    return M(w, torch.cat([N(w, "norm2", x), A(w, x, heads, sink=True)], -1))


def executor(w, r, heads, N=layer_norm):
    "r′ = r + E  ('18-vanilla-noabs')"
    return r + E(w, N(w, "norm1", r), heads, N, sink=False)


def executor_normed_skip(w, r, heads, N=layer_norm):
    "r′ = x + E, with a sink in every softmax  ('16-attentionsink-noreuse')"
    x = N(w, "norm1", r)
    return x + E(w, x, heads, N)


def sink_gate(w, r, heads, N=layer_norm):
    "r′ = g r + E, g what attention leaves to its sink  ('17-identity-test-no-1minus')"
    x = N(w, "norm1", r)
    return sink_share(w, x, heads) * r + E(w, x, heads, N)


def sink_gate_normed_skip(w, r, heads, N=layer_norm):
    "r′ = g x + E  ('16-sinkgate-vanilla-2')"
    x = N(w, "norm1", r)
    return sink_share(w, x, heads) * x + E(w, x, heads, N)


def sink_gate_mix(w, r, heads, N=layer_norm):
    "r′ = g r + (1 − g) E  ('17-identity-test', as meant)"
    x = N(w, "norm1", r)
    g = sink_share(w, x, heads)
    return g * r + (1 - g) * E(w, x, heads, N)


def sink_gate_sum_mix(w, r, heads, N=layer_norm):
    "r′ = g r + (1 − g) E, g summed over heads  ('17-identity-test', as run)"
    x = N(w, "norm1", r)
    g = heads * sink_share(w, x, heads)
    return g * r + (1 - g) * E(w, x, heads, N)


def sink_gate_concat(w, r, heads, N=layer_norm):
    "r′ = g r + M([N₂(x) ; A(x)])  ('17-identity-test-no-1minus-mlpconcat')"
    x = N(w, "norm1", r)
    return sink_share(w, x, heads) * r + Ec(w, x, heads, N)


def sink_gate_concat_mix(w, r, heads, N=layer_norm):
    "r′ = g r + (1 − g) M([N₂(x) ; A(x)])  ('17-1minus-mlpconcat')"
    x = N(w, "norm1", r)
    g = sink_share(w, x, heads)
    return g * r + (1 - g) * Ec(w, x, heads, N)


def sink_gate_concat_normed(w, r, heads, N=layer_norm):
    "r′ = g r + (1 − g) N₃(M([x ; A(x)]))  ('17-yes-1minus-mlpconcat-noln-faster-2')"
    x = N(w, "norm1", r)
    g = sink_share(w, x, heads)
    return g * r + (1 - g) * N(w, "norm3", M(w, torch.cat([x, A(w, x, heads, sink=True)], -1)))


def mean_sink(w, r, heads, N=layer_norm, leaks=False):
    "a = A(x̄; x), E = a + M(N₂(x + a)); r′ = r + E  ('16-attentionsink', whose x̄ is over the whole sequence)"
    x = N(w, "norm1", r)
    a = Am(w, x, heads, leaks)
    return r + a + M(w, N(w, "norm2", x + a))


# -- updates that multiply what they read -----------------------------------------------------------------------------

def deletion_novalue(w, r, heads, N=layer_norm):
    "r′ = r + M(x) ⊙ r + A°(x, x)  ('13-r+rxm+a')"
    x = N(w, "norm1", r)
    return r + M(w, x) * r + A0(w, x, x, heads)


def axm_rotated(w, r, heads, N=layer_norm):
    "r′ = r + R(M(x)) ⊙ A(x)  ('13-rotator')"
    x = N(w, "norm1", r)
    return r + linear(w, "rotator", M(w, x)) * A(w, x, heads)


def axm_normed_skip(w, r, heads, N=layer_norm):
    "r′ = x + A(x) ⊙ M(x)  ('13-axm-experiment')"
    x = N(w, "norm1", r)
    return x + A(w, x, heads) * M(w, x)


def complicated_2_normed(w, r, heads, N=layer_norm):
    "r′ = r + M(x) ⊙ (A(x) + x)  ('14-complicated-2')"
    x = N(w, "norm1", r)
    return r + M(w, x) * (A(w, x, heads) + x)


def axm_own_added_back(w, r, heads, N=layer_norm):
    "r′ = r + M(x) ⊙ (A°(x, x) without the own weight + x)  ('14-zerodiagonal-addback')"
    x = N(w, "norm1", r)
    return r + M(w, x) * (A0(w, x, x, heads, after=delete_own) + x)


def sigmoid_axm(w, r, heads, N=layer_norm):
    "S = Σ_i Σ_{j≤t} σ(s_j) x_j; r′ = r + S ⊙ M(x)  ('13-sigmoidaxm+x')"
    x = N(w, "norm1", r)
    return r + A0(w, x, x, heads, weigh=each_alone) * M(w, x)


def sigmoid_axm_own_one(w, r, heads, N=layer_norm):
    "S = Σ_i (x_t + Σ_{j<t} σ(s_j) x_j); r′ = r + S ⊙ M(x)  ('13-sigmoidaxm-diag')"
    x = N(w, "norm1", r)
    return r + A0(w, x, x, heads, after=own_one, weigh=each_alone) * M(w, x)


def sigmoid_axm_no_skip(w, r, heads, N=layer_norm):
    "S = Σ_i (x_t + Σ_{j<t} σ(s_j) x_j); r′ = S ⊙ M(x)  ('13-sigmoidaxm-diag-nox')"
    x = N(w, "norm1", r)
    return A0(w, x, x, heads, after=own_one, weigh=each_alone) * M(w, x)


def plus_attention_no_skip(w, r, heads, N=layer_norm):
    "a = A°(x, x); r′ = M(x) ⊙ a + a  ('14-axm-plusattn-nores')"
    x = N(w, "norm1", r)
    a = A0(w, x, x, heads)
    return M(w, x) * a + a


def deletion(w, r, heads, N=layer_norm):
    "r′ = r + A(x) + M(x) ⊙ r  ('13-axm-deletion')"
    x = N(w, "norm1", r)
    return r + A(w, x, heads) + M(w, x) * r


def scratchpad(w, r, heads, N=layer_norm):
    "a = A°(x, x); r′ = r + a ⊙ M(x) + a  ('12-scratchpad')"
    x = N(w, "norm1", r)
    a = A0(w, x, x, heads)
    return r + a * M(w, x) + a


def complicated_1(w, r, heads, N=layer_norm):
    "e = A(x) + r; r′ = r + M(N₂(e)) ⊙ e  ('13-complicated')"
    x = N(w, "norm1", r)
    e = A(w, x, heads) + r
    return r + M(w, N(w, "norm2", e)) * e


def complicated_2(w, r, heads, N=layer_norm):
    "r′ = r + M(x) ⊙ (A(x) + r)  ('13-complicated-2')"
    x = N(w, "norm1", r)
    return r + M(w, x) * (A(w, x, heads) + r)


def complicated_3(w, r, heads, N=layer_norm):
    "e = A(x); r′ = r + M(N₂(e)) ⊙ e  ('13-complicated-3')"
    x = N(w, "norm1", r)
    e = A(w, x, heads)
    return r + M(w, N(w, "norm2", e)) * e


def complicated_4(w, r, heads, N=layer_norm):
    "e = A(x); r′ = r + M(N₂(e + r)) ⊙ e  ('13-complicated-4')"
    x = N(w, "norm1", r)
    e = A(w, x, heads)
    return r + M(w, N(w, "norm2", e + r)) * e


def complicated_5(w, r, heads, N=layer_norm):
    "e = A(x); r′ = r + M(N₂(e)) ⊙ (e + r)  ('13-complicated-5')"
    x = N(w, "norm1", r)
    e = A(w, x, heads)
    return r + M(w, N(w, "norm2", e)) * (e + r)


def complicated_6(w, r, heads, N=layer_norm):
    "r′ = r + M(N₂(A(x))) ⊙ r  ('13-complicated-6')"
    x = N(w, "norm1", r)
    return r + M(w, N(w, "norm2", A(w, x, heads))) * r


# -- the token's own value, and an empty key --------------------------------------------------------------------------

def own_deleted(w, r, heads, N=layer_norm):
    "y = r + A(x), the own value's weight dropped after the softmax; r′ = y + M(N₂(y))  ('14-nodiagonal-baseline')"
    x = N(w, "norm1", r)
    y = r + A(w, x, heads, after=delete_own)
    return y + M(w, N(w, "norm2", y))


def own_masked(w, r, heads, N=layer_norm):
    "y = r + A(x), the own key left out of the softmax; r′ = y + M(N₂(y))"
    x = N(w, "norm1", r)
    y = r + A(w, x, heads, before=mask_own)
    return y + M(w, N(w, "norm2", y))


def own_projected(w, r, heads, N=layer_norm):
    "y = r + A(x), each head's read-out o replaced by o − (o·v/v·v) v with the own value v; r′ = y + M(N₂(y))"
    x = N(w, "norm1", r)
    y = r + A(w, x, heads, result=project_out)
    return y + M(w, N(w, "norm2", y))


def sink_key(w, r, heads, N=layer_norm):
    "y = r + A(x), with a learned empty key in every softmax; r′ = y + M(N₂(y))"
    x = N(w, "norm1", r)
    y = r + A(w, x, heads, sink=True)
    return y + M(w, N(w, "norm2", y))


def x_escape_own_deleted(w, r, heads, N=layer_norm):
    "y = r + A(x), the own value's weight dropped after the softmax; r′ = r + M(N₂(y))  ('14-nodiagonal-noattn')"
    x = N(w, "norm1", r)
    y = r + A(w, x, heads, after=delete_own)
    return r + M(w, N(w, "norm2", y))


# -- wider inputs, and an MLP that emits a matrix ---------------------------------------------------------------------

def concat(w, r, heads, N=layer_norm):
    "r′ = r + M([x ; A(x)])  ('16-principle-5', without its norm on x)"
    x = N(w, "norm1", r)
    return r + M(w, torch.cat([x, A(w, x, heads)], -1))


def matrix_update(w, r, heads, N=layer_norm):
    "r′ = r + U m V A(x) + b, where M(x) lists the k × k matrix m row by row, then the c entries of b  ('14-mlpmatrix')"
    x = N(w, "norm1", r)
    a, emitted = A(w, x, heads), M(w, x)
    k = w["matrix.v.weight"].shape[0]
    out = torch.zeros_like(r)
    for i in range(len(r)):
        for t in range(r.shape[1]):
            e = emitted[i, t]
            m = torch.stack([e[row * k:(row + 1) * k] for row in range(k)])
            out[i, t] = r[i, t] + w["matrix.u.weight"] @ (m @ (w["matrix.v.weight"] @ a[i, t])) + e[k * k:]
    return out


def concat_normed(w, r, heads, N=layer_norm):
    "r′ = r + M([N₂(x) ; A(x)])  ('16-principle-5')"
    x = N(w, "norm1", r)
    return r + M(w, torch.cat([N(w, "norm2", x), A(w, x, heads)], -1))


def concat_normed_attention(w, r, heads, N=layer_norm):
    "r′ = r + M([x ; N₂(A(x))])"
    x = N(w, "norm1", r)
    return r + M(w, torch.cat([x, N(w, "norm2", A(w, x, heads))], -1))


def matrix_update_unbiased(w, r, heads, N=layer_norm):
    "r′ = r + U m V A(x)  ('14-mlpmatrix-nobias-moreinner')"
    x = N(w, "norm1", r)
    return r + matrix_and_bias(w, x, A(w, x, heads))[0]


def matrix_update_bias_times_attention(w, r, heads, N=layer_norm):
    "a = A(x); r′ = r + U m V a + b ⊙ a  ('14-mlpmatrix-bxa')"
    x = N(w, "norm1", r)
    a = A(w, x, heads)
    ma, b = matrix_and_bias(w, x, a)
    return r + ma + b * a


def two_matrices(w, r, heads, N=layer_norm):
    "r′ = r + U₂ m₂ V₂ gelu(U₁ m₁ V₁ a + b), where M(x) lists m₂, m₁ and b, a without the own weight  ('16-principle-1')"
    x = N(w, "norm1", r)
    a, emitted, k = A(w, x, heads, after=delete_own), M(w, x), w["matrix.first.v.weight"].shape[0]
    out = torch.zeros_like(r)
    for i in range(len(r)):
        for t in range(r.shape[1]):
            e = emitted[i, t]
            m2, m1, b = e[:k * k].reshape(k, k), e[k * k:2 * k * k].reshape(k, k), e[2 * k * k:]
            hidden = gelu(w["matrix.first.u.weight"] @ (m1 @ (w["matrix.first.v.weight"] @ a[i, t])) + b)
            out[i, t] = r[i, t] + w["matrix.second.u.weight"] @ (m2 @ (w["matrix.second.v.weight"] @ hidden))
    return out


def folded(w, r, heads, N=layer_norm):
    "r′ = |r + E|  ('18-vanilla-abs')"
    return abs(executor(w, r, heads, N))


# -- whole models: f(w, ids, heads) -> logits; two layers of a block ---------------------------------------------------

def layer_of(w: dict, i: int) -> dict:
    "The parameters of layer i by their names in a block."
    return {name.removeprefix(f"layers.{i}."): p for name, p in w.items() if name.startswith(f"layers.{i}.")}


def positions(w: dict, ids: Tensor) -> Tensor:
    "P[t] for each token."
    return w["positions.weight"][:ids.shape[1]].expand(*ids.shape, -1)


def logits(w: dict, r: Tensor, N=layer_norm) -> Tensor:
    "N(r) against every row of the embedding."
    return N(w, "norm", r) @ w["embed.weight"].T


def stacked(w, ids, heads, block=vanilla):
    "r₀ = token + position; r₁ and r₂ from a block with the weights of each layer."
    r = w["embed.weight"][ids] + positions(w, ids)
    for i in range(2): r = block(layer_of(w, i), r, heads)
    return logits(w, r)


def multiplied_positions(w, ids, heads):
    "r₀ = token ⊙ position  ('11-axm-multpos')"
    r = w["embed.weight"][ids] * positions(w, ids)
    for i in range(2): r = axm_novalue(layer_of(w, i), r, heads)
    return logits(w, r)


def positions_from_one(w, ids, heads):
    "r₀ = token ⊙ (1 + position)"
    r = w["embed.weight"][ids] * (1 + positions(w, ids))
    for i in range(2): r = axm_novalue(layer_of(w, i), r, heads)
    return logits(w, r)


def positions_again(w, ids, heads, skip=1):
    "x = N(r) + position; r′ = r + A°(x, x) ⊙ M(x)  ('11-axm-addposembagain'), without r: skip=0 ('…-nores')"
    r = w["embed.weight"][ids] + positions(w, ids)
    for i in range(2):
        v = layer_of(w, i)
        x = layer_norm(v, "norm1", r) + positions(w, ids)
        r = skip * r + A0(v, x, x, heads) * M(v, x)
    return logits(w, r)


def slanted(w, ids, heads, sink=False):
    "No positions but ALiBi: y = r + A(x); r′ = y + M(N₂(y))"
    r = w["embed.weight"][ids]
    for i in range(2):
        v = layer_of(w, i)
        y = r + As(v, layer_norm(v, "norm1", r), heads, sink)
        r = y + M(v, layer_norm(v, "norm2", y))
    return logits(w, r)


def programmed(w, ids, heads):
    "r₀ = token + position + program, both by place  ('18-tokenprogram-4', whose program ends where the sequence ends)"
    r = w["embed.weight"][ids] + positions(w, ids) + w["positions.program.weight"][:ids.shape[1]]
    for i in range(2): r = vanilla(layer_of(w, i), r, heads)
    return logits(w, r)


def folded_last(w, ids, heads):
    "The signs are lost after the last layer only: r₂ = |r₁ + E|"
    r = w["embed.weight"][ids] + positions(w, ids)
    r = executor(layer_of(w, 0), r, heads)
    return logits(w, abs(executor(layer_of(w, 1), r, heads)))


def routed(w, ids, heads, weigh):
    "r_ℓ = Σ_j p_ℓj f_j(r_ℓ₋₁) with p_ℓ from the numbers of layer ℓ  ('18-router', '-2', '-3')"
    r = w["embed.weight"][ids] + positions(w, ids)
    blocks = [{name.removeprefix(f"blocks.{j}."): p for name, p in layer_of(w, 0).items() if name.startswith(f"blocks.{j}.")} for j in range(2)]
    for i in range(2):
        p = weigh(w.get(f"layers.{i}.routes"))
        r = p[0] * executor(blocks[0], r, heads) + p[1] * executor(blocks[1], r, heads)
    return logits(w, r)


ROUTES = {  # from a layer's numbers to its weights
    "sum": lambda n: (1, 1),
    "sigmoid": lambda n: sigmoid(n),
    "softmax": lambda n: torch.exp(n) / sum(torch.exp(n)),
}


def prefixed(w, ids, heads, counted, block=vanilla):
    "Learned vectors before the tokens, which have positions of their own when they are counted  ('18-tokenprogram', '-2')"
    n, table = len(w["prefix"]), w["positions.weight"]
    tokens, before = w["embed.weight"][ids], w["prefix"].expand(len(ids), -1, -1)
    if counted: before, tokens = before + table[:n], tokens + table[n:n + ids.shape[1]]
    else: tokens = tokens + positions(w, ids)
    r = torch.cat([before, tokens], 1)
    for i in range(2): r = block(layer_of(w, i), r, heads)
    return logits(w, r[:, n:])


DRIFTS = {  # how far a vector u lies from r
    "cosine": lambda u, r: 1 - (u @ r) / (u @ u) ** 0.5 / (r @ r) ** 0.5,
    "l1": lambda u, r: abs(u - r).sum(),
    "l2": lambda u, r: ((u - r) @ (u - r)) ** 0.5,
    "max": lambda u, r: abs(u - r).max(),
}


def idempotence(w, ids, labels, heads, block, D, weight):
    "Mean cross-entropy + weight · Σ_ℓ mean D(f_ℓ(r_ℓ), r_ℓ), r_ℓ what f_ℓ has written, without a gradient into it  ('17-identity-test')"
    r, drift = w["embed.weight"][ids] + positions(w, ids), 0
    for i in range(2):
        r = block(layer_of(w, i), r, heads)
        kept = r.detach()
        again = block(layer_of(w, i), kept, heads)
        drift = drift + sum(D(again[b, t], kept[b, t]) for b in range(len(ids)) for t in range(ids.shape[1])) / ids.numel()
    z = logits(w, r)
    ce = sum(torch.log(torch.exp(z[b, t]).sum()) - z[b, t, labels[b, t]] for b in range(len(ids)) for t in range(ids.shape[1])) / ids.numel()
    return ce + weight * drift


# -- second names: runs of the source whose equation is one of those above --------------------------------------------

def nine_experiment(w, r, heads, N=layer_norm):
    "Attention multiplies the stream, then the MLP is added: y = r ⊙ A(x); r′ = M(N₂(y)) + y  ('9-experiment')"
    x = N(w, "norm1", r)
    y = A(w, x, heads) * r
    return M(w, N(w, "norm2", y)) + y


def fifteen_baseline(w, r, heads, N=layer_norm):
    "Attention is never written: r′ = r + M(N₂(r + A(x)))  ('15-baseline')"
    x = N(w, "norm1", r)
    return r + M(w, N(w, "norm2", r + A(w, x, heads)))


def twelve_scratchpad_1(w, r, heads, N=layer_norm):
    "a = A°(x, x); r′ = r + a ⊙ M(x + a)  ('12-scratchpad-1')"
    x = N(w, "norm1", r)
    a = A0(w, x, x, heads)
    return r + a * M(w, x + a)


def twelve_scratchpad_2(w, r, heads, N=layer_norm):
    "a = A°(x, x); r′ = r + a ⊙ M(a)  ('12-scratchpad-2')"
    x = N(w, "norm1", r)
    a = A0(w, x, x, heads)
    return r + a * M(w, a)


# second name: first name
EQUIVALENT = {
    "nine_experiment": "times_plus",
    "fifteen_baseline": "x_escape",
    "twelve_scratchpad_1": "axm_mlp_reads_sum",
    "twelve_scratchpad_2": "axm_mlp_reads_attention",
}

# every reference by name
REFERENCES = {f.__name__: f for f in (
    vanilla, parallel, x_escape, res_escape, normed_skip, attention_only, mlp_only,
    axm, times_plus, plus_times, times_times, double_attention, double_double,
    drop_attention_skip, drop_attention_skip_times, no_skip, axm_no_skip,
    novalue, parallel_novalue, axm_novalue, attention_only_novalue,
    axm_mlp_reads_sum, axm_mlp_reads_product, axm_mlp_reads_norm, axm_mlp_reads_attention,
    axm_values_from_mlp, axm_gated_values, attention_of_mlp_values, attention_of_mlp_scores, attention_of_mlp,
    mlp_of_attention, mlp_of_attention_novalue, mlp_of_attention_times,
    mlp_as_gate, attention_as_gate, forget_gate, throughput_gate,
    deletion, scratchpad, complicated_1, complicated_2, complicated_3, complicated_4, complicated_5, complicated_6,
    own_deleted, own_masked, own_projected, sink_key, x_escape_own_deleted, concat, matrix_update,
    axm_scores_from_mlp, mlp_of_attention_own_deleted, parallel_mlp_reads_attention, hidden_as_gate, attention_sum_as_gate,
    select_1, select_2, select_3, select_4, select_5, executor, executor_normed_skip,
    sink_gate, sink_gate_normed_skip, sink_gate_mix, sink_gate_sum_mix, sink_gate_concat, sink_gate_concat_mix,
    deletion_novalue, axm_rotated, axm_normed_skip, complicated_2_normed, axm_own_added_back,
    sigmoid_axm, sigmoid_axm_own_one, sigmoid_axm_no_skip, plus_attention_no_skip,
    concat_normed, concat_normed_attention, matrix_update_unbiased, matrix_update_bias_times_attention, two_matrices, folded, sink_gate_concat_normed, mean_sink,
    nine_experiment, fifteen_baseline, twelve_scratchpad_1, twelve_scratchpad_2,
)}
