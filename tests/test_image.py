"Image memory: shapes, what may reach what, cached generation, tokenizers, gradients, measures on planted answers, and a run from start to end."
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from memlab.core.draw import generator_of
from memlab.data.cifar import load_pictures, or_digits
from memlab.data.image_task import Encoded, ImageTask
from memlab.data.patches import enlarged, fit_tokenizer
from memlab.eval.image import ConvProbe, Errors, agreements, conflict_of, errors, forced_latents, free_latents, memory_for, other_class, swapped
from memlab.eval.image_measures import ImageControl, ImageErrors, ImageSamples
from memlab.lab.arm import Arm, execute
from memlab.nn.heads import HEADS, Guidance
from memlab.nn.image import CodePriorConfig, ImageConfig, check_given, generate_latents, sample_codes, under
from memlab.nn.sketch import INJECTIONS, Dropout
from memlab.train.image import ImageLoss, ImagePair, WithPrior, draws_of
from memlab.train.learner import Learner
from memlab.train.loop import FitConfig, fit
from memlab.train.optim import AdamWConfig

N, WIDTH, CODE = 9, 3, 2
SMALL = ImageConfig(grid=3, width=WIDTH, sketch_width=CODE, n_layers=2, d_model=32, n_heads=2)
KINDS = [(word, full) for word in INJECTIONS for full in (False, *([True] if "cross" in word else []))]


def problem(rows=3, seed=0, dtype=torch.float32):
    draw = lambda *s: torch.randn(*s, generator=generator_of("image problem", seed, *s)).to(dtype)
    return draw(rows, N, WIDTH), draw(rows, N, CODE), torch.arange(rows) % 10


def built(dtype=torch.float32, **fields):
    return replace(SMALL, **fields).build(0).to(dtype).requires_grad_(False)


# -- models -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("word, full", KINDS)
def test_what_may_reach_what(word, full):
    "Latent j reaches later slots only; code j reaches what its injection allows; to the bit."
    model, (x, m, y) = built(torch.float64, injection=word, full=full), problem(dtype=torch.float64)
    plain = model(x, m, y)
    for j in (0, 4, N - 1):
        def moved(which):
            x2, m2 = x.clone(), m.clone()
            (x2 if which == "latent" else m2)[:, j] += 1
            return (model(x2, m2, y) != plain).flatten(2).any(2).any(0).nonzero()[:, 0].tolist()
        assert moved("latent") == list(range(j + 1, N))          # the last latent is never an input
        want = [] if word == "none" else [j] if word == "last" else list(range(N)) if full or word == "prefix" else list(range(j, N))
        assert moved("code") == want, word
    assert plain.shape == (3, N, 32) and model.head.out(plain).shape == x.shape


