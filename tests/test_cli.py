"The command line under bad input, closed pipes and full disks: one line, never a traceback."
import io
import random
import stat
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from PIL import Image

from sag import cli
from sag.presets import presets

@pytest.fixture
def folder(tmp_path, monkeypatch):
    "An empty folder with a photo and things that are no photos."
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((40, 30), 90).convert('RGB').save('photo.jpg')
    Path('broken.jpg').write_bytes(b'\xff\xd8\xff nothing')
    Path('empty').mkdir()
    Path('run.json').write_text('{')
    return tmp_path


def said(*argv):
    "Exit status, standard output, standard error."
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err): status = cli.main(list(argv))
    return status, out.getvalue(), err.getvalue()


WRONG = {
    'trian': "no command 'trian'; did you mean train?",
    'train --batchsize 8': 'no option --batchsize; did you mean --batch_size?',
    'train --lr fast': "invalid float value: 'fast'",
    'train --lr -1': 'lr=-1.0; choose 0 or more',
    'train --preset demo --batch-size 0': 'batch_size=0; choose 1 or more',
    'train --preset demo --selection best': "selection='best'; choose last or best_val_miou",
    'train --freeze-image perhaps': "invalid yes or no value: 'perhaps'",
    'train --preset demo --draws 0': 'draws=0; choose 1 or more',
    'evaluate small --shown -1': 'shown=-1; choose 1 or more',
    'evaluate small --threshold 1.5': 'threshold=1.5; choose a number from 0 to 1',
    'predict photo.jpg -e dog --threshold 50': 'threshold=50.0; choose a number from 0 to 1',
    'train --preset uncc': "no preset is called 'uncc'; there are demo",
    'train --preset unc': '`sag prepare --dataset refcoco --root data --download`',
    'train --preset refcocog_umd --test testA': "refcocog has no split 'testA'; there are train, val, test",
    'train --resume empty': 'empty holds no interrupted run',
    'sweep {}': 'name a field and the values to try',
    'sweep nothing': "no grid is called 'nothing'",
    'sweep losses --preset gref': "refcocog has no split 'testA'; there are train, val",
    'sweep losses --preset unc --dry-run': '`sag prepare --dataset refcoco --root data --download`',
    'evaluate small --dataset=': 'this is no run; name a data set',
    'predict photo.jpg': 'say what to look for',
    'predict photo.jpg left dog': 'in quotes: "left dog"',
    'predict none.jpg dog': "no photo in 'none.jpg'",
    'predict broken.jpg dog --model empty': 'empty',
    'predict photo.jpg -e dog --device tpu': "device='tpu' is not to be had",
    'predict photo.jpg -e dog --draws 999999999': 'draws must be at most 10,000',
    'predict http://[x -e dog --urls': 'http://[x cannot be fetched',
    'evaluate small,': "'' is neither a file or folder nor a hub id",
    'evaluate small,nowhere/at/all': 'nowhere/at/all is neither a file or folder nor a hub id',
    'predict photo.jpg -e dog --model small,none': 'none',
    'evaluate nowhere/at/all': 'neither a file or folder nor a hub id',
    'prepare --dataset coco': "no data set is called 'coco'; there are refcoco",
    'report empty': 'empty',
    'export empty': 'empty',
    'push empty me/x --token secret': 'no option --token',
}


@pytest.mark.parametrize('line', WRONG)
def test_a_mistake_is_one_line_that_helps(line, folder):
    status, out, err = said(*line.split())
    assert status in (1, 2) and out == '' and WRONG[line] in err and err.count('\n') == 1, (out, err)


def test_a_bug_is_one_line_with_a_log_file(folder, monkeypatch):
    monkeypatch.setitem(cli.commands, 'docs', lambda dest='_docs': {}['nothing'])
    status, _, err = said('docs')
    assert status == 70 and err.count('\n') == 1 and 'unexpected KeyError: nothing. Please report it' in err
    log = Path(err.split('log file ')[1].strip())
    assert 'Traceback' in log.read_text() and "sag 'docs'" in log.read_text()
    log.unlink()


