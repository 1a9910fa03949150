"Data sets of the hub: each shape found in public, as a small sample in files; what is wrong with one is said in a line."
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

datasets = pytest.importorskip('datasets')

from sag.cli import main
from sag.data.hub import ParquetStream, _footer, _groups, _opened, box_format, guess_columns, hub_columns, hub_files, load_hub
from sag.data.sets import find_problems, load, other_splits, prepare_table
from sag.record import Run

datasets.disable_progress_bars()
pytestmark = pytest.mark.filterwarnings('error::UserWarning:sag')
H, W = 40, 64
NAMES = {1: 'COCO_train2014_000000000001.jpg', 2: 'COCO_train2014_000000000002.jpg'}
OBJECTS = [  # photo, its number, x, y, width, height, sentences
    (1, 11, 2, 6, 20, 30, ['the red block', 'left one']), (1, 12, 40, 4, 18, 34, ['a blue block']),
    (2, 13, 30, 2, 30, 20, ['green at the top', 'right block'])]


def photo(number, name='JPEG'):
    picture = Image.new('RGB', (W, H), (200, 200, 190))
    for p, ann, x, y, w, h, _ in OBJECTS:
        if p == number: ImageDraw.Draw(picture).rectangle((x, y, x + w - 1, y + h - 1), {11: 'red', 12: 'blue', 13: 'green'}[ann])
    file = io.BytesIO()
    picture.save(file, name, quality=95)
    return file.getvalue()


def mask(o):
    found = np.zeros((H, W), bool)
    found[o[3]:o[3] + o[5], o[2]:o[2] + o[4]] = True
    return found


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, 'PNG')
    return file.getvalue()


def polygon(o): return [float(v) for v in (o[2], o[3], o[2] + o[4], o[3], o[2] + o[4], o[3] + o[5], o[2], o[3] + o[5])]
def xywh(o): return [float(v) for v in o[2:6]]
def xyxy(o): return [float(o[2]), float(o[3]), float(o[2] + o[4]), float(o[3] + o[5])]
def rle(o): return dict(size=[H, W], counts=coco_mask.encode(np.asfortranarray(mask(o), np.uint8))['counts'].decode())


def plain_rle(o):
    flat = mask(o).ravel('F')
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [flat[-1]]]).astype(int)))
    return dict(size=[H, W], counts=np.diff([0, *edges, H*W]).tolist())


def parquet(folder, **splits):
    for name, data in splits.items():
        (folder/'data').mkdir(parents=True, exist_ok=True)
        (data if hasattr(data, 'to_parquet') else datasets.Dataset.from_list(data)).to_parquet(folder/f'data/{name}-00000-of-00001.parquet')
    return folder


def image(data, *columns):
    "Columns as `Image` features."
    for c in columns: data = data.cast_column(c, datasets.Image())
    return data


def photos_in(folder, names=NAMES):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in names.items(): (folder/name).write_bytes(photo(number))


# Each of these writes a sample and says which objects have boxes and masks, and which splits there are.

def jxu124(folder):
    "jxu124/refcoco: no pixels, corners, JSON in strings, sentences as dictionaries, `test` for testA."
    sent = iter(range(100, 200))
    def row(o, split):
        sentences = [dict(raw=s.upper(), sent=s, sent_id=next(sent), tokens=s.split()) for s in o[6]]
        info = dict(file_name=NAMES[o[0]], height=H, width=W, id=o[0])
        ann = dict(segmentation=[polygon(o)], bbox=xywh(o), iscrowd=0, image_id=o[0], category_id=1, id=o[1])
        return dict(sent_ids=[s['sent_id'] for s in sentences], file_name=NAMES[o[0]].replace('.jpg', f'_{o[1]}.jpg'), ann_id=o[1], ref_id=o[1] + 1000,
                    image_id=o[0], split=split, sentences=sentences, category_id=1, raw_anns=json.dumps(ann), raw_image_info=json.dumps(info),
                    raw_sentences=json.dumps(sentences),
                    image_path=f'coco/train2014/{NAMES[o[0]]}', bbox=xyxy(o), captions=o[6], global_image_id=f'coco.{o[0]}', anns_id=f'{o[1]}')
    names = dict(train='train', validation='val', test='testA', testB='testB')
    data = {k: datasets.Dataset.from_list([row(o, s) for o in OBJECTS]) for k, s in names.items()}
    datasets.DatasetDict(data).save_to_disk(folder)
    photos_in(folder/'coco/train2014')
    return dict(splits={'train', 'val', 'testA', 'testB'}, sent_ids=range(100, 120))


