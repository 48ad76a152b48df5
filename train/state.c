#include "train/state.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const opt_names[] = { [OPT_ADAMW] = "adamw", [OPT_ADAM] = "adam",
                                         [OPT_SGD] = "sgd", [OPT_ADAFACTOR] = "adafactor" };
_Static_assert(sizeof opt_names / sizeof *opt_names == OPT_N_TYPES, "a name for each optimizer");

enum { GROUP_MAX = 64 };
static const char SCALER[] = "train/scaler";

/* "optimizer/adamw/m" */
static void slot_group(char buf[GROUP_MAX], opt_type type, const char *slot)
{
    snprintf(buf, GROUP_MAX, "optimizer/%s%s%s", opt_names[type], slot[0] ? "/" : "", slot);
}

/* --- to a checkpoint -------------------------------------------------------------------------- */

static train_ckpt_tensor tensor_of(const nn_item *p, const char *group, const float *flat)
{
    train_ckpt_tensor t = { .group = group, .name = p->name, .ndim = p->tensor->shape.ndim,
                            .data = flat ? flat + p->offset : NULL };
    for (int i = 0; i < t.ndim; i++) t.dim[i] = p->tensor->shape.dim[i];
    return t;
}

/* What slot k, whose numbers are `data`, has of parameter i, in *ret_t: false if nothing. */
static bool slot_tensor(const train_session *s, int k, const float *data, int i, const char *group,
                        train_ckpt_tensor *ret_t)
{
    const opt_slot *slot = &s->opt->slot[k];
    int64_t at;
    if (!opt_slot_span(s->opt, k, i, &at)) return false;
    train_ckpt_tensor t = tensor_of(&s->model->params->items[i], group, NULL);
    t.data = data + at;
    if (slot->extent == OPT_OF_COLS) t.dim[t.ndim - 2] = t.dim[t.ndim - 1];
    if (slot->extent == OPT_OF_COLS || slot->extent == OPT_OF_ROWS) t.ndim--;
    *ret_t = t;
    return true;
}

typedef struct parts {               /* what a description points to */
    train_ckpt_tensor *tensor;       /* [n_tensors] */
    int     n_tensors;
    char    group[1 + OPT_MAX_SLOTS][GROUP_MAX];
    train_ckpt_blob *blob;           /* [n_blobs] */
    int     n_blobs;
    char  (*file)[GROUP_MAX];        /* groups of the files of a pattern */
    char   *yaml;
    uint8_t *table;
    size_t  table_size;
    float   *host[1 + OPT_MAX_SLOTS];            /* of what is on a device: weights, slots */
    int32_t *choices;                /* of the probe */
    size_t  choices_size;
} parts;

/* Flat numbers where the host can read them: themselves, or a copy that is the part's i-th. */
static const float *on_host(const train_session *s, parts *p, int i, const float *flat, int64_t n)
{
    if (!s->device) return flat;
    p->host[i] = malloc((size_t)n * sizeof *flat + 1);
    if (p->host[i]) s->device->read(p->host[i], flat, (size_t)n * sizeof *flat);
    return p->host[i];
}

static int collect_tensors(const train_session *s, parts *p, ag_err *err)
{
    const nn_params *np = s->model->params;
    const float *w = on_host(s, p, 0, np->weights, np->n);
    for (int i = 0; i < np->n_items && w; i++)
        p->tensor[p->n_tensors++] = tensor_of(&np->items[i], "model", w);
    for (int k = 0; s->opt && w && k < s->opt->n_slots; k++) {
        const opt_slot *slot = &s->opt->slot[k];
        w = on_host(s, p, 1 + k, slot->data, slot->n);
        slot_group(p->group[k], s->opt->config.type, slot->name);
        for (int i = 0; i < np->n_items && w; i++)
            p->n_tensors += slot_tensor(s, k, w, i, p->group[k], &p->tensor[p->n_tensors]);
    }
    if (!w) return ag_err_set(err, AG_ENOMEM, "out of memory for the checkpoint");
    const char *why = s->device ? s->device->check() : NULL;
    return why ? ag_err_set(err, AG_EFAIL, "the checkpoint: %s", why) : AG_OK;
}

