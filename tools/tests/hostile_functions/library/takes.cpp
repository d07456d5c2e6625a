/* Functions that take what others need. Each stops by itself long before the machine suffers. */
#include "common.h"

#include <atomic>
#include <csignal>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

constexpr int MOST_PROCESSES = 1100, MOST_THREADS = 1100, MOST_DESCRIPTORS = 20000;
constexpr size_t MOST_MEMORY_MB = 2048, MOST_WRITTEN_MB = 384, MOST_DISK_MB = 200, MB = 1 << 20;

/* Children that make children, all of which stay. */
FUNCTION(fork_bomb) {
    UNUSED;
    struct Count {
        std::atomic<int> left, started, error;
    };
    void *page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    auto *count = static_cast<Count *>(page);
    count->left = MOST_PROCESSES;
    const pid_t first = getpid();
    while (count->left.fetch_sub(1) > 0) {
        pid_t child = fork();
        if (child < 0) {
            count->error = errno;
            break;
        }
        if (child == 0) alarm(LONGEST_LIFE_SECONDS);
        else count->started++;
    }
    while (getpid() != first) pause();
    usleep(100000); /* the others are not done */
    Tried tried;
    if (count->error == 0) tried.tell(0, "started %d processes", count->started.load());
    else tried.tell(count->error, "more than %d processes", count->started.load());
    return tried.answer(output);
}

static void *stay(void *) {
    for (;;) pause();
}

FUNCTION(thread_bomb) {
    UNUSED;
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 64 << 10);
    int started = 0, error = 0;
    for (pthread_t thread; started < MOST_THREADS; started++) {
        error = pthread_create(&thread, &small, stay, nullptr);
        if (error != 0) break;
    }
    Tried tried;
    if (error == 0) tried.tell(0, "started %d threads", started);
    else tried.tell(error, "more than %d threads", started);
    return tried.answer(output);
}

/* An executor may have a stack for each processor besides its lease (the manager's `footprint`), of
 * the limit for stacks or, without one, of 64 MB: so much more is to be taken. */
static size_t stacks() {
    rlimit limit;
    getrlimit(RLIMIT_STACK, &limit);
    const size_t each = limit.rlim_cur == RLIM_INFINITY ? 64 * MB : limit.rlim_cur;
    return static_cast<size_t>(sysconf(_SC_NPROCESSORS_CONF)) * each;
}

/* Takes memory of this kind, a step at a time, and keeps it. Enough of it is written to for whoever
 * counts only that. */
static uint32_t take_memory(int kind, void *output) {
    constexpr size_t STEP = 16 * MB;
    const size_t most = MOST_MEMORY_MB * MB + stacks(), most_written = MOST_WRITTEN_MB * MB + stacks();
    size_t taken = 0;
    int error = 0;
    for (; taken < most; taken += STEP) {
        void *memory = mmap(nullptr, STEP, PROT_READ | PROT_WRITE, kind | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) {
            error = errno;
            break;
        }
        if (taken < most_written) memset(memory, 1, STEP);
    }
    Tried tried;
    if (error == 0) tried.tell(0, "took %zu MB", taken / MB);
    else tried.tell(error, "more than %zu MB", taken / MB);
    return tried.answer(output);
}

FUNCTION(memory_bomb) {
    UNUSED;
    return take_memory(MAP_PRIVATE, output);
}

FUNCTION(shared_memory_bomb) {
    UNUSED;
    return take_memory(MAP_SHARED, output);
}