def lmms(folder):
    "lmms-lab/RefCOCO: expressions in `answer`, one flat polygon, a file name with the object's number, a row for each referent."
    rows = [dict(question_id=str(o[1]), image=dict(bytes=photo(o[0]), path=None), question='Describe the marked region.', answer=o[6],
                 segmentation=polygon(o), bbox=xywh(o), iscrowd=0, file_name=NAMES[o[0]].replace('.jpg', f'_{o[1]}.jpg')) for o in OBJECTS]
    data = image(datasets.Dataset.from_list(rows), 'image')
    parquet(folder, val=data, testA=data, testB=data)
    return dict(splits={'val', 'testA', 'testB'})


def moondream(folder):
    "moondream/refcoco-m: a row for each photo, referents nested in it, compressed run lengths."
    rows = [dict(image=dict(bytes=photo(n), path=NAMES[n]), image_id=n, file_name=NAMES[n],
                 samples=[dict(id=o[1], image_id=n, category='block', supercategory='thing', label='block', sentences=o[6], bbox=xywh(o), mask=rle(o))
                          for o in OBJECTS if o[0] == n])
            for n in NAMES]
    parquet(folder, validation=image(datasets.Dataset.from_list(rows), 'image'))
    return dict(splits={'val'}, category='block')


def ricky(folder):
    "Ricky06662/refcoco_testA: rows of bools, corners, one text a referent."
    rows = [dict(image=dict(bytes=photo(o[0]), path=None), text=s, mask=mask(o).tolist(), image_id=f'{o[0]:012}', ann_id=str(o[1]),
                 img_height=H, img_width=W, bbox=[int(v) for v in xyxy(o)])
            for o in OBJECTS for s in o[6][:1]]
    parquet(folder, test=image(datasets.Dataset.from_list(rows), 'image'))
    return dict(splits={'test'}, first=True)


def grit(folder):
    "zzliang/GRIT: spans of a caption, boxes in units of the photo, photos under their key as they were fetched."
    rows = []
    for n in NAMES:
        caption, spans = '', []
        for o in OBJECTS:
            if o[0] != n: continue
            x0, y0, x1, y1 = xyxy(o)
            spans.append([len(caption), len(caption) + len(o[6][0]), x0/W, y0/H, x1/W, y1/H, .9])
            caption += f'{o[6][0]} and '
        rows.append(dict(key=f'00000{n}', clip_similarity_vitb32=.3, id=n, url='https://example.org/1.jpg', caption=caption + 'more', width=W, height=H,
                         noun_chunks=spans, ref_exps=spans))
    parquet(folder, train=rows)
    photos_in(folder/'images', {n: f'00000{n}.jpg' for n in NAMES})
    return dict(splits={'train'}, first=True, masks=False)


def benchmark(folder):
    "jxu124/refcoco-benchmark: lists of structures, and splits of several data sets, which keep their names."
    rows = [dict(ref_list=[dict(ann_info=dict(bbox=xywh(o), id=o[1], segmentation=[polygon(o)]),
                                ref_info=dict(ann_id=o[1], ref_id=o[1], split='val',
                                              sentences=[dict(raw=s, sent=s, sent_id=10*o[1] + i) for i, s in enumerate(o[6])]))
                           for o in OBJECTS if o[0] == n],
                 image_info=dict(file_name=NAMES[n], height=H, width=W, id=n), image=dict(bytes=photo(n), path=None)) for n in NAMES]
    data = image(datasets.Dataset.from_list(rows), 'image')
    parquet(folder, refcoco_unc_val=data, refcoco_google_val=data)
    return dict(splits={'refcoco_unc_val', 'refcoco_google_val'})


def sentence_rows(folder):
    "A row for each sentence, image bytes in a plain column, PNG masks, one Arrow file."
    rows = [dict(img=photo(o[0]), sentence=s, ann_id=o[1], image_id=o[0], mask=dict(bytes=png(mask(o)), path=None), bbox=xywh(o))
            for o in OBJECTS for s in o[6]]
    image(datasets.Dataset.from_list(rows), 'mask').save_to_disk(folder)
    return dict(splits={'train'})


