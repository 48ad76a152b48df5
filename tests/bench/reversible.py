#!/usr/bin/env python3
"""Steps of reversible language models against the same with everything stored: time, memory by depth.

    tests/bench/reversible.py BUILD [ROUNDS]

A GPT of width 256, context 256, one sequence a step, one thread, on generated text.  A row shows the median of the
rounds, its ratio to two stored streams (the median of the ratios within a round), and the memory of the tape at its
peak for each depth, single layers' scratch and the gradients of activations included.
"""
import json, pathlib, statistics, subprocess, sys

root = pathlib.Path(__file__).resolve().parents[2]
build = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else 'build').resolve()
rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 3
model = ['configs/quickstart.yaml', 'model.n_heads=4', 'model.d_model=256', 'model.d_ff=1024', 'model.context=256',
         'model.ff.type=dense', 'train.batch=1', 'train.micro_batch=1', 'train.threads=1', 'sample.every=0']
kinds = ('off', 'stored', 'fp32', 'fixed')
depths = (4, 64)


def step(kind, depth):
    keys = [*model, f'model.n_layers={depth}', f'model.reversible={kind}']
    done = subprocess.run([build / 'train/tulle', 'bench', *keys, '--steps', '3', '--warm', '1', '--json'],
                          cwd=root, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    row = json.loads(done.stdout)
    return row['step_ms'], row['tape'] * 1e-6


for depth in depths:
    runs = [{kind: step(kind, depth) for kind in kinds} for _ in range(rounds)]
    print(f'{depth} layers')
    for kind in kinds:
        ratio = statistics.median(r[kind][0] / r['stored'][0] for r in runs)
        print(f'  {kind:7} {statistics.median(r[kind][0] for r in runs):9.1f} ms a step, {ratio:5.2f} of stored; '
              f'tape {runs[0][kind][1]:6.0f} MB')
