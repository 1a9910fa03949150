"""What a GPU would stumble over, found without one: the model, its losses, evaluation and prediction on fake CUDA tensors.

A tensor left on the CPU raises at once, and so does a read-back (`.item()`, `.cpu()`, `if tensor:`) in the middle of a step: fake tensors hold no numbers.
The backward pass needs a real CUDA context, so it is not part of this. What does wait for the GPU, on purpose: the finite check of `min_max` (once a
photo), `Recall`, which looks token ids up on the CPU (once a batch, frozen text encoders only), and a history's row (every few steps)."""
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily

from sag.config import SaGConfig
from sag.losses import contrastive_loss, reconstruction_loss
from sag.model.sag import SaG
from sag.predict import RULES, encode_draws, segment_scores

TEXT = dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=16)
BASE = dict(
    image_size=32, text_args=TEXT, dim=16, context_dim=16, groups=2, slots_per_group=2, iterations=2, slot_heads=1, slot_head_dim=8, interact_heads=1,
    interact_head_dim=8, fusion_heads=1, fusion_head_dim=8)
CONV = BASE | dict(image_encoder='convnext_atto', image_args=dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8)), image_stride=4)
VIT = BASE | dict(image_encoder='vit_tiny_patch16_224', image_args=dict(embed_dim=16, depth=2, num_heads=2, patch_size=8))
MODELS = {
    'convolutional network': CONV, 'vision transformer': VIT, 'bilinear positions': VIT | dict(position_resize='bilinear'),
    'two layers': CONV | dict(image_also=(8,)),
    'standardized': CONV | dict(image_standardize=True), 'mean pooling': CONV | dict(text_pooling='mean'), 'grid': CONV | dict(entities='grid'),
    'learned slots': CONV | dict(slot_init='learned'), 'no fusion': CONV | dict(fusion=False), 'cosines': CONV | dict(fusion=False, cosine_scale=4.),
    'over patches': CONV | dict(competition='patches'), 'no interaction': CONV | dict(interaction=False),
    'clusters': CONV | dict(entities='clusters', fusion=False, cosine_scale=4., reconstruct=False)}


@pytest.fixture
def fake():
    with FakeTensorMode(allow_non_fake_inputs=False) as mode: yield mode


def build(mode, config):
    "A model whose weights are fake CUDA tensors"
    with unset_fake_temporarily(): model = SaG(SaGConfig(**config), weights=False)
    moved = lambda w: w if w is None else mode.from_tensor(w).detach().to('cuda')
    for m in model.modules():
        m._parameters = {n: w if w is None else torch.nn.Parameter(moved(w)) for n, w in m._parameters.items()}
        m._buffers = {n: moved(w) for n, w in m._buffers.items()}
    return model


def inputs(config):
    ids = torch.zeros(3, 5, dtype=torch.long, device='cuda')
    return torch.zeros(2, 3, 32, 32, device='cuda'), ids, torch.ones_like(ids)


@pytest.mark.parametrize('name', MODELS)
def test_a_step_stays_on_the_gpu(fake, name):
    model = build(fake, MODELS[name]).train()
    assert {w.device.type for w in model.state_dict().values()} == {'cuda'}
    out = model(*inputs(MODELS[name]))
    loss = contrastive_loss(out, torch.zeros(3, dtype=torch.long, device='cuda'), ignore=torch.zeros(3, 2, dtype=torch.bool, device='cuda'))
    if out.reconstruction is not None: loss = loss + reconstruction_loss(out)
    for part, value in vars(out).items(): assert value is None or value.device.type == 'cuda', part
    assert loss.device.type == 'cuda' and loss.shape == ()


def test_prediction_stays_on_the_gpu(fake):
    model = build(fake, CONV).eval()
    pixels, ids, mask = inputs(CONV)
    with torch.no_grad():
        _, out = next(encode_draws(model, pixels, [1, 2], [0]))
        relevance = model.relevance(out.slots, model.encode_text(ids, mask))
        scores = [segment_scores(r, m, rule) for r, m in zip(relevance, out.slot_maps, strict=True) for rule in RULES]
    assert all(s.device.type == 'cuda' and s.shape == (3, 8, 8) for s in scores)


@pytest.mark.parametrize('mistake', ['left on the CPU', 'read back'])
def test_these_tests_can_fail(fake, mistake):
    model = build(fake, CONV)
    x, ids, mask = inputs(CONV)
    if mistake == 'read back':
        with pytest.raises(DataDependentOutputException): model(x, ids, mask).slots.sum().item()
    else:
        with pytest.raises(RuntimeError): model(x, ids.cpu(), mask)
