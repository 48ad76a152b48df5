#!/usr/bin/env python3
"""Every command of the README, on a tiny run: commands.py TULLE SOURCE

What each prints is checked for what it must say; signals save and stop, runs resume to the same state, and a diverged run
says where it went wrong.
"""
import json, os, pathlib, re, signal, subprocess, sys, time
from cases import go_through, run, says, tulle

source = pathlib.Path(sys.argv[2]).resolve()
quick = str(source / 'configs/quickstart.yaml')
tiny = ['data.size=20000', 'model.context=16', 'model.d_model=16', 'model.n_heads=2', 'train.batch=4', 'sample.length=20',
        'train.eval_batches=2', 'train.log_every=1', 'schedule.warmup_steps=2', 'schedule.decay_steps=40']


def state(text):
    return re.findall(r'state sha256 ([0-9a-f]{64})', text)[-1]


def train_and_look(tmp):
    text = run('train', quick, *tiny, 'train.steps=12', 'train.eval_every=6', 'sample.every=6', 'run.dir=r', cwd=tmp)
    says(text, r'step 12/12 +loss', r'val loss', r'entropy rate', r'sample at step 6', r'saved r/last.h5')
    files = {p.name for p in (tmp / 'r').iterdir()}
    assert {'config.yaml', 'metrics.jsonl', 'samples', 'last.h5', 'best.h5', 'env.json', 'LOCK'} <= files, files
    lines = [json.loads(l) for l in (tmp / 'r/metrics.jsonl').read_text().splitlines()]
    assert [l['step'] for l in lines if 'loss' in l] == list(range(1, 13))
    assert [l['step'] for l in lines if 'val_loss' in l] == [6, 12]
    json.loads((tmp / 'r/env.json').read_text())
    says(run('inspect', 'r', cwd=tmp), r'step 12', r'model/blocks/0/ff/in/weight', r'optimizer/adamw/m', r'parameters')
    says(run('inspect', 'r', '--config', cwd=tmp), r'd_model: 16')
    says(run('eval', 'r', cwd=tmp), r'step 12, split val: loss')
    assert json.loads(run('eval', 'r', '--best', '--batches', '2', '--json', cwd=tmp))['count'] == 2 * 4 * 16
    assert run('eval', 'r', '--batches', '1000000000', cwd=tmp) == run('eval', 'r', cwd=tmp)      # no more than there is
    prompt = next(iter((tmp / 'r/samples').iterdir())).read_text()[0]
    one = run('sample', 'r', '--prompt', prompt, '-n', '60', '--top-k', '5', '--top-p', '0.9', '--seed', '7', cwd=tmp)
    assert one == run('sample', 'r', '--prompt', prompt, '-n', '60', '--top-k', '5', '--top-p', '0.9', '--seed', '7', cwd=tmp)
    assert len(one) == 62, one
    greedy = {run('sample', 'r', '--prompt', prompt, '-n', '30', '--temperature', '0', '--seed', s, cwd=tmp) for s in (1, 2)}
    assert len(greedy) == 1


def resume_is_the_same_run(tmp):
    for k, keys in enumerate([tiny, [*tiny, 'optim.ema_decay=0.9', 'model.start_vector=true', 'train.eval_every=10']]):
        whole = run('train', quick, *keys, 'train.steps=20', 'checkpoint.every=5', f'run.dir=whole{k}', cwd=tmp)
        run('train', quick, *keys, 'train.steps=7', f'run.dir=part{k}', cwd=tmp)
        says(run('resume', f'part{k}', cwd=tmp), 'resumed at step 7')
        assert state(run('resume', f'part{k}', 'train.steps=20', cwd=tmp)) == state(whole)
        evals = [run('eval', f'{d}{k}', *flag, cwd=tmp) for d in ('whole', 'part') for flag in ([], ['--no-ema'])]
        assert evals[:2] == evals[2:] and (evals[0] != evals[1]) == bool(k), evals