def lines(folder):
    "JSON lines: paths, structures of lists, uncompressed run lengths."
    folder.mkdir()
    photos_in(folder/'images')
    own = {n: [o for o in OBJECTS if o[0] == n] for n in NAMES}
    rows = [dict(image=f'images/{NAMES[n]}', objects=dict(bbox=[*map(xywh, os)], expressions=[o[6] for o in os], mask=[*map(plain_rle, os)]))
            for n, os in own.items()]
    (folder/'dev.jsonl').write_text('\n'.join(map(json.dumps, rows)))
    return dict(splits={'val'})


def points(folder):
    "Polygons of points as JSON text, boxes in units of the photo."
    def corners(o): return [[*p] for p in zip(polygon(o)[::2], polygon(o)[1::2], strict=True)]
    rows = [dict(image=dict(bytes=photo(o[0]), path=None), expressions=json.dumps(o[6]), id=o[1], polygons=json.dumps([corners(o)]),
                 box=[o[2]/W, o[3]/H, o[4]/W, o[5]/H]) for o in OBJECTS]
    parquet(folder, train=image(datasets.Dataset.from_list(rows), 'image'))
    return dict(splits={'train'})


def captions(folder):
    "Photos and text alone."
    parquet(folder, train=image(datasets.Dataset.from_list([dict(jpg=dict(bytes=photo(o[0]), path=None), text=s) for o in OBJECTS for s in o[6]]), 'jpg'))
    return dict(splits={'train'}, masks=False, boxes=False)


SHAPES = [jxu124, lmms, moondream, ricky, grit, benchmark, sentence_rows, lines, points, captions]


@pytest.fixture(params=SHAPES, ids=lambda s: s.__name__)
def sample(request, tmp_path):
    return f'hf:{tmp_path}/sample', tmp_path/'root', request.param(tmp_path/'sample')


@pytest.mark.filterwarnings('ignore:.*nothing tells')
def test_every_shape_is_read_to_the_pixel(sample):
    name, root, said = sample
    found = load(name, root)
    assert {*found.splits} == said['splits']
    for split in said['splits']:
        es = found.split(split)
        assert [e.sentence for e in es] == [s for o in OBJECTS for s in o[6][:1 if said.get('first') else None]]
        assert len({e.sent_id for e in es}) == len(es)
        assert len({e.image for e in es}) == len({e.image_id for e in es}) == 2
        for e in es:
            o = next(o for o in OBJECTS if e.sentence in o[6])
            assert e.photo().size == (e.width, e.height) == (W, H)
            assert abs(int(np.asarray(e.photo())[o[3] + 3, o[2] + 3].argmax()) - {11: 0, 12: 2, 13: 1}[o[1]]) == 0
            if said.get('boxes', True): assert e.box == pytest.approx(xywh(o), abs=1e-4)
            if said.get('masks', True): assert (e.mask == mask(o)).all()
            if 'category' in said: assert e.category == said['category']
    if 'sent_ids' in said: assert {e.sent_id for e in found} == {*said['sent_ids']}


@pytest.mark.filterwarnings('ignore:.*nothing tells')
def test_numbers_do_not_depend_on_what_else_is_read(sample):
    name, root, said = sample
    for s in said['splits']: assert [e.sent_id for e in load(name, root, split=s)] == [e.sent_id for e in load(name, root).split(s)]


@pytest.mark.filterwarnings('ignore')
def test_every_shape_trains_a_step_and_is_evaluated_by_commands(sample, tmp_path, monkeypatch, capsys, in_process):
    (_, _, said), name, root = sample, 'hf:sample', 'root'
    split = next(iter(said['splits']))
    monkeypatch.chdir(tmp_path)
    fast = ['--steps', '1', '--batch_size', '2', '--val_split', '', '--train_split', split, '--test', '']
    assert main(['prepare', '--dataset', name, '--root', root]) == 0 and find_problems(load(name, root, split=split)) == []
    assert main(['train', '--preset', 'smoke', '--dataset', name, '--root', root, *fast]) == 0
    assert len(Run('runs/train').history) == 1 and 'text = ' in capsys.readouterr().err
    if not said.get('boxes', True): return
    assert main(['evaluate', 'runs/train', '--dataset', name, '--root', root, '--split', split, '--draws', '1', '--shown', '1', '--dest', 'found']) == 0
    assert json.loads(Path('found/metrics.json').read_text())['expressions'] == len(load(name, root, split=split))
    assert ('mIoU' if said.get('masks', True) else 'pointing') in capsys.readouterr().out


