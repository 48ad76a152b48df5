#!/usr/bin/env python3
"""Bad input gets one clear error, the right exit status, and writes nothing: bad_input.py TULLE SOURCE

Malformed configurations (tests/cli/bad_configs, with their messages), data files and checkpoints, each given to the
program as a user would.  A crash or a sanitizer's report is a failure whatever the message.
"""
import gzip, os, pathlib, shutil, struct, subprocess, sys, tempfile

tulle, source = str(pathlib.Path(sys.argv[1]).resolve()), pathlib.Path(sys.argv[2]).resolve()
passed, failed = 0, []


def run(args, cwd, **env):
    return subprocess.run([tulle, *map(str, args)], cwd=cwd, capture_output=True, text=True, errors='replace',
                          env=dict(os.environ, TULLE_DATA='', **env))


def contents(folder):
    """What lies there, byte for byte; a LOCK tells who had it last."""
    return {p: p.read_bytes() if p.is_file() and p.name != 'LOCK' else None for p in pathlib.Path(folder).rglob('*')}


def expect(name, args, cwd, status, *words, exact=None, folder='run'):
    """Status, words that the message must hold, no crash, and no run directory left behind."""
    global passed
    before = contents(cwd)
    out = run(args, cwd)
    said = out.stderr
    faults = []
    if out.returncode != status:
        faults.append(f'exit status {out.returncode}, wanted {status}')
    if 'Sanitizer' in said or 'runtime error' in said:
        faults.append('sanitizer report')
    if exact is not None and said != 'tulle: ' + exact:
        faults.append(f'message differs from\n{exact}')
    faults += [f'no {w!r} in the message' for w in words if w.lower() not in said.lower()]
    after = contents(cwd)
    if before != after:
        faults.append(f'wrote {[str(p) for p in before.keys() | after.keys() if before.get(p) != after.get(p)]}')
    if faults:
        failed.append(name)
        print(f'FAILED {name}: {"; ".join(faults)}\n{said}')
    else:
        passed += 1


def idx(kind, *dims, data=b'', count=None):
    return struct.pack('>HBB', 0, 8, kind) + b''.join(struct.pack('>I', d) for d in dims) + data