/* A description of bytes, or a text; those that are missing are left out. */
static void add_blob(parts *p, const char *group, const char *name, const void *data, size_t size,
                     bool is_text)
{
    if (data) p->blob[p->n_blobs++] = (train_ckpt_blob){ group, name, data, size, is_text };
}

static int collect_blobs(const train_session *s, parts *p, ag_err *err)
{
    const nn_pattern_files *files = &s->patterns;
    p->blob = malloc((3 + 2 * (size_t)files->n) * sizeof *p->blob);
    p->file = calloc((size_t)files->n + 1, sizeof *p->file);
    if (!p->blob || !p->file)
        return ag_err_set(err, AG_ENOMEM, "out of memory for the checkpoint");
    add_blob(p, "config", "yaml", p->yaml, strlen(p->yaml), true);
    for (int i = 0; i < files->n; i++) {
        const nn_pattern_file *f = &files->file[i];
        snprintf(p->file[i], sizeof p->file[i], "patterns/%d", i);
        add_blob(p, p->file[i], "path", f->path, strlen(f->path), true);
        add_blob(p, p->file[i], "text", f->text, f->size, false);
    }
    add_blob(p, "tokenizer", "table", p->table, p->table_size, false);
    add_blob(p, "train", "choices", p->choices, p->choices_size, false);
    return AG_OK;
}

static int collect(const train_session *s, parts *p, ag_err *err)
{
    const nn_params *np = s->model->params;
    const int slots = s->opt ? s->opt->n_slots : 0;
    int r = train_config_dump(&s->config, TRAIN_DUMP_ANNOTATED, &p->yaml, err);
    if (r == AG_OK && s->tokenizer)
        r = data_tokenizer_save(s->tokenizer, &p->table, &p->table_size, err);
    if (r < 0) return r;
    p->tensor = malloc((size_t)(np->n_items * (1 + slots)) * sizeof *p->tensor);
    if (!p->tensor) return ag_err_set(err, AG_ENOMEM, "out of memory for the checkpoint");
    p->choices_size = train_probe_size(s->probe);
    if (p->choices_size && !(p->choices = malloc(p->choices_size)))
        return ag_err_set(err, AG_ENOMEM, "out of memory for the checkpoint");
    if (p->choices) train_probe_save(s->probe, p->choices);
    slot_group(p->group[OPT_MAX_SLOTS], s->opt ? s->opt->config.type : OPT_ADAMW, "");
    r = collect_blobs(s, p, err);
    return r == AG_OK ? collect_tensors(s, p, err) : r;
}

