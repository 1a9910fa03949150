"""Spoilt data files: every reader gives the right data, or a ValueError or FileNotFoundError that names the file. Seeds are fixed."""
import copy
import io
import json
import os
import pickle
import random
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sag.data import load, load_captions, load_phrasecut, load_refer
from sag.data.caches import Rows, new_rows
from sag.data.expressions import decode
from sag.data.npz import build_vocabulary, load_npz, write_npz
from sag.data.photos import read_photo
from sag.data.sets import prepare_table, prepared_file
from sag.data.synthetic import write_scenes

ODD = (None, True, -1, 0, 1e12, float('nan'), float('inf'), 2**63, 2**100, '', 'x', '7', '\ud83d', b'\xff', [], [None], [[]], {}, {'a': 1}, [1.5],
       'a\0b', '../../x.jpg')

pytestmark = pytest.mark.filterwarnings('ignore')


def places(x, path=()):
    "Where something can be replaced in nested lists and dicts"
    if path: yield path
    for k in (x if isinstance(x, dict) else range(len(x)) if isinstance(x, list) else ()): yield from places(x[k], (*path, k))

def spoil(rng, data):
    "A copy with one to three values replaced, removed or doubled"
    data = copy.deepcopy(data)
    for _ in range(rng.randint(1, 3)):
        if not (there := list(places(data))): return data
        *above, last = rng.choice(there)
        where = data
        for k in above: where = where[k]
        act = rng.random()
        if act < .6: where[last] = copy.deepcopy(rng.choice(ODD))
        elif act < .8: del where[last]
        elif isinstance(where, list): where.append(copy.deepcopy(where[last]))
        else: where[last] = [where[last]]
    return data

def damage(rng, data):
    "Bytes with bits flipped, pieces removed, doubled or added"
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        i, n = rng.randrange(len(data) or 1), rng.randint(1, 40)
        act = rng.randrange(5)
        if act == 0: data[i:i + 1] = bytes([rng.randrange(256)])
        elif act == 1: del data[i:i + n]
        elif act == 2: data[i:i] = data[i:i + n]
        elif act == 3: data[i:i] = rng.randbytes(n)
        else: del data[i:]
    return bytes(data)

def tried(read, *names):
    "What `read` gives, or None where it says in one line what is wrong with which file"
    try: return read()
    except (ValueError, FileNotFoundError) as e:
        assert any(n in str(e) for n in names), f'names no file: {type(e).__name__}: {e}'
        assert len(str(e)) < 2000 and 'Traceback' not in str(e)


@pytest.fixture(scope='module')
def scenes(tmp_path_factory): return write_scenes(tmp_path_factory.mktemp('fuzz')/'scenes', photos=dict(train=2, val=1))

def annotations(root):
    folder = root/'refer/refcoco'
    return folder, pickle.loads((folder/'refs(unc).p').read_bytes()), json.loads((folder/'instances.json').read_text())

def used(es):
    "Read everything that evaluation would read"
    for e in es:
        if e.segmentations: assert e.mask.shape == (e.height, e.width)
        assert isinstance(e.sentence, str) and e.sentence.encode() is not None and all(len(b) == 4 for b in e.boxes)
    return len(es)

@pytest.mark.parametrize('seed', range(10))
def test_annotations(tmp_path, scenes, seed):
    _, refs, coco = annotations(scenes)
    polygons = [dict(a, segmentation=[[1., 1., 30., 1., 30., 30.], [5, 5, 9, 5, 9, 9]]) for a in coco['annotations']]
    root, rng = tmp_path/'d', random.Random(seed)
    (root/'refer/refcoco').mkdir(parents=True)
    (root/'coco').symlink_to(scenes/'coco')
    for _ in range(25):
        r, c = refs[:3], dict(coco, annotations=rng.choice((polygons, coco['annotations'])))
        r, c = (spoil(rng, r), c) if rng.random() < .5 else (r, spoil(rng, c))
        (root/'refer/refcoco/refs(unc).p').write_bytes(pickle.dumps(r))
        (root/'refer/refcoco/instances.json').write_text(json.dumps(c, default=repr))
        tried(lambda: used(load_refer(root)), str(root), '.jpg')
        prepared_file(root, 'refcoco', 'unc').unlink(missing_ok=True)
        tried(lambda: used(prepare_table('refcoco', root)), str(root), '.jpg')

