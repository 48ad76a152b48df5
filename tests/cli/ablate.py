#!/usr/bin/env python3
"""tulle ablate: a small ablation on generated text, run, run again, stopped, killed, and with bad files: ablate.py TULLE"""
import fcntl, json, os, pathlib, re, shutil, signal, subprocess, sys, tempfile

tulle = str(pathlib.Path(sys.argv[1]).resolve())
passed, failed = 0, []

BASE = """\
run:
  name: tiny
data:
  source: language
  size: 20000
model:
  n_layers: 1
  n_heads: 2
  d_model: 32
  context: 32
optim:
  lr: 3e-3
train:
  steps: 20
  batch: 4
  eval_every: 5
  eval_batches: 2
  log_every: 4
sample:
  every: 0
checkpoint:
  every: 5
"""
ARMS = """\
ablation:
  about: "does a sparse layer learn?"
  seeds: [1, 2]
  arms:
    dense: []
    1 of 16: [model.ff.type=sparse, model.ff.block=16]
"""


def check(name, fine, *shown):
    global passed
    if fine:
        passed += 1
        return
    failed.append(name)
    print(f'FAILED {name}', *shown, sep='\n')


def run(*args, cwd=None, env=None):
    return subprocess.run([tulle, *map(str, args)], cwd=cwd, capture_output=True, text=True,
                          env=dict(os.environ, **(env or {})))


def timeless(text):
    """The object that --json prints without what a clock said."""
    def strip(x):
        if isinstance(x, dict):
            return {k: strip(v) for k, v in x.items()
                    if k not in ('dir', 'ms_per_step', 'train_seconds', 'same_time_loss')}
        return [strip(v) for v in x] if isinstance(x, list) else x
    return strip(json.loads(text))


def evaluations(folder):
    lines = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]
    return [line for line in lines if 'val_loss' in line], [line for line in lines if 'loss' in line]


def near(a, b):
    return a is not None and b is not None and abs(a - b) < 1e-6 * max(1, abs(b))


def check_results(folder, result):
    """Every figure of result against the runs' own files."""
    names = ['dense', '1_of_16']
    losses, seconds, points = {}, {}, {}
    for arm, name in enumerate(names):
        for seed in (1, 2):
            evals, lines = evaluations(folder / f'{name}-s{seed}')
            time_at, last = {0: 0.0}, 0
            for line in lines:
                time_at[line['step']] = time_at[last] + (line['step'] - last) * 4 * 32 / line['tokens_per_second']
                last = line['step']
            rates = {line['step']: 4 * 32 / line['tokens_per_second'] for line in lines}

            def at(step):
                before = max(s for s in time_at if s <= step)
                return time_at[before] + (step - before) * rates[min(s for s in rates if s >= step)]
            points[arm, seed] = [(at(e['step']), e['val_loss']) for e in evals]
            losses[arm, seed], seconds[arm, seed] = evals[-1]['val_loss'], time_at[20]
            check(f'{name} seed {seed}: evaluations', [e['step'] for e in evals] == [5, 10, 15, 20], evals)
            got = next(r for r in result['arms'][arm]['runs'] if r['seed'] == seed)
            check(f'{name} seed {seed}: loss', near(got['val_loss'], losses[arm, seed]), got)
            check(f'{name} seed {seed}: best', near(got['best_loss'], min(e['val_loss'] for e in evals)), got)
            check(f'{name} seed {seed}: time', near(got['train_seconds'], seconds[arm, seed]), got, seconds)
            check(f'{name} seed {seed}: step', near(got['ms_per_step'], 50 * seconds[arm, seed]), got)
            check(f'{name} seed {seed}: no error', got['error'] is None, got)
            if arm:
                s = evals[-1]['sparse']
                check('soft - hard', near(got['soft_minus_hard'], s['soft_loss'] - s['hard_loss']), got, s)
    fastest = min((0, 1), key=lambda a: seconds[a, 1] + seconds[a, 2])
    for arm, a in enumerate(result['arms']):
        mine = [losses[arm, 1], losses[arm, 2]]
        check('mean', near(a['val_loss']['mean'], sum(mine) / 2), a)
        check('range', near(a['val_loss']['min'], min(mine)) and near(a['val_loss']['max'], max(mine)), a)
        other = sum(losses[0, s] for s in (1, 2)) / 2
        check('difference', abs(a['difference']['mean'] - (sum(mine) / 2 - other)) < 1e-6, a)
        for r in a['runs']:
            within = [loss for t, loss in points[arm, r['seed']] if t <= seconds[fastest, r['seed']] * (1 + 1e-9)]
            check('same time', r['same_time_loss'] is None if not within else near(r['same_time_loss'], within[-1]),
                  r, points, seconds)
    said = run('train', folder / 'base.yaml', 'train.steps=1', f'run.dir={folder}/../dense').stdout
    size = re.search(r'(\d+) parameters; (\d+) are read', said)
    check('size', size and [int(x) for x in size.groups()] == [result['arms'][0][k] for k in ('params', 'touched')],
          said, result['arms'][0])
    check('sparse reads less', result['arms'][1]['touched'] < result['arms'][0]['touched'])


