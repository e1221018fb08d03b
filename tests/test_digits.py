"""Digits as a task: what is held out, in which order batches come, images from files like the hub's; and the classifier that reads them."""
import io
import sys
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from memlab.data.digits import Digits, load_images, sides
from memlab.data.turns import InTurn, Together
from memlab.nn.mlp import MLPConfig
from memlab.train.learner import Learner
from memlab.train.loop import FitConfig, fit
from memlab.train.objectives import ClassLoss
from memlab.train.optim import AdamWConfig

TASK = Digits(samples=1400, rows=100)
keys = lambda pixels: [row.numpy().tobytes() for row in pixels]


def epoch(task, seed, number):
    return [task.batches(seed)(number * task.steps_per_epoch + i) for i in range(task.steps_per_epoch)]


def pictures(n=30, size=28, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (n, size, size)).astype(np.uint8), np.arange(n) % 10


def png(x):
    out = io.BytesIO()
    Image.fromarray(x).save(out, 'PNG')
    return dict(bytes=out.getvalue(), path='x.png')


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_the_embedded_digits_are_those_of_scikit_learn():
    found, theirs = load_images('digits'), load_digits()
    assert np.array_equal(found.pixels.numpy() * 16, theirs.data.astype(np.float32)) and found.labels.tolist() == theirs.target.tolist()


def test_what_is_held_out_is_fixed_and_in_no_batch():
    s = sides('digits')
    assert len(s.learned) + len(s.held) == 1797 and len(s.held) == 359
    assert sorted(keys(torch.cat([s.learned.pixels, s.held.pixels]))) == sorted(keys(load_images('digits').pixels))
    held = keys(TASK.held_out().pixels)
    for seed in (0, 1): assert not set(held) & {k for x, _ in epoch(TASK, seed, 0) for k in keys(x)}
    assert set(TASK.held_out().labels.tolist()) == set(range(10))


@pytest.mark.parametrize('rows', [100, 175, 200], ids=['14 batches', '8 batches', '7 batches'])
def test_every_image_once_an_epoch_in_its_order(rows):
    task = replace(TASK, rows=rows)
    want = keys(task.training().pixels)
    for seed, number in ((0, 0), (0, 1), (3, 2)):
        got = [k for x, y in epoch(task, seed, number) for k in keys(x)]
        assert sorted(got) == sorted(want) and got != want
        assert [k for x, _ in epoch(replace(task, shuffled=False), seed, number) for k in keys(x)] == want
    assert torch.equal(task.batches(0)(5)[0], task.batches(0)(5)[0])
    by_image = dict(zip(want, task.training().labels.tolist()))
    assert all(by_image[k] == y for x, labels in epoch(task, 1, 1) for k, y in zip(keys(x), labels.tolist()))


def test_two_tasks_out_of_one_set():
    low, high = (replace(TASK, samples=700, classes=c) for c in ((0, 1, 2, 3, 4), (5, 6, 7, 8, 9)))
    assert set(low.training().labels.tolist()) | set(low.held_out().labels.tolist()) == {0, 1, 2, 3, 4} and low.vocab_size == high.vocab_size == 10
    order = {i: set(InTurn(tasks=(low, high), each=3).batches(0)(i)[1].tolist()) for i in range(8)}
    assert [max(y) > 4 for y in order.values()] == [False] * 3 + [True] * 3 + [False] * 2
    both = Together(tasks=(low, high))
    assert [len(x) for x in both.batches(0)(0)] == [100] * 4 and both.tokens == 200
    moved = replace(TASK, permuted=1)
    where = [torch.nonzero((TASK.training().pixels.T == column).all(1))[:, 0].tolist() for column in moved.training().pixels.T]
    assert all(where) and sorted({i for w in where for i in w}) == list(range(64))
    assert torch.equal(moved.held_out().pixels.sort(1).values, TASK.held_out().pixels.sort(1).values) and not torch.equal(moved.training().pixels, replace(TASK, permuted=2).training().pixels)


def test_fingerprints():
    "Of images, their order in the set and the seed; those of the default set are fixed."
    others = [TASK, replace(TASK, samples=1300), replace(TASK, permuted=0), replace(TASK, normalised=True), replace(TASK, samples=700, classes=(0, 1, 2, 3, 4))]
    assert len({t.fingerprint(0) for t in others} | {TASK.fingerprint(1)}) == 6
    assert TASK.fingerprint(0) == replace(TASK, rows=50).fingerprint(0) == '5b2b2c38b513'


def test_normalised_pixels():
    x = replace(TASK, samples=1438, rows=719, normalised=True).training().pixels.double()
    assert abs(x.mean()) < 1e-6 and abs(x.std() - 1) < 1e-6


