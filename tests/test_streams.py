"""A training on shards that is killed, wherever, comes to the same weights, byte for byte; bad samples are counted; memory stays as it is."""
import io
import json
import multiprocessing
import os
import signal
import tarfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import count, islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import sag.data.download as download
from sag.cli import main
from sag.cli import prepare as prepare_command
from sag.config import change
from sag.data.batches import StreamTexts, loader, word_tokenizer
from sag.data.sets import DATASETS, check_available, load
from sag.data.streams import Listed, Mixture, TarStream, find_shards
from sag.data.synthetic import write_scenes
from sag.presets import recipe
from sag.record import Run
from sag.train import fit

SCHEMA = pa.schema(dict(image=pa.struct(dict(bytes=pa.binary(), path=pa.string())), text=pa.string()))
COLORS = 'red', 'green', 'blue', 'orange', 'purple', 'white'


class Cable(Exception):
    "Somebody trips over it."


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def jpeg(color, size=(32, 32)):
    Image.new('RGB', size, color).save(out := io.BytesIO(), format='JPEG')
    return out.getvalue()


def samples(sizes, bad):
    "Coloured photos, shard by shard: number, content, caption. Those whose number is bad are broken, in three ways."
    numbers = count()
    for size in sizes:
        shard = []
        for n in islice(numbers, size):
            color, how = COLORS[n % len(COLORS)], n % 3 if n in bad else None
            shard.append((n, None if how == 1 else jpeg(color)[:300 if how == 2 else None], '' if how == 0 else f'a {color} wall and a small dog'))
        yield shard


def write_shards(folder, sizes=(9, 5, 12, 8), bad=()):
    folder.mkdir(parents=True, exist_ok=True)
    for s, shard in enumerate(samples(sizes, bad)):
        with tarfile.open(folder/f'{s:03}.tar', 'w') as tar:
            for n, photo, caption in shard:
                if photo is not None: add(tar, f'{n:05}.jpg', photo)
                add(tar, f'{n:05}.txt', caption.encode())
    return f'wds:{folder}'


def write_parquet(folder, sizes=(9, 5, 12, 8), bad=()):
    "The same in two files, a group of rows for each shard."
    folder.mkdir(parents=True, exist_ok=True)
    groups = [pa.Table.from_pylist([dict(image=dict(bytes=photo, path=None), text=caption) for _, photo, caption in shard], SCHEMA)
              for shard in samples(sizes, bad)]
    for part in range(2):
        with pq.ParquetWriter(folder/f'train-{part:05}-of-00002.parquet', SCHEMA) as file:
            for g in groups[part::2]: file.write_table(g)
    return f'stream:{folder}'


@pytest.fixture(scope='module', params=[write_shards, write_parquet], ids=['tar', 'parquet'])
def write(request): return request.param


@pytest.fixture(scope='module')
def shards(write, tmp_path_factory): return write(tmp_path_factory.mktemp('shards'))


@pytest.fixture(scope='module')
def tiny(shards):
    "Fourteen steps of a very small model on a stream, a checkpoint after each."
    small = recipe('smoke')
    return change(
        small, dataset=shards, captions='phrases', val_split='', steps=14, save_every=1, evaluate_every=0, batch_size=4,
        texts_per_photo=2, groups=2, iterations=1, dim=16, context_dim=16, text_args=small.text_args | dict(num_hidden_layers=1), image_size=32,
        image_encoder='vit_tiny_patch16_224', image_args=dict(patch_size=8, embed_dim=32, depth=1, num_heads=2))


def remains(dest):
    history = Run(dest).history.drop(columns=['wait', 'seconds'])
    return (dest/'model.safetensors').read_bytes(), history.to_csv().encode()


@pytest.fixture(scope='module')
def whole(tiny, tmp_path_factory):
    dest = tmp_path_factory.mktemp('whole')
    fit(tiny, dest)
    return remains(dest)


