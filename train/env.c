/*
 * env.c -- what a run ran on.
 */
#include "train/env.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

/* "key": "text", with the escapes of RFC 8259. */
static void put_text(FILE *f, const char *key, const char *text)
{
    fprintf(f, "  \"%s\": \"", key);
    for (const unsigned char *c = (const unsigned char *)text; *c; c++) {
        if (*c == '"' || *c == '\\') fprintf(f, "\\%c", *c);
        else if (*c < 0x20) fprintf(f, "\\u%04x", *c);
        else fputc(*c, f);
    }
    fputs("\",\n", f);
}

/* "model name : X" of /proc/cpuinfo; "unknown" where there is none. */
static void cpu_model(char model[128])
{
    char line[256];
    strcpy(model, "unknown");
    FILE *f = fopen("/proc/cpuinfo", "re");
    if (!f) return;
    while (fgets(line, sizeof line, f)) {
        const char *value = strstr(line, ": ");
        if (strncmp(line, "model name", 10) || !value) continue;
        snprintf(model, 128, "%.*s", (int)strcspn(value + 2, "\n"), value + 2);
        break;
    }
    fclose(f);
}

int train_env_json(const train_env *e, char **ret_json, ag_err *err)
{
    char model[128], kernel[256], *json = NULL;
    size_t size;
    struct utsname u;
    cpu_model(model);
    if (uname(&u)) strcpy(kernel, "unknown");
    else snprintf(kernel, sizeof kernel, "%.64s %.64s %.64s", u.sysname, u.release, u.machine);
    FILE *f = open_memstream(&json, &size);
    if (!f) return ag_err_set(err, AG_ENOMEM, "out of memory for env.json");
    fputs("{\n", f);
    put_text(f, "version", e->version);
    put_text(f, "compiler", __VERSION__);
    put_text(f, "flags", e->flags);
    put_text(f, "device", e->device);
    put_text(f, "isa", e->isa);
    put_text(f, "cpu", model);
    put_text(f, "kernel", kernel);
    fprintf(f, "  \"cores\": %ld,\n", sysconf(_SC_NPROCESSORS_ONLN));
    fprintf(f, "  \"memory_bytes\": %lld,\n",
            (long long)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE));
    fprintf(f, "  \"threads\": %d\n}\n", e->threads);
    const int bad = ferror(f);
    if (fclose(f) || bad) {
        free(json);
        return ag_err_set(err, AG_ENOMEM, "out of memory for env.json");
    }
    *ret_json = json;
    return AG_OK;
}