LAUGHS: list = []
for _ in range(60): LAUGHS = [LAUGHS, LAUGHS]  # as text, longer than any memory; 400 bytes as a pickle

@pytest.mark.parametrize('field', ['', 'ref_id', 'ann_id', 'image_id', 'category_id', 'split', 'sentences', 'sent', 'sent_id'])
def test_a_value_too_long_to_print(tmp_path, scenes, field):
    folder, refs, _ = annotations(scenes)
    (tmp_path/'coco').symlink_to(scenes/'coco')
    (tmp_path/'refer/refcoco').mkdir(parents=True)
    (tmp_path/'refer/refcoco/instances.json').symlink_to(folder/'instances.json')
    ref, sentence = dict(refs[0]), dict(refs[0]['sentences'][0])
    if field in sentence: ref['sentences'] = [sentence | {field: LAUGHS}]
    elif field: ref[field] = LAUGHS
    (tmp_path/'refer/refcoco/refs(unc).p').write_bytes(pickle.dumps([ref] if field else dict(a=LAUGHS)))
    assert bool(tried(lambda: used(load_refer(tmp_path)), str(tmp_path))) == (field == 'category_id')

@pytest.mark.parametrize('kind', ['folder', 'pipe', 'device'])
@pytest.mark.parametrize('name', ['refs(unc).p', 'instances.json', 'captions.csv', 'refcoco-unc.arrow'])
def test_what_is_no_file(tmp_path, kind, name):
    (tmp_path/'refer/refcoco').mkdir(parents=True)
    (tmp_path/'prepared').mkdir()
    for n in ('refs(unc).p', 'instances.json'): (tmp_path/'refer/refcoco'/n).write_text('{}')
    path = tmp_path/(f'refer/refcoco/{name}' if name[0] in 'ri' and name[-1] != 'w' else f'prepared/{name}' if name[-1] == 'w' else name)
    path.unlink(missing_ok=True)
    make = dict(folder=path.mkdir, pipe=lambda: os.mkfifo(path), device=lambda: path.symlink_to('/dev/zero'))
    make[kind]()
    with pytest.raises((ValueError, FileNotFoundError), match='is a folder, a pipe or a device|no whole pickle|no captions.csv|no folder of photos'):
        load_captions(tmp_path) if 'csv' in name else load('refcoco', tmp_path)


@pytest.mark.parametrize('seed', range(4))
def test_damaged_annotation_files(tmp_path, scenes, seed):
    folder, refs, coco = annotations(scenes)
    root, rng = tmp_path/'d', random.Random(seed)
    (root/'refer/refcoco').mkdir(parents=True)
    (root/'coco').symlink_to(scenes/'coco')
    files = {n: (folder/n).read_bytes() for n in ('refs(unc).p', 'instances.json')}
    files['refs(unc).p'] = pickle.dumps(refs, rng.randrange(5))
    for _ in range(25):
        bad = rng.choice(list(files))
        for n, data in files.items(): (root/'refer/refcoco'/n).write_bytes(damage(rng, data) if n == bad else data)
        tried(lambda: used(load_refer(root)), str(root), '.jpg')


@pytest.mark.parametrize('seed', range(40))
def test_segmentations(seed):
    rng = random.Random(seed)
    good = [dict(size=[20, 30], counts=[10, 5, 585]), dict(size=[20, 30], counts='Q1;Xb0'), [[1, 1, 20, 1, 20, 9.5, 1, 9]], [dict(size=[20, 30], counts=[600])]]
    for _ in range(10):
        s = spoil(rng, [rng.choice(good)])
        try: assert decode(s[0] if s else None, 20, 30).shape == (20, 30)
        except ValueError as e: assert len(str(e)) < 300


