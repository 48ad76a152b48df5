/* cublaslt.h -- what tests ask of the library that stands in for cuBLASLt. */
#ifndef TESTS_SIMT_CUBLASLT_H
#define TESTS_SIMT_CUBLASLT_H

#ifdef __cplusplus
extern "C" {
#endif

/* A function, or the library's file ("libcublasLt.so.13"), that is not there; NULL: all are. */
void simt_cublaslt_hide(const char *name);
/* From now on it knows no algorithm for anything (1), for GELU (2), or does again (0). */
void simt_cublaslt_refuse(int refuse);
/* So far: questions for an algorithm, those that break the library's rules, products, those with
 * GELU. */
long simt_cublaslt_questions(void);
long simt_cublaslt_wrong(void);
long simt_cublaslt_products(void);
long simt_cublaslt_gelus(void);
long simt_cublaslt_objects(void);    /* that are not given back */

#ifdef __cplusplus
}
#endif
#endif
