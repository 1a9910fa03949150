"""What people reported of such data: for each kind a small input, and what has to come of it."""
import json
import pickle
import shutil
import struct
import zipfile
from itertools import count

import numpy as np
import pytest
import torch
from PIL import Image

from sag.config import SaGConfig, change
from sag.data import load, load_captions, load_refer
from sag.data.batches import squash
from sag.data.download import unpack
from sag.data.features import cache_features
from sag.data.sets import find_problems, photo_key, prepare_table
from sag.evaluate import evaluate
from sag.presets import presets
from sag.record import commit
from sag.runs.papermill import RunError, resume, run
from sag.train import build_model, fit

LEFT, RIGHT = [[0, 0, 40, 0, 40, 40, 0, 40]], [[40, 0, 80, 0, 80, 40, 40, 40]]


def ref(i=1, ann=1, image=1, split='val'):
    return dict(ref_id=i, ann_id=ann, image_id=image, split=split, category_id=1, sentences=[dict(sent_id=i, sent=f'thing {i}', raw=f'Thing {i}')])

def ann(i=1, image=1, seg=LEFT, box=(0, 0, 40, 40)): return dict(id=i, image_id=image, category_id=1, bbox=box, segmentation=seg)

def img(i=1, width=80, height=40): return dict(id=i, file_name=f'{i}.jpg', width=width, height=height)


@pytest.fixture
def make(tmp_path):
    "Write a data set; the folder."
    numbers = count()
    def make(refs, images, anns, name='refcoco'):
        root = tmp_path/f'data{next(numbers)}'
        (root/'refer'/name).mkdir(parents=True)
        (root/'images').mkdir()
        (root/'refer'/name/'refs(unc).p').write_bytes(pickle.dumps(refs))
        (root/'refer'/name/'instances.json').write_text(json.dumps(dict(images=images, annotations=anns, categories=[dict(id=1, name='thing')])))
        for i in images: Image.new('RGB', (i['width'], i['height'])).save(root/'images'/i['file_name'])
        return root
    return make


class Seen(torch.nn.Module):
    "An encoder that gives back what it is shown, in 8×8 patches."
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x): return torch.nn.functional.adaptive_avg_pool2d(x, 8)*self.weight


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('frame', [(80, 40), (40, 80), (20, 40), (160, 80)])
def test_cached_features_are_of_the_annotated_frame(make, tmp_path, orientation, frame):
    root = make([ref()], [img(1, *frame)], [ann(seg=[[0, 0, 9, 0, 9, 9]])])
    pixels, exif = np.random.default_rng(0).integers(0, 256, (5, 10, 3), np.uint8).repeat(8, 0).repeat(8, 1), Image.Exif()  # 80 wide, 40 high, as stored
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(root/'images/1.jpg', exif=exif, quality=95)
    e, = load_refer(root)
    assert (e.photo().size[0] > e.photo().size[1]) == (frame[0] > frame[1] if orientation > 4 else True)
    found = cache_features(Seen(), SaGConfig(image_size=32), [e], tmp_path/'features')[e.image]
    shown = Seen()(squash(e.photo(), 32)[None].float().div(127.5).sub(1))[0].flatten(1).T
    assert torch.allclose(found.float(), shown, atol=.01)


def test_an_object_of_another_photo_is_not_joined(make):
    two = [img(1), img(2)]
    a, b = load_refer(make([ref(1, 1, 1), ref(2, 1, 2)], two, [ann(1, 1), ann(1, 2, RIGHT)]))  # numbers begin anew in each photo
    assert a.mask[:, :40].all() and b.mask[:, 40:].all()
    with pytest.raises(ValueError, match='referent 1: its object 2 belongs to photo 2, its own is 1'): load_refer(make([ref(1, 2, 1)], two, [ann(2, 2)]))
    with pytest.raises(ValueError, match='image 1 occurs twice'): load_refer(make([ref()], [img(1), img(1, 40, 80)], [ann()]))
    upper = make([ref()], [img()], [ann()])
    (upper/'images/1.jpg').rename(upper/'images/1.JPG')
    assert load_refer(upper)[0].image == upper/'images/1.JPG'


def test_photos_are_where_they_are_said_to_be(make, tmp_path):
    root, elsewhere = make([ref()], [img()], [ann()]), tmp_path/'elsewhere'
    prepare_table('refcoco', root)
    shutil.copytree(root/'images', elsewhere)
    with pytest.warns(UserWarning, match='made with other photos'): assert prepare_table('refcoco', root, images=elsewhere)[0].image.parent == elsewhere
    shutil.rmtree(root/'images')
    assert load('refcoco', root, images=elsewhere)[0].image.exists()
    for open_it in prepare_table, load:
        with pytest.raises(FileNotFoundError, match='nowhere: no such folder of photos'): open_it('refcoco', root, images=tmp_path/'nowhere')
    deep = tmp_path/'a/b/c'
    deep.mkdir(parents=True)
    (deep/'linked').symlink_to(make([ref()], [img()], [ann()]))
    assert prepare_table('refcoco', deep/'linked', images=elsewhere)[0].image.exists() and load('refcoco', deep/'linked', images=elsewhere)