/* Children that take memory together, each less than a process may have. */
FUNCTION(forked_memory_bomb) {
    UNUSED;
    constexpr size_t EACH = 96 * MB;
    const int most = 8 + static_cast<int>(stacks() / EACH);
    struct Count {
        std::atomic<int> done;
    };
    void *page = mmap(nullptr, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    auto *count = static_cast<Count *>(page);
    std::vector<pid_t> children(static_cast<size_t>(most));
    int started = 0, ended = 0;
    for (; started < most; started++) {
        pid_t child = children[started] = fork();
        if (child < 0) break;
        if (child > 0) continue;
        alarm(LONGEST_LIFE_SECONDS);
        void *memory = mmap(nullptr, EACH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) _exit(1);
        memset(memory, 1, EACH);
        count->done++;
        for (;;) pause();
    }
    while (ended + count->done < started) {
        int status;
        if (waitpid(-1, &status, WNOHANG) > 0) ended++;
        usleep(1000);
    }
    const int done = count->done;
    for (int i = 0; i < started; i++) {
        kill(children[i], SIGKILL); /* one that has ended is not waited for by anybody else */
    }
    while (waitpid(-1, nullptr, 0) > 0) continue;
    Tried tried;
    if (done == most) tried.tell(0, "took %zu MB in %d processes", done * EACH / MB, done);
    else tried.tell(ENOMEM, "more than %zu MB in %d processes", done * EACH / MB, done);
    return tried.answer(output);
}

/* Fills every directory that anybody can write to. The files stay. */
FUNCTION(fill_disk) {
    UNUSED;
    Tried tried;
    const std::string some(MB, 'x');
    size_t left = MOST_DISK_MB * MB;
    int number = 0; /* directories may be the same one */
    for (const char *directory : {"/dev/shm", "/run", "/var/tmp", "/tmp", "."}) {
        const std::string name = "/rfaas-hostile-fill-" + std::to_string(++number);
        const std::string path = directory + name;
        int file = open(path.c_str(), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
        if (file < 0) {
            tried.tell(errno, "%s", directory);
            continue;
        }
        const size_t most = left / 2 < MB ? left : left / 2;
        size_t written = 0;
        ssize_t now = 0;
        while (written < most && (now = write(file, some.data(), some.size())) > 0) {
            written += static_cast<size_t>(now);
        }
        if (now < 0) tried.tell(errno, "%s after %zu MB", directory, written / MB);
        else tried.tell(0, "wrote %zu MB to %s", written / MB, directory);
        left -= written < left ? written : left;
        close(file);
    }
    return tried.answer(output);
}

FUNCTION(take_descriptors) {
    UNUSED;
    int taken = 0, error = 0;
    for (; taken < MOST_DESCRIPTORS; taken++) {
        if (open("/dev/null", O_RDONLY | O_CLOEXEC) < 0) {
            error = errno;
            break;
        }
    }
    Tried tried;
    if (error == 0) tried.tell(0, "opened %d files", taken);
    else tried.tell(error, "more than %d files", taken);
    return tried.answer(output);
}

static void hold(int ready) {
    constexpr size_t BYTES = 64 * MB;
    alarm(LONGEST_LIFE_SECONDS);
    void *memory = mmap(nullptr, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory != MAP_FAILED) memset(memory, 1, BYTES);
    sockaddr_in any = {};
    any.sin_family = AF_INET;
    int tcp = socket(AF_INET, SOCK_STREAM, 0);
    if (tcp >= 0 && bind(tcp, reinterpret_cast<sockaddr *>(&any), sizeof any) == 0) listen(tcp, 8);
    int local = abstract_socket("rfaas-hostile-grandchild", bind);
    if (local >= 0) listen(local, 8);
    if (write(ready, "r", 1) != 1) _exit(1);
    for (;;) pause();
}

/* A grandchild in a session of its own, which nobody waits for. That it starts is no harm; that it
 * stays would be. */
FUNCTION(grandchild) {
    UNUSED;
    Tried tried;
    int ready[2];
    char byte;
    if (pipe(ready) != 0) return 0;
    pid_t child = fork();
    if (child == 0) {
        setsid();
        if (fork() == 0) hold(ready[1]);
        _exit(0);
    }
    close(ready[1]);
    if (child > 0 && read(ready[0], &byte, 1) == 1) tried.tell(0, "started one");
    else tried.tell(child > 0 ? ECHILD : errno, "a grandchild");
    return tried.answer(output);
}