@pytest.mark.parametrize("word, full, rows", [(*kind, 3) for kind in KINDS] + [("residual", False, 1), ("prefix", False, 1)])
def test_cached_generation_is_uncached_generation(word, full, rows):
    x, m, y = problem(rows)
    told = dict(memory_drop=.2) if word != "none" else {}
    model = built(injection=word, full=full, **told)
    for guidance in (Guidance(), Guidance(s_y=2.), *([Guidance(s_y=1.5, s_m=.5)] if told else [])):
        fast, slow = (generate_latents(model, m, y, guidance=guidance, cached=c) for c in (True, False))
        assert_close(fast, slow, rtol=0, atol=1e-5)
    by_hand = torch.zeros_like(x)                                 # the definition: the teacher-forced model on what it has made so far
    for i in range(N): by_hand[:, i] = model.head.out(model(by_hand, m, y))[:, i]
    assert_close(generate_latents(model, m, y), by_hand, rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_guidance_is_the_sum_of_what_each_way_says(head):
    "Per-condition guidance at the first slot, against three questions asked one by one."
    x, m, y = problem()
    model = built(head=head, memory_drop=.2)
    ask = lambda m, y: model.read(model.inputs(x[:, :0], y), model.begin(m, rows=len(y)))[0][:, -1]
    none, only_y, both = ask(None, y * 0 + 10), ask(None, y), ask(m, y)
    r = lambda: generator_of(0, "latent", 0)
    mixed = model.head.draw(torch.stack([both, only_y, none]), torch.tensor([.5, 1.5 - .5, 1 - 1.5]), r())
    assert_close(generate_latents(model, m, y, guidance=Guidance(s_y=1.5, s_m=.5))[:, 0], mixed, rtol=0, atol=1e-5)
    if head == "mse": assert_close(mixed, model.head.out(none) + 1.5 * (model.head.out(only_y) - model.head.out(none)) + .5 * (model.head.out(both) - model.head.out(only_y)), rtol=0, atol=1e-5)


def test_the_only_memory_model_is_as_good_free_as_taught_and_one_without_ignores_it():
    x, m, y = problem()
    for word in ("residual", "input", "prefix"):
        only = built(injection=word, context=False)
        assert torch.equal(only(x, m, y), only(-x, m, (y + 1) % 10))
        assert_close(generate_latents(only, m, y), only.head.out(only(x, m, y)), rtol=0, atol=1e-6)
    none = built(injection="none")
    assert torch.equal(none(x, m, y), none(x, -m, y)) and torch.equal(generate_latents(none, m, y), generate_latents(none, None, y))


@pytest.mark.parametrize("word", [w for w in INJECTIONS if w != "none"])
def test_the_projection_of_the_sketch_learns_unless_it_is_frozen(word):
    x, m, y = problem()
    for frozen in (False, True):
        model = replace(SMALL, injection=word, frozen=frozen).build(0)
        model.head.loss(model(x, m, y), x, None).mean().backward()
        assert (model.sketch.weight.grad is None) == frozen
        if not frozen: assert model.sketch.weight.grad.abs().sum() > 0


def test_the_class_slot_may_be_silent():
    x, m, y = problem()
    loud, silent = built(injection="none"), built(injection="none", class_slot="zero")
    a, b = ([layer.attn.project(h, torch.arange(N)[None], h)[1][:, 0].abs().sum() for layer in model.core.layers] for model, h in ((loud, torch.ones(1, N, 32)), (silent, torch.ones(1, N, 32))))
    assert all(u > 0 for u in a) and all(u == 0 for u in b)
    assert not torch.allclose(silent(x, m, y)[:, 1:], loud(x, m, y)[:, 1:])


def test_rules_that_hold_at_inference_only():
    x, m, y = problem()
    model = built()
    assert torch.equal(under(model, context=False)(x, m, y), built(context=False)(x, m, y))
    assert not torch.equal(under(model, injection="normed")(x, m, y), model(x, m, y))
    assert under(model, injection="normed").config.injection == "normed"


def test_the_prior_reads_no_later_code_and_no_row_of_another():
    prior = CodePriorConfig(grid=3, codes=5).build(0)
    ids, y = torch.randint(5, (2, N), generator=generator_of("ids")), torch.tensor([1, 2])
    other = ids.clone(); other[0, 4] = (other[0, 4] + 1) % 5
    a, b = (prior(prior.words(y, u[:, :-1]))[0] for u in (ids, other))
    assert torch.equal(a[0, :5], b[0, :5]) and not torch.equal(a[0, 5:], b[0, 5:]) and torch.equal(a[1], b[1])
    drawn = sample_codes(prior, y, guidance=2., seed=3)
    assert drawn.shape == (2, N) and 0 <= int(drawn.min()) and int(drawn.max()) < 5 and torch.equal(drawn, sample_codes(prior, y, guidance=2., seed=3))


def test_a_row_without_its_memory_hears_nothing_of_it():
    "When it is generated, under guidance too, and as a context of training."
    x, m, y = problem()
    told = torch.tensor([True, False, True])
    for word in ("residual", "prefix", "last_cross"):
        model = built(injection=word, memory_drop=.2)
        for guidance in (Guidance(), Guidance(s_y=1.5, s_m=.5)):
            a, b = (generate_latents(model, u, y, guidance=guidance, told=told) for u in (m, m + 1))
            assert torch.equal(a[1], b[1]) and not torch.equal(a[0], b[0]) and not torch.equal(a[2], b[2]), word
            assert_close(a[[0, 2]], generate_latents(model, m, y, guidance=guidance)[[0, 2]], rtol=0, atol=1e-5)
        a, b = (ImageLoss(taught=.3).context(model, x, u, y, told, draws_of(0)) for u in (m, m + 1))
        assert torch.equal(a[1], b[1]) and not torch.equal(a[0], b[0])


def test_a_forward_pass_looks_at_no_value():
    "On a device without values: whoever looked at one would stop there, as training would wait on a real one."
    x, m, y = (u.to("meta") for u in problem())
    assert built().to("meta")(x, m, y).shape == (3, N, 32)
    with pytest.raises(ValueError, match="label 11: this model has classes 0 to 9, and 10 for none"): generate_latents(built(), problem()[1], problem()[2] + 10)
    with pytest.raises(ValueError, match="label 11: this model has classes 0 to 9, and 10 for none"): sample_codes(CodePriorConfig(grid=3, codes=5).build(0), torch.tensor([11]))
    with pytest.raises(ValueError, match="the task has 10 classes, the model 4: build one with as many"): ImageLoss().carry(built(classes=4), ImageTask(), 0)


# -- bad input --------------------------------------------------------------------------------------------------------

def test_bad_input_says_what_came_and_what_to_do():
    x, m, y = problem()
    with pytest.raises(ValueError, match="no labels: give every row a class from 0 to 9, or 10 for none"): check_given(SMALL, m, None)
    with pytest.raises(ValueError, match=r"a memory of shape \(3, 4, 2\), this model reads \(3, 9, 2\): it is of another grid or codebook"): check_given(SMALL, m[:, :4], y)
    with pytest.raises(ValueError, match=r"a memory of shape \(3, 9, 3\), this model reads \(3, 9, 2\)"): check_given(SMALL, x, y)
    with pytest.raises(ValueError, match="train with memory_drop above 0, or leave s_m out"): generate_latents(built(), m, y, guidance=Guidance(s_m=2.))
    with pytest.raises(ValueError, match="train with class_drop above 0, or leave s_y=1"): generate_latents(built(class_drop=0.), m, y, guidance=Guidance(s_y=2.))
    with pytest.raises(ValueError, match="8 pixels are not divided by patch=3: choose a divisor"): ImageTask(patch=3).tokenizer()
    tokenizer = ImageTask().tokenizer()
    with pytest.raises(ValueError, match="it is of another grid"): tokenizer.lookup(torch.zeros(1, 9, dtype=torch.long))
    with pytest.raises(ValueError, match="code 4 is not in the codebook of 4: the memory is of another codebook"): tokenizer.lookup(torch.full((1, 16), 4))


def test_dropout_is_rounded_and_never_everything():
    with pytest.raises(ValueError, match="a dropout of 0.999 is 256/256 when rounded to 1/256: at least 0 and at most 255/256 can be dropped"): Dropout(.999)
    most = Dropout(.997)(torch.ones(100_000))
    assert most.isfinite().all() and set(most.unique().tolist()) == {0., 256.}
    assert torch.equal(Dropout(.001)(most), most)


def test_samples_want_two_draws_and_a_memory_that_there_is():
    for draws in (0, 1):
        with pytest.raises(ValueError, match=f"draws={draws}: expected a whole number of at least 2"): ImageSamples(draws=draws)
    for measure in (ImageSamples, ImageErrors):
        with pytest.raises(ValueError, match="memory 'past': expected one of .'true', 'noised'"): measure(memory="past")


def test_texts_are_no_booleans():
    "In a process whose annotations nobody checks, as users have it."
    code = "from memlab.nn.image import ImageConfig\ntry: ImageConfig(grid=3, width=3, sketch_width=2, frozen='False')\nexcept ValueError as e: print(e)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "frozen='False': expected True or False (a text counts as true, whatever it says)" in said.stdout, said.stderr


# -- data -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("upsample, positions", [(1, 16), (2, 64), (4, 256)])
def test_digits_decode_exactly_and_are_standardised(upsample, positions):
    task = ImageTask(upsample=upsample, codes=2)
    tokenizer, train = task.tokenizer(), task.part("train")
    z, rows = train.z, load_pictures("digits").train
    assert z.shape == (1197, positions, 4) and task.positions == positions
    assert_close(tokenizer.decode(z), enlarged(rows.pixels, upsample), rtol=0, atol=1e-5)
    assert z.flatten(0, 1).mean(0).abs().max() < .02 and ((z.flatten(0, 1).var(0) - 1).abs() < .05).all()


def test_memory_is_the_same_on_the_training_and_the_sampling_path():
    task = ImageTask()
    tokenizer, train = task.tokenizer(), task.part("train")
    z, ids, m, _ = task.batches(0)(3)
    at = [int((train.z == row).all(-1).all(-1).nonzero()[0]) for row in z]
    assert torch.equal(tokenizer.quantise(tokenizer.encode(load_pictures("digits").train.pixels[at])), ids)
    assert torch.equal(tokenizer.lookup(ids), m)


def test_cifar_from_local_parquet(shared_data):
    if not (shared_data / "cifar10").is_dir(): pytest.skip("no ../shared/data/cifar10 here")
    name = str(shared_data / "cifar10")
    parts = load_pictures(name, most=400)
    assert [len(p) for p in (parts.train, parts.validation, parts.test)] == [360, 40, 400] and parts.test.pixels.shape[1:] == (32, 32, 3)
    task = ImageTask(images=name, patch=4, width=16, codes=16, most=400)
    tokenizer, z = task.tokenizer(), task.part("train").z
    assert z.shape == (360, 64, 16) and task.part("test").ids.max() < 16 and task.classes == 10
    assert_close(z.flatten(0, 1).T.cov(), torch.eye(16), rtol=0, atol=.01)
    near = (tokenizer.decode(z) - parts.train.pixels).square().mean() / parts.train.pixels.var()
    assert near < .05                                              # sixteen components keep most of a patch
    whole = fit_tokenizer(parts.train, patch=4, codes=2, width=48)
    assert_close(whole.decode(whole.encode(parts.test.pixels[:20])), parts.test.pixels[:20], rtol=0, atol=1e-4)


def test_without_a_network_digits_take_their_place_and_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)             # not installed
    with pytest.warns(UserWarning, match="pip install 'memlab.hub.'.*The digits of scikit-learn take their place"): assert or_digits("hub:uoft-cs/cifar10") == "digits"


