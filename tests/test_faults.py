"""Small inputs that go or went wrong: each test says what must be so; the marked ones still fail."""
import importlib
import inspect
import io
import json
import math
import pickle
import pkgutil
import sys

import nbformat
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import toy
from click.testing import CliRunner
from nbformat.v4 import new_code_cell, new_notebook
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import memlab
from memlab.cli import main
from memlab.data import corpus as corpora
from memlab.data.corpus import Corpus, Document, corpus_fingerprint, load_corpus, split
from memlab.data.facts import load_reversal
from memlab.data.tokens import TokenStore, byte_tokenizer, load_tokenizer
from memlab.eval.perplexity import Perplexity
from memlab.lab import runner
from memlab.nn import delta, linear
from memlab.nn.cells import GRU
from memlab.nn.delta import DeltaNetConfig
from memlab.nn.feedback import FeedbackConfig
from memlab.nn.finite import Finite
from memlab.nn.generate import generate
from memlab.nn.init import init_parameters
from memlab.nn.linear import LinearAttentionConfig
from memlab.nn.lm import residual_lm
from memlab.nn.mixer_lm import MIXERS, MixerLMConfig, mixer_config
from memlab.nn.variants import vanilla
from memlab.train.learner import Learner
from memlab.train.loop import CHECKPOINT, FitConfig, fit_model, resume_run
from memlab.train.losses import linear_cross_entropy, lm_loss
from memlab.train.newton import newton
from memlab.train.optim import AdamWConfig
from memlab.train.schedule import Constant


@pytest.fixture
def home(tmp_path, monkeypatch):
    "An empty tree."
    monkeypatch.setenv('MEMLAB_HOME', str(tmp_path))
    return tmp_path


def reply(call, *unclear):
    "What a call returns, or the ValueError with which it refuses; an error of an `unclear` kind is a failed assertion."
    try: return call()
    except ValueError as error: return error
    except unclear as error: raise AssertionError(f'neither an answer nor a ValueError: {error!r}') from error


def refused(got):
    "Is this reply a refusal?"
    return isinstance(got, ValueError)


def small_lm(vocab_size, mixer='delta'):
    "One layer."
    return MixerLMConfig(vocab_size=vocab_size, mixers=(mixer_config(mixer, d_model=16),)).build()


def store_of(*texts):
    "A store of bytes, a document a text."
    return TokenStore.build(Corpus('x', [Document(f'text {i}', t) for i, t in enumerate(texts)]), byte_tokenizer())


# -- training ---------------------------------------------------------------------------------------------------------

ROWS = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


def square(model, x):
    "A loss for any model."
    o = model(x).square().sum()
    return o, o.detach(), len(x)


def train(model, loss=square, steps=6, clip=1., **more):
    "The same rows in every step."
    torch.manual_seed(1)
    adam = AdamWConfig(lr=1e-2, weight_decay=0.)
    config = FitConfig(steps=steps, optimizer=adam, schedule=Constant(warmup=0), clip=clip)
    return fit_model(model, lambda step: ROWS, loss, config, **more)


def build(*between):
    "Two maps and what stands between them, always the same."
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), *between, nn.Linear(4, 1))


def stopped_and_not(layer, folder):
    "What is in a model that was trained in two halves, and in one that was trained at once."
    halves, whole = build(layer()), build(layer())
    train(build(layer()), folder=folder, save_every=3, stop=3)
    train(halves, folder=folder, save_every=3)
    train(whole)
    return halves.state_dict(), whole.state_dict()


def unlike(a, b):
    "The names under which two models differ."
    return [name for name in a if not torch.equal(a[name], b[name])]


def test_dropout_survives_a_stop(tmp_path):
    "A run with dropout ends the same when it was stopped and resumed, or is refused."
    got = reply(lambda: stopped_and_not(lambda: nn.Dropout(.5), tmp_path))
    assert refused(got) or unlike(*got) == []


def test_buffers_survive_a_stop(tmp_path):
    "A resumed run has the running means of one that was never stopped, or such a model is refused."
    got = reply(lambda: stopped_and_not(lambda: nn.BatchNorm1d(4), tmp_path))
    assert refused(got) or unlike(*got) == []


def test_compiled_and_plain_are_one_model(tmp_path):
    "A run that was trained compiled goes on plain, and the other way round."
    compiled, ends = lambda: torch.compile(build(), backend='eager'), []
    for i, (first, then) in enumerate(((compiled, build), (build, compiled))):
        train(first(), folder=tmp_path/str(i), save_every=3, stop=3)
        end = reply(lambda: train(then(), folder=tmp_path/str(i), save_every=3))
        ends.append(str(end) if refused(end) else end.status)
    assert ends == ['finished']*2


