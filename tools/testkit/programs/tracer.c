/* Traces all threads of a process, as a debugger does: `tracer PID [exit]`. Says "traces" when it does, and lets
 * go when it is killed. With `exit` it holds each thread at its end. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <unistd.h>

int main(int argc, char **argv) {
    char path[64];
    long options = argc > 2 && !strcmp(argv[2], "exit") ? PTRACE_O_TRACEEXIT : 0;
    snprintf(path, sizeof path, "/proc/%s/task", argv[1]);
    DIR *threads = opendir(path);
    if (!threads) return perror(path), 1;
    for (struct dirent *entry; (entry = readdir(threads));) {
        int thread = atoi(entry->d_name);
        if (thread && ptrace(PTRACE_SEIZE, thread, NULL, options) != 0) return perror("ptrace"), 1;
    }
    fputs("traces\n", stderr);
    for (;;) pause();
}
