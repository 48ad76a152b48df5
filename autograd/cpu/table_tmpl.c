/*
 * table_tmpl.c -- the f32 table of one instruction set, ag_kernels_<isa>_f32; the kernels are in
 * gemm_tmpl.c, attention_tmpl.c, map_tmpl.c, rows_tmpl.c, modules_tmpl.c, scan_tmpl.c, lsh_tmpl.c,
 * lsh_grad_tmpl.c, lsh_hash_tmpl.c, live_tmpl.c and choose_tmpl.c, compiled with the same -DAG_ISA.
 */
#include "autograd/cpu/fast.h"

#define TEXT2(x) #x
#define TEXT(x) TEXT2(x)
#define TABLE AG_PASTE(ag_kernels_, AG_ISA, _f32)
#define K(f) .f = AG_NAME(f)

extern const ag_kernels TABLE;

const ag_kernels TABLE = {
    .name = TEXT(AG_ISA), .dtype = AG_F32,
#define AG_UNARY(name, ...) .unary_fwd[AG_UNARY_##name] = AG_NAME(unary_fwd_##name), \
                            .unary_bwd[AG_UNARY_##name] = AG_NAME(unary_bwd_##name),
#include "autograd/unary.def"
#undef AG_UNARY
#define AG_BINARY(name, ...) .binary_fwd[AG_BINARY_##name] = AG_NAME(binary_fwd_##name), \
                             .binary_bwd[AG_BINARY_##name] = AG_NAME(binary_bwd_##name),
#include "autograd/binary.def"
#undef AG_BINARY
    K(gemm), K(act_bwd), K(fill), K(fixed_add), K(fixed_read),
    K(add), K(scale), K(add_scalar), K(sum), K(row_sum), K(row_add),
    K(layernorm_fwd), K(layernorm_bwd), K(softmax_fwd), K(softmax_bwd),
    K(embedding_fwd), K(embedding_bwd), K(gather_fwd), K(gather_bwd), K(pick_fwd), K(pick_bwd),
    K(copy_rows), K(outer_fwd), K(outer_bwd),
    K(argmax), K(dropout_fwd), K(dropout_bwd), K(attention_fwd), K(attention_bwd),
    K(sru_fwd), K(sru_bwd), K(normal), K(lsh_hash), K(lsh_fwd), K(lsh_bwd), K(lsh_decode),
    K(xent_fwd), K(xent_bwd), K(controller_fwd), K(controller_bwd),
    K(choose_fwd), K(choose_bwd), K(live_dot), K(live_sum), K(live_grad), K(gate_fwd), K(gate_bwd),
};