def test_a_missing_folder_is_no_loss_of_work(tmp_path):
    "A folder that does not exist is made, or refused before the first step."
    done = []

    def loss(model, x):
        done.append(1)
        return square(model, x)

    got = reply(lambda: train(build(), loss, folder=tmp_path/'runs'/'a', save_every=5), FileNotFoundError)
    assert done == [] if refused(got) else (got.status, len(done)) == ('finished', 6)


def test_the_last_step_is_saved(tmp_path):
    "A finished run with a folder leaves a checkpoint of its last step."
    result, model = train(build(), steps=7, folder=tmp_path), build()
    saved = resume_run(tmp_path, Learner(model, AdamWConfig().build(model)), FitConfig(steps=7))
    assert (tmp_path/CHECKPOINT).exists() and saved.step == result.step == 7


def test_no_clipping_does_not_freeze():
    "clip=0 switches clipping off or is refused; a run that reports success has learned."
    model, before = build(), build().state_dict()
    got = reply(lambda: train(model, clip=0.))
    assert refused(got) or unlike(before, model.state_dict()) == list(before)


# -- losses -----------------------------------------------------------------------------------------------------------

def test_the_readout_of_bfloat16_has_a_good_gradient():
    "The gradient of a bfloat16 readout, summed over many chunks, is about as good as that of one product."
    r = torch.Generator().manual_seed(0)
    h, w = torch.randn(4096, 16, generator=r).bfloat16(), (torch.randn(512, 16, generator=r)*.02).bfloat16()
    y = torch.randint(200, (4096,), generator=r)

    def slope(loss, w): return torch.autograd.grad(loss(w), w)[0].float()

    exact = slope(lambda w: F.cross_entropy(h.float() @ w.T, y, reduction='sum'), w.float().requires_grad_())
    plain = slope(lambda w: F.cross_entropy((h @ w.T).float(), y, reduction='sum'), w.requires_grad_())
    ours = slope(lambda w: linear_cross_entropy(h, w, y, 16)[0], w)
    assert (ours - exact).norm() <= 2*(plain - exact).norm()


@pytest.mark.parametrize('chunk', [None, 4])
def test_a_label_of_minus_one_is_not_token_0(chunk):
    "A label of -1 is refused or left out, never learned as a token."
    r = torch.Generator().manual_seed(0)
    h, w = torch.randn(6, 8, generator=r), torch.randn(16, 8, generator=r)
    y = torch.tensor([3, -1, 5, -1, 7, -1])
    got = reply(lambda: linear_cross_entropy(h, w, y, chunk)[0])
    assert refused(got) or torch.allclose(got, F.cross_entropy(h @ w.T, y, ignore_index=-1, reduction='sum'))


def test_a_penalty_on_the_gradient_counts():
    "A penalty on the gradient of lm_loss has the gradient that torch's cross-entropy gives it, or is refused."
    model = residual_lm(vanilla(n_layers=1, d_model=8, n_heads=2), 11, 32).double()
    ids = torch.randint(11, (2, 7), generator=torch.Generator().manual_seed(0))
    weights = list(model.parameters())

    def slope(loss):
        first = torch.autograd.grad(loss, weights, create_graph=True, allow_unused=True)
        loss = loss + sum(g.square().sum() for g in first if g is not None)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights, materialize_grads=True)])

    want = slope(F.cross_entropy(model(ids[:, :-1])[0].flatten(0, 1), ids[:, 1:].flatten()))
    try: got = slope(lm_loss(model, ids[:, :-1], ids[:, 1:]).mean)
    except (RuntimeError, ValueError): return  # autograd's own way to refuse
    assert (got - want).norm() <= 1e-6*want.norm()


def normal(*shape):
    "Numbers in double precision that want a gradient."
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


def fed_back():
    "What comes out of a stack with feedback, and its memory."
    stack = FeedbackConfig(max_len=8, n_layers=2, d_model=4, n_heads=1, sees='mixed', std=.5).build(0, 5).double().layers[0]
    return lambda x: sum(u.sin().sum() for y, state in [stack(x)] for u in (y, state.k, state.v)), normal(2, 3, 4)


def at_once():
    "States by Newton's method."
    cell = init_parameters(GRU(3, 3), 0).double()
    return lambda u: newton(cell, u, torch.zeros(2, 4, 3).double(), torch.zeros(3).double(), steps=4)[0].sin().sum(), cell.drive(normal(2, 4, 3)).detach().requires_grad_()