def check_table(folder, table, result):
    check('result.txt is the table', (folder / 'result.txt').read_text() == table, table)
    for a in result['arms']:
        row = next((line for line in table.splitlines() if line.startswith(a['name'] + ' ')), '')
        v = a['val_loss']
        check('row of ' + a['name'], f"{v['mean']:.4f} ({v['min']:.4f}..{v['max']:.4f})" in row
              and f"{a['difference']['mean']:+.4f}" in row and f" {a['params']} " in row, table)
    check('about', table.startswith('does a sparse layer learn?\n'), table)


def wait_for_locks(folder):
    for path in folder.glob('*-s*/LOCK'):
        with open(path, 'r+') as f:
            fcntl.lockf(f, fcntl.LOCK_EX)


def interrupted(file, folder, steps, how, resumes=8):
    """Begins the ablation, ends it by `how` at a growing time until it runs through; its result, how often."""
    hits, wait = 0, 0.3
    command = [tulle, 'ablate', str(file), steps, '--dir', str(folder), '--json']
    for _ in range(resumes):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, said = child.communicate(timeout=wait)
            return out, hits
        except subprocess.TimeoutExpired:
            child.send_signal(how)
            out, said = child.communicate()
        hits += 1
        wait *= 1.6
        if how == signal.SIGINT and child.returncode == 130:
            check('says how to go on', 'the same command goes on' in said, said)
            check('a whole table', json.loads(out)['arms'], out)
        elif child.returncode == 0:
            return out, hits
        else:
            check('ended by the signal', child.returncode == -how or (how == signal.SIGINT and child.returncode == -2),
                  child.returncode, said)
        if how == signal.SIGKILL:
            wait_for_locks(folder)   # its runs are told to save and stop
    return run('ablate', file, steps, '--dir', folder, '--json').stdout, hits


def check_interrupts(top, file):
    whole = run('ablate', file, 'train.steps=400', '--dir', top / 'whole', '--json')
    check('the longer one runs', whole.returncode == 0, whole.stderr)
    for how in (signal.SIGINT, signal.SIGKILL):
        out, hits = interrupted(file, top / how.name, 'train.steps=400', how)
        check(how.name + ': interrupted', hits > 0)
        check(how.name + ': the same result', timeless(out) == timeless(whole.stdout), out, whole.stdout)


def check_failures(top, file):
    text = file.read_text() + '    wild: [optim.lr=100, optim.type=sgd, optim.clip_norm=0, model.init_std=10]\n'
    (top / 'wild.yaml').write_text(text)
    shutil.copytree(top / 'a', top / 'wild')
    out = run('ablate', top / 'wild.yaml', '--dir', top / 'wild', '--json')
    if out.returncode == 0:
        check('a wild arm fails', False, out.stdout)
        return
    result = json.loads(out.stdout)
    check('failure: status', out.returncode == 1 and '2 of 6 runs failed' in out.stderr, out.stderr)
    check('failure: said', all('diverged' in r['error'] for r in result['arms'][2]['runs']), result['arms'][2])
    check('failure: the others stand', result['arms'][0]['val_loss']['mean'] is not None)
    check('failure: in the table', 'wild seed 1: the run diverged' in (top / 'wild/result.txt').read_text())


