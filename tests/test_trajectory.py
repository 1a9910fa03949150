"""Sixty steps of the authors' trainer, recomputed: losses, gradient norms, learning rates, final weights (golden/README.md of the shared data)."""
import numpy as np
import pytest
import torch
from accelerate import Accelerator

from sag.config import change
from sag.data.batches import Batch
from sag.files import shared
from sag.presets import presets
from sag.record import Run
from sag.released import load_released, our_name
from sag.train import Training, ramp, train_step

GOLDEN = shared('golden')
pytestmark = pytest.mark.skipif(GOLDEN is None, reason='no shared data here, see SAG_SHARED in sag.files')


def train(lr, dtype, folder):
    "The authors' 60 steps with our step: a row for each, and the model."
    z = np.load(GOLDEN/'released_tiny_train.npz')
    model = load_released(GOLDEN/'released_tiny.pth.tar', image_heads=3, text_heads=2)[0].to(dtype)  # in evaluation mode: no dropout there either
    recipe = change(presets['released'], lr=lr, image_lr=.1*lr, text_lr=lr, warmup=20, precision='fp32')
    training = Training(recipe, model, 60, Run(folder), Accelerator(cpu=True))
    noise, rows = iter(torch.from_numpy(z['noise']).to(dtype)), []
    training.forward = lambda pixels, ids, mask, _, features: model(pixels, ids, mask, next(noise))
    for index, ids, lengths in zip(z['image_index'], z['input_ids'].astype(int), z['lengths'], strict=True):
        mask = np.arange(lengths.max()) < lengths[:, None]
        pixels = torch.from_numpy((z['images'][index].astype(np.float64) - 127.5)/127.5).to(dtype)
        batch = Batch(pixels, torch.from_numpy(ids[:, :lengths.max()]), torch.from_numpy(mask).long(), torch.arange(4), [], [])
        scale = ramp(training.step + 1, recipe)
        row = train_step(training, batch)
        rows.append({k: float(v) for k, v in row.items()} | dict(scaled=scale*float(row['loss']), rates=[g['lr'] for g in training.optimizer.param_groups]))
    return rows, model, z


@pytest.mark.parametrize('run, lr, dtype, eps', [('a', 3e-3, torch.float64, 1e-6), ('b', 1e-5, torch.float32, 5e-6)])
def test_trajectory_of_the_released_trainer(run, lr, dtype, eps, tmp_path):
    rows, model, z = train(lr, dtype, tmp_path)
    for ours, theirs in dict(scaled='loss', contrastive='contrastive', reconstruction='reconstruction', grad_norm='grad_norm').items():
        assert np.abs(np.array([r[ours] for r in rows]) - z[f'{run}_{theirs}']).max() < eps, theirs
    assert np.allclose([r['lr'] for r in rows], z[f'{run}_lrs'][:, 0], rtol=1e-9, atol=0)
    assert np.allclose([min(r['rates']) for r in rows], z[f'{run}_lrs'].min(1), rtol=1e-9, atol=0)
    if run == 'b': return
    weights = {our_name(k.removeprefix('a_weight__')): z[k] for k in z.files if k.startswith('a_weight__')}
    state = model.state_dict()
    far = {k: float(np.abs(state[k].numpy() - v).max()) for k, v in weights.items() if k}
    assert len(far) > 100 and max(far.values()) < 1e-6, sorted(far, key=far.get)[-3:]
