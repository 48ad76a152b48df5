#!/usr/bin/env python3
"""Attention patterns that users write: patterns.py TULLE SOURCE

What a file of pairs held when a run began is part of its checkpoints: eval, sample, resume and inspect give the same to the
bit after the file was edited or deleted and from another folder; without a checkpoint a missing file is told with its key.
"""
import pathlib, re, shutil, sys
from cases import go_through, run, says

try:
    import h5py
except ImportError:
    h5py = None

quick = pathlib.Path(sys.argv[2]).resolve() / 'configs/quickstart.yaml'
PATTERN = 'model.attention.pattern=file("pairs.txt")|local(4)'
PAIRS = 'blocks 4\n0 0\n1 0\n2 2\nhead 0\n3 1\n'
small = ['data.size=5000', 'model.context=16', 'model.d_model=16', 'model.n_heads=2', 'train.batch=2', 'train.eval_batches=1',
         'sample.length=5', 'schedule.warmup_steps=1', 'schedule.decay_steps=6', 'model.attention.drop_weights=false']


def state(text):
    return re.search('state sha256 (.*)', text)[1]


def looks(tmp, cwd):
    """What the commands say that only read."""
    return [run('eval', tmp / 'half', cwd=cwd), run('sample', tmp / 'half', '-n', '40', cwd=cwd),
            run('inspect', tmp / 'half', cwd=cwd)]


def the_file_of_the_beginning_counts(tmp):
    file, away = tmp / 'pairs.txt', tmp / 'away'
    away.mkdir()
    file.write_text(PAIRS)
    whole = state(run('train', quick, *small, PATTERN, 'train.steps=6', 'run.dir=whole', cwd=tmp))
    run('train', quick, *small, PATTERN, 'train.steps=3', 'run.dir=half', cwd=tmp)
    told = looks(tmp, tmp)
    says(told[2], r"the 32 bytes that 'pairs.txt' had")
    note = "note    'pairs.txt' has changed since the run began"
    for name, change in [('as it was', lambda: None), ('edited', lambda: file.write_text('elements\n0 0\n')),
                         ('no pattern', lambda: file.write_text('my notes')), ('deleted', file.unlink)]:
        change()
        assert looks(tmp, tmp) == told and looks(tmp, away) == told, name
        shutil.rmtree(tmp / 'r', ignore_errors=True)
        shutil.copytree(tmp / 'half', tmp / 'r')
        text = run('resume', 'r', 'train.steps=6', cwd=tmp)
        assert state(text) == whole, name
        assert (note in text) == (name in ('edited', 'no pattern')), (name, text)
    text = run('resume', tmp / 'half', 'train.steps=6', cwd=away)
    assert state(text) == whole and note not in text, text
    file.write_text('elements\n0 0\n')       # a test that cannot see is none
    assert state(run('train', quick, *small, PATTERN, 'train.steps=6', 'run.dir=other', cwd=tmp)) != whole


def the_checkpoint_holds_it(tmp):
    (tmp / 'pairs.txt').write_text(PAIRS)
    run('train', quick, *small, PATTERN, 'train.steps=3', 'run.dir=r', cwd=tmp)
    if h5py:
        with h5py.File(tmp / 'r/last.h5') as f:
            p = f['patterns/0']
            assert p['path'].asstr()[()] == 'pairs.txt' and bytes(p['text'][...]).decode() == PAIRS
    last = tmp / 'r/last.h5'
    whole = last.read_bytes()
    at = whole.index(PAIRS.encode()) + 9
    last.write_bytes(whole[:at] + b'1' + whole[at + 1:])
    for command in ('eval', 'sample', 'resume', 'inspect'):
        says(run(command, 'r', status=4, cwd=tmp), "'r/last.h5'", 'damaged')


def a_missing_file_is_told_with_its_key(tmp):
    (tmp / 'c.yaml').write_text('model:\n  attention:\n    pattern: file("pairs.txt")\n')
    for command in (['train'], ['show', 'pattern'], ['show', 'memory'], ['config', 'print']):
        says(run(*command, 'c.yaml', status=2, cwd=tmp), r"model\.attention\.pattern \(c\.yaml:3\): cannot open 'pairs\.txt'")
    says(run('train', quick, PATTERN, status=2, cwd=tmp), r"model\.attention\.pattern \(command line\): cannot open 'pairs\.txt'")
    assert not (tmp / 'runs').exists()


go_through(the_file_of_the_beginning_counts, the_checkpoint_holds_it, a_missing_file_is_told_with_its_key)