BY_HAND = dict(LinearCrossEntropy=lambda: (lambda h: linear_cross_entropy(h, normal(5, 3).detach(), torch.tensor([0, 3, 4, 1]), 2)[0], normal(4, 3)),
               Finite=lambda: (lambda x: Finite.apply(x).sin().sum(), normal(2, 3)), Write=fed_back, Read=fed_back, Gate=fed_back, Through=at_once)


def classes(of):
    "All that derive from a class."
    return {c for one in of.__subclasses__() for c in {one} | classes(one)}


def test_no_gradient_by_hand_goes_untested():
    for module in pkgutil.walk_packages(memlab.__path__, 'memlab.'):
        if '.studies' not in module.name: importlib.import_module(module.name)
    assert {c.__name__ for c in classes(torch.autograd.Function) if c.__module__.startswith('memlab.')} == BY_HAND.keys()


@pytest.mark.parametrize('name', BY_HAND)
def test_a_gradient_by_hand_has_a_right_second_one_or_says_that_it_has_none(name):
    call, x = BY_HAND[name]()
    found, todo = set(), [call(x).grad_fn]
    while todo:
        if (node := todo.pop()) in found: continue
        found.add(node); todo += [n for n, _ in node.next_functions if n]
    assert f'{name}Backward' in {n.name() for n in found}
    assert torch.autograd.gradcheck(call, x)
    try: assert torch.autograd.gradgradcheck(call, x)
    except RuntimeError as error: assert 'has no second derivative, create_graph=True asks for one' in str(error)


# -- layers and models ------------------------------------------------------------------------------------------------

def test_forgetting_everything_is_a_decay():
    "With a log decay of -inf the forms in chunks give what the loop gives, or refuse it."
    r = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 20, 2, 8, generator=r, dtype=torch.float64) for _ in range(3))
    g, S = torch.full((1, 20, 2), -.1, dtype=torch.float64), torch.zeros(1, 2, 8, 8, dtype=torch.float64)
    g[:, 9], k, beta, wrong = -math.inf, F.normalize(k, dim=-1), torch.full_like(g, .5), []
    for module, args in ((linear, (q, k, v, g[..., None], S)), (delta, (q, k, v, beta, g, S))):
        want = module.FORMS['recurrent'](*args, 8)[0]
        for form in ('chunked', 'parallel'):
            got = reply(lambda: module.FORMS[form](*args, 8)[0])
            if not refused(got) and not torch.allclose(got, want): wrong.append((module.__name__, form))
    assert wrong == []


def test_features_of_zero_have_a_sum():
    "With norms of 'sum' a layer stays finite, or is refused, where a feature map gives only zeros."
    x, wrong = torch.randn(2, 64, 32, generator=torch.Generator().manual_seed(0)), []
    x[:, 3] = 0
    for config, more in ((LinearAttentionConfig, {}), (DeltaNetConfig, dict(conv=0))):
        for kernel in ('relu', 'dpfp'):
            more |= dict(q_kernel=kernel, k_kernel=kernel, q_norm='sum', k_norm='sum')
            layer = reply(lambda: config(d_model=32, n_heads=4, **more).build())
            if refused(layer): continue
            if not init_parameters(layer, 0)(x)[0].isfinite().all(): wrong.append((config.__name__, kernel))
    assert wrong == []


class DoubleOn(TorchDispatchMode):
    "Notes what makes float64 tensors on a device."

    def __init__(self, device):
        super().__init__()
        self.device, self.found = torch.device(device), set()

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and (out.dtype, out.device) == (torch.float64, self.device):
            self.found.add(str(f))
        return out


def test_rotary_positions_need_no_float64():
    "A float32 layer with rotary positions makes no float64 tensor where its input lies: not every device has them."
    layer = mixer_config('attention', d_model=16, rope=True).build().to('meta')
    with DoubleOn('meta') as watch: layer(torch.randn(1, 5, 16, device='meta'))
    assert watch.found == set()


def copies(layer):
    "A layer as pickle and as torch.save give it back."
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    return pickle.loads(pickle.dumps(layer)), torch.load(file, weights_only=False)


def test_every_layer_can_be_pickled():
    "Every layer survives pickle and torch.save."
    x, wrong = torch.randn(1, 5, 16, generator=torch.Generator().manual_seed(0)), {}
    for name, config in MIXERS.items():
        layer = init_parameters(config(d_model=16).build(), 0)
        try: same = all(torch.equal(copy(x)[0], layer(x)[0]) for copy in copies(layer))
        except (AttributeError, pickle.PicklingError) as error: wrong[name] = str(error)
        else: assert same, name
    assert wrong == {}


