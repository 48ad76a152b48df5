/*
 * io.h -- files: read whole, map, and replace without ever losing the old one.
 *
 * ag_file_replace() is the one way the program writes a file that matters: a temporary file in the
 * same folder, write, fsync, rename, fsync of the folder.  Whatever happens in between (a kill, a
 * full disk, a failing fsync), the name holds either the whole old or the whole new contents, and
 * no temporary file stays behind unless the process was killed; the next replacement removes that.
 */
#ifndef AG_BASE_IO_H
#define AG_BASE_IO_H

#include "error.h"
#include <stdbool.h>
#include <stddef.h>

typedef struct ag_map {              /* a file in memory, read-only */
    const unsigned char *data;       /* [size]; not NULL even when size is 0 */
    size_t size;                     /* bytes */
} ag_map;

/* Reads a whole file into malloc'ed memory with a NUL behind it.  AG_EIO if it cannot be read,
 * AG_EINPUT if it is no regular file or larger than max_size bytes, AG_ENOMEM. */
int  ag_file_read(const char *path, size_t max_size, char **ret_data, size_t *ret_size,
                  ag_err *err);

/* Maps a regular file read-only.  The same codes. */
int  ag_file_map(const char *path, ag_map *ret_map, ag_err *err);
void ag_map_release(ag_map *m);      /* a zeroed map is fine */
/* What was read of it no longer takes memory of the process; it can be read again. */
void ag_map_forget(const ag_map *m);

/* Replaces path by data[size], durably and atomically (see above).  One thread at a time per name.
 * AG_EIO; when only the last step failed, the message says that the new contents are in place. */
int  ag_file_replace(const char *path, const void *data, size_t size, ag_err *err);

/* The same, and the old contents, if any, stay as file `keep` of the same folder.  At every moment
 * path or keep holds a whole file: the new one is written, then path becomes keep, then the new one
 * becomes path. */
int  ag_file_replace_keep(const char *path, const char *keep, const void *data, size_t size,
                          ag_err *err);

bool ag_path_exists(const char *path);
/* mkdir -p.  AG_EIO names the component that failed. */
int  ag_dir_make(const char *path, ag_err *err);

/* An exclusive lock on DIR/LOCK, held until release or the end of the process, however it ends.
 * AG_ELOCKED with the holder's process id and host if another process holds it. */
typedef struct ag_lock { int fd; } ag_lock;
int  ag_dir_lock(const char *dir, ag_lock *ret_lock, ag_err *err);
void ag_lock_release(ag_lock *l);    /* fd -1 is fine */

#endif
