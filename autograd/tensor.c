#include "tensor.h"

#include "base/half.h"

#include <inttypes.h>
#include <stdio.h>

const char *ag_dtype_name(ag_dtype d)
{
    static const char *const names[] = { [AG_F32] = "f32", [AG_F64] = "f64", [AG_I32] = "int32",
                                         [AG_BF16] = "bf16", [AG_F16] = "f16" };
    return names[d];
}

ag_dtype ag_grad_dtype(const ag_tensor *x)
{
    return x->grad_kept && ag_dtype_is_half(x->dtype) ? AG_F32 : x->dtype;
}

double ag_tensor_at(const ag_tensor *x, int64_t i) { return ag_number_at(x->dtype, x->data, i); }

double ag_number_at(ag_dtype d, const void *data, int64_t i)
{
    switch (d) {
    case AG_F64:  return ((const double *)data)[i];
    case AG_I32:  return (double)((const int32_t *)data)[i];
    case AG_BF16: return (double)ag_bf16_float(((const uint16_t *)data)[i]);
    case AG_F16:  return (double)ag_f16_float(((const uint16_t *)data)[i]);
    default:      return (double)((const float *)data)[i];
    }
}

int64_t ag_shape_size(const ag_shape *s)
{
    int64_t n = 1;
    bool none = false, bad = false;
    for (int i = 0; i < s->ndim; i++) {
        none |= s->dim[i] == 0;
        bad |= s->dim[i] < 0;
    }
    if (none && !bad) return 0;
    for (int i = 0; i < s->ndim && !bad; i++) bad = __builtin_mul_overflow(n, s->dim[i], &n);
    return bad ? INT64_MAX : n;
}

bool ag_shape_equal(const ag_shape *a, const ag_shape *b)
{
    if (a->ndim != b->ndim) return false;
    for (int i = 0; i < a->ndim; i++)
        if (a->dim[i] != b->dim[i]) return false;
    return true;
}

const char *ag_shape_text(const ag_shape *s, char buf[96])
{
    int n = snprintf(buf, 96, "[");
    for (int i = 0; i < s->ndim; i++)
        n += snprintf(buf + n, (size_t)(96 - n), "%s%" PRId64, i ? "," : "", s->dim[i]);
    snprintf(buf + n, (size_t)(96 - n), "]");
    return buf;
}

int64_t ag_cols(const ag_tensor *x) { return x->shape.ndim ? x->shape.dim[x->shape.ndim - 1] : 1; }

int64_t ag_rows(const ag_tensor *x)
{
    int64_t n = 1;
    for (int i = 0; i + 1 < x->shape.ndim; i++) n *= x->shape.dim[i];
    return n;
}

size_t ag_tensor_bytes(const ag_tensor *x) { return (size_t)x->size * ag_dtype_size(x->dtype); }
