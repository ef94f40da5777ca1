/* Faults at write-side calls of libc, a log of these calls, and a clock with an offset. Loaded by LD_PRELOAD.

   All settings and counters are in a file that the harness and every process of a trial map (struct state). A
   forked driver calls shim_attach. A process that exec starts, such as a worker, attaches in its constructor, to the
   file that the variable TORTURE_STATE names. Only calls on paths that start with `prefix` and contain `part` count.

   Covered: open, openat, creat, write, pwrite, writev, pwritev, fsync, fdatasync, rename, renameat, renameat2, link,
   linkat, symlink, unlink, unlinkat, truncate, ftruncate, fallocate, posix_fallocate, mkdir, mkdirat, rmdir, and the
   64-bit names. Not covered: stores into mapped memory (SQLite's -shm file, which SQLite rebuilds), stdio of C
   libraries, and direct system calls. Neither core nor the bundled stores use the last two for files of a study. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum operation { OPEN, WRITE, FSYNC, RENAME, LINK, UNLINK, TRUNCATE, ALLOCATE, MKDIR, RMDIR, ANY };
enum action { NOTHING, KILL_BEFORE, KILL_AFTER, TORN, SHORT, ERROR };
enum role { EVERY, DRIVER, WORKER };

struct state {
    char prefix[512], part[64], log[512];
    int32_t operation, action, error, full_disk, role, with_content, armed, fired;
    int64_t nth, count, clock_offset; /* nanoseconds */
};

struct record { /* one entry of the log, followed by path, second path and content */
    int32_t operation, pid, flags, path_size, second_size, content_size;
    int64_t inode, offset, size;
};
enum { CREATED = 1, TRUNCATED = 2, FOLDER = 4, FAILED = 8 };

static struct state *shared;
static int role = EVERY;

int shim_attach(const char *file, int as) {
    int handle = syscall(SYS_openat, AT_FDCWD, file, O_RDWR | O_CLOEXEC, 0);
    if (handle < 0) return -1;
    void *map = mmap(0, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, handle, 0);
    syscall(SYS_close, handle);
    if (map == MAP_FAILED) return -1;
    shared = map;
    role = as;
    return 0;
}

__attribute__((constructor)) static void attach_worker(void) {
    const char *file = getenv("TORTURE_STATE");
    if (file) shim_attach(file, WORKER);
}

#define REAL(result, name, ...)                                                                                      \
    static result (*real)(__VA_ARGS__);                                                                              \
    if (!real) real = (result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name)

static int watched(const char *path) {
    return shared && shared->armed && path && !strncmp(path, shared->prefix, strlen(shared->prefix));
}

static const char *path_of(int handle, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t size = syscall(SYS_readlinkat, AT_FDCWD, link, buffer, 4000);
    if (size < 0) return 0;
    buffer[size] = 0;
    return buffer;
}