def test_a_data_set_is_not_taken_for_another(make, tmp_path):
    root = make([ref()], [img()], [ann()])
    assert load_refer(root/'refer/refcoco', 'refcoco', images=root/'images')
    with pytest.raises(FileNotFoundError, match=r"of 'refcoco\+' not found"): load_refer(root/'refer/refcoco', 'refcoco+', images=root/'images')
    (tmp_path/'b').mkdir()
    shutil.copy(root/'images/1.jpg', tmp_path/'b/1.jpg')
    assert photo_key(root/'images/1.jpg') != photo_key(tmp_path/'b/1.jpg')


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('spoilt', [ann(2, 2, box=(29, 38, 1, 0)), ann(2, 2, box=(500, 500, 5, 5)), ann(2, 2, box=None)])
def test_a_box_without_area_does_not_end_an_evaluation(make, spoilt):
    es = load_refer(make([ref(1, 1, 1), ref(2, 2, 2)], [img(1), img(2)], [ann(1, 1), spoilt]))
    rows = evaluate(build_model(presets['smoke'], ['thing']), es, draws=(0,), baselines=False, progress=False)
    assert rows.iou.notna().all() and len(rows) == 2


@pytest.mark.filterwarnings('ignore')
def test_a_referent_is_not_what_one_of_its_objects_is(make):
    es = load_refer(make([ref(1, [1, 2])], [img()], [ann(1), ann(2, seg=[], box=(60, 0, 20, 40))]))
    rows = evaluate(build_model(presets['smoke'], ['thing']), es, draws=(0,), baselines=False, progress=False)
    assert 'iou' not in rows and rows.pointing_box.notna().all() and es[0].box == (0, 0, 80, 40)


def test_an_empty_mask_is_named(make):
    es = load_refer(make([ref(7)], [img()], [ann(seg=[[5., 5., 5., 5., 5., 5.]])]))
    assert [p.kind for p in find_problems(es, 1)] == ['mask']
    with pytest.raises(ValueError, match=r'referent 7 \(annotations \[1\]\) of 1.jpg: its mask is empty'): es[0].mask  # noqa: B018


def test_without_git_there_is_training(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert commit() == 'unknown'
    small = change(presets['smoke'], root=str(tmp_path/'scenes'), steps=1, evaluate_every=0, val_split='', selection='last')
    assert fit(small, tmp_path/'run').run.record['commit'] == 'unknown'


def test_a_split_that_is_not_there_is_known_before_the_first_step(tmp_path):
    changes = dict(root=str(tmp_path/'scenes'), steps=1)
    with pytest.raises(RunError, match="no split 'nope' here; there are train"): run('train', tmp_path/'run', changes=changes, test='nope')
    with pytest.raises(RunError, match="no split 'never' here; there are train"): resume(tmp_path/'run', test='never')
    assert not (tmp_path/'run/run.json').exists() and not (tmp_path/'run/model.safetensors').exists()


COCO = '{{"images": [{{"id": "7", "file_name": "a.jpg"}}], "annotations": [{{"id": 1, "image_id": {}, "caption": {}}}]}}'


@pytest.mark.filterwarnings('ignore:.*is not UTF-8')
@pytest.mark.parametrize('name, text, wanted', [
    ('captions.csv', 'image,caption\na.jpg,A dog, a cat\n', ['A dog, a cat']),
    ('captions.csv', 'image,caption\na.jpg,"A dog\na.jpg,A cat\n', 'line 2: a quote'),
    ('captions.csv', 'image,caption\na.jpg,"A dog\n' + 'a.jpg,A cat\n'*20_000, 'line 2: a quote'), ('captions.csv', 'image,caption\na.jpg,A d\0og\n', 'NUL'),
    ('captions.csv', 'image,caption\na.jpg,café\n'.encode('cp1252'), ['café']), ('captions.csv', 'image,caption\na.jpg,A dog\n'.encode('utf-16'), ['A dog']),
    ('x.token', 'a.jpg#0\tA dog\u2028runs\n', ['A dog\u2028runs']), ('results.csv', 'image_name| n| comment\na.jpg| 0| A dog, a cat\n', ['A dog, a cat']),
    ('captions.json', COCO.format('"7"', 'null'), 'None, not text'), ('captions.json', COCO.format('7.0', '"A dog"'), ['A dog'])])
def test_captions_are_whole_or_an_error(tmp_path, name, text, wanted):
    (tmp_path/'images').mkdir()
    Image.new('RGB', (8, 8)).save(tmp_path/'images/a.jpg')
    (tmp_path/name).write_bytes(text if isinstance(text, bytes) else text.encode())
    if isinstance(wanted, list): assert [e.sentence for e in load_captions(tmp_path)] == wanted
    else:
        with pytest.raises(ValueError, match=wanted) as e: load_captions(tmp_path)
        assert str(tmp_path) in str(e.value)


@pytest.mark.parametrize('spoil, message', [
    ((500, b'\xff'*20), 'broken'), ((52, b'\xff'*8), 'broken'), ((6, struct.pack('<H', 1)), 'Unpack it yourself'), ((8, struct.pack('<H', 9)), '7-Zip')])
def test_archives_are_whole_or_an_error(tmp_path, spoil, message):
    content = np.random.default_rng(0).bytes(2000) + b'a'*20_000
    with zipfile.ZipFile(tmp_path/'x.zip', 'w', zipfile.ZIP_DEFLATED) as z: z.writestr('refclef\\instances.json', content)
    whole, (place, data) = bytearray((tmp_path/'x.zip').read_bytes()), spoil
    unpack(tmp_path/'x.zip', tmp_path/'out', bar=False)
    assert (tmp_path/'out/refclef/instances.json').stat().st_size == 22_000
    whole[place:place + len(data)] = data
    central = whole.rindex(b'PK\1\2') + place + 2
    if place < 10: whole[central:central + 2] = data
    (tmp_path/'y.zip').write_bytes(whole)
    with pytest.raises(ValueError, match=f'y.zip: .*{message}'): unpack(tmp_path/'y.zip', tmp_path/'other', bar=False)
    assert not [*(tmp_path/'other').rglob('*.json')]
