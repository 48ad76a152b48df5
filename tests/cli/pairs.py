#!/usr/bin/env python3
"""Sources and targets: trained on, evaluated, answered greedily and by beam search: pairs.py TULLE

A file of few pairs is learned by heart, so that what is answered is known.
"""
import json, math, re
from cases import go_through, run, says

tiny = '''\
model:
  n_layers: 1
  n_heads: 2
  d_model: 32
  context: 24
train:
  steps: 150
  batch: 8
  eval_every: 50
schedule:
  warmup_steps: 10
optim:
  lr: 1e-2
sample:
  every: 150
'''
learned = {'hot dog': 'cold cat', 'dog': 'cat', 'cat': 'dog', 'a b': 'b a', 'to be': 'or not'}


def train(tmp, *keys, status=0):
    (tmp / 'tiny.yaml').write_text(tiny)
    (tmp / 'p.tsv').write_text(''.join(f'{s}\t{t}\n' for _ in range(20) for s, t in learned.items()))
    return run('train', 'tiny.yaml', 'data.source=pairs', 'data.path=p.tsv', 'run.dir=r', 'run.overwrite=true', *keys, status=status, cwd=tmp)


def evals(tmp):
    return [e for e in map(json.loads, (tmp / 'r/metrics.jsonl').read_text().splitlines()) if 'val_loss' in e]


def learned_by_heart(tmp):
    says(train(tmp, 'train.eval_every=10'), '90 pairs to train, 10 to validate of 24 tokens', r'accuracy 100.00 %, of whole targets 100.00 %', 'sample at step 150')
    first = evals(tmp)
    assert first[0]['val_seq_accuracy'] <= first[0]['val_accuracy'] < 1 and first[-1]['val_seq_accuracy'] == 1, first
    assert first[-1]['val_count'] == 2 * sum(len(t) + 1 for t in learned.values())        # targets with their ends
    lines = (tmp / 'r/samples/step-00000150.txt').read_text().splitlines()
    assert lines == [f'{s}\t{t}\t{t}' for s, t in learned.items()][:4], lines
    for beam in '1', '4':
        for s, t in learned.items():
            got = run('sample', 'r', '--source', s, '--beam', beam, cwd=tmp)
            assert got == t + '\n', (s, beam, got)
        says(run('eval', 'r', '--decode', '--beam', beam, cwd=tmp), r'10 of 10 answers are the target \(100.00 %\)',
             r'ROUGE-1 +F1 100.00, precision 100.00, recall 100.00', 'ROUGE-Lsum')
    e = json.loads(run('eval', 'r', '--decode', '--json', '--split', 'train', '--count', 7, cwd=tmp))
    assert e['count'] == 7 and e['exact'] == 1 and abs(e['rouge2']['f1'] - 4 / 7) < 1e-8, e        # of a single word there are no pairs
    assert json.loads(run('eval', 'r', '--json', cwd=tmp))['seq_accuracy'] == 1
    says(run('sample', 'r', '--source', 'a dog to a dog to a dog to a dog', status=4, cwd=tmp), 'the source has 32 tokens.* at most 22')
    says(run('sample', 'r', '--source', 'x', status=4, cwd=tmp), "no token for 'x'")
    says(run('sample', 'r', '--source', '', status=2, cwd=tmp), 'it is empty')
    says(run('sample', 'r', '--source', 'dog', '--prompt', 'dog', status=2, cwd=tmp), 'exclude each other')
    says(run('eval', 'r', '--decode', '--split', 'test', status=4, cwd=tmp), 'the split is empty')


def by_words(tmp):
    says(train(tmp, 'data.tokenizer=word', 'data.vocab=11'), 'vocabulary 11')      # 3 and 8 of the 10 words
    e = json.loads(run('eval', 'r', '--decode', '--json', cwd=tmp))
    assert e['exact'] == 1 and e['rouge2']['f1'] == 0.4, e      # 'or' of 'or not' is unknown, and no word of a text
    assert run('sample', 'r', '--source', '  dog ', cwd=tmp) == 'cat\n'