def test_every_single_number_is_refused_as_rows_of_a_state():
    "state[i] keeps the batch dimension or is refused, whatever kind of integer i is."
    state = DeltaNetConfig(d_model=16).build().init_state(3)
    rows = inspect.unwrap(type(state).__getitem__)  # a check of the annotation would hide what users meet
    for i in (np.int64(1), torch.tensor(1)):
        got = reply(lambda: rows(state, i))
        assert refused(got) or got.S.shape == (1, *state.S.shape[1:]), type(i)


def test_extreme_temperatures():
    "A tiny temperature takes the likeliest token or is refused, and NaN is refused."
    model, ids = small_lm(50), torch.tensor([[1, 2, 3]])
    cold = reply(lambda: generate(model, ids, 3, temperature=1e-40)[0], RuntimeError)
    assert refused(cold) or torch.equal(cold, generate(model, ids, 3)[0])
    assert refused(reply(lambda: generate(model, ids, 3, temperature=math.nan), RuntimeError))


def test_a_token_outside_the_vocabulary_is_named(home):
    "A token without a vector is an error that names it and the vocabulary, wherever it comes in."
    model, ids = small_lm(100), torch.tensor([[5, 122]])
    for call in (lambda: model(ids), lambda: generate(model, ids, 1), lambda: Perplexity().score(model, store_of('z'))):
        said = reply(call, IndexError)
        assert refused(said) and '122' in str(said) and '100' in str(said)


@pytest.mark.filterwarnings('ignore:invalid value encountered')
def test_nothing_to_score_is_said(home):
    "Documents of which no token has a label are refused in words."
    got = reply(lambda: Perplexity(labels_by=9).score(small_lm(256), store_of('ab', 'cd')), RuntimeError)
    assert refused(got) and 'label' in str(got)


# -- text -------------------------------------------------------------------------------------------------------------

def test_a_byte_order_mark_is_no_text(tmp_path):
    "Files that begin with a byte order mark read as if they did not."
    def read(name, text, reader):
        (tmp_path/name).write_text(text, encoding='utf-8-sig')
        return reply(lambda: reader(tmp_path/name))

    text = lambda path: load_corpus(path)[0].text
    assert read('a.txt', 'Hello', text) == 'Hello'
    assert read('a.jsonl', json.dumps(dict(text='Hello')), text) == 'Hello'
    assert read('r.jsonl', json.dumps(dict(prompt='a', completion=' b')), load_reversal) == [('a', ' b')]


def test_an_edited_file_has_another_fingerprint(tmp_path):
    "The fingerprint by which runs are known is that of the text as it is now."
    (file := tmp_path/'x.txt').write_text('first')
    before = corpus_fingerprint(str(file))
    file.write_text('second')
    assert corpus_fingerprint(str(file)) == load_corpus(file).fingerprint != before


def test_hidden_copies_are_not_read(tmp_path):
    "A folder does not yield the copies that editors hide in it, so none stands on both sides of a split."
    (hidden := tmp_path/'.ipynb_checkpoints').mkdir()
    for i in range(40):
        for file in (tmp_path/f'{i}.txt', hidden/f'{i}-checkpoint.txt'): file.write_text(f'text number {i}')
    corpus = load_corpus(tmp_path)
    seen, held = ({d.text for d in side.documents} for side in split(corpus, .3))
    assert len(corpus) == 40 and not seen & held


def test_what_macos_leaves_beside_a_file_is_not_read(tmp_path):
    "A resource fork, ._name, does not stop a folder from being read."
    (tmp_path/'x.txt').write_text('hello')
    (tmp_path/'._x.txt').write_bytes(b'\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X\xb0\xff')
    got = reply(lambda: load_corpus(tmp_path))
    assert not refused(got) and [d.title for d in got.documents] == ['x.txt'], got


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch):
    "Python's own text is read without a cache, or the error says that MEMLAB_HOME chooses another place."
    (tmp_path/'file').touch()
    monkeypatch.setenv('MEMLAB_HOME', str(tmp_path/'file'/'home'))
    monkeypatch.setitem(corpora.EMBEDDED, 'stdlib-docs', lambda: [Document('abs', 'The absolute value.')])
    try: assert load_corpus('stdlib-docs')[0].title == 'abs'
    except (OSError, ValueError) as error: assert 'MEMLAB_HOME' in str(error)