def signals_save(tmp):
    whole = run('train', quick, *tiny, 'train.steps=400', 'run.dir=whole', cwd=tmp)
    for number, status in ((signal.SIGTERM, 75), (signal.SIGINT, 130)):
        name = f'r{status}'
        p = subprocess.Popen([tulle, 'train', quick, *tiny, 'train.steps=400', f'run.dir={name}'], cwd=tmp, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while 'step 3/' not in (line := p.stdout.readline()):
            assert line, 'it ended too soon'
        p.send_signal(number)
        out, err = p.communicate(timeout=60)
        assert p.returncode == status, (p.returncode, err)
        says(err, r'tulle resume r\d+')
        assert state(run('resume', name, cwd=tmp)) == state(whole)


def a_stop_in_an_evaluation(tmp):
    few, many = 'train.eval_batches=3', 'train.eval_batches=0'
    args = [quick, *tiny, 'data.size=2000000', 'data.val_fraction=0.9', 'train.threads=1', 'train.steps=12', 'train.eval_every=6', 'sample.every=6']
    whole = run('train', *args, few, 'run.dir=whole', cwd=tmp)
    p = subprocess.Popen([tulle, 'train', *args, many, 'run.dir=r'], cwd=tmp, text=True, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE)
    while 'step 6/' not in (line := p.stdout.readline()):
        assert line, 'it ended too soon'
    time.sleep(0.2)
    p.send_signal(signal.SIGTERM)
    p.send_signal(signal.SIGINT)         # what a wrapper passes on at once is the same request
    out, err = p.communicate(timeout=60)
    assert p.returncode in (75, 130), (p.returncode, err)
    says(err, r'step 6; `tulle resume r`')
    assert state(run('resume', 'r', few, cwd=tmp)) == state(whole)
    clock = re.compile(r'"(\w*seconds|\w+_per_second|memory)":[0-9.]+')
    a, b = (clock.sub('', (tmp / d / 'metrics.jsonl').read_text()) for d in ('whole', 'r'))
    assert a == b, (a, b)
    p = subprocess.Popen([tulle, 'eval', 'r'], cwd=tmp)
    time.sleep(0.3)
    p.send_signal(signal.SIGINT)
    assert p.wait(timeout=60) == -signal.SIGINT


def only_the_best_is_kept(tmp):
    run('train', quick, *tiny, 'train.steps=6', 'train.eval_every=6', 'checkpoint.keep_last=false', 'run.dir=r', cwd=tmp)
    assert not (tmp / 'r/last.h5').exists()
    for command in 'eval', 'sample', 'inspect':
        text = run(command, 'r', cwd=tmp)
        says(text, r"warning: 'r' has no last.h5: using best.h5 \(step 6\)")
        assert run(command, 'r', '--best', cwd=tmp) in text
    (tmp / 'r/best.h5').unlink()
    says(run('eval', 'r', status=4, cwd=tmp), "'r' holds no checkpoint: neither last.h5 nor prev.h5")


def changed_settings_are_told(tmp):
    args = [quick, *tiny, 'schedule.decay_steps=0', 'run.dir=r']
    run('train', *args, 'train.steps=6', cwd=tmp)
    says(run('resume', 'r', cwd=tmp), 'the run is complete; train.steps=12 would train as long again')
    says(run('resume', 'r', 'train.steps=9', cwd=tmp), r'decay_steps = 0 stands for train.steps, 9 and no longer 6')
    says(run('resume', 'r', 'train.steps=4', cwd=tmp), 'the run is complete; train.steps=18 would train as long again')


def the_checkpoint_counts_not_the_configuration(tmp):
    """Killed behind config.yaml with new settings and before the checkpoint; or config.yaml is gone."""
    last, config = tmp / 'r/last.h5', tmp / 'r/config.yaml'
    run('train', quick, *tiny, 'run.dir=r', 'train.steps=6', cwd=tmp)
    old = last.read_bytes()
    new = state(run('resume', 'r', 'train.steps=9', 'sample.length=7', cwd=tmp))
    for missing in False, True:
        for args, what in ([], 'the run is complete'), (['train.steps=9'], 'state sha256 ' + new):
            last.write_bytes(old)
            (tmp / 'r/prev.h5').unlink(missing_ok=True)
            config.unlink() if missing else config.write_text(re.sub('(  steps: )6', r'\g<1>9', config.read_text()))
            text = run('resume', 'r', *args, cwd=tmp)
            says(text, what)
            assert ('note    train.steps is 6 as in last.h5, not 9 as in config.yaml' in text) == (not missing and not args), text
            assert config.exists()


def nobody_reads(tmp):
    (tmp / 'my.txt').write_text('words without a line break ' * 400)
    run('train', quick, *tiny, 'train.steps=3', 'data.source=text', 'data.path=my.txt', 'data.size=0', 'run.dir=r', cwd=tmp)
    assert len(run('sample', 'r', '-n', '5', cwd=tmp)) == 7      # begins with the first token
    says(run('eval', 'r', '--split', 'test', '--batches', '2', status=4, cwd=tmp), 'split is empty')
    for args in (['sample', 'r', '-n', '100000000'], ['config', 'print', quick]):
        with open('/dev/full', 'w') as full:
            p = subprocess.run([tulle, *args], cwd=tmp, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        assert p.returncode == 5 and 'output' in p.stderr, (args, p)
    (tmp / 'any.bin').write_bytes(bytes(range(256)) * 80)
    run('train', quick, *tiny, 'train.steps=3', 'data.source=text', 'data.path=any.bin', 'data.tokenizer=byte', 'data.size=0',
        'sample.every=3', 'sample.length=3000', 'run.dir=b', '--quiet', cwd=tmp)
    assert (tmp / 'b/samples/step-00000003.txt').stat().st_size == 3001


def a_locked_run_is_refused(tmp):
    p = subprocess.Popen([tulle, 'train', quick, *tiny, 'train.steps=100000', 'run.dir=r'], cwd=tmp, text=True,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while 'step 2/' not in (line := p.stdout.readline()):
        assert line, 'it ended too soon'
    says(run('resume', 'r', status=6, cwd=tmp), str(p.pid))
    p.kill()
    p.communicate()
    says(run('resume', 'r', 'train.steps=5', cwd=tmp), 'resumed at step 0', r'step 5/5')


def divergence_is_explained(tmp):
    text = run('train', quick, *tiny, 'train.steps=300', 'optim.lr=100', 'optim.type=sgd', 'optim.clip_norm=0',
               'schedule.type=constant', 'schedule.warmup_steps=0', 'run.dir=r', status=7, cwd=tmp)
    says(text, r'diverged', r'step \d+', r'not finite', r'block|linear|layernorm|cross_entropy', r'optim.lr')


def configurations(tmp):
    text = run('config', 'print', quick, 'model.d_model=32')
    says(text, r'd_model: 32', r'command line', r'quickstart.yaml')
    (tmp / 'c.yaml').write_text(text)
    assert run('config', 'diff', quick, tmp / 'c.yaml').strip() == 'model.d_model: 64 -> 32', run('config', 'diff', quick, tmp / 'c.yaml')
    says(run('config', 'explain', 'model.ff.block'), r'block size N')
    says(run('config', 'reference'), r'model\.ff\.quant_prob', r'\|')
    says(run('config', 'explain', 'model.d_modle', status=2), r'd_model')
    for c in sorted((source / 'configs').glob('*.yaml')):
        run('config', 'print', c)


def data(tmp):
    says(run('data', 'list'), r'shakespeare', r'language')
    (tmp / 'my.txt').write_text('a small text of mine, over and over\n' * 200)
    says(run('data', 'import', 'my.txt', '-o', 'my.h5', cwd=tmp), r'wrote my.h5')
    says(run('train', quick, *tiny, 'train.steps=3', 'data.source=hdf5', 'data.path=my.h5', 'data.size=0', 'run.dir=r', cwd=tmp),
         r'step 3/3')
    says(run('sample', 'r', '--prompt', 'small', '-n', '5', cwd=tmp), r'small')
    says(run('data', 'get', 'nothing', status=2), r'nothing', r'shakespeare')


def looking(tmp):
    says(run('show', 'ops'), r'attend_qkv', r'argmax.*no gradient')
    says(run('show', 'ops', quick, *tiny), r'linear +block 0, attention', r'cross_entropy', r'GFLOP')
    fixed = ['model.attention.pattern=fixed(8, 4); dense']
    says(run('show', 'pattern', quick, *tiny, *fixed), r'layers 0: fixed\(8, 4\)', r'heads 1: chunk\(8\) \+ summary\(8, 4, 1\)',
         r'layers 1: dense', r'by keys alone')
    shown = json.loads(run('show', 'pattern', quick, *tiny, *fixed, '--json', '--block', '4', '-o', 'p.svg', cwd=tmp))
    assert shown['reach']['layers'][0]['plain'] == shown['reach']['pairs'] == 16 * 17 // 2, shown
    first = shown['patterns'][0]['heads'][0]
    assert (first['pairs'], first['full'], first['partial'], first['blocks']) == (104, 4, 4, 10), first
    assert (shown['patterns'][1]['layers'], first['heads']) == ([1], [0]), shown
    assert '<svg' in (tmp / 'p.svg').read_text()[:10]
    for name in 'p.png', '.svg', 'svg':
        says(run('show', 'pattern', quick, *tiny, '-o', name, status=2, cwd=tmp), f"the picture is SVG, so a name such as p.svg, not '{name}'")
        assert not (tmp / name).exists()
    says(run('show', 'pattern', quick, 'model.attention.pattern=lokal(3)', status=2), r"no factor 'lokal'\n    lokal")
    says(run('show', 'pattern', quick, '--blocks', '4', status=2), r"no flag '--blocks'; `tulle show --help` lists them")
    says(run('show', 'memory', quick, *tiny), r'parameters', r'optimizer', r'block 1', r'peak', r'train.recompute')
    assert 'train.recompute' not in run('show', 'memory', quick, *tiny, 'model.reversible=fp32')
    says(run('show', 'ops', quick, '--json', status=2), r'--json is for show memory')
    assert json.loads(run('bench', quick, *tiny, '--steps', '3', '--json'))['per_second'] > 0
    rows = [json.loads(line) for line in run('bench', quick, *tiny, '--steps', '2', '--warm', '0', '--rounds', '2', '--json',
                                             '--vary', 'model.ff.type=dense,sparse', '--vary', 'train.precision=fp32,bf16').splitlines()]
    assert [r['row'] for r in rows] == ['dense fp32', 'dense bf16', 'sparse fp32', 'sparse bf16'], rows
    assert rows[0]['ratio'] == 1 and all(r['ratio'] > 0 and r['tape'] > 0 for r in rows), rows
    patterns = run('bench', quick, *tiny, '--steps', '1', '--warm', '0', '--vary', 'model.attention.pattern=dense,fixed(8, 4),local(3)')
    says(patterns, r'ms a step', r'\nfixed\(8, 4\) ', r'\nlocal\(3\) ')
    for bad in ('model.n_layers', '=1', 'model.n_layers='):
        says(run('bench', quick, '--vary', bad, status=2), r'--vary', r'KEY=VALUE')
    says(run('bench', quick, '--vary', 'model.n_layer=1,2', status=2), r'did you mean', r'n_layers')
    says(run('bench', quick, '--vary', 'model.n_heads=1,3', status=2), r'row 3: ', r'n_heads')
    says(run('help'), r'tulle train', r'Exit status')
    says(run('version'), r'tulle \d')
    says(run('train', '--help'), r'CONFIG')


def memory(tmp):
    """The table and the object hold the same numbers; a step takes what was planned for it, to the byte."""
    soft = 'model.ff.quant_prob=0'       # as what is planned
    pairs = [source / 'configs/seq-copy-transformer.yaml', 'model.n_layers=6', 'data.source_length=24', 'data.size=200', 'train.batch=4',
             'model.dropout=0.1', 'model.ff.type=sparse', 'model.ff.block=8', soft]
    show = lambda *args: json.loads(run('show', 'memory', *args, '--json'))
    blocks = [f'block {i}' for i in range(6)]
    for config, named in (([quick, *tiny, 'model.n_layers=6', soft], blocks), (pairs, ['encoder 0', 'encoder 1', *blocks])):
        text, o = run('show', 'memory', *config), show(*config)
        kept = o['bytes']
        for word, key in (('parameters', 'parameters'), ('gradients', 'gradients'), ('optimizer', 'optimizer'),
                          ('their gradients', 'backward'), (r'all, at the peak of a step \(\*\)', 'all')):
            says(text, rf'\n{word} +{kept[key] / 1e6:.2f} MB\n')
        assert o['planned'] and [p['where'] for p in o['activations'] if p['where'][-1].isdigit()] == named, o
        for p in o['activations']:
            says(text, rf"\n  {p['where']} +{p['bytes'] / 1e6:.2f} MB\n")
        for r in o['recompute']:
            assert r['more_forward'] >= 0, r
            says(text, rf"\n{r['name']} +{r['step'] / 1e6:.2f} MB +{r['all'] / 1e6:.2f} MB +{100 * r['more_forward']:.1f} %\n")
        rows = {r['name']: r for r in o['recompute']}
        assert rows['none']['all'] == kept['all'] == sum(kept[k] for k in kept if k != 'all'), o
        for how in ('cheap', 'attention', 'block'):
            step = show(*config, f'train.recompute={how}', '--run')
            assert not step['planned'] and step['bytes']['all'] == rows[how]['all'] < kept['all'], (how, step)
        for share in (0.8, 0.6, 0.45):
            budget = kept['all'] - (1 - share) * rows['none']['step']
            step = show(*config, 'train.recompute=auto', f'train.memory_budget={budget:.0f}', '--run')
            auto = step['recompute'][-1]
            assert auto['name'] == 'auto' and step['bytes']['all'] == auto['all'] <= budget, (share, step)
            assert auto['more_forward'] <= rows['block']['more_forward'] or auto['all'] < rows['block']['all'], (share, step)
        says(run('show', 'memory', *config, 'train.recompute=auto', 'train.memory_budget=1kB', status=2), r'is too little')
    says(run('train', *pairs, 'train.recompute=block', 'train.recompute_group=2', 'train.steps=2', 'schedule.warmup_steps=1', 'train.eval_batches=1', 'run.dir=r', cwd=tmp),
         r'recompute block: encoder 0-1 recomputed 1 time, whole; decoder 0-5 recomputed 1 time, whole')


def decoding(tmp):
    def rows(*args):
        out = run('bench', 'decode', *args, '--tokens', '6', '--prompt', '5', '--json', cwd=tmp)
        return [json.loads(line) for line in out.splitlines()]
    names = ['dense', '+FF', '+QKV', '+FF+QKV', '+FF+QKV+loss']
    seen = rows(quick, *tiny, 'model.ff.block=16')
    assert [r['model'] for r in seen] == names
    assert [r['random_units'] > 0 for r in seen] == [False, True, False, True, True]
    sparse = seen[1]
    assert abs(sparse['units'] - 1 / 16) < 1e-6 and sparse['touched'] < seen[0]['touched'] < sparse['params']
    # several sequences read the units that any of them chose; random choices, as many as 1 - (1 - 1/N)^B
    (tmp / 'a.yaml').write_text('data:\n  source: language\nmodel:\n  n_layers: 2\n  d_model: 64\n  n_heads: 2\n  context: 16\n'
                                '  d_ff: 1024\n  ff:\n    type: sparse\n    block: 8\nablation:\n  arms:\n    random: [model.ff.choice=random]\n'
                                '    first: [model.ff.choice=first]\n    controller: []\n    dense: [model.ff.type=dense]\n')
    seen = rows('a.yaml', '--batch', '1,3,40')
    assert [(r['model'], r['batch']) for r in seen] == [(m, b) for m in ('random', 'first', 'controller', 'dense') for b in (1, 3, 40)]
    for r in seen[:3]:
        assert abs(r['random_units'] - (1 - (7 / 8) ** r['batch'])) < 1e-5, r
        assert abs(r['units'] - r['random_units']) < 0.02, r
    one, _, all_ = seen[:3]                           # two layers, two matrices of 1024 units of width 64
    assert abs(all_['touched'] - one['touched'] - (all_['units'] - 1 / 8) * 2 * 2 * 1024 * 64) <= 128, seen
    assert all(abs(r['units'] - 1 / 8) < 1e-6 for r in seen[3:6]) and len({r['touched'] for r in seen[3:6]}) == 1
    assert 1 / 8 < seen[7]['units'] < seen[8]['units'] <= 1 and all(r['units'] == 0 for r in seen[9:])
    text = run('bench', 'decode', 'a.yaml', '--tokens', '6', '--prompt', '5', cwd=tmp)
    says(text, r'random .*first .*controller .*dense ', r'bytes read to the power -?\d')
    run('train', quick, *tiny, 'train.steps=2', 'run.dir=r', cwd=tmp)
    for path in ('r', 'r/last.h5'):
        trained = rows(path, '--batch', '1,4')
        assert [r['model'] for r in trained] == ['trained'] * 2 and 0 < trained[0]['units'] < trained[1]['units'] < 1
    for bad in ('0', '1,', ',1', '1,,2', '4097', 'x', '', '1 2'):
        says(run('bench', 'decode', quick, f'--batch={bad}', status=2), r"--batch", r'1,2,4')
    says(run('bench', 'decode', quick, *tiny, '--tokens', '12', status=2), r'do not fit model.context = 16')
    assert run('bench', 'decode', source / 'configs/mnist-dense.yaml', status=2) == 'tulle: bench decode: an mlp makes no tokens\n'
    says(run('bench', 'decode', quick, *tiny, 'model.n_heads=1', '--tokens', '3', '--prompt', '3', status=2), r'row \+QKV: .*kernel_modules')
    hashed = ['model.type=terraformer', 'model.reversible=fixed', 'model.attention.type=lsh', 'data.source=copy_pairs', 'data.source_length=5',
              'data.target_length=16', 'model.ff.type=dense']
    seen = rows(quick, *tiny, *hashed, '--batch', '1,3')
    assert [r['batch'] for r in seen] == [1, 3] and all(r['ms_per_token'] > 0 for r in seen), seen
    run('bench', 'decode', 'r', 'model.d_ff=8', status=2, cwd=tmp)


def sparse_transformer(tmp):
    """The model of 1904.10509 on bytes: start vector, no weights in the output at first, their average, overlap."""
    text = bytes(i * i // 7 % 251 for i in range(4000))
    (tmp / 'some.bin').write_bytes(text)
    keys = ['data.source=text', 'data.path=some.bin', 'data.tokenizer=byte', 'model.n_layers=1', 'model.d_model=16', 'model.n_heads=2',
            'model.context=32', 'model.start_vector=true', 'model.position.type=grid', 'model.position.stride=8', 'model.init=released',
            'model.tied_embeddings=false', 'model.head.zero=true', 'model.attention.drop_weights=false', 'model.dropout=0.1',
            'optim.ema_decay=0.9', 'train.batch=4', 'train.log_every=1', 'train.steps=20', 'train.eval_every=10', 'train.eval_last=8',
            'sample.prompt=', 'sample.every=20', 'sample.length=70', 'run.dir=r']
    (tmp / 'empty.yaml').write_text('run:\n  name: r\n')
    shown = run('train', 'empty.yaml', *keys, cwd=tmp)
    says(shown, r'step 20/20 +loss [\d.]+ \([\d.]+ bits\)  val [\d.]+ \([\d.]+ bits\)', r'bits per byte', r'sample at step 20')
    lines = [json.loads(l) for l in (tmp / 'r/metrics.jsonl').read_text().splitlines()]
    assert abs(lines[0]['loss'] / 0.6931471805599453 - 8) < 1e-6, lines[0]
    vals = [l for l in lines if 'val_loss' in l]
    for l in vals:
        assert abs(l['val_bits_per_byte'] * 0.6931471805599453 - l['val_loss']) < 1e-6 and l['val_count'] == 400, l

    def loss(*flags):
        e = json.loads(run('eval', 'r', '--json', *flags, cwd=tmp))
        assert abs(e['bits_per_byte'] * 0.6931471805599453 - e['loss']) < 1e-6
        return e['loss'], e['count']
    assert loss() == loss('--last', '8') == (vals[-1]['val_loss'], 400)
    assert loss('--last', '32')[1] == 400 and loss('--last', '0')[1] == 400 // 32 * 32
    assert loss('--last', '1')[1] == 400 and loss('--no-ema')[0] < loss()[0] - 1e-4      # the average lags behind
    run('eval', 'r', '--last', '33', status=2, cwd=tmp)
    run('eval', 'r', '--last', '8', '--batches', '2', status=2, cwd=tmp)
    out = subprocess.run([tulle, 'sample', 'r', '--prompt', '', '-n', '100'], cwd=tmp, capture_output=True, check=True).stdout
    assert len(out) == 101, out                       # longer than the context, from nothing
    says(run('show', 'memory', 'empty.yaml', *keys, cwd=tmp), r'parameters', r'embedding', r'planned')


def peak(*args, cwd):
    """The most bytes that tulle had in memory."""
    with subprocess.Popen([tulle, *args], cwd=cwd, stdout=subprocess.DEVNULL) as p:
        _, status, used = os.wait4(p.pid, 0)
        p.returncode = os.waitstatus_to_exitcode(status)
    assert p.returncode == 0, args
    return 1024 * used.ru_maxrss


def memory_without_training(tmp):
    """To decode or to be evaluated, a model takes little more than its weights, also where the file has much more."""
    keys = [*tiny, 'train.batch=1', 'train.steps=2', 'schedule.warmup_steps=1', 'train.eval_batches=1', 'optim.ema_decay=0.9']
    large = ['model.d_model=384', 'model.n_layers=6', 'model.n_heads=6']
    run('train', quick, *keys, 'run.dir=small', cwd=tmp)
    run('train', quick, *keys, *large, 'run.dir=large', cwd=tmp)
    weights = 4 * int(re.search(r'([\d,]+) parameters', run('show', 'memory', quick, *large, cwd=tmp))[1].replace(',', ''))
    assert 40e6 < weights < 60e6 and (tmp / 'large/last.h5').stat().st_size > 4 * weights
    for command, flags in ('sample', '-n 4'), ('eval', '--batches 1'), ('bench decode', '-n 4 --prompt 4'):
        small, big = (peak(*command.split(), name, *flags.split(), cwd=tmp) for name in ('small', 'large'))
        assert 0.9 * weights < big - small < 1.5 * weights, (command, small, big, weights)


def published_models(tmp):
    """Sizes and memory of the paper's models, without their data and without a step."""
    for name, count in ('cifar10', '59,196,928'), ('enwik8', '94,949,888'), ('imagenet64', '151,645,184'):
        text = run('show', 'memory', source / f'configs/paper-{name}.yaml')
        says(text, f'gpt, {count} parameters', r'optimizer', r'activations of a micro-batch of 1\n', r'at the peak of a step')
    (tmp / 'text.yaml').write_text('data:\n  source: text\n  path: none.txt\n')
    says(run('show', 'memory', 'text.yaml', status=4, cwd=tmp), r'--vocab')
    says(run('show', 'memory', 'text.yaml', '--vocab', '65', cwd=tmp), r'gpt, 10,\d{3},\d{3} parameters')


go_through(train_and_look, resume_is_the_same_run, signals_save, a_stop_in_an_evaluation, only_the_best_is_kept,
           changed_settings_are_told, the_checkpoint_counts_not_the_configuration, nobody_reads,
           a_locked_run_is_refused, divergence_is_explained, configurations, data, looking, memory, decoding,
           memory_without_training, sparse_transformer, published_models)
