"""Damaged and half-written run folders: one clear line each, and the other runs are still reported."""
import json
import random
import re
import shutil
from dataclasses import asdict
from html.parser import HTMLParser

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

from sag.checkpoint import newest, save
from sag.config import change
from sag.presets import presets
from sag.record import Run, write_results
from sag.runs.compare import group_runs, read_runs, run_curves, tabulate
from sag.runs.papermill import outcome, table
from sag.runs.report import report
from sag.runs.sweep import Point
from sag.share import model_card

FILES = 'run.json', 'metrics.json', 'expressions.csv', 'history.csv', 'evaluate.ipynb'
ODD = [None, True, -1, 0, 1e308, float('nan'), '', 'x', '../..', [], [1], {}, {'a': None}, 'é\u2028$<b>', 10**30]

TRICKS = [
    '<script>alert(1)</script>', '[x](javascript:alert(1))', '![x](http://a.b/c.png)', '`code`', '*bold* _it_ ~~no~~', '| a | b |', '$\\input{/etc/passwd}$',
    '\\write18{rm}', '%comment', 'a & b', '# title', 'two\nlines\n\n# three', '[a]: http://a.b', 'www.example.org', '@someone', '&lt;b&gt;', '* starred',
    '[bracket', '']

def spoil_bytes(data, rng):
    "Cut off, emptied, overwritten, with bits flipped, with junk in front."
    cut = rng.randrange(len(data) + 1)
    kind = rng.randrange(6)
    if kind == 0: return data[:cut]
    if kind == 1: return b''
    if kind == 2: return rng.randbytes(200)
    if kind == 3: return b'<html>not found</html>'
    if kind == 4: return data[:cut] + bytes([rng.randrange(256)]) + data[cut + 1:]
    return b'\xff\xfe' + data

def spoil_json(data, rng):
    "One value anywhere replaced by an odd one, or left out."
    tree = json.loads(data)
    places, todo = [], [tree]
    while todo:
        node = todo.pop()
        for k, v in list(node.items() if isinstance(node, dict) else enumerate(node)):
            places.append((node, k))
            if isinstance(v, dict | list): todo.append(v)
    node, k = rng.choice(places)
    if isinstance(node, dict) and rng.random() < .3: del node[k]
    else: node[k] = rng.choice(ODD)
    return json.dumps(tree).encode()

def spoil_csv(data, rng):
    "One cell replaced, a row dropped or repeated, or a column renamed."
    rows = [line.split(',') for line in data.decode().splitlines()]
    i, kind = rng.randrange(len(rows)), rng.randrange(4)
    if kind == 0: rows[i][rng.randrange(len(rows[i]))] = rng.choice(['', 'x', '-1', 'inf', '1e400', '"', 'NaN'])
    elif kind == 1: del rows[i]
    elif kind == 2: rows.insert(i, rows[i])
    else: rows[0][rng.randrange(len(rows[0]))] = 'odd'
    return '\n'.join(map(','.join, rows)).encode()

def spoil(path, rng):
    data = path.read_bytes()
    by_kind = {'.json': spoil_json, '.ipynb': spoil_json, '.csv': spoil_csv}.get(path.suffix, spoil_bytes)
    path.write_bytes((by_kind if rng.random() < .6 else spoil_bytes)(data, rng))

def spoilt_copy(source, dest, folder, names, rng):
    "A fresh copy of a folder, some files of one folder in it spoilt."
    shutil.rmtree(dest, ignore_errors=True)
    shutil.copytree(source, dest)
    for name in names: spoil(dest/folder/name, rng)


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Two runs as `sag train` and `sag evaluate` leave them, with made-up numbers."
    top, rng = tmp_path_factory.mktemp('fuzz')/'runs', np.random.default_rng(0)
    for name, weight in ('good', 1.), ('bad', 0.):
        dest, recipe = top/name, change(presets['smoke'], reconstruction_weight=weight)
        iou = rng.random((2, len(TRICKS)))
        measured = ('whole image', 0), ('relevance', 0), ('relevance', 1)
        rows = [dict(rule=r, draw=d, sent_id=i, image_id=i//2, split='val', sentence=f'dog {i}', iou=iou[d][i], intersection=int(100*iou[d][i]),
                     union=100, precision=.5, recall=.5, pointing=i % 2) for r, d in measured for i in range(len(TRICKS))]
        write_results(Run(dest), pd.DataFrame(rows), dataset='refcoco', split='val', draws=2)
        facts = dict(seed=0, selection='last', commit='a'*40, packages={}, python='3', parameters=1, steps=4)
        Run(dest).write('run.json', json.dumps(dict(recipe=asdict(recipe)) | facts))
        pd.DataFrame(dict(step=range(1, 5), contrastive=1., loss=2.)).to_csv(dest/'history.csv', index=False)
        cells = [new_code_cell("dataset = ''\ntag = ''", metadata=dict(tags=['parameters'])), new_code_cell('1')]
        kernel = dict(name='python3', language='python', display_name='python3')
        nb = new_notebook(cells=cells, metadata=dict(papermill=dict(parameters=dict(dataset='refcoco'), duration=1.), kernelspec=kernel))
        nbformat.write(nb, dest/'evaluate.ipynb')
    return top

def one_line(error, *names): assert len(str(error).splitlines()) == 1 and all(n in str(error) for n in names), repr(error)