def test_quiet_leaves_the_result_and_verbose_the_traceback(folder, monkeypatch):
    def docs(dest: str = '_docs'):
        print('working')
        return 'result'
    monkeypatch.setitem(cli.commands, 'docs', docs)
    assert said('docs', '--quiet') == (0, 'result\n', '')
    assert said('docs') == (0, 'working\nresult\n', '')
    assert 'Traceback' in said('--verbose', 'train', '--lr', '-1')[2]


JUNK = ['', ' ', '-', '--', '---', '=', '--=', '-1', '0', '1e999', 'nan', '{', '{}', '[]', '[1', 'null', 'é\u202e\0', '\n', 'x' * 5000, '../..', '/dev/null',
        'photo.jpg', 'broken.jpg', 'empty', 'run.json', 'left dog', 'yes', 'no', 'small', 'a/b', 'refcoco,', ',', '+', 'train+', '*', '~', '%s', '{x}', '$']


def words(rng, options):
    "A command line of a command's options and junk."
    line = [rng.choice([*cli.commands, 'trian'])]
    known = options.get(line[0], ['--help'])
    for _ in range(rng.randrange(5)):
        o = rng.choice(known) if rng.random() < .6 else rng.choice(JUNK)
        if rng.random() < .15: o = o[:-1] + rng.choice('ab-=_')
        line += [o + '=' + rng.choice(JUNK)] if rng.random() < .2 else [o, rng.choice([*JUNK, *presets])] if rng.random() < .6 else [o]
    return line


def test_no_command_line_ends_in_a_traceback(folder, monkeypatch):
    "400 command lines, seed 0. What would train, measure, build or serve for long is replaced by a stub."
    import sag.bench.bench
    import sag.docs
    import sag.explore
    import sag.runs.papermill
    import sag.runs.sweep
    def stub(*args, **kwargs): raise OSError('stub')
    for module, name in ((sag.runs.papermill, 'execute'), (sag.runs.sweep, 'sweep'), (sag.bench.bench, '_python'), (sag.bench.bench, 'build'),
                         (sag.docs, 'build_site'), (sag.explore, 'gradio_app')): monkeypatch.setattr(module, name, stub)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', True)
    rng, options = random.Random(0), {k: [*cli.parser_of(k)._option_string_actions] for k in cli.commands}
    for _ in range(400):
        line = words(rng, options)
        status, _, err = said(*line)
        assert status in (0, 1, 2), (line, err)
        assert 'Traceback' not in err and 'unexpected' not in err and (status == 0 or err.count('\n') >= 1), (line, err)


def shell(line):
    "Run a line of shell in which `sag` is the command."
    start = f"""sag() {{ {sys.executable} -c 'import sys; from sag.cli import main; sys.exit(main())' "$@"; }}\n"""
    return subprocess.run(['bash', '-c', start + line], capture_output=True, text=True)


@pytest.mark.parametrize('command', ['train --help', 'train --preset demo --print-config'])
def test_closed_and_full_output_is_no_error(command, folder):
    for end in ('| head -1', '>/dev/full', '>&-', '2>&-', '>&- 2>&-'):
        done = shell(f'set -o pipefail; sag {command} {end}')
        assert done.returncode == 0 and 'Traceback' not in done.stderr and 'Exception ignored' not in done.stderr, (end, done)


def test_what_the_terminal_cannot_write_is_a_question_mark(folder):
    done = shell('export PYTHONIOENCODING=ascii; sag prepare --dataset ☃; sag --help')
    assert done.returncode == 0 and "no data set is called '?'" in done.stderr and 'usage: sag' in done.stdout and 'Traceback' not in done.stderr


def test_weights_have_ordinary_permissions(tmp_path):
    from sag.config import model_config
    from sag.model import SaG
    SaG(model_config(presets['smoke']), weights=False).save_pretrained(tmp_path/'model')
    (tmp_path/'plain').touch()
    modes = {o.name: oct(stat.S_IMODE(o.stat().st_mode)) for o in [*(tmp_path/'model').iterdir(), tmp_path/'plain']}
    assert {*modes.values()} == {modes['plain']}, modes