BAD = [
    ('no arms', 'ablation:\n  about: "x"\n', [':24:3:', 'no arms']),
    ('empty arms', 'ablation:\n  arms: {}\n', ['at least one arm', '^']),
    ('unknown key', 'ablation:\n  arm:\n    a: []\n', [':24:3:', "unknown key 'ablation.arm'", "did you mean 'arms'?"]),
    ('twice', ARMS + ARMS, ['ablation is set twice, first in line 23']),
    ('no list', 'ablation:\n  arms:\n    a:\n    b: []\n', [":25:5:", "arm 'a' expects a list", '[]']),
    ('text for a list', 'ablation:\n  arms:\n    a: model.bias=true\n', [":25:8:", "arm 'a' expects a list, found a value"]),
    ('unknown override', 'ablation:\n  arms:\n    a: [model.ff.blok=3]\n', [':25:9:', "'model.ff.blok'", 'model.ff.block']),
    ('no override', 'ablation:\n  arms:\n    a: [model.bias]\n', [':25:9:', "'model.bias' is not key=value"]),
    ('out of range', 'ablation:\n  arms:\n    a: [model.bias=true, model.dropout=2]\n', [':25:26:', 'model.dropout']),
    ('its own seed', 'ablation:\n  arms:\n    a: [run.seed=2]\n', [':25:9:', 'an arm cannot set run.seed=2']),
    ('same name', 'ablation:\n  arms:\n    a: []\n    a: [model.bias=true]\n', [':26:5:', "arm 'a'", 'line 25']),
    ('same folder', 'ablation:\n  arms:\n    a b: []\n    a_b: []\n', [':26:5:', "folder of 'a b'"]),
    ('bad seed', 'ablation:\n  seeds: [1, two]\n  arms:\n    a: []\n', [':24:14:', 'run.seed', 'two']),
    ('same seed', 'ablation:\n  seeds: [1, 1]\n  arms:\n    a: []\n', [':24:14:', 'twice']),
    ('clash', 'ablation:\n  arms:\n    a: []\n    b: [model.n_heads=3]\n', ["arm 'b': ", 'model.n_heads', '.yaml:26']),
    ('a usual configuration', '', ['holds no `ablation:`', 'tulle train']),
]


def check_bad(top, file):
    work = top / 'bad'
    work.mkdir()
    (work / 'x.yaml').write_text('')
    for name, text, words in BAD:
        (work / 'x.yaml').write_text(BASE + text)
        out = run('ablate', 'x.yaml', cwd=work)
        check('bad file: ' + name, out.returncode == 2 and all(w in out.stderr for w in words)
              and 'Sanitizer' not in out.stderr and os.listdir(work) == ['x.yaml'], out.returncode, out.stderr)
    for name, args, words in [
        ('unknown arm', ['--arms', 'dense,spars'], ["no arm 'spars'", 'dense, 1 of 16']),
        ('too many seeds', ['--seeds', '3'], ['--seeds 3: the file has 2']),
        ('no job', ['--jobs', '0'], ['--jobs']),
        ('bad override', ['model.d_modle=3'], ['d_model']),
        ('other configuration', ['optim.lr=1e-2', '--dir', top / 'a'], ['optim.lr: 0.003 -> 0.01', 'another --dir']),
    ]:
        out = run('ablate', file, *args, cwd=work)
        check('bad argument: ' + name, out.returncode == 2 and all(w in out.stderr for w in words), out.stderr)
    out = run('train', file, cwd=work)
    check('train refuses it', out.returncode == 2 and f'{file}:23:1' in out.stderr and '`tulle ablate' in out.stderr,
          out.stderr)


with tempfile.TemporaryDirectory() as tmp:
    top = pathlib.Path(tmp)
    file = top / 'tiny.yaml'
    file.write_text(BASE + ARMS)
    first = run('ablate', file, '--dir', top / 'a')
    check('runs', first.returncode == 0 and len(re.findall(r'^\[\d/4\]', first.stderr, re.M)) == 4, first.stderr)
    check('seeds outermost', [m for m in re.findall(r'seed (\d)', first.stderr)][0] == '1', first.stderr)
    result = json.loads((top / 'a/result.json').read_text())
    check_results(top / 'a', result)
    check_table(top / 'a', first.stdout, result)

    before = {p: p.stat().st_mtime_ns for p in (top / 'a').glob('*-s*/*')}
    again = run('ablate', file, '--dir', top / 'a')
    check('runs nothing again', again.stdout == first.stdout and '0 of 4 runs to do' in again.stderr
          and before == {p: p.stat().st_mtime_ns for p in (top / 'a').glob('*-s*/*')}, again.stderr)
    one = run('ablate', file, '--dir', top / 'one', '--jobs', 1, '--seeds', 1, '--arms', '1 of 16', '--json')
    check('a part of it', timeless(one.stdout)['arms'][0]['runs'][0]['val_loss']
          == result['arms'][1]['runs'][0]['val_loss'], one.stdout, one.stderr)

    check_interrupts(top, file)
    check_failures(top, file)
    check_bad(top, file)

print(f'{passed} passed, {len(failed)} failed')
sys.exit(1 if failed else 0)
