"""A training that is interrupted, by whatever, comes to the same end as one that was left alone: the same weights, byte for byte."""
import multiprocessing
import os
import resource
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from sag.checkpoint import checkpoints
from sag.config import change
from sag.data.expressions import Expressions
from sag.files import read_json
from sag.presets import recipe
from sag.record import Run
from sag.train import Diverged, fit, load_data
from sag.train.objective import losses

class Cable(Exception):
    "Somebody trips over it."


def trip(training):
    if training.step == 5: raise Cable


@pytest.fixture(scope='module')
def tiny(tmp_path_factory):
    "Twelve steps of a very small model, a checkpoint after each."
    small = recipe('smoke', root=str(tmp_path_factory.mktemp('scenes')))
    load_data(small, 'train')
    return change(
        small, steps=12, save_every=1, evaluate_every=5, selection='best_val_miou', val_photos=3, batch_size=4, texts_per_photo=2, groups=2, iterations=1,
        dim=16, context_dim=16, text_args=small.text_args | dict(num_hidden_layers=1), image_size=32, image_encoder='vit_tiny_patch16_224',
        image_args=dict(patch_size=8, embed_dim=32, depth=1, num_heads=2))


@pytest.fixture(scope='module')
def whole(tiny, tmp_path_factory):
    "What a run leaves that nobody interrupts, as bytes."
    dest = tmp_path_factory.mktemp('whole')
    fit(tiny, dest)
    return remains(dest)


def remains(dest):
    history = Run(dest).history.drop(columns=['wait', 'seconds'])  # the clock's columns
    assert not (dest/'checkpoints').exists()
    return (dest/'model.safetensors').read_bytes(), history.to_csv().encode()


def resumed(dest): return [x['step'] for x in Run(dest).record.get('resumed', [])]


def test_broken_off_during_validation(tiny, whole, tmp_path):
    with pytest.raises(Cable): fit(tiny, tmp_path, watch=trip)
    fit(tiny, tmp_path, resume=True)
    assert remains(tmp_path) == whole and resumed(tmp_path) == [4]


def test_damaged_checkpoint_and_full_disk(tiny, whole, tmp_path):
    with pytest.raises(Cable): fit(tiny, tmp_path, watch=trip)
    newest = checkpoints(tmp_path/'checkpoints')[0]
    newest.write_bytes(newest.read_bytes()[:-1000])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.warns(UserWarning, match='is damaged'):
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # no checkpoint fits into such a file
        try:
            with pytest.raises(OSError, match='Make room and resume'): fit(tiny, tmp_path, resume=True)
        finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        fit(tiny, tmp_path, resume=True)
    assert remains(tmp_path) == whole and resumed(tmp_path) == [3, 3]


def test_accumulation_and_cached_features_in_later_epochs(tiny, tmp_path):
    lazy = change(tiny, accumulate=2, freeze_image=True, freeze_text=True, cache_features=True, feature_dir=str(tmp_path/'features'), save_every=4)
    fit(lazy, tmp_path/'a')
    with pytest.raises(Cable): fit(lazy, tmp_path/'b', watch=trip)
    with pytest.raises(ValueError, match=r'lr is 0.1 and was 0.001'): fit(change(lazy, lr=.1), tmp_path/'b', resume=True)
    with pytest.raises(ValueError, match='dim is 8'): fit(change(lazy, dim=8, workers=2), tmp_path/'b', resume=True)
    with pytest.raises(ValueError, match='parts is'): fit(lazy, tmp_path/'b', resume=True, losses=losses)
    with pytest.raises(FileExistsError, match='waits in'): fit(lazy, tmp_path/'b')
    fit(change(lazy, workers=1, skip_nonfinite=3), tmp_path/'b', resume=True)
    assert remains(tmp_path/'b') == remains(tmp_path/'a')
    over = fit(lazy, tmp_path/'a', resume=True)  # it had come to its end
    assert remains(tmp_path/'b') == remains(tmp_path/'a') and (over.step, len(over.history)) == (12, 12)


def nowhere(out, batch, recipe): return {k: v*float('nan') for k, v in losses(out, batch, recipe).items()}


def test_nonfinite_losses_stop_or_are_left_out(tiny, tmp_path):
    with pytest.raises(Diverged, match='at step 1, expressions'): fit(tiny, tmp_path/'lost', losses=nowhere)
    assert not (tmp_path/'lost/model.safetensors').exists()
    start = fit(change(tiny, steps=1, lr=0, image_lr=0, text_lr=0, selection='last'), tmp_path/'start').model.state_dict()
    still = fit(change(tiny, skip_nonfinite=12, selection='last'), tmp_path/'still', losses=nowhere).model.state_dict()
    for k, v in start.items(): assert (still[k] == v).all(), k
    assert len(read_json(tmp_path/'still/nonfinite.json', list)) == 12


