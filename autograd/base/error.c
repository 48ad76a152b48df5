#include "error.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

int ag_err_set(ag_err *err, int code, const char *fmt, ...)
{
    if (!err) return code;
    if (err->code) return err->code;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    return err->code = code;
}

int ag_err_prefix(ag_err *err, const char *fmt, ...)
{
    if (!err) return AG_EFAIL;
    char head[512], tail[sizeof err->msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(head, sizeof head, fmt, ap);
    va_end(ap);
    memcpy(tail, err->msg, sizeof tail);
    const size_t n = strlen(head);
    memcpy(err->msg, head, n);
    snprintf(err->msg + n, sizeof err->msg - n, "%.*s", (int)(sizeof tail - n - 1), tail);
    return err->code;
}

int ag_exit_status(int code)
{
    switch (code) {
    case AG_OK:        return 0;
    case AG_ECONFIG:   return 2;
    case AG_ENOMEM:    return 3;
    case AG_EINPUT:    return 4;
    case AG_EIO:       return 5;
    case AG_ELOCKED:   return 6;
    case AG_EDIVERGED: return 7;
    case AG_ESTOPPED:  return 75;
    case AG_EINTR:     return 130;
    default:           return 1;
    }
}
