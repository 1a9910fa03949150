"""Left and right from mirror images, by what is known to be there; and losses inside one photo, whatever the batch."""
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sag.model.sag
from sag.config import Recipe, SaGConfig, change
from sag.data.batches import Batch, pad_sentences, word_tokenizer
from sag.data.expressions import Expression, Expressions
from sag.losses import contrastive_loss, mirror_loss, overlap_loss
from sag.model.geometry import moments
from sag.model.sag import SaG, SaGOutput
from sag.place import exchanged, parse
from sag.presets import recipe
from sag.record import Run
from sag.train import check_recipe, fit, load_data
from sag.train.objective import mirror_texts, overlapping

SIDES = ['left dog', 'right dog', 'leftmost cup', 'cup on the right', 'man left of the dog', 'second from right']
OTHERS = ['dog', 'red cup', 'left hand', 'left dog on the right', 'all right then']


def batch(sentences, things=None, photos=None):
    "A batch of one photo, or of those given, without pixels."
    photos = photos or [0]*len(sentences)
    es = [Expression(i, s, i, (things[i],) if things else (), p, Path(f'{p}.jpg')) for i, (s, p) in enumerate(zip(sentences, photos, strict=True))]
    own = torch.tensor(photos)
    return Batch(None, torch.ones(len(es), 3).long(), torch.ones(len(es), 3).long(), own, es, sorted({e.image for e in es}))


@given(st.lists(st.sampled_from(SIDES + OTHERS), min_size=1, max_size=6))
def test_only_sides_are_exchanged(words):
    sentence = ' '.join(words[:1])
    there = exchanged(sentence)
    assert bool(there) == (sentence in SIDES)
    if there: assert exchanged(there) and exchanged(exchanged(there)) == there and parse(there) != parse(sentence)


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_a_mirrored_map_has_mirrored_moments(seed, k, h, w):
    maps = torch.rand(2, k, h, w, generator=torch.Generator().manual_seed(seed))
    here, there = moments(maps), moments(maps.flip(-1))
    assert torch.allclose(there, here*torch.tensor([-1, 1, 1, 1, 1]), atol=1e-5) and (here[..., 2:] > 0).all()
    assert (here[..., :2].abs() <= .5).all() and (here[..., 2:4] <= .5 + 1e-4).all()


@given(st.integers(0, 10_000), st.integers(1, 3), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_mirror_loss_pair_by_pair(seed, photos, sentences):
    g = torch.Generator().manual_seed(seed)
    text, joint = torch.randn(2*sentences, 5, generator=g).double(), torch.randn(2*photos, 2*sentences, 5, generator=g).double()
    own, total = torch.randint(photos, (sentences,), generator=g), 0.
    for m in range(sentences):
        s = [[(text[t] @ joint[i, t])/.3 for i in (own[m], own[m] + photos)] for t in (m, m + sentences)]  # said and exchanged, here and there
        total += (s[0][1] - s[0][0]).exp().log1p() + (s[1][0] - s[1][1]).exp().log1p()
    found = mirror_loss(SaGOutput(*[torch.zeros(1)]*3, text=text, joint=joint), own, .3)
    assert torch.allclose(found, total/(2*sentences), atol=1e-8)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 2), min_size=1, max_size=6))
@settings(max_examples=40, deadline=None)
def test_overlap_loss_pair_by_pair(seed, own):
    g, t, k = torch.Generator().manual_seed(seed), len(own), 4
    relevance, maps = torch.rand(3, t, k, generator=g).double(), torch.rand(3, k, 2, 5, generator=g).double()
    upper = torch.rand(t, t, generator=g).triu(1) > .5
    pairs = (upper | upper.T) & (torch.tensor(own)[:, None] == torch.tensor(own))
    seen = [sum(relevance[own[i], i, j]*maps[own[i], j] for j in range(k)).flatten() for i in range(t)]
    each = [seen[i] @ seen[j]/(seen[i].norm()*seen[j].norm()) for i in range(t) for j in range(i + 1, t) if pairs[i, j]]
    found = overlap_loss(SaGOutput(torch.zeros(1), maps, torch.zeros(1), relevance=relevance), torch.tensor(own), pairs)
    assert torch.allclose(found, torch.stack(each).mean() if each else torch.zeros(()).double(), atol=1e-8)


