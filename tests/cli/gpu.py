#!/usr/bin/env python3
"""The program on a GPU, for which the CPU stands in (tests/simt): gpu.py PROGRAM

train, resume on either device, eval, sample, show memory and bench with train.device=cuda; what a user sees where memory
does not suffice, and where there is no GPU.
"""
import json, os, pathlib, re, subprocess, sys, tempfile

program = pathlib.Path(sys.argv[1]).resolve()
MEMORY = str(10 << 20)             # bytes: less than a batch of 256 needs
SMALL = '''
data: {source: language, size: 4000}
model: {n_layers: 2, n_heads: 2, d_model: 16, context: 8, ff: {type: sparse, block: 8}}
optim: {lr: 3e-3}
schedule: {warmup_steps: 2}
train: {batch: 4, steps: 6, eval_every: 3, eval_batches: 2, log_every: 1, device: cuda}
sample: {every: 0}
'''


def run(*args, code=0, **env):
    done = subprocess.run([program, *args], capture_output=True, text=True, env=dict(os.environ, **env))
    assert done.returncode == code, f'{args}: exit status {done.returncode}, wanted {code}\n{done.stdout}{done.stderr}'
    return done


def last_hash(done):
    return re.findall(r'state sha256 (\w+)', done.stdout + done.stderr)[-1]


with tempfile.TemporaryDirectory() as t:
    os.chdir(t)
    pathlib.Path('a.yaml').write_text(SMALL)
    whole = run('train', 'a.yaml', 'run.dir=whole')
    assert 'cuda kernels' in whole.stdout and ' GB unused' in whole.stdout, whole.stdout
    env = json.loads(pathlib.Path('whole/env.json').read_text())
    assert env['kernels'] == 'cuda' and env['gpu'] != 'none', env
    again = run('train', 'a.yaml', 'run.dir=again', TULLE_SIMT_SEED='7')
    assert last_hash(again) == last_hash(whole), 'another order of threads has other bits'
    half = run('train', 'a.yaml', 'run.dir=half', 'train.steps=3', 'schedule.decay_steps=6')
    done = run('resume', 'half', 'train.steps=6')
    assert last_hash(done) == last_hash(whole), 'a resumed run ends with other bits'
    run('resume', 'half', 'train.steps=8', 'train.device=cpu')

    def loss(*more):
        return json.loads(run('eval', 'whole', '--json', *more).stdout)['loss']
    assert abs(loss() - loss('--device', 'cpu')) < 1e-4
    draw = ('sample', 'whole', '-n', '10', '--seed', '3', '--prompt', 'abc')
    assert run(*draw).stdout == run(*draw, '--device', 'cpu').stdout
    assert 'did you mean' in run(*draw, '--device', 'cud', code=2).stderr

    memory = run('show', 'memory', 'a.yaml').stdout
    assert 'MB' in memory
    both = run('bench', 'a.yaml', '--steps', '2', '--warm', '1', '--vary', 'train.device=cpu,cuda').stdout
    assert re.search(r'\ncpu .*\ncuda +cuda ', both), both
    run('bench', 'decode', 'a.yaml', '--prompt', '4', '--tokens', '2')

    many = run('train', 'a.yaml', 'run.dir=many', 'train.batch=256', code=3, TULLE_SIMT_MEMORY=MEMORY).stderr
    for word in ('out of memory', 'the largest:', 'train.micro_batch=', 'train.recompute='):
        assert word in many, many
    hint = re.search(r'train\.micro_batch=\d+', many)[0]
    run('train', 'a.yaml', 'run.dir=fits', 'train.batch=256', 'train.steps=3', hint, TULLE_SIMT_MEMORY=MEMORY)

    large = ('model.d_model=512', 'train.batch=1', 'train.device=cpu', 'train.steps=3', 'run.dir=large')
    run('train', 'a.yaml', *large)
    weights = json.loads(run('show', 'memory', 'a.yaml', *large, '--json').stdout)['bytes']['parameters']
    room = str(int(1.9 * weights))  # no gradients beside them
    for command in (('sample', '-n', '4'), ('eval', '--batches', '1')):
        run(command[0], 'large', *command[1:], '--device', 'cuda', TULLE_SIMT_MEMORY=room)
    run('train', 'a.yaml', *large[:2], 'run.dir=more', code=3, TULLE_SIMT_MEMORY=room)

    none = run('train', 'a.yaml', 'run.dir=none', code=1, CUDA_VISIBLE_DEVICES='').stderr
    assert none.count('\n') == 1 and 'there is no GPU' in none, none
    assert not pathlib.Path('none').exists()
    fault = run('train', 'a.yaml', 'run.dir=fault', code=1, TULLE_SIMT_FAIL='900').stderr
    assert 'tulle: ' in fault, fault
print('ok')
