"""Reads a checkpoint of tests/ckpt_sample.h (step 7) with h5py alone; exit 77 where h5py is missing."""
import sys

try:
    import h5py
    import numpy as np
except ImportError:
    print("skipped: no h5py")
    sys.exit(77)


def check(name, ok):
    if not ok:
        print("FAILED:", name)
        sys.exit(1)


with h5py.File(sys.argv[1], "r") as f:
    a = f.attrs
    check("texts are str", all(type(a[k]) is str for k in ("format", "dtype", "framework_version")))
    check("format", a["format"] == "tulle-checkpoint" and a["format_version"] == 1)
    check("complete", isinstance(a["complete"], np.bool_) and a["complete"])
    check("head", a["step"] == 7 and a["tokens_seen"] == 7000 and a["seed"] == 2**64 - 1)
    check("best", np.isnan(a["best_metric"]) and a["best_step"] == -1)
    check("file order", list(f["/"]) == ["config", "tokenizer", "model", "optimizer", "train"])
    check("layer order", list(f["model"]) == ["w6", "w5", "w4", "w3", "w2", "w1", "w0"])
    check("config", f["config/yaml"].asstr()[()] == 'model:\n  name: "große Maus"\n')
    check("bytes", f["tokenizer/merges"][...].tolist() == [0, 255, 10, 0, 7])
    check("attributes", f["train/scaler"].attrs["scale"] == 65536.0
          and f["train/sampler"].attrs["cursor"] == -5 and f["model"].attrs["arch"] == "gpt-ü")
    x = np.uint32(7 * 2654435761 % 2**32 + 1)
    with np.errstate(over="ignore"):
        for t in range(14):
            values = np.empty(600, np.float32)
            for i in range(600):
                x = np.uint32(x * np.uint32(1664525) + np.uint32(1013904223))
                values[i] = np.float32(int(x.astype(np.int32)) >> 8) * np.float32(2.0**-20)
            if t == 4:
                values[:2] = -0.0, 2.0**-149
            w = f["optimizer/adamw/m" if t % 2 else "model"]["w%d" % ((13 - t) // 2)]
            shape = {0: (), 2: (4, 0, 2)}.get(t, (20, 30))
            check("tensor %d" % t, w.dtype == np.float32 and w.shape == shape
                  and w.chunks is None and w[...].tobytes()
                  == values[:int(np.prod(shape))].tobytes())
print("h5py reads it")