static const char *absolute(int folder, const char *path, char *buffer) {
    if (!shared || !path || path[0] == '/') return path;
    char base[4100];
    if (folder == AT_FDCWD ? !getcwd(base, 4000) : !path_of(folder, base)) return path;
    snprintf(buffer, 8200, "%s/%s", base, path);
    return buffer;
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* The action for this call: NOTHING, KILL_AFTER, TORN or SHORT; ERROR with errno set. Kills for KILL_BEFORE. */
static int decide(int operation, const char *path, int allocates) {
    if (!watched(path) || shared->action == NOTHING) return NOTHING;
    if (shared->fired && shared->full_disk && allocates) return errno = ENOSPC, ERROR;
    if (shared->fired || (shared->role != EVERY && shared->role != role)) return NOTHING;
    if (shared->operation != ANY && shared->operation != operation) return NOTHING;
    if (shared->part[0] && !strstr(path, shared->part)) return NOTHING;
    if (__sync_add_and_fetch(&shared->count, 1) != shared->nth) return NOTHING;
    if (shared->full_disk && !allocates) return shared->nth++, NOTHING; /* the next call that needs space fails */
    shared->fired = 1;
    if (shared->action == KILL_BEFORE) die();
    if (shared->action == ERROR) errno = shared->error;
    return shared->action;
}

static void note(int operation, const char *path, const char *second, int flags, int handle, int64_t offset,
                 int64_t size, const void *content) {
    if (!watched(path) || !shared->log[0]) return;
    int before = errno;
    struct stat status = {0};
    if (handle >= 0 ? fstat(handle, &status) : stat(path, &status)) status.st_ino = 0;
    if (S_ISDIR(status.st_mode)) flags |= FOLDER;
    int64_t with = content && shared->with_content ? size : 0;
    struct record head = {operation, getpid(), flags, strlen(path), second ? strlen(second) : 0, with,
                          status.st_ino, offset, size};
    struct iovec parts[4] = {{&head, sizeof head}, {(void *)path, head.path_size},
                             {(void *)second, head.second_size}, {(void *)content, with}};
    int log = syscall(SYS_openat, AT_FDCWD, shared->log, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    syscall(SYS_writev, log, parts, 4);
    syscall(SYS_close, log);
    errno = before;
}

/* ------------------------------------------------------------------ open */

static int open_file(int folder, const char *path, int flags, mode_t mode) {
    REAL(int, openat64, int, const char *, int, ...);
    int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
    char buffer[8200];
    const char *full = writes ? absolute(folder, path, buffer) : path;
    if (!writes || !watched(full)) return real(folder, path, flags, mode);
    int is_new = syscall(SYS_faccessat, AT_FDCWD, full, F_OK) != 0;
    int action = decide(OPEN, full, is_new);
    if (action == ERROR) return -1;
    int handle = real(folder, path, flags, mode);
    if (handle >= 0) note(OPEN, full, 0, (is_new ? CREATED : 0) | (flags & O_TRUNC ? TRUNCATED : 0), handle, 0, 0, 0);
    if (action == KILL_AFTER || action == TORN) die();
    return handle;
}

#define MODE(flags)                                                                                                  \
    mode_t mode = 0;                                                                                                 \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                           \
        va_list rest;                                                                                                \
        va_start(rest, flags);                                                                                       \
        mode = va_arg(rest, mode_t);                                                                                 \
        va_end(rest);                                                                                                \
    }
int open(const char *path, int flags, ...) { MODE(flags) return open_file(AT_FDCWD, path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return open_file(AT_FDCWD, path, flags, mode); }
int openat(int folder, const char *path, int flags, ...) { MODE(flags) return open_file(folder, path, flags, mode); }
int openat64(int folder, const char *path, int flags, ...) { MODE(flags) return open_file(folder, path, flags, mode); }
int creat(const char *path, mode_t mode) { return open_file(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open_file(AT_FDCWD, path, O_WRONLY | O_CREAT | O_TRUNC, mode); }

/* ------------------------------------------------------------------ write: all forms end here; offset -1 appends */

static ssize_t write_at(int handle, const void *content, size_t size, off64_t offset) {
    char buffer[4100];
    const char *path = shared && shared->armed ? path_of(handle, buffer) : 0;
    int action = decide(WRITE, path, 1);
    if (action == ERROR) return -1;
    size_t wanted = (action == TORN || action == SHORT) && size > 1 ? size / 2 : size;
    ssize_t done = offset < 0 ? syscall(SYS_write, handle, content, wanted)
                              : syscall(SYS_pwrite64, handle, content, wanted, offset);
    if (done >= 0 && watched(path)) {
        int64_t start = offset >= 0 ? offset : syscall(SYS_lseek, handle, 0, SEEK_CUR) - done;
        note(WRITE, path, 0, 0, handle, start, done, content);
    }
    if (action == KILL_AFTER || action == TORN) die();
    return done;
}

ssize_t write(int handle, const void *content, size_t size) { return write_at(handle, content, size, -1); }
ssize_t pwrite(int handle, const void *content, size_t size, off_t at) { return write_at(handle, content, size, at); }
ssize_t pwrite64(int handle, const void *content, size_t size, off64_t at) {
    return write_at(handle, content, size, at);
}

static ssize_t write_vector(int handle, const struct iovec *parts, int count, off64_t offset) {
    size_t size = 0, filled = 0;
    for (int i = 0; i < count; i++) size += parts[i].iov_len;
    char *joined = malloc(size ? size : 1);
    for (int i = 0; i < count; filled += parts[i++].iov_len)
        memcpy(joined + filled, parts[i].iov_base, parts[i].iov_len);
    ssize_t done = write_at(handle, joined, size, offset);
    int error = errno;
    free(joined);
    errno = error;
    return done;
}
ssize_t writev(int handle, const struct iovec *parts, int count) { return write_vector(handle, parts, count, -1); }
ssize_t pwritev(int handle, const struct iovec *parts, int count, off_t at) {
    return write_vector(handle, parts, count, at);
}
ssize_t pwritev64(int handle, const struct iovec *parts, int count, off64_t at) {
    return write_vector(handle, parts, count, at);
}

/* ------------------------------------------------------------------ calls on an open file */

#define ON_HANDLE(name, operation, allocates, declared, passed, at, length)                                          \
    int name declared {                                                                                              \
        REAL(int, name, HANDLE_TYPES_##name);                                                                        \
        char buffer[4100];                                                                                           \
        const char *path = shared && shared->armed ? path_of(handle, buffer) : 0;                                    \
        int action = decide(operation, path, allocates);                                                             \
        if (action == ERROR) {                                                                                       \
            if (operation == FSYNC) note(FSYNC, path, 0, FAILED, handle, 0, 0, 0);                                   \
            return -1;                                                                                               \
        }                                                                                                            \
        int result = real passed;                                                                                    \
        if (!result) note(operation, path, 0, 0, handle, at, length, 0);                                             \
        if (action == KILL_AFTER || action == TORN) die();                                                           \
        return result;                                                                                               \
    }
#define HANDLE_TYPES_fsync int
#define HANDLE_TYPES_fdatasync int
#define HANDLE_TYPES_ftruncate int, off_t
#define HANDLE_TYPES_ftruncate64 int, off64_t
#define HANDLE_TYPES_fallocate int, int, off_t, off_t
#define HANDLE_TYPES_fallocate64 int, int, off64_t, off64_t
ON_HANDLE(fsync, FSYNC, 0, (int handle), (handle), 0, 0)
ON_HANDLE(fdatasync, FSYNC, 0, (int handle), (handle), 0, 0)
ON_HANDLE(ftruncate, TRUNCATE, 1, (int handle, off_t size), (handle, size), 0, size)
ON_HANDLE(ftruncate64, TRUNCATE, 1, (int handle, off64_t size), (handle, size), 0, size)
ON_HANDLE(fallocate, ALLOCATE, 1, (int handle, int mode, off_t at, off_t size), (handle, mode, at, size), at, size)
ON_HANDLE(fallocate64, ALLOCATE, 1, (int handle, int mode, off64_t at, off64_t size), (handle, mode, at, size), at, size)

static int allocate_posix(int handle, off64_t at, off64_t size) {
    int before = errno, failed = fallocate64(handle, 0, at, size), error = errno;
    errno = before;
    return failed ? error : 0; /* posix_fallocate returns its error */
}
int posix_fallocate(int handle, off_t at, off_t size) { return allocate_posix(handle, at, size); }
int posix_fallocate64(int handle, off64_t at, off64_t size) { return allocate_posix(handle, at, size); }

/* ------------------------------------------------------------------ calls on paths */

#define ON_PATH(operation, allocates, folder, path, second, call)                                                    \
    char buffer[8200];                                                                                               \
    const char *full = absolute(folder, path, buffer);                                                               \
    int action = decide(operation, full, allocates);                                                                 \
    if (action == ERROR) return -1;                                                                                  \
    int result = call;                                                                                               \
    if (!result) note(operation, full, second, 0, -1, 0, 0, 0);                                                      \
    if (action == KILL_AFTER || action == TORN) die();                                                               \
    return result

/* The log has the new path first: its folder must be synced. */
static int rename_file(int from, const char *old, int to, const char *new, unsigned flags) {
    char source[8200];
    const char *before = absolute(from, old, source);
    ON_PATH(RENAME, 1, to, new, before, syscall(SYS_renameat2, from, old, to, new, flags));
}
int rename(const char *old, const char *new) { return rename_file(AT_FDCWD, old, AT_FDCWD, new, 0); }
int renameat(int from, const char *old, int to, const char *new) { return rename_file(from, old, to, new, 0); }
int renameat2(int from, const char *old, int to, const char *new, unsigned flags) {
    return rename_file(from, old, to, new, flags);
}

static int link_file(int from, const char *old, int to, const char *new, int flags) {
    char source[8200];
    const char *before = absolute(from, old, source);
    ON_PATH(LINK, 1, to, new, before, syscall(SYS_linkat, from, old, to, new, flags));
}
int link(const char *old, const char *new) { return link_file(AT_FDCWD, old, AT_FDCWD, new, 0); }
int linkat(int from, const char *old, int to, const char *new, int flags) {
    return link_file(from, old, to, new, flags);
}
int symlink(const char *target, const char *new) {
    ON_PATH(LINK, 1, AT_FDCWD, new, target, syscall(SYS_symlinkat, target, AT_FDCWD, new));
}

static int remove_entry(int folder, const char *path, int flags, int operation) {
    ON_PATH(operation, 0, folder, path, 0, syscall(SYS_unlinkat, folder, path, flags));
}
int unlink(const char *path) { return remove_entry(AT_FDCWD, path, 0, UNLINK); }
int unlinkat(int folder, const char *path, int flags) {
    return remove_entry(folder, path, flags, flags & AT_REMOVEDIR ? RMDIR : UNLINK);
}
int rmdir(const char *path) { return remove_entry(AT_FDCWD, path, AT_REMOVEDIR, RMDIR); }

static int make_folder(int folder, const char *path, mode_t mode) {
    ON_PATH(MKDIR, 1, folder, path, 0, syscall(SYS_mkdirat, folder, path, mode));
}
int mkdir(const char *path, mode_t mode) { return make_folder(AT_FDCWD, path, mode); }
int mkdirat(int folder, const char *path, mode_t mode) { return make_folder(folder, path, mode); }

int truncate(const char *path, off_t size) {
    char buffer[8200];
    const char *full = absolute(AT_FDCWD, path, buffer);
    int action = decide(TRUNCATE, full, 1);
    if (action == ERROR) return -1;
    int result = syscall(SYS_truncate, path, size);
    if (!result) note(TRUNCATE, full, 0, 0, -1, 0, size, 0);
    if (action == KILL_AFTER || action == TORN) die();
    return result;
}
int truncate64(const char *path, off64_t size) { return truncate(path, size); }

/* ------------------------------------------------------------------ the clock */

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, clock_gettime, clockid_t, struct timespec *);
    int failed = real(clock, now);
    if (failed || !shared || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return failed;
    int64_t total = now->tv_sec * 1000000000LL + now->tv_nsec + shared->clock_offset;
    now->tv_sec = total / 1000000000LL;
    now->tv_nsec = total % 1000000000LL;
    return 0;
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}
time_t time(time_t *now) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (now) *now = exact.tv_sec;
    return exact.tv_sec;
}
