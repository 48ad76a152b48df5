#!/bin/sh
# gpu.sh -- what only a machine with a GPU can show: the tests of the kernels on it, natively and under compute-sanitizer
# where that is installed, the same bits in many runs, and the benchmarks.
#
#   tests/gpu.sh BUILD [test|sanitize|bits|bench ...]        default: test sanitize bits
#
# TOOLS names the tools of compute-sanitizer (default: all four), PROGRAMS the tests (ops live ..), where time is short.
set -eu
cd "$(dirname "$0")/.."
build=$1
shift
[ $# -gt 0 ] || set -- test sanitize bits
programs=${PROGRAMS:-ops live rows draw gemm optim attention blocks train graph}

for what in "$@"; do
    case $what in
    test)
        for p in $programs; do "$build/tests/test_gpu_$p"; done
        ;;
    sanitize)
        tool=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
        [ -x "$tool" ] || { echo "compute-sanitizer is not installed: skipped" >&2; continue; }
        theirs=$(printf -- '--kernel-name-exclude kns=%s ' cublas nvjet cutlass gemm gemv splitK)      # kernels of cuBLASLt
        log=$(mktemp)
        for t in ${TOOLS:-memcheck synccheck initcheck racecheck}; do
            for p in $programs; do
                echo "compute-sanitizer --tool $t: $p"
                "$tool" --tool "$t" --error-exitcode 1 $theirs "$build/tests/test_gpu_$p" >"$log" 2>&1 || { tail -n 60 "$log"; exit 1; }
            done
        done
        rm "$log"
        ;;
    bits)
        dir=$(mktemp -d)
        for config in shakespeare-dense shakespeare-sparse; do
            for i in $(seq 20); do
                "$build/train/tulle" train configs/$config.yaml train.device=cuda train.precision=bf16 train.steps=20 \
                    schedule.warmup_steps=5 train.eval_every=0 train.eval_batches=1 sample.every=0 checkpoint.every=0 \
                    run.dir="$dir/run" run.overwrite=true | sed -n 's/.*state sha256 //p'
            done | sort | uniq -c | tee "$dir/hashes"
            [ "$(wc -l <"$dir/hashes")" = 1 ] || { echo "$config: runs differ" >&2; exit 1; }
        done
        rm -r "$dir"
        ;;
    bench)
        python3 tests/bench/gpu.py "$build"
        ;;
    *)
        echo "gpu.sh: what is '$what'?" >&2
        exit 2
        ;;
    esac
done