def test_killed_ten_times_it_sees_the_next_sample(tiny, whole, tmp_path, monkeypatch):
    import sag.train as train
    seen, advance, kills = [], train.advance, iter([*range(2, 12), 10**9])
    stop = next(kills)

    def tripping(training, data, step):
        nonlocal stop
        if training.step + 1 == stop:
            stop = next(kills)
            raise Cable
        advance(training, data, step)
        seen.extend((training.pending or training.history)[-1].get('ids', []))
    monkeypatch.setattr(train, 'advance', tripping)
    for k in range(11):
        workers = change(tiny, workers=k % 2 if k < 4 else 0)  # the number of workers may change
        if k < 10:
            with pytest.raises(Cable): fit(workers, tmp_path, resume=True)
        else: fit(workers, tmp_path, resume=True)
    assert remains(tmp_path) == whole
    assert [x['step'] for x in Run(tmp_path).record['resumed']] == list(range(1, 11))


def test_killed_process(tiny, whole, tmp_path):
    server = multiprocessing.get_context('forkserver')
    server.set_forkserver_preload(['sag.train'])
    p = server.Process(target=fit, args=(tiny, tmp_path), kwargs=dict(resume=True))
    p.start()
    while p.is_alive() and not list((tmp_path/'checkpoints').glob('step-*.pt')): p.join(.01)
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    assert p.exitcode == -signal.SIGKILL
    fit(tiny, tmp_path, resume=True)
    assert remains(tmp_path) == whole


def order(source, rank=0, ranks=1, epoch=0, skip=0, workers=0, size=4):
    data = StreamTexts(source, word_tokenizer(['a dog']), 32, texts_per_photo=1, seed=7)
    dl = loader(data, size, workers=workers, turn=(rank, ranks), bad_samples=100)
    dl.set_epoch(epoch, skip)
    return [[e.sent_id for e in b.expressions] for b in dl]


def test_ranks_and_workers_share_a_stream(shards):
    stream = load(shards, split='train')
    stream.window = 2
    alone = order(stream, size=8)
    assert order(stream, size=8, workers=2) == alone and order(stream, size=8, skip=2) == alone[2:]
    parts = [order(stream, r, 2) for r in range(2)]
    assert [a + b for a, b in zip(*parts, strict=True)] == alone
    assert len({i for b in alone for i in b}) == 32 and order(stream, size=8, epoch=1) != alone


def test_bad_samples_are_left_out_and_counted(tiny, write, tmp_path):
    bad = write(tmp_path/'shards', bad={3, 4, 5, 20})
    leaky = change(tiny, dataset=bad, epochs=1, steps=0, save_every=0)
    fit(leaky, tmp_path/'run')
    history = Run(tmp_path/'run').history
    assert len(history) == 8 and 1 <= history['bad samples'].sum() <= 5
    with pytest.raises(ValueError, match=r'\d samples cannot be used, 0 are allowed.*raise bad_samples'): fit(change(leaky, bad_samples=0), tmp_path/'strict')


def test_words_too_long_are_cut_or_left_out(tiny, tmp_path):
    with tarfile.open(tmp_path/'0.tar', 'w') as tar:
        for i in range(8):
            add(tar, f'{i}.jpg', jpeg('red'))
            add(tar, f'{i}.txt', b'left dog ' * (40 if i == 3 else 1))
    one = change(tiny, dataset=f'wds:{tmp_path}/0.tar', captions='captions', steps=2, save_every=0)
    for policy, left_out in ('error', 1), ('skip', 1), ('cut', 0):
        history = fit(change(one, long_text=policy), tmp_path/policy).history
        assert sum(h.get('bad samples', 0) for h in history) == left_out


def test_prepare_counts_and_checks_a_stream(write, shards, tmp_path, monkeypatch, capsys):
    assert prepare_command(shards) == '34 photos with captions in 4 shards'
    monkeypatch.chdir(tmp_path)
    bad = write(tmp_path/'shards', bad={3, 4, 5, 20})
    with pytest.raises(ValueError, match='4 problems, listed in data/prepared/stream.problems.csv'): prepare_command(bad, check=True)
    assert 'cannot be decoded' in capsys.readouterr().out


def test_a_stream_trains_through_the_command(shards, tmp_path, monkeypatch, in_process):
    monkeypatch.chdir(tmp_path)
    fast = ['--steps', '1', '--batch_size', '4', '--val_split', '', '--test', '']
    assert main(['train', '--preset', 'smoke', '--dataset', shards, *fast]) == 0 and len(Run('runs/train').history) == 1


