"Newer test sets, each from a sample in its published format: read, prepared, checked and measured."
import json
import pickle
import shutil
from pathlib import Path

import pytest

from sag import cli
from sag.config import change
from sag.data.proposals import annotated
from sag.data.refer import load_refer
from sag.data.sets import DATASETS, count_splits, find_problems, load, prepare_table
from sag.data.synthetic import write_scenes
from sag.evaluate import evaluate
from sag.evaluate.retrieval import composed, evaluate_presence
from sag.masks import write_json
from sag.metrics import generalised
from sag.presets import presets
from sag.runs.papermill import RunError
from sag.train import build_model

@pytest.fixture(scope='module')
def scenes(tmp_path_factory):
    "Generated photos with RefCOCO's files, half of the photos in val2014."
    root = write_scenes(tmp_path_factory.mktemp('data'), photos=dict(train=4, val=6, testA=3, testB=3))
    photos = root/'coco/images/train2014'
    (photos.parent/'val2014').mkdir()
    for p in sorted(photos.iterdir())[::2]: shutil.move(p, photos.parent/'val2014'/p.name)
    return root


@pytest.fixture(scope='module')
def model(scenes): return build_model(presets['smoke'], [e.sentence for e in load_refer(scenes)])


def zom(root):
    "Ref-ZOM: RefCOCO's format; `source` says zero, one or many, and a zero may carry the objects of another photo."
    refs = pickle.loads((root/'refer/refcoco/refs(unc).p').read_bytes())
    by_photo = {}
    for r in refs: by_photo.setdefault(r['image_id'], []).append(r['ann_id'])
    for i, r in enumerate(refs):
        r['split'] = 'test' if r['split'] != 'train' else 'train'
        r['source'] = ('one', 'zero', 'many')[i % 3]
        if r['source'] == 'zero': r['ann_id'] = [next(a for p, a in ((p, a[0]) for p, a in by_photo.items()) if p != r['image_id'])]
        if r['source'] == 'many': r['ann_id'] = by_photo[r['image_id']]
    folder = root/'refer/ref-zom'
    folder.mkdir()
    (folder/'Ref-ZOM(final).p').write_bytes(pickle.dumps(refs))
    shutil.copy(root/'refer/refcoco/instances.json', folder)


def reviewed(root, name='refcoco'):
    "Ref-L4's reviews: MDETR's format, an image entry for each expression."
    folder = root/'refcocos_annotation_reviewed'
    folder.mkdir()
    for split in 'val', 'testA', 'testB':
        es = load_refer(root, split=split)
        images = [dict(id=i, original_id=e.image_id, file_name=e.image.name, height=e.height, width=e.width, caption=e.sentence) for i, e in enumerate(es)]
        anns = [dict(id=i, image_id=i, original_id=e.ann_ids[0], bbox=e.box, caption_quality=int(i % 3 > 0)) for i, e in enumerate(es)]
        (folder/f'{name}_{split}_reviewed.json').write_text(json.dumps(dict(images=images, annotations=anns)))


def arefcoco(root):
    es = {e.ref_id: e for e in load_refer(root, split='val')}
    anns = [dict(entity_id=i, ref_id=r, original_dataset='refcoco', split='test', descriptions=[f'not the other {e.sentence}', 'it is nearer'])
            for i, (r, e) in enumerate(es.items())]
    (root/'refer/arefcoco').mkdir()
    (root/'refer/arefcoco/arefcoco.json').write_text(json.dumps(dict(annotations=anns)))


def reasonseg(root):
    for i, e in enumerate(load_refer(root, split='val')[:4]):
        folder = root/'reasonseg'/('val' if i < 2 else 'test')
        folder.mkdir(parents=True, exist_ok=True)
        e.photo().save(folder/f'{i}.jpg')
        x, y, w, h = e.box
        shapes = [dict(label='target', points=[[x, y], [x + w, y], [x + w, y + h], [x, y + h]]), dict(label='flag', points=[[0, 0], [3, 0], [3, 3]])]
        text = json.dumps(dict(text=['what could roll away?', 'a caf\xe9'], is_sentence=bool(i % 2), shapes=shapes), ensure_ascii=False)
        (folder/f'{i}.json').write_bytes(text.encode('cp1252' if i else 'utf-8'))


