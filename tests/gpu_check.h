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

typedef struct gpu_case { const ag_op *op; ag_sample s; } gpu_case;
/* One of them in format f; `index` makes its numbers. */
void gpu_check_one(const gpu_case *one, int index, const op_format *f);
/* Those that gpu_takes. */
void gpu_check_cases(int n, const gpu_case *cases, const op_format *f);

/* n numbers of the format in device memory, there and back; gpu_drop gives the memory back. */
void *gpu_upload(const op_format *f, int64_t n, const double *x);
void gpu_download(const op_format *f, int64_t n, const void *p, double *x);
void gpu_drop(const op_format *f, int64_t n, void *p);

#endif
