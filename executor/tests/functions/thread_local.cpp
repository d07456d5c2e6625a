// Objects with destructors, of a thread and of the process: each leaves a line in the file $FUNCTION_LOG.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <unistd.h>

static void note(const char *line) {
    FILE *log = std::fopen(std::getenv("FUNCTION_LOG"), "a");
    std::fputs(line, log);
    std::fclose(log);
}

struct OfThread {
    int used = 0;
    ~OfThread() {
        if (std::getenv("FUNCTION_HANG")) pause();
        usleep(20000); // time in which the process could have ended
        note("thread\n");
    }
};

struct OfProcess {
    ~OfProcess() { note("process\n"); }
};

static thread_local OfThread of_thread;
static OfProcess of_process;

extern "C" uint32_t use(void *, uint32_t, void *) {
    of_thread.used++;
    return 0;
}