def test_a_table_is_used_and_made_anew_for_other_columns(tmp_path):
    moondream(tmp_path/'sample')
    name, root = f'hf:{tmp_path}/sample', tmp_path/'root'
    table = prepare_table(name, root)
    assert [e.sentence for e in load(name, root)] == [e.sentence for e in table]
    assert len({e.image for e in table}) == 2 and all(e.image.is_relative_to(root/'hub') for e in table)
    with pytest.warns(UserWarning, match='made with other columns'): changed = prepare_table(name, root, columns={'text': 'samples[].label'})
    assert {e.sentence for e in changed} == {'block'}


# What cannot be read

def rows(**changes):
    return [dict(dict(image=dict(bytes=photo(o[0]), path=None), text=o[6], mask=rle(o), bbox=xywh(o), id=o[1]), **changes) for o in OBJECTS]


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(text=['  ']), r"sample, train, row 0, column 'text': an empty text"),
    (dict(text=[]), r"row 0, column 'text': no sentence"),
    (dict(image=dict(bytes=b'<html>', path=None)), r"row 0, column 'image': 6 bytes that are no image"),
    (dict(mask=dict(size=[9, 9], counts='X1')), r"row 0, column 'mask': .*annotated at \[40, 64\]"),
    (dict(mask=dict(bytes=png(np.ones((5, 7), bool)), path=None)), r"row 0, column 'mask': a mask of 7 × 5 pixels for a photo of 64 × 40"),
    (dict(mask=np.ones((3, 3), bool).tolist()), r"row 0, column 'mask': a mask of 3 × 3"),
    (dict(mask=[1., 2., 3.]), r"row 0, column 'mask': a polygon has 3 numbers"),
    (dict(bbox=[1., 2.]), r"row 0, column 'bbox': a box is four finite numbers"),
    (dict(id='' ), r"row 0, column 'id'"),
])
def test_a_broken_row_is_named(changes, message, tmp_path):
    parquet(tmp_path/'sample', train=rows(**changes))
    with pytest.raises(ValueError, match=message) as e: load_hub(str(tmp_path/'sample'), tmp_path)
    assert '\n' not in str(e.value) and 'Correct or remove' in str(e.value)


@pytest.mark.parametrize(('columns', 'message'), [
    ({'text': 'query'}, "no column is called 'query'; there are image, text, mask, bbox, id"), ({'words': 'text'}, "no role is called 'words'"),
    ({'text': ''}, 'no column holds the text; there are .* --columns'), ({'image': '', 'file': ''}, 'no column holds the photo'),
    ({'box_format': 'yxyx'}, 'xywh or xyxy'),
])
def test_a_wrong_column_map(columns, message, tmp_path):
    parquet(tmp_path/'sample', train=rows())
    with pytest.raises(ValueError, match=message): hub_columns(str(tmp_path/'sample'), columns=columns)


def test_columns_can_be_given(tmp_path):
    parquet(tmp_path/'sample', train=[dict(a=photo(o[0]), b=o[6], c=xyxy(o)) for o in OBJECTS])
    found = load_hub(str(tmp_path/'sample'), tmp_path, columns=dict(image='a', text='b', box='c', box_format='xyxy'))
    assert [e.box for e in found][0] == tuple(xywh(OBJECTS[0])) and not found.has_masks
    assert 'mask' not in guess_columns(rows(), {'mask': ''})


def test_wrong_names(tmp_path):
    parquet(tmp_path/'sample', train=rows())
    with pytest.raises(FileNotFoundError, match='neither a file or folder nor a hub id'): load_hub(str(tmp_path/'none'), tmp_path)
    with pytest.raises(ValueError, match="no split 'val' here; there are train"): load_hub(str(tmp_path/'sample'), tmp_path, split='val')
    (tmp_path/'empty').mkdir()
    with pytest.raises(FileNotFoundError, match='no .parquet, .arrow'): load_hub(str(tmp_path/'empty'), tmp_path)
    (tmp_path/'bad').mkdir()
    (tmp_path/'bad/train.parquet').write_bytes(b'PAR1 no more')
    with pytest.raises(ValueError, match='bad.* cannot be read .*Fetch it again'): load_hub(str(tmp_path/'bad'), tmp_path)


