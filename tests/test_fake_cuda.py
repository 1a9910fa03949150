"""What a GPU would stumble over, found without one: the model, its losses, evaluation and prediction on fake CUDA tensors.

A tensor left on the CPU raises at once, and so does a read-back (`.item()`, `.cpu()`, `if tensor:`) in the middle of a step: fake tensors hold no numbers.
The backward pass needs a real CUDA context, so it is not part of this. What does wait for the GPU, on purpose: a batch of an evaluation when all its numbers
have been asked for, a photo's mask on its way to the CPU, words of order ("second from left") once an expression, and a history's rows every 20 steps."""
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode, unset_fake_temporarily
from torch.amp import GradScaler

from sag.config import Recipe, SaGConfig
from sag.data.batches import Batch
from sag.data.expressions import Expression
from sag.evaluate import BLIND, MEAN, ORACLE, TRIVIAL, Truth, _batch_counts
from sag.losses import contrastive_loss, reconstruction_loss
from sag.model.sag import SaG
from sag.predict import RULES, encode_draws, full_size, relevance_of, segment_scores
from sag.train import optimizer, update
from sag.train.objective import repeated

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


def photos(config):
    "A batch of two photos with three expressions, and what is true of them"
    es = [Expression(i, 'a dog', i, (i,), b, Path(f'{b}.jpg'), 20, 30) for i, b in enumerate((0, 0, 1))]
    x, ids, mask = inputs(config)
    batch = Batch(x, ids, mask, torch.zeros(3, dtype=torch.long, device='cuda'), es, [Path('0.jpg'), Path('1.jpg')])
    return batch, [Truth(*(torch.ones(n, 20, 30, dtype=torch.bool, device='cuda') for _ in range(2))) for n in (2, 1)]


@pytest.mark.parametrize('name', ['convolutional network', 'vision transformer', 'clusters'])
def test_evaluation_stays_on_the_gpu(fake, name):
    model = build(fake, MODELS[name]).eval()
    model.tokenizer = None
    rules = (*RULES, *TRIVIAL, BLIND[0], ORACLE, MEAN)
    with torch.no_grad(): found = _batch_counts([model], photos(BASE)[:1], rules, [0, 1], photos(BASE)[1], .5, True)
    assert len({(rule, draw, b) for rule, draw, b, _, _ in found}) == len(found) == 2*(2*(len(RULES) + 2) + 3)
    counts = [n for _, _, _, kinds, _ in found for kind in kinds.values() for n in kind.values()]
    assert {n.device.type for n in counts} == {'cuda'} and {len(n) for n in counts} == {1, 2}
    assert [m.shape[0] for *_, m in found if m is not None] == [2, 1]


def test_prediction_stays_on_the_gpu(fake):
    model = build(fake, CONV).eval()
    model.tokenizer = None
    pixels, ids, mask = inputs(CONV)
    with torch.no_grad():
        _, out = next(encode_draws(model, pixels, [1, 2], [0]))
        text = model.encode_text(ids, mask)
        relevance = [relevance_of(model, ['a dog']*3, text, slots[None], maps) for slots, maps in zip(out.slots, out.slot_maps, strict=True)]
        scores = [full_size(segment_scores(r, m, rule), (20, 30)) for r, m in zip(relevance, out.slot_maps, strict=True) for rule in RULES]
    assert all(s.device.type == 'cuda' and s.shape == (3, 20, 30) for s in scores)


@pytest.mark.parametrize('clip', [0., .1])
def test_an_update_stays_on_the_gpu(fake, clip):
    model = build(fake, CONV)
    recipe = Recipe(clip=clip)
    for p in model.parameters(): p.grad = torch.zeros_like(p)
    training = SimpleNamespace(recipe=recipe, optimizer=optimizer(model, recipe), scaler=GradScaler('cuda', enabled=False), step=0, total=10, model=model)
    row = update(training, dict(loss=torch.zeros((), device='cuda')))
    assert row['grad_norm'].device.type == 'cuda' and training.step == 1


def test_negatives_that_say_the_same_are_found_without_the_gpu(fake):
    assert repeated(photos(BASE)[0]).device.type == 'cuda'


@pytest.mark.parametrize('mistake', ['left on the CPU', 'read back'])
def test_these_tests_can_fail(fake, mistake):
    model = build(fake, CONV)
    x, ids, mask = inputs(CONV)
    if mistake == 'read back':
        with pytest.raises(DataDependentOutputException): model(x, ids, mask).slots.sum().item()
    else:
        with pytest.raises(RuntimeError): model(x, ids.cpu(), mask)
