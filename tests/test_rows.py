"Every run of the source's later series is a point of the grammar: its equation and its size."
from dataclasses import replace

import pytest
import references as R
import rows as W
import torch
from memlab.nn.blocks import BlockConfig, ResidualBlock
from memlab.nn.lm import residual_lm
from memlab.nn.variants import VARIANTS


def point(run, **sizes):
    "The config of a run, at a size."
    name, fields = W.ROWS[run]
    return replace(VARIANTS[name]() if name in VARIANTS else BlockConfig(**W.EQUATIONS[name][0]), **sizes | fields)


@pytest.mark.parametrize("run", W.ROWS)
def test_a_block_is_the_equation_of_its_run(run):
    "In float64, with every parameter drawn from N(0, 0.4), gains from N(1, 0.4); sinks that grow are in test_blocks."
    config = replace(point(run), d_model=8, n_heads=2, rank=3, sink_growth=0.)
    block, g = ResidualBlock(config).double(), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for n, p in block.named_parameters(): p.copy_(.4 * torch.randn(p.shape, generator=g, dtype=torch.float64) + ("norm" in n and n.endswith("weight")))
    w = {n: p.detach() for n, p in block.named_parameters()}
    if config.frozen != "none": w["attn.qkv.weight"] = block.attn.qkv.weight.detach()
    r, (name, _) = torch.randn(2, 4, 8, generator=g, dtype=torch.float64), W.ROWS[run]
    want = R.REFERENCES[name](w, r, 2, R.rms_norm if config.norm == "rms" else R.layer_norm) if name in VARIANTS else W.EQUATIONS[name][1](w, r, 2)
    with torch.no_grad(): torch.testing.assert_close(block(r)[0], want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("run", W.LOGGED)
def test_a_model_has_as_many_parameters_as_its_run(run):
    with torch.device("meta"): model = residual_lm(point(run, n_layers=12, d_model=768, n_heads=12), 50304, 1024)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == W.LOGGED[run] - W.MORE.get(run, 0)


def test_equations_are_those_of_runs(): assert set(W.EQUATIONS) | set(VARIANTS) >= {name for name, _ in W.ROWS.values()} >= set(W.EQUATIONS)
