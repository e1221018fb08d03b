"What a config says of a whole stack, against plain loops in `references.py`: positions, folds, ties, routers, prefixes."
from functools import partial

import pytest
import references as R
import torch

from memlab.eval.stream import branch_records, stream_records
from memlab.nn.blocks import BlockConfig
from memlab.nn.generate import generate
from memlab.nn.lm import PrefixedLM, residual_lm
from memlab.nn.memory import check_memory, load_memory, reset, save_memory
from memlab.nn.variants import axm_novalue, executor, mean_sink, no_skip, sink_gate_mix, vanilla
from memlab.train.idempotence import DRIFT, IdempotenceLoss
from memlab.train.learner import Learner
from memlab.train.losses import lm_loss

SIZES = dict(n_layers=2, d_model=8, n_heads=2)
IDS = torch.randint(7, (2, 5), generator=torch.Generator().manual_seed(0))
CASES = {  # a name: what the grammar calls it, and the loop
    "a stack": (vanilla(**SIZES), R.stacked),
    "positions multiply": (axm_novalue(positions="times", **SIZES), R.multiplied_positions),
    "positions multiply from one": (axm_novalue(positions="times from one", **SIZES), R.positions_from_one),
    "alibi": (vanilla(positions="alibi", **SIZES), R.slanted),
    "alibi, fused": (vanilla(positions="alibi", kernel="fused", **SIZES), R.slanted),
    "alibi, no values": (BlockConfig(positions="alibi", values=False, **SIZES), R.slanted),
    "alibi and a sink": (vanilla(positions="alibi", sink=True, **SIZES), partial(R.slanted, sink=True)),
    "a program": (vanilla(program_std=.5, **SIZES), R.programmed),
    "a mean": (mean_sink(**SIZES), partial(R.stacked, block=R.mean_sink)),
    "positions again": (axm_novalue(positions="again", **SIZES), R.positions_again),
    "positions again, shared": (axm_novalue(positions="again", share="all", **SIZES), R.positions_again),
    "positions again, no skip": (BlockConfig(values=False, mlp_in="x", update="a*m", carry="0", positions="again", **SIZES), partial(R.positions_again, skip=0)),
    "all folded": (executor(fold="all", **SIZES), partial(R.stacked, block=R.folded)),
    "the last folded": (executor(fold="last", **SIZES), R.folded_last),
    "one block": (vanilla(share="all", **SIZES), R.stacked),
    "qkv tied": (vanilla(share="qkv", **SIZES), R.stacked),
    "mlp tied": (vanilla(share="mlp", **SIZES), R.stacked),
    **{f"router, {kind}": (executor(router=kind, **SIZES), partial(R.routed, weigh=weigh)) for kind, weigh in R.ROUTES.items()},
    "prefix": (vanilla(prefix=3, **SIZES), partial(R.prefixed, counted=False)),
    "prefix with positions": (vanilla(prefix=3, prefix_positions=True, **SIZES), partial(R.prefixed, counted=True)),
    "one vector and a sink": (vanilla(prefix=1, sink=True, **SIZES), partial(R.prefixed, counted=False, block=R.sink_key)),
}
each = pytest.mark.parametrize("name", CASES)


def built(config, seed=0):
    "A float64 model with every parameter drawn from N(0, 0.4), gains from N(1, 0.4), and its parameters under every name."
    model, g = residual_lm(config, 7, 9).double(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters(): p.copy_(0.4 * torch.randn(p.shape, generator=g, dtype=torch.float64) + ("norm" in name and name.endswith("weight")))
    return model, dict(model.named_parameters(remove_duplicate=False))


@each
def test_a_model_equals_its_reference(name):
    "Logits and the gradient of every parameter."
    config, reference = CASES[name]
    model, w = built(config)
    mine, wanted = model(IDS)[0], reference(w, IDS, 2)
    torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-10)
    direction, params = torch.randn(mine.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64), dict(model.named_parameters())
    grads = [torch.autograd.grad((y * direction).sum(), list(params.values())) for y in (mine, wanted)]
    for n, got, want in zip(params, *grads): torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=lambda m: f"{n}: {m}")


def test_no_two_of_them_are_one():
    "With weights in common, each case gives other logits than each other."
    out = {}
    for name, (config, reference) in CASES.items():
        model, w = built(config)
        for n, p in w.items(): p.data.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n.split(".")[-1])), dtype=torch.float64))
        out[name] = reference(w, IDS, 2)
    assert all((out[a] - out[b]).abs().max() > 1e-6 for a in out for b in out if a < b and not {a, b} <= {"a stack", "one block", "qkv tied", "mlp tied"} and not {a, b} <= {"alibi", "alibi, fused"} and not {a, b} <= {"positions again", "positions again, shared"})


