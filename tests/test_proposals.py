"""Regions from outside, from the file to the report: trained with, measured with, and marked wherever a number appears."""
import json
import re

import pytest
import torch

from sag import cli
from sag.config import Recipe, change
from sag.data.proposals import Proposals, annotated, read_proposals
from sag.masks import write_json
from sag.model.sag import patch_grid
from sag.presets import presets
from sag.runs.report import report
from sag.train import batches, build_model, check_recipe, fit, load_data
from sag.train.objective import mirror_texts

LEARNED = 'text + mask-trained regions'
SMOKE = change(presets['smoke'], entities='proposals', groups=9, slots_per_group=1, val_split='', evaluate_every=0)


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
    "A tiny training whose regions are the annotated objects."
    root = tmp_path_factory.mktemp('scenes')
    tiny = change(SMOKE, root=str(root/'data'), proposals=str(root/'perfect.json'))
    write_json(tiny.proposals, annotated(load_data(tiny, 'all')))
    return tiny


@pytest.fixture(scope='module')
def trained(recipe, tmp_path_factory):
    dest = tmp_path_factory.mktemp('runs')/'outside'
    return fit(recipe, dest), dest


def test_a_training_sees_the_regions_of_every_photo(recipe, trained):
    training, _ = trained
    assert training.step == 4 and all(h['loss'] == h['loss'] and h['reconstruction'] > 0 for h in training.history)
    es = load_data(recipe, 'train')
    model = build_model(recipe, [e.sentence for e in es])
    model.proposals = read_proposals(recipe.proposals)
    batch = next(iter(batches(recipe, model, es)))
    assert batch.regions.shape == (8, 9, 16, 16) and batch.regions.dtype == torch.float16
    first = model.proposals.regions(next(e for e in es if e.image == batch.photos[0]).image_id, 9, 16)
    assert batch.regions[0].equal(first) and batch.to('cpu').regions.equal(batch.regions)


def test_gradients_reach_the_encoders_through_the_regions(recipe):
    es = load_data(recipe, 'train')
    model = build_model(recipe, [e.sentence for e in es])
    model.proposals = read_proposals(recipe.proposals)
    b = next(iter(batches(recipe, model, es)))
    out = model(b.pixel_values, b.input_ids, b.attention_mask, regions=b.regions)
    assert out.relevance.sum(-1).sub(1).abs().max() < 1e-5 and out.slot_maps.shape == (8, 9, 16, 16)
    out.joint.sum().backward()
    assert all(p.grad.abs().sum() > 0 for n, p in model.named_parameters() if n == 'project.weight' or n.startswith('image.') and p.grad is not None)


def test_a_mirror_image_has_mirrored_regions(recipe):
    es = load_data(recipe, 'train')
    model = build_model(change(recipe, slot_geometry=True), [e.sentence for e in es]).eval()
    model.proposals = read_proposals(recipe.proposals)
    b = next(iter(batches(recipe, model, es)))
    with torch.no_grad():
        out = model(None, b.input_ids, b.attention_mask, features=model.image(b.pixel_values).flatten(2).transpose(1, 2), regions=b.regions,
                    mirror=mirror_texts(b, model))
        h, w = patch_grid(out)
        flipped = out.features.unflatten(1, (h, w)).flip(2).flatten(1, 2)
        alone = model.encode_image(features=flipped, regions=b.regions.flip(-1))
    assert torch.allclose(out.mirror.slots, torch.cat([out.slots, alone.slots]), atol=1e-5) and not torch.allclose(out.slots, alone.slots, atol=1e-2)
    assert out.mirror.slot_maps.equal(torch.cat([out.slot_maps, alone.slot_maps]))


def trip(training):
    if training.step == 2: raise InterruptedError


def test_a_resumed_run_is_the_same(recipe, tmp_path):
    watched = change(recipe, val_split='val', evaluate_every=2, save_every=1)
    whole = fit(watched, tmp_path/'whole').model.state_dict()
    with pytest.raises(InterruptedError): fit(watched, tmp_path/'run', watch=trip)
    for k, v in fit(watched, tmp_path/'run', resume=True).model.state_dict().items(): assert v.equal(whole[k]), k


