#include "train/describe.h"

#include "train/environment.h"
#include "train/tapes.h"

#include <math.h>

void train_describe(const train_session *s, const char *dir, train_status *status)
{
    const nn_cost *k = &s->model->cost;
    const char *each = s->d_in ? "image" : "token";
    char plan[512];
    if (s->data) train_status_line(status, "data    %s", s->data->about);
    train_status_line(status, "model   %s, %lld parameters; %lld are read per %s",
                      s->model->kind, (long long)k->params, (long long)k->touched, each);
    train_status_line(status, "        feed-forward %lld, %lld read, d_ff %lld; "
                      "attention %lld, output %lld", (long long)k->ff_params,
                      (long long)k->ff_touched, (long long)k->d_ff,
                      (long long)k->attention_params, (long long)k->head_params);
    train_status_line(status, "run     %s, %s, %s kernels, %d threads, batch %lld in parts of "
                      "%lld", dir, train_choice_word(s->config.train.precision),
                      ag_tape_kernels(s->tape)->name, train_threads(),
                      (long long)s->config.train.batch, (long long)s->config.train.micro_batch);
    if (s->device) train_status_line(status, "        %s", train_device_text(s, plan, 512));
    if (s->model->recompute)
        train_status_line(status, "        recompute %s: %s",
                          train_choice_word(s->config.train.recompute),
                          nn_recompute_text(s->model->recompute, plan, sizeof plan));
    if (s->scaler.type != OPT_SCALING_NONE)
        train_status_line(status, "        loss scale %g, %s; a step whose gradient overflows "
                          "is skipped", s->scaler.scale,
                          train_choice_word(s->config.train.loss_scale));
    if (s->opt->ema)
        train_status_line(status, "        evaluated and sampled with the average of the "
                          "weights, optim.ema_decay = %g", s->config.optim.ema_decay);
    if (s->data && isfinite(s->data->entropy_rate))
        train_status_line(status, "        entropy rate of the source: %.4f nats per token, "
                          "the best loss there is", s->data->entropy_rate);
}