# -- measures ---------------------------------------------------------------------------------------------------------

def test_measures_at_the_extremes():
    task = ImageTask()
    tokenizer, train, test = task.tokenizer(), task.part("train"), task.part("test")
    swap, partner = swapped(300), other_class(test.labels)
    follows = agreements(tokenizer, test.m, test.m[swap], test.ids, swap)
    assert (follows.a, follows.swap, follows.gain) == (1, 1, 1) and 0 < follows.base < 1
    assert abs(agreements(tokenizer, train.z[:300], train.z[300:600], test.ids, swap).gain) < .06
    probe = ConvProbe(tokenizer.decode(train.z), train.labels)
    shown = lambda z: probe.classify(tokenizer.decode(z))
    knows = float((shown(test.m) == test.labels).float().mean())
    said = conflict_of(shown(test.m[partner]), test.labels, partner)
    assert said.memory == pytest.approx(knows) and said.label < .1
    assert conflict_of(shown(test.z), test.labels, partner).label >= .95
    flat = Errors(torch.full((16,), .5), torch.ones(16))
    assert (flat.gap, flat.drift) == (2, 1)


def test_sampled_memory_is_made_of_labels_alone():
    task = ImageTask()
    tokenizer, test = task.tokenizer(), task.part("test")[:20]
    prior = CodePriorConfig(grid=4, codes=4, n_layers=1).build(0)
    blind = Encoded(test.z * torch.nan, test.ids - 9, test.m * torch.nan, test.labels)
    assert torch.equal(memory_for("sampled", blind, tokenizer, prior), memory_for("sampled", test, tokenizer, prior))


