"""Every family of encoders that the encoders' page names: shapes, padding, weights files. And what is refused, by name and before a download."""
import logging

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from sag.config import SaGConfig
from sag.data.batches import text_limit
from sag.model.encoders import TEXT_ENCODERS, ImageEncoder, TextEncoder, load_backbone, text_backbone

VIT = dict(embed_dim=48, depth=2, num_heads=3)
GRIDS = {
    'vit_tiny_patch16_224': VIT, 'deit_tiny_patch16_224': VIT, 'vit_small_patch14_dinov2': VIT, 'eva02_tiny_patch14_224': VIT, 'vit_small_patch16_dinov3': VIT,
    'beit_base_patch16_224': VIT, 'cait_xxs24_224': VIT, 'xcit_nano_12_p16_224': VIT,
    'samvit_base_patch16_224': VIT | dict(window_size=2, global_attn_indexes=(1,))}
FOUR = dict(depths=(1, 1, 1, 1))
SWIN = FOUR | dict(embed_dim=12, num_heads=(1, 2, 4, 8))
PYRAMIDS = {
    'resnet18': {}, 'regnetx_002': {}, 'convnext_atto': FOUR | dict(dims=(8, 16, 24, 32)), 'tf_efficientnet_lite0': {}, 'mobilenetv3_small_050': {},
    'swin_tiny_patch4_window7_224': SWIN, 'swinv2_tiny_window8_256': SWIN, 'hiera_tiny_224': dict(embed_dim=24, stages=(1, 1, 1, 1)),
    'pvt_v2_b0': FOUR, 'focalnet_tiny_srf': {}}


def image_config(name, **kw):
    "A small encoder of the family"
    patch = 14 if 'patch14' in name else 16
    size = 4*patch if name in GRIDS else 256 if 'swinv2' in name else 224 if name.startswith(('swin', 'hiera')) else 64
    return SaGConfig(image_encoder=name, image_args=(GRIDS | PYRAMIDS)[name], image_size=size, **kw)


@pytest.mark.parametrize('name', GRIDS | PYRAMIDS)
def test_image_family(name, tmp_path):
    config = image_config(name)
    torch.manual_seed(0)
    whole = timm.create_model(name, **{k: v for k, v in dict(img_size=config.image_size).items() if name in GRIDS or 'swin' in name}, **config.image_args)
    with torch.no_grad():
        for w in whole.state_dict().values():
            if w.is_floating_point(): w.uniform_(.1, .3)
    save_file({f'model.{n}': w.contiguous().clone() for n, w in whole.state_dict().items()}, tmp_path/'w.safetensors')
    encoder = ImageEncoder(config, str(tmp_path/'w.safetensors'))
    for n, w in encoder.backbone.state_dict().items():
        if w.is_floating_point(): assert ((w >= .05) & (w <= .35)).all(), f'{n} was not loaded'
    encoder = ImageEncoder(config).eval()
    x = torch.randn(2, 3, config.image_size, config.image_size)
    y = encoder(x)
    cells = 4 if name in GRIDS else config.image_size//config.image_stride
    assert y.shape == (2, encoder.width, cells, cells)
    assert torch.allclose(encoder(x[1:]), y[1:], atol=1e-4)
    y.square().mean().backward()
    assert next(p for p in encoder.parameters()).grad is not None


@pytest.mark.parametrize('file, message', [
    ('other network', 'does not fit|lacks'), ('first tensor only', 'lacks'), ('integers', 'torch.int64'), ('not finite', 'conv1.weight is not finite'),
    ('web page', 'an HTML page'), ('pointer', 'Git LFS pointer'), ('line of text', 'a text file'), ('empty', 'an empty file')])
def test_weights_file_that_does_not_fit(file, message, tmp_path):
    own, path = timm.create_model('resnet18').state_dict(), tmp_path/'w.safetensors'
    files = {
        'other network': timm.create_model('vit_tiny_patch16_224', depth=1).state_dict(), 'first tensor only': {'conv1.weight': own['conv1.weight']},
        'integers': own | {'conv1.weight': own['conv1.weight'].long()}, 'not finite': own | {'conv1.weight': own['conv1.weight']*torch.nan},
        'web page': b'<!DOCTYPE html><html>Quota exceeded</html>', 'pointer': b'version https://git-lfs.github.com/spec/v1\noid sha256:0\n',
        'line of text': b'hello', 'empty': b''}
    if isinstance(files[file], bytes): path.write_bytes(files[file])
    else: save_file(files[file], path)
    with pytest.raises(ValueError, match=message): ImageEncoder(SaGConfig(image_encoder='resnet18', image_size=64), str(path))


