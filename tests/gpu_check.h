/* gpu_check.h -- a case of an op on a GPU, or on the CPU in its place, against the reference. */
#ifndef GPU_CHECK_H
#define GPU_CHECK_H

#include "op_check.h"

enum { GPU_FORMATS = 3 };
extern const op_format gpu_formats[GPU_FORMATS];         /* f32, bf16, f16 */

/* Opens the GPU and tells its name; false: there is none, and why is said. */
bool gpu_open(void);
/* c on t, a tape on the GPU in format f, must agree with `ref`, an f64 tape of the reference; run
 * again with the threads in another order it must give the same bits. */
void gpu_check_case(ag_tape *ref, ag_tape *t, const op_case *c, const op_format *f);

#endif