@pytest.mark.parametrize('way', ['parquet', 'hub'])
def test_images_like_those_of_the_hub(way, tmp_path):
    x, y = pictures()
    if way == 'parquet': name, loaded = parquet(tmp_path/'mnist.parquet', image=list(map(png, x)), label=y.tolist()), None
    else:
        class Split:
            column_names = ['image', 'label']
            def __getitem__(self, column): return dict(image=[Image.fromarray(a) for a in x], label=y.tolist())[column]
        def load_dataset(repo, split):
            assert (repo, split) == ('ylecun/mnist', 'train')
            return Split()
        name, loaded = 'hub:ylecun/mnist', SimpleNamespace(load_dataset=load_dataset)
    with patch.dict(sys.modules, {} if loaded is None else dict(datasets=loaded)):
        found = load_images(name)
        assert np.array_equal((found.pixels.numpy() * 255).round().astype(np.uint8).reshape(-1, 28, 28), x) and found.labels.tolist() == y.tolist()
        task = Digits(images=name, samples=24, rows=8)
        assert task.pixels == 784 and len(task.held_out()) == 6 and len(task.batches(0)(0)[0]) == 8
        model = MLPConfig(inputs=task.pixels, hidden=256).build(0, task.vocab_size)
        assert model(task.batches(0)(0)[0]).shape == (8, 10)


def test_a_file_that_changes_is_read_again(tmp_path):
    x, y = pictures()
    name = parquet(tmp_path/'few.parquet', image=list(map(png, x)), label=y.tolist())
    before = Digits(images=name, samples=24, rows=8).fingerprint(0)
    parquet(tmp_path/'few.parquet', image=list(map(png, pictures(31, seed=1)[0])), label=pictures(31)[1].tolist())
    assert Digits(images=name, samples=24, rows=8).fingerprint(0) != before


@pytest.mark.parametrize('columns, message', [
    (dict(picture=[png(pictures(1)[0][0])], label=[1]), "has no column 'image'; columns found: picture, label"),
    (dict(image=[png(pictures(1)[0][0])], label=['1']), "row 0: label '1', wanted a whole number"), (dict(image=[png(pictures(1)[0][0])], label=[-1]), 'row 0: label -1'),
    (dict(image=['x'], label=[1]), "row 0: column 'image' holds str"), (dict(image=[dict(bytes=b'GIF', path='')], label=[1]), 'row 0: the image is no picture'),
    (dict(image=[png(pictures(1)[0][0]), png(pictures(1, 8)[0][0])], label=[1, 2]), r'images of sizes \[\(8, 8\), \(28, 28\)\]'), (dict(image=pa.array([], pa.struct([('bytes', pa.binary())])), label=pa.array([], pa.int64())), 'holds no images')])
def test_a_bad_file_is_named(columns, message, tmp_path):
    with pytest.raises(ValueError, match=message): load_images(parquet(tmp_path/'bad.parquet', **columns))


def test_bad_settings_say_what_they_want(tmp_path):
    (tmp_path/'broken.parquet').write_bytes(b'PAR1')
    for make, message in ((lambda: load_images(str(tmp_path/'broken.parquet')), 'not a readable parquet file'), (lambda: load_images('mnist'), "no images 'mnist': there are 'digits'"), (lambda: load_images(str(tmp_path/'none.parquet')), 'no images'),
                          (lambda: replace(TASK, rows=99), 'rows that divides 1400'), (lambda: replace(TASK, samples=1500).batches(0), "samples=1500: 'digits' has 1438"), (lambda: replace(TASK, classes=()), 'classes=')):
        with pytest.raises(ValueError, match=message): make()
    with patch.dict(sys.modules, datasets=None), pytest.raises(ValueError, match="'hub:nobody/nothing' needs the package datasets"): load_images('hub:nobody/nothing')
    with patch.dict(sys.modules, {'sklearn.datasets': None}), pytest.raises(ValueError, match='scikit-learn'): load_images.__wrapped__('digits')


def test_the_classifier_is_pytorchs():
    model, x = MLPConfig(inputs=20, hidden=7).build(3, 5).double(), torch.randn(4, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    theirs = nn.Sequential(nn.Linear(20, 7), nn.ReLU(), nn.Linear(7, 5)).double()
    theirs.load_state_dict(dict(zip(theirs.state_dict(), model.state_dict().values())))
    assert (model(x) - theirs(x)).abs().max() < 1e-12
    for layer, n in ((model.into, 20), (model.out, 7)):
        for p in layer.parameters(): assert n ** -.5 * .5 < p.abs().max() <= n ** -.5
    assert len({tuple(MLPConfig(inputs=20, hidden=7).build(s, 5).into.weight[0].tolist()) for s in range(3)}) == 3


def test_a_classifier_learns_digits():
    c = FitConfig(steps=150, objective=ClassLoss(), optimizer=AdamWConfig(lr=3e-3))
    model = MLPConfig().build(0)
    fit(Learner(model, c.optimizer.build(model)), TASK.batches(0), c.objective.step(c), c)
    held = TASK.held_out()
    assert (model(held.pixels).argmax(1) == held.labels).double().mean() > .93