@pytest.mark.parametrize('changes, error, message', [
    (dict(val_split='val'), ValueError, "has no split 'val': pass val_split=''"), (dict(cache_photos=True), ValueError, 'set both to False'),
    (dict(dataset='wds:nowhere/{0..3}.tar'), FileNotFoundError, '4 of 4 shards are missing'), (dict(batch_size=99), ValueError, 'Lower the batch size')])
def test_impossible_wishes_are_errors_before_the_first_step(tiny, tmp_path, changes, error, message):
    with pytest.raises(error, match=message): fit(change(tiny, **changes), tmp_path)
    assert not (tmp_path/'run.json').exists()


def test_the_command_line_checks_shards(tiny):
    check_available(tiny)
    with pytest.raises(ValueError, match="no split 'val'"): check_available(change(tiny, val_split='val'))
    with pytest.raises(ValueError, match="no split 'testA'"): check_available(tiny, 'testA')
    with pytest.raises(FileNotFoundError, match='shards are missing'): check_available(change(tiny, dataset='wds:x.tar'))


def test_a_mixture_trains_and_resumes(tiny, shards, tmp_path):
    scenes = dict(photos=dict(train=12, val=4))
    mixed = change(tiny, dataset=f'{shards},synthetic:0.5', root=str(tmp_path/'scenes'), synthetic_args=scenes, val_split='val')
    source = load(mixed.dataset, mixed.root, split='train', scenes=scenes)
    assert isinstance(source, Mixture) and len(source) == 34 + 6
    assert len(load(mixed.dataset, mixed.root, split='val').photo_files()) == 4
    fit(mixed, tmp_path/'a')

    def trip(training):
        if training.step == 8: raise Cable
    with pytest.raises(Cable): fit(change(mixed, evaluate_every=4, selection='best_val_miou'), tmp_path/'b', watch=trip)
    fit(change(mixed, evaluate_every=4, selection='best_val_miou'), tmp_path/'b', resume=True)
    fit(change(mixed, evaluate_every=4, selection='best_val_miou'), tmp_path/'c')
    assert remains(tmp_path/'b') == remains(tmp_path/'c')


def test_shards_of_the_library_are_read(tmp_path):
    wds = pytest.importorskip('webdataset')
    with wds.TarWriter(str(tmp_path/'0.tar')) as out:
        for i in range(5): out.write({'__key__': f'a/{i:04}', 'jpg': jpeg(COLORS[i]), 'txt': f'wall {i}', 'json': {'caption': f'a wall, {i}', 'url': 'x'}})
    mine = TarStream(find_shards(str(tmp_path)))
    theirs = {s['__key__']: s for s in wds.WebDataset(str(tmp_path/'0.tar'), shardshuffle=False)}
    found = {e.image.relative_to(tmp_path/'0.tar').with_suffix('').as_posix(): (e, mine.sample(i)) for i in range(5) for e in mine.sample(i).expressions}
    assert found.keys() == theirs.keys()
    for key, (e, sample) in found.items():
        assert e.sentence == json.loads(theirs[key]['json'])['caption']
        assert np.array_equal(sample.photo(), np.array(Image.open(io.BytesIO(theirs[key]['jpg']))))


def test_memory_does_not_grow(shards):
    "Samples come and go: after the first pass, a hundred more add less than they would fill if they stayed."
    psutil = pytest.importorskip('psutil')
    stream, me = load(shards, split='train'), psutil.Process()
    stream.window = 2
    data = StreamTexts(stream, word_tokenizer(['a dog']), 128, texts_per_photo=1)

    def passes(n):
        for epoch in range(n):
            data.set_epoch(epoch)
            for i in range(len(data)): data[i]
        return me.memory_info().rss
    before = passes(3)
    assert passes(60) - before < 60*len(data)*128*128*3/10


