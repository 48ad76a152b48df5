#!/usr/bin/env python3
"""Writes values_scaler.inc: the scale of torch.cuda.amp.GradScaler over 10,000 sequences.   /usr/bin/python3 make_scaler.py > values_scaler.inc

torch._amp_update_scale_ runs on GPUs alone, so its rule is written out here: the scale is a 32-bit float, its factors are
doubles, the product is rounded to 32 bits; growth after growth_interval finite steps in a row, unless the result is
infinite; backoff and a new count after a step that is not finite.  The gradient's factor is the reciprocal in double
precision, rounded.  Settings and overflows of sequence i are a function of i; tests/test_scaler.c has the same.  Stored
is a hash of scale, count and factor after every step, one for 100 sequences.
"""
import numpy as np

np.seterr(all='ignore')
SEQUENCES, STEPS, EACH = 10000, 120, 100
GROWTH = np.array([2.0, 1.5, 4.0, 1.0003466337])
BACKOFF = np.array([0.5, 0.8, 0.25, 0.9999])
INITIAL = np.array([65536.0, 2.0**127, 1e-44, 1.0], np.float32)
INTERVAL = np.array([1, 2, 7, 20], np.int64)
OFTEN = np.array([0, 2**16, 2**13, 2**11], np.uint32)      # steps of 2**16 that overflow; 0 and 2**16: none, all


def noise(i, e):
    h = ((i * 1000003 + e) * 2654435761 % 2**32).astype(np.uint64)
    h = (h ^ h >> np.uint64(15)) * np.uint64(2246822519) % np.uint64(2**32)
    return (h >> np.uint64(16)).astype(np.uint32)


def pick(values, i, e):
    return values[noise(i, np.uint64(1000 + e)) % 4]


i = np.arange(SEQUENCES, dtype=np.uint64)
growth, backoff, scale = pick(GROWTH, i, 0), pick(BACKOFF, i, 1), pick(INITIAL, i, 2)
interval, often = pick(INTERVAL, i, 3), pick(OFTEN, i, 4)
tracker = np.zeros(SEQUENCES, np.int64)
hashes = np.full(SEQUENCES, 14695981039346656037, np.uint64)


def mix(h, word):
    return (h ^ word.astype(np.uint64)) * np.uint64(1099511628211)


for step in range(STEPS):
    overflow = noise(i, np.uint64(step)) < often
    grown = (scale.astype(np.float64) * growth).astype(np.float32)
    count = tracker + 1
    full = (count == interval) & ~overflow
    less = (scale.astype(np.float64) * backoff).astype(np.float32)
    scale = np.where(overflow, less, np.where(full & np.isfinite(grown), grown, scale))
    tracker = np.where(overflow | full, 0, count)
    inverse = (1 / scale.astype(np.float64)).astype(np.float32)
    for word in scale.view(np.uint32), tracker, inverse.view(np.uint32):
        hashes = mix(hashes, word)

total = np.full(SEQUENCES // EACH, 14695981039346656037, np.uint64)
for member in hashes.reshape(-1, EACH).T:
    total = mix(total, member)
print('/* values_scaler.inc -- written by make_scaler.py.  Do not edit. */')
print('static const uint64_t scaler_hash[] = {')
for k in range(0, len(total), 4):
    print('    ' + ' '.join(f'0x{h:016x},' for h in total[k:k + 4]))
print('};')