@pytest.mark.parametrize('seed', range(10))
def test_comparison(runs, tmp_path, seed):
    "Whatever happens to one file of one run, the other is still compared; or one line names both."
    rng, top = random.Random(seed), tmp_path/'runs'
    for i in range(40):
        spoilt_copy(runs, top, 'bad', rng.sample(FILES, rng.choice([1, 1, 2])), rng)
        found = {r.name: r for r in read_runs(top)}
        assert found['good'].status == 'finished', i
        one_line(found['bad'].status) if 'bad' in found else None
        if 'bad' in found and found['bad'].status.startswith('damaged'): assert str(top/'bad') in found['bad'].status, found['bad'].status
        try: assert 'good' in {r.name for g in group_runs(found.values()) for r in g.runs}
        except ValueError as e: one_line(e, 'good', 'bad')
        else:
            for g in group_runs(found.values()):
                try: tabulate([g], 20)
                except ValueError as e: one_line(e)
            run_curves(group_runs(found.values()))

def test_report_goes_on(runs, tmp_path):
    "The report of a folder with damaged runs has a line for each of them."
    top = shutil.copytree(runs, tmp_path/'runs')
    for name in FILES:
        copy = shutil.copytree(runs/'bad', top/name.split('.')[0])/name
        copy.write_bytes(copy.read_bytes()[:-30])
    sections = report(str(top), tmp_path/'report', draws=50)
    shown = sections[0].shown.set_index('group').seeds
    for name in ('run', 'metrics', 'expressions', 'evaluate'): assert str(shown[name]).startswith('damaged: '), shown
    assert 'good' in shown.index
    assert 'damaged' in (tmp_path/'report'/'report.md').read_text()

@pytest.mark.parametrize('seed', range(4))
def test_notebooks(runs, tmp_path, seed):
    "An executed notebook that is damaged is one line for `outcome` and `sweep`, and a row of `table`."
    rng, path = random.Random(seed), tmp_path/'a'/'toy.ipynb'
    path.parent.mkdir()
    for _ in range(40):
        shutil.copy(runs/'good'/'evaluate.ipynb', path)
        spoil(path, rng)
        for f in (lambda: outcome(path), lambda: Point(str(runs/'good'/'evaluate.ipynb'), str(path.parent), {}).check()):
            try: f()
            except ValueError as e: one_line(e, str(path))
        assert len(table(tmp_path)) <= 1

@pytest.mark.parametrize('seed', range(4))
def test_cards(runs, tmp_path, seed):
    "A model card of a damaged run is an error of one line that names the folder, or a card."
    rng, top = random.Random(seed), tmp_path/'run'
    for _ in range(30):
        spoilt_copy(runs/'bad', top, '', rng.sample(FILES[:4], 1), rng)
        try: model_card(top)
        except (ValueError, OSError) as e: one_line(e, str(top))

@pytest.mark.parametrize('seed', range(3))
def test_checkpoints(tmp_path, seed):
    "A damaged checkpoint is never loaded as something else."
    rng, state = random.Random(seed), dict(step=3, weights=torch.arange(100.))
    for _ in range(20):
        shutil.rmtree(tmp_path/'checkpoints', ignore_errors=True)
        save(state, tmp_path/'checkpoints', 3)
        path, = (p for p in (tmp_path/'checkpoints').iterdir() if p.is_file())
        path.write_bytes(spoil_bytes(path.read_bytes(), rng))
        try: found = newest(tmp_path/'checkpoints')
        except (ValueError, OSError, RuntimeError) as e: one_line(e)
        else: assert found is None or torch.equal(found['weights'], state['weights'])


def test_nothing_acts(runs, tmp_path):
    "Run names and sentences with markup are text in HTML, Markdown and LaTeX."
    top = tmp_path/'runs'
    for i, trick in enumerate(TRICKS):
        dest = shutil.copytree(runs/'good', top/(re.sub(r'[/\n\0]', '-', trick).strip('.') or 'empty'))
        rows = pd.read_csv(dest/'expressions.csv')
        rows.assign(sentence=[TRICKS[k % len(TRICKS)] for k in rows.sent_id]).to_csv(dest/'expressions.csv', index=False)
        Run(dest).write('run.json', json.dumps(Run(dest).record | dict(recipe=Run(dest).record['recipe'] | dict(steps=i + 1))))
    report(str(top), tmp_path/'report', draws=20, shown=2)
    page = (tmp_path/'report'/'report.html').read_text()
    tags: set[str] = set()
    class Parser(HTMLParser):
        def handle_starttag(self, tag, attrs):
            tags.add(tag)
            assert not any(k.startswith('on') or 'javascript' in (v or '') for k, v in attrs)
    Parser().feed(page)
    assert tags <= set('html meta title style h1 h2 p img table thead tbody tr th td'.split()), tags
    for path in (tmp_path/'report').glob('*.md'):
        text = path.read_text()
        assert not re.search(r'<[a-zA-Z!/]', text), path
        assert all(m[2].endswith('.png') and '/' not in m[2] for m in re.finditer(r'(?<!\\)\]\(()([^)]*)\)', text)), path
        assert not re.search(r'(?<!\\)[`$]|https?://|www\.|^\[[^\]]*\]:', text, re.M), path
        assert [line for line in text.splitlines() if line.startswith('# ')] in (['# Report'], [])
    for path in (tmp_path/'report').glob('*.tex'):
        text = path.read_text()
        assert not re.search(r'\\(input|write)', text) and not re.search(r'(?<!\\)%|(?<![\\])#', text), path
        assert not re.search(r'\\\\\s*[\[*]', text), path
