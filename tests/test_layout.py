"The rules that keep the rooms readable, checked on the files themselves; nothing is imported."
import ast
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A room imports only rooms named before it. A sub-package is one room here; inside, its notebooks' numbers give the order.
# A run's record comes before training, which writes it; the other rooms of runs come after.
FLOW = '''config presets files distribute data model released losses metrics masks place predict small evaluate checkpoint record train
          figures runs explore share bench docs cli'''.split()
FUNCTION, CLASS = 25, 60  # lines

MODULES = {'.'.join(o.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): o for o in sorted((ROOT/'sag').rglob('*.py')) if o.stem != '_modidx'}
TREES = {k: ast.parse(o.read_text(encoding='utf-8')) for k, o in MODULES.items()}
NOTEBOOKS = [*sorted((ROOT/'nbs').glob('*.ipynb')), *sorted((ROOT/'nbs'/'run').glob('*.ipynb'))]
CELLS = {o: [(c['cell_type'], ''.join(c['source'])) for c in json.loads(o.read_text(encoding='utf-8'))['cells']] for o in NOTEBOOKS}


def module_of(notebook):
    found = next((m[1] for _, s in CELLS[notebook] if (m := re.search(r'^#\| *default_exp (\S+)', s, re.M))), None)
    return found and 'sag' + ''.join(f'.{o}' for o in found.split('.') if o != '__init__')


HOMES = {m: o for o in NOTEBOOKS if (m := module_of(o))}  # notebook by module


def room(module): return (module.split('.') + [''])[1]


def flow(module): return FLOW.index(next(o for o in (module.removeprefix('sag.'), room(module)) if o in FLOW))


def imports(module):
    "Modules of the package that a module imports, inside functions too."
    inside = MODULES[module].name == '__init__.py'
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import): yield from (o.name for o in node.names if o.name in MODULES)
        if not isinstance(node, ast.ImportFrom): continue
        parts = module.split('.') if inside else module.split('.')[:-1]
        base = '.'.join([*parts[:len(parts) - node.level + 1], *([node.module] if node.module else [])]) if node.level else node.module
        for o in node.names:
            if f'{base}.{o.name}' in MODULES: yield f'{base}.{o.name}'
            elif base in MODULES: yield base


ARROWS = {m: {*imports(m)} - {m, 'sag'} for m in MODULES}


def reached(module):
    "All modules that a module imports, directly or through others."
    found, todo = set(), [module]
    while todo:
        new = ARROWS[todo.pop()] - found
        found |= new
        todo += new
    return found


def public(module):
    "Names of `__all__`."
    values = [n.value for n in ast.walk(TREES[module]) if isinstance(n, ast.Assign) and getattr(n.targets[0], 'id', '') == '__all__']
    return ast.literal_eval(values[0]) if values else []


def defined(module):
    "Names that a module's own statements define."
    body = TREES[module].body
    targets = [t for n in body if isinstance(n, ast.Assign) for t in n.targets] + [n.target for n in body if isinstance(n, ast.AnnAssign)]
    return {n.name for n in body if isinstance(n, ast.FunctionDef | ast.ClassDef)} | {o.id for t in targets for o in ast.walk(t) if isinstance(o, ast.Name)}


def test_few_rooms_at_the_top():
    rooms = {o.stem for o in (ROOT/'sag').iterdir() if o.suffix == '.py' or (o/'__init__.py').exists()} - {'__init__', '_modidx'}
    assert len(rooms) <= 24, sorted(rooms)
    assert rooms == rooms & {*FLOW}, f'not in the order of this test: {rooms - {*FLOW}}'


def test_no_import_cycle():
    assert [m for m in MODULES if m in reached(m)] == []


def test_arrows_point_downwards():
    def place(module): return (flow(module), int(HOMES[module].name[:2]))
    inner = {m for m in MODULES if m != 'sag' and not MODULES[m].name == '__init__.py'}  # a sub-package's front door hands on what lies inside
    wrong = [f'{m} imports {o}' for m in sorted(inner) for o in sorted(ARROWS[m])
             if (place(o) >= place(m) if o in inner else flow(o) > flow(m))]
    assert wrong == []


def test_the_model_knows_neither_data_nor_training():
    outside = {'data', 'evaluate', 'checkpoint', 'train', 'runs'}
    assert {o for m in MODULES if room(m) == 'model' for o in reached(m) if room(o) in outside} == set()


def length(node):
    "Lines of a function's body, its docstring not counted, or of a class."
    if isinstance(node, ast.ClassDef): return node.end_lineno - node.lineno + 1
    body = node.body[ast.get_docstring(node) is not None:]
    return node.end_lineno - body[0].lineno + 1 if body else 0


@pytest.mark.parametrize('module', MODULES)
def test_definitions_are_short(module):
    kinds = {ast.FunctionDef: FUNCTION, ast.AsyncFunctionDef: FUNCTION, ast.ClassDef: CLASS}
    long = {n.name: length(n) for n in ast.walk(TREES[module]) if type(n) in kinds and length(n) > kinds[type(n)]}
    assert long == {}


@pytest.mark.parametrize('notebook', HOMES.values(), ids=lambda o: o.stem)
def test_a_notebook_shows_what_it_exports(notebook):
    names = [o for o in public(module_of(notebook)) if o in defined(module_of(notebook))]  # what a front door hands on is shown elsewhere
    code = '\n'.join(s for kind, s in CELLS[notebook] if kind == 'code' and not re.search(r'^#\| *(export\w*|hide|default_exp)\b', s, re.M))
    unseen = [o for o in names if not re.search(rf'\b{re.escape(o)}\b', code)]
    assert len(unseen) < max(len(names), 1)/2, f'{len(names) - len(unseen)} of {len(names)} are shown; not {", ".join(unseen)}'


def test_a_name_is_defined_in_one_room():
    "The commands of `sag.cli` have their users' names."
    where = defaultdict(list)
    for m, tree in TREES.items():
        names = {*public(m)}
        for n in tree.body:
            if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name in names and m != 'sag.cli': where[n.name].append(m)
    assert {k: v for k, v in where.items() if len(v) > 1} == {}


PAGES = {o: '\n'.join(s for kind, s in cells if kind == 'markdown') for o, cells in CELLS.items()}
PAGES |= {o: o.read_text(encoding='utf-8') for k in ('', 'data/', 'runs/', 'runs/published/', 'runs/published/*/') for o in ROOT.glob(f'{k}*.md')}


@pytest.mark.parametrize('page', PAGES, ids=lambda o: o.relative_to(ROOT).as_posix())
def test_links_between_pages_resolve(page):
    text = re.sub(r'```.*?```|`[^`\n]*`', '', PAGES[page], flags=re.S)
    links = [m.split('#')[0] for m in re.findall(r'\]\((?!\w+:|#)([^)\s]+)\)', text)]
    assert [o for o in links if o and not (page.parent/o).exists()] == []
