"""What the tests of the program share: running it, looking for what it says, and a list of cases to go through."""
import pathlib, re, subprocess, sys, tempfile

tulle = str(pathlib.Path(sys.argv[1]).resolve())


def run(*args, status=0, cwd=None):
    """What tulle prints with these arguments; it must end with this exit status."""
    out = subprocess.run([tulle, *map(str, args)], cwd=cwd, capture_output=True, text=True, errors='replace')
    if out.returncode != status:
        raise AssertionError(f'{args}: exit {out.returncode}, wanted {status}\n{out.stderr}')
    return out.stdout + out.stderr


def says(text, *patterns):
    for p in patterns:
        if not re.search(p, text, re.S):
            raise AssertionError(f'no {p!r} in\n{text}')


def go_through(*cases):
    """Each case in a folder of its own; ends the program, with 1 if one failed."""
    passed, failed = 0, []
    for f in cases:
        try:
            with tempfile.TemporaryDirectory() as tmp:
                f(pathlib.Path(tmp))
            passed += 1
        except Exception as e:
            failed.append(f.__name__)
            print(f'FAILED {f.__name__}: {type(e).__name__} {e}')
    print(f'{passed} passed, {len(failed)} failed')
    sys.exit(bool(failed))
