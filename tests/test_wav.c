/*
 * test_wav.c -- sound: every coding that is read, mu-law against its formula, folders, damage.
 */
#include "data_util.h"
#include <math.h>

enum { FRAMES = 40, HEAD = 128 };

static void put(uint8_t *p, int n, uint32_t v)
{
    for (int i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

typedef struct form { uint32_t coding, channels, rate, bits; bool extensible, odd_chunk; } form;

/* A sample in steps of 1/128, which every coding has exactly. */
static double wave(int i, int channel)
{
    return (double)((i * 29 + channel * 50) % 256 - 128) / 128;
}

static void put_sample(uint8_t *p, const form *f, double x)
{
    if (f->coding == 3) {
        const float v = (float)x;
        memcpy(p, &v, sizeof v);
    } else if (f->bits == 8) {
        p[0] = (uint8_t)(x * 128 + 128);
    } else {
        put(p, (int)f->bits / 8, (uint32_t)(int32_t)ldexp(x, (int)f->bits - 1));
    }
}

/* A whole file in p; returns its size and, in *ret_data, where the sound begins. */
static size_t make_wav(uint8_t *p, const form *f, size_t *ret_data)
{
    const uint32_t bytes = f->bits / 8, block = f->channels * bytes;
    const uint32_t head = f->extensible ? 40 : 16;
    size_t at = 20 + head;
    memset(p, 0, HEAD);
    memcpy(p, "RIFF....WAVEfmt ", 16);
    put(p + 16, 4, head);
    put(p + 20, 2, f->extensible ? 0xFFFE : f->coding);
    put(p + 22, 2, f->channels);
    put(p + 24, 4, f->rate);
    put(p + 28, 4, f->rate * block);
    put(p + 32, 2, block);
    put(p + 34, 2, f->bits);
    if (f->extensible) {
        put(p + 36, 2, 22);
        put(p + 38, 2, f->bits);
        put(p + 44, 2, f->coding);
        memcpy(p + 46, "\0\0\0\0\x10\0\x80\0\0\xAA\0\x38\x9B\x71", 14);
    }
    if (f->odd_chunk) {
        memcpy(p + at, "LIST\5\0\0\0hello\0", 14);
        at += 14;
    }
    memcpy(p + at, "data", 4);
    put(p + at + 4, 4, FRAMES * block);
    *ret_data = at += 8;
    for (int i = 0; i < FRAMES; i++)
        for (uint32_t c = 0; c < f->channels; c++, at += bytes)
            put_sample(p + at, f, wave(i, (int)c));
    put(p + 4, 4, (uint32_t)(at - 8));
    return at;
}

static int mulaw(double x)
{
    const double f = (x < 0 ? -1 : 1) * log(1 + 255 * fabs(x)) / log(256);
    return (int)floor((f + 1) / 2 * 255 + 0.5);
}

static void codings(void **state)
{
    static const form forms[] = {
        {1, 1, 8000, 8, false, false},  {1, 1, 12000, 16, false, true},
        {1, 2, 44100, 16, true, false}, {1, 1, 48000, 24, true, true},
        {1, 3, 96000, 32, true, false}, {3, 2, 16000, 32, false, false},
        {3, 1, 16000, 32, true, true},
    };
    uint8_t file[HEAD + FRAMES * 12];
    size_t data;
    (void)state;
    for (size_t k = 0; k < sizeof forms / sizeof *forms; k++) {
        const form *f = &forms[k];
        const size_t size = make_wav(file, f, &data);
        const data_options o = options("wav", tmp_write("a.wav", file, size), 2);
        data_set *d = open_ok(&o);
        assert_int_equal(d->vocab, 256);
        assert_int_equal(d->rate, f->rate);
        assert_int_equal(d->sequence, 0);
        assert_int_equal(d->tokens[0].n, 36);
        assert_int_equal(d->tokens[1].n, 4);
        const uint8_t *t = d->tokens[0].at;
        for (int i = 0; i < FRAMES; i++) {
            double mean = 0;
            for (int c = 0; c < (int)f->channels; c++)
                mean += wave(i, c) / f->channels;
            assert_int_equal(t[i], mulaw(mean));
        }
        data_close(d);
    }
}

static void law(void **state)
{
    (void)state;
    assert_int_equal(data_mulaw_encode(0), DATA_SILENCE);
    assert_int_equal(data_mulaw_encode(1), 255);
    assert_int_equal(data_mulaw_encode(-1), 0);
    assert_int_equal(data_mulaw_encode(7), 255);
    assert_true(fabs(data_mulaw_decode(255) - 1) < 1e-12);
    assert_true(fabs(data_mulaw_decode(0) + 1) < 1e-12);
    for (int t = 0; t < 256; t++)
        assert_int_equal(data_mulaw_encode(data_mulaw_decode((uint8_t)t)), t);
    for (double x = -1; x <= 1; x += 1.0 / 1024) {
        assert_int_equal(data_mulaw_encode(x), mulaw(x));
        const double back = data_mulaw_decode(data_mulaw_encode(x));
        assert_true(fabs(back - x) <= (1 + 255 * fabs(x)) / 255 * (exp(log(256) / 255) - 1));
    }
}

/* What is written is read again as the same tokens. */
static void written(void **state)
{
    int32_t token[256];
    uint8_t *file;
    size_t size;
    (void)state;
    for (int i = 0; i < 256; i++)
        token[i] = i * 7 % 256;
    assert_int_equal(data_wav(token, 256, 12000, &file, &size, NULL), 0);
    assert_int_equal(size, 44 + 512);
    const data_options o = options("wav", tmp_write("b.wav", file, size), 2);
    data_set *d = open_ok(&o);
    assert_int_equal(d->rate, 12000);
    const uint8_t *t = d->tokens[0].at;
    for (int i = 0; i < 256; i++)
        assert_int_equal(t[i], token[i]);
    data_close(d);
    free(file);
}

static void folder(void **state)
{
    uint8_t file[HEAD + FRAMES * 12];
    form f = {1, 1, 12000, 16, false, false};
    size_t data;
    (void)state;
    assert_int_equal(ag_dir_make(tmp_path("w"), NULL), 0);
    char dir[512];
    snprintf(dir, sizeof dir, "%s", tmp_path("w"));
    data_options o = options("wav", dir, 4);
    open_bad(&o, AG_EINPUT, "w' holds no .wav file");
    size_t size = make_wav(file, &f, &data);
    tmp_write("w/b.wav", file, size);
    tmp_write("w/notes.txt", "x", 1);
    put(file + data, 2, 0x7FFF);
    tmp_write("w/a.WAV", file, size);
    data_set *d = open_ok(&o);
    assert_int_equal(d->tokens[0].n + d->tokens[1].n, 2 * FRAMES);
    assert_int_equal(((const uint8_t *)d->tokens[0].at)[0], 255);   /* a.WAV comes first */
    assert_int_equal(((const uint8_t *)d->tokens[0].at)[FRAMES], mulaw(wave(0, 0)));
    assert_non_null(strstr(d->about, "12000 a second"));
    data_close(d);
    f.rate = 16000;
    size = make_wav(file, &f, &data);
    tmp_write("w/c.wav", file, size);
    open_bad(&o, AG_EINPUT, "c.wav' has 16000 samples a second, but");
    open_bad(&o, AG_EINPUT, "sox IN -r 12000 OUT.wav");
}

static void damaged(void **state)
{
    uint8_t good[HEAD + FRAMES * 12], file[sizeof good];
    const form f = {3, 1, 16000, 32, false, false};
    size_t data;
    const size_t size = make_wav(good, &f, &data);
    char path[512];
    data_options o = options("wav", path, 4);
    (void)state;
    snprintf(path, sizeof path, "%s", tmp_path("d.wav"));
    for (size_t cut = 0; cut < size; cut++) {            /* cut anywhere: refused */
        data_set *d = NULL;
        ag_err err = {0};
        tmp_write("d.wav", good, cut);
        assert_int_equal(data_open(&o, &d, &err), AG_EINPUT);
        assert_non_null(strstr(err.msg, "d.wav"));
    }
    const struct { size_t at; uint32_t value; int n; const char *words; } bad[] = {
        {0, 'X', 1, "is no WAV file"},
        {8, 'X', 1, "is no WAV file"},
        {20, 2, 2, "is of coding 0x0002 with 32 bits, which is not read"},
        {20, 6, 2, "coding 0x0006"},
        {34, 64, 2, "with 64 bits"},
        {20, 0xFFFE, 2, "coding 0xfffe"},
        {32, 3, 2, "is damaged: 1 channels of 32 bits at 16000 a second in blocks of 3 bytes"},
        {22, 0, 2, "is damaged"},
        {24, 0, 4, "is damaged"},
        {16, 12, 4, "d.wav"},
        {40, 158, 4, "158 bytes of sound are no whole blocks of 4"},
        {40, 0xFFFFFFFF, 4, "is cut off: its part 'data' should have 4294967295 bytes"},
        {40, 0, 4, "holds no sound"},
        {36, 'X', 1, "holds no sound"},
        {12, 'X', 1, "sound before its format"},
        {44 + 8, 0x7FC00000, 4, "sample 2 is not finite"},
    };
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        memcpy(file, good, size);
        put(file + bad[k].at, bad[k].n, bad[k].value);
        tmp_write("d.wav", file, size);
        open_bad(&o, AG_EINPUT, bad[k].words);
    }
    o.path = tmp_path("none.wav");
    open_bad(&o, AG_EINPUT, "none.wav' (data.path) does not exist");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(codings), cmocka_unit_test(law),     cmocka_unit_test(written),
        cmocka_unit_test(folder),  cmocka_unit_test(damaged),
    };
    return cmocka_run_group_tests(tests, tmp_make, tmp_remove);
}
