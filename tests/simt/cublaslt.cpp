/*
 * cublaslt.cpp -- stands in for cuBLASLt where kernels run on the CPU: column-major products with
 * the library's descriptors, and as strict as the library may be.
 *
 * What NVIDIA's documentation does not allow is refused.  An algorithm is for one problem and one
 * alignment of its pointers; with others, a bias off 16 bytes or too small a workspace it fails.
 * One that cuts k into pieces adds them in the type that the preferences allow.  The tanh of GELU
 * is as far off as that of the hardware may be.
 */
#include "cublaslt.h"

#include "autograd/base/half.h"
#include "autograd/cuda/cublas.h"
#include "mock.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

struct cublasLtContext { int unused; };
struct cublasLtMatmulDescOpaque_t {
    cublasLtEpilogue_t epilogue;
    cublasOperation_t op[2];
    const void *bias;
    void *aux;
    int64_t aux_ld;
};
struct cublasLtMatrixLayoutOpaque_t { cudaDataType_t type; int64_t rows, cols, ld; };
struct cublasLtMatmulPreferenceOpaque_t {
    uint64_t workspace;
    uint32_t reductions, align[4];   /* of a, b, c, d */
};

static struct {
    const char *hidden;
    int refuse;
    long questions, wrong, products, gelus, objects;
} fake;

void simt_cublaslt_hide(const char *name) { fake.hidden = name; }
void simt_cublaslt_refuse(int refuse) { fake.refuse = refuse; }
long simt_cublaslt_questions(void) { return fake.questions; }
long simt_cublaslt_wrong(void) { return fake.wrong; }
long simt_cublaslt_products(void) { return fake.products; }
long simt_cublaslt_gelus(void) { return fake.gelus; }
long simt_cublaslt_objects(void) { return fake.objects; }

/* --- the file --------------------------------------------------------------------------------- */

static const struct { const char *name; void *function; } symbols[] = {
#define SYMBOL(name) { #name, (void *)name }
    SYMBOL(cublasLtCreate), SYMBOL(cublasLtDestroy), SYMBOL(cublasLtGetStatusName),
    SYMBOL(cublasLtMatmulDescCreate), SYMBOL(cublasLtMatmulDescDestroy),
    SYMBOL(cublasLtMatmulDescSetAttribute), SYMBOL(cublasLtMatrixLayoutCreate),
    SYMBOL(cublasLtMatrixLayoutDestroy), SYMBOL(cublasLtMatmulPreferenceCreate),
    SYMBOL(cublasLtMatmulPreferenceDestroy), SYMBOL(cublasLtMatmulPreferenceSetAttribute),
    SYMBOL(cublasLtMatmulAlgoGetHeuristic), SYMBOL(cublasLtMatmul),
#undef SYMBOL
};

void *library_open(const char *name)
{
    if (strcmp(name, "libcublasLt.so.13") || (fake.hidden && !strcmp(name, fake.hidden)))
        return NULL;
    fake.objects++;
    return &fake;
}

void library_close(void *) { fake.objects--; }

void *library_symbol(void *, const char *name)
{
    for (const auto &s : symbols)
        if (!strcmp(s.name, name) && !(fake.hidden && !strcmp(name, fake.hidden)))
            return s.function;
    return NULL;
}

/* --- objects ---------------------------------------------------------------------------------- */

template <class T> static cublasStatus_t create(T **ret, const T &value)
{
    if (!simt::call_works()) return CUBLAS_STATUS_ALLOC_FAILED;
    *ret = new T(value);
    fake.objects++;
    return CUBLAS_STATUS_SUCCESS;
}

template <class T> static cublasStatus_t destroy(T *object)
{
    delete object;
    fake.objects--;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *ret) { return create(ret, cublasLtContext()); }
cublasStatus_t cublasLtDestroy(cublasLtHandle_t h) { return destroy(h); }

const char *cublasLtGetStatusName(cublasStatus_t s)
{
    switch (s) {
    case CUBLAS_STATUS_SUCCESS:          return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:  return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:     return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:    return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_NOT_SUPPORTED:    return "CUBLAS_STATUS_NOT_SUPPORTED";
    }
    return "unknown";
}

