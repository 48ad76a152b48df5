/*
 * catalog.c -- the data sets that have a name: what their files are, where they are looked for, and
 * if they are whole.
 */
#include "autograd/base/hash.h"
#include "data/internal.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MNIST_URL {"https://ossci-datasets.s3.amazonaws.com/mnist/", \
                   "https://storage.googleapis.com/cvdf-datasets/mnist/"}
#define FASHION_GIT "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/"
#define FASHION_URL {"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/", \
                     FASHION_GIT "data/fashion/"}

static const data_named catalog[] = {
    {"shakespeare", "Tiny Shakespeare, 1.1 MB of plays, characters", {
        {"input.txt", NULL, 1115394,
         "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
         {"https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/"},
         NULL}}},
    {"enwik8", "the first 100 MB of the English Wikipedia of 2006, bytes", {
        {"enwik8.zip", "enwik8", 36445475, "a1fa5ffddb56f4953e226637dabbb36a",
         {"https://mattmahoney.net/dc/", "http://mattmahoney.net/dc/", "https://data.deepai.org/"},
         NULL}}},
    {"mnist", "MNIST, 70,000 handwritten digits, 28 x 28", {
        {"train-images-idx3-ubyte.gz", NULL, 9912422, "f68b3c2dcbeaaa9fbdd348bbdeb94873", MNIST_URL,
         "6bbc9ace898e44ae57da46a324031adb"},
        {"train-labels-idx1-ubyte.gz", NULL, 28881, "d53e105ee54ea40749a09fcbcd1e9432", MNIST_URL,
         "a25bea736e30d166cdddb491f175f624"},
        {"t10k-images-idx3-ubyte.gz", NULL, 1648877, "9fb629c4189551a2d022fa330f9573f3", MNIST_URL,
         "2646ac647ad5339dbf082846283269ea"},
        {"t10k-labels-idx1-ubyte.gz", NULL, 4542, "ec29112dd5afa0611ce80d1b7f02629c", MNIST_URL,
         "27ae3e4e09519cfbb04c329615203637"}}},
    {"fashion-mnist", "Fashion-MNIST, 70,000 articles of clothing, 28 x 28", {
        {"train-images-idx3-ubyte.gz", NULL, 26421880, "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
         FASHION_URL, "f4a8712d7a061bf5bd6d2ca38dc4d50a"},
        {"train-labels-idx1-ubyte.gz", NULL, 29515, "25c81989df183df01b3e8a0aad5dffbe", FASHION_URL,
         "9018921c3c673c538a1fc5bad174d6f9"},
        {"t10k-images-idx3-ubyte.gz", NULL, 4422102, "bef4ecab320f06d8554ea6380940ec79",
         FASHION_URL, "8181f5470baa50b63fa0f6fddb340f0a"},
        {"t10k-labels-idx1-ubyte.gz", NULL, 5148, "bb300cfdad3c16e7a12a480ee83cd310", FASHION_URL,
         "15d484375f8d13e6eb1aabb0c3f46965"}}},
    {"cifar10", "CIFAR-10, 60,000 photographs, 32 x 32 x 3", {
        {"cifar-10-binary.tar.gz", NULL, 170052171, "c32a1d4ab5d03f1284b67883e8d87530",
         {"https://www.cs.toronto.edu/~kriz/"}, NULL}}},
    {0},
};

const data_named *data_catalog(void) { return catalog; }

const data_named *data_catalog_find(const char *name)
{
    for (const data_named *s = catalog; s->name; s++)
        if (!strcmp(s->name, name))
            return s;
    return NULL;
}

char *data_path_join(const char *dir, const char *name)
{
    const size_t n = strlen(dir) + strlen(name) + 2;
    char *path = malloc(n);
    if (path)
        snprintf(path, n, "%s/%s", dir, name);
    return path;
}