@pytest.mark.parametrize('name', ['vg', 'grit', 'narratives', 'conceptual', 'coco_captions'])
def test_a_corpus_opens_by_name_and_mixes(name, tmp_path):
    Image.new('RGB', (80, 60)).save(tmp_path/'1.jpg')
    files = dict(
        vg=('visual_genome/region_descriptions.json', [dict(id=1, regions=[dict(region_id=2, image_id=1, phrase='a clock', x=1, y=1, width=9, height=9)])],
            'VG_100K/1.jpg'),
        grit=('grit/coyo_0.jsonl', dict(key='1', id=7, caption='a dog', width=80, height=60, ref_exps=[[0, 5, 0, 0, 1, 1, .9]]), 'images/1.jpg'),
        narratives=('localized_narratives/x_train.jsonl', dict(dataset_id='open_images', image_id='1', annotator_id=3, caption='A dog.'), 'images/1.jpg'),
        conceptual=('conceptual_captions/Train_GCC-training.tsv', 'a dog\thttps://x.org/1.jpg\n', 'images/000000000.jpg'),
        coco_captions=('coco/annotations/captions_train2017.json', dict(images=[dict(id=1, file_name='1.jpg', height=60, width=80)], annotations=[
            dict(id=1, image_id=1, caption='A dog.')]), '../images/train2017/1.jpg'))
    where, content, photo = files[name]
    file = tmp_path/where
    for f in (file, file.parent/photo): f.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    Image.new('RGB', (80, 60)).save(file.parent/photo)
    found = load(name, tmp_path, split='train')
    assert len(found) == 1 and DATASETS[name].files(tmp_path, '') == [file]
    mixture = load(f'{name}:2', tmp_path, split='train')
    assert len(mixture) == 2 and mixture.sample(1).photo().size == (80, 60)
    from sag.data.sets import prepare_table
    assert [e.sentence for e in prepare_table(name, tmp_path)] == [e.sentence for e in found]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture
def coco(tmp_path, monkeypatch):
    "A stand-in for COCO's server, with the photos of a small data set; the data root has annotations alone."
    write_scenes(tmp_path/'whole', photos=dict(train=20, val=6))
    (tmp_path/'root').mkdir()
    (tmp_path/'whole/refer').rename(tmp_path/'root/refer')
    there = next((tmp_path/'whole').rglob('train2014'))
    with ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=there.parent)) as server:
        threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
        monkeypatch.setenv('no_proxy', '127.0.0.1')
        monkeypatch.setattr(download, 'COCO_PHOTOS', f'http://127.0.0.1:{server.server_port}')
        yield tmp_path/'root', there
        server.shutdown()


def test_prepare_fetches_a_part(coco, tmp_path):
    root, there = coco
    said = prepare_command('refcoco', root=str(root), photos='10')
    assert 'in 10 photos' in said
    fetched = sorted(p.name for p in (root/'coco/images/train2014').iterdir())
    assert len(fetched) == 10 and {*load('refcoco', root).photo_files()} == {root/'coco/images/train2014'/n for n in fetched}
    lost = root/'coco/images/train2014'/fetched[0]
    lost.unlink()  # as if it had been killed before
    prepare_command('refcoco', root=str(root), photos='10')
    assert lost.read_bytes() == (there/lost.name).read_bytes()
    (tmp_path/'mine.txt').write_text('\n'.join(n[-16:-4] for n in fetched[:3]))
    with pytest.warns(UserWarning, match='it is of other photos'): said = prepare_command('refcoco', root=str(root), photos=str(tmp_path/'mine.txt'))
    assert 'in 3 photos' in said
    with pytest.raises(ValueError, match='there are 26 such photos'): prepare_command('refcoco', root=str(root), photos='1000')
    with pytest.raises(ValueError, match='neither a number nor a file'): prepare_command('refcoco', root=str(root), photos='many')
    with pytest.raises(ValueError, match='has others'): prepare_command('phrasecut', root=str(root), photos='10')


def test_a_source_of_expressions_is_shuffled_anew(tmp_path):
    write_scenes(tmp_path, photos=dict(train=12))
    source = Listed(load('synthetic', tmp_path, split='train'))
    orders = [tuple(source.sample(i, e, s).expressions[0].image for i in range(12)) for e, s in ((0, 0), (1, 0), (0, 1))]
    assert len({*orders}) == 3 and all(len({*o}) == 12 for o in orders)
