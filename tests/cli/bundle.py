#!/usr/bin/env python3
"""A bundle runs where its libraries are not installed: bundle.py PROGRAM ROOT

In a root file system of its own that has nothing but the C library and the bundle it trains, samples and, told to use a
GPU, says in one line that there is none.  cuBLASLt is left out: it is large, and without a driver nothing asks for it.
"""
import os, pathlib, re, shutil, subprocess, sys, tempfile

program, root = sys.argv[1], pathlib.Path(sys.argv[2])
CHROOT = shutil.which('chroot') or '/usr/sbin/chroot'
BARE = re.compile(r'(ld-linux|libc\.so|libm\.so|libdl\.so|libpthread\.so|librt\.so|libresolv\.so|libutil\.so|libmvec)')


def bare_root(at):
    """The C library and the loader, as the program names them."""
    for line in subprocess.run(['ldd', program], check=True, capture_output=True, text=True).stdout.splitlines():
        m = re.match(r'\s*(?:(\S+) => )?(/\S+)', line)
        if m and BARE.match((m[1] or m[2]).rsplit('/', 1)[-1]):
            to = at / m[2].lstrip('/')
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(os.path.realpath(m[2]), to)
    (at / 'tmp').mkdir()


def run(at, *args, code=0):
    done = subprocess.run([CHROOT, at, '/bundle/bin/tulle', *args], capture_output=True, text=True,
                          env={'PATH': '/', 'LD_ORIGIN_PATH': '/bundle/bin'})     # for want of /proc
    assert done.returncode == code, f'{args}: exit status {done.returncode}, wanted {code}\n{done.stderr}'
    return done


with tempfile.TemporaryDirectory() as t:
    at = pathlib.Path(t)
    subprocess.run([sys.executable, root / 'train/bundle.py', program, at / 'bundle', root], check=True)
    if os.geteuid() != 0:
        print('not root: what the loader would take is looked at instead')
        told = subprocess.run(['ldd', at / 'bundle/bin/tulle'], check=True, capture_output=True, text=True).stdout
        for line in told.splitlines():
            m = re.match(r'\s*(\S+) => (\S+)', line)
            assert not m or BARE.match(m[1]) or str(at / 'bundle/lib') in m[2], line
        sys.exit(0)
    bare_root(at)
    quick = ['/bundle/configs/quickstart.yaml', 'train.steps=60', 'run.dir=/tmp/run']
    run(at, 'train', *quick, '--quiet')
    assert run(at, 'sample', '/tmp/run', '-n', '20').stdout.strip()
    done = run(at, 'train', *quick[:2], 'run.dir=/tmp/other', 'train.device=cuda', code=1)
    assert 'train.device = cuda' in done.stderr and done.stderr.count('\n') == 1, done.stderr
    assert not (at / 'tmp/other').exists()
print('ok')