def test_errors_are_those_of_the_definition():
    task = ImageTask()
    test = task.part("test")[:7]
    model = ImageConfig(grid=4, width=4, sketch_width=4, n_layers=1, d_model=32, n_heads=2).build(0)
    e = errors(model, test)
    var = test.z.flatten(0, 1).var(0).mean()
    with torch.no_grad(): taught = model.head.out(model(test.z, test.m, test.labels))
    assert_close(e.forced, torch.stack([(taught[:, i] - test.z[:, i]).square().mean() for i in range(16)]) / var)
    assert_close(e.free.mean(), (free_latents(model, test.m, test.labels) - test.z).square().mean() / var)
    assert_close(forced_latents(model, test.z, test.m, test.labels), taught)


# -- runs -------------------------------------------------------------------------------------------------------------

def arm(steps=8, **loss):
    model = ImageConfig(grid=4, width=4, sketch_width=4, n_layers=1, d_model=32, n_heads=2, memory_drop=.1)
    measures = ImageErrors(rows=20, positions=False), ImageControl(rows=20), ImageSamples(rows=20, memory="sampled", draws=2, item="sampled")
    return Arm(name="small", task=ImageTask(rows=32), model=ImagePair(model=model, prior=CodePriorConfig(grid=4, codes=4, n_layers=1, d_model=32, n_heads=2)),
               train=FitConfig(steps=steps, log_every=4, objective=WithPrior(**loss), optimizer=AdamWConfig(weight_decay=.05)), measures=measures)


