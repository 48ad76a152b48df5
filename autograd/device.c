/* device.c -- memory of a device, or of the host where there is none. */
#include "device.h"

#include <string.h>

void ag_device_write(const ag_device *d, void *to, const void *host, size_t bytes)
{
    if (d) d->write(to, host, bytes);
    else if (bytes) memcpy(to, host, bytes);
}

void ag_device_read(const ag_device *d, void *host, const void *from, size_t bytes)
{
    if (d) d->read(host, from, bytes);
    else if (bytes) memcpy(host, from, bytes);
}

void ag_device_copy(const ag_device *d, void *to, const void *from, size_t bytes)
{
    if (d) d->copy(to, from, bytes);
    else if (bytes) memcpy(to, from, bytes);
}

void ag_device_clear(const ag_device *d, void *p, size_t bytes)
{
    if (d) d->clear(p, bytes);
    else if (bytes) memset(p, 0, bytes);
}

void *ag_device_alloc(const ag_device *d, size_t bytes)
{
    if (!d) return ag_block_alloc(bytes);
    void *p = ag_fault_now() ? NULL : d->memory.alloc(bytes ? bytes : 1);
    if (p) d->clear(p, bytes);
    return p;
}

void ag_device_free(const ag_device *d, void *p, size_t bytes)
{
    if (!d) ag_block_free(p, bytes);
    else if (p) d->memory.free(p, bytes);
}
