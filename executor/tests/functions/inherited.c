/* What a function, and what it starts, finds of the process that it runs in. */
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static uint32_t read_all(FILE *from, void *output) {
    uint32_t bytes = from == NULL ? 0 : (uint32_t)fread(output, 1, 4096, from);
    return bytes;
}

/* The file that its input names. */
uint32_t contents(void *input, uint32_t input_bytes, void *output) {
    char name[128] = {0};
    memcpy(name, input, input_bytes < 127 ? input_bytes : 127);
    FILE *file = fopen(name, "r");
    uint32_t bytes = read_all(file, output);
    if (file != NULL) fclose(file);
    return bytes;
}

/* What the shell command that its input is prints. */
uint32_t shell(void *input, uint32_t input_bytes, void *output) {
    char command[1024] = {0};
    memcpy(command, input, input_bytes < 1023 ? input_bytes : 1023);
    FILE *pipe = popen(command, "r");
    uint32_t bytes = read_all(pipe, output);
    if (pipe != NULL) pclose(pipe);
    return bytes;
}

/* Forks, sends the signal that its input is to the child, which only waits; returns which signal ended that. */
uint32_t end_child(void *input, uint32_t input_bytes, void *output) {
    int ended = 0;
    pid_t child = fork();
    (void)input_bytes;
    if (child == 0) for (;;) pause();
    kill(child, *(uint8_t *)input);
    if (waitpid(child, &ended, 0) != child || !WIFSIGNALED(ended)) return 0;
    *(uint8_t *)output = (uint8_t)WTERMSIG(ended);
    return 1;
}