@pytest.mark.parametrize('changes, error, message', [
    (dict(proposals=''), ValueError, "entities='proposals' needs regions: name their file in proposals"),
    (dict(entities='slots'), ValueError, "proposals='.*' needs entities='proposals', not 'slots'"),
    (dict(proposals='no-such.json'), FileNotFoundError, 'no-such.json'),
    (dict(context_dim=16), ValueError, 'proposals need dim = context_dim, not 32 and 16')])
def test_a_recipe_that_cannot_be_followed(recipe, tmp_path, changes, error, message):
    with pytest.raises(error, match=message): fit(change(recipe, **changes), tmp_path/'run')
    assert not (tmp_path/'run'/'model.safetensors').exists()


def test_photos_without_regions_are_counted_before_the_training(recipe, tmp_path):
    records = json.loads(open(recipe.proposals).read())
    fewer = [r for r in records if r['image_id'] != records[0]['image_id']]
    poor = change(recipe, proposals=str(write_json(tmp_path/'poor.json', fewer)))
    with pytest.raises(ValueError, match=r'poor.json has no regions for 1 of \d+ photos: COCO_train2014'): fit(poor, tmp_path/'run')
    assert not list((tmp_path/'run').glob('*.safetensors'))


def test_the_best_scores_are_kept():
    rle = lambda n: dict(size=[2, 2], counts=[0, n, 4 - n])
    found = Proposals({1: [rle(1), rle(2), rle(3)]}, 'p')
    assert found.regions(1, 3, 1).flatten().tolist() == [.25, .5, .5]  # two regions, and the rest


def test_the_mark_in_record_table_and_report(recipe, trained, in_process, tmp_path, capsys):
    training, dest = trained
    data = dict(dataset='refcoco', root=recipe.root, split='val', draws=1, shown=1)
    cli.evaluate(str(dest), **data, dest=str(dest/'val'))  # its own regions, from the record
    said = capsys.readouterr().out
    assert re.search(r'photos \(val\), 1 slot draws; the model learned from more than text \(text \+ mask-trained regions\);', said), said
    facts = json.loads((dest/'val'/'metrics.json').read_text())
    assert facts['supervision'] == LEARNED and facts['proposals'] == recipe.proposals and facts['changes'] == dict(entities='proposals')
    plain = fit(change(recipe, entities='clusters', proposals='', freeze_image=True), dest.parent/'clusters')
    cli.evaluate(str(plain.dest), **data, dest=str(plain.dest/'val'))
    said = capsys.readouterr().out
    assert 'mask-trained' not in said and json.loads((plain.dest/'val'/'metrics.json').read_text())['supervision'] == 'text'
    cli.evaluate(str(plain.dest), **data, proposals=recipe.proposals)  # the same weights, with regions
    facts = json.loads((plain.dest/'refcoco-val-perfect'/'metrics.json').read_text())
    assert facts['supervision'] == LEARNED
    for p in dest.parent.rglob('evaluate.ipynb'): p.unlink()  # not papermill's: they lack its times
    report(dest.parent, tmp_path/'report', draws=20, shown=1)
    text = (tmp_path/'report'/'report.md').read_text()
    for line in text.splitlines():
        if line.startswith('|') and ('outside' in line or 'perfect' in line) and not line.startswith('| proposals |'): assert 'mask-trained' in line, line
        if line.startswith('| clusters/val |'): assert 'mask-trained' not in line
    assert text.count('mask-trained') > 4 and 'No pictures' not in text


def test_a_training_of_ones_own_says_so_in_the_card(recipe, trained):
    from sag.share import model_card
    card = model_card(trained[1])
    assert f'**More than text: {LEARNED}.**' in card and 'No mask and no box' not in card


def test_the_check_comes_first():
    check_recipe(change(Recipe(), entities='proposals', proposals='sam.json'))
    with pytest.raises(ValueError, match='needs regions'): check_recipe(change(Recipe(), entities='proposals'))