char *data_cache_dir(void)
{
    const char *cache = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (cache && *cache)
        return data_path_join(cache, "tulle");
    return home && *home ? data_path_join(home, ".cache/tulle") : NULL;
}

/* ---- finding ---- */

/* The names under which the file of a set that is one file is found; an IDX set is a folder. */
static const char *const shakespeare_files[] = {"tinyshakespeare.txt", "input.txt", NULL};
static const char *const enwik8_files[] = {"enwik8", "enwik8.gz", "enwik8-4M.gz", NULL};
static const char *const cifar_files[] = {"cifar-10-binary.tar.gz", "data_batch_1.bin",
                                          "cifar-10-batches-bin/data_batch_1.bin", NULL};
static const char *const idx_files[] = {"train-images-idx3-ubyte", "train-images-idx3-ubyte.gz",
                                        "train-images.idx3-ubyte", "train-images.idx3-ubyte.gz",
                                        NULL};

static const char *const *files_of(const char *name, bool *ret_folder)
{
    *ret_folder = strstr(name, "mnist") != NULL;
    return *ret_folder ? idx_files : !strcmp(name, "shakespeare") ? shakespeare_files
         : !strcmp(name, "enwik8") ? enwik8_files : cifar_files;
}

static bool is_file(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

typedef struct search { char looked[1200]; char *found; bool oom; } search;

/* Looks for the files of a set in one folder; own: the folder is known to be of this set. */
static bool look(search *s, const char *name, const char *dir, bool own)
{
    bool folder;
    const char *const *file = files_of(name, &folder);
    const size_t used = strlen(s->looked);
    if (folder && !own) /* MNIST and Fashion-MNIST share their file names */
        return false;
    snprintf(s->looked + used, sizeof s->looked - used, "\n  %.300s", dir);
    for (; *file && !s->found; file++) {
        char *path = data_path_join(dir, *file);
        s->oom |= !path;
        if (path && is_file(path))
            s->found = folder ? strdup(dir) : strdup(path);
        free(path);
    }
    return s->found != NULL;
}

/* The folder itself (if its name or its file names tell that it is of this set), then its subfolder
 * of the set's name. */
static bool look_around(search *s, const char *name, const char *dir)
{
    char *sub = data_path_join(dir, name), *tiny = data_path_join(dir, "tinyshakespeare");
    const char *base = strrchr(dir, '/');
    bool found = look(s, name, dir, base && !strcmp(base + 1, name));
    if (!sub || !tiny)
        s->oom = true;
    else if (!found && !(found = look(s, name, sub, true)) && !strcmp(name, "shakespeare"))
        found = look(s, name, tiny, true);
    free(sub);
    free(tiny);
    return found;
}

static int find_at(const char *name, const char *path, char **ret_path, ag_err *err)
{
    search s = {0};
    bool folder;
    if (!ag_path_exists(path))
        return ag_err_set(err, AG_EINPUT, "'%s' (data.path) does not exist", path);
    files_of(name, &folder);
    if (is_file(path) && folder)
        return ag_err_set(err, AG_EINPUT, "'%s' (data.path) is a file; %s is a folder of IDX files",
                          path, name);
    if (is_file(path))
        s.found = strdup(path);
    else if (!look(&s, name, path, true) && !s.oom)
        return ag_err_set(err, AG_EINPUT, "'%s' (data.path) has no file of %s", path, name);
    if (!s.found)
        return ag_err_set(err, AG_ENOMEM, "no memory for a file name");
    *ret_path = s.found;
    return AG_OK;
}

int data_find(const char *name, const char *path, char **ret_path, ag_err *err)
{
    const char *mine = getenv("TULLE_DATA");
    char *cache = data_cache_dir();
    search s = {0};
    bool found = false;
    if (!data_catalog_find(name)) {
        free(cache);
        return ag_err_set(err, AG_ECONFIG, "there is no data set '%s'", name);
    }
    if (path && *path) {
        free(cache);
        return find_at(name, path, ret_path, err);
    }
    if (mine && *mine)
        found = look_around(&s, name, mine);
    if (!found && cache)
        found = look_around(&s, name, cache);
    if (!found && !s.oom)
        found = look_around(&s, name, "/usr/share/datasets");
    free(cache);
    if (s.oom) {
        free(s.found);
        return ag_err_set(err, AG_ENOMEM, "no memory for a file name");
    }
    if (!found)
        return ag_err_set(
            err, AG_EINPUT,
            "the data set %s is not on this machine; looked in%s\nFetch it with: tulle"
            " data get %s (or set data.path or TULLE_DATA)",
            name, s.looked, name);
    *ret_path = s.found;
    return AG_OK;
}

/* ---- checking ---- */

int data_sum_check(const char *path, const char *sum, ag_err *err)
{
    ag_map m;
    char hex[65];
    const int rc = ag_file_map(path, &m, err);
    if (rc)
        return rc;
    if (strlen(sum) == 32) {
        data_md5_hex(m.data, m.size, hex);
    } else {
        uint8_t digest[32];
        ag_sha256 h;
        ag_sha256_init(&h);
        ag_sha256_add(&h, m.data, m.size);
        ag_sha256_end(&h, digest);
        ag_sha256_hex(digest, hex);
    }
    ag_map_release(&m);
    return !strcmp(hex, sum);
}

/* The checksum of a file that lies in dir: 1 right, -1 wrong, 0 not there; other negative codes are
 * errors.  A file that was unpacked, or packed anew, is right if what it holds is. */
enum { ABSENT = 0, RIGHT = 1, WRONG = -1 };

static int check_contents(const char *path, const char *plain, ag_err *err)
{
    data_bytes b;
    char hex[33];
    const int rc = data_bytes_load(path, &b, err);
    if (rc)
        return rc;
    data_md5_hex(b.at, b.size, hex);
    data_bytes_release(&b);
    return !strcmp(hex, plain);
}

static int check_file(const data_file *f, const char *path, int *ret_state, ag_err *err)
{
    int rc = *ret_state = ABSENT;
    if (!is_file(path))
        return AG_OK;
    if ((rc = data_sum_check(path, f->sum, err)) == 0 && f->plain)
        rc = check_contents(path, f->plain, err);
    if (rc >= 0)
        *ret_state = rc ? RIGHT : WRONG;
    return rc < 0 ? rc : AG_OK;
}

/* Under which name the file lies in dir (malloc): as published, as it is also called, or without
 * .gz. */
static char *place_of(const data_file *f, const char *dir)
{
    const char *name = f->unpacked ? f->unpacked : f->name,
               *gz = f->plain ? strstr(name, ".gz") : NULL;
    char *path = data_path_join(dir, name);
    if (!path || is_file(path))
        return path;
    if (gz) {
        path[strlen(path) - strlen(gz)] = '\0';
    } else if (!strcmp(name, "input.txt")) {
        free(path);
        path = data_path_join(dir, "tinyshakespeare.txt");
    }
    return path;
}

int data_verify(const data_named *set, const char *dir, data_seen *seen, void *arg, ag_err *err)
{
    int there = 0, rc = AG_OK;
    for (const data_file *f = set->file; f->name; f++) {
        int state;
        char *path = place_of(f, dir);
        if (!path)
            return ag_err_set(err, AG_ENOMEM, "no memory for a file name");
        int one = check_file(f, path, &state, err);
        if (one == AG_OK && seen)
            seen(arg, strrchr(path, '/') + 1, state);
        if (state == WRONG)
            one =
                ag_err_set(err, AG_EINPUT, "'%s' is not the published file: its checksum is not %s",
                           path, f->sum);
        free(path);
        there += state != ABSENT;
        rc = rc ? rc : one;
    }
    return rc || there ? rc
         : ag_err_set(err, AG_EINPUT, "'%s' holds no published file of %s", dir, set->name);
}
