/*
 * cublas.cu -- the library, and a plan for each shape of product.
 *
 * The library is column-major: what is asked of it is c^T = op(b)^T op(a)^T, whose matrices are the
 * same bytes; so its first matrix is b.  Choosing an algorithm takes as long as a small product, so
 * the choice is kept: steps repeat their shapes.  The choice depends on the shape and on how the
 * pointers are aligned, and sums are f32 to the end, also where the library cuts them into pieces:
 * hence the same bits in each run.
 *
 * A product that the library refuses runs slowly elsewhere.  The first is told on stderr, all are
 * counted.
 */
#include "cublas.h"
#include "cuda.h"
#include "launch.cuh"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PLANS = 1024 };               /* a power of two; all go when three quarters are taken */
static const size_t MOST_WORKSPACE = (size_t)32 << 20, LEAST_WORKSPACE = (size_t)64 << 10;

#define FUNCTIONS(X)                                                                    \
    X(Create) X(Destroy) X(GetStatusName) X(MatmulDescCreate) X(MatmulDescDestroy)      \
    X(MatmulDescSetAttribute) X(MatrixLayoutCreate) X(MatrixLayoutDestroy)              \
    X(MatmulPreferenceCreate) X(MatmulPreferenceDestroy)                                \
    X(MatmulPreferenceSetAttribute) X(MatmulAlgoGetHeuristic) X(Matmul)

/* No padding: keys are compared as bytes. */
typedef struct plan_key {
    int64_t m, n, k, lda, ldb, ldc;
    int32_t type, c_type;
    int32_t form;                    /* bits: ta, tb, relu, bias, add; then how gelu is aligned */
    int32_t align_a, align_b, align_add, align_c;        /* bytes, at most 256 */
    int32_t used;                    /* 1; 0: a free place */
} plan_key;

typedef struct plan {
    plan_key key;
    bool works;                      /* the library has an algorithm */
    cublasStatus_t why;              /* it has none */
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, c;  /* a: of the library's first matrix, our b */
    cublasLtMatmulAlgo_t algo;
    size_t workspace;
} plan;

static struct {
#define X(name) decltype(&cublasLt##name) name;
    FUNCTIONS(X)
#undef X
    void *file;
    cublasLtHandle_t handle;
    plan  plans[PLANS];
    int   n_plans;
    long  refused;                   /* products, since the program began */
} lt;

static bool ok(cublasStatus_t s, const char *what)
{
    if (s == CUBLAS_STATUS_SUCCESS) return true;
    cudaGetLastError();              /* the library may have left one there */
    ag_cuda_fail("cuBLASLt: %s: %s", what, lt.GetStatusName(s));
    return false;
}

/* --- finding it ------------------------------------------------------------------------------- */

/* The folder of the program with a slash, or "" if that is not known. */
static void program_folder(char *buf, size_t size)
{
    const ssize_t n = readlink("/proc/self/exe", buf, size - 1);
    buf[n > 0 ? n : 0] = '\0';
    char *slash = strrchr(buf, '/');
    if (slash) slash[1] = '\0';
    else buf[0] = '\0';
}

static void *find_library(void)
{
    static const char *const names[] = { "libcublasLt.so.13", "libcublasLt.so.12",
                                         "libcublasLt.so" };
    const char *given = getenv("TULLE_CUBLASLT");
    if (given && *given) {
        void *found = library_open(given);
        if (!found) ag_cuda_fail("TULLE_CUBLASLT = %s: that library cannot be loaded", given);
        return found;
    }
    char program[4096], path[sizeof program + 64];
    program_folder(program, sizeof program);
    const struct { const char *base, *below; } folders[] = {
        { program, "../lib/" }, { program, "" },
        { "", "" },                  /* where systems look */
        { "/usr/local/cuda/lib64/", "" },
    };
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
            if (folders[i].base == program && !program[0]) continue;
            snprintf(path, sizeof path, "%s%s%s", folders[i].base, folders[i].below, names[k]);
            void *found = library_open(path);
            if (found) return found;
        }
    ag_cuda_fail("cuBLASLt is missing: neither libcublasLt.so.13 nor libcublasLt.so.12 is beside "
                 "the program, where the system looks or in /usr/local/cuda/lib64; TULLE_CUBLASLT "
                 "may name the file");
    return NULL;
}