@pytest.mark.parametrize('wrapper', ['', 'module.', '_orig_mod.module.'])  # of DDP and torch.compile, which timm takes off
@pytest.mark.parametrize('prefix', ['backbone.', 'encoder_q.', 'visual.trunk.'])
def test_prefix_is_stripped_and_said(tmp_path, caplog, wrapper, prefix):
    own = timm.create_model('resnet18').state_dict()
    save_file({f'{wrapper}{prefix}{n}': w for n, w in own.items()} | {'head.weight': torch.ones(3)}, tmp_path/'w.safetensors')
    with caplog.at_level(logging.WARNING): encoder = ImageEncoder(SaGConfig(image_encoder='resnet18', image_size=64), str(tmp_path/'w.safetensors'))
    assert f'prefix {prefix!r}' in caplog.text and encoder.backbone.conv1.weight.equal(own['conv1.weight'])


def test_two_models_in_a_file_are_not_guessed(tmp_path):
    own = timm.create_model('resnet18').state_dict()
    save_file({f'{who}.{n}': w.clone() for who in ('student', 'teacher') for n, w in own.items()}, tmp_path/'w.safetensors')
    with pytest.raises(ValueError, match="several such models, '(student|teacher).' and"):
        ImageEncoder(SaGConfig(image_encoder='resnet18', image_size=64), str(tmp_path/'w.safetensors'))


def test_a_weights_file_leaves_the_random_state(tmp_path):
    save_file(timm.create_model('resnet18').state_dict(), tmp_path/'w.safetensors')
    states = []
    for weights in 'random', str(tmp_path/'w.safetensors'):
        torch.manual_seed(0)
        ImageEncoder(SaGConfig(image_encoder='resnet18', image_size=64), weights)
        states.append(torch.get_rng_state())
    assert states[0].equal(states[1])


@pytest.mark.parametrize('args', [
    dict(pretrained=True), dict(pretrained_cfg=dict(url='http://127.0.0.1:9/x')), dict(pretrained_cfg_overlay=dict(url='x')), dict(checkpoint_path='/x')])
def test_image_args_cannot_name_weights(args):
    with pytest.raises(ValueError, match='image_args may not hold'): ImageEncoder(SaGConfig(image_encoder='resnet18', image_args=args))


@pytest.mark.parametrize('args', [
    dict(num_heads=0), dict(patch_size=0), dict(depth=-1, embed_dim=-3), dict(surprise=1), dict(embed_dim='x'), dict(act_layer='x')])
def test_image_args_that_build_nothing(args):
    with pytest.raises(ValueError, match='cannot be built for|does not take'): ImageEncoder(SaGConfig(image_encoder='vit_tiny_patch16_224', image_args=args))


@pytest.mark.parametrize('name, message', [
    ('mixer_s16_224', 'one stride'), ('hf-hub:timm/resnet18.a1_in1k', 'no model called'), ('resnet_18', 'no model called')])
def test_unsupported_image_encoders(name, message):
    with pytest.raises(ValueError, match=message): ImageEncoder(SaGConfig(image_encoder=name, image_size=224), 'pretrained')


BERT = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=100, max_position_embeddings=20)
TEXTS = {name: BERT for name in TEXT_ENCODERS} | {
    'distilbert': dict(dim=32, n_layers=1, n_heads=2, hidden_dim=32, vocab_size=100, max_position_embeddings=20),
    'electra': BERT | dict(embedding_size=16), 'albert': BERT | dict(embedding_size=16),
    't5': dict(d_model=32, num_layers=1, num_heads=2, d_ff=32, d_kv=16, vocab_size=100),
    'modernbert': BERT | dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2),
    'clip_text_model': BERT | dict(bos_token_id=98, eos_token_id=99)}


