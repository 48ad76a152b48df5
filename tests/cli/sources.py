#!/usr/bin/env python3
"""Five steps on each source that is no text, its samples, its test part, and the same data again: sources.py TULLE SOURCE

Pictures are unpacked and looked at, sound is read by Python's own reader of WAV files.
"""
import gzip, io, json, random, re, struct, tarfile, wave, zlib
from cases import go_through, run, says

tiny = '''\
model:
  n_layers: 1
  n_heads: 2
  d_model: 16
train:
  steps: 5
  batch: 2
  eval_batches: 1
  log_every: 1
sample:
  every: 5
  count: 3
  length: 300
'''


def train(tmp, source, *keys):
    (tmp / 'tiny.yaml').write_text(tiny)
    return run('train', 'tiny.yaml', f'data.source={source}', 'run.dir=r', *keys, cwd=tmp)


def png(path):
    """Height, width, channels and rows of a picture."""
    data = path.read_bytes()
    assert data[:8] == b'\x89PNG\r\n\x1a\n', path
    at, parts = 8, {}
    while at < len(data):
        size, name = struct.unpack('>I4s', data[at:at + 8])
        assert struct.unpack('>I', data[at + 8 + size:at + 12 + size])[0] == zlib.crc32(data[at + 4:at + 8 + size])
        parts[name] = data[at + 8:at + 8 + size]
        at += size + 12
    w, h, bits, colour = struct.unpack('>IIBB', parts[b'IHDR'][:10])
    c = {0: 1, 2: 3}[colour]
    raw = zlib.decompress(parts[b'IDAT'])
    assert bits == 8 and len(raw) == h * (w * c + 1)
    return h, w, c, [raw[y * (w * c + 1) + 1:(y + 1) * (w * c + 1)] for y in range(h)]