with tempfile.TemporaryDirectory() as tmp:
    tmp = pathlib.Path(tmp)

    # configurations: golden messages
    bad = tmp / 'configs'
    shutil.copytree(source / 'tests/cli/bad_configs', bad)
    for golden in sorted(bad.glob('*.txt')):
        expect('config ' + golden.stem, ['train', golden.stem + '.yaml', 'run.dir=run'], bad, 2, exact=golden.read_text())

    # the command line
    work = tmp / 'work'
    work.mkdir()
    quick = source / 'configs/quickstart.yaml'
    for name, args, words in [
        ('no command', ['trian', quick], ["no command 'trian'"]),
        ('no config', ['train', 'nowhere.yaml'], ['nowhere.yaml']),
        ('unknown key', ['train', quick, 'model.d_modle=3'], ["model.d_modle", "d_model"]),
        ('no value', ['train', quick, 'model.d_model'], ['model.d_model']),
        ('wrong type', ['train', quick, 'model.d_model=wide'], ['model.d_model', 'wide']),
        ('out of range', ['train', quick, 'model.dropout=1.5'], ['model.dropout', '1.5']),
        ('heads', ['train', quick, 'model.n_heads=7'], ['n_heads', 'd_model']),
        ('unknown flag', ['train', quick, '--quite'], ['--quite']),
        ('mlp on tokens', ['train', quick, 'model.type=mlp'], ['model.type']),
        ('more modules than tokens', ['train', quick, 'model.tied_embeddings=false', 'model.head.type=mult', 'model.head.modules=100'],
         ['model.head.modules = 100 (command line) must not be more than the tokens of the data, 21']),
        ('a flag by its letter', ['sample', 'r', '-n', '0'], ['tulle: -n: 0 is not between 1 and']),
        ('a flag by its name', ['sample', 'r', '--length=0'], ['tulle: --length: 0 is not between 1 and']),
        ('a flag without its value', ['sample', 'r', '-n'], ['tulle: -n wants a value']),
    ]:
        expect('command line: ' + name, args, work, 2, *words)
    expect('resume: no such run', ['resume', 'nowhere'], work, 4, 'nowhere')
    expect('sample: no such run', ['sample', 'nowhere'], work, 4, 'nowhere')

    # data files
    (work / 'empty.txt').write_bytes(b'')
    (work / 'short.txt').write_text('to be')
    (work / 'latin1.txt').write_bytes(b'caf\xe9 ' * 2000)
    text = ['train', quick, 'data.source=text', 'run.dir=run']
    for kind in 'text', 'cifar10', 'pairs', 'idx', 'wav', 'hdf5':
        expect(f'{kind}: missing', [*text, f'data.source={kind}', 'data.path=none.txt'], work, 4, exact="'none.txt' (data.path) does not exist\n")
    expect('import: missing', ['data', 'import', 'none.txt', '-o', 'a.h5'], work, 4, exact="'none.txt' does not exist\n")
    expect('pairs: empty', [*text, 'data.source=pairs', 'data.path=empty.txt'], work, 4, "'empty.txt' is empty")
    expect('pattern: empty', ['train', quick, 'model.attention.pattern=file("empty.txt")', 'run.dir=run'], work, 2,
           "empty.txt:1: expected 'blocks B', B positions each, or 'elements'")
    expect('text: empty', [*text, 'data.path=empty.txt'], work, 4, 'empty.txt', 'empty')
    expect('text: shorter than the context', [*text, 'data.path=short.txt'], work, 4, 'short.txt', 'context')
    expect('text: not UTF-8', [*text, 'data.path=latin1.txt'], work, 4, 'latin1.txt', 'byte')
    expect('text: a folder', [*text, 'data.path=.'], work, 4, '.')

    pixels, labels = bytes(28 * 28 * 20), bytes(i % 10 for i in range(20))
    good = {'train-images-idx3-ubyte': idx(3, 20, 28, 28, data=pixels), 'train-labels-idx1-ubyte': idx(1, 20, data=labels),
            't10k-images-idx3-ubyte': idx(3, 20, 28, 28, data=pixels), 't10k-labels-idx1-ubyte': idx(1, 20, data=labels)}
    packed = gzip.compress(good['train-images-idx3-ubyte'])
    images = 'train-images-idx3-ubyte'
    cases = {
        'wrong magic': {images: b'\0\0\x0b\x03' + good[images][4:]},
        'more images declared than there are': {images: idx(3, 21, 28, 28, data=pixels)},
        'fewer images declared than there are': {images: idx(3, 19, 28, 28, data=pixels)},
        'huge counts': {images: idx(3, 0xffffffff, 0xffffffff, 0xffffffff, data=pixels)},
        'no pixels': {images: idx(3, 20, 0, 28)},
        'cut in the header': {images: good[images][:9]},
        'labels for other images': {'train-labels-idx1-ubyte': idx(1, 19, data=labels[:19])},
        'labels of three dimensions': {'train-labels-idx1-ubyte': good[images]},
        'no labels': {'train-labels-idx1-ubyte': None},
        'truncated gz': {images: None, images + '.gz': packed[:len(packed) // 2]},
        'gz with a wrong checksum': {images: None, images + '.gz': packed[:-8] + b'\0\0\0\0' + packed[-4:]},
        'no gz at all': {images: None, images + '.gz': b'hello'},
    }
    broken = {f'gz that breaks off at {at}': ({images: None, images + '.gz': packed[:at]}, words)
              for at, words in [(0, 'is empty'), (12, '12 bytes are no gzip file'), (20, 'its gzip stream breaks off after'),
                                (30, 'its gzip stream breaks off after'), (len(packed) // 2, 'its gzip stream breaks off after')]}
    broken['gz of nothing'] = ({images: None, images + '.gz': gzip.compress(b'')}, 'is empty')
    for name, (change, words) in [*((name, (change, 'idx')) for name, change in cases.items()), *broken.items()]:
        folder = work / 'idx'
        folder.mkdir()
        for file, content in {**good, **change}.items():
            if content is not None:
                (folder / file).write_bytes(content)
        expect('idx: ' + name, ['train', source / 'configs/mnist-dense.yaml', 'data.source=idx', 'data.path=idx', 'run.dir=run'],
               work, 4, 'idx', words)
        shutil.rmtree(folder)
    (work / 'fake.h5').write_bytes(b'\x89HDF\r\n\x1a\n' + bytes(200))
    expect('hdf5: damaged', ['train', quick, 'data.source=hdf5', 'data.path=fake.h5', 'run.dir=run'], work, 4, 'fake.h5')
    expect('hdf5: no HDF5 file', ['train', quick, 'data.source=hdf5', 'data.path=short.txt', 'run.dir=run'], work, 4, 'short.txt')

    cifar = work / 'cifar'
    cifar.mkdir()
    for n, file in enumerate([f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']):
        (cifar / file).write_bytes(bytes(3073 * 4 - (n == 1)))
    expect('cifar10: a short file', ['train', quick, 'data.source=cifar10', 'data.path=cifar', 'model.context=3072', 'run.dir=run'],
           work, 4, exact="'cifar': data_batch_2.bin has 12291 bytes, no whole number of records of 3073 (a label and 3 x 32 x 32 pixels)\n")
    (cifar / 'data_batch_2.bin').write_bytes(bytes(3073 * 4))
    expect('cifar10: another context', ['train', quick, 'data.source=cifar10', 'data.path=cifar', 'run.dir=run'], work, 2,
           exact='data: an image of cifar10 is a sequence of 3072 tokens (32 x 32 x 3), but the context is 64: set model.context=3072\n')
    (cifar / 'data_batch_1.bin').write_bytes(bytes([77]) * 3073 * 4)
    expect('cifar10: no CIFAR-10', ['train', quick, 'data.source=cifar10', 'data.path=cifar', 'model.context=3072', 'run.dir=run'],
           work, 4, exact="'cifar': image 0 of data_batch_1.bin has the label 77, not 0 to 9: is it CIFAR-10, binary version?\n")
    (work / 'cifar.tar.gz').write_bytes(gzip.compress(bytes([1]) * 5000))
    expect('cifar10: no tar', ['train', quick, 'data.source=cifar10', 'data.path=cifar.tar.gz', 'model.context=3072', 'run.dir=run'],
           work, 4, exact="'cifar.tar.gz' is no tar archive, or damaged, at byte 0 of its contents\n")

    def wav(coding, bits, size, sound):
        return (b'RIFF' + struct.pack('<I', 36 + len(sound)) + b'WAVEfmt ' +
                struct.pack('<IHHIIHH', 16, coding, 1, 12000, 12000 * bits // 8, bits // 8, bits) + b'data' + struct.pack('<I', size) + sound)

    for name, content, words in [
        ('no WAV file', b'RIFX' + bytes(50), "'a.wav' is no WAV file: it does not begin with RIFF and WAVE"),
        ('unknown coding', wav(0x11, 8, 500, bytes(500)), "'a.wav' is of coding 0x0011 with 8 bits, which is not read (PCM of 8, 16, 24 or 32 "
         "bits and 32-bit float are); convert it: sox IN -e signed -b 16 OUT.wav"),
        ('cut off', wav(1, 16, 500, bytes(400)), "'a.wav' is cut off: its part 'data' should have 500 bytes, but 400 are left"),
        ('empty', wav(1, 16, 0, b''), "'a.wav' holds no sound"),
    ]:
        (work / 'a.wav').write_bytes(content)
        expect('wav: ' + name, ['train', quick, 'data.source=wav', 'data.path=a.wav', 'run.dir=run'], work, 4, exact=words + '\n')
    (work / 'quiet').mkdir()
    expect('wav: an empty folder', ['train', quick, 'data.source=wav', 'data.path=quiet', 'run.dir=run'], work, 4,
           exact="'quiet' holds no .wav file\n")
    expect('grid: too wide', ['train', quick, 'data.source=grid', 'data.width=63', 'run.dir=run'], work, 2,
           exact='data: a grid of width 63 does not fit into sequences of 64 tokens (the context)\n')

    # checkpoints
    small = ['train.steps=2', 'data.size=5000', 'model.context=16', 'model.d_model=16', 'model.n_heads=2', 'train.batch=2',
             'train.eval_batches=1', 'sample.length=5', 'schedule.warmup_steps=1']
    made = run(['train', quick, *small, 'run.dir=made'], work)
    if made.returncode:
        sys.exit(f'cannot make a checkpoint: {made.stderr}')
    whole = (work / 'made/last.h5').read_bytes()
    (work / 'cut.h5').write_bytes(b'')
    for i in range(100):
        at = len(whole) * i // 100
        (work / 'cut.h5').write_bytes(whole[:at])
        expect(f'checkpoint cut at byte {at} of {len(whole)}', ['inspect', 'cut.h5'], work, 4, 'cut.h5')
    for at in range(0, len(whole), max(1, len(whole) // 40)):
        (work / 'cut.h5').write_bytes(whole[:at] + bytes([whole[at] ^ 16]) + whole[at + 1:])
        expect(f'checkpoint with a flipped bit in byte {at}', ['sample', 'cut.h5'], work, 4, 'cut.h5')
    (work / 'cut.h5').write_bytes(whole[:-64])               # the image without its seal
    expect('checkpoint without its seal', ['inspect', 'cut.h5'], work, 4, 'truncated')
    (work / 'cut.h5').unlink()
    (work / 'my.txt').write_text('words of mine ' * 50)
    run(['data', 'import', 'my.txt', '-o', 'my.h5'], work)
    expect('no checkpoint', ['inspect', 'my.h5'], work, 4, exact="checkpoint 'my.h5': an HDF5 file, but no checkpoint of tulle\n")

    expect('a run that is there already', ['train', quick, *small, 'run.dir=made'], work, 2, 'made', 'resume')
    expect('resume with another model', ['resume', 'made', 'model.d_model=32'], work, 2, 'model.d_model')

    # a checkpoint of another run in its place, or the one before a damaged one
    for name, args in [('dense', ['model.ff.type=dense']), ('mlp', ['model.type=mlp', 'data.source=digits', 'model.context=64'])]:
        other = run(['train', quick, *small, *args, 'run.dir=' + name], work)
        if other.returncode:
            sys.exit(f'cannot make a checkpoint: {other.stderr}')
    first = {'dense': "model.ff.type is dense there, but sparse in config.yaml",
             'mlp': "data.source is digits there, but language in config.yaml"}
    for name, tells in first.items():
        for file in ('last.h5', 'prev.h5'):
            shutil.rmtree(work / 'mixed', ignore_errors=True)
            shutil.copytree(work / 'made', work / 'mixed')
            shutil.copy(work / name / 'last.h5', work / 'mixed' / file)
            why = ''
            if file == 'prev.h5':
                (work / 'mixed/last.h5').write_bytes(whole[:1000])
                why = (f"checkpoint 'mixed/last.h5': truncated: 1000 of {len(whole)} bytes\n"
                       "using the checkpoint before it, 'mixed/prev.h5' (step 2)\n")
            expect(f'resume: {file} of another model, {name}', ['resume', 'mixed', 'train.steps=7'], work, 4, exact=why +
                   f"'mixed/{file}' is not of the run of 'mixed/config.yaml': {tells}\n  bring back the run's own checkpoint; "
                   f"or, if config.yaml was edited, undo that or remove it: it is written anew from {file}\n")
    shutil.copy(work / 'made/last.h5', work / 'mixed/last.h5')
    yaml = (work / 'made/config.yaml').read_text()
    (work / 'mixed/config.yaml').write_text(yaml.replace('  seed: 1\n', '  seed: 2\n', 1))
    expect('resume: a key edited that may not change', ['resume', 'mixed'], work, 4, 'run.seed is 1 there, but 2 in config.yaml')
    (work / 'mixed/config.yaml').write_text('model: [')
    expect('resume: no configuration', ['resume', 'mixed'], work, 2, "mixed/config.yaml:1:", "mend 'mixed/config.yaml', or remove it")
    shutil.rmtree(work / 'mixed')
    expect('sample: a character without a token', ['sample', 'made', '--prompt', 'Ä'], work, 4, 'prompt')
    expect('sample: an empty prompt', ['sample', 'made', '--prompt', ''], work, 2, 'prompt')
    expect('sample: a flag out of range', ['sample', 'made', '--top-p', '2'], work, 2, '--top-p')
    expect('eval: no such split', ['eval', 'made', '--split', 'dev'], work, 2, 'dev')
    expect('eval: an empty split', ['eval', 'made', '--split', 'test'], work, 4, 'split')

print(f'{passed} passed, {len(failed)} failed')
sys.exit(bool(failed) or passed < 40)
