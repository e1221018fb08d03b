"""python tests/compiled.py BACKEND [all]: layers and models as one graph beside themselves; prints the largest error ratio of each, or what kept it from being one graph. Layers: one of each module, or all, each also with documents in its rows. In a process of its own, because pytest has all shapes checked, by code that is not to be traced."""
import json
import sys
import warnings
from dataclasses import replace

import torch
from memlab.nn.checks import error_ratio
from memlab.nn.init import init_parameters
from memlab.nn.mixer_lm import MIXERS, MixerLMConfig, mixer_config
from memlab.nn.pythia import PythiaConfig

SMALL = {n: dict(chunk=4) for n in MIXERS if n != 'baseconv'} | dict(ttt=dict(mini_batch=4), attention=dict(rope=True, window=6), unified_kv=dict(rope=True))
OF_MODULES = list({config.__module__: name for name, config in MIXERS.items()}.values())   # mixers of one module share their forms
MODELS = dict(mixers=lambda: MixerLMConfig(vocab_size=11, mixers=tuple(mixer_config(n, d_model=16, **SMALL[n]) for n in ('gated_delta', 'attention'))).build(),
              pythia=lambda: PythiaConfig(vocab_size=11, d_model=16, n_layers=1, n_heads=2, intermediate=16).build())


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def everything(run, layer, x, state, starts):
    "Outputs, the state after them, and the gradients of input, weights and state."
    leaves = {n: u.detach().clone().requires_grad_() for n, u in state.tensors().items() if u.is_floating_point()}
    x = x.clone().requires_grad_()
    y, end = run(x, replace(state, **leaves), starts)
    value = sum((u * normal(*u.shape, seed=3)).sum() for u in (y, *end.tensors().values()) if u.is_floating_point())
    wanted = [x, *leaves.values(), *layer.parameters()]
    return [y, *end.tensors().values(), *(g for g in torch.autograd.grad(value, wanted, allow_unused=True) if g is not None)]


def of_layer(name, compiled, packed):
    layer = init_parameters(mixer_config(name, d_model=16, **SMALL.get(name, {})).build(), 0, std=.3)
    with torch.no_grad(): _, state = layer(normal(2, 5, 16, seed=1))
    starts = torch.arange(18).view(2, 9) % 5 == 3 if packed else None
    return [everything(run, layer, normal(2, 9, 16), state, starts) for run in (compiled(layer), layer)]


@torch.no_grad()
def of_model(name, compiled, packed):
    "Logits, and the memory after them; with documents in the rows where they are asked for."
    model, ids = MODELS[name](), torch.arange(18).view(2, 9) % 11
    _, memory = model(ids[:, :4])
    both = [run(ids, memory, ids % 5 == 3 if packed else None) for run in (compiled(model), model)]
    return [[y, *(u for s in after for u in s.tensors().values())] for y, after in both]


def trial(pair, backend):
    torch._dynamo.reset()
    try: got, want = pair(lambda module: torch.compile(module, fullgraph=True, backend=backend))
    except Exception as error: return repr(error)[:2000]
    if [(a.dtype, a.shape) for a in got] != [(b.dtype, b.shape) for b in want]: return 'other dtypes or shapes'
    return max(error_ratio(a, b) if b.any() else a.double().abs().sum().item() for a, b in zip(got, want))


if __name__ == '__main__':
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    kinds = [(n, packed) for n in MIXERS for packed in (False, True)] if 'all' in sys.argv else [(n, n == 'ttt') for n in OF_MODULES]
    pairs = {n + ', documents' * packed: lambda compiled, n=n, packed=packed: of_layer(n, compiled, packed) for n, packed in kinds}
    pairs |= {f'model of {n}': lambda compiled, n=n: of_model(n, compiled, packed=n == 'mixers') for n in MODELS}
    print(json.dumps({name: trial(pair, sys.argv[1]) for name, pair in pairs.items()}))
