/*
 * table.cu -- the tables of the GPU, one for each number type, put together from what the kernel
 * families have.
 *
 * In the f32 table a kernel that nobody has is one that keeps an error, so that an op which wants
 * it is refused with its name.  In a 16-bit table it is NULL: such an op runs on the f32 table
 * (convert.h).
 */
#include "cuda.h"
#include "launch.cuh"
#include "number.cuh"

bool ag_cuda_is_open(void);
const ag_device *ag_cuda_device(void);

static ag_kernels tables[AG_F16 + 1];

#define MISSING(kernel)                                                                 \
    if (!k->kernel)                                                                     \
        k->kernel = [](auto...) {                                                       \
            ag_cuda_fail("the GPU has no kernel " #kernel " yet; train.device=cpu has");  \
        }

static void fill_holes(ag_kernels *k)
{
    MISSING(gemm); MISSING(act_bwd); MISSING(fill); MISSING(add); MISSING(fixed_add);
    MISSING(fixed_read); MISSING(scale); MISSING(add_scalar); MISSING(sum); MISSING(row_sum);
    MISSING(row_add); MISSING(layernorm_fwd); MISSING(layernorm_bwd); MISSING(softmax_fwd);
    MISSING(softmax_bwd); MISSING(embedding_fwd); MISSING(embedding_bwd); MISSING(copy_rows);
    MISSING(outer_fwd); MISSING(outer_bwd); MISSING(gather_fwd); MISSING(gather_bwd);
    MISSING(pick_fwd); MISSING(pick_bwd); MISSING(argmax); MISSING(dropout_fwd);
    MISSING(dropout_bwd); MISSING(sru_fwd); MISSING(sru_bwd); MISSING(normal); MISSING(lsh_hash);
    MISSING(lsh_fwd); MISSING(lsh_bwd); MISSING(lsh_decode); MISSING(attention_fwd);
    MISSING(attention_bwd); MISSING(xent_fwd); MISSING(xent_bwd); MISSING(controller_fwd);
    MISSING(controller_bwd); MISSING(choose_fwd); MISSING(choose_bwd); MISSING(live_dot);
    MISSING(live_sum); MISSING(live_grad); MISSING(gate_fwd); MISSING(gate_bwd);
}

template <class T> static void table_make(ag_dtype dtype)
{
    ag_kernels *k = &tables[dtype];
    *k = ag_kernels();
    k->name = "cuda";
    k->dtype = dtype;
    k->device = ag_cuda_device();
    map_table<T>(k);
    copy_table<T>(k);
    noise_table<T>(k);
    rows_table<T>(k);
    norm_table<T>(k);
    draw_table<T>(k);
    embedding_table<T>(k);
    gemm_table<T>(k);
    attention_table<T>(k);
    controller_table<T>(k);
    choose_table<T>(k);
    live_table<T>(k);
    if (dtype == AG_F32) {
        scan_table(k);
        lsh_table(k);
        fill_holes(k);
    } else {
        k->wide = &tables[AG_F32];
    }
}

extern "C" const ag_kernels *ag_kernels_cuda(ag_dtype dtype)
{
    if (!ag_cuda_is_open() || (dtype != AG_F32 && dtype != AG_BF16 && dtype != AG_F16)) return NULL;
    if (!tables[AG_F32].name) {
        table_make<float>(AG_F32);
        table_make<bf16>(AG_BF16);
        table_make<f16>(AG_F16);
    }
    return &tables[dtype];
}