def test_an_arm_runs_stops_and_goes_on_to_the_bit(tmp_path):
    whole = execute(arm(noise=.3, memory_noise=.1), 0, tmp_path / "whole", progress=False)
    execute(arm(noise=.3, memory_noise=.1), 0, tmp_path / "cut", progress=False, stop=4)
    cut = execute(arm(noise=.3, memory_noise=.1), 0, tmp_path / "cut", progress=False)
    assert whole.status == cut.status == "finished"
    value = lambda o: {(r["metric"], r["item"], r["step"]): r["value"] for r in o.records}
    assert value(whole) == value(cut) and {"nmse_fr", "guidance_gain", "w_mem", "fd_probe"} <= {m for m, _, _ in value(whole)}


def test_arms_of_a_seed_share_every_draw_but_their_own():
    "Whatever else is switched on: the same classes, sketches and latents are dropped, by the same noise; each where a context is true."
    task, base = ImageTask(), dict(noise=.3, context_drop=.2)
    model = ImageConfig(grid=4, width=4, sketch_width=4, n_layers=1, d_model=32, n_heads=2, class_drop=.4, memory_drop=.3, dropout=0.).build(0)
    def read(**more):
        seen = []
        with model.register_forward_pre_hook(lambda _, given: seen.append(given)): ImageLoss(**base | more).loss(model, draws_of(0, "step"), *task.batches(0)(0))
        return seen[-1]
    x, m, y, told = read()
    assert 0 < (y == 10).float().mean() < 1 and 0 < told.float().mean() < 1
    for more in (dict(memory_noise=.5), dict(taught=.5), dict(own=.5)):
        x2, m2, y2, told2 = read(**more)
        assert torch.equal(y2, y) and torch.equal(told2, told) and torch.equal((x2 == 0).all(-1), (x == 0).all(-1)), more
        assert ("memory_noise" in more) == torch.equal(x2, x) != torch.equal(m2, m)
    assert torch.equal(read(taught=.5)[0][:, :8], x[:, :8])


def test_noise_on_the_context_narrows_the_gap():
    "Sixty steps on digits of which neighbours are alike: with noise, free-running errors are nearer to taught ones."
    task, config = ImageTask(upsample=2, codes=2, rows=16), FitConfig(steps=60, optimizer=AdamWConfig(lr=6e-3))
    gaps = []
    for noise in (0., .7):
        model, objective = ImageConfig(grid=8, width=4, sketch_width=4, n_layers=1, d_model=32, n_heads=2, dropout=0.).build(0), ImageLoss(noise=noise)
        learner = Learner(dict(model=model), objective.optimizers(dict(model=model), config), objective.carry(model, task, 0))
        assert fit(learner, task.batches(0), objective.step(config), config).status == "finished"
        gaps.append(errors(model, task.part("test")[:100]).gap)
    assert gaps[0] - 1 > 2 * (gaps[1] - 1) > 0, gaps