def test_missing_photos_are_named_with_the_remedy(tmp_path):
    parquet(tmp_path/'sample', train=[dict(file_name='7.jpg', text='a dog')])
    with pytest.raises(ValueError, match='no photo .*7.jpg. Say where the photos are with --images'): load_hub(str(tmp_path/'sample'), tmp_path)
    photos_in(tmp_path/'photos', {1: '7.jpg'})
    assert load_hub(str(tmp_path/'sample'), tmp_path, images=tmp_path/'photos')[0].image == tmp_path/'photos/7.jpg'


def test_without_the_library(tmp_path, monkeypatch):
    import sys
    parquet(tmp_path/'sample', train=rows())
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(ImportError, match=r"datasets.*pip install '\.\[hub\]'"): load_hub(str(tmp_path/'sample'), tmp_path)


# A hub that stands in

@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    "`datasets` as if a hub had one data set, `own/er`, whose revision `v1` has another split."
    folder = parquet(tmp_path/'hub', val=rows(), testA=rows())
    def splits(source, config=None, revision=None):
        if source == 'a/script': raise RuntimeError('Dataset scripts are no longer supported, but found script.py')
        if source != 'own/er': raise datasets.exceptions.DatasetNotFoundError(f"Dataset '{source}' doesn't exist on the Hub or cannot be accessed.")
        if config: raise ValueError(f"BuilderConfig '{config}' not found. Available: ['default']")
        return ['val'] if revision == 'v1' else ['val', 'testA']
    real = datasets.load_dataset
    def load_dataset(source, name=None, split=None, revision=None, **more):
        if source == 'parquet': return real(source, split=split, **more)
        return real('parquet', data_files=str(folder/f'data/{split}-00000-of-00001.parquet'), split='train', cache_dir=str(tmp_path/'cache'))
    monkeypatch.setattr(datasets, 'get_dataset_split_names', splits)
    monkeypatch.setattr(datasets, 'load_dataset', load_dataset)


