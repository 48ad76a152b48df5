/*
 * status.h -- what a run shows while it goes: one line that is redrawn on a terminal, plain lines
 * elsewhere.
 */
#ifndef TRAIN_STATUS_H
#define TRAIN_STATUS_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct train_status {
    FILE   *out;                     /* NULL: say nothing (--quiet) */
    bool    tty, drawn;              /* a status line stands on the terminal now */
    double  began, last_drawn;       /* seconds */
    int64_t first_step, steps;       /* of the run: where this process began, where it ends */
    const char *unit;                /* "tokens" or "images" */
} train_status;

typedef struct train_progress {
    int64_t step;
    double  loss, lr, val_loss;      /* val_loss NaN: not known yet */
    int64_t skipped;                 /* steps, as the gradient of the scaled loss was not finite */
    double  per_second;              /* tokens or images */
    size_t  memory;                  /* bytes of the process, resident */
    bool    bytes;                   /* losses are those of bytes: show bits per byte too */
} train_progress;

void train_status_init(train_status *s, FILE *out, int64_t first_step, int64_t steps,
                       const char *unit);
/* Redraws the line at most ten times a second, cut to the terminal's width; the last one stays.
 * Off a terminal it writes a line if `log` is set. */
void train_status_step(train_status *s, const train_progress *p, bool log);
/* A line that stays. */
void train_status_line(train_status *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
/* On a terminal, a line that the next one replaces: of a transfer that goes on. */
void train_status_brief(train_status *s, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));
void train_status_end(train_status *s);

size_t train_resident_bytes(void);   /* of this process now; 0 if unknown */
size_t train_peak_bytes(void);       /* most it has been, since train_peak_forget */
void   train_peak_forget(void);      /* as far as the system lets it */

#endif