/* The value of an attribute into its place, if its size is right. */
template <class T> static cublasStatus_t take(T *place, const void *value, size_t bytes)
{
    if (!value || bytes != sizeof *place) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(place, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *ret, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    if (compute != CUBLAS_COMPUTE_32F || scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    return create(ret, { CUBLASLT_EPILOGUE_DEFAULT, { CUBLAS_OP_N, CUBLAS_OP_N }, NULL, NULL, 0 });
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d) { return destroy(d); }

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                              cublasLtMatmulDescAttributes_t a, const void *value,
                                              size_t bytes)
{
    if (!simt::call_works()) return CUBLAS_STATUS_INVALID_VALUE;
    switch (a) {
    case CUBLASLT_MATMUL_DESC_TRANSA:       return take(&d->op[0], value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:       return take(&d->op[1], value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:     return take(&d->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: return take(&d->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER: return take(&d->aux, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD: return take(&d->aux_ld, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *ret, cudaDataType_t type,
                                          uint64_t rows, uint64_t cols, int64_t ld)
{
    return create(ret, { type, (int64_t)rows, (int64_t)cols, ld });
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l) { return destroy(l); }

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *ret)
{
    return create(ret, { 0, 7, { 256, 256, 256, 256 } });
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p) { return destroy(p); }

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t a,
                                                    const void *value, size_t bytes)
{
    if (!simt::call_works()) return CUBLAS_STATUS_INVALID_VALUE;
    switch (a) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:   return take(&p->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: return take(&p->reductions, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return take(&p->align[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return take(&p->align[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: return take(&p->align[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return take(&p->align[3], value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

/* --- algorithms ------------------------------------------------------------------------------- */

/* All that a product is, but pointers. */
struct problem {
    cublasLtEpilogue_t epilogue;
    cublasOperation_t op_a, op_b;
    cublasLtMatrixLayoutOpaque_t a, b, c, d;
    int64_t aux_ld;
    bool gelu() const { return epilogue > CUBLASLT_EPILOGUE_RELU_BIAS; }
    int64_t k() const { return op_a == CUBLAS_OP_N ? a.cols : a.rows; }
};

static problem problem_of(cublasLtMatmulDesc_t d, cublasLtMatrixLayout_t a,
                          cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c,
                          cublasLtMatrixLayout_t out)
{
    return { d->epilogue, d->op[0], d->op[1], *a, *b, *c, *out, d->aux_ld };
}

static bool fits(const cublasLtMatrixLayoutOpaque_t &l, int64_t rows, int64_t cols)
{
    return l.rows == rows && l.cols == cols && rows > 0 && cols > 0 && l.ld >= rows;
}

static cublasStatus_t check(const problem &p)
{
    const bool na = p.op_a == CUBLAS_OP_N, nb = p.op_b == CUBLAS_OP_N;
    const int64_t m = p.d.rows, n = p.d.cols, k = p.k();
    if (!fits(p.a, na ? m : k, na ? k : m) || !fits(p.b, nb ? k : n, nb ? n : k) ||
        !fits(p.c, m, n) || !fits(p.d, m, n))
        return CUBLAS_STATUS_INVALID_VALUE;
    const bool same = p.a.type == p.b.type && p.c.type == p.d.type &&
                      (p.d.type == p.a.type || p.d.type == CUDA_R_32F);
    if (p.gelu()) {
        const unsigned known = CUBLASLT_EPILOGUE_GELU_AUX_BIAS & ~CUBLASLT_EPILOGUE_BIAS;
        if ((p.epilogue & ~CUBLASLT_EPILOGUE_BIAS) != known || !same)
            return CUBLAS_STATUS_NOT_SUPPORTED;
        return p.aux_ld % 8 || p.aux_ld < m ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS;
    }
    const unsigned known = CUBLASLT_EPILOGUE_RELU_BIAS;
    const bool plain = p.epilogue == CUBLASLT_EPILOGUE_DEFAULT;
    return same && (plain || !(p.epilogue & ~known)) ? CUBLAS_STATUS_SUCCESS
                                                     : CUBLAS_STATUS_NOT_SUPPORTED;
}

static uint64_t hash_of(const problem &p)
{
    const int64_t all[] = { p.epilogue, p.op_a, p.op_b, p.a.type, p.a.rows, p.a.cols, p.a.ld,
                            p.b.ld, p.b.cols, p.c.ld, p.d.type, p.d.rows, p.d.cols, p.d.ld,
                            p.aux_ld };
    uint64_t h = 17;
    for (int64_t v : all) h = (h ^ (uint64_t)v) * 1099511628211u;
    return h;
}

static size_t size_of(cudaDataType_t t) { return t == CUDA_R_32F ? 4 : 2; }

/* data: the problem, alignments of 16 bits each, pieces of k, the scheme that adds them, the
 * alignment of what GELU sees. */
enum { FOR, ALIGN, PIECES, SCHEME, ALIGN_AUX };

static uint64_t alignment_of(const void *p)
{
    return (uintptr_t)p & (~(uintptr_t)p + 1) & 255 ? (uintptr_t)p & (~(uintptr_t)p + 1) : 256;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t d,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out,
                                              cublasLtMatmulPreference_t p, int,
                                              cublasLtMatmulHeuristicResult_t ret[], int *ret_n)
{
    if (!simt::call_works()) return CUBLAS_STATUS_NOT_INITIALIZED;
    fake.questions++;
    *ret_n = 0;
    const problem q = problem_of(d, a, b, c, out);
    const bool refuse = fake.refuse == 1 || (fake.refuse == 2 && q.gelu());
    const cublasStatus_t s = refuse ? CUBLAS_STATUS_NOT_SUPPORTED : check(q);
    if (s == CUBLAS_STATUS_INVALID_VALUE) fake.wrong++;
    if (s != CUBLAS_STATUS_SUCCESS) return s;
    const size_t parts = 4 * (size_t)(out->rows * out->cols) * 3;
    const uint32_t how = p->reductions & (CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE |
                                          CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
    const bool split = q.k() > 64 && how && parts <= p->workspace;
    ret[0] = {};
    ret[0].algo.data[FOR] = hash_of(q);
    for (int i = 0; i < 4; i++)
        ret[0].algo.data[ALIGN] |= (uint64_t)std::min(p->align[i], 16u) << 16 * i;
    ret[0].algo.data[PIECES] = split ? 3 : 1;
    ret[0].algo.data[ALIGN_AUX] = alignment_of(d->aux);
    ret[0].algo.data[SCHEME] = how & CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE
                               ? CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE
                               : CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    ret[0].workspaceSize = split ? parts : 0;
    *ret_n = 1;
    return CUBLAS_STATUS_SUCCESS;
}

/* --- a product -------------------------------------------------------------------------------- */

static float load(cudaDataType_t t, const void *p, int64_t i)
{
    if (t == CUDA_R_32F) return ((const float *)p)[i];
    const uint16_t bits = ((const uint16_t *)p)[i];
    return t == CUDA_R_16F ? ag_f16_float(bits) : ag_bf16_float(bits);
}

static void store(cudaDataType_t t, void *p, int64_t i, float x)
{
    if (t == CUDA_R_32F) ((float *)p)[i] = x;
    else ((uint16_t *)p)[i] = t == CUDA_R_16F ? ag_f16_of(x) : ag_bf16_of(x);
}

static float rounded(cudaDataType_t t, float x)
{
    float buf;
    store(t, &buf, 0, x);
    return load(t, &buf, 0);
}

struct pointers { const void *a, *b, *c, *bias; void *d, *aux; float alpha, beta; };

/* The hardware's tanh may be off by 2^-11 of its value; n says to which side. */
static float gelu(float x, int64_t n)
{
    const float s = 0.7978845608f * (x + 0.044715f * x * x * x);
    const float t = tanhf(s) * (1 + (n % 2 ? -0x1p-11f : 0x1p-11f));
    return 0.5f * x * (1 + std::max(-1.0f, std::min(t, 1.0f)));
}

static float dot(const problem &p, const pointers &at, int64_t i, int64_t j, int64_t from,
                 int64_t to)
{
    float sum = 0;
    for (int64_t l = from; l < to; l++)
        sum += load(p.a.type, at.a, p.op_a == CUBLAS_OP_N ? i + l * p.a.ld : l + i * p.a.ld) *
               load(p.b.type, at.b, p.op_b == CUBLAS_OP_N ? l + j * p.b.ld : j + l * p.b.ld);
    return sum;
}

static void compute(const problem &p, const pointers &at, const cublasLtMatmulAlgo_t &algo)
{
    const int64_t pieces = (int64_t)algo.data[PIECES], k = p.k();
    const bool narrow = algo.data[SCHEME] == CUBLASLT_REDUCTION_SCHEME_OUTPUT_TYPE && pieces > 1;
    for (int64_t j = 0; j < p.d.cols; j++)
        for (int64_t i = 0; i < p.d.rows; i++) {
            float x = 0;
            for (int64_t s = 0; s < pieces; s++) {
                const float part = dot(p, at, i, j, k * s / pieces, k * (s + 1) / pieces);
                x += narrow ? rounded(p.d.type, part) : part;
            }
            x *= at.alpha;
            if (at.beta != 0) x += at.beta * load(p.c.type, at.c, i + j * p.c.ld);
            if (p.epilogue & CUBLASLT_EPILOGUE_BIAS) x += load(p.d.type, at.bias, i);
            if (p.gelu()) {
                store(p.d.type, at.aux, i + j * p.aux_ld, x);
                x = gelu(x, i + j);
            } else if (p.epilogue & CUBLASLT_EPILOGUE_RELU) {
                x = x > 0 ? x : 0;
            }
            store(p.d.type, at.d, i + j * p.d.ld, x);
        }
}

static bool aligned_as(const cublasLtMatmulAlgo_t &algo, const pointers &at)
{
    const void *const p[] = { at.a, at.b, at.c, at.d };
    for (int i = 0; i < 4; i++)
        if ((uintptr_t)p[i] % (algo.data[ALIGN] >> 16 * i & 0xffff)) return false;
    return true;
}

/* Is [p, p + the matrix) memory of the device? */
static bool is_there(const void *p, const cublasLtMatrixLayoutOpaque_t &l)
{
    const size_t n = (size_t)((l.cols - 1) * l.ld + l.rows) * size_of(l.type);
    return simt_is_device(p) && simt_is_device((const char *)p + n - 1);
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t d, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t la, const void *b,
                              cublasLtMatrixLayout_t lb, const void *beta, const void *c,
                              cublasLtMatrixLayout_t lc, void *out, cublasLtMatrixLayout_t lout,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t bytes,
                              cudaStream_t)
{
    if (!simt::call_works()) return CUBLAS_STATUS_EXECUTION_FAILED;
    const problem p = problem_of(d, la, lb, lc, lout);
    const pointers at = { a, b, c, d->bias, out, d->aux, *(const float *)alpha,
                          *(const float *)beta };
    const size_t needs = algo->data[PIECES] > 1 ? 12 * (size_t)(p.d.rows * p.d.cols) : 0;
    const bool bias = p.epilogue & CUBLASLT_EPILOGUE_BIAS;
    if (check(p) != CUBLAS_STATUS_SUCCESS || algo->data[FOR] != hash_of(p) || bytes < needs ||
        (c == out && lc->ld != lout->ld))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (!aligned_as(*algo, at) || !is_there(a, *la) || !is_there(b, *lb) || !is_there(c, *lc) ||
        !is_there(out, *lout) || (needs && !simt_is_device((char *)workspace + needs - 1)) ||
        (bias && ((uintptr_t)at.bias % 16 || !simt_is_device(at.bias))) ||
        (p.gelu() && (alignment_of(at.aux) < std::max<uint64_t>(algo->data[ALIGN_AUX], 16) ||
                      !is_there(at.aux, { p.d.type, p.d.rows, p.d.cols, p.aux_ld }))))
        return CUBLAS_STATUS_EXECUTION_FAILED;
    fake.products++;
    if (p.gelu()) fake.gelus++;
    const cublasLtMatmulAlgo_t how = *algo;
    simt::enqueue([=] {
        if (needs) memset(workspace, 0xff, needs);
        compute(p, at, how);
    });
    return CUBLAS_STATUS_SUCCESS;
}
