// What starting a process costs at least. For each line on standard input this program forks a
// child that exits at once, and forks one that executes this program again to load a library, and
// prints the nanoseconds of both until the child is reaped.
//
//   floor LIBRARY        measures
//   floor - LIBRARY      loads the library and exits: the second child
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static long long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static long long child_ns(char *const arguments[]) {
    long long begin = now_ns();
    pid_t child = fork();
    if (child == 0) {
        if (arguments != NULL) execv("/proc/self/exe", arguments);
        _exit(arguments != NULL);
    }
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) exit(1);
    return now_ns() - begin;
}

int main(int count, char **given) {
    if (count == 3 && strcmp(given[1], "-") == 0) {
        _exit(dlopen(given[2], RTLD_NOW) == NULL);
    }
    if (count != 2) return 2;
    char *const again[] = {given[0], "-", given[1], NULL};
    while (getchar() != EOF) {
        long long fork_ns = child_ns(NULL), exec_ns = child_ns(again);
        printf("%lld %lld\n", fork_ns, exec_ns);
        fflush(stdout);
    }
    return 0;
}
