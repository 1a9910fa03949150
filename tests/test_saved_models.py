"""Saved models and released checkpoints, spoilt: what is loaded is what was saved, or the error says what is wrong with which file."""
import argparse
import copy
import json
import random
import resource
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sag.config import SaGConfig
from sag.files import UnsafePickle, shared
from sag.model.sag import SaG, read_config
from sag.released import load_released, read_checkpoint

TEXT = dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=16)
CONFIG = SaGConfig(
    image_encoder='convnext_atto', image_args=dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)), image_size=32, image_stride=4, text_args=TEXT,
    dim=16, context_dim=16, groups=2, slots_per_group=2, iterations=1, slot_heads=1, slot_head_dim=8, interact_heads=1,
    interact_head_dim=8, fusion_heads=1, fusion_head_dim=8)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = SaG(CONFIG, weights=False)
    return model.save_pretrained(tmp_path_factory.mktemp('model')), model


@pytest.fixture
def folder(saved, tmp_path):
    "A copy to spoil"
    for p in saved[0].iterdir(): (tmp_path/p.name).write_bytes(p.read_bytes())
    return tmp_path


def fields(folder, change):
    "Rewrite config.json"
    values = json.loads((folder/'config.json').read_text())
    change(values)
    (folder/'config.json').write_text(json.dumps(values))


def test_the_same_model_comes_back(saved):
    back = SaG.from_pretrained(saved[0])
    assert all(w.equal(saved[1].state_dict()[n]) for n, w in back.state_dict().items()) and not back.training
    assert json.loads((saved[0]/'config.json').read_text())['version'] == 4


@pytest.mark.parametrize('name', SaGConfig.__dataclass_fields__)
def test_a_missing_field_is_an_error(folder, name):
    fields(folder, lambda values: values.pop(name))
    with pytest.raises(ValueError, match=f'config.json.*{name}'): SaG.from_pretrained(folder)


def test_files_from_before_versions(folder, saved):
    later = 'image_standardize entities slot_init competition interaction fusion image_also cluster_position cosine_scale reconstruct'.split()
    def old(values):
        for name in ('version', *later): values.pop(name)
    fields(folder, old)
    assert SaG.from_pretrained(folder).config == SaG.from_pretrained(saved[0]).config
    fields(folder, lambda values: values.update(version=1))
    with pytest.raises(ValueError, match='image_standardize'): SaG.from_pretrained(folder)  # version 1 had it
    fields(folder, lambda values: values.pop('iterations'))
    with pytest.raises(ValueError, match='iterations'): SaG.from_pretrained(folder)


@pytest.mark.parametrize('change, message', [
    (dict(version=99), 'version 99'), (dict(surprise=1), 'surprise'), (dict(image_args=dict(pretrained=True)), 'image_args may not hold'),
    (dict(image_args=dict(pretrained_cfg=dict(url='http://127.0.0.1:9/x'))), 'image_args may not hold'), (dict(image_encoder='hf-hub:a/b'), 'no model called'),
    (dict(text_args=dict(TEXT, auto_map={'AutoModel': 'x.Y'})), 'auto_map'), (dict(text_args=dict(model_type='gpt2')), 'gpt2')])
def test_a_foreign_configuration(folder, change, message):
    fields(folder, lambda values: values.update(change))
    with pytest.raises(ValueError, match=message): SaG.from_pretrained(folder)


def test_a_tokenizer_with_code_of_its_own(folder):
    (folder/'tokenizer_config.json').write_text(json.dumps(dict(tokenizer_class='Mine', auto_map={'AutoTokenizer': ['mine.Mine', None]})))
    (folder/'mine.py').write_text(f'open({str(folder/"ran")!r}, "w")')
    with pytest.raises(ValueError, match='the tokenizer needs code or files'): SaG.from_pretrained(folder)
    assert not (folder/'ran').exists()


@pytest.mark.parametrize('spoil, message', [
    (lambda s: s | {'project.bias': s['project.bias'].long()}, 'project.bias is torch.int64'),
    (lambda s: s | {'project.bias': s['project.bias']*torch.nan}, 'not finite'),
    (lambda s: {n: w for n, w in s.items() if n != 'project.bias'}, 'project.bias is missing'), (lambda s: s | {'more': torch.ones(1)}, 'more is not part'),
    (lambda s: s | {'project.bias': torch.ones(3)}, 'project.bias has shape')])
def test_weights_that_do_not_fit(folder, spoil, message):
    save_file(spoil(load_file(folder/'model.safetensors')), folder/'model.safetensors')
    with pytest.raises(ValueError, match=message): SaG.from_pretrained(folder)


def test_spoilt_configurations(folder):
    text, rnd, read = (folder/'config.json').read_text(), random.Random(0), 0
    junk = None, -1, 0, 1e12, float('nan'), 'x', [], {}, True, [1, 2], '../../etc', 2**70
    for _ in range(150):
        values = json.loads(text)
        for name in rnd.sample(sorted(values), rnd.randint(1, 3)): values[name] = copy.deepcopy(rnd.choice(junk))
        (folder/'config.json').write_text(json.dumps(values))
        try: read += isinstance(read_config(folder/'config.json'), SaGConfig)
        except ValueError as e: assert 'config.json' in str(e) and '\n' not in str(e), e
    for cut in range(0, len(text), 97):
        (folder/'config.json').write_text(text[:cut])
        with pytest.raises(ValueError, match='config.json'): read_config(folder/'config.json')
    assert read < 75


