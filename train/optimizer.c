#include "train/optimizer.h"

#include <stdlib.h>
#include <string.h>

static opt_config config_of(const train_config *c)
{
    static const opt_type types[] = { [TRAIN_OPTIM_ADAMW] = OPT_ADAMW,
                                      [TRAIN_OPTIM_ADAM] = OPT_ADAM, [TRAIN_OPTIM_SGD] = OPT_SGD,
                                      [TRAIN_OPTIM_ADAFACTOR] = OPT_ADAFACTOR };
    return (opt_config){ .type = types[c->optim.type], .beta1 = c->optim.beta1,
                         .beta2 = c->optim.beta2, .eps = c->optim.eps,
                         .momentum = c->optim.momentum, .nesterov = c->optim.nesterov,
                         .weight_decay = c->optim.weight_decay, .clip_norm = c->optim.clip_norm,
                         .ema_decay = c->optim.ema_decay, .decay_rate = c->optim.decay_rate,
                         .clip_threshold = c->optim.clip_threshold, .eps1 = c->optim.eps1,
                         .eps2 = c->optim.eps2, .parameter_scale = c->optim.parameter_scale,
                         .weight_decay_steps = c->optim.weight_decay_steps,
                         .update_momentum = c->optim.update_momentum };
}

static opt_schedule schedule_of(const train_config *c)
{
    static const opt_shape shapes[] = { [TRAIN_SCHEDULE_COSINE] = OPT_COSINE,
                                        [TRAIN_SCHEDULE_LINEAR] = OPT_LINEAR,
                                        [TRAIN_SCHEDULE_INVERSE_SQRT] = OPT_INVERSE_SQRT,
                                        [TRAIN_SCHEDULE_RSQRT] = OPT_RSQRT,
                                        [TRAIN_SCHEDULE_CONSTANT] = OPT_CONSTANT };
    return (opt_schedule){ .shape = shapes[c->schedule.type], .lr = c->optim.lr,
                           .min_lr = c->schedule.min_lr, .warmup_steps = c->schedule.warmup_steps,
                           .decay_steps = c->schedule.decay_steps ? c->schedule.decay_steps
                                                                  : c->train.steps };
}

static opt_scaler scaler_of(const train_config *c)
{
    static const opt_scaling types[] = { [TRAIN_LOSS_SCALE_AUTO] = OPT_SCALING_NONE,
                                         [TRAIN_LOSS_SCALE_NONE] = OPT_SCALING_NONE,
                                         [TRAIN_LOSS_SCALE_STATIC] = OPT_SCALING_STATIC,
                                         [TRAIN_LOSS_SCALE_DYNAMIC] = OPT_SCALING_DYNAMIC,
                                         [TRAIN_LOSS_SCALE_SMOOTH] = OPT_SCALING_SMOOTH };
    const bool fp16 = c->train.precision == TRAIN_PRECISION_FP16;
    const opt_scaling type = c->train.loss_scale == TRAIN_LOSS_SCALE_AUTO && fp16
                                 ? OPT_SCALING_DYNAMIC : types[c->train.loss_scale];
    return (opt_scaler){
        .type = type, .growth = c->train.loss_scale_growth,
        .backoff = c->train.loss_scale_backoff,
        .growth_interval = c->train.loss_scale_growth_interval,
        .floor = train_config_loss_scale_floor(c),
        .scale = type == OPT_SCALING_NONE ? 1 : (double)(float)c->train.loss_scale_init,
    };
}

/* Adafactor's weight decay takes all weights, as trax does; that of the others, matrices. */
static opt_range range_of(const nn_item *p, opt_type type)
{
    const ag_shape *s = &p->tensor->shape;
    opt_range r = { .offset = p->offset, .count = p->count,
                    .decay = p->decay || type == OPT_ADAFACTOR };
    if (s->ndim >= 2) {
        r.rows = s->dim[s->ndim - 2];
        r.cols = s->dim[s->ndim - 1];
    }
    return r;
}

int train_optimizer_new(train_session *s, bool plan, ag_err *err)
{
    const nn_params *p = s->model->params;
    const opt_config o = config_of(&s->config);
    s->schedule = schedule_of(&s->config);
    s->scaler = scaler_of(&s->config);
    int r = opt_schedule_check(&s->schedule, err);
    if (r == AG_OK) r = opt_scaler_check(&s->scaler, err);
    if (r < 0) return r;
    opt_range *ranges = malloc((size_t)p->n_items * sizeof *ranges);
    if (!ranges) return ag_err_set(err, AG_ENOMEM, "out of memory for the optimizer");
    for (int i = 0; i < p->n_items; i++) ranges[i] = range_of(&p->items[i], o.type);
    r = opt_new(&o, s->device, p->n, ranges, p->n_items, &s->opt, err);
    free(ranges);
    if (r == AG_OK && s->opt->ema && !plan)      /* as if after a step that changed nothing */
        ag_device_copy(s->device, s->opt->ema, p->weights, (size_t)p->n * sizeof(float));
    return r;
}
