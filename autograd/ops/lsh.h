/* lsh.h -- what the ops of attention by hashing share. */
#ifndef AG_OPS_LSH_H
#define AG_OPS_LSH_H

#include "../op.h"

/* Are the options such that they can be obeyed?  AG_ERANGE. */
int ag_lsh_check(const ag_call *c);
/* The call's options, and t positions of b sequences; no data. */
ag_lsh ag_lsh_setup(const ag_call *c, int64_t b, int64_t t);
/* The noise of rotations that are the same in each step and sequence, by head. */
ag_noise ag_lsh_fixed_noise(const ag_lsh_options *o);

#endif