@each
def test_a_model_can_be_cut_anywhere(name, tmp_path):
    model, _ = built(CASES[name][0])
    whole, end = model(IDS)
    for cut in (0, 2, 5):
        for past in (None, model.init_memory(2)):
            a, m = model(IDS[:, :cut], past)
            b, m = model(IDS[:, cut:], m)
            torch.testing.assert_close(torch.cat([a, b], 1), whole, rtol=1e-10, atol=1e-10)
            assert sum(s.numel() for s in m) == model.state_size(5)
    check_memory(model, end)
    with torch.no_grad():
        y, m = model(IDS[:, :3])
        again = reset(model, m, torch.tensor([True, False]))
        torch.testing.assert_close(model(IDS, again)[0][:1], whole[:1], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model(IDS[:, 3:], again)[0][1:], whole[1:, 3:], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(model(IDS, reset(model, m))[0], whole, rtol=1e-10, atol=1e-10)
        save_memory(tmp_path / "memory", model, m)
        torch.testing.assert_close(model(IDS[:, 3:], load_memory(tmp_path / "memory", model))[0], whole[:, 3:], rtol=1e-10, atol=1e-10)
    written = generate(model, IDS, 3).ids
    assert torch.equal(written[:, 5], whole[:, -1].argmax(-1)) and torch.equal(written[:, 7], model(written[:, :7])[0][:, -1].argmax(-1))


@each
def test_a_model_is_causal_and_its_rows_are_apart(name):
    model, _ = built(CASES[name][0])
    whole, other = model(IDS)[0], IDS.clone()
    other[:, 3:] = (other[:, 3:] + 1) % 7
    assert torch.equal(model(other)[0][:, :3], whole[:, :3]) and not torch.allclose(model(other)[0][:, 3:], whole[:, 3:])
    torch.testing.assert_close(model(IDS[1:])[0], whole[1:], rtol=1e-10, atol=1e-10)


@each
def test_it_trains_and_is_measured_as_any_other(name):
    "Every parameter that learns gets a gradient from every placement of the loss; measures of streams run."
    config = CASES[name][0]
    model = residual_lm(config, 7, 9, std=.3)
    ids = torch.randint(7, (64, 6), generator=torch.Generator().manual_seed(0))
    for placement in ("single", "all", "sum"):
        model.zero_grad()
        lm_loss(model, ids[:4, :-1], ids[:4, 1:], placement).mean.backward()
        flat = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
        assert not flat, placement
    metrics = {r["metric"] for r in stream_records(model, ids[:, :-1], ids[:, 1:], 0)}
    assert {"rms_stream", "cos_stream", "lens_ce"} <= metrics
    assert bool(list(branch_records(model, ids[:, :-1], 0))) == ("router" not in name)


def test_a_router_starts_flat_and_from_the_blocks_of_a_stack():
    routed, stack = (residual_lm(executor(router=r, n_layers=4, d_model=8, n_heads=2), 7, 9, seed=5) for r in ("softmax", "none"))
    mine, theirs = dict(routed.named_parameters()), dict(stack.named_parameters())
    assert all(torch.equal(mine[n.replace("layers", "layers.0.blocks")], p) for n, p in theirs.items())
    assert {n: p.tolist() for n, p in mine.items() if "routes" in n} == {f"layers.{i}.routes": [0.] * 4 for i in range(4)}
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert count(routed) - count(stack) == 16 and count(residual_lm(executor(router="sum", n_layers=4, d_model=8, n_heads=2), 7, 9)) == count(stack)


def test_a_mean_over_the_whole_sequence_shows_the_future():
    "The source's fault is there, and causality notices it; the same without it is causal (above)."
    model, w = built(mean_sink(sink_leaks=True, **SIZES))
    whole, other = model(IDS)[0], IDS.clone()
    torch.testing.assert_close(whole, R.stacked(w, IDS, 2, partial(R.mean_sink, leaks=True)), rtol=1e-10, atol=1e-10)
    other[:, 3:] = (other[:, 3:] + 1) % 7
    assert not torch.allclose(model(other)[0][:, :3], whole[:, :3]) and not torch.allclose(whole, R.stacked(w, IDS, 2, R.mean_sink))
    with pytest.raises(ValueError, match="own='delete' takes one out: use own='keep'"): residual_lm(mean_sink(own="delete", **SIZES), 7, 9)


def test_a_sink_is_learned_or_not():
    model, fixed = (residual_lm(vanilla(sink=True, sink_kind=kind, sink_fill=.7, **SIZES), 7, 9) for kind in ("learned", "fixed"))
    assert {n for n, _ in model.named_parameters()} - {n for n, _ in fixed.named_parameters()} == {"layers.0.attn.sink", "layers.1.attn.sink"}
    assert torch.equal(model(IDS)[0], fixed(IDS)[0]) and not any("sink" in n for n in fixed.state_dict())
    assert fixed.double().layers[0].attn.sink.dtype == torch.float64 and not fixed.layers[0].attn.sink.requires_grad


@pytest.mark.parametrize("fields", [dict(), dict(share="qkv"), dict(share="all"), dict(router="softmax"), dict(mid="double"), dict(values=False)], ids=str)
def test_keys_start_as_the_opposite_of_queries(fields):
    "W_Q is one less than it would be, W_K its negative, in every layer; all else starts as it would."
    plain, other = (residual_lm(BlockConfig(keys=keys, **fields, **SIZES), 7, 9, seed=3) for keys in ("apart", "opposite"))
    for (n, p), q in zip(plain.named_parameters(), other.parameters(), strict=True):
        if not n.endswith("qkv.weight"): assert torch.equal(p, q)
        else: assert torch.equal(q[:8], p[:8] - 1) and torch.equal(q[8:16], 1 - p[:8]) and torch.equal(q[16:], p[16:])


def test_a_gate_starts_open_where_keys_oppose_queries():
    "17-reinit: with a fixed logit of 2 log n and such keys nearly all of the stream passes; at the first token half does or more."
    gates = {}
    for keys in ("apart", "opposite"):
        model, taps = residual_lm(sink_gate_mix(keys=keys, sink_kind="fixed", sink_growth=2., unbiased=("qkv",), n_layers=1, d_model=64, n_heads=2), 7, 64, std=.07), []
        model.streams(torch.arange(64)[None] % 7, tap=taps.append)
        gates[keys] = taps[0].g[0, :, 0]
    assert gates["opposite"][0] > gates["apart"][0] + .01 and gates["opposite"][-1] > .98


def test_a_program_is_drawn_at_its_scale():
    model, plain = (residual_lm(vanilla(program_std=std, n_layers=1, d_model=512, n_heads=4), 7, 9, seed=2) for std in (.5, 0.))
    more = dict(model.named_parameters())
    assert abs(more.pop("positions.program.weight").std() / .5 - 1) < .05 and all(torch.equal(p, more[n]) for n, p in plain.named_parameters())


@pytest.mark.parametrize("n, std", [(1, .02), (8, 1.), (32, 5.)])
def test_prefixes_are_drawn_at_their_scale(n, std):
    model = residual_lm(vanilla(prefix=n, prefix_std=std, n_layers=1, d_model=512, n_heads=4), 7, 9)
    assert isinstance(model, PrefixedLM) and model.prefix.shape == (n, 512) and abs(model.prefix.std() / std - 1) < .1
    plain = residual_lm(vanilla(n_layers=1, d_model=512, n_heads=4), 7, 9)
    assert sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters()) == n * 512
    counted = residual_lm(vanilla(prefix=n, prefix_positions=True, n_layers=1, d_model=512, n_heads=4), 7, 9)
    assert len(counted.positions.weight) == 9 + n and counted(IDS.repeat(1, 2)[:, :9])[0].isfinite().all()