int train_state_save(const train_session *s,
                     int (*save)(void *arg, const train_ckpt *c, ag_err *err), void *arg,
                     ag_err *err)
{
    parts p = { 0 };
    int r = collect(s, &p, err);
    if (r == AG_OK) {
        const train_ckpt_attr attrs[] = {
            { .group = "model", .name = "classes", .type = TRAIN_CKPT_I64,
              .value.i = s->model->classes },
            { .group = "model", .name = "d_in", .type = TRAIN_CKPT_I64, .value.i = s->d_in },
            { .group = "train", .name = "samples_seen", .type = TRAIN_CKPT_I64,
              .value.i = s->samples_seen },
            { .group = "train", .name = "pending", .type = TRAIN_CKPT_I64, .value.i = s->pending },
            { .group = "data", .name = "height", .type = TRAIN_CKPT_I64,
              .value.i = s->form.height },
            { .group = "data", .name = "width", .type = TRAIN_CKPT_I64, .value.i = s->form.width },
            { .group = "data", .name = "channels", .type = TRAIN_CKPT_I64,
              .value.i = s->form.channels },
            { .group = "data", .name = "rate", .type = TRAIN_CKPT_I64, .value.i = s->form.rate },
            { .group = "data", .name = "about", .type = TRAIN_CKPT_TEXT,
              .value.s = s->data ? s->data->about : "" },
            { .group = "data", .name = "fingerprint", .type = TRAIN_CKPT_TEXT,
              .value.s = s->data ? data_fingerprint(s->data) : "" },
            { .group = p.group[OPT_MAX_SLOTS], .name = "step", .type = TRAIN_CKPT_I64,
              .value.i = s->opt ? s->opt->step : 0 },
            { .group = SCALER, .name = "scale", .type = TRAIN_CKPT_F64,
              .value.f = s->scaler.scale },
            { .group = SCALER, .name = "finite_steps", .type = TRAIN_CKPT_I64,
              .value.i = s->scaler.finite_steps },
            { .group = SCALER, .name = "skipped", .type = TRAIN_CKPT_I64,
              .value.i = s->scaler.skipped },
            { .group = SCALER, .name = "skipped_in_row", .type = TRAIN_CKPT_I64,
              .value.i = s->scaler.skipped_in_row },
        };
        const bool scaled = s->scaler.type != OPT_SCALING_NONE;
        const int n_attrs = (int)(sizeof attrs / sizeof *attrs) - (s->opt ? scaled ? 0 : 4 : 5);
        const train_ckpt c = {
            .head = { .step = s->step, .tokens_seen = s->samples_seen * (s->source + s->context),
                      .seed = (uint64_t)s->config.run.seed,
                      .best_metric = s->best_loss, .best_step = s->best_step },
            .framework_version = TULLE_VERSION, .tensor = p.tensor, .attr = attrs, .blob = p.blob,
            .n_tensors = p.n_tensors, .n_attrs = n_attrs, .n_blobs = p.n_blobs,
        };
        r = save(arg, &c, err);
    }
    for (int i = 0; i < 1 + OPT_MAX_SLOTS; i++) free(p.host[i]);
    free(p.tensor);
    free(p.blob);
    free(p.file);
    free(p.yaml);
    free(p.table);
    free(p.choices);
    return r;
}

/* --- from a checkpoint ------------------------------------------------------------------------ */

int train_state_config(const train_ckpt_file *f, train_config *ret_c, ag_err *err)
{
    char *yaml;
    int r = train_ckpt_read_text(f, "config", "yaml", &yaml, err);
    if (r < 0) return r;
    train_config c;
    train_config_init(&c);
    ag_err why = { 0 };
    r = train_config_parse(&c, yaml, strlen(yaml), "the checkpoint's config/yaml", &why);
    free(yaml);
    if (r < 0) return ag_err_set(err, r == AG_ENOMEM ? r : AG_EINPUT, "%s", why.msg);
    *ret_c = c;
    return AG_OK;
}

static int read_pattern_file(const train_ckpt_file *f, const char *group, nn_pattern_files *files,
                             ag_err *err)
{
    char *path, *text;
    size_t size;
    int r = train_ckpt_read_text(f, group, "path", &path, err);
    if (r < 0) return r;
    r = train_ckpt_read_bytes(f, group, "text", &text, &size, err);
    if (r == AG_OK) r = nn_pattern_files_add(files, path, text, size, err);
    free(path);
    return r;
}

int train_state_patterns(const train_ckpt_file *f, const train_config *c, nn_pattern_files *ret,
                         ag_err *err)
{
    char group[GROUP_MAX];
    ag_err why = { 0 };
    int r = AG_OK;
    *ret = (nn_pattern_files){ .closed = train_ckpt_has(f, "patterns") };
    for (int i = 0; ret->closed && r == AG_OK; i++) {
        snprintf(group, sizeof group, "patterns/%d", i);
        if (!train_ckpt_has(f, group)) break;
        r = read_pattern_file(f, group, ret, err);
    }
    if (r < 0) return r;
    r = nn_patterns_check(c->model.attention.pattern, c->model.context, c->model.n_heads, ret,
                          &why);
    return r == AG_OK ? r : ag_err_set(err, r == AG_ENOMEM ? r : AG_EINPUT,
                                       "model.attention.pattern of the checkpoint: %s", why.msg);
}