@pytest.mark.parametrize('seed', range(4))
def test_captions(tmp_path, seed):
    rng = random.Random(seed)
    (tmp_path/'images').mkdir()
    Image.new('RGB', (8, 8)).save(tmp_path/'images/a.jpg')
    coco = dict(images=[dict(id=1, file_name='a.jpg', height=8, width=8)], annotations=[dict(id=i, image_id=1, caption='A café .') for i in range(3)])
    karpathy = dict(images=[dict(filename='a.jpg', split='train', cocoid=1, sentences=[dict(raw='A dog'), dict(raw='A cat')])])
    texts = {'c.csv': 'image,caption\na.jpg,A dog\na.jpg,"A dog, a ""cat"" runs"\n'*3, 't.token': 'a.jpg#0\tA dog .\na.jpg#1\tA café .\n'*3,
             'results.csv': 'image_name| n| comment\na.jpg| 0| A dog\n'}
    for i in range(40):
        if i % 2:
            path, data = tmp_path/'captions_train2014.json', json.dumps(spoil(rng, rng.choice((coco, karpathy))), default=repr).encode()
        else:
            name = rng.choice(list(texts))
            path, data = tmp_path/name, damage(rng, texts[name].encode(rng.choice(('utf-8', 'utf-16', 'cp1252'))))
        path.write_bytes(data)
        tried(lambda path=path: used(load_captions(path, split='all')), str(tmp_path))


@pytest.mark.parametrize('form', ['JPEG', 'PNG', 'WEBP', 'GIF', 'TIFF', 'BMP', 'PPM'])
def test_photos(tmp_path, form):
    rng, made = random.Random(form), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 40, 3), np.uint8))
    photo.save(made, form, **(dict(exif=exif) if form in ('JPEG', 'PNG', 'WEBP', 'TIFF') else {}))
    for i in range(40):
        path = tmp_path/f'{i}.{form.lower()}'
        path.write_bytes(damage(rng, made.getvalue()))
        read = tried(lambda path=path: read_photo(path, rng.choice((None, (32, 40), (80, 100)))), str(path))
        assert read is None or read.mode == 'RGB'


@pytest.mark.parametrize('seed', range(3))
def test_tables(tmp_path, scenes, seed):
    rng, root = random.Random(seed), tmp_path/'d'
    root.mkdir()
    for n in ('refer', 'coco'): (root/n).symlink_to(scenes/n)
    right = [(e.sent_id, e.sentence, e.ref_id, e.split, e.boxes, e.image.name) for e in prepare_table('refcoco', root)]
    path = prepared_file(root, 'refcoco', 'unc')
    whole = path.read_bytes()
    for _ in range(20):
        path.write_bytes(damage(rng, whole))
        if path.read_bytes() == whole: continue
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter('always')
            es = load('refcoco', root)
        assert [(e.sent_id, e.sentence, e.ref_id, e.split, e.boxes, e.image.name) for e in es] == right
        assert any('made anew' in str(w.message) for w in said)

@pytest.mark.parametrize('seed', range(3))
def test_caches(tmp_path, seed):
    rng, path, photos = random.Random(seed), tmp_path/'x.npy', [Path('a'), Path('b')]
    with new_rows(path, (2, 50), np.float16) as array: array[:] = np.arange(100).reshape(2, 50)
    whole = path.read_bytes()
    for _ in range(20):
        path.write_bytes(damage(rng, whole))
        if path.read_bytes() != whole: assert Rows.open(path, photos) is None


def test_npz(tmp_path, scenes):
    rng, es = random.Random(0), load_refer(scenes, split='val')
    folder = write_npz(es[:2], tmp_path, build_vocabulary(e.sentence for e in es), 'unc', 'val')
    file = sorted(folder.glob('*.npz'))[0]
    whole = file.read_bytes()
    for _ in range(60):
        file.write_bytes(damage(rng, whole))
        tried(lambda: [(e.mask.shape, e.photo().size) for e in load_npz(folder.parent, 'val')], str(folder))

def test_phrasecut(tmp_path):
    rng = random.Random(0)
    (tmp_path/'images').mkdir()
    Image.new('RGB', (40, 30)).save(tmp_path/'images/5.jpg')
    listing = [dict(image_id=5, width=40, height=30, split='val', coco_id=None)]
    tasks = [dict(task_id=f'5__{i}', image_id=5, phrase='brown dog', ann_ids=[1], instance_boxes=[[1, 1, 20, 20]], Polygons=[[[[1, 1], [20, 1], [20, 20]]]],
                  phrase_structure=dict(name='dog', attributes=['brown'], relation_descriptions=[], type='attribute')) for i in range(3)]
    for _ in range(100):
        a, b = (spoil(rng, listing), tasks) if rng.random() < .3 else (listing, spoil(rng, tasks))
        (tmp_path/'image_data_split.json').write_text(json.dumps(a, default=repr))
        (tmp_path/'refer_val.json').write_text(json.dumps(b, default=repr))
        tried(lambda: used(load_phrasecut(tmp_path)), str(tmp_path), '.jpg')
