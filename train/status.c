#include "train/status.h"

#include "autograd/base/clock.h"

#include <math.h>
#include <stdarg.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <unistd.h>

void train_status_init(train_status *s, FILE *out, int64_t first_step, int64_t steps,
                       const char *unit)
{
    *s = (train_status){ .out = out, .tty = out && isatty(fileno(out)), .began = ag_seconds(),
                         .first_step = first_step, .steps = steps, .unit = unit };
}

static void erase(train_status *s)
{
    if (s->drawn) fputs("\r\033[K", s->out);
    s->drawn = false;
}

/* "1:02:03", "2:03" */
static const char *duration(double seconds, char buf[32])
{
    const long t = lround(seconds < 0 ? 0 : seconds);
    if (t >= 3600) snprintf(buf, 32, "%ld:%02ld:%02ld", t / 3600, t / 60 % 60, t % 60);
    else snprintf(buf, 32, "%ld:%02ld", t / 60, t % 60);
    return buf;
}

/* Draws a line that the next one replaces; a longer one than the terminal is wide could not be. */
static void draw(train_status *s, const char *text)
{
    struct winsize w;
    const bool known = ioctl(fileno(s->out), TIOCGWINSZ, &w) == 0 && w.ws_col > 1;
    erase(s);
    fprintf(s->out, "%.*s", known ? w.ws_col - 1 : 79, text);
    s->drawn = true;
    fflush(s->out);
}

void train_status_step(train_status *s, const train_progress *p, bool log)
{
    if (!s->out) return;
    const double now = ag_seconds();
    if (s->tty ? now - s->last_drawn < 0.1 && p->step < s->steps : !log) return;
    s->last_drawn = now;

    char val[64] = "", bits[32] = "", skips[48] = "", eta[32], text[256];
    if (p->bytes) snprintf(bits, sizeof bits, " (%.3f bits)", p->loss / M_LN2);
    if (isfinite(p->val_loss) && p->bytes)
        snprintf(val, sizeof val, "  val %.4f (%.3f bits)", p->val_loss, p->val_loss / M_LN2);
    else if (isfinite(p->val_loss)) snprintf(val, sizeof val, "  val %.4f", p->val_loss);
    if (p->skipped) snprintf(skips, sizeof skips, "  skipped %lld", (long long)p->skipped);
    const double done = (double)(p->step - s->first_step), left = (double)(s->steps - p->step);
    duration(done > 0 ? (now - s->began) / done * left : 0, eta);
    snprintf(text, sizeof text,
             "step %lld/%lld  loss %.4f%s%s  %s %s  %.0f %s/s  %.0f MB  lr %.2e%s",
             (long long)p->step, (long long)s->steps, p->loss, bits, val,
             left > 0 ? "left" : "took",
             left > 0 ? eta : duration(now - s->began, eta), p->per_second, s->unit,
             1e-6 * (double)p->memory, p->lr, skips);
    if (s->tty && left > 0) draw(s, text);
    else train_status_line(s, "%s", text);
}

void train_status_brief(train_status *s, const char *fmt, ...)
{
    const double now = ag_seconds();
    if (!s->out || !s->tty || now - s->last_drawn < 0.1) return;
    s->last_drawn = now;
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    draw(s, text);
}

void train_status_line(train_status *s, const char *fmt, ...)
{
    if (!s->out) return;
    erase(s);
    va_list ap;
    va_start(ap, fmt);
    vfprintf(s->out, fmt, ap);
    va_end(ap);
    fputc('\n', s->out);
    fflush(s->out);
}

void train_status_end(train_status *s)
{
    if (s->out && s->drawn) fputc('\n', s->out);
    s->drawn = false;
}

size_t train_resident_bytes(void)
{
    FILE *f = fopen("/proc/self/statm", "r");
    unsigned long all, resident = 0;
    if (!f) return 0;
    if (fscanf(f, "%lu %lu", &all, &resident) != 2) resident = 0;
    fclose(f);
    return (size_t)resident * (size_t)sysconf(_SC_PAGESIZE);
}

size_t train_peak_bytes(void)
{
    struct rusage u;
    return getrusage(RUSAGE_SELF, &u) ? 0 : (size_t)u.ru_maxrss * 1024;
}

void train_peak_forget(void)
{
    FILE *f = fopen("/proc/self/clear_refs", "w");       /* proc(5): 5 resets the peak */
    if (!f) return;
    fputs("5", f);
    fclose(f);
}