def word_tokenizer(path):
    "A tokenizer that knows one word and has no token for others."
    words = Tokenizer(models.WordLevel({'hello': 0}, unk_token='[UNK]'))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(['</s>'])
    words.save(str(path))
    return load_tokenizer(path)


def test_a_document_that_cannot_be_encoded_is_named(home):
    "An error of the tokenizer names the document, for an unknown word as for half of a surrogate pair."
    bpe = load_tokenizer('bpe:260', Corpus('c', [Document('x', 'the cat sat on the mat '*9)]))
    for tokenizer, text in ((word_tokenizer(home/'tokenizer.json'), 'hello strange'), (bpe, 'a\ud800b')):
        corpus = Corpus('k', [Document('fine', 'hello'), Document('culprit', text)])
        said = reply(lambda: TokenStore.build(corpus, tokenizer), Exception)  # the package raises no narrower one
        assert refused(said) and 'culprit' in str(said)


# -- command line and notebooks ---------------------------------------------------------------------------------------

def test_a_wrong_number_on_the_command_line_is_named(home):
    "A number that cannot be is answered with a message that names the option, not with a traceback."
    sizes = '--dim 16 --n-layers 1 --steps 2 --num-kv-pairs 4 --input-seq-len 32 --vocab-size 64'
    for option, value in (('--batch-size', '0'), ('--lr', '-1'), ('--lr', 'nan')):
        done = CliRunner().invoke(main, ['train', 'mqar', *sizes.split(), option, value])
        assert isinstance(done.exception, SystemExit) and done.exit_code, (option, value, done.exception)
        assert option.strip('-').split('-')[0] in done.output.splitlines()[-1]


def test_the_scoreboard_needs_no_ticks(home):
    "The scoreboard prints where the encoding has no ticks, as on a console of Windows."
    study = toy.make(seeds=range(5))
    study.run('cpu', progress=False)
    assert set(study.verdicts('cpu').verdict) == {'supported'}
    done = CliRunner(charset='cp1252').invoke(main, ['scoreboard'])
    assert done.exception is None and 'T1' in done.output, done.exception


def notebook(home, *cells):
    "Write the notebook of study toy; the first cell holds the parameters."
    (home/'settings.ini').write_text('[DEFAULT]\ntimeout_quick = 120\n')
    (home/'nbs'/'studies').mkdir(parents=True)
    cells = [new_code_cell(c, metadata={} if i else dict(tags=['parameters'])) for i, c in enumerate(cells)]
    kernel = dict(name='python3', display_name='python3', language='python')
    nbformat.write(new_notebook(cells=cells, metadata=dict(kernelspec=kernel)), runner.notebook_file('toy'))


def test_a_parameter_that_cannot_be_stamped_costs_no_run(home, monkeypatch):
    "A parameter that cannot be stamped is refused before the notebook runs, not after."
    notebook(home, 'preset = "quick"\nx = None')
    ran = []

    def run(file, output, *rest):
        ran.append(file)
        output.write_bytes(file.read_bytes())

    monkeypatch.setattr(runner, '_papermill', run)
    got = reply(lambda: runner.execute('toy', 'quick', dict(x=math.inf)))
    assert not refused(got) or ran == [], got


def foreign_kernel(folder):
    "A kernel python3 that finds another memlab first; returns where that one lies."
    (kernel := folder/'kernels'/'python3').mkdir(parents=True)
    (package := folder/'other'/'memlab').mkdir(parents=True)
    (package/'__init__.py').write_text('__version__ = "another"\n')
    start = [sys.executable, '-m', 'ipykernel_launcher', '-f', '{connection_file}']
    spec = dict(argv=start, display_name='python3', language='python', env=dict(PYTHONPATH=str(package.parent)))
    (kernel/'kernel.json').write_text(json.dumps(spec))
    return package.parent


def test_a_notebook_runs_with_the_memlab_that_executes_it(home, monkeypatch):
    "A kernel of the same name with another memlab is not used, or it is an error that speaks of it."
    notebook(home, 'preset = "quick"', 'import memlab; print("ran with", memlab.__version__)')
    other = foreign_kernel(home/'jupyter')
    monkeypatch.setenv('JUPYTER_PATH', str(home/'jupyter'))
    try: text = runner.execute('toy', 'quick').read_text()
    except (ValueError, RuntimeError) as error: assert 'kernel' in str(error) or str(other) in str(error)
    else: assert 'ran with another' not in text