def test_which_two_expressions_overlap():
    b = batch(['red dog', 'dog red', 'the left dog', 'cup', 'cup'], [1, 1, 1, 2, 2], [0, 0, 0, 0, 1])
    texts, referents = overlapping(b, 'texts').int().tolist(), overlapping(b, 'referents').int().tolist()
    assert texts == [[0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [1, 1, 0, 1, 0], [1, 1, 1, 0, 0], [0]*5]
    assert referents == [[0, 0, 0, 1, 0], [0, 0, 0, 1, 0], [0, 0, 0, 1, 0], [1, 1, 1, 0, 0], [0]*5]


# Photos of two things side by side, on patches that do not know where they are; each half of a photo is a slot
KINDS = 'dog', 'cat', 'bird'
TINY = SaGConfig(
    image_encoder='resnet18', image_weights='random', image_size=32, image_stride=4, text_encoder='words', text_weights='random', text_pooling='mean',
    text_args=dict(vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, max_position_embeddings=8,
                   hidden_dropout_prob=0., attention_probs_dropout_prob=0.),
    dim=16, context_dim=16, entities='grid', groups=2, slots_per_group=1, fusion=False, cosine_scale=4., reconstruct=False)
WORDS = word_tokenizer([f'left right {" ".join(KINDS)}'])


def photos(model, pairs):  # kinds on the left and on the right
    "Features (n, 64, C)."
    things = torch.randn(len(KINDS), model.image.width, generator=torch.Generator().manual_seed(7))
    x = torch.stack([torch.stack([things[a], things[b]]) for a, b in pairs])  # (n, 2, C)
    return x[:, None].repeat_interleave(4, 2).repeat(1, 8, 1, 1).flatten(1, 2)


def right_side(model):
    "The share of kinds k of which, in a photo of two of them, 'left k' is more about the left one and 'right k' about the right one."
    with torch.no_grad(): out = model.eval()(None, *pad_sentences([f'{side} {k}' for k in KINDS for side in ('left', 'right')], WORDS),
                                             features=photos(model, [(k, k) for k in range(3)]))
    ahead = torch.stack([out.relevance[k, 2*k:2*k + 2] for k in range(3)]).diff(dim=-1)[..., 0]  # (3, 2), right − left
    return ((ahead[:, 0] < -1e-3) & (ahead[:, 1] > 1e-3)).float().mean().item()


def learned(geometry, monkeypatch, steps=200):
    "Contrast of plain kinds and mirror images of sided ones, on photos of two different kinds."
    monkeypatch.setattr(sag.model.sag, 'sine_position', lambda h, w, dim, device=None: torch.zeros(h*w, dim, device=device))
    torch.manual_seed(0)
    model = SaG(replace(TINY, slot_geometry=geometry))
    model.tokenizer = WORDS
    pairs = [(a, b) for a in range(3) for b in range(3) if a != b]
    features, own = photos(model, pairs), [*range(6), *range(6)]
    plain = [KINDS[p[side]] for side in (0, 1) for p in pairs]
    sided = batch([f'{("left", "right")[i//6]} {k}' for i, k in enumerate(plain)], photos=own)
    has = torch.tensor([[k in (KINDS[a], KINDS[b]) for a, b in pairs] for k in plain]) & ~torch.eye(6).bool().repeat(2, 1)  # no negatives
    mirror, said = mirror_texts(sided, model), pad_sentences(plain, WORDS)
    adamw = torch.optim.AdamW([p for n, p in model.named_parameters() if not n.startswith('image.')], 3e-3)
    for _ in range(steps):
        kinds = contrastive_loss(model.train()(None, *said, features=features), sided.image_of_text, .1, has, fixed=False)
        out = model(None, *pad_sentences([e.sentence for e in sided.expressions], WORDS), features=features, mirror=mirror)
        sides = mirror_loss(out.mirror, sided.image_of_text, .1, fixed=False)
        adamw.zero_grad()
        (kinds + sides).backward()
        adamw.step()
    return right_side(model), sides.item()


def test_left_is_learned_from_mirror_images_and_geometry(monkeypatch):
    (found, loss), (without, unmoved) = (learned(o, monkeypatch) for o in (True, False))
    assert found > .5 and loss < .1, (found, loss)
    assert without == 0 and abs(unmoved - math.log(2)) < 1e-4, (without, unmoved)  # a photo and its mirror image are the same


def test_gradients_reach_geometry_and_exchanged_words():
    torch.manual_seed(0)
    model = SaG(replace(TINY, slot_geometry=True))
    model.tokenizer, b = WORDS, batch(['left dog', 'right dog', 'dog'])
    rows, ids, mask = mirror_texts(b, model)
    assert rows.tolist() == [0, 1] and WORDS.batch_decode(ids, skip_special_tokens=True) == ['right dog', 'left dog']
    out = model.train()(None, ids, mask, features=photos(model, [(0, 1)]), mirror=(rows, ids, mask))
    mirror_loss(out.mirror, b.image_of_text[rows], fixed=False).backward()
    assert model.geometry.out.weight.grad.abs().sum() > 0 and model.text.out.weight.grad.abs().sum() > 0
    assert mirror_texts(batch(OTHERS), model) is None


@pytest.mark.parametrize('changes, message', [
    (dict(overlap_weight=1., group='expression'), "set group='photo'"), (dict(overlap_weight=1., group='photo', texts_per_photo=1), 'texts_per_photo'),
    (dict(mirror_weight=1., student=.5, start='x'), 'mirror_weight is for the model')])
def test_contradictions_are_errors(changes, message):
    with pytest.raises(ValueError, match=message): check_recipe(change(Recipe(), **changes))


def test_referents_are_more_than_text(tmp_path):
    told = recipe('smoke', root=str(tmp_path/'scenes'), steps=2, evaluate_every=0, overlap_weight=.5, overlap_pairs='referents', slot_geometry=True,
                  mirror_weight=1.)
    bare = Expressions(replace(e, ann_ids=(), boxes=(), segmentations=()) for e in load_data(told, 'train'))
    with pytest.raises(ValueError, match="overlap_pairs='referents' needs annotated objects, and synthetic has none for"): fit(told, tmp_path/'no', train=bare)
    assert not Run(tmp_path/'no').trained
    assert 'overlap' in fit(change(told, overlap_pairs='texts'), tmp_path/'texts', train=bare).history[-1]
    run = fit(told, tmp_path/'told').run
    assert run.record['supervision'] == run.model.supervision == 'text + referents'
    student = fit(recipe('smoke', root=told.root, steps=2, evaluate_every=0, slot_geometry=True, student=.5, start=str(run.path)), tmp_path/'student')
    assert student.model.supervision == 'text + referents'  # its teacher knew


def test_mirror_images_of_cached_features(tmp_path):
    few = recipe('smoke', root=str(tmp_path/'scenes'), feature_dir=str(tmp_path/'features'), freeze_image=True, freeze_text=True, cache_features=True,
                 entities='clusters', cuts=(4, 9), fusion=False, cosine_scale=4., reconstruct=False, reconstruction_weight=0., slot_geometry=True,
                 mirror_weight=1., overlap_weight=.1, evaluate_every=0, save_every=1)
    whole = fit(few, tmp_path/'whole')
    assert {'mirror', 'overlap'} <= whole.history[-1].keys()
    seen = [row['loss'] for row in fit(change(few, cache_features=False), tmp_path/'photos').history]
    assert seen == pytest.approx([row['loss'] for row in whole.history], rel=1e-2)  # cached in float16