static int read_flat(const train_ckpt_file *f, const nn_params *p, const char *group, float *flat,
                     ag_err *err)
{
    for (int i = 0; i < p->n_items; i++) {
        const nn_item *it = &p->items[i];
        const int r = train_ckpt_read(f, group, it->name, it->tensor->shape.ndim,
                                      it->tensor->shape.dim, false, flat + it->offset, err);
        if (r < 0) return r;
    }
    return AG_OK;
}

/* Where n numbers for the device are read to first; without one, where they belong.  NULL: out of
 * memory. */
static float *begin_write(const train_session *s, float *flat, int64_t n, ag_err *err)
{
    float *host = s->device ? calloc((size_t)n + 1, sizeof *host) : flat;
    if (!host) ag_err_set(err, AG_ENOMEM, "out of memory for the checkpoint");
    return host;
}

static void end_write(const train_session *s, float *flat, int64_t n, float *host)
{
    if (host == flat) return;
    s->device->write(flat, host, (size_t)n * sizeof *host);
    free(host);
}

static int read_slot(const train_ckpt_file *f, train_session *s, int k, const char *group,
                     ag_err *err)
{
    const opt_slot *slot = &s->opt->slot[k];
    float *data = begin_write(s, slot->data, slot->n, err);
    train_ckpt_tensor t;
    int r = data ? AG_OK : AG_ENOMEM;
    for (int i = 0; i < s->model->params->n_items && r == AG_OK; i++)
        if (slot_tensor(s, k, data, i, group, &t))
            r = train_ckpt_read(f, group, t.name, t.ndim, t.dim, false, data + (t.data - data),
                                err);
    if (data) end_write(s, slot->data, slot->n, data);
    return r;
}

static int read_optimizer(const train_ckpt_file *f, train_session *s, ag_err *err)
{
    char group[GROUP_MAX];
    for (int k = 0; k < s->opt->n_slots; k++) {
        slot_group(group, s->opt->config.type, s->opt->slot[k].name);
        const int r = read_slot(f, s, k, group, err);
        if (r < 0) return r;
    }
    slot_group(group, s->opt->config.type, "");
    int r = train_ckpt_get_i64(f, group, "step", &s->opt->step, err);
    if (r < 0 || s->scaler.type == OPT_SCALING_NONE) return r;
    r = train_ckpt_get_f64(f, SCALER, "scale", &s->scaler.scale, err);
    if (r == AG_OK)
        r = train_ckpt_get_i64(f, SCALER, "finite_steps", &s->scaler.finite_steps, err);
    if (r == AG_OK) r = train_ckpt_get_i64(f, SCALER, "skipped", &s->scaler.skipped, err);
    if (r == AG_OK)
        r = train_ckpt_get_i64(f, SCALER, "skipped_in_row", &s->scaler.skipped_in_row, err);
    return r;
}

/* For evaluation: the averaged weights where the file has them, unless plain ones are wanted. */
static int read_weights(const train_ckpt_file *f, train_session *s, bool plain, ag_err *err)
{
    char group[GROUP_MAX] = "model";
    for (int type = 0; !plain && !s->opt && type < OPT_N_TYPES; type++) {
        char ema[GROUP_MAX];
        slot_group(ema, (opt_type)type, "ema");
        if (train_ckpt_has(f, ema)) memcpy(group, ema, sizeof group);
    }
    const nn_params *p = s->model->params;
    float *host = begin_write(s, p->weights, p->n, err);
    const int r = host ? read_flat(f, p, group, host, err) : AG_ENOMEM;
    if (host) end_write(s, p->weights, p->n, host);
    return r;
}

static int read_tokenizer(const train_ckpt_file *f, data_tokenizer **ret_tok, ag_err *err)
{
    *ret_tok = NULL;
    if (!train_ckpt_has(f, "tokenizer/table")) return AG_OK;
    char *bytes;
    size_t size;
    int r = train_ckpt_read_bytes(f, "tokenizer", "table", &bytes, &size, err);
    if (r < 0) return r;
    r = data_tokenizer_load((const uint8_t *)bytes, size, ret_tok, err);
    free(bytes);
    return r;
}