def parts_of_a_batch(tmp):
    """The loss is the mean over the batch's targets, however it is cut, and the same bits for any number of threads."""
    seen = []
    for micro in 1, 2, 4, 8:
        train(tmp, 'train.steps=20', 'train.log_every=1', f'train.micro_batch={micro}')
        seen.append([json.loads(l)['loss'] for l in (tmp / 'r/metrics.jsonl').read_text().splitlines() if '"loss"' in l])
    for other in seen[1:]:
        assert all(abs(a - b) < 1e-4 for a, b in zip(seen[0], other)), (seen[0], other)
    state = [re.findall(r'sha256 (\w+)', train(tmp, 'train.steps=20', f'train.threads={n}')) for n in (1, 3)]
    assert state[0] and state[0] == state[1]


def longer_numbers(tmp):
    keys = ['data.source=addition', 'data.digits=4', 'data.test_digits=9', 'data.test_least=8', 'data.test_fraction=0.1', 'data.size=300',
            'train.steps=20']
    says(train(tmp, *keys), 'best possible 0.0000', 'vocabulary 13')
    text = run('eval', 'r', '--decode', '--split', 'test', '--count', 5, cwd=tmp)
    says(text, r'of 5 answers are the target')
    says(train(tmp, *keys, 'data.test_fraction=0', status=2), 'data.test_digits = 9 .* is for a test part, but data.test_fraction = 0')
    says(train(tmp, *keys, 'data.test_digits=3', status=2), 'data.test_digits = 3 .* is too small for data.test_least = 8')
    says(train(tmp, *keys, 'data.source_length=5', status=2), 'data.source_length = 5 .* is too short for data.test_digits = 9 .*at least 10')
    says(run('resume', 'r', 'train.steps=25', cwd=tmp), 'step 25/25')
    says(run('resume', 'r', 'data.digits=5', status=2, cwd=tmp), 'data.digits')


def looked_at(tmp):
    """Encoder and decoder see different numbers of tokens: 9 sources of 12 in one, as many targets of 4 in the other."""
    train(tmp, 'model.type=transformer', 'model.n_encoder_layers=1', 'data.source_length=12', 'data.target_length=4', 'model.ff.type=sparse',
          'model.ff.block=16', 'data.val_fraction=0.09', 'train.steps=12', 'train.eval_every=6', 'sample.every=0')
    for look in [e['sparse'] for e in evals(tmp)]:
        assert look['rows'] == 9 * 16, look
        for layer, rows in zip(look['layers'], (9 * 12, 9 * 4)):
            assert sum(layer['used']) == rows * layer['blocks'] and layer['controller_entropy'] < math.log(16), layer
            assert layer['flips'] is None or layer['flips'] <= 1, layer


def faults(tmp):
    says(train(tmp, 'data.tokenizer=word', 'data.source=text', status=2), 'data.tokenizer = word .* needs pairs, but data.source = text')
    says(train(tmp, 'data.path=', status=2), 'data.source = pairs .* needs a file')
    says(train(tmp, 'model.context=12', status=2), r'takes 17 tokens in a row .*set model.context=17')
    (tmp / 'bad.tsv').write_text('a\tb\n' * 5 + 'a b\n')
    says(train(tmp, 'data.path=bad.tsv', status=4), 'bad.tsv:6: there is no tab')
    train(tmp, 'data.source=language', 'data.size=2000', 'train.steps=12', 'train.eval_batches=1', 'sample.length=5')
    says(run('sample', 'r', '--source', 'x', status=2, cwd=tmp), '--source is for models of pairs')
    says(run('eval', 'r', '--decode', status=2, cwd=tmp), 'only a model of pairs answers sources')
    for flag, value in ('beam', 2), ('alpha', 0.3):
        says(run('sample', 'r', f'--{flag}', value, status=2, cwd=tmp), f'--{flag} is for answers: it goes with --source')
        says(run('eval', 'r', f'--{flag}', value, status=2, cwd=tmp), f'--{flag} is for answers: it goes with --decode')
    says(run('eval', 'r', '--count', 5, status=2, cwd=tmp), '--count is for answers: it goes with --decode')


go_through(learned_by_heart, by_words, parts_of_a_batch, longer_numbers, looked_at, faults)