def test_spoilt_weights_files(folder, saved):
    data, rnd = (folder/'model.safetensors').read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(data[:8], 'little')
    for k in range(100):
        b = bytearray(data)
        if k % 4: b[rnd.randrange(header)] = rnd.randrange(256)
        else: del b[rnd.randrange(len(b)):]
        (folder/'model.safetensors').write_bytes(b)
        try: model = SaG.from_pretrained(folder)
        except ValueError as e: assert str(folder) in str(e), e
        else: assert model.state_dict().keys() == saved[1].state_dict().keys()


def test_a_flipped_bit_is_noticed(folder, saved):
    path = folder/'model.safetensors'
    data = path.read_bytes()
    header = 8 + int.from_bytes(data[:8], 'little')
    for place in range(header, len(data), 997):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << place % 8]) + data[place + 1:])
        with pytest.raises(ValueError, match='model.safetensors is damaged, its checksum does not fit'): SaG.from_pretrained(folder)
    save_file(saved[1].state_dict(), path)  # without a checksum, as before there were any
    assert all(w.equal(saved[1].state_dict()[n]) for n, w in SaG.from_pretrained(folder).state_dict().items())


def test_a_full_disk_leaves_the_old_model(folder, saved):
    before, limits = {p: p.read_bytes() for p in folder.iterdir()}, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match='model.safetensors cannot be written, the disk is full'): saved[1].save_pretrained(folder)
    finally: resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p: p.read_bytes() for p in folder.iterdir()} == before


def checkpoint(**kw): return dict(args=argparse.Namespace(lr=1e-5, root=Path('data')), epoch=1, iou=np.float64(31.4), model={'w': torch.arange(300.)}) | kw


def test_spoilt_checkpoints(tmp_path):
    path, rnd = tmp_path/'x.pth.tar', random.Random(0)
    torch.save(checkpoint(), path)
    data = path.read_bytes()
    for k in range(150):
        b = bytearray(data)
        if k % 5: b[rnd.randrange(len(b))] ^= 1 << rnd.randrange(8)
        else: del b[rnd.randrange(len(b)):]
        path.write_bytes(b)
        try: found = read_checkpoint(path)
        except ValueError as e: assert str(path) in str(e), e
        else: assert found['model']['w'].equal(torch.arange(300.)) and found['iou'] == 31.4


@pytest.mark.parametrize('zipped', [True, False])
def test_what_released_checkpoints_hold(tmp_path, zipped):
    path = tmp_path/'x.pth.tar'
    torch.save(checkpoint(), path, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(path)
    assert (found['iou'], str(found['args'].root), found['args'].lr) == (31.4, 'data', 1e-5)
    if not zipped: return
    with zipfile.ZipFile(path) as z, zipfile.ZipFile(tmp_path/'old.pth.tar', 'w') as old: # NumPy 1's spelling
        for i in z.infolist(): old.writestr(i.filename, z.read(i).replace(b'numpy._core', b'numpy.core'))
    assert read_checkpoint(tmp_path/'old.pth.tar')['iou'] == 31.4


@pytest.mark.parametrize('data, kind', [(b'<!DOCTYPE html><html>', 'an HTML page'), (b'version https://git-lfs.github.com/spec/v1\n', 'LFS pointer'),
                                        (b'hello', 'text file'), (b'', 'empty')])
def test_a_foreign_file_is_named(tmp_path, data, kind):
    (tmp_path/'x.pth.tar').write_bytes(data)
    with pytest.raises(ValueError, match=kind): read_checkpoint(tmp_path/'x.pth.tar')


def test_a_checkpoint_with_a_call(tmp_path):
    class Evil:
        def __reduce__(self): return __import__('os').mkdir, (str(tmp_path/'made'),)
    torch.save(checkpoint(args=Evil()), tmp_path/'x.pth.tar')
    with pytest.raises(UnsafePickle, match='mkdir'): read_checkpoint(tmp_path/'x.pth.tar')
    assert not (tmp_path/'made').exists()


@pytest.mark.skipif(not shared('golden'), reason='no golden files here')
@pytest.mark.parametrize('name, value, message', [
    ('cma.surprise', torch.ones(1), 'cma.surprise'), ('encoders.img_enc.set_pred_module.agg.last_layer.1.bias', None, 'shatter.out.0.bias is missing'),
    ('encoders.img_enc.spm_1x1.bias', None, 'project.bias is missing'), ('decoder.mlp.4.weight', torch.ones(32, 31), 'third.weight has shape'),
    ('encoders.img_enc.set_pred_module.agg.agg_blocks.1.0.fn.to_q.weight', torch.ones(64, 32), 'differs between iterations'),
    ('decoder.mlp.4.weight', torch.ones(1, 1).expand(32, 32), 'no tensor of its own'), ('decoder.mlp.4.weight', 'text', 'no tensor of its own')])
def test_released_weights_that_do_not_fit(tmp_path, name, value, message):
    saved = read_checkpoint(shared('golden')/'released_tiny.pth.tar')
    torch.save(saved | dict(model={n: w for n, w in (saved['model'] | {name: value}).items() if w is not None}), tmp_path/'x.pth.tar')
    with pytest.raises(ValueError, match=message): load_released(tmp_path/'x.pth.tar', image_heads=3, text_heads=2)
    with pytest.raises(ValueError, match='pass image_heads'): load_released(shared('golden')/'released_tiny.pth.tar')
