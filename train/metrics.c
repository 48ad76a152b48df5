#include "train/metrics.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

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

/* What reversible stacks did, if there are some. */
static const char *inverse(const train_session *s, char buf[128])
{
    const ag_inverse *v = &s->inverse;
    int n = 0;
    buf[0] = '\0';
    if (v->stacks && s->config.train.verify_reversible)
        n = snprintf(buf, 128, "\"rebuild_error\":%.3g,\"stream_scale\":%.4g,", v->error,
                     v->scale);
    if (v->stacks && v->headroom > 0)
        snprintf(buf + n, 128 - (size_t)n, "\"headroom\":%.4g,", v->headroom);
    return buf;
}

void train_metrics_step(const train_session *s, const train_step_metrics *m,
                        char ret_line[TRAIN_METRICS_MAX])
{
    char loss[32], norm[32], scaled[96], rebuilt[128];
    snprintf(ret_line, TRAIN_METRICS_MAX,
             "{\"step\":%" PRId64 ",\"loss\":%s,\"lr\":%.9g,\"grad_norm\":%s,%s%s\"samples\":%"
             PRId64 ",\"seconds\":%.3f,\"%s_per_second\":%.1f,\"memory\":%zu}", s->step,
             number(m->loss, loss), m->lr, number(m->norm, norm), scale(&s->scaler, scaled),
             inverse(s, rebuilt), s->samples_seen, m->seconds, m->unit, m->per_second, m->memory);
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

const char *train_eval_text(const train_session *s, const train_eval *e, char *buf, size_t size)
{
    const char *what = train_session_of_bytes(s) ? "byte" : "token";
    if (s->d_in)
        snprintf(buf, size, "loss %.4f, accuracy %.2f %%", e->loss, 100 * e->accuracy);
    else if (s->data && isfinite(s->data->entropy_rate))
        snprintf(buf, size, "loss %.4f (best possible %.4f), %.3f bits per %s", e->loss,
                 s->data->entropy_rate, e->loss / log(2), what);
    else
        snprintf(buf, size, "loss %.4f, perplexity %.2f, %.3f bits per %s", e->loss,
                 exp(e->loss), e->loss / log(2), what);
    const size_t used = strlen(buf);
    if (e->sequences)
        snprintf(buf + used, size - used, ", accuracy %.2f %%, of whole targets %.2f %%",
                 100 * e->accuracy, 100 * e->seq_accuracy);
    return buf;
}
