"""Two processes with batches of 4 are one with batches of 8: loss, gradients, a training and an evaluation, the paper's loss and one's own."""
import os
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate import Accelerator

from sag.config import change, to_json
from sag.evaluate import evaluate
from sag.presets import recipe
from sag.record import Run
from sag.train import batch_losses, fit, load_data, prepare, stream

# What each of two processes does, started as accelerate starts them. `mine.py` is a module of the user's.
MINE = '''
from sag.distribute import turn, weight
from sag.train.objective import losses
from sag.train import load_data, train_step

def spread(out, batch, recipe):
    own = batch.image_of_text
    p = out.relevance[own + turn()[0]*len(out.slots), range(len(own))]
    found = losses(out, batch, recipe)
    entropy = -(p*p.clamp_min(1e-9).log()).sum(-1).mean()*weight(len(own), own.device)
    return found | dict(loss=found['loss'] + entropy, spread=entropy)

def twice(training, *batches): return train_step(training, *batches) | dict(twice=1.)
def texts(recipe): return load_data(recipe, 'train')
def watched(recipe): return load_data(recipe, 'testA')
'''
TWO = '''
import json, os, sys
import torch
from accelerate import Accelerator
from sag.config import Recipe, change
from sag.evaluate import evaluate
from sag.record import Run
from sag.train import *
from sag.train import batch_losses, prepare, stream
home, rank = sys.argv[1], os.environ['RANK']
pair = change(Recipe(), **json.load(open(f'{home}/recipe.json')))
training, loader, val, _, _ = prepare(pair, Run(f'{home}/gradients'), Accelerator(), dict(losses=None, train=None, val=None), None)
training.model.train()
batch = next(stream(loader))
found = batch_losses(training, batch)
training.accelerator.backward(found['loss'])
found = training.accelerator.reduce({k: v.detach() for k, v in found.items()}, 'mean')
evaluate(training.model, val, batch_size=1, progress=False).to_csv(f'{home}/rows{rank}.csv')
torch.save(found | dict(texts=len(batch.input_ids), grads={n: p.grad for n, p in training.model.named_parameters()}), f'{home}/found{rank}.pt')
fit(pair, f'{home}/two')
fit(pair, f'{home}/own', losses='mine:spread', step='mine:twice', train='mine:texts', val='mine:watched')
noisy = change(pair, slot_init='entity')
fit(noisy, f'{home}/noisy')
def trip(training): raise KeyError
try: fit(noisy, f'{home}/noisy2', watch=trip)
except KeyError: pass
fit(noisy, f'{home}/noisy2', resume=True)
'''


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    "The recipe for one process; nothing is random, so that runs compare."
    home = tmp_path_factory.mktemp('pair')
    small = recipe('smoke', root=str(home/'scenes'))
    load_data(small, 'train')
    return home, change(
        small, steps=4, evaluate_every=2, save_every=1, batch_size=8, val_photos=3, texts_per_photo=9, groups=2, iterations=1, dim=16, context_dim=16,
        text_args=small.text_args | dict(num_hidden_layers=1), image_size=32, image_encoder='vit_tiny_patch16_224',
        image_args=dict(patch_size=8, embed_dim=32, depth=1, num_heads=2), slot_init='learned', dropout=0., drop_path=0., ignore_same_text=True,
        slot_geometry=True, mirror_weight=1., overlap_weight=.5)


@pytest.fixture(scope='module')
def two(pair):
    "The folder in which both processes have left what they found."
    home, whole = pair
    (home/'recipe.json').write_text(to_json(change(whole, batch_size=4)))
    (home/'mine.py').write_text(MINE)
    (home/'two.py').write_text(TWO)
    with socket.socket() as s:
        s.bind(('localhost', 0))
        port = s.getsockname()[1]
    world = dict(WORLD_SIZE='2', LOCAL_WORLD_SIZE='2', MASTER_ADDR='localhost', MASTER_PORT=str(port), ACCELERATE_USE_CPU='1', OMP_NUM_THREADS='1')
    path = os.pathsep.join([str(home), str(Path(__file__).parent.parent)])
    ranks = [subprocess.Popen([sys.executable, home/'two.py', home], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
                              env=os.environ | world | dict(RANK=str(r), LOCAL_RANK=str(r), PYTHONPATH=path)) for r in (0, 1)]
    said = [p.communicate(timeout=400)[1] for p in ranks]
    assert [p.returncode for p in ranks] == [0, 0], said[0][-3000:] + said[1][-3000:]
    return home


def test_loss_gradients_and_evaluation(pair, two):
    home, whole = pair
    training, loader, val, _, _ = prepare(whole, Run(home/'one-step'), Accelerator(), dict(losses=None, train=None, val=None), None)
    training.model.train()
    found = batch_losses(training, next(stream(loader)))
    found['loss'].backward()
    a, b = (torch.load(home/f'found{r}.pt') for r in (0, 1))
    assert a['texts'] != b['texts']  # a fair mean is not the mean of means
    for k, v in found.items(): assert abs(a[k] - v.detach()) < 1e-5 and a[k] == b[k], k
    for n, p in training.model.named_parameters():
        assert torch.equal(a['grads'][n], b['grads'][n]), n
        assert (a['grads'][n] - p.grad).abs().max() < 2e-5*p.grad.abs().max() + 1e-8, n
    rows = [(home/f'rows{r}.csv').read_text() for r in (0, 1)]
    assert rows[0] == rows[1] == evaluate(training.model, val, batch_size=1, progress=False).to_csv()  # photo by photo, so that sums run alike


@pytest.mark.parametrize('name, parts', [('two', {}), ('own', dict(losses='mine:spread', step='mine:twice', train='mine:texts', val='mine:watched'))])
def test_a_training(pair, two, name, parts, monkeypatch):
    home, whole = pair
    monkeypatch.syspath_prepend(str(home))
    one = fit(whole, home/f'one-{name}', **parts)
    rows = pd.read_csv(home/name/'history.csv').to_dict('records')
    for a, b in zip(one.history, rows, strict=True):
        for k in ('loss', 'contrastive', 'reconstruction', 'mirror', 'overlap', *(['spread', 'twice'] if parts else [])): assert abs(a[k] - b[k]) < 1e-4, k
    record = Run(home/name).record
    assert record['processes'] == 2 and record.get('parts', {}) == parts


def test_resumed_each_process_draws_its_own_noise(pair, two):
    home, _ = pair
    a, b = home/'noisy', home/'noisy2'
    assert (a/'model.safetensors').read_bytes() == (b/'model.safetensors').read_bytes()
    drop = ['wait', 'seconds']
    assert Run(a).history.drop(columns=drop).equals(Run(b).history.drop(columns=drop))
