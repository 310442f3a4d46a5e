// Loaded before the C library, lets calls that write below a folder fail, as they do on a full or a broken disk.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { kMaxCalls = 100000, kMaxSite = 300 };
static char folder[PATH_MAX];
static long first, calls;
static int error_number, lasting;
static char (*sites)[kMaxSite];

// The calls below `path` are counted from 0. The one with number `at` fails with `error`, and all later ones if `stays`.
void faults_arm(const char* path, long at, int error, int stays) {
  sites = calloc(kMaxCalls, kMaxSite);
  snprintf(folder, sizeof folder, "%s/", path);
  first = at;
  error_number = error;
  lasting = stays;
}

long faults_calls(void) { return calls; }

// What a call was: its name and the path, relative to the folder.
const char* faults_site(long call) { return sites[call]; }

static int fails(const char* name, const char* path) {
  if (!folder[0] || strncmp(path, folder, strlen(folder)) != 0 || calls == kMaxCalls) return 0;
  snprintf(sites[calls], kMaxSite, "%s %s", name, path + strlen(folder));
  const long call = calls++;
  if (first < 0 || (lasting ? call < first : call != first)) return 0;
  // Where a disk is full, what is there can still be renamed and synchronised.
  if (lasting && (strcmp(name, "rename") == 0 || strcmp(name, "fsync") == 0)) return 0;
  errno = error_number;
  return 1;
}

static int fails_of(const char* name, int descriptor) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  const ssize_t length = folder[0] ? readlink(link, path, sizeof path - 1) : -1;
  if (length < 0) return 0;
  path[length] = 0;
  return fails(name, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                                  \
  int name(const char* path, int flags, ...) {                                      \
    va_list rest;                                                                   \
    va_start(rest, flags);                                                          \
    const mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;   \
    va_end(rest);                                                                   \
    if (flags & O_CREAT && access(path, F_OK) != 0 && fails("open", path)) return -1; \
    return NEXT(name)(path, flags, mode);                                           \
  }
OPEN(open)
OPEN(open64)

ssize_t write(int descriptor, const void* data, size_t size) {
  return fails_of("write", descriptor) ? -1 : NEXT(write)(descriptor, data, size);
}

ssize_t writev(int descriptor, const struct iovec* parts, int count) {
  return fails_of("write", descriptor) ? -1 : NEXT(writev)(descriptor, parts, count);
}

int fsync(int descriptor) { return fails_of("fsync", descriptor) ? -1 : NEXT(fsync)(descriptor); }

int mkdir(const char* path, mode_t mode) {
  return access(path, F_OK) != 0 && fails("mkdir", path) ? -1 : NEXT(mkdir)(path, mode);
}

int rename(const char* from, const char* to) { return fails("rename", to) ? -1 : NEXT(rename)(from, to); }
