#include "train/tokens.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char BLANKS[] = " \t\r\n";

bool train_tokens_are_numbers(const train_session *s)
{
    return !s->d_in && !s->tokenizer && !s->form.height && !s->form.rate;
}

static int read_numbers(const train_session *s, const char *text, const char *what, int32_t *ids,
                        int64_t *ret_n, ag_err *err)
{
    const int64_t most = s->model->classes - 1;
    int64_t n = 0;
    for (const char *p = text + strspn(text, BLANKS); *p; p += strspn(p, BLANKS), n++) {
        char *end = NULL;
        const size_t length = strcspn(p, BLANKS);
        const int64_t id = *p >= '0' && *p <= '9' ? strtoll(p, &end, 10) : -1;
        if (end != p + length || id > most)
            return ag_err_set(err, AG_EINPUT, "%s: '%.*s' is no token: the model has the numbers "
                              "0 to %" PRId64 ", separated by blanks", what,
                              length < 40 ? (int)length : 40, p, most);
        ids[n] = (int32_t)id;
        p = end;
    }
    *ret_n = n;
    return AG_OK;
}

int train_tokens_read(const train_session *s, const char *text, const char *what,
                      int32_t **ret_ids, int64_t *ret_n, ag_err *err)
{
    if (!train_tokens_are_numbers(s))
        return data_encode(s->tokenizer, text, strlen(text), what, ret_ids, ret_n, err);
    int32_t *ids = malloc((strlen(text) + 1) * sizeof *ids);     /* each has a byte at least */
    if (!ids) return ag_err_set(err, AG_ENOMEM, "out of memory for the tokens of %s", what);
    const int r = read_numbers(s, text, what, ids, ret_n, err);
    if (r < 0) free(ids);
    else *ret_ids = ids;
    return r;
}

int train_tokens_write(const train_session *s, const int32_t *ids, int64_t n, char **ret_text,
                       size_t *ret_size, ag_err *err)
{
    enum { MOST = 12 };              /* bytes of a number and a blank */
    if (!train_tokens_are_numbers(s))
        return data_decode(s->tokenizer, ids, n, ret_text, ret_size, err);
    char *text = malloc((size_t)n * MOST + 1);
    size_t used = 0;
    if (!text) return ag_err_set(err, AG_ENOMEM, "out of memory for %" PRId64 " tokens", n);
    text[0] = '\0';
    for (int64_t i = 0; i < n; i++)
        used += (size_t)sprintf(text + used, "%s%" PRId32, i ? " " : "", ids[i]);
    *ret_text = text;
    *ret_size = used;
    return AG_OK;
}