def finecops(root):
    images, anns = [], []
    for i, e in enumerate(load_refer(root, split='val')):
        images.append(dict(id=i, file_name=e.image.name, height=e.height, width=e.width, caption=e.sentence))
        negative = dict(negative_type='replace', negative_level=1, positive_id=i - 1) if i % 2 else {}
        anns.append(dict(id=i, image_id=i, bbox=e.box, area=1., iscrowd=0, level=1 + i % 3) | negative)
    (root/'finecops-ref').mkdir()
    shutil.copytree(root/'coco/images', root/'finecops-ref/all')
    for p in (root/'finecops-ref/all').glob('*/*'): shutil.copy(p, root/'finecops-ref/all')
    (root/'finecops-ref/all').rename(root/'finecops-ref/images')
    (root/'finecops-ref/test_expression_all_coco_format.json').write_text(json.dumps(dict(images=images, annotations=anns)))


SAMPLES = {'ref-zom': zom, 'refcoco-reviewed': reviewed, 'arefcoco': arefcoco, 'reasonseg': reasonseg, 'finecops-ref': finecops}


@pytest.mark.parametrize('name', SAMPLES)
def test_a_test_set_is_read_prepared_and_measured(name, scenes, model, tmp_path):
    root = shutil.copytree(scenes, tmp_path/'data')
    SAMPLES[name](root)
    found = load(name, root)
    table = prepare_table(name, root)
    assert [(e.sent_id, e.sentence, e.split, e.tags) for e in table] == [(e.sent_id, e.sentence, e.split, e.tags) for e in found]
    assert find_problems(table) == [] and not count_splits(table, next(iter(DATASETS[name].published.values()))).empty
    es = [e for e in table.split('val' if name == 'refcoco-reviewed' else 'test') if not e.no_target]
    rows = evaluate(model, es, draws=(0,), rules=['relevance'])
    assert (rows.rule == 'relevance').sum() == len(es) and ('pointing_box' if name == 'finecops-ref' else 'iou') in rows


@pytest.mark.parametrize('name', ['ref-zom', 'finecops-ref'])
def test_expressions_that_name_nothing_are_measured_as_gref_s(name, scenes, model, tmp_path):
    root = shutil.copytree(scenes, tmp_path/'data')
    SAMPLES[name](root)
    es = load(name, root, split='test')
    assert 0 < sum(e.no_target for e in es) < len(es)
    measured = {presence: generalised(evaluate_presence(model, es, presence)) for presence in (-9., 9.)}
    if name == 'finecops-ref': assert {'Precision@1 level1', 'Recall@1 negative1', 'AUROC replace'} <= {*composed(evaluate_presence(model, es, -9.), es)}
    assert measured[9.]['n_acc'] == 1 and measured[9.]['t_acc'] == 0 and measured[-9.]['t_acc'] > measured[-9.]['n_acc']


def test_what_measuring_nothing_needs_is_asked_for_before_it_begins(scenes, tmp_path):
    root = shutil.copytree(scenes, tmp_path/'data')
    zom(root)
    where = dict(model='small', dataset='ref-zom', root=str(root), split='test', draws=1, dest=str(tmp_path/'found'))
    write_json(tmp_path/'masks.json', annotated(load('ref-zom', root, split='test')))
    with pytest.raises(RunError, match='no regions for 4 of 4 photos'): cli.evaluate(**where, proposals=str(tmp_path/'masks.json'))  # the training's
    assert not (tmp_path/'found/expressions.csv').exists()
    cli.evaluate(**where)
    assert {'giou', 'n_acc', 't_acc', 'presence'} <= {*json.loads((tmp_path/'found/generalised.json').read_text())}


def test_photos_of_train_and_val(scenes):
    folders = {e.image.parent.name for e in load('refcoco', scenes)}
    assert folders == {'train2014', 'val2014'} == {e.image.parent.name for e in load('refcoco', scenes, images=scenes/'coco/images')}


def test_every_data_set_has_a_row_in_the_table():
    table = (Path(__file__).parents[1]/'data/README.md').read_text(encoding='utf-8')
    assert [k for k in DATASETS if f'`{k}`' not in table] == []


def test_the_named_sets_are_in_the_list():
    assert {*SAMPLES, 'refcoco-m', 'refcoco+-reviewed', 'refcocog-reviewed'} <= {*DATASETS}
    assert change(presets['smoke'], dataset='ref-zom').dataset == 'ref-zom'
