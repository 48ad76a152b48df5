/* cublaslt.h -- what tests ask of the library that stands in for cuBLASLt. */
#ifndef TESTS_SIMT_CUBLASLT_H
#define TESTS_SIMT_CUBLASLT_H

#ifdef __cplusplus
extern "C" {
#endif

/* A function, or the library's file ("libcublasLt.so.13"), that is not there; NULL: all are. */
void simt_cublaslt_hide(const char *name);
/* From now on it knows no algorithm for anything, or does again. */
void simt_cublaslt_refuse(int refuse);
/* So far: questions for an algorithm, products. */
long simt_cublaslt_questions(void);
long simt_cublaslt_products(void);
long simt_cublaslt_objects(void);    /* that are not given back */

#ifdef __cplusplus
}
#endif
#endif
