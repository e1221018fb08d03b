"Early exit, its twelve losses and layer feedback against plain loops, in float64: values, gradients, layers."
import gc
import weakref

import exit_references as E
import pytest
import torch
from memlab.core.draw import generator_of
from memlab.data.recall import IGNORE
from memlab.nn import feedback
from memlab.nn.checks import error_ratio
from memlab.nn.exit import AtLayer, EarlyExit, Halting, Sampled, Threshold, evaluators
from memlab.nn.feedback import FeedbackConfig
from memlab.nn.generate import generate
from memlab.nn.lm import residual_lm
from memlab.nn.variants import attention_of_mlp_scores, double_attention, mlp_only, parallel, vanilla
from memlab.train.losses import EXIT_LOSSES, exit_loss

HEADS, V = 2, 7


def drawn(model):
    "Parameters of size .4, gains around 1, so that everything matters."
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters(): p.copy_(.4 * torch.randn(p.shape, generator=g, dtype=torch.float64) + ("norm" in name and name.endswith("weight")))
    return model


def built(share="none", n=3):
    return drawn(residual_lm(vanilla(n_layers=n, d_model=8, n_heads=HEADS, share=share, loss="all"), V, 16).double())


def parts(model):
    "Its parameters, as the references want them."
    top = dict(embed=model.embed.weight, positions=model.positions.weight, **{f"norm.{n}": p for n, p in model.norm.named_parameters()})
    return [dict(layer.named_parameters(remove_duplicate=False)) for layer in model.layers], top


def tokens(b=2, t=5, seed=0):
    return torch.randint(V, (b, t), generator=torch.Generator().manual_seed(seed))


def agree(ours, theirs, model):
    "Same value, same gradient of every parameter, of none where there is none."
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    ps = list(model.parameters())
    for a, b in zip(*(torch.autograd.grad(u.sum(), ps, allow_unused=True, retain_graph=True) for u in (ours, theirs))):
        zero = torch.zeros(())
        torch.testing.assert_close(zero if a is None else a, (zero if a is None else torch.zeros_like(a)) if b is None else b, rtol=1e-8, atol=1e-9, check_dtype=False)


# -- losses -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("share, timing", [("all", "own"), ("all", "next"), ("none", "next")])
def test_losses_are_those_of_the_loops(share, timing):
    model, ids = built(share), tokens(t=6)
    x, y = ids[:, :-1], ids[:, 1:].clone()
    y[1, 2] = IGNORE
    noise = torch.rand(3, 2, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    w, top = parts(model)
    rs = E.streams(w, top, x, HEADS)
    u = E.judges(w, top, rs, HEADS, timing)
    agree(evaluators(model, model.streams(x)[0], timing), torch.stack(u), model)
    e, counted = E.terms([E.logits(top, r) for r in rs[1:]], u, y, noise, IGNORE)
    assert len({l for (l, _, _), i in e.items() if i["s"]}) == 3        # tokens leave after every layer
    want = E.exit_losses(e, counted, 3)
    assert want.keys() == EXIT_LOSSES.keys()
    for name, loss in want.items():
        ours = exit_loss(model, x, y, name, noise, timing=timing)
        agree(ours.mean, torch.as_tensor(loss), model) if name != "4-test" or ours.mean.requires_grad else None
        assert int(ours.count) == 9
        torch.testing.assert_close(ours.report / 9, sum(e[3, b, t]["x"] for b, t in counted) / 9)


def test_a_sure_judge_ends_the_layers_that_are_trained():
    "The threshold rule: the loss is read where the batch is sure in the mean."
    model, x = built("all"), tokens()
    with torch.no_grad(): model.embed.weight.mul_(40)
    noise, names = torch.rand(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)), ("threshold", "argmax")
    w, top = parts(model)
    rs = E.streams(w, top, x, HEADS)
    z, u = [E.logits(top, r) for r in rs[1:]], E.judges(w, top, rs, HEADS, "next")
    first = next(i for i, v in enumerate(u) if v.log_softmax(-1).amax(-1).mean() > -.1)
    assert first < 2
    words = -z[first].log_softmax(-1).gather(-1, x[..., None]).mean()
    torch.testing.assert_close(exit_loss(model, x, x, names[0], noise, weight=0.).mean, words)
    assert exit_loss(model, x, x, names[1], noise, weight=0.).mean != words