def test_a_hub_id(stand_in, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load('hf:own/er', tmp_path).splits == {'val': 5, 'testA': 5}
    assert load('hf:own/er@v1', tmp_path).splits == {'val': 5}
    assert (tmp_path/'hub/own--er@v1').is_dir()
    with pytest.raises(FileNotFoundError, match='hf:no/body: not found on the hub. Check the id'): load('hf:no/body', tmp_path)
    with pytest.raises(ValueError, match='scripts of a repository are never run'): load('hf:a/script', tmp_path)
    with pytest.raises(ValueError, match="BuilderConfig 'odd' not found.*--split-by"): load('hf:own/er', tmp_path, 'odd')
    assert main(['prepare', '--dataset', 'hf:no/body']) == 1


def test_a_script_in_a_folder_is_not_run(tmp_path):
    parquet(tmp_path/'sample', train=rows())
    (tmp_path/'sample/sample.py').write_text(f'open({str(tmp_path/"ran")!r}, "w")')
    load_hub(str(tmp_path/'sample'), tmp_path)
    assert not (tmp_path/'ran').exists()


# Streams

def sentences(stream): return sorted(e.sentence for i in range(len(stream)) for e in stream.sample(i).expressions)


def test_rows_are_read_as_they_go(sample):
    "The texts and photos that `hf:` finds, of every shape in Parquet files; nothing is written."
    name, root, said = sample
    split = next(iter(said['splits']))
    if not hub_files(name[3:])[0].suffix == '.parquet':
        with pytest.raises(ValueError, match='is no Parquet file. Read it with hf:'): ParquetStream(name[3:], root, split=split)
        return
    stream = ParquetStream(name[3:], root, split=split)
    assert not root.exists() and sentences(stream) == sorted(e.sentence for e in load(name, root, split=split))
    assert all(stream.sample(i).photo().size == (W, H) for i in range(len(stream)))


def test_a_stream_of_rows_that_name_files(tmp_path):
    parquet(tmp_path/'sample', train=[dict(file_name=NAMES[o[0]], text=o[6]) for o in OBJECTS])
    stream = load(f'stream:{tmp_path}/sample', tmp_path, split='train')
    with pytest.raises(ValueError, match=r'row \d: no photo .*COCO_train2014_00000000000\d.jpg'):
        for i in range(3): stream.sample(i)
    photos_in(tmp_path/'photos')
    assert load(f'stream:{tmp_path}/sample', images=tmp_path/'photos', split='train').sample(0).photo().size == (W, H)


def test_a_stream_does_not_mix_splits(tmp_path):
    parquet(tmp_path/'sample', train=rows(split='val'))
    with pytest.raises(ValueError, match='rows say which split they are of'): load(f'stream:{tmp_path}/sample', split='train')
    assert len(load(f'stream:{tmp_path}/sample', split='train', columns={'split': ''})) == 3


def test_a_stream_from_the_hub(tmp_path, monkeypatch):
    import huggingface_hub
    folder = parquet(tmp_path/'hub', train=rows(), val=rows())
    class Builder:
        def __init__(self, source, name=None, revision=None):
            if (source, name, revision) != ('own/er', 'plain', 'v1'): raise datasets.exceptions.DatasetNotFoundError('no such data set')
            self.config = self
            self.data_files = {s: [f'hf://datasets/own/er@1234/data/{s}-00000-of-00001.parquet'] for s in ('train', 'val')}
    class Hub:
        def open(self, path): return open(path.replace('hf://datasets/own/er@1234', str(folder)), 'rb')
    monkeypatch.setattr(datasets, 'load_dataset_builder', Builder)
    monkeypatch.setattr(huggingface_hub, 'HfFileSystem', Hub)
    monkeypatch.chdir(tmp_path)
    stream = load('stream:own/er@v1', split_by='plain', split='train')
    assert sentences(stream) == sorted(s for o in OBJECTS for s in o[6]) and stream.sample(0).photo().size == (W, H)
    assert stream.shards[0].file.endswith('train-00000-of-00001.parquet')
    with pytest.raises(FileNotFoundError, match='stream:own/er@v2: not found on the hub'): load('stream:own/er@v2', split='train')


def test_a_footer_is_read_once_for_all_groups_of_rows(tmp_path, monkeypatch):
    import huggingface_hub
    import pyarrow as pa
    import pyarrow.parquet as pq
    path = tmp_path/'many.parquet'
    pq.write_table(pa.table(dict(n=range(8))), path, row_group_size=1)
    ends = []
    class File(io.FileIO):
        def read(self, n=-1):
            found = super().read(n)
            if found.endswith(b'PAR1') and self.tell() == path.stat().st_size: ends.append(n)
            return found
    monkeypatch.setattr(huggingface_hub, 'HfFileSystem', lambda: SimpleNamespace(open=lambda file: File(path)))
    _footer.cache_clear()
    groups = list(_groups('hf://datasets/own/er@1234/many.parquet'))
    assert [_opened(g.file).read_row_group(g.number).to_pylist() for g in groups] == [[dict(n=n)] for n in range(8)]
    _footer.cache_clear()
    assert len(ends) == 1, ends


# Counts and boxes

def test_a_split_that_is_not_the_published_one(tmp_path):
    class Few(list):
        def __init__(self, split, n): super().__init__(type('E', (), dict(split=split, image=i, ref_id=i, sent_id=i)) for i in range(n))
    assert other_splits('lmms-lab/RefCOCO', Few('val', 8_811)) == "val has 8,811 referents and is not RefCOCO's val (unc 3,811, google 5,000 together)"
    assert other_splits('lmms-lab/RefCOCOg', Few('val', 7_573)) == "val has 7,573 referents and is not RefCOCOg's val (umd 2,573, google 5,000 together)"
    assert other_splits('x/refcocoplus', Few('testA', 12)) == "testA has 12 referents and is not RefCOCO+'s testA (unc 1,975)"
    for name, split, n in ('x/refcoco_plus', 'val', 3_805), ('jxu124/refcoco', 'testA', 1_975), ('x/dogs', 'val', 7):
        assert other_splits(name, Few(split, n)) == ''
    lmms(tmp_path/'refcoco')
    with pytest.warns(UserWarning, match="val has 3 referents and is not RefCOCO's val"): load(f'hf:{tmp_path}/refcoco', tmp_path, split='val')


def test_how_boxes_are_written():
    rng = np.random.default_rng(0)
    sizes = np.tile([640, 480], (200, 1))
    start = rng.uniform(0, [400, 300], (200, 2))
    sides = rng.uniform(10, [240, 180], (200, 2))
    wh, xy, none = np.hstack([start, sides]), np.hstack([start, start + sides]), np.full((200, 4), np.nan)
    assert [box_format(b, sizes, m)[0] for b in (wh, xy) for m in (none, wh)] == ['xywh', 'xywh', 'xyxy', 'xyxy']
    assert box_format(np.array([[10., 20, 50, 60]]), sizes[:1], none[:1]) == ('xywh', '')