static int read_choices(const train_ckpt_file *f, train_session *s, ag_err *err)
{
    if (!s->probe || !train_ckpt_has(f, "train/choices")) return AG_OK;
    char *bytes;
    size_t size;
    int r = train_ckpt_read_bytes(f, "train", "choices", &bytes, &size, err);
    if (r < 0) return r;
    r = train_probe_load(s->probe, (const int32_t *)(const void *)bytes, size, err);
    free(bytes);
    return r;
}

static int read_all(const train_ckpt_file *f, train_session *s, bool plain, ag_err *err)
{
    const train_ckpt_head *head = train_ckpt_file_head(f);
    int r = read_weights(f, s, plain, err);
    if (r == AG_OK && s->opt) r = read_optimizer(f, s, err);
    if (r == AG_OK) r = train_ckpt_get_i64(f, "train", "samples_seen", &s->samples_seen, err);
    if (r == AG_OK) r = train_ckpt_get_i64(f, "train", "pending", &s->pending, err);
    if (r == AG_OK) r = read_choices(f, s, err);
    s->step = head->step;
    s->best_loss = head->best_metric;
    s->best_step = head->best_step;
    return r;
}

/* Absent in files of earlier versions: then no form, and nothing to compare. */
static int read_form(const train_ckpt_file *f, train_form *ret, ag_err *err)
{
    if (!train_ckpt_has_attr(f, "data", "rate")) return AG_OK;
    int r = train_ckpt_get_i64(f, "data", "height", &ret->height, err);
    if (r == AG_OK) r = train_ckpt_get_i64(f, "data", "width", &ret->width, err);
    if (r == AG_OK) r = train_ckpt_get_i64(f, "data", "channels", &ret->channels, err);
    return r == AG_OK ? train_ckpt_get_i64(f, "data", "rate", &ret->rate, err) : r;
}

/* A run that goes on must see the data that it has seen so far. */
static int check_data(const train_ckpt_file *f, train_session *s, ag_err *err)
{
    char *was = NULL, *about = NULL;
    if (!s->opt || !s->data || !train_ckpt_has_attr(f, "data", "fingerprint")) return AG_OK;
    int r = train_ckpt_get_text(f, "data", "fingerprint", &was, err);
    if (r == AG_OK) r = train_ckpt_get_text(f, "data", "about", &about, err);
    if (r == AG_OK && !s->config.data.changed && strcmp(was, data_fingerprint(s->data)))
        r = ag_err_set(err, AG_EINPUT, "the data are not those that the run was trained on\n"
                       "  then: %s\n  now:  %s\nBring back the former ones (data.path=...), or "
                       "go on with these: data.changed=true", about, s->data->about);
    free(was);
    free(about);
    return r;
}

int train_state_load(const train_ckpt_file *f, const train_config *c, const train_open *what,
                     train_session **ret_s, ag_err *err)
{
    train_open w = *what;
    nn_pattern_files patterns = { 0 };
    data_tokenizer *tok = NULL;
    train_session *s = NULL;
    int r = read_tokenizer(f, &tok, err);
    if (r == AG_OK) r = train_state_patterns(f, c, &patterns, err);
    if (r == AG_OK) r = train_ckpt_get_i64(f, "model", "classes", &w.classes, err);
    if (r == AG_OK) r = train_ckpt_get_i64(f, "model", "d_in", &w.d_in, err);
    w.tokenizer = tok;
    w.patterns = &patterns;
    if (r == AG_OK) r = read_form(f, &w.form, err);
    if (r == AG_OK) r = train_session_new(c, &w, &s, err);
    if (r == AG_OK) r = check_data(f, s, err);
    if (r == AG_OK) r = read_all(f, s, w.plain_weights, err);
    if (r == AG_OK && !s->data) {    /* sampling: the session keeps the file's tokenizer */
        s->tokenizer = tok;
        tok = NULL;
    }
    data_tokenizer_free(tok);
    nn_pattern_files_release(&patterns);             /* where no session has taken them over */
    if (r < 0) {
        train_session_free(s);
        return r;
    }
    *ret_s = s;
    return AG_OK;
}