@pytest.mark.parametrize("measure, config, block", [*((m, vanilla(**SIZES), R.vanilla) for m in DRIFT), ("cosine", no_skip(**SIZES), R.no_skip), ("max", no_skip(share="all", **SIZES), R.no_skip),
                                                    ("l2", sink_gate_mix(**SIZES), R.sink_gate_mix)], ids=[*DRIFT, "no skip", "no skip, shared", "gate"])
def test_idempotence_equals_its_reference(config, block, measure):
    "Loss and gradients, and rows taken in parts add up to the whole."
    model, w = built(config)
    learner, labels = Learner(model, torch.optim.SGD(model.parameters(), lr=1.)), (IDS + 3) % 7
    loss = IdempotenceLoss(weight=.3, measure=measure)(learner, IDS, labels)
    wanted = R.idempotence(w, IDS, labels, 2, block, R.DRIFTS[measure], .3)
    torch.testing.assert_close(loss.mean, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(loss.report / loss.count, R.idempotence(w, IDS, labels, 2, block, R.DRIFTS[measure], 0.).detach(), rtol=1e-10, atol=1e-10)
    params = dict(model.named_parameters())
    for n, *both in zip(params, *(torch.autograd.grad(y, list(params.values()), retain_graph=True) for y in (loss.mean, wanted))): torch.testing.assert_close(*both, rtol=1e-8, atol=1e-9, msg=lambda m: f"{n}: {m}")
    parts = [IdempotenceLoss(weight=.3, measure=measure)(learner, IDS[i:i+1], labels[i:i+1]) for i in (0, 1)]
    torch.testing.assert_close(sum(p.total for p in parts), loss.total, rtol=1e-10, atol=1e-10)
