#!/usr/bin/env python3
"""The same bits for any number of threads: determinism.py TULLE SOURCE [STEPS]

Trains dense and sparse GPTs, one with attention patterns, an encoder-decoder and MNIST-shaped networks (on generated
digits), in f32 and 16 bits, for 50 steps with OMP_NUM_THREADS 1, 2, 3 and 7 and compares the hashes of weights, optimizer
state and counters, and the metrics.  What is recomputed in backward changes neither.
"""
import json, os, pathlib, subprocess, sys, tempfile

tulle, source = str(pathlib.Path(sys.argv[1]).resolve()), pathlib.Path(sys.argv[2]).resolve()
steps = sys.argv[3] if len(sys.argv) > 3 else '50'
common = [f'train.steps={steps}', 'train.eval_every=25', 'train.eval_batches=2', 'sample.every=25', 'sample.length=40',
          'schedule.warmup_steps=10', 'checkpoint.every=0']
gpt = ['data.source=language', 'data.size=100000', 'model.n_layers=2', 'model.n_heads=3', 'model.d_model=96',
       'model.context=64', 'model.dropout=0.2', 'train.batch=24', 'train.micro_batch=12', 'model.bias=true',
       'schedule.type=cosine', 'optim.ema_decay=0.99']
pairs = ['data.size=2000', 'model.n_layers=3', 'model.dropout=0.2', 'model.attention.type=multconv', 'model.ff.type=sparse',
         'model.ff.block=8', 'model.ff.quant_prob=0.5', 'train.micro_batch=16']
digits = ['data.source=digits', 'data.size=3000', 'data.path=', 'schedule.decay_steps=0']
runs = {
    'gpt dense': ['configs/quickstart.yaml', *gpt, 'model.ff.type=dense'],
    'gpt sparse': ['configs/quickstart.yaml', *gpt, 'model.ff.quant_prob=0.5'],
    'gpt bf16': ['configs/quickstart.yaml', *gpt, 'model.ff.quant_prob=0.5', 'train.precision=bf16'],
    'gpt patterns': ['configs/quickstart.yaml', *gpt, 'model.n_heads=4', 'model.d_model=64', 'model.ff.type=dense', 'model.context=160',
                     'train.batch=4', 'train.micro_batch=2', 'model.attention.drop_weights=false',
                     'model.attention.pattern=strided(8) | local(9); fixed(8, 2)'],
    'pairs sparse': ['configs/seq-copy-transformer.yaml', *pairs],
    'mlp fp16': ['configs/mnist-dense.yaml', *digits, 'train.precision=fp16'],
    'mlp dense': ['configs/mnist-dense.yaml', *digits],
    'mlp sparse': ['configs/mnist-sparse.yaml', *digits],
}
CLOCK = ('seconds', 'tokens_per_second', 'images_per_second', 'memory', 'eval_seconds')


def run(args, threads, folder):
    out = subprocess.run([tulle, 'train', *args, *common, f'run.dir={folder}'], cwd=source, capture_output=True, text=True,
                         env=dict(os.environ, OMP_NUM_THREADS=str(threads)))
    if out.returncode:
        return f'exit {out.returncode}: {out.stderr.strip()}', None
    state = [l for l in out.stdout.splitlines() if l.startswith('state sha256 ')][-1]
    lines = [json.loads(l) for l in (folder / 'metrics.jsonl').read_text().splitlines()]
    return state, [{k: v for k, v in l.items() if k not in CLOCK} for l in lines]


passed = failed = 0
with tempfile.TemporaryDirectory() as tmp:
    for name, args in runs.items():
        results = {n: run(args, n, pathlib.Path(tmp) / f'{name.replace(" ", "-")}-{n}') for n in (1, 2, 3, 7)}
        ok = results[1][1] is not None and all(r == results[1] for r in results.values())
        for how in ('cheap', 'attention', 'block') if name in ('gpt sparse', 'pairs sparse') else ():
            other = run([*args, f'train.recompute={how}'], 2, pathlib.Path(tmp) / f'{name.replace(" ", "-")}-{how}')
            results[how] = other
            ok &= other == results[1]
        passed, failed = passed + ok, failed + (not ok)
        print(f'{name}: {"one state" if ok else "DIFFERENT"}: ' + '; '.join(f'{n}: {r[0][-16:]}' for n, r in results.items()))
print(f'{passed} passed, {failed} failed')
sys.exit(failed != 0 or passed != len(runs))