@pytest.mark.parametrize('changes, message', [
    (dict(cache_features=True), 'needs freeze_image'), (dict(entities='clusters'), 'needs freeze_image'), (dict(val_split=''), 'needs masks'),
    (dict(reconstruct=False), 'reconstruct=False has no loss for reconstruction_weight=1.0'), (dict(steps=0, epochs=0), 'train nothing'),
    (dict(val_split='vall'), "no split 'vall'"), (dict(batch_size=1000), 'Lower the batch size'),
    pytest.param(dict(precision='fp16'), 'needs a GPU', marks=pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU'))])
def test_impossible_wishes_are_errors_before_the_first_step(tiny, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message): fit(change(tiny, **changes), tmp_path)
    assert not (tmp_path/'run.json').exists()


def test_long_texts_are_known_before_the_first_step(tiny, tmp_path):
    long = 'left '*40
    def texts(recipe): return Expressions([replace(e, sentence=long) if i == 3 else e for i, e in enumerate(load_data(recipe, 'train'))])
    for where in 'train', 'val':
        with pytest.raises(ValueError, match="of 42 tokens .* takes 32: .* Set long_text to 'cut' or 'skip'"): fit(tiny, tmp_path/where, **{where: texts})
    with pytest.raises(ValueError, match='long_text'): fit(tiny, tmp_path/'later', later=texts(tiny))
    few = change(tiny, steps=1, evaluate_every=0, val_split='', selection='last')
    for policy in 'cut', 'skip':
        t = fit(change(few, long_text=policy), tmp_path/policy, train=texts)
        assert t.run.record['long_texts'] == dict(train=1)


EMPTY = [[5., 5., 5.2, 5., 5.2, 5.2]]


@pytest.mark.parametrize('spoil, message', [
    (lambda e, path: replace(e, ref_id=-1, segmentations=(EMPTY,)), 'its mask is empty'), (lambda e, path: replace(e, image=path), 'cannot be decoded'),
    (lambda e, path: replace(e, segmentations=(), boxes=()), 'neither mask nor box')])
def test_what_cannot_be_measured_is_known_before_the_first_step(tiny, tmp_path, spoil, message):
    es = list(load_data(tiny, 'val'))
    (tmp_path/'cut.jpg').write_bytes(es[0].image.read_bytes()[:-100])
    spoilt = Expressions([*es[1:], spoil(es[0], tmp_path/'cut.jpg')])
    with pytest.raises(ValueError, match=message): fit(tiny, tmp_path/'later', later=spoilt)
    if 'neither' not in message:
        with pytest.raises(ValueError, match=message): fit(change(tiny, val_photos=0), tmp_path/'val', val=spoilt)
    assert not [*tmp_path.rglob('run.json')]


def test_a_checkpoint_of_something_else(tiny, tmp_path):
    with pytest.raises(Cable): fit(tiny, tmp_path, watch=trip)
    newest = checkpoints(tmp_path/'checkpoints')[0]
    whole = torch.load(newest)
    for odd in [1, 2], {}, whole | dict(model={}), whole | dict(optimizer={}), whole | dict(random=[]), whole | dict(history='{'):
        torch.save(odd, newest)
        with pytest.raises(ValueError, match='are not of this training .* remove .*checkpoints to start over'): fit(tiny, tmp_path, resume=True)


def test_no_room_is_known_before_the_first_step(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr('shutil.disk_usage', lambda path: type('', (), dict(free=1000)))
    with pytest.raises(OSError, match='0.0 GB left and this training needs .* make room'): fit(tiny, tmp_path)
    assert not (tmp_path/'run.json').exists()


def test_a_folder_is_one_training_at_a_time(tiny, tmp_path):
    def second(training): fit(tiny, tmp_path, resume=True)
    with pytest.raises(FileExistsError, match=f'in use by process {os.getpid()} on'): fit(tiny, tmp_path, watch=second)


def test_bf16_resumes_to_the_same_weights_and_stays_near_fp32(tiny, tmp_path):
    half = change(tiny, precision='bf16', selection='last')
    a = fit(half, tmp_path/'a')
    with pytest.raises(Cable): fit(half, tmp_path/'b', watch=trip)
    fit(half, tmp_path/'b', resume=True)
    assert remains(tmp_path/'b') == remains(tmp_path/'a')
    full = fit(change(half, precision='fp32'), tmp_path/'c')
    apart = [abs(x['loss'] - y['loss'])/y['loss'] for x, y in zip(a.history, full.history, strict=True)]
    assert 0 < max(apart) < .02
    assert all(v.dtype == torch.float32 for v in a.model.state_dict().values() if v.is_floating_point())


# Real processes from here on. They start from a server that has imported everything, or each would spend its life importing.

@pytest.fixture(scope='module')
def life(tiny):
    "Train in a process of its own, until a moment or an event comes: its exit status and its seconds."
    server = multiprocessing.get_context('forkserver')
    server.set_forkserver_preload(['sag.train'])
    def life(dest, seconds=None, number=signal.SIGKILL, until=None):
        p = server.Process(target=fit, args=(tiny, dest), kwargs=dict(resume=True))
        start = time.perf_counter()
        p.start()
        while until and p.is_alive() and not until(): p.join(.01)
        if not until: p.join(seconds)
        if p.is_alive(): os.kill(p.pid, number)
        p.join()
        return p.exitcode, time.perf_counter() - start
    return life


def test_killed_at_ten_moments(life, tmp_path):
    life(tmp_path/'first')
    status, seconds = life(tmp_path/'alone')
    assert status == 0
    killed = 0
    for i, moment in enumerate(np.random.default_rng(0).uniform(0, seconds, 10)):
        dest = tmp_path/f'killed{i}'
        killed += life(dest, moment)[0] == -signal.SIGKILL
        assert life(dest)[0] == 0
        assert remains(dest) == remains(tmp_path/'alone')
    assert killed >= 3


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_asked_to_stop_it_saves_and_resumes(life, tmp_path, number):
    dest = tmp_path/'asked'
    assert life(dest, number=number, until=lambda: checkpoints(dest/'checkpoints'))[0] == 128 + number
    assert checkpoints(dest/'checkpoints') and life(dest)[0] == 0
    assert resumed(dest)
