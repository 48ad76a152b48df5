"""Kills and errors at every system call of a save: faults.py CKPT_TOOL

Every point starts from a run directory with two generations and saves a third under strace, which
kills the process at the n-th call of one kind, or lets that call fail.  Afterwards a whole checkpoint
that is not older than the newest one before must load, the process must not have died of a signal of its
own, an error must have the exit code of I/O errors, and no temporary file may stay unless it was
killed.  Prints `N passed, N failed`; exit 77 where strace does not work.
"""
import os
import shutil
import subprocess
import sys
import tempfile

CALLS = ["openat", "write", "fsync", "rename", "close", "unlink", "fcntl", "ftruncate", "pwrite64",
         "getdents64", "newfstatat", "mmap", "munmap", "brk"]
ERRORS = {"openat": ["EACCES", "EMFILE", "EROFS"], "write": ["ENOSPC", "EIO", "EDQUOT", "EINTR"],
          "fsync": ["EIO", "ENOSPC"], "rename": ["EACCES", "EIO"], "close": ["EIO"],
          "fcntl": ["ENOLCK"], "ftruncate": ["EIO"], "pwrite64": ["ENOSPC"], "getdents64": ["EIO"]}
IO_CODES = {"openat": (0, 5), "write": (0, 5), "close": (0, 5), "getdents64": (0, 5)}
OLD, NEW = 2, 3


def run(*args):
    return subprocess.run(args, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)


def calls_of(*command):
    """How often each call is made: the number of lines strace prints for it."""
    with tempfile.NamedTemporaryFile("r") as log:
        run("strace", "-qq", "-o", log.name, "-e", "trace=" + ",".join(CALLS), *command)
        lines = log.read().splitlines()
    return {c: sum(line.startswith(c + "(") for line in lines) for c in CALLS}


def prepare(tool, folder):
    shutil.rmtree(folder, ignore_errors=True)
    os.mkdir(folder)
    open(os.path.join(folder, "config.yaml"), "w").close()
    for step in (OLD - 1, OLD):
        assert run(tool, "save", folder, str(step)).returncode == 0


def verdict(tool, folder, done, killed, codes):
    """What is wrong after a fault, or None."""
    if not killed and done.returncode not in codes:
        return "exit %d: %s" % (done.returncode, done.stderr.strip())
    if done.returncode == 5 and not done.stderr.strip():
        return "no message"
    seen = run(tool, "verify", folder)
    if seen.returncode != 0 or int(seen.stdout) not in (OLD, NEW):
        return "lost: %s%s" % (seen.stdout, seen.stderr)
    if done.returncode == 0 and int(seen.stdout) != NEW:
        return "reported as saved, but step %s loads" % seen.stdout
    left = [f for f in os.listdir(folder) if ".tmp-" in f]
    if left and not killed:
        return "left behind: %s" % left
    again = run(tool, "save", folder, str(NEW + 1))
    left = [f for f in os.listdir(folder) if ".tmp-" in f]
    if again.returncode != 0 or left or run(tool, "verify", folder).stdout.strip() != str(NEW + 1):
        return "the next save fails: %s %s" % (again.stderr, left)
    return None


def points(start, total):
    for call in CALLS:
        for n in range(start[call] + 1, total[call] + 1):
            yield call, "signal=KILL", n, True, ()
            for error in ERRORS.get(call, []):
                codes = (0,) if error == "EINTR" else IO_CODES.get(call, (5,))
                yield call, "error=" + error, n, False, codes


def main():
    tool = os.path.abspath(sys.argv[1])
    if not shutil.which("strace") or run("strace", "-o", "/dev/null", "true").returncode != 0:
        print("skipped: no strace")
        sys.exit(77)
    passed = failed = 0
    with tempfile.TemporaryDirectory() as top:
        folder = os.path.join(top, "run")
        prepare(tool, folder)
        start = calls_of(tool)
        total = calls_of(tool, "save", folder, str(NEW))
        for call, what, n, killed, codes in points(start, total):
            prepare(tool, folder)
            inject = "inject=%s:%s:when=%d" % (call, what, n)
            done = run("strace", "-qq", "-o", "/dev/null", "-e", "trace=" + call, "-e", inject,
                       tool, "save", folder, str(NEW))
            wrong = verdict(tool, folder, done, killed, codes)
            passed += wrong is None
            failed += wrong is not None
            if wrong:
                print("FAILED: %s %s call %d: %s" % (call, what, n, wrong))
    print("%d passed, %d failed" % (passed, failed))
    sys.exit(1 if failed or not passed else 0)


main()