def cifar_files(n):
    noise = random.Random(1)
    return {name: b''.join(bytes([noise.randrange(10)]) + noise.randbytes(3072) for _ in range(n))
            for name in [f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']}


def cifar(tmp):
    with tarfile.open(tmp / 'cifar-10-binary.tar.gz', 'w:gz') as tar:
        for name, content in cifar_files(10).items():
            info = tarfile.TarInfo('cifar-10-batches-bin/' + name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    text = train(tmp, 'cifar10', f'data.path={tmp}/cifar-10-binary.tar.gz', 'model.context=3072')
    says(text, '48 images to train, 2 to validate, 10 to test, 32 x 32 x 3, vocabulary 256', r'step 5/5', r'3 images of 32 x 32')
    h, w, c, rows = png(tmp / 'r/samples/step-00000005.png')
    assert (h, w, c) == (66, 66, 3)
    assert rows[32] == bytes([128]) * 198 and rows[40][100:198] == bytes([128]) * 98      # between images; no fourth one
    assert len(set(rows[3][:96])) > 20
    says(run('eval', 'r', '--split', 'test', '--batches', 1, cwd=tmp), r'split test: loss')
    says(run('train', 'tiny.yaml', 'data.source=cifar10', f'data.path={tmp}/cifar-10-binary.tar.gz', 'model.type=mlp', 'run.dir=mlp',
             cwd=tmp), r'10 classes', r'accuracy')
    says(run('sample', 'mlp', status=2, cwd=tmp), "'mlp' tells images apart; it draws none")


def mnist_like(tmp):
    noise = random.Random(2)
    for name, n in ('train', 40), ('t10k', 10):
        head = struct.pack('>HBBIII', 0, 8, 3, n, 28, 28)
        (tmp / f'{name}-images-idx3-ubyte.gz').write_bytes(gzip.compress(head + noise.randbytes(n * 784)))
        (tmp / f'{name}-labels-idx1-ubyte').write_bytes(struct.pack('>HBBI', 0, 8, 1, n) + bytes(n))
    keys = ['data.path=.', 'data.image_size=32', 'data.levels=16', 'model.context=1024']
    says(train(tmp, 'idx', *keys, 'model.start_vector=true'), '40 images to train, 10 to validate, 32 x 32 x 1, vocabulary 16')
    says(run('sample', 'r', '-c', '5', '-o', 'five.png', cwd=tmp), 'wrote five.png: 5 images of 32 x 32')
    h, w, c, rows = png(tmp / 'five.png')
    assert (h, w, c) == (66, 100, 1)
    assert {v for row in rows[:32] for v in row[:32]} <= {17 * i for i in range(16)}      # 16 levels from black to white
    first = (tmp / 'five.png').read_bytes()
    run('sample', 'r', '-c', '5', '-o', 'again.png', cwd=tmp)
    assert first == (tmp / 'again.png').read_bytes()
    run('sample', 'r', '-c', '5', '-o', 'again.png', '--seed', 9, cwd=tmp)
    assert first != (tmp / 'again.png').read_bytes()
    says(run('sample', 'r', '--prompt', 'x', status=2, cwd=tmp), '--prompt is for text')
    says(run('sample', 'r', '-n', 5, status=2, cwd=tmp), '--length is for text and sound')
    says(run('eval', 'r', '--last', 5, status=2, cwd=tmp), '--last is for one long text, but idx is made of sequences')
    says(run('eval', 'r', '--split', 'test', status=4, cwd=tmp), 'the test split is empty', '10 to validate, 32 x 32 x 1')
    for key, words in [('train.eval_last=5', 'train.eval_last is for one long text'),
                       ('model.position.channels=3', 'are 32 x 32 x 1: set model.position.width=32 and model.position.channels=1')]:
        says(run('train', 'tiny.yaml', 'data.source=idx', *keys, 'model.position.type=image', 'model.position.width=32', 'run.dir=s',
                 'train.eval_batches=0', key, status=2, cwd=tmp), words)
    says(run('train', 'tiny.yaml', 'data.source=idx', *keys[:3], 'run.dir=s', status=2, cwd=tmp),
         r'a sequence of 1024 tokens \(32 x 32 x 1\), but the context is 256: set model.context=1024')
    says(run('train', 'tiny.yaml', 'data.source=idx', 'data.path=.', 'data.image_size=14', 'model.context=196', 'run.dir=small',
             cwd=tmp), r'14 x 14 x 1', r'step 5/5')


def sound(tmp):
    (tmp / 'music').mkdir()
    for k in range(2):
        with wave.open(str(tmp / f'music/{k}.wav'), 'wb') as f:
            f.setnchannels(2)
            f.setsampwidth(2)
            f.setframerate(12000)
            f.writeframes(b''.join(struct.pack('<hh', (i * 37 + k) % 20000, -(i * 91) % 9000) for i in range(3000)))
    text = train(tmp, 'wav', 'data.path=music', 'model.context=64', 'data.val_fraction=0.2', 'data.test_fraction=0.1')
    says(text, '4200 tokens to train, 1200 to validate, 600 to test, 12000 a second', 'step-00000005.wav, 0.03 seconds of sound')
    run('sample', 'r', '-n', 500, cwd=tmp)
    says(run('sample', 'r', '-c', 2, status=2, cwd=tmp), "--count is for images, but 'r' draws sound")
    says(run('show', 'memory', 'tiny.yaml', 'data.source=wav', 'data.path=nowhere', cwd=tmp), 'parameters')
    for path, n in (tmp / 'r/samples/step-00000005.wav', 300), (tmp / 'sample.wav', 500):
        with wave.open(str(path)) as f:
            assert (f.getframerate(), f.getnchannels(), f.getsampwidth(), f.getnframes()) == (12000, 1, 2, n)
            assert len(set(f.readframes(n))) > 20
    says(run('eval', 'r', '--split', 'test', cwd=tmp), 'over 576 tokens')


def tasks(tmp):
    best = {'grid': '0.4670', 'recall': '0.0000', 'copy': '0.0000'}
    scored = {'grid': 55, 'recall': 16, 'copy': 32}      # of 64 tokens; the grid is 8 wide
    for name in best:
        text = train(tmp, name, 'data.size=100', 'model.context=64', 'run.overwrite=true', 'data.test_fraction=0.1')
        says(text, '80 sequences to train, 10 to validate, 10 to test of 64 tokens', f'best possible {best[name]}', 'step 5/5')
        assert json.loads(run('eval', 'r', '--split', 'test', '--json', cwd=tmp))['count'] == 10 * scored[name]
        drawn = (tmp / 'r/samples/step-00000005.txt').read_text()
        says(text, r'sample at step 5:\n' + drawn)
        assert len(drawn.split()) == 301, drawn           # behind token 0
        vocab = int(re.search(r'vocabulary (\d+)', text)[1])
        ids = run('sample', 'r', '--prompt', f' 1 {vocab - 1}', '-n', 70, cwd=tmp)        # more than the context
        assert ids.startswith(f'1 {vocab - 1} ') and ids == ' '.join(ids.split()) + '\n', ids
        assert len(ids.split()) == 72 and all(0 <= int(t) < vocab for t in ids.split()), ids
        for bad in str(vocab), '-1', 'x', '1,2', '99999999999999999999':
            says(run('sample', 'r', '--prompt', '3 ' + bad, status=4, cwd=tmp),
                 f"--prompt: '{bad}' is no token: the model has the numbers 0 to {vocab - 1}, separated by blanks")
        says(run('sample', 'r', '-o', 'x.png', status=2, cwd=tmp), "--output is for images and sound, but 'r' draws tokens")


def three_parts_of_a_text(tmp):
    (tmp / 'a.txt').write_text('some words, over and over, that nobody reads. ' * 100)
    text = train(tmp, 'text', 'data.path=a.txt', 'data.val_fraction=0.05', 'data.test_fraction=0.05', 'model.context=32')
    says(text, '4140 tokens to train, 230 to validate, 230 to test')
    says(run('eval', 'r', '--split', 'test', cwd=tmp), 'over 224 tokens')


def other_data_are_refused(tmp):
    (tmp / 'a.txt').write_text('abcdefgh' * 500)
    train(tmp, 'text', 'data.path=a.txt', 'model.context=32')
    (tmp / 'a.txt').rename(tmp / 'b.txt')
    says(run('resume', 'r', 'train.steps=6', 'data.path=b.txt', cwd=tmp), 'step 6/6')     # the same under another name
    (tmp / 'b.txt').write_text('abcdefgh' * 499 + 'abcdefhg')
    says(run('resume', 'r', 'train.steps=7', status=4, cwd=tmp), 'the data are not those that the run was trained on', 'then: text',
         'now:  text', 'data.changed=true')
    says(run('eval', 'r', cwd=tmp), 'step 6')            # that may well be asked
    says(run('resume', 'r', 'train.steps=7', 'data.changed=true', cwd=tmp), 'step 7/7')
    says(run('resume', 'r', 'train.steps=8', cwd=tmp), 'step 8/8')
    (tmp / 'b.txt').write_text('abcdefgh' * 500)         # it held once
    says(run('resume', 'r', 'train.steps=9', status=4, cwd=tmp), 'the data are not those')
    train(tmp, 'text', 'data.path=b.txt', 'model.context=32', 'data.changed=true', 'run.overwrite=true')
    (tmp / 'b.txt').write_text('hgfedcba' * 500)         # there was nothing yet that it could hold for
    says(run('resume', 'r', 'train.steps=6', status=4, cwd=tmp), 'the data are not those')


go_through(cifar, mnist_like, sound, tasks, three_parts_of_a_text, other_data_are_refused)
