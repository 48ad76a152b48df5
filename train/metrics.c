#include "train/metrics.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>

static const char *number(double x, char buf[32])
{
    snprintf(buf, 32, isfinite(x) ? "%.9g" : "null", x);
    return buf;
}

static const char *scale(const opt_scaler *s, char buf[96])
{
    buf[0] = '\0';
    if (s->type != OPT_SCALING_NONE)
        snprintf(buf, 96, "\"loss_scale\":%.9g,\"skipped\":%" PRId64 ",", s->scale, s->skipped);
    return buf;
}

void train_metrics_step(const train_session *s, const train_step_metrics *m,
                        char ret_line[TRAIN_METRICS_MAX])
{
    char loss[32], norm[32], scaled[96];
    snprintf(ret_line, TRAIN_METRICS_MAX,
             "{\"step\":%" PRId64 ",\"loss\":%s,\"lr\":%.9g,\"grad_norm\":%s,%s\"samples\":%" PRId64
             ",\"seconds\":%.3f,\"%s_per_second\":%.1f,\"memory\":%zu}", s->step,
             number(m->loss, loss), m->lr, number(m->norm, norm), scale(&s->scaler, scaled),
             s->samples_seen, m->seconds, m->unit, m->per_second, m->memory);
}

const char *train_bits_json(const train_session *s, const char *prefix, double loss, char buf[64])
{
    buf[0] = '\0';
    if (!s->d_in)
        snprintf(buf, 64, "\"%sbits_per_%s\":%.9g,", prefix,
                 train_session_of_bytes(s) ? "byte" : "token", loss / M_LN2);
    return buf;
}

const char *train_seq_json(const train_eval *e, const char *prefix, char buf[64])
{
    buf[0] = '\0';
    if (e->sequences) snprintf(buf, 64, "\"%sseq_accuracy\":%.9g,", prefix, e->seq_accuracy);
    return buf;
}
