/* gpu_check.c -- see gpu_check.h. */
#include "gpu_check.h"

#include "autograd/base/half.h"
#include "autograd/cuda/cuda.h"
#include "gpu.h"

#include <stdio.h>
#include <stdlib.h>
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

void gpu_check_one(const gpu_case *one, int index, const op_format *f)
{
    ag_tape *ref = tape_new(ag_kernels_ref(AG_F64)), *t = poisoned_tape(ag_kernels_cuda(f->dtype));
    case_round_to(f->dtype);
    op_case c = { .op = one->op, .index = index, .s = one->s };
    for (int j = 0; j < c.op->n_in; j++)
        if (!((c.s.absent | c.op->integer_in) >> j & 1)) c.real |= 1u << j;
    gpu_check_case(ref, t, &c, f);
    case_round_to(AG_F32);
    ag_tape_free(t);
    ag_tape_free(ref);
}

void gpu_check_cases(int n, const gpu_case *cases, const op_format *f)
{
    for (int i = 0; i < n; i++)
        if (gpu_takes(i * GPU_FORMATS + (f - gpu_formats)))
            gpu_check_one(&cases[i], 100 + i, f);
}

static const ag_device *gpu(void) { return ag_kernels_cuda(AG_F32)->device; }

static size_t bytes_of(const op_format *f, int64_t n)
{
    return (size_t)n * ag_dtype_size(f->dtype);
}

void *gpu_upload(const op_format *f, int64_t n, const double *x)
{
    char *host = malloc(bytes_of(f, n) + 1);
    assert_non_null(host);
    for (int64_t i = 0; i < n; i++) {
        const float v = (float)x[i];
        if (f->dtype == AG_F32) ((float *)(void *)host)[i] = v;
        else ((uint16_t *)(void *)host)[i] = f->dtype == AG_BF16 ? ag_bf16_of(v) : ag_f16_of(v);
    }
    void *p = ag_device_alloc(gpu(), bytes_of(f, n) + 1);
    assert_non_null(p);
    ag_device_write(gpu(), p, host, bytes_of(f, n));
    free(host);
    return p;
}

void gpu_download(const op_format *f, int64_t n, const void *p, double *x)
{
    char *host = malloc(bytes_of(f, n) + 1);
    assert_non_null(host);
    ag_device_read(gpu(), host, p, bytes_of(f, n));
    for (int64_t i = 0; i < n; i++) x[i] = real_at(host, f->dtype, i);
    free(host);
}

void gpu_drop(const op_format *f, int64_t n, void *p)
{
    ag_device_free(gpu(), p, bytes_of(f, n) + 1);
}