@pytest.mark.parametrize('kind', TEXT_ENCODERS)
@pytest.mark.parametrize('pooling', ['cls', 'mean', 'last'])
def test_text_family(kind, pooling, tmp_path):
    config = SaGConfig(text_args=dict(model_type=kind) | TEXTS[kind], text_pooling=pooling, dim=8)
    if pooling == 'cls' and kind in ('t5', 'clip_text_model', 'siglip_text_model'):
        with pytest.raises(ValueError, match=f'{kind} has no .CLS.; set text_pooling'): TextEncoder(config)
        return
    torch.manual_seed(0)
    encoder = TextEncoder(config).eval()
    ids, mask = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    out = encoder(ids, mask)
    assert out.shape == (2, 8)
    assert torch.allclose(encoder(ids[1:, :3], mask[1:, :3]), out[1:], atol=1e-5) and not torch.allclose(out[0], out[1], atol=1e-3)
    encoder(ids, mask).square().sum().backward()
    assert [n for n, p in encoder.named_parameters() if p.grad is None] == []
    from types import SimpleNamespace
    limit = text_limit(SimpleNamespace(config=SimpleNamespace(max_text_length=0, text_args=encoder.backbone.config.to_dict())))
    assert limit is None if kind == 't5' else limit in (18, 20)
    encoder(torch.full((1, limit or 50), 5), torch.ones(1, limit or 50, dtype=torch.long))
    encoder.backbone.save_pretrained(tmp_path)
    again = text_backbone(SaGConfig(text_encoder=str(tmp_path), text_pooling=pooling), 'pretrained').eval()
    assert again.state_dict().keys() == encoder.backbone.state_dict().keys()
    assert all(w.equal(encoder.backbone.state_dict()[n]) for n, w in again.state_dict().items())


@pytest.mark.parametrize('whole, part', [('clip', 'clip_text_model'), ('siglip', 'siglip_text_model')])
def test_text_half_of_two_towers(whole, part, tmp_path):
    import transformers
    vision = dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=16)
    config = transformers.AutoConfig.for_model(whole, text_config=TEXTS[part], vision_config=vision)
    both = transformers.AutoModel.from_config(config)
    both.save_pretrained(tmp_path)
    text = text_backbone(SaGConfig(text_encoder=str(tmp_path), text_pooling='last'), 'pretrained')
    own = {n.removeprefix('text_model.'): w for n, w in both.state_dict().items()}
    assert all(w.equal(own[n.removeprefix('text_model.')]) for n, w in text.state_dict().items())


@pytest.mark.parametrize('args, message', [
    (dict(model_type='gpt2'), "type 'gpt2' are not supported"), (dict(model_type='xlnet'), "type 'xlnet'"),
    (dict(model_type='nope'), "no text encoder .ValueError: Unrecognized model identifier: nope"),
    (dict(hidden_act='os'), "no text encoder .KeyError: 'os'"),
    (dict(num_attention_heads=7), 'describe no text encoder .ValueError'), (dict(hidden_size='x'), 'describe no text encoder'),
    (dict(auto_map={'AutoModel': 'x.Y'}), "may not hold 'auto_map'"), (dict(attn_implementation='somebody/kernel'), "may not hold 'attn_implementation'")])
def test_unsupported_text_encoders(args, message):
    with pytest.raises(ValueError, match=message): text_backbone(SaGConfig(text_args=args), 'random')


def test_text_weights_that_do_not_fit(tmp_path):
    import json

    from transformers import BertConfig, BertModel
    BertModel(BertConfig(**BERT | dict(num_hidden_layers=1))).save_pretrained(tmp_path)
    settings = json.loads((tmp_path/'config.json').read_text())
    state = load_file(tmp_path/'model.safetensors')
    save_file({n: w*torch.nan if 'word_embeddings' in n else w for n, w in state.items()}, tmp_path/'model.safetensors', dict(format='pt'))
    with pytest.raises(ValueError, match='lacks 1 weights: embeddings.word_embeddings.weight .not finite'):
        text_backbone(SaGConfig(text_encoder=str(tmp_path)), 'pretrained')
    (tmp_path/'config.json').write_text(json.dumps(settings | dict(num_hidden_layers=2)))
    save_file(state, tmp_path/'model.safetensors', dict(format='pt'))
    with pytest.raises(ValueError, match='lacks 16 weights: encoder.layer.1'): text_backbone(SaGConfig(text_encoder=str(tmp_path)), 'pretrained')
    with pytest.raises(OSError, match='could not be loaded'): text_backbone(SaGConfig(text_encoder=str(tmp_path/'no such folder')), 'pretrained')


def test_load_backbone_names_what_is_missing(tmp_path):
    whole = timm.create_model('resnet18')
    state = whole.state_dict()
    save_file({n: w for n, w in state.items() if n != 'layer1.0.bn1.running_mean'}, tmp_path/'w.safetensors')
    with pytest.raises(ValueError, match='lacks 1 of .* layer1.0.bn1.running_mean'):
        load_backbone(lambda **kw: timm.create_model('resnet18', features_only=True, **kw), tmp_path/'w.safetensors', whole)
