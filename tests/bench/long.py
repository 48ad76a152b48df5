#!/usr/bin/env python3
"""Whole steps of long sequences under dense, fixed and strided attention, in turns (1904.10509, table 2).

    tests/bench/long.py BUILD [ROUNDS]

The enwik8 model of the paper, narrower and with two layers, at n = 8192; then single steps of longer sequences, with
their peak memory.  A row shows the median of the rounds and its ratio to dense, the median of the ratios within a
round, beside the ratio of the paper's times.
"""
import json, os, pathlib, statistics, subprocess, sys

root = pathlib.Path(__file__).resolve().parents[2]
build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else 'build').resolve()
rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
model = ['configs/paper-enwik8.yaml', 'model.n_layers=2', 'model.d_model=256', 'model.n_heads=4', 'model.d_ff=1024',
         'train.batch=1', 'train.micro_batch=1']
patterns = {'dense': ('dense', 1), 'fixed': ('fixed(128, 32)', 1.31 / 0.55),
            'strided': ('local(128); strided(128)', 1.31 / 0.35)}


def step(n, pattern, steps):
    keys = [*model, f'model.context={n}', f'model.attention.pattern={pattern}']
    done = subprocess.run([build / 'train/tulle', 'bench', *keys, '--json', '--steps', str(steps), '--warm', '1'],
                          cwd=root, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


times = {name: [] for name in patterns}
for _ in range(rounds):
    for name, (pattern, _) in patterns.items():
        times[name].append(step(8192, pattern, 2)['step_ms'])
print(f'n = 8192, 2 layers of width 256, {rounds} rounds')
for name, (_, paper) in patterns.items():
    ratio = statistics.median(a / b for a, b in zip(times['dense'], times[name]))
    print(f'{name:8} {statistics.median(times[name]):9.1f} ms a step ({min(times[name]):.1f} to {max(times[name]):.1f})'
          f'  {ratio:5.2f} times as fast as dense; paper {paper:.2f}')
for n, pattern in ((12288, 'fixed(128, 32)'), (12288, 'local(128); strided(128)'),
                   (65536, 'local(256); strided(256)')):
    r = step(n, pattern, 1)
    print(f'n = {n}, {pattern}: {r["step_ms"] / 1e3:.1f} s a step, {r["per_second"]:.0f} tokens/s, peak '
          f'{r["peak_memory"] / 1e6:.0f} MB')