def test_the_weight_is_of_confidence_alone():
    model, x = built("all"), tokens()
    noise = torch.rand(3, 2, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for name in EXIT_LOSSES:
        a, b, c, d = (exit_loss(model, x, x, name, noise, weight=k).mean for k in (0., 1., 3., .01))
        torch.testing.assert_close(c - a, 3 * (b - a))
        torch.testing.assert_close(d - a, .01 * (b - a), rtol=1e-8, atol=1e-12)


# -- leaving ----------------------------------------------------------------------------------------------------------

def plain(rule, noise):
    "A rule on one token."
    if isinstance(rule, AtLayer): return lambda l, x, y, z, b, t: l == rule.layer
    if isinstance(rule, Threshold): return lambda l, x, y, z, b, t: E.softmax(z).max() >= rule.p
    if isinstance(rule, Halting): return lambda l, x, y, z, b, t: E.cosine(x, y) > rule.tau
    return lambda l, x, y, z, b, t: noise[l - 1][t] <= E.softmax(z).max()


RULES = [AtLayer(layer=1), Threshold(p=.4), Sampled(seed=3), Halting(tau=.6)]


@pytest.mark.parametrize("share", ["none", "all"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_tokens_leave_as_in_the_loop(rule, share):
    model, ids, seen = built(share, n=4), tokens(), []
    noise = torch.stack([torch.rand(4, generator=generator_of(3, "exits", t)) for t in range(5)], 1)
    h, _ = EarlyExit(model, rule, watch=seen.append).features(ids)
    want, depth = E.leave(*parts(model), ids, HEADS, plain(rule, noise))
    assert seen[0].tolist() == depth
    if not isinstance(rule, AtLayer): assert len(set(sum(depth, []))) > 1
    agree(h, want, model)


KINDS = {"vanilla": vanilla, "parallel": parallel, "shared": lambda **kw: vanilla(share="all", **kw), "positions again": lambda **kw: vanilla(positions="again", **kw), "rope": lambda **kw: vanilla(positions="rope", **kw),
         "two attentions": double_attention, "no attention": mlp_only, "scores of the MLP": attention_of_mlp_scores}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cached_is_what_would_be_read_anew(kind):
    "Prompts of different lengths, layers skipped or not, another turn: every token is that of a reader who begins again."
    model = drawn(residual_lm(KINDS[kind](n_layers=4, d_model=8, n_heads=HEADS, loss="all"), V, 64).double())
    for rule in RULES:
        early = EarlyExit(model, rule)
        prompts = [[3, 1, 4, 1], [5], [2, 6]]
        got = generate(early, prompts, 6, temperature=0.)
        for row, n, p in zip(got.ids, got.lengths.tolist(), prompts):
            ids = torch.tensor([p])
            for _ in range(6): ids = torch.cat([ids, early(ids)[0][:, -1:].argmax(-1)], 1)
            assert row[:n].tolist() == ids[0].tolist()
        more = torch.tensor([[1], [2], [3]])
        logits = early(more, got.memory)[0]
        for i, n in enumerate(got.lengths.tolist()):
            assert error_ratio(logits[i], early(torch.cat([got.ids[i:i + 1, :n], more[i:i + 1]], 1))[0][0, -1:]) < 1e-10


def test_documents_in_a_row_leave_as_they_would_alone():
    model = built(n=4)
    starts = torch.zeros(1, 8, dtype=torch.bool)
    starts[0, 3] = True
    ids, packed, alone = tokens(1, 8), [], []
    for rule in RULES:
        h = EarlyExit(model, rule, watch=packed.append)(ids, starts=starts)[0]
        assert error_ratio(h[:, 3:], EarlyExit(model, rule, watch=alone.append)(ids[:, 3:])[0]) < 1e-10
        assert torch.equal(packed[-1][:, 3:], alone[-1])


# -- layer feedback ---------------------------------------------------------------------------------------------------

FEEDBACK = [dict(sees="layers"), dict(sees="layers", share="none"), dict(sees="layers", detach=True), dict(sees="layers", mask="first"), dict(sees="mixed"), dict(sees="mixed", detach=True),
            dict(sees="own"), dict(sees="own", detach=True, share="none")]


@pytest.mark.parametrize("kw", FEEDBACK, ids=str)
def test_layers_read_the_past_as_in_the_loop(kw):
    model = drawn(FeedbackConfig(max_len=16, d_model=8, n_heads=HEADS, **kw).build(0, V).double())
    stack = model.layers[0]
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    w = [dict(block.named_parameters(remove_duplicate=False)) for block in stack.blocks]
    want = E.feedback(w, x, HEADS, kw["sees"], kw.get("detach", False), kw.get("mask") == "first", stack.mix)
    pull = torch.randn(want.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)   # at every position
    agree(stack(x)[0] * pull, want * pull, stack)
    ours, theirs = (torch.autograd.grad((u * pull).sum(), x)[0] for u in (stack(x)[0], want))
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("sees", ["layers", "mixed", "own"])
def test_a_gradient_passes_through_a_cut_and_may_be_asked_for_twice(sees):
    stack = drawn(FeedbackConfig(max_len=16, d_model=8, n_heads=HEADS, sees=sees).build(0, V).double()).layers[0]
    x = torch.randn(2, 7, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    whole = stack(x)[0].square().sum()
    a, state = stack(x[:, :3])
    b, after = stack(x[:, 3:], state)
    cut = a.square().sum() + b.square().sum()
    want = torch.autograd.grad(whole, [x, *stack.parameters()])
    for _ in range(2):
        for u, v in zip(torch.autograd.grad(cut, [x, *stack.parameters()], retain_graph=True), want): torch.testing.assert_close(u, v, rtol=1e-9, atol=1e-9)
    few = torch.autograd.grad(b[:, :1].sum(), x, retain_graph=True)[0]                               # then another part of the graph
    torch.testing.assert_close(few, torch.autograd.grad(stack(x[:, :4])[0][:, 3:].sum(), x)[0], rtol=1e-9, atol=1e-10)
    assert not few[:, 4:].any()
    held = torch.autograd.grad(after.k.square().sum() + after.v.sum(), x)[0]                        # what is handed on has a gradient too
    s = stack(x)[1]
    torch.testing.assert_close(held, torch.autograd.grad(s.k.square().sum() + s.v.sum(), x)[0], rtol=1e-9, atol=1e-10)


def test_a_step_leaves_nothing_behind(monkeypatch):
    "What a forward pass holds goes with its output, without a collector."
    held = []

    class Seen(feedback.Past):
        def __init__(self, *args):
            super().__init__(*args)
            held.append(weakref.ref(self))

    monkeypatch.setattr(feedback, "Past", Seen)
    stack, x = FeedbackConfig(max_len=16, d_model=8, n_heads=HEADS).build(0, V).layers[0], torch.zeros(1, 3, 8)
    gc.disable()
    try:
        stack(x)[0].sum().backward()
        y = stack(x)
        del y
        assert [r() for r in held] == [None, None]
    finally: gc.enable()
