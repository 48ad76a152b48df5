#!/usr/bin/env python3
"""Training steps of tulle on a GPU beside PyTorch's (flash attention, torch.compile), in turns.

    tests/bench/gpu.py BUILD [ROUNDS]

Rows as in steps.py: the median of the rounds, their spread, the ratio of tulle to the peer as the median of the ratios
within a round; then the sparse feed-forward layer beside the dense one.  PyTorch is that of the first python3 whose torch
sees the GPU; without one only tulle runs.  After it, bench_gpu: each kernel against its floor.
"""
import json, pathlib, statistics, subprocess, sys

root = pathlib.Path(__file__).resolve().parents[2]
build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else 'build').resolve()
rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
GPT = ['configs/shakespeare-dense.yaml', 'train.device=cuda', 'model.bias=false', 'model.activation=gelu',
       'model.tied_embeddings=true', 'optim.type=adamw', 'optim.weight_decay=0.1', 'optim.clip_norm=0', 'model.dropout=0']
SPARSE = [GPT[0].replace('dense', 'sparse'), *GPT[1:], 'model.ff.type=sparse', 'model.ff.block=64', 'model.ff.quant_prob=1']


def python_with_torch():
    for python in ('python3', '/usr/bin/python3'):
        seen = subprocess.run([python, '-c', 'import torch; assert torch.cuda.is_available()'], capture_output=True)
        if seen.returncode == 0:
            return python
    return None


def run(command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=root)
    if done.returncode:
        return None, done.stderr.strip().splitlines()[-1:]
    return json.loads(done.stdout.strip().splitlines()[-1])['per_second'], None


def tulle(config, *more):
    return [build / 'train/tulle', 'bench', *config, *more, '--json', '--steps', '50', '--warm', '10']


python = python_with_torch()
torch = [python, root / 'tests/bench/torch_gpt.py', '--cuda', '--steps', '50', '--warm', '20'] if python else None
tables = {}
for precision in ('bf16', 'fp32'):
    half = f'train.precision={precision}'
    tables[f'GPT 6 x 384, 6 heads, context 256, batch 64, AdamW, {precision}'] = {
        'tulle': tulle(GPT, half), **({'PyTorch': torch + ['--bf16'] * (precision == 'bf16')} if torch else {})}
    tables[f'the same with one unit in 64 of the feed-forward layers, {precision}'] = {
        'tulle, sparse': tulle(SPARSE, half), 'tulle, dense': tulle(GPT, half)}
for title, rows in tables.items():
    print(title)
    rates = {name: [] for name in rows}
    for _ in range(rounds):
        for name, command in rows.items():
            rate, why = run(command)
            if rate is None:
                print(f'  {name}: {why}')
                sys.exit(1)
            rates[name].append(rate)
    first = next(iter(rates))
    for name, r in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates[first], r))
        print(f'  {name:24} {statistics.median(r):12.0f} tokens/s ({min(r):.0f} to {max(r):.0f})'
              + ('' if name == first else f'   {first} is {ratio:.2f} times as fast'))
sys.stdout.flush()
subprocess.run([build / 'tests/bench_gpu'], check=True)
