#!/usr/bin/env python3
"""Puts tulle with all that it needs into one folder: bundle.py PROGRAM FOLDER ROOT [CUDA_LIBRARIES]

FOLDER/bin/tulle finds the libraries in FOLDER/lib; the C library and the GPU's driver are those of the machine that it
runs on, so that one must have a C library at least as new as this one's.  cuBLASLt is carried from CUDA_LIBRARIES.
"""
import pathlib, re, shutil, subprocess, sys

# what every machine has, and has to have itself: the C library, the loader
OF_THE_MACHINE = re.compile(r'(ld-linux|linux-vdso|libc\.so|libm\.so|libdl\.so|libpthread\.so|librt\.so|libresolv\.so|libutil\.so|libmvec)')


def libraries(program):
    """Path by name of each shared library that the loader would take, itself excluded."""
    found = {}
    for line in subprocess.run(['ldd', program], check=True, capture_output=True, text=True).stdout.splitlines():
        m = re.match(r'\s*(\S+) => (\S+|not found)', line)
        if not m or OF_THE_MACHINE.match(m[1]):
            continue
        if m[2] == 'not':
            sys.exit(f'bundle: {m[1]}, which {program} needs, is not on this machine')
        found[m[1]] = pathlib.Path(m[2])
    return found


def main():
    program, out, root = (pathlib.Path(a) for a in sys.argv[1:4])
    cuda = pathlib.Path(sys.argv[4]) if len(sys.argv) > 4 and sys.argv[4] else None
    if out.exists():
        shutil.rmtree(out)
    for folder in ('bin', 'lib'):
        (out / folder).mkdir(parents=True)
    shutil.copy2(program, out / 'bin' / 'tulle')
    carried = libraries(program)
    if cuda:
        blas = sorted(cuda.glob('libcublasLt.so.*'), key=lambda p: len(p.name))
        if not blas:
            sys.exit(f'bundle: no libcublasLt.so in {cuda}')
        carried[blas[0].name] = blas[0]
    for name, path in carried.items():
        shutil.copy2(path.resolve(), out / 'lib' / name)
    shutil.copytree(root / 'configs', out / 'configs')
    for name in ('README.md', 'LICENSE'):
        shutil.copy2(root / name, out / name)
    size = sum(p.stat().st_size for p in out.rglob('*') if p.is_file())
    print(f'{out}: tulle and {len(carried)} libraries, {size / 1e6:.0f} MB')


main()
