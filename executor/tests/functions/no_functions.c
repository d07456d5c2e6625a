/* Exports data only. */
int answer = 42;
static int hidden(void) { return answer; }
int (*const not_a_function)(void) = hidden;
