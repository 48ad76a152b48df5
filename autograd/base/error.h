/*
 * error.h -- what went wrong, in words, and the code that main() turns into an exit status.
 *
 * A function that can fail returns 0 or a negative code and, where it has something to say, fills
 * the ag_err that the caller passed last.  Results come back through `ret_*` parameters, which are
 * untouched on failure.  Nothing below train/main.c prints or exits.
 */
#ifndef AG_BASE_ERROR_H
#define AG_BASE_ERROR_H

enum {
    AG_OK        = 0,
    AG_EFAIL     = -1,    /* anything else                              exit 1   */
    AG_ECONFIG   = -2,    /* usage, config                              exit 2   */
    AG_ENOMEM    = -3,    /* out of memory                              exit 3   */
    AG_EINPUT    = -4,    /* damaged or unsuitable input file           exit 4   */
    AG_EIO       = -5,    /* the system refused to read or write        exit 5   */
    AG_ELOCKED   = -6,    /* the run directory is in use                exit 6   */
    AG_EDIVERGED = -7,    /* loss or gradient not finite                exit 7   */
    AG_ESHAPE    = -8,    /* an op's inputs do not fit (a bug of the caller)     */
    AG_EGRAD     = -9,    /* a gradient was asked of an op that has none         */
    AG_ERANGE    = -10,   /* an index outside its table                          */
    AG_ESTOPPED  = -75,   /* stopped by SIGTERM, saved, resumable       exit 75  */
    AG_EINTR     = -130,  /* interrupted by the user                    exit 130 */
};

typedef struct ag_err {
    int  code;                       /* 0 while all is well */
    char msg[2048];                  /* one or more lines, no newline at the end */
} ag_err;

#ifdef __cplusplus
extern "C" {
#endif

/* Keeps the first error: a second call changes nothing.  Returns the code it keeps.  err may be
 * NULL, then only the code is returned. */
int ag_err_set(ag_err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts words in front of the message that err holds: "config 'a.yaml': ...".  Returns err->code. */
int ag_err_prefix(ag_err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* The exit status of a code: AG_OK 0, AG_ECONFIG 2, ... */
int ag_exit_status(int code);

#ifdef __cplusplus
}
#endif
#endif
