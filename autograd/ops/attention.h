/* attention.h -- what the attention ops share: their checks, and the kernel's arguments. */
#ifndef AG_OPS_ATTENTION_H
#define AG_OPS_ATTENTION_H

#include "../op.h"
#include "../ops.h"

ag_attr      ag_attention_attr(const ag_attention_options *o);
ag_attention ag_attention_of(const ag_call *c);
size_t       ag_attention_saved(const ag_call *c);       /* lse [b,h,tq] */
bool         ag_attention_half(const ag_call *c, const ag_kernels *k);
int64_t      ag_attention_flops(const ag_call *c);
/* Shape rules: q, k, v as three inputs; all in one. */
int          ag_attend_shape(ag_call *c, ag_shape *out);
int          ag_attend_qkv_shape(ag_call *c, ag_shape *out);

#endif