static bool find_functions(void)
{
    const char *missing = NULL;
#define X(name)                                                                         \
    lt.name = (decltype(lt.name))library_symbol(lt.file, "cublasLt" #name);          \
    if (!lt.name) missing = "cublasLt" #name;
    FUNCTIONS(X)
#undef X
    if (missing) ag_cuda_fail("cuBLASLt has no function %s: another version?", missing);
    return !missing;
}

static bool open_library(void)
{
    if (lt.handle) return true;
    lt.file = find_library();
    if (lt.file && find_functions() && ok(lt.Create(&lt.handle), "cublasLtCreate")) return true;
    if (lt.file) library_close(lt.file);
    lt.file = NULL;
    lt.handle = NULL;
    return false;
}

/* --- plans ------------------------------------------------------------------------------------ */

static void plan_release(plan *p)
{
    if (p->desc) lt.MatmulDescDestroy(p->desc);
    if (p->a) lt.MatrixLayoutDestroy(p->a);
    if (p->b) lt.MatrixLayoutDestroy(p->b);
    if (p->c) lt.MatrixLayoutDestroy(p->c);
    *p = plan();
}

static void forget_plans(void)
{
    for (int i = 0; i < PLANS; i++) plan_release(&lt.plans[i]);
    lt.n_plans = 0;
}

void ag_cublas_close(void)
{
    forget_plans();
    if (lt.handle) lt.Destroy(lt.handle);
    if (lt.file) library_close(lt.file);
    lt.handle = NULL;
    lt.file = NULL;
}

static int32_t alignment(const void *p)
{
    int32_t bytes = 256;
    while ((uintptr_t)p % (unsigned)bytes) bytes /= 2;
    return bytes;
}

static plan_key key_of(const ag_product *p)
{
    plan_key k;
    memset(&k, 0, sizeof k);
    k.m = p->m, k.n = p->n, k.k = p->k, k.lda = p->lda, k.ldb = p->ldb, k.ldc = p->ldc;
    k.type = p->type;
    k.c_type = p->c_type;
    k.form = p->ta | p->tb << 1 | p->relu << 2 | (p->bias != NULL) << 3 | (p->add != NULL) << 4;
    if (p->gelu) k.form |= alignment(p->gelu) << 8;
    k.align_a = alignment(p->a);
    k.align_b = alignment(p->b);
    k.align_add = alignment(p->add ? p->add : p->c);
    k.align_c = alignment(p->c);
    k.used = 1;
    return k;
}

static unsigned hash_of(const plan_key *k)
{
    const unsigned char *at = (const unsigned char *)k;
    uint64_t h = 14695981039346656037u;                  /* FNV-1a */
    for (size_t i = 0; i < sizeof *k; i++) h = (h ^ at[i]) * 1099511628211u;
    return (unsigned)(h >> 32);
}

template <class V>
static bool set(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t a, V value)
{
    return ok(lt.MatmulDescSetAttribute(d, a, &value, sizeof value), "attribute of a product");
}

template <class V>
static bool prefer(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t a, V value)
{
    return ok(lt.MatmulPreferenceSetAttribute(p, a, &value, sizeof value), "preference");
}

static bool describe(plan *l, const ag_product *p)
{
    const int epilogue = (p->relu ? CUBLASLT_EPILOGUE_RELU : 0) |
                         (p->gelu ? CUBLASLT_EPILOGUE_GELU_AUX : 0) |
                         (p->bias ? CUBLASLT_EPILOGUE_BIAS : 0);
    return ok(lt.MatmulDescCreate(&l->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "a product") &&
           set(l->desc, CUBLASLT_MATMUL_DESC_TRANSA, p->tb ? CUBLAS_OP_T : CUBLAS_OP_N) &&
           set(l->desc, CUBLASLT_MATMUL_DESC_TRANSB, p->ta ? CUBLAS_OP_T : CUBLAS_OP_N) &&
           set(l->desc, CUBLASLT_MATMUL_DESC_EPILOGUE,
               epilogue ? (cublasLtEpilogue_t)epilogue : CUBLASLT_EPILOGUE_DEFAULT) &&
           (!p->bias || set(l->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p->bias)) &&
           (!p->gelu || (set(l->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p->gelu) &&
                         set(l->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, p->ldc))) &&
           ok(lt.MatrixLayoutCreate(&l->a, p->type, (uint64_t)(p->tb ? p->k : p->n),
                                    (uint64_t)(p->tb ? p->n : p->k), p->ldb), "layout of b") &&
           ok(lt.MatrixLayoutCreate(&l->b, p->type, (uint64_t)(p->ta ? p->m : p->k),
                                    (uint64_t)(p->ta ? p->k : p->m), p->lda), "layout of a") &&
           ok(lt.MatrixLayoutCreate(&l->c, p->c_type, (uint64_t)p->n, (uint64_t)p->m, p->ldc),
              "layout of c");
}

/* Asks for the best algorithm; l->works says whether there is one.  False: an error is kept. */
static bool choose(plan *l)
{
    cublasLtMatmulPreference_t q = NULL;
    cublasLtMatmulHeuristicResult_t best = {};
    int found = 0;
    bool good =
        ok(lt.MatmulPreferenceCreate(&q), "preferences") &&
        prefer(q, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, (uint64_t)MOST_WORKSPACE) &&
        prefer(q, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
               (uint32_t)CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE) &&
        prefer(q, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, (uint32_t)l->key.align_b) &&
        prefer(q, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, (uint32_t)l->key.align_a) &&
        prefer(q, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, (uint32_t)l->key.align_add) &&
        prefer(q, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, (uint32_t)l->key.align_c);
    if (good) {
        const cublasStatus_t s = lt.MatmulAlgoGetHeuristic(lt.handle, l->desc, l->a, l->b, l->c,
                                                           l->c, q, 1, &best, &found);
        good = s == CUBLAS_STATUS_NOT_SUPPORTED || s == CUBLAS_STATUS_INVALID_VALUE ||
               ok(s, "cublasLtMatmulAlgoGetHeuristic");
        l->why = s != CUBLAS_STATUS_SUCCESS ? s
               : found > 0 ? best.state : CUBLAS_STATUS_NOT_SUPPORTED;
        l->works = l->why == CUBLAS_STATUS_SUCCESS;
        l->algo = best.algo;
        l->workspace = best.workspaceSize;
    }
    if (q) lt.MatmulPreferenceDestroy(q);
    return good;
}

/* NULL: an error is kept. */
static plan *plan_of(const ag_product *p)
{
    const plan_key key = key_of(p);
    if (lt.n_plans > PLANS / 4 * 3) forget_plans();
    unsigned at = hash_of(&key) % PLANS;
    while (lt.plans[at].key.used && memcmp(&lt.plans[at].key, &key, sizeof key))
        at = (at + 1) % PLANS;
    plan *l = &lt.plans[at];
    if (l->key.used) return l;
    l->key = key;
    if (describe(l, p) && choose(l)) {
        lt.n_plans++;
        return l;
    }
    plan_release(l);
    return NULL;
}

/* In powers of two, so that it seldom grows. */
static void *workspace_of(const plan *l)
{
    size_t bytes = LEAST_WORKSPACE;
    while (bytes < l->workspace) bytes *= 2;
    return ag_cuda_workspace(bytes);
}

static const char *type_name(cudaDataType_t t)
{
    return t == CUDA_R_32F ? "fp32" : t == CUDA_R_16F ? "fp16" : "bf16";
}

/* Counts a product that the library does not do, and tells of the first. */
static bool refuse(const plan *l, const ag_product *p)
{
    if (!p->gelu && lt.refused++ == 0)
        fprintf(stderr, "tulle: warning: cuBLASLt does not do [%lld,%lld]%s @ [%lld,%lld]%s, %s "
                "into %s (%s): this product, and others like it, run on a slow kernel\n",
                (long long)(p->ta ? p->k : p->m), (long long)(p->ta ? p->m : p->k),
                p->ta ? "^T" : "", (long long)(p->tb ? p->n : p->k),
                (long long)(p->tb ? p->k : p->n), p->tb ? "^T" : "", type_name(p->type),
                type_name(p->c_type), lt.GetStatusName(l->why));
    return false;
}

extern "C" long ag_cuda_refused_products(void) { return lt.refused; }

bool ag_cublas_product(const ag_product *p)
{
    const float one = 1, beta = p->add ? 1 : 0;
    plan *l = open_library() ? plan_of(p) : NULL;
    if (!l) return true;             /* with an error */
    if (!l->works) return refuse(l, p);
    void *workspace = l->workspace ? workspace_of(l) : NULL;
    if (l->workspace && !workspace) return true;
    if (p->bias && !set(l->desc, CUBLASLT_MATMUL_DESC_BIAS_POINTER, p->bias)) return true;
    if (p->gelu && !set(l->desc, CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, p->gelu)) return true;
    const cublasStatus_t s =
        lt.Matmul(lt.handle, l->desc, &one, p->b, l->a, p->a, l->b, &beta, p->add ? p->add : p->c,
                  l->c, p->c, l->c, &l->algo, workspace, l->workspace, ag_cuda_stream());
    if (s == CUBLAS_STATUS_NOT_SUPPORTED) {
        l->works = false;
        l->why = s;
        return refuse(l, p);
    }
    if (ok(s, "cublasLtMatmul")) ag_cuda_launched("cublasLtMatmul");
    return true;
}
