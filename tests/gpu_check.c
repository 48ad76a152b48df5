/* gpu_check.c -- see gpu_check.h. */
#include "gpu_check.h"

#include "autograd/cuda/cuda.h"
#include "gpu.h"

#include <stdio.h>
#include <string.h>

const op_format gpu_formats[GPU_FORMATS] = {
    { AG_F32, 0x1p-24, 0x1p-149, 1e-12 },
    { AG_BF16, 0x1p-8, 0x1p-133, 1e-4 },
    { AG_F16, 0x1p-11, 0x1p-24, 2e-6 },
};

bool gpu_open(void)
{
    const ag_device *device;
    ag_err err = { 0 };
    size_t total, free_bytes;
    char about[256];
    if (ag_cuda_open(&device, &err) < 0) {
        fprintf(stderr, "%s\n", err.msg);
        return false;
    }
    device->about(about, sizeof about, &total, &free_bytes);
    printf("%s, %.1f GB\n", about, 1e-9 * (double)total);
    return true;
}

static void check_bits(const op_case *c, const op_result *a, const op_result *b)
{
    char text[512];
    for (int i = 0; i < 2 + AG_MAX_IN; i++)
        if (a->v[i] && memcmp(a->v[i], b->v[i], (size_t)a->size[i] * sizeof *a->v[i]))
            fail_msg("%s: other bits in %s %d when run again", case_text(c, 0, text),
                     i < 2 ? "output" : "gradient", i < 2 ? i : i - 2);
}

void gpu_check_case(ag_tape *ref, ag_tape *t, const op_case *c, const op_format *f)
{
    op_result want = op_run(ref, c), scale = op_scale(ref, c), got = op_run(t, c);
    op_compare(c, ag_dtype_name(f->dtype), &got, &want, &scale, f);
    gpu_order(1 + (unsigned)c->index);
    op_result again = op_run(t, c);
    gpu_order(0);
    check_bits(c, &got, &again);
    op_result_release(&again);
    op_result_release(&got);
    op_result_release(&want);
    op_result_release(&scale);
}
