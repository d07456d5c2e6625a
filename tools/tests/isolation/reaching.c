// A function that reaches for what is not its own. It writes what came of it: its user and process id, and the error
// numbers of opening the file that its input names, of a socket and of a new namespace; 0: it succeeded.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

static uint32_t outcome(int result) { return result < 0 ? (uint32_t)errno : 0; }

uint32_t reach(void *input, uint32_t bytes, void *output) {
    char path[256] = {0};
    memcpy(path, input, bytes < sizeof path ? bytes : sizeof path - 1);
    uint32_t found[5] = {
        (uint32_t)getuid(),
        (uint32_t)getpid(),
        outcome(open(path, O_RDONLY)),
        outcome(socket(AF_UNIX, SOCK_STREAM, 0)),
        outcome(unshare(CLONE_NEWUSER)),
    };
    memcpy(output, found, sizeof found);
    return sizeof found;
}

// Writes to shared memory until there is no more, or it has a gigabyte.
uint32_t share_memory(void *input, uint32_t input_bytes, void *output) {
    enum { STEP = 16 << 20, MOST = 64 };
    for (int i = 0; i < MOST; i++) {
        char *memory = mmap(NULL, STEP, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) break;
        memset(memory, 1, STEP);
    }
    return 0;
}
