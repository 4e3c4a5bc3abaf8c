// Kills a process just before its call number KILL_AT that changes names on a disk or syncs it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static void count(void) {
  static long calls = 0;
  const char* last = getenv("KILL_AT");
  if (last != NULL && ++calls == atol(last)) kill(getpid(), SIGKILL);
}

#define CALL(name, declared, given)                          \
  int name declared {                                        \
    count();                                                 \
    return ((int(*) declared)dlsym(RTLD_NEXT, #name)) given; \
  }

CALL(rename, (const char* from, const char* to), (from, to))
CALL(fsync, (int file), (file))
CALL(mkdir, (const char* path, mode_t mode), (path, mode))
CALL(unlink, (const char* path), (path))
CALL(unlinkat, (int folder, const char* path, int flags), (folder, path, flags))
